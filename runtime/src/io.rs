//! The pieces that socket types are made of, here and in other crates.
//!
//! An [`Operation`] is one request to the kernel, spoken as a ring entry and as a system call;
//! [`Op`] is the future that carries it. A [`MultishotOperation`] has many answers and is carried
//! by a [`Multishot`]. Both hold the descriptor through `Rc<Fd>`. State that must stay on its
//! shard, while its handle travels, is a [`Resident`].

use std::task::{Context, Poll, ready};

pub use crate::buf::PoolBuffer;
pub use crate::datagrams::{Datagram, ReceiveDatagrams};
pub use crate::driver::Batch;
pub use crate::driver::operation::{Completion, Entry, MultishotOperation, Operation};
pub use crate::fd::{Fd, Interest, set_nonblocking};
pub use crate::fork::Process;
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
    send_vectored, shutdown, take_socket_error, tell_rest,
};
pub use crate::waiters::{Place, WaiterKey, Waiters};
use crate::{blocking, shard};

/// Counts a future that is about to be ready. Pending, and woken at once, when the task being
/// polled has had its share of this turn.
///
/// # Examples
///
/// A future that is always ready lets other tasks run all the same:
///
/// ```
/// use std::future::poll_fn;
/// use std::task::{Poll, ready};
///
/// use annulus_runtime::io::poll_budget;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let other = annulus_runtime::spawn(async {});
/// while !other.is_finished() {
///     poll_fn(|cx| {
///         ready!(poll_budget(cx));
///         Poll::Ready(())
///     })
///     .await;
/// }
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
///
/// # Panics
///
/// Outside of a runtime.
#[inline]
pub fn poll_budget(cx: &mut Context<'_>) -> Poll<()> {
    shard::with(|shard| shard.poll_budget(cx))
}

/// Polls what may be ready, and counts it as [`poll_budget`] does. What waits is not counted: a
/// task may have any number of futures that wait, and still sees the one that is ready.
///
/// # Examples
///
/// ```
/// use std::future::poll_fn;
/// use std::task::Poll;
///
/// use annulus_runtime::io::within_budget;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let answer = poll_fn(|cx| {
///     for _ in 0..1000 {
///         assert!(within_budget(cx, |_| Poll::<()>::Pending).is_pending());
///     }
///     within_budget(cx, |_| Poll::Ready(7))
/// });
/// assert_eq!(answer.await, 7);
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
///
/// # Panics
///
/// Outside of a runtime.
#[inline]
pub fn within_budget<T>(
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    ready!(poll_budget(cx));
    let answer = poll(cx);
    if answer.is_pending() {
        shard::with(|shard| shard.budget.set(shard.budget.get() + 1));
    }
    answer
}

/// True if the kernel receives into the shard's pool ahead of the reader: on io_uring.
///
/// # Examples
///
/// ```
/// use annulus_runtime::Driver;
/// use annulus_runtime::io::receives_ahead;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let on_ring = annulus_runtime::driver_info().driver() == Driver::Uring;
/// assert_eq!(receives_ahead(), on_ring);
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
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
/// # Examples
///
/// ```
/// use annulus_runtime::io::{receives_ahead, sends_zero_copy};
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// // Only a ring has them, and not that of every kernel.
/// assert!(receives_ahead() || !sends_zero_copy());
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
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
/// # Examples
///
/// The kernel has let go of a descriptor before this goes on:
///
/// ```
/// use std::future::poll_fn;
/// use std::pin::pin;
/// use std::rc::Rc;
/// use std::task::Poll;
///
/// use annulus_runtime::io::{Fd, Interest, Op, Ready, settle};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let (one, _other) = std::os::unix::net::UnixStream::pair()?;
/// let fd = Fd::new(one.into());
/// {
///     let mut readable = pin!(Op::new(Ready::new(Rc::clone(&fd), Interest::Read)));
///     poll_fn(|cx| Poll::Ready(readable.as_mut().poll(cx).is_pending())).await;
/// }
/// settle(|| Rc::strong_count(&fd) == 1);
/// assert!(Fd::into_owned(fd).is_ok());
/// # Ok(())
/// # })
/// # }
/// ```
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
///
/// # Examples
///
/// ```
/// use annulus_runtime::io::Connected;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let connected = Connected::new();
/// assert_eq!(annulus_runtime::metrics().connections, 1);
/// drop(connected);
/// assert_eq!(annulus_runtime::metrics().connections, 0);
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
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
///
/// # Examples
///
/// ```
/// use annulus_runtime::io::accept_paused;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// accept_paused();
/// assert_eq!(annulus_runtime::metrics().accept_pauses, 1);
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
pub fn accept_paused() {
    shard::try_with(|shard| shard.meter.accept_paused());
}

/// Runs a closure that blocks on a thread of the pool and returns its result. Starts at the first
/// poll; if the future is dropped, the closure does not run, or its result is dropped.
///
/// # Examples
///
/// ```
/// use annulus_runtime::io::offload;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let here = std::thread::current().id();
/// let there = offload(|| std::thread::current().id()).await;
/// assert_ne!(here, there);
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
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
/// # Examples
///
/// ```
/// use std::fs::File;
/// use std::io;
/// use std::os::fd::AsRawFd;
///
/// use annulus_runtime::io::{Entry, Operation, carry};
/// use io_uring::{opcode, types};
///
/// struct Sync(File);
///
/// // SAFETY: the entry refers to no memory, and the operation owns its descriptor.
/// unsafe impl Operation for Sync {
///     type Output = io::Result<()>;
///
///     fn entry(&mut self) -> Entry {
///         opcode::Fsync::new(types::Fd(self.0.as_raw_fd())).build()
///     }
///
///     fn call(&mut self) -> io::Result<u32> {
///         self.0.sync_all().map(|()| 0)
///     }
///
///     unsafe fn complete(self, answer: io::Result<u32>) -> io::Result<()> {
///         answer.map(|_| ())
///     }
/// }
///
/// # fn main() -> io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// # let path = std::env::temp_dir().join(format!("annulus-doc-carry-{}", std::process::id()));
/// carry(Sync(File::create(&path)?)).await?;
/// # std::fs::remove_file(&path)
/// # })
/// # }
/// ```
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

/// What sockets of a simulation are asked before the kernel is. `None`: it is another's.
#[doc(hidden)]
pub mod simulated {
    pub use crate::sim::calls::{
        Binding, Options, bind, connect, is_simulated, listen, local_address, options,
        peer_address, share_address, socket,
    };
    pub use crate::sim::is_here;
}
