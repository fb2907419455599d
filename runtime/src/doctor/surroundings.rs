//! What surrounds this process: the kernel, its rules and its limits, as far as they can be read.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::str::FromStr;

use crate::config::{Config, ConfigError, VARIABLES};
use crate::driver;
use crate::sys::{self, Resource};

/// The kernel that runs here. `None`: it could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kernel {
    /// Its release, such as `6.12.8-amd64`. Only to be shown: what it can do is tried out.
    pub release: Option<String>,
    /// The architecture that this program was built for.
    pub architecture: &'static str,
    /// Where the kernel takes the time from.
    pub clock: Option<String>,
}

/// What may forbid io_uring. `None`: it could not be read, or the kernel does not have it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rules {
    /// The sysctl `kernel.io_uring_disabled` (since Linux 6.6): 0 lets everybody, 1 those of a
    /// group and the privileged, 2 nobody.
    pub io_uring_disabled: Option<u8>,
    /// The sysctl `kernel.io_uring_group`: who is let through at 1. Minus one is no group.
    pub io_uring_group: Option<i64>,
    /// Of this thread: 0 no seccomp, 1 strict, 2 a filter.
    pub seccomp: Option<u8>,
    /// The security modules of the kernel, separated by commas.
    pub security_modules: Option<String>,
}

/// A soft and a hard limit. `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limit {
    /// What holds.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// The limits of this process and this system. `None`: it could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Open descriptors of this process (RLIMIT_NOFILE).
    pub descriptors: Option<Limit>,
    /// Open descriptors of all processes (the sysctl `fs.file-max`).
    pub descriptors_of_system: Option<u64>,
    /// Locked memory of all processes of this user (RLIMIT_MEMLOCK), in bytes.
    pub locked_memory: Option<Limit>,
    /// Whether this process may lock memory without limit (CAP_IPC_LOCK).
    pub locks_without_limit: Option<bool>,
    /// What the ring of one shard locks, in bytes. Nothing from Linux 5.12 to 6.13.
    pub ring_locks: u64,
    /// The sysctl `net.core.somaxconn`: how many connections may wait before a listener.
    pub backlog: Option<u32>,
}

/// A variable of the environment that is set and named as settings of this runtime are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// What it is set to.
    pub value: OsString,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// What becomes of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It overrides what programs ask for.
    Accepted,
    /// No runtime is built while it is set like this.
    Refused(ConfigError),
    /// No setting has this name.
    Unknown,
}

impl Kernel {
    pub(super) fn of(around: &driver::Surroundings) -> Kernel {
        const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        Kernel {
            release: around.release.clone(),
            architecture: env::consts::ARCH,
            clock: read(CLOCK),
        }
    }
}

impl Rules {
    pub(super) fn of(around: &driver::Surroundings) -> Rules {
        Rules {
            io_uring_disabled: around.sysctl,
            io_uring_group: around.sysctl_group,
            seccomp: around.seccomp,
            security_modules: read("/sys/kernel/security/lsm"),
        }
    }
}

impl Limits {
    pub(super) fn of(around: &driver::Surroundings, config: &Config) -> Limits {
        let limit = |resource| {
            let (soft, hard) = sys::resource_limit(resource).ok()?;
            Some(Limit { soft, hard })
        };
        Limits {
            descriptors: limit(Resource::Descriptors),
            descriptors_of_system: read("/proc/sys/fs/file-max"),
            locked_memory: limit(Resource::LockedMemory),
            locks_without_limit: around.is_exempt_from_memlock(),
            ring_locks: match around.counts_rings() {
                Some(false) => 0,
                _ => config.locked_bytes(),
            },
            backlog: read("/proc/sys/net/core/somaxconn"),
        }
    }

    /// How many shards of this user find memory for a whole ring. `None`: as many as there are, or
    /// it could not be read.
    #[must_use]
    pub fn rings_that_fit(&self) -> Option<u64> {
        let limit = self.locked_memory?.soft;
        let is_bound = self.locks_without_limit != Some(true) && limit != u64::MAX;
        if is_bound { limit.checked_div(self.ring_locks) } else { None }
    }
}

/// The variables that are set, and the settings with those that can be used.
pub(super) fn environment() -> (Vec<Variable>, Config) {
    let mut variables: Vec<_> =
        env::vars_os().filter_map(|(name, value)| judge(name.into_string().ok()?, value)).collect();
    variables.sort_by(|one, other| one.name.cmp(&other.name));
    let accepted = |name: &str| {
        let found = variables.iter().find(|it| it.name == name && it.outcome == Outcome::Accepted);
        found.map(|it| it.value.clone())
    };
    // Each was accepted alone, so that nothing is left that could be refused.
    let config = Config::default().with_variables(accepted).unwrap_or_default();
    (variables, config)
}

fn judge(name: String, value: OsString) -> Option<Variable> {
    if !name.starts_with("ANNULUS_") {
        return None;
    }
    let alone = |it: &str| (it == name).then(|| value.clone());
    let outcome = match Config::default().with_variables(alone) {
        Err(error) => Outcome::Refused(error),
        Ok(_) if VARIABLES.contains(&name.as_str()) => Outcome::Accepted,
        Ok(_) => Outcome::Unknown,
    };
    Some(Variable { name, value, outcome })
}

fn read<T: FromStr>(path: &str) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_told_apart() {
        let outcome = |name: &str, value: &str| {
            judge(name.to_owned(), value.into()).map(|variable| variable.outcome)
        };
        assert_eq!(outcome("PATH", "/bin"), None);
        assert_eq!(outcome("ANNULUS_DRIVER", "epoll"), Some(Outcome::Accepted));
        assert_eq!(outcome("ANNULUS_DRIVR", "epoll"), Some(Outcome::Unknown));
        let refused = outcome("ANNULUS_SPIN_US", "1ms");
        assert!(matches!(refused, Some(Outcome::Refused(_))), "{refused:?}");
    }

    #[test]
    fn locked_memory_bounds_rings_unless_the_process_is_exempt() {
        let limits = Limits {
            descriptors: None,
            descriptors_of_system: None,
            locked_memory: Some(Limit { soft: 8 << 20, hard: u64::MAX }),
            locks_without_limit: Some(false),
            ring_locks: 100 << 10,
            backlog: None,
        };
        assert_eq!(limits.rings_that_fit(), Some(81));
        let unknown = Limits { locks_without_limit: None, ..limits.clone() };
        assert_eq!(unknown.rings_that_fit(), Some(81));
        let exempt = Limits { locks_without_limit: Some(true), ..limits.clone() };
        assert_eq!(exempt.rings_that_fit(), None);
        let old = Limits { ring_locks: 0, ..limits.clone() };
        assert_eq!(old.rings_that_fit(), None);
        let endless = Some(Limit { soft: u64::MAX, hard: u64::MAX });
        assert_eq!(Limits { locked_memory: endless, ..limits }.rings_that_fit(), None);
    }
}
