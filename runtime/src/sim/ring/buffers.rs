//! A ring of provided buffers, as the kernel takes from it.

use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

pub(super) struct Group {
    entries: *mut BufRingEntry,
    count: u16,
    head: u16,
}

/// A buffer that is next to be taken.
#[derive(Clone, Copy)]
pub(super) struct Offered {
    pub(super) address: *mut u8,
    pub(super) length: u32,
    pub(super) number: u16,
}

impl Group {
    /// # Safety
    ///
    /// The address is that of `count` entries, a power of two, and stays so while the group lives.
    pub(super) unsafe fn new(address: u64, count: u16) -> Group {
        Group { entries: address as *mut BufRingEntry, count, head: 0 }
    }

    /// The next buffer, which stays in the ring until it is [taken](Group::take).
    pub(super) fn next(&self) -> Option<Offered> {
        // SAFETY: this is the first entry of a live ring, as `new` says.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the tail is an aligned u16 that the driver writes as an atomic.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Acquire: pairs with the release of `Pool::publish`, behind the entries.
        if tail.load(Ordering::Acquire) == self.head {
            return None;
        }
        let index = (self.head & (self.count - 1)) as usize;
        // SAFETY: the index is below the number of entries.
        let entry = unsafe { self.entries.add(index) };
        // SAFETY: the entry lies below the tail, so that the driver has written it and leaves it
        // alone. Field by field: the first entry's last field is the tail.
        let entry = unsafe { &*entry };
        Some(Offered { address: entry.addr() as *mut u8, length: entry.len(), number: entry.bid() })
    }

    /// Takes the buffer that [`next`](Group::next) has shown.
    pub(super) fn take(&mut self) {
        self.head = self.head.wrapping_add(1);
    }
}
