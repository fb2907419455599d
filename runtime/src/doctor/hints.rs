//! What is not well, each with what to do about it.

use std::fmt;

use super::{Diagnosis, Limit, Limits, Outcome, Uring};
use crate::config::{Driver, LIMITS};
use crate::driver::Bytes;

/// Something that is not well, and what to do about it. Its text is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hint {
    /// What is not well.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Hint {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Hint {
        Hint { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// Below, a server meets its limit before anything else: each connection is a descriptor.
const DESCRIPTORS_MIN: u64 = 4096;

/// Clocks that are read without a system call. Every turn reads the clock.
const FAST_CLOCKS: [&str; 4] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

/// In the order in which they should be seen to.
pub(super) fn of(diagnosis: &Diagnosis) -> Vec<Hint> {
    let limits = &diagnosis.limits;
    let mut hints = of_environment(diagnosis);
    // Who asks for epoll has no use for advice on io_uring.
    let wants_uring =
        !matches!(&diagnosis.runtime, Ok(info) if asked_for_epoll(info.driver(), diagnosis));
    if wants_uring {
        hints.extend(of_refusal(&diagnosis.uring));
        hints.extend(of_locked_memory(diagnosis));
    }
    hints.extend(limits.descriptors.and_then(of_descriptors));
    hints.extend(limits.backlog.and_then(of_backlog));
    hints.extend(diagnosis.kernel.clock.as_deref().and_then(of_clock));
    hints
}

fn asked_for_epoll(driver: Driver, diagnosis: &Diagnosis) -> bool {
    let refused = matches!(&diagnosis.runtime, Ok(info) if info.refusal().is_some());
    driver == Driver::Epoll && !refused
}

fn of_environment(diagnosis: &Diagnosis) -> Vec<Hint> {
    let hint = |variable: &super::Variable| match &variable.outcome {
        Outcome::Accepted => None,
        Outcome::Refused(error) => {
            Some(Hint::new(error.to_string(), "correct or unset it, no runtime is built till then"))
        }
        Outcome::Unknown => {
            Some(Hint::new(format!("{} is no setting", variable.name), "check how it is spelt"))
        }
    };
    diagnosis.environment.iter().filter_map(hint).collect()
}

fn of_refusal(uring: &Uring) -> Option<Hint> {
    let refusal = uring.ring_entries.as_ref().err()?;
    let (cause, remedy) = refusal.cause_and_remedy();
    Some(Hint::new(format!("no io_uring: {}: {cause}", refusal.what()), remedy))
}

/// Where no ring could be made at all, the refusal has said so.
fn of_locked_memory(diagnosis: &Diagnosis) -> Option<Hint> {
    let (limits, asked) = (&diagnosis.limits, diagnosis.uring.ring_entries_asked);
    let entries = *diagnosis.uring.ring_entries.as_ref().ok()?;
    let shards = diagnosis.shards as u64;
    let fit = limits.rings_that_fit();
    if entries < asked && limits.ring_locks == 0 {
        let what = format!("the kernel was short of memory: {entries} of {asked} ring entries");
        return Some(Hint::new(what, "give the machine or the container more memory".to_owned()));
    }
    let what = if entries < asked {
        format!("locked memory is short: the ring has {entries} entries instead of {asked}")
    } else if fit.is_some_and(|fit| fit < shards) {
        format!(
            "locked memory holds the rings of {} shards, and there would be {shards}",
            fit.unwrap_or(0)
        )
    } else {
        return None;
    };
    Some(Hint::new(what, memory_remedy(limits, shards)))
}

fn memory_remedy(limits: &Limits, shards: u64) -> String {
    let needed = limits.ring_locks.saturating_mul(shards);
    format!(
        "raise RLIMIT_MEMLOCK, which all processes of this user share, to {} or more \
         (ulimit -l {}, LimitMEMLOCK= in systemd, docker --ulimit memlock=)",
        Bytes(needed),
        needed.div_ceil(1024)
    )
}

fn of_descriptors(limit: Limit) -> Option<Hint> {
    if limit.soft >= DESCRIPTORS_MIN {
        return None;
    }
    let what = format!("{} descriptors may be open, one for each connection", limit.soft);
    let remedy = if limit.hard > limit.soft {
        let most = if limit.hard == u64::MAX { 1 << 20 } else { limit.hard };
        format!("raise RLIMIT_NOFILE up to {most} (ulimit -n {most}, LimitNOFILE= in systemd)")
    } else {
        "have root raise RLIMIT_NOFILE (LimitNOFILE= in systemd, docker --ulimit nofile=)".into()
    };
    Some(Hint::new(what, remedy))
}

fn of_backlog(somaxconn: u32) -> Option<Hint> {
    (somaxconn < LIMITS.backlog).then(|| {
        Hint::new(
            format!("{somaxconn} connections may wait before a listener"),
            format!("raise it (sysctl -w net.core.somaxconn={})", LIMITS.backlog.max(4096)),
        )
    })
}

fn of_clock(clock: &str) -> Option<Hint> {
    (!FAST_CLOCKS.contains(&clock)).then(|| {
        Hint::new(
            format!("the clock {clock} may cost a system call each time it is read"),
            "use tsc where it is stable (clocksource=tsc on the command line of the kernel)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_advised_as_far_as_the_process_may_go() {
        let advice = |soft, hard| of_descriptors(Limit { soft, hard }).map(|hint| hint.remedy);
        assert_eq!(advice(4096, 4096), None);
        assert!(advice(1024, 20_000).is_some_and(|text| text.contains("ulimit -n 20000")));
        assert!(advice(1024, 1024).is_some_and(|text| text.contains("root")));
        assert!(advice(1024, u64::MAX).is_some_and(|text| text.contains("1048576")));
    }

    #[test]
    fn a_short_backlog_and_a_slow_clock_are_told() {
        assert_eq!(of_backlog(LIMITS.backlog), None);
        assert!(of_backlog(128).is_some_and(|hint| hint.what.starts_with("128 ")));
        assert_eq!(of_clock("tsc"), None);
        assert!(of_clock("hpet").is_some_and(|hint| hint.to_string().contains("hpet")));
    }
}
