//! The shard's side of the kernel: one interface, two drivers, chosen in one place.
//!
//! The contract that both keep:
//! - An operation begins at its first poll, not before.
//! - Its answer reaches the waker of its latest poll, once.
//! - Dropped, it leaves nothing behind that outlives its last answer, and loses no answer that
//!   carries a descriptor or a buffer.
//! - `turn` makes at most one system call that waits, and none where there is nothing to do.

mod epoll;
mod features;
pub(crate) mod operation;
mod patience;
mod pools;
mod quiet;
mod refusal;
mod shown;
mod slots;
mod strays;
mod uring;

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use self::epoll::Epoll;
pub use self::features::Feature;
pub(crate) use self::features::multishot_receive;
pub(crate) use self::features::survey;
use self::features::{NoRing, make_ring};
use self::operation::{Completion, MultishotOperation, Operation};
pub use self::quiet::Batch;
pub(crate) use self::quiet::ShortSend;
pub(crate) use self::refusal::{Bytes, Surroundings};
pub use self::refusal::{Cause, Refusal, Stage};
pub(crate) use self::shown::Shown;
pub(crate) use self::slots::Key;
pub(crate) use self::strays::Strays;
use self::uring::Uring;
pub(crate) use self::uring::untaken::take as take_untaken;
use crate::buf::{Pool, Spare};
use crate::config::{self, Config};
use crate::error::BuildError;
use crate::fd::{Fd, Interest};
use crate::notice::notify;
use crate::resident_key::ResidentKey;
#[cfg(fuzzing)]
pub(crate) use refusal::fuzz::refusals;
#[cfg(fuzzing)]
pub(crate) use slots::fuzz::slots;

/// How long a turn may wait for the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// Not at all: tasks are ready.
    No,
    /// Until something happens, or for this long.
    AtMost(Option<Duration>),
}

/// What a turn leaves to be done when the driver is no longer borrowed.
#[derive(Default)]
pub(crate) struct Work {
    pub(crate) wakers: Vec<Waker>,
    pub(crate) short_sends: Vec<ShortSend>,
    pub(crate) orphans: Vec<(Key, Completion)>,
}

impl Work {
    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty() && self.short_sends.is_empty() && self.orphans.is_empty()
    }
}

/// What a driver counts. [`Metrics`](crate::Metrics) says what each means.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) enters: u64,
    pub(crate) submissions: u64,
    pub(crate) completions: u64,
    pub(crate) overflows: u64,
    pub(crate) stale_keys: u64,
    pub(crate) pool_dry: u64,
}

/// Which driver runs on a shard, and if it is not io_uring, why.
///
/// # Examples
///
/// ```
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let info = annulus_runtime::driver_info();
/// println!("driver: {info}");
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DriverInfo {
    driver: config::Driver,
    refusal: Option<Refusal>,
}

impl DriverInfo {
    pub(crate) fn new(driver: config::Driver, refusal: Option<Refusal>) -> DriverInfo {
        DriverInfo { driver, refusal }
    }

    /// [`Driver::Uring`](config::Driver::Uring) or [`Driver::Epoll`](config::Driver::Epoll).
    #[must_use]
    pub fn driver(&self) -> config::Driver {
        self.driver
    }

    /// Why io_uring is not used, if it was tried and refused.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }
}

impl fmt::Display for DriverInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.refusal, self.driver) {
            (Some(refusal), _) => write!(f, "epoll ({})", refusal.summary()),
            (None, config::Driver::Epoll) => f.write_str("epoll (asked for)"),
            (None, _) => f.write_str("io_uring"),
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "a shard has one, and a box is one more load")]
pub(crate) enum Driver {
    Uring(Uring),
    Epoll(Epoll),
}

impl Driver {
    /// Chooses and makes the driver of a shard. The ring belongs to the calling thread.
    ///
    /// # Errors
    ///
    /// A refusal of io_uring where it was asked for by name; descriptors or memory that even
    /// epoll would need.
    pub(crate) fn choose(
        config: &Config,
        wake_fd: RawFd,
        spare: &Rc<Spare>,
    ) -> Result<(Driver, DriverInfo), BuildError> {
        let mut refusal = None;
        if config.driver != config::Driver::Epoll {
            match make_ring(config) {
                Ok(ring) => {
                    let driver = Driver::Uring(Uring::new(ring, wake_fd, Rc::clone(spare)));
                    return Ok((driver, DriverInfo { driver: config::Driver::Uring, refusal }));
                }
                Err(NoRing::Io(error)) => return Err(BuildError::Io("making a ring", error)),
                Err(NoRing::Refused(found)) if config.driver == config::Driver::Uring => {
                    return Err(BuildError::Refused(found));
                }
                Err(NoRing::Refused(found)) => refusal = Some(found),
            }
        }
        if let Some(refusal) = &refusal {
            notify_once(refusal);
        }
        let buffers = config.recv_pool_buffers as u16;
        let epoll = Pool::listed(buffers, config.recv_pool_buffer_bytes)
            .and_then(|pool| Epoll::new(pool, wake_fd))
            .map_err(|error| BuildError::Io("making an epoll instance", error))?;
        Ok((Driver::Epoll(epoll), DriverInfo { driver: config::Driver::Epoll, refusal }))
    }

    pub(crate) fn poll_op<T: Operation>(
        &self,
        flight: &mut Option<Key>,
        operation: &mut T,
        waker: &Waker,
    ) -> Poll<io::Result<u32>> {
        match self {
            Driver::Uring(driver) => driver.poll_op(flight, operation, waker),
            Driver::Epoll(driver) => driver.poll_op(operation, waker),
        }
    }

    pub(crate) fn poll_multishot<T: MultishotOperation>(
        &self,
        flight: &mut Option<Key>,
        operation: &mut T,
        waker: &Waker,
    ) -> Poll<Completion> {
        match self {
            Driver::Uring(driver) => driver.poll_multishot(flight, operation, waker),
            Driver::Epoll(driver) => driver.poll_multishot(operation, waker),
        }
    }

    /// As [`poll_multishot`](Driver::poll_multishot), but arms nothing: `None` if nothing is armed.
    #[inline]
    pub(crate) fn poll_armed(
        &self,
        flight: Option<Key>,
        waker: &Waker,
    ) -> Poll<Option<Completion>> {
        match self {
            Driver::Uring(driver) => driver.poll_armed(flight, waker),
            Driver::Epoll(_) => Poll::Ready(None),
        }
    }

    pub(crate) fn pop_multishot(&self, flight: Option<Key>) -> Option<Completion> {
        match self {
            Driver::Uring(driver) => driver.pop_multishot(flight),
            Driver::Epoll(_) => None,
        }
    }

    pub(crate) fn is_armed(&self, flight: Option<Key>) -> bool {
        match self {
            Driver::Uring(driver) => driver.is_armed(flight),
            Driver::Epoll(_) => false,
        }
    }

    pub(crate) fn stop_multishot(&self, flight: Option<Key>) {
        match self {
            Driver::Uring(driver) => driver.stop_multishot(flight),
            Driver::Epoll(_) => {}
        }
    }

    /// Asks the kernel to give an operation up; its answer still comes.
    pub(crate) fn cancel(&self, key: Key) {
        match self {
            Driver::Uring(driver) => driver.cancel(key),
            Driver::Epoll(_) => unreachable!("nothing is in flight on epoll"),
        }
    }

    pub(crate) fn orphan<T: Operation>(&self, key: Key, operation: T) {
        match self {
            Driver::Uring(driver) => driver.orphan(key, operation),
            Driver::Epoll(_) => unreachable!("nothing is in flight on epoll"),
        }
    }

    pub(crate) fn orphan_multishot<T: MultishotOperation>(&self, key: Key, operation: T) {
        match self {
            Driver::Uring(driver) => driver.orphan_multishot(key, operation),
            Driver::Epoll(_) => unreachable!("nothing is in flight on epoll"),
        }
    }

    /// Hands over a send that ends with this turn: see [`quiet`]. Gives the buffer back where the
    /// driver has none such.
    pub(crate) fn send_quietly(
        &self,
        fd: &Rc<Fd>,
        buffer: Vec<u8>,
        owner: ResidentKey,
    ) -> Result<Batch, Vec<u8>> {
        match self {
            Driver::Uring(driver) => driver.send_quietly(fd, buffer, owner),
            Driver::Epoll(_) => Err(buffer),
        }
    }

    /// True when the sends of that batch are over.
    #[inline]
    pub(crate) fn is_settled(&self, batch: Batch) -> bool {
        match self {
            Driver::Uring(driver) => driver.is_settled(batch),
            Driver::Epoll(_) => true,
        }
    }

    /// A direct call on this descriptor would have blocked.
    pub(crate) fn not_ready(&self, fd: &Fd, interest: Interest) -> io::Result<()> {
        match self {
            // The ring's poll looks for itself.
            Driver::Uring(_) => Ok(()),
            Driver::Epoll(driver) => driver.not_ready(fd, interest),
        }
    }

    /// Waits while a direct call on this descriptor is known to block.
    pub(crate) fn poll_unblocked(&self, fd: &Fd, interest: Interest, waker: &Waker) -> Poll<()> {
        match self {
            Driver::Uring(_) => Poll::Ready(()),
            Driver::Epoll(driver) => driver.poll_unblocked(fd, interest, waker),
        }
    }

    pub(crate) fn turn(&self, wait: Wait, work: &mut Work) -> io::Result<()> {
        match self {
            Driver::Uring(driver) => driver.turn(wait, work),
            Driver::Epoll(driver) => driver.turn(wait, work),
        }
    }

    /// Hands over what a turn has brought for nobody. Called without a borrow: it runs user code.
    pub(crate) fn dispose(&self, strays: &Strays, work: &mut Work) {
        strays.add(work.orphans.drain(..));
        while let (Driver::Uring(driver), Some((key, completion))) = (self, strays.next()) {
            driver.dispose(key, completion);
        }
    }

    /// Looks, without a system call, whether the next turn would find something.
    pub(crate) fn has_news(&self) -> bool {
        match self {
            Driver::Uring(driver) => driver.has_news(),
            // Only the kernel knows; the shard asks it by a turn that does not wait.
            Driver::Epoll(_) => true,
        }
    }

    /// Makes the descriptor at which another loop is shown news. Once per driver.
    ///
    /// # Errors
    ///
    /// No descriptor or memory left.
    pub(crate) fn show(&self) -> io::Result<Shown> {
        match self {
            Driver::Uring(driver) => driver.show(),
            Driver::Epoll(driver) => Ok(Shown::Own(driver.raw_fd())),
        }
    }

    /// True if the last turn has taken everything and left nothing queued: what comes next is
    /// shown anew.
    pub(crate) fn is_drained(&self) -> bool {
        match self {
            Driver::Uring(driver) => driver.is_drained(),
            Driver::Epoll(driver) => driver.is_drained(),
        }
    }

    /// Cancels everything in flight and reaps until nothing is, at most for `limit`, and while what
    /// runs meanwhile says that this may go on.
    pub(crate) fn drain(&self, limit: Duration, run: impl Fn(&mut Work) -> bool) -> bool {
        match self {
            Driver::Uring(driver) => driver.drain(limit, run),
            Driver::Epoll(_) => true,
        }
    }

    /// The pool that datagrams are received into ahead of the reader, on drivers that have it.
    pub(crate) fn datagram_pool(&self) -> Option<Rc<Pool>> {
        match self {
            Driver::Uring(driver) => driver.datagram_pool(),
            Driver::Epoll(_) => None,
        }
    }

    /// True if the kernel receives into the pool ahead of the reader.
    pub(crate) fn receives_ahead(&self) -> bool {
        matches!(self, Driver::Uring(_))
    }

    /// True if there are sends that do not copy.
    pub(crate) fn sends_zero_copy(&self) -> bool {
        match self {
            Driver::Uring(driver) => driver.sends_zero_copy(),
            Driver::Epoll(_) => false,
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        match self {
            Driver::Uring(driver) => driver.counts(),
            Driver::Epoll(driver) => driver.counts(),
        }
    }

    pub(crate) fn pool(&self) -> &Rc<Pool> {
        match self {
            Driver::Uring(driver) => driver.pool(),
            Driver::Epoll(driver) => driver.pool(),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let address = std::ptr::from_ref(self).cast();
        if let Driver::Uring(driver) = self {
            driver.leave_untaken(address);
        }
    }
}

/// One line for the operator: a program that was expected on io_uring does not run on it.
fn notify_once(refusal: &Refusal) {
    // No lock, which a forked child could find held.
    static NOTIFIED: AtomicBool = AtomicBool::new(false);
    if !NOTIFIED.swap(true, Ordering::Relaxed) {
        notify(format_args!("running on epoll: {}", refusal.summary()));
    }
}
