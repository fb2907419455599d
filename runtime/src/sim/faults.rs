//! What may go wrong in a simulation, and how often.

use std::time::Duration;

/// What a simulation may do to a program, and how often.
///
/// Each fault is drawn from the seed, *one in so many times*; 0 is never. Whatever is set here, the
/// order in which shards run, and in which what has come is handed out, is drawn anew for each
/// seed. Everything that is simulated is something that a real kernel and network may do.
///
/// # Examples
///
/// ```
/// use annulus_runtime::simulation::Faults;
/// use std::time::Duration;
///
/// let faults = Faults::none().latency(Duration::ZERO, Duration::from_millis(50)).resets(500);
/// assert_ne!(format!("{faults:?}"), format!("{:?}", Faults::none()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "faults happen in the simulation that they are given to"]
pub struct Faults {
    pub(crate) latency_min: Duration,
    pub(crate) latency_max: Duration,
    pub(crate) short_io: u64,
    pub(crate) refusals: u64,
    pub(crate) resets: u64,
    pub(crate) late_events: u64,
    pub(crate) interruptions: u64,
    pub(crate) ring_failures: u64,
    pub(crate) tight_limits: u64,
}

impl Faults {
    /// Nothing goes wrong and everything arrives at once.
    pub fn none() -> Faults {
        Faults {
            latency_min: Duration::ZERO,
            latency_max: Duration::ZERO,
            short_io: 0,
            refusals: 0,
            resets: 0,
            late_events: 0,
            interruptions: 0,
            ring_failures: 0,
            tight_limits: 0,
        }
    }

    /// What every network does and every program must bear, and no failure: latencies of 10 µs to
    /// 2 ms, messages that arrive in pieces, writes that are taken in part, calls that a signal
    /// interrupts, limits of the runtime that are tighter than usual. The default.
    pub fn ordinary() -> Faults {
        Faults {
            latency_min: Duration::from_micros(10),
            latency_max: Duration::from_millis(2),
            short_io: 4,
            late_events: 8,
            interruptions: 64,
            ring_failures: 64,
            tight_limits: 2,
            ..Faults::none()
        }
    }

    /// As [`ordinary`](Faults::ordinary), and worse: latencies up to 200 ms, connections that are
    /// refused or reset. Programs are expected to report errors, and to lose nothing else.
    pub fn harsh() -> Faults {
        Faults {
            latency_min: Duration::ZERO,
            latency_max: Duration::from_millis(200),
            short_io: 2,
            refusals: 16,
            resets: 128,
            late_events: 2,
            interruptions: 8,
            ring_failures: 8,
            tight_limits: 1,
        }
    }

    /// How long bytes, connections and their ends are on their way, each for itself.
    ///
    /// # Panics
    ///
    /// If the shortest time is longer than the longest.
    pub fn latency(mut self, shortest: Duration, longest: Duration) -> Faults {
        assert!(shortest <= longest, "a latency from {shortest:?} to {longest:?} is none");
        (self.latency_min, self.latency_max) = (shortest, longest);
        self
    }

    /// Messages arrive in pieces, and writes are taken in part.
    pub fn short_io(mut self, one_in: u64) -> Faults {
        self.short_io = one_in;
        self
    }

    /// A connect is refused though somebody listens.
    pub fn refusals(mut self, one_in: u64) -> Faults {
        self.refusals = one_in;
        self
    }

    /// A connection is reset, for both ends, at one of its sends.
    pub fn resets(mut self, one_in: u64) -> Faults {
        self.resets = one_in;
        self
    }

    /// What has come is told later than it could be.
    pub fn late_events(mut self, one_in: u64) -> Faults {
        self.late_events = one_in;
        self
    }

    /// A wait for events ends without any, as by a signal.
    ///
    /// # Panics
    ///
    /// If it is every wait: the clock of a simulation moves while shards wait.
    #[track_caller]
    pub fn interruptions(mut self, one_in: u64) -> Faults {
        assert!(one_in != 1, "time stands still where every wait is interrupted: take 2, or more");
        self.interruptions = one_in;
        self
    }

    /// The ring answers that it is busy or short of memory, its requests of many answers end
    /// early, and its queues overflow.
    pub fn ring_failures(mut self, one_in: u64) -> Faults {
        self.ring_failures = one_in;
        self
    }

    /// A run has limits of the runtime that are tighter than usual, drawn for the whole run: a pool
    /// of few receive buffers, a small ring, few polls between two looks at the kernel.
    pub fn tight_limits(mut self, one_in: u64) -> Faults {
        self.tight_limits = one_in;
        self
    }
}

impl Default for Faults {
    /// [`Faults::ordinary`].
    fn default() -> Faults {
        Faults::ordinary()
    }
}
