//! The memory in which a process keeps the boards of its shards: one file without a name, so that
//! other processes can find it by its link in `/proc/PID/fd` and read it.
//!
//! Made with the first board, and kept: it has half a megabyte, touched only as it is used. Where
//! the system refuses it, and past its last slot, boards are on the heap, for this process alone.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Block, WORDS, Word};
use crate::fork::{PerProcess, Process};
use crate::sys::SharedFile;
use crate::ticks::Ticks;

/// The file's name, which the kernel shows as `/memfd:annulus-metrics`.
pub(super) const NAME: &std::ffi::CStr = c"annulus-metrics";

/// The first word of such a file.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"annulus\n");

/// What the words mean: see [`Word`] and [`HeaderWord`].
pub(super) const LAYOUT: u64 = 1;

/// A page, of which the first few words are used.
pub(super) const HEADER_BYTES: usize = 4096;

pub(super) const BLOCK_BYTES: usize = WORDS * 8;

/// How many shards of a process can be seen from outside: more than a machine has processors.
pub(super) const SLOTS: usize = 1024;

/// The words at the file's beginning.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub(super) enum HeaderWord {
    Magic,
    Layout,
    BlockBytes,
    Slots,
    /// No slot from here on was ever taken.
    SlotsUsed,
    /// The clock of all stamps: [`Ticks::number`].
    Ticks,
    /// Whose the file is. A forked child inherits its parent's, and makes one of its own.
    Process,
}

pub(super) const HEADER_WORDS: usize = 7;

const _: () = assert!(size_of::<Block>() == BLOCK_BYTES);

/// The file as a whole.
#[repr(C)]
struct Contents {
    header: [AtomicU64; HEADER_WORDS],
    _rest: [u8; HEADER_BYTES - HEADER_WORDS * 8],
    blocks: [Block; SLOTS],
}

struct File {
    /// Open as long as the process lives: by this it is found.
    _fd: OwnedFd,
    contents: &'static Contents,
    process: Process,
}

/// Where a board is.
pub(super) enum Place {
    Slot { block: &'static Block, process: Process },
    Heap(Box<Block>),
}

impl Place {
    #[inline(always)]
    pub(super) fn block(&self) -> &Block {
        match self {
            Place::Slot { block, .. } => block,
            Place::Heap(block) => block,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match self {
            // A forked child drops what is its parent's.
            Place::Slot { process, .. } if !process.is_current() => {}
            Place::Slot { block, .. } => {
                block.clear_but_holder();
                // Release: pairs with the Acquire of who takes it next.
                block.word(Word::Holder).store(0, Ordering::Release);
            }
            Place::Heap(_) => {}
        }
    }
}

/// An empty place, held.
pub(super) fn take() -> Place {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let holder = NEXT.fetch_add(1, Ordering::Relaxed);
    static FILE: PerProcess<Option<File>> = PerProcess::new(make);
    match FILE.get().as_ref().and_then(|file| file.take(holder)) {
        Some(place) => place,
        None => {
            let block = Box::new(Block::empty());
            block.word(Word::Holder).store(holder, Ordering::Relaxed);
            Place::Heap(block)
        }
    }
}

impl File {
    fn take(&self, holder: u64) -> Option<Place> {
        let blocks = self.contents.blocks.iter().zip(1..);
        for (block, used) in blocks {
            let word = block.word(Word::Holder);
            let free = word.load(Ordering::Relaxed) == 0;
            // Acquire: pairs with the Release in `Place::drop`.
            let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
            if free && word.compare_exchange(0, holder, success, failure).is_ok() {
                let slots_used = &self.contents.header[HeaderWord::SlotsUsed as usize];
                slots_used.fetch_max(used, Ordering::Relaxed);
                return Some(Place::Slot { block, process: self.process });
            }
        }
        None
    }
}

/// `None` where it is refused.
fn make() -> Option<File> {
    let file = SharedFile::new(NAME, size_of::<Contents>()).ok()?;
    // SAFETY: the mapping has this length, is aligned to pages, stays for ever, and zeros are what
    // these atomics may begin with. Nobody writes to it but through atomics.
    let contents: &'static Contents = unsafe { file.start.cast().as_ref() };
    for (word, value) in [
        (HeaderWord::Layout, LAYOUT),
        (HeaderWord::BlockBytes, BLOCK_BYTES as u64),
        (HeaderWord::Slots, SLOTS as u64),
        (HeaderWord::Ticks, Ticks::chosen().number()),
        (HeaderWord::Process, u64::from(std::process::id())),
        (HeaderWord::Magic, MAGIC),
    ] {
        // Release: who finds the magic finds the rest.
        contents.header[word as usize].store(value, Ordering::Release);
    }
    Some(File { _fd: file.fd, contents, process: Process::current() })
}
