//! The shard's receive buffers. The kernel picks one for each receive; its owner returns it.
//!
//! One arena holds all buffers. On io_uring they are offered to the kernel through a provided
//! buffer ring (since Linux 5.19); on epoll they stand in a list. Either way a buffer that is
//! taken becomes a [`PoolBuffer`], whose drop returns it: exactly once, on every path. One that
//! leaves the shard's own hands becomes a [`Lease`], which comes back by a queue, from any thread.
//!
//! The arena is mapped, not allocated, so that a buffer never used costs no memory.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crossbeam_queue::SegQueue;
use io_uring::types::BufRingEntry;

use super::lease::Lease;
use crate::fork::Process;
use crate::ring::Submitter;
use crate::sys::Mapping;

/// The buffer group of what streams receive.
pub(crate) const GROUP: u16 = 0;

/// The buffer group of whole datagrams.
pub(crate) const DATAGRAM_GROUP: u16 = 1;

#[derive(Debug)]
pub(crate) struct Pool {
    arena: Arc<Arena>,
    count: u16,
    /// Buffers that are neither lent nor, as far as completions have told, filled by the kernel.
    free: Cell<u16>,
    /// Buffers in the hands of leases.
    leased: Cell<u16>,
    /// How often somebody found no buffer.
    dry: Cell<u64>,
    offer: Offer,
}

/// The kernel wants its ring of entries at the start of a page.
const PAGE_BYTES: usize = 4096;

/// The memory of a pool. It outlives the pool while a lease is out.
#[derive(Debug)]
pub(super) struct Arena {
    /// The buffers, behind the ring of their entries if there is one: one mapping is made and
    /// unmade in half the time of two.
    memory: Mapping,
    /// How long that ring is, in whole pages.
    entries_bytes: usize,
    bytes_each: u32,
    /// Buffers that leases have given back, from whatever thread.
    returned: SegQueue<u16>,
    process: Process,
}

// SAFETY: the mapping is plain memory. Each buffer in it has one owner at a time, and only the
// owner touches it.
unsafe impl Send for Arena {}

// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    fn new(count: u16, bytes_each: u32, entries_bytes: usize) -> io::Result<Arc<Arena>> {
        let entries_bytes = entries_bytes.next_multiple_of(PAGE_BYTES);
        let memory = Mapping::new(entries_bytes + count as usize * bytes_each as usize)?;
        let process = Process::current();
        let returned = SegQueue::new();
        Ok(Arc::new(Arena { memory, entries_bytes, bytes_each, returned, process }))
    }

    /// The place of a byte in a buffer.
    pub(super) fn address(&self, buffer: u16, byte: u32) -> *mut u8 {
        let offset = buffer as usize * self.bytes_each as usize + byte as usize;
        let offset = self.entries_bytes + offset;
        debug_assert!(offset <= self.memory.length());
        // SAFETY: a buffer of the pool and a byte of the buffer: the offset lies in the mapping.
        unsafe { self.memory.start().as_ptr().add(offset) }
    }

    /// The first entry of the ring, where there is one.
    fn entries(&self) -> *mut BufRingEntry {
        self.memory.start().as_ptr().cast()
    }

    /// Gives a lease's buffer back.
    pub(super) fn give_back(&self, buffer: u16) {
        // In a forked child nobody takes it, and a push that the parent's threads were at would
        // hold this one up for ever.
        if self.process.is_current() {
            self.returned.push(buffer);
        }
    }
}

/// Where free buffers wait.
#[derive(Debug)]
enum Offer {
    /// In the ring that the kernel takes from. The tail is published once a turn.
    Ring { tail: Cell<u16> },
    /// In a list that `take` takes from.
    List(RefCell<Vec<u16>>),
}

impl Pool {
    /// A pool for the epoll driver.
    pub(crate) fn listed(count: u16, bytes_each: u32) -> io::Result<Rc<Pool>> {
        let free = (0..count).rev().collect();
        Ok(Rc::new(Pool {
            arena: Arena::new(count, bytes_each, 0)?,
            count,
            free: Cell::new(count),
            leased: Cell::new(0),
            dry: Cell::new(0),
            offer: Offer::List(RefCell::new(free)),
        }))
    }

    /// A pool registered with a ring. The caller keeps it until the ring no longer uses it.
    pub(crate) fn registered(
        submitter: &Submitter<'_>,
        group: u16,
        count: u16,
        bytes_each: u32,
    ) -> io::Result<Rc<Pool>> {
        assert!(count.is_power_of_two(), "the kernel takes powers of two only");
        let arena = Arena::new(count, bytes_each, count as usize * size_of::<BufRingEntry>())?;
        let address = arena.entries() as u64;
        // SAFETY: the mapping is page-aligned, holds `count` entries, and lives in the pool, which
        // the driver keeps until the ring is gone.
        unsafe { submitter.register_buf_ring_with_flags(address, count, group, 0) }?;
        let pool = Pool {
            arena,
            count,
            free: Cell::new(count),
            leased: Cell::new(0),
            dry: Cell::new(0),
            offer: Offer::Ring { tail: Cell::new(count) },
        };
        (0..count).for_each(|buffer| pool.write_entry(buffer, buffer));
        pool.publish();
        Ok(Rc::new(pool))
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        self.arena.bytes_each as usize
    }

    /// True while a receive that is armed now would find a buffer.
    pub(crate) fn has_free(&self) -> bool {
        self.take_in_returned();
        self.free.get() > 0
    }

    /// Counts that somebody found no buffer.
    pub(crate) fn note_dry(&self) {
        self.dry.set(self.dry.get() + 1);
    }

    /// How often somebody found no buffer.
    pub(crate) fn dry(&self) -> u64 {
        self.dry.get()
    }

    /// Takes in what leases have given back.
    fn take_in_returned(&self) {
        while let Some(buffer) = self.arena.returned.pop() {
            self.leased.set(self.leased.get() - 1);
            self.put_back(buffer);
        }
    }

    /// Takes a buffer from the list; on a ring only the kernel takes.
    pub(crate) fn take(&self) -> Option<u16> {
        match &self.offer {
            Offer::List(list) => {
                self.take_in_returned();
                let buffer = list.borrow_mut().pop();
                if buffer.is_none() {
                    self.note_dry();
                }
                buffer
            }
            Offer::Ring { .. } => None,
        }
    }

    /// The memory of a buffer taken from the list but not yet wrapped.
    pub(crate) fn with_taken<R>(
        &self,
        buffer: u16,
        fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> R,
    ) -> R {
        assert!(matches!(self.offer, Offer::List(_)) && buffer < self.count);
        let first = self.arena.address(buffer, 0).cast();
        // SAFETY: `take` removed the buffer from the list, so that nobody else refers to it.
        fill(unsafe { std::slice::from_raw_parts_mut(first, self.buffer_bytes()) })
    }

    /// Puts a buffer back that was taken but not wrapped.
    pub(crate) fn untake(&self, buffer: u16) {
        match &self.offer {
            Offer::List(list) => list.borrow_mut().push(buffer),
            Offer::Ring { .. } => unreachable!("only the kernel takes from a ring"),
        }
    }

    /// Wraps a buffer that a completion has named.
    pub(crate) fn lend(self: &Rc<Pool>, buffer: u16, length: u32) -> PoolBuffer {
        assert!(buffer < self.count, "the kernel names only buffers of the ring");
        assert!(length <= self.arena.bytes_each, "the kernel fills no more than a buffer holds");
        self.free.set(self.free.get().saturating_sub(1));
        PoolBuffer { pool: Rc::clone(self), buffer, start: 0, end: length }
    }

    /// Shows the kernel the buffers returned since the last call.
    pub(crate) fn publish(&self) {
        self.take_in_returned();
        if let Offer::Ring { tail } = &self.offer {
            // SAFETY: this is the first entry of the live, page-aligned mapping.
            let shared = unsafe { BufRingEntry::tail(self.arena.entries()) };
            // SAFETY: the tail is an aligned u16 inside the mapping that the kernel reads too, so
            // it is written atomically.
            let shared = unsafe { AtomicU16::from_ptr(shared.cast_mut()) };
            // Release: the kernel's load-acquire of the tail sees the entries written before.
            shared.store(tail.get(), Ordering::Release);
        }
    }

    fn put_back(&self, buffer: u16) {
        self.free.set(self.free.get() + 1);
        match &self.offer {
            Offer::List(list) => list.borrow_mut().push(buffer),
            Offer::Ring { tail } => {
                self.write_entry(tail.get() & (self.count - 1), buffer);
                tail.set(tail.get().wrapping_add(1));
            }
        }
    }

    /// Writes an entry that the kernel does not see yet.
    #[inline]
    fn write_entry(&self, index: u16, buffer: u16) {
        // SAFETY: the index is below `count`, so the entry lies inside the mapping.
        let entry = unsafe { self.arena.entries().add(index as usize) };
        // SAFETY: the kernel reads entries below the published tail only, and this one is not below
        // it: no more than `count` buffers exist.
        let entry = unsafe { &mut *entry };
        // Field by field: entry 0 holds the ring's tail in a field that must stay.
        entry.set_addr(self.arena.address(buffer, 0) as u64);
        entry.set_len(self.arena.bytes_each);
        entry.set_bid(buffer);
    }

    /// True while more leases may hold buffers. Half of the pool stays with the kernel, so that
    /// streams whose leases are kept starve no others.
    fn may_lease(&self) -> bool {
        self.leased.get() < self.count / 2
    }
}

/// One buffer of the shard's pool with the bytes received into it. Drop returns it.
#[derive(Debug)]
pub struct PoolBuffer {
    pool: Rc<Pool>,
    buffer: u16,
    start: u32,
    end: u32,
}

impl PoolBuffer {
    /// Drops the first `count` bytes from view.
    ///
    /// # Panics
    ///
    /// If fewer bytes are left.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "advanced past the end of a received buffer");
        self.start += count as u32;
    }

    /// True if the bytes reach to the buffer's end: there was room for no more.
    #[must_use]
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.end == self.pool.arena.bytes_each
    }

    /// Lets the bytes go wherever they are wanted. They are copied if leases hold half of the pool
    /// already.
    pub fn into_lease(self) -> Lease {
        self.pool.take_in_returned();
        if !self.pool.may_lease() {
            return Lease::from(self.to_vec());
        }
        self.pool.leased.set(self.pool.leased.get() + 1);
        let this = ManuallyDrop::new(self);
        // SAFETY: the buffer is never dropped, so that its share of the pool is taken out once.
        let pool = unsafe { std::ptr::read(&raw const this.pool) };
        // SAFETY: the pool's buffer goes over to the lease, which gives it back in the end.
        unsafe { Lease::pooled(Arc::clone(&pool.arena), this.buffer, this.start, this.end) }
    }
}

impl Deref for PoolBuffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let length = (self.end - self.start) as usize;
        let first = self.pool.arena.address(self.buffer, self.start);
        // SAFETY: the kernel has filled the bytes up to `end` and was lent the buffer no more;
        // this value is the buffer's only owner until its drop returns it.
        unsafe { std::slice::from_raw_parts(first, length) }
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        self.pool.put_back(self.buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork::tests::in_child;

    #[test]
    fn a_lease_dropped_in_a_forked_child_is_not_given_back() {
        let _watching = crate::Runtime::new().unwrap();
        let pool = Pool::listed(4, 64).unwrap();
        let buffer = pool.take().unwrap();
        let lease = Cell::new(Some(pool.lend(buffer, 1).into_lease()));
        in_child(|| {
            drop(lease.take().unwrap());
            assert!(pool.arena.returned.is_empty());
        });
        drop(lease.take().unwrap());
        assert!(!pool.arena.returned.is_empty());
    }
}
