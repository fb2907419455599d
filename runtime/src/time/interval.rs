//! Ticks at a fixed period.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::{Instant, Sleep, sleep_until};

/// A tick that is later than this counts as missed, or later than one period if that is shorter.
/// What lies below is the ordinary lateness of a busy shard, and must not add up under
/// [`MissedTickBehavior::Delay`].
const LATENESS_MAX: Duration = Duration::from_millis(5);

/// Ticks now and then every `period`.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, Instant, interval};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let start = Instant::now();
///     let mut interval = interval(Duration::from_millis(2));
///     interval.tick().await; // at once
///     interval.tick().await;
///     interval.tick().await;
///     assert!(start.elapsed() >= Duration::from_millis(4));
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// If `period` is zero.
#[track_caller]
pub fn interval(period: Duration) -> Interval {
    Interval::new(Instant::now(), period)
}

/// Ticks at `start` and then every `period`.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, Instant, interval_at};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let period = Duration::from_millis(2);
///     let start = Instant::now() + period;
///     let mut interval = interval_at(start, period);
///     assert_eq!(interval.tick().await, start);
///     assert_eq!(interval.tick().await, start + period);
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// If `period` is zero.
#[track_caller]
pub fn interval_at(start: Instant, period: Duration) -> Interval {
    Interval::new(start, period)
}

/// What an [`Interval`] does after it was not asked for a tick in time.
///
/// With a period of 10 and a task that is busy from 12 to 35, the ticks of 20 and 30 are missed.
/// After 0 and 10, ticks come at
///
/// | behavior | |
/// | --- | --- |
/// | `Burst` | 35, 35, 40, 50, 60 |
/// | `Delay` | 35, 45, 55, 65 |
/// | `Skip` | 35, 40, 50, 60 |
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, MissedTickBehavior, interval};
///
/// let mut interval = interval(Duration::from_secs(1));
/// assert_eq!(interval.missed_tick_behavior(), MissedTickBehavior::Burst);
/// interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissedTickBehavior {
    /// Ticks at once for each tick missed, until all are made up for: none is lost.
    #[default]
    Burst,
    /// Ticks once, and counts the period from there: ticks are never closer than a period.
    Delay,
    /// Ticks once, and goes on at the next multiple of the period from the start: ticks keep
    /// their beat.
    Skip,
}

/// Ticks at a fixed period; made by [`interval`] and [`interval_at`].
///
/// A tick is asked for, not pushed: nobody waits, nothing happens. The beat does not drift with
/// the time that the task takes between ticks, unless a tick is missed and [`MissedTickBehavior`]
/// says otherwise. A tick counts as missed when it is more than 5 ms late, or more than a period
/// if that is shorter.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, interval};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let mut interval = interval(Duration::from_millis(1));
///     for _ in 0..3 {
///         interval.tick().await;
///     }
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Interval {
    /// Until the next tick.
    delay: Sleep,
    period: Duration,
    missed_tick_behavior: MissedTickBehavior,
}

impl Interval {
    #[track_caller]
    fn new(start: Instant, period: Duration) -> Self {
        assert!(!period.is_zero(), "an interval needs a period that is not zero");
        Self {
            delay: sleep_until(start),
            period,
            missed_tick_behavior: MissedTickBehavior::default(),
        }
    }

    /// Waits for the next tick and returns the instant it was due at.
    ///
    /// # Examples
    ///
    /// ```
    /// use annulus_runtime::time::{Duration, interval};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// annulus_runtime::Runtime::new()?.block_on(async {
    ///     let mut interval = interval(Duration::from_millis(1));
    ///     let first = interval.tick().await;
    ///     assert_eq!(interval.tick().await, first + interval.period());
    /// });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it completes, it has consumed no tick.
    pub async fn tick(&mut self) -> Instant {
        poll_fn(|cx| self.poll_tick(cx)).await
    }

    /// Polls for the next tick, as [`tick`](Self::tick) does.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        ready!(Pin::new(&mut self.delay).poll(cx));
        let due = self.delay.deadline();
        let next = self.deadline_after(due, Instant::now());
        self.reset_at(next);
        Poll::Ready(due)
    }

    /// Ticks a period from now, and then every period.
    pub fn reset(&mut self) {
        self.reset_after(self.period);
    }

    /// Ticks now, and then every period.
    pub fn reset_immediately(&mut self) {
        self.reset_at(Instant::now());
    }

    /// Ticks `after` from now, and then every period.
    pub fn reset_after(&mut self, after: Duration) {
        self.reset_at(Instant::now().add_or_never(after));
    }

    /// Ticks at `deadline`, and then every period.
    pub fn reset_at(&mut self, deadline: Instant) {
        Pin::new(&mut self.delay).reset(deadline);
    }

    /// The time between ticks.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// What is done about missed ticks.
    pub fn missed_tick_behavior(&self) -> MissedTickBehavior {
        self.missed_tick_behavior
    }

    /// Changes what is done about missed ticks, from the next one on.
    pub fn set_missed_tick_behavior(&mut self, behavior: MissedTickBehavior) {
        self.missed_tick_behavior = behavior;
    }

    /// When the tick after the one of `due` comes, which is taken at `now`.
    fn deadline_after(&self, due: Instant, now: Instant) -> Instant {
        let late = now.saturating_duration_since(due);
        if late <= self.period.min(LATENESS_MAX) {
            return due.add_or_never(self.period);
        }
        match self.missed_tick_behavior {
            MissedTickBehavior::Burst => due.add_or_never(self.period),
            MissedTickBehavior::Delay => now.add_or_never(self.period),
            MissedTickBehavior::Skip => {
                now.add_or_never(self.period - remainder(late, self.period))
            }
        }
    }
}

/// What is left of `duration` after all the whole periods in it.
fn remainder(duration: Duration, period: Duration) -> Duration {
    const SECOND_NS: u128 = 1_000_000_000;
    let rest = duration.as_nanos() % period.as_nanos();
    Duration::new((rest / SECOND_NS) as u64, (rest % SECOND_NS) as u32)
}
