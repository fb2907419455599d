//! The time of one shard: the monotonic clock, which a test can stop and move by hand.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::wheel::NEVER;
use crate::sync::{Arc, AtomicU32, Ordering};
use crate::sys;

/// Set once any clock of this process is paused, so that programs that never pause one do not
/// even look for their shard's clock. From std, not from `crate::sync`: loom has no statics, and
/// a thread only needs to see what it stored itself.
static EVER_PAUSED: AtomicBool = AtomicBool::new(false);

/// A shard's clock. Starts real; [`pause`](Self::pause) stops it.
pub(crate) struct Clock {
    /// Nanoseconds count from here.
    origin: Instant,
    mode: Cell<Mode>,
    /// Holders of a [`ClockHold`].
    holds: Arc<AtomicU32>,
}

/// Keeps a paused clock from moving by itself, for as long as something is under way that needs
/// real time. May be dropped on any thread.
#[derive(Debug)]
pub(crate) struct ClockHold(Arc<AtomicU32>);

#[derive(Clone, Copy)]
enum Mode {
    /// The system's clock.
    Real,
    /// Stopped.
    Paused { at: Instant },
    /// Running again: it showed `clock` when the system's clock showed `real`.
    Resumed { clock: Instant, real: Instant },
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: sys::now(), mode: Cell::new(Mode::Real), holds: Arc::new(AtomicU32::new(0)) }
    }

    /// Whether any clock in this process was ever paused. If not, all clocks are the system's.
    pub(crate) fn any_ever_paused() -> bool {
        EVER_PAUSED.load(Ordering::Relaxed)
    }

    pub(crate) fn now(&self) -> Instant {
        match self.mode.get() {
            Mode::Real => sys::now(),
            Mode::Paused { at } => at,
            Mode::Resumed { clock, real } => clock + sys::now().saturating_duration_since(real),
        }
    }

    /// Nanoseconds since this clock was made.
    pub(crate) fn now_ns(&self) -> u64 {
        self.ns_of(self.now())
    }

    /// An instant as this clock counts: 0 before its origin, [`NEVER`] beyond what a `u64` holds.
    pub(crate) fn ns_of(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.origin);
        u64::try_from(since.as_nanos()).unwrap_or(NEVER)
    }

    pub(crate) fn is_paused(&self) -> bool {
        matches!(self.mode.get(), Mode::Paused { .. })
    }

    /// Stops the clock where it is. False if it stands already.
    #[must_use]
    pub(crate) fn pause(&self) -> bool {
        if self.is_paused() {
            return false;
        }
        let at = self.now();
        self.mode.set(Mode::Paused { at });
        EVER_PAUSED.store(true, Ordering::Relaxed);
        true
    }

    /// Lets the clock run on from where it stands. False if it runs already.
    #[must_use]
    pub(crate) fn resume(&self) -> bool {
        let Mode::Paused { at } = self.mode.get() else { return false };
        self.mode.set(Mode::Resumed { clock: at, real: sys::now() });
        true
    }

    /// Moves a paused clock forward. False if it runs. Panics if the time to come has no name.
    #[must_use]
    #[track_caller]
    pub(crate) fn advance(&self, duration: Duration) -> bool {
        let Mode::Paused { at } = self.mode.get() else { return false };
        let at = at.checked_add(duration).expect("the clock cannot be advanced that far");
        self.mode.set(Mode::Paused { at });
        true
    }

    /// Moves a paused clock on to `deadline_ns`, because nothing can happen on its shard before
    /// that. False, and the clock stays, if it runs or is held.
    #[must_use]
    pub(crate) fn auto_advance_to(&self, deadline_ns: u64) -> bool {
        let Mode::Paused { at } = self.mode.get() else { return false };
        if self.is_held() || deadline_ns == NEVER {
            return false;
        }
        let deadline = self.origin + Duration::from_nanos(deadline_ns);
        self.mode.set(Mode::Paused { at: at.max(deadline) });
        true
    }

    /// Keeps [`auto_advance_to`](Self::auto_advance_to) from moving the clock until the hold is
    /// dropped.
    pub(crate) fn hold(&self) -> ClockHold {
        self.holds.fetch_add(1, Ordering::Relaxed);
        ClockHold(self.holds.clone())
    }

    /// Whether work is under way that needs real time.
    pub(crate) fn is_held(&self) -> bool {
        // Relaxed: a hold that goes on another thread wakes its shard by other means.
        self.holds.load(Ordering::Relaxed) != 0
    }
}

impl Drop for ClockHold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
