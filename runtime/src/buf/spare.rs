//! Empty send buffers between two uses, so that an idle stream need not keep one.

use std::cell::RefCell;

/// Buffers kept, at most: as many as one turn's sends.
const BUFFERS_MAX: usize = 64;

/// Larger ones are not kept: the memory of a spike must go back.
const BYTES_MAX: usize = 16 * 1024;

#[derive(Default)]
pub(crate) struct Spare(RefCell<Vec<Vec<u8>>>);

impl Spare {
    /// An empty buffer, warm if there is one.
    #[inline]
    pub(crate) fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    pub(crate) fn put(&self, mut buffer: Vec<u8>) {
        let mut kept = self.0.borrow_mut();
        if (1..=BYTES_MAX).contains(&buffer.capacity()) && kept.len() < BUFFERS_MAX {
            buffer.clear();
            kept.push(buffer);
        }
    }
}
