//! Time stamps for measuring, as cheap as the machine has them. What runs by a clock, such as
//! timers, does not use them: they cannot be paused, and their unit is known only roughly.
//!
//! Where the processor's counter runs evenly, and the kernel itself tells the time by it, a stamp
//! is one instruction of some 10 to 20 ns. Elsewhere it is a call of `clock_gettime`, which may be
//! a system call. How long a tick is is found out once, by comparing the two clocks over a moment.

use std::sync::OnceLock;
use std::time::Duration;

use crate::sim;
use crate::sys::monotonic_ns;

/// Where stamps come from. They compare between the threads, and processes, of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ticks {
    /// The processor's counter.
    Counter,
    /// The nanoseconds of the monotonic clock.
    Nanoseconds,
}

impl Ticks {
    /// What this process uses.
    pub(crate) fn chosen() -> Ticks {
        if sim::is_here() {
            return Ticks::Nanoseconds;
        }
        static CHOSEN: OnceLock<Ticks> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let even = counter::is_invariant() && kernel_trusts_the_counter();
            let chosen = if even { Ticks::Counter } else { Ticks::Nanoseconds };
            // Now, so that a while has passed when a length is first asked for.
            start();
            chosen
        })
    }

    /// As a number, for another process to read.
    pub(crate) fn number(self) -> u64 {
        match self {
            Ticks::Counter => 1,
            Ticks::Nanoseconds => 2,
        }
    }

    /// The other way. `None` for what this program cannot read.
    pub(crate) fn numbered(number: u64) -> Option<Ticks> {
        match number {
            1 if counter::is_invariant() => Some(Ticks::Counter),
            2 => Some(Ticks::Nanoseconds),
            _ => None,
        }
    }

    #[inline(always)]
    pub(crate) fn now(self) -> u64 {
        match self {
            Ticks::Counter => counter::read(),
            Ticks::Nanoseconds => nanoseconds(),
        }
    }

    /// As [`now`](Ticks::now), in its place among the loads and stores around it.
    pub(crate) fn now_in_order(self) -> u64 {
        match self {
            Ticks::Counter => counter::read_in_order(),
            Ticks::Nanoseconds => nanoseconds(),
        }
    }

    /// So many ticks as a time.
    pub(crate) fn duration(self, ticks: u64) -> Duration {
        Duration::from_nanos((ticks as f64 * self.tick_ns()) as u64)
    }

    /// How many ticks a time has.
    pub(crate) fn count(self, duration: Duration) -> u64 {
        (duration.as_nanos() as f64 / self.tick_ns()) as u64
    }

    /// How long a tick is, in nanoseconds. Always the same, or figures would seem to go back.
    fn tick_ns(self) -> f64 {
        static COUNTER_NS: OnceLock<f64> = OnceLock::new();
        match self {
            Ticks::Counter => *COUNTER_NS.get_or_init(compare),
            Ticks::Nanoseconds => 1.0,
        }
    }
}

/// Those of the monotonic clock, or of the simulation that this thread lives in.
fn nanoseconds() -> u64 {
    sim::nanoseconds().unwrap_or_else(monotonic_ns)
}

/// Both clocks when this process first asked.
fn start() -> &'static Pair {
    static START: OnceLock<Pair> = OnceLock::new();
    START.get_or_init(Pair::read)
}

/// How many nanoseconds a tick of the counter has.
fn compare() -> f64 {
    let start = start();
    loop {
        let now = Pair::read();
        let passed_ns = now.ns.saturating_sub(start.ns);
        if passed_ns >= COMPARED_NS_MIN {
            return passed_ns as f64 / now.ticks.saturating_sub(start.ticks).max(1) as f64;
        }
    }
}

/// The two clocks are compared over this time at least. They are read within some 30 ns of each
/// other, so that it makes for a thousandth of error; and only a program's first 100 µs can wait.
const COMPARED_NS_MIN: u64 = 100_000;

/// Both clocks at one moment.
struct Pair {
    ticks: u64,
    ns: u64,
}

impl Pair {
    fn read() -> Pair {
        let mut closest = (u64::MAX, Pair { ticks: 0, ns: 0 });
        // An interruption between the two shows as a gap; one of a few tries has none.
        for _ in 0..4 {
            let before = counter::read();
            let ns = monotonic_ns();
            let gap = counter::read().wrapping_sub(before);
            if gap < closest.0 {
                closest = (gap, Pair { ticks: before + gap / 2, ns });
            }
        }
        closest.1
    }
}

/// Whether the kernel takes the time from the counter. It does not where it has found it uneven.
fn kernel_trusts_the_counter() -> bool {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = std::fs::read_to_string(path).unwrap_or_default();
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page"].contains(&source.trim())
}

#[cfg(target_arch = "x86_64")]
mod counter {
    use std::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};

    /// Whether it runs at one rate, whatever the processor does.
    #[allow(unused_unsafe, reason = "no `unsafe` to newer versions than 1.85")]
    pub(super) fn is_invariant() -> bool {
        const LARGEST: u32 = 0x8000_0000;
        const POWER: u32 = 0x8000_0007;
        const INVARIANT_TSC: u32 = 1 << 8;
        // SAFETY: every processor of this kind has the instruction and its first leaves.
        let largest = unsafe { __cpuid(LARGEST) }.eax;
        if largest < POWER {
            return false;
        }
        // SAFETY: the leaf is there.
        unsafe { __cpuid(POWER) }.edx & INVARIANT_TSC != 0
    }

    #[inline(always)]
    pub(super) fn read() -> u64 {
        // SAFETY: every processor of this kind has the instruction.
        unsafe { _rdtsc() }
    }

    pub(super) fn read_in_order() -> u64 {
        // SAFETY: every processor of this kind has the instruction.
        unsafe { _mm_lfence() };
        let now = read();
        // SAFETY: as above.
        unsafe { _mm_lfence() };
        now
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod counter {
    pub(super) fn is_invariant() -> bool {
        false
    }

    pub(super) fn read() -> u64 {
        0
    }

    pub(super) fn read_in_order() -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn ticks_tell_the_time() {
        for ticks in [Ticks::chosen(), Ticks::Nanoseconds] {
            let (began, stamp) = (Instant::now(), ticks.now());
            std::thread::sleep(Duration::from_millis(20));
            let (passed, least) = (ticks.duration(ticks.now() - stamp), Duration::from_millis(20));
            let most = began.elapsed();
            // Two reads of two clocks, and the error of the comparison.
            let slack = Duration::from_micros(100);
            assert!(passed + slack >= least && passed <= most + slack, "{ticks:?}: {passed:?}");
        }
    }

    #[test]
    fn lengths_go_both_ways() {
        for ticks in [Ticks::chosen(), Ticks::Nanoseconds] {
            for length in [Duration::ZERO, Duration::from_millis(1), Duration::from_secs(3600)] {
                let back = ticks.duration(ticks.count(length)).as_secs_f64();
                assert!((back - length.as_secs_f64()).abs() <= length.as_secs_f64() / 100.0);
            }
        }
    }

    #[test]
    fn sources_keep_their_numbers() {
        assert_eq!(Ticks::numbered(Ticks::Nanoseconds.number()), Some(Ticks::Nanoseconds));
        assert_eq!(Ticks::numbered(Ticks::chosen().number()), Some(Ticks::chosen()));
        assert_eq!([0, 3, u64::MAX].map(Ticks::numbered), [None; 3]);
    }
}
