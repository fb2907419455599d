//! The processors of this process: how many there are, may be used, and are paid for.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::fs;
use std::path::{Path, PathBuf};

use crate::cpus::Cpus;

/// The processors that this process may use. `None`: it could not be read.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Processors {
    /// Those of the machine that are switched on.
    pub online: Option<usize>,
    /// Those on which this thread may run: its affinity.
    pub allowed: Option<usize>,
    /// How much of them the control group pays for.
    pub quota: Quota,
    /// What [`available_parallelism`](std::thread::available_parallelism) makes of these.
    pub available: usize,
}

/// How much processor time the control group of this process, or one above it, pays for.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Quota {
    /// As much as there is.
    Unlimited,
    /// As much as so many processors have: 1.5 is three halves of one.
    Processors(f64),
    /// It could not be read.
    Unknown,
}

impl Processors {
    pub(super) fn read() -> Processors {
        let cpus = Cpus::of_this_thread();
        let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
        Processors {
            online: online.as_deref().and_then(count_of_list),
            allowed: cpus.count(),
            quota: read_quota(),
            available: cpus.parallel(),
        }
    }
}

/// How many numbers a list such as `0-3,8` has.
fn count_of_list(list: &str) -> Option<usize> {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').map(count).try_fold(0_usize, |sum, one| sum.checked_add(one?))
}

fn read_quota() -> Quota {
    let (groups, mounts) =
        (fs::read_to_string("/proc/self/cgroup"), fs::read_to_string("/proc/self/mountinfo"));
    match (groups, mounts) {
        (Ok(groups), Ok(mounts)) => quota(&groups, &mounts, |path| fs::read_to_string(path).ok()),
        _ => Quota::Unknown,
    }
}

/// The least that a control group of this process, or one above it, pays for.
fn quota(groups: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Quota {
    let mut least = f64::INFINITY;
    for group in groups.lines() {
        let Some((version, path)) = Version::of(group) else { continue };
        let Some((mount, folder)) = folder_of(mounts, version, path) else { continue };
        // A limit holds for all groups below it.
        for folder in folder.ancestors().take_while(|folder| folder.starts_with(&mount)) {
            least = version.limit(folder, &read).map_or(least, |limit| least.min(limit));
        }
    }
    if least.is_finite() { Quota::Processors(least) } else { Quota::Unlimited }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The version and the path of a line of `/proc/self/cgroup`, if the group can have a quota.
    fn of(group: &str) -> Option<(Version, &str)> {
        let mut parts = group.splitn(3, ':').skip(1);
        match (parts.next()?, parts.next()?) {
            ("", path) => Some((Version::Two, path)),
            (controllers, path) => {
                controllers.split(',').any(|it| it == "cpu").then_some((Version::One, path))
            }
        }
    }

    fn limit(self, folder: &Path, read: impl Fn(&Path) -> Option<String>) -> Option<f64> {
        let text = match self {
            Version::Two => read(&folder.join("cpu.max"))?,
            Version::One => {
                let microseconds = read(&folder.join("cpu.cfs_quota_us"))?;
                format!("{} {}", microseconds.trim(), read(&folder.join("cpu.cfs_period_us"))?)
            }
        };
        let mut numbers = text.split_whitespace();
        // No limit is the word `max`, and in the first version −1.
        let (quota, period): (u64, u64) =
            (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        (period > 0).then(|| quota as f64 / period as f64)
    }
}

/// Where the groups of this version are mounted, and the folder of this one.
fn folder_of(mounts: &str, version: Version, group: &str) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|mount| {
        let (place, kind) = mount.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let (name, options) = (kind.next()?, kind.nth(1)?);
        let matches = match version {
            Version::Two => name == "cgroup2",
            Version::One => name == "cgroup" && options.split(',').any(|it| it == "cpu"),
        };
        // A container sees its own group as the root of what is mounted.
        let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
        matches.then(|| (PathBuf::from(point), Path::new(point).join(below)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS_TWO: &str = "\
        24 1 0:22 / /proc rw - proc proc rw\n\
        30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const MOUNTS_ONE: &str = "\
        33 32 0:29 /docker/7f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
        34 32 0:30 /docker/7f /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n";

    fn files(files: &'static [(&str, &str)]) -> impl Fn(&Path) -> Option<String> {
        |path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        }
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let read = files(&[
            ("/sys/fs/cgroup/a.slice/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/a.slice/b.service/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(quota("0::/a.slice/b.service\n", MOUNTS_TWO, read), Quota::Processors(1.5));
        let read = files(&[("/sys/fs/cgroup/a.slice/cpu.max", "max 100000\n")]);
        assert_eq!(quota("0::/a.slice\n", MOUNTS_TWO, read), Quota::Unlimited);
    }

    #[test]
    fn a_container_of_the_first_version_finds_its_group() {
        let groups = "5:memory:/docker/7f\n4:cpu,cpuacct:/docker/7f\n1:name=systemd:/\n";
        let limited = files(&[
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(quota(groups, MOUNTS_ONE, limited), Quota::Processors(0.5));
        let unlimited = files(&[
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(quota(groups, MOUNTS_ONE, unlimited), Quota::Unlimited);
    }

    #[test]
    fn what_makes_no_sense_is_no_quota_and_no_panic() {
        let nothing = files(&[("/sys/fs/cgroup/cpu.max", "100000 0\n")]);
        assert_eq!(quota("0::/\n", MOUNTS_TWO, nothing), Quota::Unlimited);
        for groups in ["", "0", "0:", "::", "\n\n"] {
            assert_eq!(quota(groups, "- - - -\n", |_| None), Quota::Unlimited);
        }
    }

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, count) in [("0\n", 1), ("0-3\n", 4), ("0-1,4,8-15\n", 11)] {
            assert_eq!(count_of_list(list), Some(count));
        }
        let whole = "0-18446744073709551614";
        for list in ["", "a", "3-1", "0-", "0-18446744073709551615", &format!("{whole},0")] {
            assert_eq!(count_of_list(list), None, "{list}");
        }
    }

    #[test]
    fn this_process_has_a_processor() {
        let found = Processors::read();
        assert!(found.allowed.is_some_and(|count| count >= 1), "{found:?}");
        assert!(Some(found.available) <= found.allowed, "{found:?}");
    }
}
