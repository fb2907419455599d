//! Tasks: spawning, joining, yielding, and work that blocks.

use std::future::{Future, poll_fn};
use std::task::Poll;

pub use crate::blocking::spawn_blocking;
pub use crate::executor::{AbortHandle, JoinError, JoinHandle};
use crate::shard;

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
    shard::current().executor.spawn(future)
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
