//! What the runtime uses of io_uring: since when Linux has it, and what happens without it.

use super::{MULTISHOT_ACCEPT, MULTISHOT_RECEIVE, NoRing, Ring, TRIAL, Trial};
use super::{diagnose, make_ring, try_messages};
use crate::config::Config;
use crate::driver::refusal::{Cause, Refusal, Stage};

/// Something that io_uring has in some kernels and that the runtime uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Feature {
    /// Its name in the manual pages, or what it is.
    pub name: &'static str,
    /// The first release of Linux that has it.
    pub since: &'static str,
    /// What happens without it.
    pub without: &'static str,
    /// Whether it was found here. `None`: io_uring was refused before that could be tried.
    pub present: Option<bool>,
}

/// What is not there without these: io_uring.
const WITHOUT_NEEDED: &str = "epoll";

/// All of it is needed, in the order in which it is tried.
const NEEDED: [(Stage, &str, &str); 6] = [
    (Stage::Setup, "SINGLE_ISSUER, DEFER_TASKRUN, TASKRUN_FLAG, SUBMIT_ALL, CQSIZE", "6.1"),
    (Stage::Features, "NODROP, EXT_ARG, CQE_SKIP, FAST_POLL", "5.17"),
    (Stage::Register, "a ring of provided buffers", "5.19"),
    (Stage::Enter, "io_uring_enter", "5.1"),
    (MULTISHOT_RECEIVE, "multishot receive", "6.0"),
    (MULTISHOT_ACCEPT, "multishot accept", "5.19"),
];

/// Name, since when, what happens without it, and how to tell it of a ring that works.
type Optional = (&'static str, &'static str, &'static str, fn(&Findings) -> bool);

/// What is used where it is there.
const OPTIONAL: [Optional; 6] = [
    ("sends that report failures only", "5.17", "each send has a completion", |found| {
        found.trial.quiet_sends
    }),
    ("SEND_ZC", "6.0", "zero-copy sends are plain sends", |found| found.trial.zero_copy_sends),
    ("multishot receive of messages", "6.0", "datagrams are received by system calls", |found| {
        found.messages
    }),
    ("NO_SQARRAY", "6.6", "the ring has one more array", |found| found.without_array),
    ("NO_IOWAIT", "6.15", "an idle shard shows as I/O wait", |found| found.no_iowait),
    ("multishot receive with a bound", "6.17", "a burst may pass a stream's bound", |found| {
        found.trial.bounded_receives
    }),
];

/// What a ring that works was found to have.
struct Findings {
    trial: Trial,
    messages: bool,
    without_array: bool,
    no_iowait: bool,
}

/// What a ring of this process would be.
pub(crate) struct Survey {
    /// How many entries it would have: fewer than asked for where locked memory is short.
    pub(crate) ring_entries: Result<u32, Refusal>,
    pub(crate) needed: Vec<Feature>,
    pub(crate) optional: Vec<Feature>,
}

/// Makes a ring as a runtime would, looks at it, and closes it.
pub(crate) fn survey(config: &Config) -> Survey {
    let ring = make_ring(config).map_err(|no_ring| match no_ring {
        NoRing::Refused(refusal) => refusal,
        NoRing::Io(error) => diagnose(Stage::Setup, &error, config),
    });
    let trial = TRIAL.get().and_then(|trial| trial.as_ref().ok());
    let (ring_entries, findings) = match (ring, trial) {
        (Ok(ring), Some(trial)) => (Ok(ring.ring.params().sq_entries()), Some(look(ring, *trial))),
        (Ok(ring), None) => (Ok(ring.ring.params().sq_entries()), None),
        (Err(refusal), _) => (Err(refusal), None),
    };
    let needed = needed(ring_entries.as_ref().err());
    let optional = OPTIONAL.map(|(name, since, without, tell)| {
        let present = findings.as_ref().map(tell);
        Feature { name, since, without, present }
    });
    Survey { ring_entries, needed, optional: optional.into() }
}

fn look(mut ring: Ring, trial: Trial) -> Findings {
    Findings {
        trial,
        messages: try_messages(&mut ring).unwrap_or(false),
        without_array: ring.without_array,
        no_iowait: ring.ring.params().is_feature_no_iowait(),
    }
}

/// What was reached before a refusal is there; what comes behind it is not known.
fn needed(refusal: Option<&Refusal>) -> Vec<Feature> {
    let reached = refusal.map_or(NEEDED.len(), |refusal| {
        NEEDED.iter().position(|row| row.0 == refusal.stage()).unwrap_or(0)
    });
    let is_missing = refusal.is_some_and(|refusal| {
        matches!(refusal.cause(), Cause::KernelTooOld { .. } | Cause::NotBuiltIn)
    });
    let feature = |(at, (_, name, since)): (usize, (Stage, &'static str, &'static str))| {
        let present = match at {
            at if at < reached => Some(true),
            at if at == reached && is_missing => Some(false),
            _ => None,
        };
        Feature { name, since, without: WITHOUT_NEEDED, present }
    };
    NEEDED.into_iter().enumerate().map(feature).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_refusal_came_behind_is_there_and_the_rest_is_not_known() {
        let refusal = Refusal::diagnose(Stage::Register, libc::EIO, 0);
        let present: Vec<_> = needed(Some(&refusal)).iter().map(|row| row.present).collect();
        assert_eq!(present, [Some(true), Some(true), None, None, None, None]);
        assert!(needed(None).iter().all(|row| row.present == Some(true)));
    }

    #[test]
    fn every_step_that_can_be_refused_has_its_row() {
        for stage in [Stage::Setup, Stage::Features, Stage::Register, Stage::Enter] {
            assert!(NEEDED.iter().any(|row| row.0 == stage), "{stage:?}");
        }
    }
}
