//! Timer entries live in chunks. An entry never moves, so its index is its address; a chunk that
//! has lost all its entries gives its memory back, so a spike of timers does not stay for ever.

use std::mem;
use std::task::Waker;

/// Entries in one chunk. 10 KiB: small enough to be given back soon, large enough that an
/// allocation is rare among inserts.
const CHUNK_ENTRIES: usize = 256;

/// Empty chunks that are kept for the next inserts, so that a steady coming and going allocates
/// nothing.
const SPARE_CHUNKS_MAX: usize = 4;

/// Chunk headers that stay when the last entry goes; more than these are given back at that moment.
const IDLE_CHUNKS_MAX: usize = 64;

/// No entry, no chunk: the end of a list.
pub(super) const NIL: u32 = u32::MAX;

/// Names one timer in one [`Timers`](super::Timers). Using it after the timer is gone is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerKey {
    pub(super) index: u32,
    generation: u32,
}

/// One timer. The links belong to the list of its wheel slot, or to the chunk's free list.
pub(super) struct Entry {
    /// When it fires. Exact, while its place in the wheel is only as fine as a tick.
    pub(super) deadline_ns: u64,
    /// Who is woken. `None` marks a free entry.
    pub(super) waker: Option<Waker>,
    /// The entry before it in the same slot.
    pub(super) prev: u32,
    /// The entry after it in the same slot; for a free entry, the next free offset in the chunk.
    pub(super) next: u32,
    /// Tells this timer from earlier ones at the same index.
    generation: u32,
    /// The wheel slot that holds it.
    pub(super) slot: u16,
}

/// The entries of one wheel.
pub(super) struct Arena {
    chunks: Vec<Chunk>,
    /// Head of the list of chunks that have memory and a free entry.
    open: u32,
    /// Chunks without memory, to be used before the list of chunks grows.
    vacant: Vec<u32>,
    /// Chunks that have memory and no live entry.
    spares: usize,
    /// Live entries in all chunks.
    len: usize,
    /// Given to the next entry. One counter for all chunks, since a chunk forgets its entries.
    generation: u32,
}

struct Chunk {
    /// Empty when the chunk is vacant.
    entries: Box<[Entry]>,
    /// Offset of the first free entry.
    free: u32,
    /// Entries in use.
    live: u32,
    /// Neighbours in the list of open chunks.
    prev: u32,
    next: u32,
}

impl Arena {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), open: NIL, vacant: Vec::new(), spares: 0, len: 0, generation: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Stores a timer that is in no slot yet; the caller links it.
    pub(super) fn insert(&mut self, deadline_ns: u64, waker: Waker) -> TimerKey {
        if self.open == NIL {
            self.open_chunk();
        }
        let number = self.open;
        let generation = self.generation;
        self.generation = self.generation.wrapping_add(1);
        self.len += 1;

        let chunk = &mut self.chunks[number as usize];
        let offset = chunk.free;
        let entry = &mut chunk.entries[offset as usize];
        chunk.free = entry.next;
        chunk.live += 1;
        entry.deadline_ns = deadline_ns;
        entry.waker = Some(waker);
        entry.generation = generation;

        let (live, full) = (chunk.live, chunk.free == NIL);
        if live == 1 {
            self.spares -= 1;
        }
        if full {
            self.unlink(number);
        }
        TimerKey { index: number * CHUNK_ENTRIES as u32 + offset, generation }
    }

    /// Frees a live entry, which is in no slot any more.
    pub(super) fn remove(&mut self, index: u32) -> Waker {
        let (number, offset) = split(index);
        let chunk = &mut self.chunks[number];
        let entry = &mut chunk.entries[offset];
        let waker = entry.waker.take().expect("a live entry has a waker");
        let full = chunk.free == NIL;
        entry.next = mem::replace(&mut chunk.free, offset as u32);
        chunk.live -= 1;
        self.len -= 1;
        let live = chunk.live;
        if full {
            self.link(number as u32);
        }
        if live == 0 {
            self.chunk_emptied(number as u32);
        }
        waker
    }

    /// The entry of `key`, if that timer is still there.
    pub(super) fn get(&self, key: TimerKey) -> Option<&Entry> {
        let (number, offset) = split(key.index);
        let entry = self.chunks.get(number)?.entries.get(offset)?;
        (entry.waker.is_some() && entry.generation == key.generation).then_some(entry)
    }

    /// An entry that is known to be live, since a slot's list or a checked key led to it.
    pub(super) fn at(&self, index: u32) -> &Entry {
        let (number, offset) = split(index);
        &self.chunks[number].entries[offset]
    }

    /// As [`at`](Self::at).
    pub(super) fn at_mut(&mut self, index: u32) -> &mut Entry {
        let (number, offset) = split(index);
        &mut self.chunks[number].entries[offset]
    }

    /// Takes the wakers of all entries and gives the memory back.
    pub(super) fn drain(&mut self, wakers: &mut Vec<Waker>) {
        for chunk in &mut self.chunks {
            wakers.extend(chunk.entries.iter_mut().filter_map(|entry| entry.waker.take()));
        }
        self.reset();
    }

    /// Bytes of the entries that memory is held for.
    #[cfg(test)]
    pub(super) fn allocated_bytes(&self) -> usize {
        let entries: usize = self.chunks.iter().map(|chunk| chunk.entries.len()).sum();
        entries * size_of::<Entry>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.vacant.capacity() * size_of::<u32>()
    }

    fn open_chunk(&mut self) {
        let number = self.vacant.pop().unwrap_or_else(|| {
            let number = self.chunks.len() as u32;
            assert!(number < NIL / CHUNK_ENTRIES as u32, "too many timers on one shard");
            self.chunks.push(Chunk {
                entries: Box::default(),
                free: NIL,
                live: 0,
                prev: NIL,
                next: NIL,
            });
            number
        });
        let chunk = &mut self.chunks[number as usize];
        chunk.entries = (1..=CHUNK_ENTRIES as u32)
            .map(|next| Entry {
                deadline_ns: 0,
                waker: None,
                prev: NIL,
                next: if next == CHUNK_ENTRIES as u32 { NIL } else { next },
                generation: 0,
                slot: 0,
            })
            .collect();
        chunk.free = 0;
        self.spares += 1;
        self.link(number);
    }

    fn chunk_emptied(&mut self, number: u32) {
        if self.len == 0 && self.chunks.len() > IDLE_CHUNKS_MAX {
            self.reset();
        } else if self.spares < SPARE_CHUNKS_MAX {
            self.spares += 1;
        } else {
            self.unlink(number);
            let chunk = &mut self.chunks[number as usize];
            chunk.entries = Box::default();
            chunk.free = NIL;
            self.vacant.push(number);
        }
    }

    /// Back to the beginning, but for the generation: old keys stay unknown.
    fn reset(&mut self) {
        *self = Self { generation: self.generation, ..Self::new() };
    }

    fn link(&mut self, number: u32) {
        let next = mem::replace(&mut self.open, number);
        let chunk = &mut self.chunks[number as usize];
        chunk.prev = NIL;
        chunk.next = next;
        if next != NIL {
            self.chunks[next as usize].prev = number;
        }
    }

    fn unlink(&mut self, number: u32) {
        let Chunk { prev, next, .. } = self.chunks[number as usize];
        match prev {
            NIL => self.open = next,
            prev => self.chunks[prev as usize].next = next,
        }
        if next != NIL {
            self.chunks[next as usize].prev = prev;
        }
    }
}

/// Number of the chunk, and offset in it.
fn split(index: u32) -> (usize, usize) {
    (index as usize / CHUNK_ENTRIES, index as usize % CHUNK_ENTRIES)
}
