//! Tasks: spawning, joining, yielding, and work that blocks.
//!
//! # Turns
//!
//! Ready tasks are polled in the order in which they were woken; one that wakes itself goes behind
//! the others. After 64 polls ([`event_interval`](crate::Builder::event_interval)), or when they
//! have taken a millisecond in all, the shard looks at its mail (1024 pieces at most), at sockets
//! and at timers, however many tasks are ready. In one poll a task is given 128 answers of sockets
//! that are always ready; then they let it wait for its next turn. A stream brings at most 64 KiB
//! before somebody takes them.
//!
//! So what is due waits for a millisecond and one poll, and then for the tasks that are ready
//! before it. Where long polls follow upon polls of a few microseconds, up to four of them may pass
//! before the shard looks at the time. Nobody can interrupt a poll: one that computes for long, or
//! calls what blocks, holds up its whole shard for that long. [`yield_now`] divides it,
//! [`spawn_blocking`] takes it away.
//!
//! # Watching tasks
//!
//! With the feature `tracing` each task is a span of the crate `tracing`, in the form that tokio
//! gives to its own, so that [tokio-console] lists it. This crate needs no `--cfg` for that;
//! `console-subscriber` refuses to start without one, as it knows no other runtime than tokio:
//!
//! ```text
//! # Cargo.toml
//! annulus = { version = "0.1", features = ["tracing"] }
//! console-subscriber = "0.5"
//!
//! # .cargo/config.toml
//! [build]
//! rustflags = ["--cfg", "console_without_tokio_unstable"]
//!
//! // main.rs: before the first task, as none is seen that was spawned without a subscriber
//! console_subscriber::init();
//! ```
//!
//! `console_subscriber::init` answers the console on a thread of its own. Then `tokio-console`
//! shows the tasks that [`spawn`], [`Builder`] and [`Shard::spawn_with`](crate::Shard::spawn_with)
//! make, what `block_on` runs (kind `block_on`), and the jobs of [`spawn_blocking`] (kind
//! `blocking`): each with its name, the line that spawned it, the size of its future, how often it
//! was polled and woken, how long it was busy, ready and idle, and how many wakers it has.
//!
//! What it does not show: timers, sockets and locks, so that the list of resources stays empty; and
//! [`id`], as the numbers in the console only count what was spawned. The line of tasks that this
//! crate spawns by itself, such as those of [`on_each_shard`](crate::on_each_shard), is its own.
//!
//! Other subscribers of `tracing` get the same spans, at the level `TRACE` and with the target
//! `tokio::task`. What a task emits is in its span while it is polled, and not when its future is
//! dropped.
//!
//! [tokio-console]: https://docs.rs/tokio-console

use std::future::{Future, poll_fn};
use std::task::Poll;

pub use crate::blocking::spawn_blocking;
pub use crate::executor::{AbortHandle, JoinError, JoinHandle, TaskId, TaskInfo};
pub use crate::join_set::JoinSet;
use crate::shard;
use crate::trace::TaskSpan;

/// Spawns a task on this shard and returns a handle to its result.
///
/// The future need not be `Send`: it is polled and dropped on this thread only. It is queued, not
/// polled, by this call. Dropping the handle detaches the task, which then runs on by itself; a
/// panic of the task is caught and reported by the handle. Tasks that are left when the runtime
/// ends are dropped.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let sum = annulus_runtime::spawn(async { 1 + 1 });
///     assert_eq!(sum.await.unwrap(), 2);
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// Outside of a runtime.
#[track_caller]
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let shard = shard::current();
    shard.executor.spawn(TaskSpan::task(None, size_of::<F>()).around(future))
}

/// Spawns tasks that have a name.
///
/// The name is seen where tasks are listed or found fault with; it need not be unique. A task
/// without one is known by the type of its future and by where it was spawned.
///
/// # Examples
///
/// ```
/// use annulus_runtime::task;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let peer = "192.0.2.7:4000";
/// let task = task::Builder::new().name(format!("connection of {peer}")).spawn(async { 42 });
/// assert_eq!(task.await.unwrap(), 42);
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is spawned until `spawn` is called"]
pub struct Builder {
    name: Option<String>,
}

impl Builder {
    /// A task without a name, so far.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Names the task.
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = Some(name.into());
        self
    }

    /// Spawns the task on this shard: see [`spawn`].
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn spawn<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let shard = shard::current();
        let span = TaskSpan::task(self.name.as_deref(), size_of::<F>());
        let future = span.around(future);
        match self.name {
            Some(name) => shard.executor.spawn_named(&name, future),
            None => shard.executor.spawn(future),
        }
    }
}

/// The number of the task that is being polled, or whose future is being dropped.
///
/// # Examples
///
/// ```
/// use annulus_runtime::task;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let one = task::spawn(async { task::id() });
/// let other = task::spawn(async { task::id() });
/// assert_ne!(one.await.unwrap(), other.await.unwrap());
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
///
/// # Panics
///
/// Outside of a task, as in the future that `block_on` runs: see [`try_id`].
#[must_use]
#[track_caller]
pub fn id() -> TaskId {
    match try_id() {
        Some(id) => id,
        None => panic!("task::id was called outside of a task, which only `spawn` makes"),
    }
}

/// As [`id`]; `None` outside of a task.
///
/// # Examples
///
/// ```
/// use annulus_runtime::task;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// assert_eq!(task::try_id(), None);
/// let task = task::spawn(async { task::try_id() });
/// assert!(task.await.unwrap().is_some());
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
#[must_use]
pub fn try_id() -> Option<TaskId> {
    shard::try_with(|shard| shard.executor.current().map(|task| task.id())).flatten()
}

/// Lets every other ready task of this shard run once before this one goes on.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     for chunk in (0..1_000_000).collect::<Vec<u32>>().chunks(10_000) {
///         let _sum: u64 = chunk.iter().map(|&n| u64::from(n)).sum();
///         annulus_runtime::task::yield_now().await;
///     }
/// });
/// # Ok(())
/// # }
/// ```
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
