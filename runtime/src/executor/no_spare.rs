//! Stands in for `spare` where somebody watches the memory of tasks: what is used after it was
//! freed would be hidden from them if it were kept.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

#[derive(Clone, Copy, Debug)]
pub(super) struct Block(Layout);

impl Block {
    pub(super) const fn of<T>() -> Block {
        Block(Layout::new::<T>())
    }

    pub(super) fn allocate(self) -> NonNull<u8> {
        // SAFETY: a task has a header, so that the size is not zero.
        let memory = unsafe { alloc(self.0) };
        NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(self.0))
    }

    /// # Safety
    /// The memory is from [`allocate`](Block::allocate) of an equal block, and nobody uses it.
    pub(super) unsafe fn free(self, memory: NonNull<u8>) {
        // SAFETY: as the caller promises.
        unsafe { dealloc(memory.as_ptr(), self.0) };
    }
}

#[derive(Debug)]
pub(super) struct Spare;

impl Spare {
    pub(super) fn new() -> Spare {
        Spare
    }
}
