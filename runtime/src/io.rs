//! The pieces that socket types are made of, here and in other crates.
//!
//! An [`Operation`] is one request to the kernel, spoken as a ring entry and as a system call;
//! [`Op`] is the future that carries it. A [`MultishotOperation`] has many answers and is carried
//! by a [`Multishot`]. Both hold the descriptor through `Rc<Fd>`. State that must stay on its
//! shard, while its handle travels, is a [`Resident`].

use std::task::{Context, Poll};

pub use crate::buf::PoolBuffer;
pub use crate::datagrams::{Datagram, ReceiveDatagrams};
pub use crate::driver::Batch;
pub use crate::driver::operation::{Completion, Entry, MultishotOperation, Operation};
pub use crate::fd::{Fd, Interest, set_nonblocking};
pub use crate::multishot::Multishot;
pub use crate::notice::notify;
pub use crate::op::Op;
pub use crate::receive::{
    Arrival, Arrivals, Ready, ReceivePooled, is_known_blocked, not_ready, poll_unblocked,
    recv_lease, short_read,
};
pub use crate::resident::{
    Homed, Release, Resident, ResidentKey, check_runtime, depart, give_back, is_settled,
    mark_dirty, send_quietly, spare_buffer,
};
pub use crate::sys::{
    Message, Received, Rest, TRANSFER_BYTES_MAX, accept, receive, recv, recv_message, send,
    take_socket_error, tell_rest,
};
pub use crate::waiters::{Place, WaiterKey, Waiters};
use crate::{blocking, shard};

/// Counts a future that is about to be ready. Pending, and woken at once, when the task being
/// polled has had its share of this turn.
///
/// # Panics
///
/// Outside of a runtime.
#[inline]
pub fn poll_budget(cx: &mut Context<'_>) -> Poll<()> {
    shard::with(|shard| shard.poll_budget(cx))
}

/// True if the kernel receives into the shard's pool ahead of the reader: on io_uring.
///
/// # Panics
///
/// Outside of a runtime.
#[must_use]
#[track_caller]
pub fn receives_ahead() -> bool {
    shard::with(|shard| shard.driver.receives_ahead())
}

/// True if the driver has sends that do not copy: on io_uring, where the kernel has `SEND_ZC`.
///
/// # Panics
///
/// Outside of a runtime.
#[must_use]
#[track_caller]
pub fn sends_zero_copy() -> bool {
    shard::with(|shard| shard.driver.sends_zero_copy())
}

/// Turns the driver, within the current poll, until something under way there has ended: for the
/// few calls that must not return before. Gives up after a tenth of a second.
///
/// # Panics
///
/// Outside of a runtime.
#[track_caller]
pub fn settle(ended: impl Fn() -> bool) {
    shard::current().settle(ended);
}

/// Counts an open connection of this shard until it is dropped: see
/// [`Metrics::connections`](crate::Metrics::connections).
#[derive(Debug)]
pub struct Connected(());

impl Connected {
    /// One more. Counts nothing outside of a runtime.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is no empty value but an event")]
    pub fn new() -> Connected {
        shard::try_with(|shard| shard.meter.connection_began());
        Connected(())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        shard::try_with(|shard| shard.meter.connection_ended());
    }
}

/// Counts a listener that pauses for want of something:
/// [`Metrics::accept_pauses`](crate::Metrics::accept_pauses).
pub fn accept_paused() {
    shard::try_with(|shard| shard.meter.accept_paused());
}

/// Runs a closure that blocks on a thread of the pool and returns its result. Starts at the first
/// poll; if the future is dropped, the closure does not run, or its result is dropped.
///
/// # Panics
///
/// Outside of a runtime, and where the closure does.
pub async fn offload<F, T>(f: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    blocking::offload(f).await
}

/// Carries an operation whose system call may wait, as those of files do: on io_uring as an entry
/// of the ring, on epoll by its [`call`](Operation::call), on a thread of the blocking pool.
/// A paused clock does not run away from it.
///
/// # Panics
///
/// Outside of a runtime.
///
/// # Cancel safety
///
/// As with [`Op`]: what the operation owns is kept until the kernel, or the thread, is done with
/// it, and an answer that comes after the drop is disposed of. On epoll that happens on the
/// thread, and a call that has begun runs to its end.
pub async fn carry<T>(operation: T) -> T::Output
where
    T: Operation + Send,
    T::Output: Send,
{
    let (in_ring, _hold) = shard::with(|shard| (shard.driver.receives_ahead(), shard.clock.hold()));
    if in_ring { Op::new(operation).await } else { blocking::offload(|| call(operation)).await }
}

fn call<T: Operation>(mut operation: T) -> T::Output {
    let answer = loop {
        match operation.call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            answer => break answer,
        }
    };
    // SAFETY: this is the answer to the operation's one call.
    unsafe { operation.complete(answer) }
}
