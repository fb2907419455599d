//! An instant of the shard's clock, which a test can stop.

use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::time::{Duration, Instant as StdInstant};

use crate::shard;
use crate::sys;
use crate::timers::Clock;

/// A point in time of the monotonic clock.
///
/// Like [`std::time::Instant`], and as cheap, but [`now`](Self::now) obeys [`pause`](super::pause).
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, Instant};
///
/// let start = Instant::now();
/// let later = start + Duration::from_secs(5);
/// assert_eq!(later - start, Duration::from_secs(5));
/// assert_eq!(start - later, Duration::ZERO);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(StdInstant);

impl Instant {
    /// The time now: that of the shard's clock within a runtime, otherwise the system's.
    pub fn now() -> Self {
        if Clock::any_ever_paused() {
            return Self(now_of_shard());
        }
        Self(sys::now())
    }

    /// Takes an instant of the standard library as it is.
    pub const fn from_std(std: StdInstant) -> Self {
        Self(std)
    }

    /// This instant for the standard library.
    pub const fn into_std(self) -> StdInstant {
        self.0
    }

    /// Time from `earlier` to this instant, zero if `earlier` is later.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// Time from `earlier` to this instant, `None` if `earlier` is later.
    pub fn checked_duration_since(&self, earlier: Self) -> Option<Duration> {
        self.0.checked_duration_since(earlier.0)
    }

    /// Time from `earlier` to this instant, zero if `earlier` is later.
    pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }

    /// Time since this instant, zero if it is yet to come.
    pub fn elapsed(&self) -> Duration {
        Self::now().duration_since(*self)
    }

    /// The instant `duration` later, `None` if it cannot be counted.
    pub fn checked_add(&self, duration: Duration) -> Option<Self> {
        self.0.checked_add(duration).map(Self)
    }

    /// The instant `duration` earlier, `None` if it cannot be counted.
    pub fn checked_sub(&self, duration: Duration) -> Option<Self> {
        self.0.checked_sub(duration).map(Self)
    }

    /// The instant `duration` later, or one that no runtime lives to see.
    pub(crate) fn add_or_never(self, duration: Duration) -> Self {
        // More than 64 bits of nanoseconds, wherever a clock has its origin: every one counts it as
        // never.
        const FAR: Duration = Duration::from_secs(1 << 40);
        self.checked_add(duration).or_else(|| self.checked_add(FAR)).unwrap_or(self)
    }
}

#[cold]
fn now_of_shard() -> StdInstant {
    shard::try_current().map_or_else(sys::now, |shard| shard.clock.now())
}

impl From<StdInstant> for Instant {
    fn from(std: StdInstant) -> Self {
        Self(std)
    }
}

impl From<Instant> for StdInstant {
    fn from(instant: Instant) -> Self {
        instant.0
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// # Panics
    ///
    /// If the result cannot be counted; see [`Instant::checked_add`].
    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// Zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        self.duration_since(earlier)
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    /// # Panics
    ///
    /// If the result cannot be counted; see [`Instant::checked_sub`].
    fn sub(self, duration: Duration) -> Self {
        Self(self.0 - duration)
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
