//! The queues of a simulated ring, in memory that both sides have mapped, as with a real one.
//!
//! The driver's side is the real [`IoUring`], which finds in this file what it would find in a
//! ring's: so all its code for the queues, barriers and all, is what runs elsewhere.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use io_uring::{IoUring, Parameters};

use super::entry::{Posted, Request};

/// The kernel's side of the queues.
pub(super) struct Queues {
    queues: Shared,
    requests: Shared,
    entries: u32,
    completions: u32,
}

/// Where the parts are, in bytes from the start of the file. Counters that different sides write
/// are in different cache lines, as in the kernel's own layout.
mod at {
    pub(super) const SQ_HEAD: u32 = 0;
    pub(super) const SQ_TAIL: u32 = 64;
    pub(super) const SQ_MASK: u32 = 128;
    pub(super) const SQ_ENTRIES: u32 = 132;
    pub(super) const SQ_FLAGS: u32 = 136;
    pub(super) const SQ_DROPPED: u32 = 140;
    pub(super) const CQ_HEAD: u32 = 192;
    pub(super) const CQ_TAIL: u32 = 256;
    pub(super) const CQ_MASK: u32 = 320;
    pub(super) const CQ_ENTRIES: u32 = 324;
    pub(super) const CQ_OVERFLOW: u32 = 328;
    pub(super) const CQ_FLAGS: u32 = 332;
    pub(super) const CQES: u32 = 384;
    /// `IORING_OFF_SQES`.
    pub(super) const SQES: i64 = 0x1000_0000;
}

/// `IORING_SQ_CQ_OVERFLOW`.
pub(super) const OVERFLOWN: u32 = 2;

/// `IORING_SQ_TASKRUN`.
pub(super) const TASKRUN: u32 = 4;

/// `struct io_uring_params`.
#[repr(C, align(8))]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread: [u32; 2],
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq_offsets: [u32; 10],
    cq_offsets: [u32; 10],
}

const _: () = assert!(size_of::<Params>() == size_of::<Parameters>());

/// SINGLE_ISSUER, DEFER_TASKRUN, TASKRUN_FLAG, SUBMIT_ALL, CQSIZE, NO_SQARRAY: what the driver asks
/// for.
const SETUP: u32 = 1 << 12 | 1 << 13 | 1 << 9 | 1 << 7 | 1 << 3 | 1 << 16;

/// SINGLE_MMAP to EXT_ARG and CQE_SKIP: what every ring from 6.1 on has.
const FEATURES: u32 = 0x9ff;

/// `IORING_FEAT_NO_IOWAIT`. Since 6.15.
const NO_IOWAIT: u32 = 1 << 17;

impl Queues {
    /// Makes the queues, and what the driver sees of them.
    ///
    /// # Errors
    ///
    /// Those of `memfd_create(2)`, `ftruncate(2)` and `mmap(2)`.
    pub(super) fn new(
        entries: u32,
        completions: u32,
        no_iowait: bool,
    ) -> io::Result<(Queues, IoUring)> {
        assert!(entries.is_power_of_two() && completions.is_power_of_two(), "masks need that");
        let bytes = at::CQES as usize + completions as usize * size_of::<Posted>();
        let requests_bytes = entries as usize * size_of::<Request>();
        let file = sparse_file(at::SQES + requests_bytes as i64)?;
        let queues = Queues {
            queues: Shared::new(&file, 0, bytes)?,
            requests: Shared::new(&file, at::SQES, requests_bytes)?,
            entries,
            completions,
        };
        queues.word(at::SQ_MASK).store(entries - 1, Ordering::Relaxed);
        queues.word(at::SQ_ENTRIES).store(entries, Ordering::Relaxed);
        queues.word(at::CQ_MASK).store(completions - 1, Ordering::Relaxed);
        queues.word(at::CQ_ENTRIES).store(completions, Ordering::Relaxed);
        let features = FEATURES | if no_iowait { NO_IOWAIT } else { 0 };
        let params = Params {
            sq_entries: entries,
            cq_entries: completions,
            flags: SETUP,
            features,
            sq_offsets: [
                at::SQ_HEAD,
                at::SQ_TAIL,
                at::SQ_MASK,
                at::SQ_ENTRIES,
                at::SQ_FLAGS,
                at::SQ_DROPPED,
                0,
                0,
                0,
                0,
            ],
            cq_offsets: [
                at::CQ_HEAD,
                at::CQ_TAIL,
                at::CQ_MASK,
                at::CQ_ENTRIES,
                at::CQ_OVERFLOW,
                at::CQES,
                at::CQ_FLAGS,
                0,
                0,
                0,
            ],
            ..Params::default()
        };
        // SAFETY: both are `struct io_uring_params`, of integers only.
        let params: Parameters = unsafe { std::mem::transmute(params) };
        // SAFETY: the file holds what the parameters say, at the offsets where a ring has it, and
        // the descriptor is given away. Nothing but mappings is made of it.
        let ring = unsafe { IoUring::from_fd(file.into_raw_fd(), params) }?;
        Ok((queues, ring))
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the offset lies in the header of the mapping, aligned, and both sides access it
        // as an atomic only.
        unsafe { AtomicU32::from_ptr(self.queues.at(offset as usize).cast()) }
    }

    /// How many entries wait to be taken.
    pub(super) fn queued(&self) -> u32 {
        let head = self.word(at::SQ_HEAD).load(Ordering::Relaxed);
        // Acquire: pairs with the driver's release of the tail, behind the entries.
        self.word(at::SQ_TAIL).load(Ordering::Acquire).wrapping_sub(head)
    }

    /// Takes the next entry out of the queue.
    pub(super) fn take(&mut self) -> Option<Request> {
        if self.queued() == 0 {
            return None;
        }
        let head = self.word(at::SQ_HEAD).load(Ordering::Relaxed);
        let place = (head & (self.entries - 1)) as usize * size_of::<Request>();
        // SAFETY: the place lies in the mapping; the driver has written the entry before its tail,
        // and any bytes are a request.
        let request = unsafe { self.requests.at(place).cast::<Request>().read() };
        // Release: the driver may write the place anew.
        self.word(at::SQ_HEAD).store(head.wrapping_add(1), Ordering::Release);
        Some(request)
    }

    /// How many completions wait to be reaped.
    pub(super) fn ready(&self) -> u32 {
        let tail = self.word(at::CQ_TAIL).load(Ordering::Relaxed);
        // Acquire: pairs with the driver's release of the head, when it has read the completions.
        tail.wrapping_sub(self.word(at::CQ_HEAD).load(Ordering::Acquire))
    }

    pub(super) fn is_full(&self) -> bool {
        self.ready() >= self.completions
    }

    /// Posts a completion. False if there is no room.
    #[must_use]
    pub(super) fn post(&mut self, posted: Posted) -> bool {
        if self.is_full() {
            return false;
        }
        let tail = self.word(at::CQ_TAIL).load(Ordering::Relaxed);
        let index = (tail & (self.completions - 1)) as usize;
        let place = self.queues.at(at::CQES as usize + index * size_of::<Posted>());
        // SAFETY: the place lies in the mapping, and the driver does not read it before the tail
        // has passed it.
        unsafe { place.cast::<Posted>().write(posted) };
        // Release: pairs with the driver's acquire of the tail.
        self.word(at::CQ_TAIL).store(tail.wrapping_add(1), Ordering::Release);
        true
    }

    /// Raises or lowers a flag that the driver sees.
    pub(super) fn show(&mut self, flag: u32, raised: bool) {
        let flags = self.word(at::SQ_FLAGS);
        if raised {
            flags.fetch_or(flag, Ordering::Release);
        } else {
            flags.fetch_and(!flag, Ordering::Release);
        }
    }
}

/// A shared mapping of a part of a file.
struct Shared {
    start: NonNull<u8>,
    length: usize,
}

impl Shared {
    fn new(file: &OwnedFd, offset: i64, length: usize) -> io::Result<Shared> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let (any, raw) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing but the
        // mappings of the same file, which are accessed as the ring's rules say.
        let start = unsafe { libc::mmap(any, length, prot, libc::MAP_SHARED, raw, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap never returns the null page");
        Ok(Shared { start, length })
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.length, "an offset within the mapping");
        // SAFETY: the offset lies in the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and this value is its only owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

fn sparse_file(length: i64) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a zero, and the kernel copies it.
    let raw = unsafe { libc::memfd_create(c"annulus-sim-ring".as_ptr(), libc::MFD_CLOEXEC) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    let file = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: ftruncate takes two integers and touches no memory of ours.
    if unsafe { libc::ftruncate(raw, length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
