//! Waiting for time to pass: sleeps, timeouts, intervals, and a clock that tests can stop.
//!
//! Time is the monotonic clock of the machine; setting the wall clock does not touch it. Nothing
//! here completes early. How late it may be is a matter of load: a shard looks at its timers once
//! a turn, and an idle shard wakes at the nanosecond asked for, give or take what the kernel
//! needs. Where several deadlines lie close together it wakes once for all of them, at most
//! 66 µs after the first.
//!
//! A deadline is fixed when a [`Sleep`], [`Timeout`] or [`Interval`] is made, not when it is
//! first polled. They can be made anywhere; they are polled within a runtime, on any shard, and
//! may be dropped on any thread, also after the runtime is gone. A deadline too far to be counted
//! means never: it neither panics nor costs anything.
//!
//! # Testing
//!
//! [`pause`] stops the clock of the calling shard. From then on time moves only with [`advance`],
//! or by itself to the next deadline whenever the shard has nothing else to do, so that a test of
//! an hour's timeout takes no time. It waits for [`spawn_blocking`](crate::task::spawn_blocking)
//! jobs, which live in real time.

mod instant;
mod interval;
mod sleep;
#[cfg(test)]
mod tests;
mod timeout;

use std::future::poll_fn;
use std::task::Poll;

pub use std::time::Duration;

pub use instant::Instant;
pub use interval::{Interval, MissedTickBehavior, interval, interval_at};
pub use sleep::{Sleep, sleep, sleep_until};
pub use timeout::{Elapsed, Timeout, timeout, timeout_at};

use crate::{shard, timers};

/// Errors of this module, under the path that code written for tokio expects.
pub mod error {
    pub use super::timeout::Elapsed;
}

/// Stops the clock of this shard.
///
/// [`Instant::now`] stands still on this shard from now on. [`advance`] moves it. When every task
/// of the shard waits, the clock jumps to the next deadline by itself, unless a
/// [`spawn_blocking`](crate::task::spawn_blocking) job is under way. Other shards are not
/// touched: meant for tests with one shard.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{self, Duration, Instant};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     time::pause();
///     let start = Instant::now();
///     time::sleep(Duration::from_secs(3600)).await;
///     assert_eq!(start.elapsed(), Duration::from_secs(3600)); // at once
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// If the clock stands already, and outside of a runtime.
#[track_caller]
pub fn pause() {
    assert!(shard::current().clock.pause(), "time is paused already");
}

/// Lets the clock of this shard run again, from the time it shows.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time;
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     time::pause();
///     time::advance(time::Duration::from_secs(60)).await;
///     time::resume();
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// If the clock is not paused, and outside of a runtime.
#[track_caller]
pub fn resume() {
    assert!(shard::current().clock.resume(), "time is not paused");
}

/// Moves the paused clock of this shard forward, in one step.
///
/// What is due by then is woken in the order of the deadlines, and runs before this returns.
/// Every task sees the time after the whole step, as after a long stall; a task that sleeps in a
/// loop sleeps on from there.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{self, Duration, Instant};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     time::pause();
///     let start = Instant::now();
///     time::advance(Duration::from_millis(1500)).await;
///     assert_eq!(start.elapsed(), Duration::from_millis(1500));
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// When polled, if the clock is not paused, if the new time is more than the system can count, and
/// outside of a runtime.
///
/// # Cancel safety
///
/// The clock moves at the first poll. Dropped after that, only the wait for woken tasks is lost.
pub async fn advance(duration: Duration) {
    let behind_woken = {
        let shard = shard::current();
        assert!(
            shard.clock.advance(duration),
            "time is not paused: call annulus::time::pause first"
        );
        // Not left to the next turn: this task may well be polled again before that.
        let mut woken = Vec::new();
        shard.timers.borrow_mut().expire(shard.clock.now_ns(), &mut woken);
        timers::wake_all(&mut woken);
        shard.executor.behind_ready()
    };
    // A task has its next turn behind those just woken, but the future of `block_on` is polled once
    // a turn, which may be over before all of them have run.
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded && shard::current().executor.has_reached(behind_woken) {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Moving to another thread and sharing are promises: they hold for every release.
const _: () = {
    const fn is_send_sync_unpin<T: Send + Sync + Unpin>() {}
    is_send_sync_unpin::<Instant>();
    is_send_sync_unpin::<Sleep>();
    is_send_sync_unpin::<Interval>();
    is_send_sync_unpin::<Elapsed>();
    is_send_sync_unpin::<Timeout<std::future::Ready<()>>>();
};
