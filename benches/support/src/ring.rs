//! The barest io_uring that serves the floor server and the load generator.
//!
//! All of it lives until the process ends: nothing is ever unmapped or freed under the kernel.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, IOU_PBUF_RING_INC};
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, cqueue, squeue};

const PAGE_BYTES: usize = 4096;

/// One ring for one thread: `SINGLE_ISSUER` and `DEFER_TASKRUN`, one enter per turn.
pub struct Ring {
    submitter: Submitter<'static>,
    submissions: SubmissionQueue<'static>,
    completions: CompletionQueue<'static>,
}

impl Ring {
    pub fn new(submissions: u32, completions: u32) -> io::Result<Self> {
        let setup = |bare: bool| {
            let mut builder = IoUring::builder();
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
                .setup_clamp()
                .setup_cqsize(completions);
            if !bare {
                builder.setup_no_sqarray();
            }
            builder.build(submissions)
        };
        // NO_SQARRAY is known since 6.6, the rest since 6.1.
        let ring = setup(false).or_else(|_| setup(true))?;
        let (mut submitter, submissions, completions) = Box::leak(Box::new(ring)).split();
        // Saves a look-up at each enter. Not worth failing for.
        let _ = submitter.register_ring_fd();
        Ok(Self { submitter, submissions, completions })
    }

    /// Makes room for `slots` direct descriptors.
    pub fn register_slots(&self, slots: u32) -> io::Result<()> {
        self.submitter.register_files_sparse(slots)
    }

    /// Puts a descriptor into a slot. The slot keeps it open.
    pub fn register_slot(&self, slot: u32, descriptor: i32) -> io::Result<()> {
        self.submitter.register_files_update(slot, &[descriptor]).map(drop)
    }

    /// Queues a submission; it leaves with the next turn, or at once if the queue is full.
    ///
    /// # Safety
    /// The memory that `entry` names stays valid and unaliased until its last completion.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.submissions.is_full() {
            self.submissions.sync();
            self.submitter.submit()?;
            self.submissions.sync();
        }
        // SAFETY: the caller vouches for the memory.
        unsafe { self.submissions.push(entry) }.map_err(io::Error::other)
    }

    /// Submits everything, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        self.submissions.sync();
        self.submitter.submit()?;
        self.submissions.sync();
        Ok(())
    }

    /// Whether a turn has something to reap: looks at two words of shared memory, asks nobody.
    pub fn is_ready(&mut self) -> bool {
        self.completions.sync();
        !self.completions.is_empty() || self.submissions.taskrun()
    }

    /// Submits everything and waits for `want` completions, in one system call.
    pub fn submit_and_wait(&mut self, want: usize) -> io::Result<()> {
        self.submissions.sync();
        self.completions.sync();
        match self.submitter.submit_and_wait(want) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.submissions.sync();
        self.completions.sync();
        Ok(())
    }

    /// The next completion of this turn.
    pub fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.completions.next()
    }
}

/// How a group's buffers are used up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Filling {
    /// Each piece that is received has a buffer of its own.
    Whole,
    /// Pieces lie one behind the other, until the buffer is full: small ones share cache lines and
    /// pages. Since Linux 6.12.
    Packed,
}

/// A group of buffers from which the kernel takes one for each piece it receives.
pub struct Buffers {
    entries: *mut BufRingEntry,
    data: *mut u8,
    buffer_bytes: usize,
    filling: Filling,
    buffers: Vec<Buffer>,
    tail: u16,
}

/// What is known of one buffer.
#[derive(Clone, Copy, Default)]
struct Buffer {
    /// Where the next piece will lie.
    filled: usize,
    /// Pieces that have been taken and not given back.
    pieces: u32,
    /// The kernel puts nothing more into it.
    full: bool,
}

/// Bytes that the kernel has put into a buffer.
#[derive(Clone, Copy)]
pub struct Piece {
    pub start: *const u8,
    pub length: usize,
    buffer: u16,
}

impl Buffers {
    /// Registers `count` (a power of two) buffers as group 0.
    pub fn new(ring: &Ring, count: u16, buffer_bytes: usize, filling: Filling) -> io::Result<Self> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel's bounds on a group");
        let entries = leak(usize::from(count) * size_of::<BufRingEntry>()).cast();
        let flags = if filling == Filling::Packed { IOU_PBUF_RING_INC as u16 } else { 0 };
        // SAFETY: `entries` has room for `count` entries, is page-aligned and is never freed.
        unsafe { ring.submitter.register_buf_ring_with_flags(entries as u64, count, 0, flags) }?;
        let data = leak(usize::from(count) * buffer_bytes);
        let known = vec![Buffer::default(); usize::from(count)];
        let mut buffers = Self { entries, data, buffer_bytes, filling, buffers: known, tail: 0 };
        (0..count).for_each(|id| buffers.offer(id));
        buffers.publish();
        Ok(buffers)
    }

    /// The piece that a completion of a receive tells of. None if nothing was received.
    pub fn take(&mut self, completion: &cqueue::Entry) -> Option<Piece> {
        let id = cqueue::buffer_select(completion.flags())?;
        let length = usize::try_from(completion.result()).ok().filter(|&length| length > 0)?;
        let buffer = &mut self.buffers[usize::from(id)];
        assert!(length <= self.buffer_bytes - buffer.filled, "the kernel wrote past a buffer");
        // SAFETY: within the allocation: the index was just checked by the slice.
        let start = unsafe { self.data.add(usize::from(id) * self.buffer_bytes + buffer.filled) };
        buffer.filled += length;
        buffer.pieces += 1;
        buffer.full = match self.filling {
            Filling::Whole => true,
            Filling::Packed => !cqueue::buffer_more(completion.flags()),
        };
        Some(Piece { start, length, buffer: id })
    }

    /// The bytes of a piece that has not been given back.
    pub fn bytes(&self, piece: &Piece) -> &[u8] {
        // SAFETY: initialised by the kernel, which writes there again only once the buffer is
        // given back, which borrows `self` mutably.
        unsafe { std::slice::from_raw_parts(piece.start, piece.length) }
    }

    /// Returns a piece. The kernel sees its buffer, when all of it is back, after `publish`.
    pub fn give_back(&mut self, piece: Piece) {
        let buffer = &mut self.buffers[usize::from(piece.buffer)];
        buffer.pieces -= 1;
        if buffer.full && buffer.pieces == 0 {
            *buffer = Buffer::default();
            self.offer(piece.buffer);
        }
    }

    fn offer(&mut self, id: u16) {
        let index = usize::from(self.tail) & (self.buffers.len() - 1);
        // SAFETY: the index lies within the ring.
        let entry = unsafe { self.entries.add(index) };
        // SAFETY: aligned and zeroed or written before; this thread is the only one to write it.
        let entry = unsafe { &mut *entry };
        // Field by field: a whole entry at index 0 would overwrite the tail, which lives in it.
        entry.set_addr(self.data as u64 + u64::from(id) * self.buffer_bytes as u64);
        entry.set_len(self.buffer_bytes as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see the buffers given back.
    pub fn publish(&self) {
        // SAFETY: `entries` is the start of the registered ring.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the field is aligned, lives as long as the process, and is shared with the kernel
        // only, which reads it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release); // Pairs with the kernel's acquire of the tail.
    }
}

/// Zeroed, page-aligned memory that lives as long as the process.
pub fn leak(bytes: usize) -> *mut u8 {
    let layout = Layout::from_size_align(bytes.max(1), PAGE_BYTES).expect("a size that exists");
    // SAFETY: the layout's size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}
