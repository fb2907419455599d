//! Memory of tasks that have ended, kept for those that come.
//!
//! Blocks are kept by size, and one is taken where it last was in use: what a shard frees and
//! spawns in turn stays in its cache, without a call of the allocator. A block belongs to nobody
//! while it is kept, so that it does not matter which shard's task it was: who frees it on a thread
//! that is at work for a shard gives it to that one, and every other thread to the allocator.

use crate::config::{SPARE_TASK_BYTES_MAX, SPARE_TASKS_BYTES_MAX};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ptr::{self, NonNull};

use super::current;

/// A block's size and place among the others, known when the program is compiled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    layout: Layout,
    class: usize,
}

/// Sizes are this far apart, and less by [`OVERHEAD`]: so the allocators that add a word to a block
/// have nothing to round up, and others nothing that this has not.
const STEP: usize = 16;
const OVERHEAD: usize = size_of::<usize>();

const CLASSES: usize = SPARE_TASK_BYTES_MAX / STEP + 1;

/// What the blocks of a class are allocated and freed with. A task has a header, so that no class
/// is 0.
const fn layout_of(class: usize) -> Layout {
    match Layout::from_size_align(class * STEP - OVERHEAD, STEP) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    }
}

impl Block {
    pub(super) const fn of<T>() -> Block {
        let (size, align) = (size_of::<T>(), align_of::<T>());
        let class = (size + OVERHEAD).div_ceil(STEP);
        if class >= CLASSES || align > STEP {
            return Block { layout: Layout::new::<T>(), class: CLASSES };
        }
        Block { layout: layout_of(class), class }
    }

    /// Memory of this size, with nothing in it.
    #[inline]
    pub(super) fn allocate(self) -> NonNull<u8> {
        match current::with(|core| core.spare.take(self)).flatten() {
            Some(memory) => memory,
            None => self.allocate_anew(),
        }
    }

    #[inline(never)]
    fn allocate_anew(self) -> NonNull<u8> {
        // SAFETY: a task has a header, so that the size is not zero.
        let memory = unsafe { alloc(self.layout) };
        NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(self.layout))
    }

    /// # Safety
    /// The memory is from [`allocate`](Block::allocate) of an equal block, and nobody uses it.
    #[inline]
    pub(super) unsafe fn free(self, memory: NonNull<u8>) {
        // SAFETY: as the caller promises.
        let keep = |core: &current::Core| unsafe { core.spare.keep(self, memory) };
        if current::with(keep) != Some(Kept::Yes) {
            // SAFETY: as the caller promises, and it has not been kept.
            unsafe { dealloc(memory.as_ptr(), self.layout) };
        }
    }
}

/// Whether a block has found its place.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
enum Kept {
    Yes,
    No,
}

/// What a shard keeps. Only its thread touches it.
#[derive(Debug)]
pub(super) struct Spare {
    /// The block of each size that was kept last; one holds the address of the next.
    blocks: [Cell<*mut Link>; CLASSES],
    bytes: Cell<usize>,
}

/// What lies at the beginning of a block that is kept.
#[derive(Debug)]
struct Link(*mut Link);

impl Spare {
    pub(super) fn new() -> Spare {
        Spare { blocks: [const { Cell::new(ptr::null_mut()) }; CLASSES], bytes: Cell::new(0) }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    #[inline]
    fn take(&self, block: Block) -> Option<NonNull<u8>> {
        let first = self.blocks.get(block.class)?;
        let memory = NonNull::new(first.get())?;
        // SAFETY: `keep` wrote it there, and what is kept nobody else uses.
        first.set(unsafe { memory.read() }.0);
        self.bytes.set(self.bytes.get() - block.layout.size());
        Some(memory.cast())
    }

    /// # Safety
    /// As for [`Block::free`].
    #[inline]
    unsafe fn keep(&self, block: Block, memory: NonNull<u8>) -> Kept {
        let bytes = self.bytes.get() + block.layout.size();
        let Some(first) = self.blocks.get(block.class) else { return Kept::No };
        if bytes > SPARE_TASKS_BYTES_MAX {
            return Kept::No;
        }
        let link = memory.cast::<Link>();
        // SAFETY: the memory is large enough, aligned for more than this, and nobody else's.
        unsafe { link.write(Link(first.get())) };
        first.set(link.as_ptr());
        self.bytes.set(bytes);
        Kept::Yes
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        for (class, first) in self.blocks.iter().enumerate() {
            let mut next = first.get();
            while let Some(memory) = NonNull::new(next) {
                // SAFETY: `keep` wrote it there.
                next = unsafe { memory.read() }.0;
                // SAFETY: it was allocated with this layout, and nobody has it any more.
                unsafe { dealloc(memory.as_ptr().cast(), layout_of(class)) };
            }
        }
    }
}
