//! Received bytes that go wherever they are wanted: another task, another stream, another thread.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::pool::Arena;
use super::slice::IoBuf;

/// Received bytes, in the memory into which the kernel received them.
///
/// Mostly that is a buffer of the shard's pool, which the drop of the lease returns, on whatever
/// thread. When leases hold half of the pool already, and when the pool is dry, the bytes are in
/// memory of their own: who keeps leases keeps nobody from receiving.
///
/// It can be [sent](IoBuf) as it is, without a copy.
#[must_use = "a lease that is dropped takes what was received with it"]
pub struct Lease(Memory);

enum Memory {
    Pooled { arena: Arc<Arena>, buffer: u16, start: u32, end: u32 },
    Own { bytes: Vec<u8>, start: usize },
}

impl Lease {
    /// # Safety
    ///
    /// The buffer must be one of this arena, filled from `start` to `end`, and owned by the
    /// caller, who leaves it to the lease.
    pub(super) unsafe fn pooled(arena: Arc<Arena>, buffer: u16, start: u32, end: u32) -> Lease {
        Lease(Memory::Pooled { arena, buffer, start, end })
    }

    /// Drops the first `count` bytes from view.
    ///
    /// # Panics
    ///
    /// If fewer bytes are left.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "advanced past the end of a lease");
        match &mut self.0 {
            Memory::Pooled { start, .. } => *start += count as u32,
            Memory::Own { start, .. } => *start += count,
        }
    }

    /// Drops all bytes from view but the first `count`. Does nothing if there are fewer.
    pub fn truncate(&mut self, count: usize) {
        match &mut self.0 {
            Memory::Pooled { start, end, .. } => {
                *end = (*start).saturating_add(u32::try_from(count).unwrap_or(u32::MAX)).min(*end);
            }
            Memory::Own { bytes, start } => bytes.truncate(start.saturating_add(count)),
        }
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Pooled { arena, buffer, start, end } => {
                let first = arena.address(*buffer, *start);
                // SAFETY: the kernel has filled the bytes up to `end`, and the lease is the only
                // owner of the buffer.
                unsafe { std::slice::from_raw_parts(first, (*end - *start) as usize) }
            }
            Memory::Own { bytes, start } => &bytes[*start..],
        }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Pooled { arena, buffer, start, end } => {
                let first = arena.address(*buffer, *start);
                // SAFETY: as in `deref`.
                unsafe { std::slice::from_raw_parts_mut(first, (*end - *start) as usize) }
            }
            Memory::Own { bytes, start } => &mut bytes[*start..],
        }
    }
}

// SAFETY: the bytes are in a mapping or on the heap, and change by `&mut` only.
unsafe impl IoBuf for Lease {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// A lease of bytes that were not received into the pool.
impl From<Vec<u8>> for Lease {
    fn from(bytes: Vec<u8>) -> Lease {
        Lease(Memory::Own { bytes, start: 0 })
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pooled = matches!(self.0, Memory::Pooled { .. });
        f.debug_struct("Lease").field("len", &self.len()).field("pooled", &pooled).finish()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Memory::Pooled { arena, buffer, .. } = &self.0 {
            arena.give_back(*buffer);
        }
    }
}
