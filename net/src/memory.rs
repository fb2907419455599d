//! Memory that is written by receives, whether or not it has been written before.

use std::mem::MaybeUninit;

/// Written bytes as memory to be written again, by those who write bytes only.
pub(crate) fn memory_of(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    let length = bytes.len();
    // SAFETY: the layout is the same, and this crate's receives write bytes only.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), length) }
}

/// Copies as much as fits; answers how much that is.
pub(crate) fn copy(from: &[u8], to: &mut [MaybeUninit<u8>]) -> usize {
    let count = from.len().min(to.len());
    // SAFETY: the lengths are within both slices, which do not overlap: one is exclusive.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr().cast(), count) };
    count
}
