//! A future that another future has to beat.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{fmt, io};

use pin_project_lite::pin_project;

use super::{Instant, Sleep, sleep, sleep_until};
use crate::shard;

/// Gives `future` at most `duration` to complete.
///
/// Counted from this call. The future is polled first, so one that is ready wins even when the
/// time is over, also with a duration of zero. A duration too long to be counted never ends.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, timeout};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let never = std::future::pending::<()>();
///     assert!(timeout(Duration::from_millis(1), never).await.is_err());
///     assert_eq!(timeout(Duration::from_millis(1), async { 7 }).await, Ok(7));
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Elapsed`] if the time is over first.
///
/// # Panics
///
/// When polled outside of a runtime, unless the future is ready.
///
/// # Cancel safety
///
/// Dropping it drops the future; it is as cancel safe as the future is. The future also drops
/// with it when the time is over, so to go on with it afterwards, give `&mut future`.
pub fn timeout<F: IntoFuture>(duration: Duration, future: F) -> Timeout<F::IntoFuture> {
    Timeout::new(sleep(duration), future.into_future())
}

/// Gives `future` until `deadline` to complete.
///
/// See [`timeout`] for all else.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, Instant, sleep, timeout_at};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     // Two steps that share one deadline.
///     let deadline = Instant::now() + Duration::from_millis(5);
///     assert!(timeout_at(deadline, sleep(Duration::from_millis(1))).await.is_ok());
///     assert!(timeout_at(deadline, sleep(Duration::from_secs(1))).await.is_err());
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Elapsed`] if the deadline is over first.
pub fn timeout_at<F: IntoFuture>(deadline: Instant, future: F) -> Timeout<F::IntoFuture> {
    Timeout::new(sleep_until(deadline), future.into_future())
}

pin_project! {
    /// The future of [`timeout`] and [`timeout_at`].
    #[derive(Debug)]
    #[must_use = "a timeout does nothing unless it is awaited or polled"]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        delay: Sleep,
        // The time is over, and the task has yielded once before saying so.
        yielded: bool,
    }
}

impl<F> Timeout<F> {
    fn new(delay: Sleep, future: F) -> Self {
        Self { future, delay, yielded: false }
    }

    /// The future within.
    pub fn get_ref(&self) -> &F {
        &self.future
    }

    /// The future within.
    pub fn get_mut(&mut self) -> &mut F {
        &mut self.future
    }

    /// The future within, free of its deadline.
    pub fn into_inner(self) -> F {
        self.future
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let shard = shard::current();
        ready!(this.delay.poll_elapsed(&shard, cx));
        // A future that is always ready for more uses up the whole budget at every poll, and
        // would keep the deadline waiting for ever. So it waits for the budget once, and no
        // second time.
        if !*this.yielded && shard.poll_budget(cx).is_pending() {
            *this.yielded = true;
            return Poll::Pending;
        }
        Poll::Ready(Err(Elapsed(())))
    }
}

/// The error of [`timeout`]: the deadline came first.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, timeout};
/// use std::io;
///
/// async fn answer() -> io::Result<u32> {
///     std::future::pending().await
/// }
///
/// # fn main() -> io::Result<()> {
/// let answer = annulus_runtime::Runtime::new()?.block_on(async {
///     timeout(Duration::from_millis(1), answer()).await? // an `io::Error` of kind `TimedOut`
/// });
/// assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::TimedOut);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed(());

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("deadline has elapsed")
    }
}

impl Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(elapsed: Elapsed) -> Self {
        Self::new(io::ErrorKind::TimedOut, elapsed)
    }
}
