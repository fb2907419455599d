//! Receiving into the shard's pool, and waiting for a descriptor to be ready.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::{Context, Poll};

use io_uring::opcode;
use io_uring::types;

use crate::buf::{Lease, Pool, PoolBuffer};
use crate::config::LIMITS;
use crate::driver::multishot_receive;
use crate::driver::operation::{Completion, Entry, MultishotOperation, Operation};
use crate::fd::{Fd, Interest};
use crate::shard;
use crate::sys::{self, Received, Rest};

/// Receives whatever comes, each time into a buffer of the shard's pool.
///
/// An item with an empty or absent buffer is the end of the stream. `ENOBUFS` means that the pool
/// was dry.
#[derive(Debug)]
pub struct ReceivePooled {
    fd: Rc<Fd>,
    pool: Rc<Pool>,
    queued_max: usize,
}

impl ReceivePooled {
    /// Receives from a stream socket.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[must_use]
    #[track_caller]
    pub fn new(fd: Rc<Fd>) -> ReceivePooled {
        let shard = shard::current();
        let pool = Rc::clone(shard.driver.pool());
        let queued_max = (LIMITS.recv_queue_bytes_max / pool.buffer_bytes()).max(1);
        ReceivePooled { fd, pool, queued_max }
    }

    /// # Panics
    ///
    /// On another shard: the kernel would fill buffers of that shard's pool.
    fn check_pool(&self) {
        let at_home = shard::with(|shard| Rc::ptr_eq(&self.pool, shard.driver.pool()));
        assert!(at_home, "a pooled receive works on the shard where it was made");
    }

    /// True while the pool has a buffer to receive into. If not, that is counted.
    #[must_use]
    pub fn has_buffers(&self) -> bool {
        let has = self.pool.has_free();
        if !has {
            self.pool.note_dry();
        }
        has
    }
}

// SAFETY: the entry refers to no memory but the pool's, which the driver and this value keep.
unsafe impl MultishotOperation for ReceivePooled {
    type Item = io::Result<Option<PoolBuffer>>;

    /// Buffers are counted, not bytes: small messages take whole ones.
    fn queued_max(&self) -> usize {
        self.queued_max
    }

    fn entry(&mut self) -> Entry {
        self.check_pool();
        // The queue is looked at when answers are reaped: a burst within one call of the kernel is
        // bounded by the kernel only.
        multishot_receive(self.fd.raw(), LIMITS.recv_queue_bytes_max as u32)
    }

    fn call(&mut self) -> io::Result<Completion> {
        let no_buffers = || io::Error::from_raw_os_error(libc::ENOBUFS);
        let buffer = self.pool.take().ok_or_else(no_buffers)?;
        match self.pool.with_taken(buffer, |bytes| sys::recv(self.fd.as_fd(), bytes, 0)) {
            Ok(count) => Ok(Completion::with_buffer(count as u32, buffer)),
            Err(error) => {
                self.pool.untake(buffer);
                Err(error)
            }
        }
    }

    fn descriptor(&self) -> &Rc<Fd> {
        &self.fd
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    #[inline]
    unsafe fn item(&mut self, completion: Completion) -> Self::Item {
        match (completion.count(), completion.buffer()) {
            (length @ 1.., Some(buffer)) => Ok(Some(self.pool.lend(buffer, length))),
            _ => self.item_without_bytes(completion),
        }
    }
}

impl ReceivePooled {
    #[cold]
    fn item_without_bytes(&mut self, completion: Completion) -> io::Result<Option<PoolBuffer>> {
        // The buffer first: it returns to the pool whatever the result says.
        drop(completion.buffer().map(|buffer| self.pool.lend(buffer, 0)));
        if completion.is_errno(libc::ENOBUFS) {
            self.pool.note_dry();
        }
        completion.result().map(|_none| None)
    }
}

/// Receives what is there, without waiting, into memory that can go anywhere: a buffer of the
/// shard's pool if that hands out buffers, otherwise memory of its own. The flag says whether more
/// may be there: the memory was filled.
///
/// `bytes_max` is how much to receive if memory has to be made; it is the pool's buffer size at
/// least. An empty lease is the end of the stream.
///
/// # Errors
///
/// Those of `recv(2)`.
///
/// # Panics
///
/// Outside of a runtime.
pub fn recv_lease(fd: &Fd, bytes_max: usize, rest: Rest) -> io::Result<(Lease, bool, Received)> {
    let pool = shard::with(|shard| Rc::clone(shard.driver.pool()));
    if bytes_max <= pool.buffer_bytes() {
        if let Some(buffer) = pool.take() {
            let answer = pool.with_taken(buffer, |memory| sys::receive(fd.as_fd(), memory, rest));
            return match answer {
                Ok(received) if received.bytes > 0 => {
                    let lease = pool.lend(buffer, received.bytes as u32).into_lease();
                    Ok((lease, received.bytes == pool.buffer_bytes(), received))
                }
                end_or_error => {
                    pool.untake(buffer);
                    end_or_error.map(|received| (Lease::from(Vec::new()), false, received))
                }
            };
        }
    }
    let mut bytes = Vec::with_capacity(bytes_max.max(pool.buffer_bytes()));
    let memory = bytes.spare_capacity_mut();
    let asked = memory.len();
    let received = sys::receive(fd.as_fd(), memory, rest)?;
    // SAFETY: the kernel has written so many bytes of the spare capacity of an empty vector.
    unsafe { bytes.set_len(received.bytes) };
    if received.bytes < asked / 2 {
        // Whoever keeps leases of little keeps little.
        bytes.shrink_to_fit();
    }
    Ok((Lease::from(bytes), received.bytes == asked, received))
}

/// Waits until a descriptor is ready, as `poll(2)` does.
#[derive(Debug)]
pub struct Ready {
    fd: Rc<Fd>,
    interest: Interest,
}

impl Ready {
    /// Waits for this descriptor. Call [`not_ready`] first if a call has just said so.
    #[must_use]
    pub fn new(fd: Rc<Fd>, interest: Interest) -> Ready {
        Ready { fd, interest }
    }
}

// SAFETY: the entry refers to no memory.
unsafe impl Operation for Ready {
    type Output = io::Result<()>;

    fn entry(&mut self) -> Entry {
        let events = match self.interest {
            Interest::Read => libc::POLLIN | libc::POLLRDHUP,
            Interest::Write => libc::POLLOUT,
        };
        opcode::PollAdd::new(types::Fd(self.fd.raw()), events as u32).build()
    }

    fn call(&mut self) -> io::Result<u32> {
        // The epoll driver asks only while it does not know better.
        Ok(0)
    }

    fn descriptor(&self) -> Option<&Rc<Fd>> {
        Some(&self.fd)
    }

    fn interest(&self) -> Interest {
        self.interest
    }

    unsafe fn complete(self, result: io::Result<u32>) -> Self::Output {
        result.map(drop)
    }
}

/// Tells whenever something has arrived at a descriptor, by one request that stays armed. On
/// io_uring only.
///
/// An arrival is told once, not as long as it lies there: wait for the next one only when nothing
/// is left of the last. What was there when the request was armed is told too.
#[derive(Debug)]
pub struct Arrivals {
    fd: Rc<Fd>,
}

impl Arrivals {
    /// Watches this descriptor.
    #[must_use]
    pub fn new(fd: Rc<Fd>) -> Arrivals {
        Arrivals { fd }
    }
}

/// Arrivals that nobody looks at before the request is ended. One would be enough to know; but
/// each end costs two entries and what lies there is told again.
const ARRIVALS_QUEUED_MAX: usize = 16;

/// Something has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival(u32);

impl Arrival {
    /// True if the end of the stream was among it, or an error.
    #[must_use]
    pub fn is_last(self) -> bool {
        self.0 & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as u32 != 0
    }
}

// SAFETY: the entry refers to no memory.
unsafe impl MultishotOperation for Arrivals {
    type Item = io::Result<Arrival>;

    fn queued_max(&self) -> usize {
        ARRIVALS_QUEUED_MAX
    }

    fn entry(&mut self) -> Entry {
        let events = libc::POLLIN | libc::POLLRDHUP;
        // Without the level-triggered flag (since 5.20) each wake of the socket is told once.
        opcode::PollAdd::new(types::Fd(self.fd.raw()), events as u32).multi(true).build()
    }

    fn call(&mut self) -> io::Result<Completion> {
        // The epoll driver asks only while it does not know better.
        Ok(Completion::from_call(0))
    }

    fn descriptor(&self) -> &Rc<Fd> {
        &self.fd
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn item(&mut self, completion: Completion) -> Self::Item {
        // Where there is no room for the answer, kernels before 6.2 may end the poll as if they had
        // been asked to. No failure of the socket: whoever looks finds what has arrived.
        if completion.is_errno(libc::ECANCELED) {
            return Ok(Arrival(0));
        }
        completion.result().map(Arrival)
    }
}

/// Tells the driver that a direct call on the descriptor would have blocked, so that a [`Ready`]
/// made next waits for a change.
///
/// # Errors
///
/// Those of `epoll_ctl(2)`.
///
/// # Panics
///
/// Outside of a runtime.
#[track_caller]
pub fn not_ready(fd: &Fd, interest: Interest) -> io::Result<()> {
    shard::with(|shard| shard.driver.not_ready(fd, interest))
}

/// Tells the driver that a read took less than it could have, so that the next one need not ask.
pub fn short_read(fd: &Fd) {
    if let Some(registration) = fd.registration() {
        registration.readiness.clear_after_short_read();
    }
}

/// True if a call on the descriptor is known to block now.
#[must_use]
pub fn is_known_blocked(fd: &Fd, interest: Interest) -> bool {
    fd.registration().is_some_and(|registration| !registration.readiness.is_ready(interest))
}

/// Waits while a call on the descriptor [is known to block](is_known_blocked). Ready at once on
/// io_uring, where only a [`Ready`] finds out.
///
/// # Panics
///
/// Outside of a runtime, and on another shard than where the descriptor waits.
#[track_caller]
pub fn poll_unblocked(fd: &Fd, interest: Interest, cx: &mut Context<'_>) -> Poll<()> {
    shard::with(|shard| shard.driver.poll_unblocked(fd, interest, cx.waker()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_poll_that_the_kernel_has_given_up_says_no_more_than_look() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let mut arrivals = Arrivals::new(Fd::new(socket.into()));
        let given_up = io::Error::from_raw_os_error(libc::ECANCELED);
        // SAFETY: an error owns nothing.
        let arrival = unsafe { arrivals.item(Completion::from_error(&given_up)) };
        assert!(!arrival.unwrap().is_last());
    }
}
