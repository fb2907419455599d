//! A refusal says at which step io_uring was refused, why, and what to do about it.
//!
//! An errno alone misleads: containers answer EPERM or ENOSYS on kernels that have io_uring, and
//! EINVAL comes from old kernels and from filters alike. So the cause is read from what surrounds
//! the process, and where that leaves more than one it is not guessed. Read when io_uring has been
//! refused, never to decide whether to try it.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::fmt;
use std::fs;
use std::io;

use crate::sys::{self, Resource};

/// Why io_uring is not used: the step that failed, its errno, and the cause behind it.
///
/// The text names the cause and the remedy; [`Refusal::summary`] is the short form for a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    stage: Stage,
    /// Zero where no system call failed, but what it offered was not enough.
    errno: i32,
    cause: Cause,
}

/// The step at which io_uring was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// `io_uring_setup`, with the real sizes and flags.
    Setup,
    /// What the new ring says of itself.
    Features,
    /// `io_uring_enter`.
    Enter,
    /// `io_uring_register`.
    Register,
    /// A trial of the operation with this name.
    Probe(&'static str),
}

/// What is behind a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The sysctl `kernel.io_uring_disabled` has this value.
    Sysctl(u8),
    /// A seccomp filter, as container runtimes set them.
    Seccomp,
    /// SELinux, AppArmor or another security module of the kernel.
    SecurityModule,
    /// The limit on locked memory, which all processes of a user share. In bytes.
    MemlockLimit {
        /// RLIMIT_MEMLOCK of this process.
        limit: u64,
        /// What the ring needs.
        needed: u64,
    },
    /// The kernel, or the memory cgroup, had no memory.
    OutOfMemory,
    /// The process, or the system, has no descriptor left.
    OutOfDescriptors,
    /// The kernel has not yet what the io_uring driver needs.
    KernelTooOld {
        /// The release of the running kernel.
        release: String,
        /// What it lacks, and since when Linux has it.
        missing: &'static str,
    },
    /// The kernel was built without io_uring.
    NotBuiltIn,
    /// What can be read here leaves more than one cause, or none.
    Unknown {
        /// Those it leaves.
        suspects: Option<&'static str>,
    },
}

impl Refusal {
    /// Finds the cause behind an errno in what surrounds this process.
    ///
    /// `ring_bytes_needed` is what the ring counts against the limit on locked
    /// memory. An `errno` of zero means that no call failed and yet something is missing.
    #[must_use]
    pub(crate) fn diagnose(stage: Stage, errno: i32, ring_bytes_needed: u64) -> Self {
        Self::judge(stage, errno, ring_bytes_needed, &Surroundings::read())
    }

    fn judge(stage: Stage, errno: i32, ring_bytes_needed: u64, around: &Surroundings) -> Self {
        let cause = match errno {
            libc::EPERM => around.cause_of_eperm(stage),
            libc::EACCES => around.cause_of_eacces(),
            libc::ENOSYS => around.cause_of_enosys(),
            libc::ENOMEM => around.cause_of_enomem(ring_bytes_needed),
            libc::EINVAL | libc::EOPNOTSUPP | 0 => around.cause_of_einval(stage),
            libc::EMFILE | libc::ENFILE => Cause::OutOfDescriptors,
            _ => Cause::Unknown { suspects: None },
        };
        Self { stage, errno, cause }
    }

    /// The step that failed.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// What is behind it.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// The errno, if a system call failed.
    pub fn raw_os_error(&self) -> Option<i32> {
        (self.errno != 0).then_some(self.errno)
    }

    /// The kind that an [`io::Error`] made from this has.
    pub fn kind(&self) -> io::ErrorKind {
        match self.errno {
            libc::EPERM | libc::EACCES => io::ErrorKind::PermissionDenied,
            libc::ENOMEM => io::ErrorKind::OutOfMemory,
            libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | 0 => io::ErrorKind::Unsupported,
            errno => io::Error::from_raw_os_error(errno).kind(),
        }
    }

    /// The refusal in one line, without the remedy, for a notice or a log:
    /// `io_uring_setup was refused with EPERM (seccomp filter)`.
    pub fn summary(&self) -> String {
        let cause = match &self.cause {
            Cause::Sysctl(value) => format!("kernel.io_uring_disabled is {value}"),
            Cause::Seccomp => "seccomp filter".to_owned(),
            Cause::SecurityModule => "security module".to_owned(),
            Cause::MemlockLimit { limit, needed } => {
                format!("locked memory limited to {}, {} needed", Bytes(*limit), Bytes(*needed))
            }
            Cause::OutOfMemory => "out of memory".to_owned(),
            Cause::OutOfDescriptors => "out of descriptors".to_owned(),
            Cause::KernelTooOld { release, missing } => format!("Linux {release} lacks {missing}"),
            Cause::NotBuiltIn => "kernel built without io_uring".to_owned(),
            Cause::Unknown { suspects: Some(suspects) } => format!("cause unclear: {suspects}"),
            Cause::Unknown { suspects: None } => "cause unclear".to_owned(),
        };
        format!("{} ({cause})", self.what())
    }

    /// `io_uring_setup was refused with EPERM`
    pub(crate) fn what(&self) -> String {
        let what = match self.stage {
            Stage::Setup | Stage::Features => "io_uring_setup",
            Stage::Enter => "io_uring_enter",
            Stage::Register => "io_uring_register",
            Stage::Probe(operation) => operation,
        };
        match (self.errno, self.stage) {
            (0, Stage::Probe(operation)) => format!("io_uring lacks {operation}"),
            // The call went well; its errno, if there is one, is the driver's own.
            (0, _) | (_, Stage::Features) => format!("{what} offers too little"),
            (errno, Stage::Probe(_)) => {
                format!("{what} on io_uring was refused with {}", Errno(errno))
            }
            (errno, _) => format!("{what} was refused with {}", Errno(errno)),
        }
    }

    /// The cause as a clause, and what to do about it as another.
    pub(crate) fn cause_and_remedy(&self) -> (String, &'static str) {
        match &self.cause {
            Cause::Sysctl(1) => (
                "the sysctl kernel.io_uring_disabled is 1, and this process is neither \
                 privileged nor in the group that kernel.io_uring_group names"
                    .to_owned(),
                "join that group, set the sysctl to 0",
            ),
            Cause::Sysctl(value) => (
                format!("the sysctl kernel.io_uring_disabled is {value} and forbids it to all"),
                "set it to 0 (sysctl -w kernel.io_uring_disabled=0)",
            ),
            Cause::Seccomp => (
                "a seccomp filter forbids it, as containers have by default".to_owned(),
                "run with a profile that allows io_uring_setup, io_uring_enter and \
                 io_uring_register (docker: --security-opt seccomp=PROFILE)",
            ),
            Cause::SecurityModule => (
                "a security module of the kernel (SELinux, AppArmor or another) forbids it"
                    .to_owned(),
                "allow io_uring in its policy",
            ),
            Cause::MemlockLimit { limit, needed } => (
                format!(
                    "the ring needs {} of locked memory, and all processes of this user \
                     together may have {} (RLIMIT_MEMLOCK)",
                    Bytes(*needed),
                    Bytes(*limit)
                ),
                "raise the limit (ulimit -l, LimitMEMLOCK= in systemd, docker --ulimit memlock=)",
            ),
            Cause::OutOfMemory => (
                "the kernel had no memory for the rings, or the memory cgroup allows no more"
                    .to_owned(),
                "give it more, ask for smaller rings (ANNULUS_RING_ENTRIES)",
            ),
            Cause::OutOfDescriptors if self.errno == libc::ENFILE => {
                ("the system has no descriptor left".to_owned(), "raise the sysctl fs.file-max")
            }
            Cause::OutOfDescriptors => (
                "this process has no descriptor left".to_owned(),
                "raise RLIMIT_NOFILE (ulimit -n)",
            ),
            Cause::KernelTooOld { release, missing } if release.starts_with(GVISOR_RELEASE) => (
                format!("Linux {release}, which is also what gVisor reports, lacks {missing}"),
                "run on Linux 6.1 or newer, outside such a sandbox",
            ),
            Cause::KernelTooOld { release, missing } => {
                (format!("Linux {release} lacks {missing}"), "run on Linux 6.1 or newer")
            }
            Cause::NotBuiltIn => (
                "this kernel was built without io_uring".to_owned(),
                "run on one with CONFIG_IO_URING=y",
            ),
            Cause::Unknown { suspects: Some(suspects) } => {
                (format!("the cause cannot be told from here; it may be {suspects}"), "look there")
            }
            Cause::Unknown { suspects: None } => {
                ("the cause cannot be told from here".to_owned(), "trace it with strace")
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cause, remedy) = self.cause_and_remedy();
        write!(f, "{}: {cause}; {remedy}", self.what())?;
        // epoll needs descriptors, too.
        match self.cause {
            Cause::OutOfDescriptors => Ok(()),
            _ => f.write_str(", or choose epoll with ANNULUS_DRIVER=epoll"),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    /// The refusal stays inside, with its text and errno.
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.kind(), refusal)
    }
}

/// The release that gVisor reports whatever it runs on.
const GVISOR_RELEASE: &str = "4.4.0";

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_ADMIN: u32 = 21;

/// What surrounds this process and may explain a refusal. `None`: it could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// `kernel.osrelease`, such as `6.1.0-18-amd64`.
    pub(crate) release: Option<String>,
    /// `kernel.io_uring_disabled`, since Linux 6.6.
    pub(crate) sysctl: Option<u8>,
    /// `kernel.io_uring_group`; −1 is no group.
    pub(crate) sysctl_group: Option<i64>,
    /// 0 no seccomp, 1 strict, 2 a filter.
    pub(crate) seccomp: Option<u8>,
    /// The file system group, which the kernel asks for, and the supplementary ones.
    groups: Option<Vec<i64>>,
    /// The effective capabilities, one bit each.
    capabilities: Option<u64>,
    /// In a user namespace capabilities do not reach the checks of io_uring.
    in_user_namespace: Option<bool>,
    /// RLIMIT_MEMLOCK in bytes; `u64::MAX` is no limit.
    memlock_limit: Option<u64>,
}

impl Surroundings {
    pub(crate) fn read() -> Self {
        let read = |path| fs::read_to_string(path).ok();
        // A seccomp filter belongs to a thread, not to its process.
        let status = read("/proc/thread-self/status").or_else(|| read("/proc/self/status"));
        let mut around = Self {
            release: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            sysctl: read("/proc/sys/kernel/io_uring_disabled").and_then(number),
            sysctl_group: read("/proc/sys/kernel/io_uring_group").and_then(number),
            in_user_namespace: read("/proc/self/uid_map").map(|text| !maps_every_user(&text)),
            memlock_limit: sys::resource_limit(Resource::LockedMemory).ok().map(|limit| limit.0),
            ..Self::default()
        };
        around.read_status(status.as_deref().unwrap_or_default());
        around
    }

    fn read_status(&mut self, status: &str) {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.strip_prefix(':').map(str::trim)
        };
        self.seccomp = field("Seccomp").and_then(number);
        self.capabilities = field("CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        self.groups = field("Gid").zip(field("Groups")).map(|(gid, groups)| {
            let fs_gid = gid.split_whitespace().nth(3);
            fs_gid.into_iter().chain(groups.split_whitespace()).filter_map(number).collect()
        });
    }

    fn cause_of_eperm(&self, stage: Stage) -> Cause {
        // The sysctl is asked when a ring is made, not when it is used.
        if stage == Stage::Setup {
            match (self.sysctl, self.is_exempt_from_sysctl()) {
                (Some(value @ 2..), _) => return Cause::Sysctl(value),
                (Some(1), Some(false)) => return Cause::Sysctl(1),
                (Some(1), None) => {
                    return suspects(
                        "the sysctl kernel.io_uring_disabled, which is 1, or a filter",
                    );
                }
                _ => {}
            }
        }
        match self.seccomp {
            Some(2) => Cause::Seccomp,
            // Where the release can be read, a sysctl that cannot is not there.
            Some(_) if self.release.is_some() => Cause::SecurityModule,
            _ => suspects("a seccomp filter, the sysctl kernel.io_uring_disabled or a sandbox"),
        }
    }

    fn cause_of_eacces(&self) -> Cause {
        match self.seccomp {
            Some(0) => Cause::SecurityModule,
            _ => suspects("a security module (SELinux, AppArmor) or a seccomp filter"),
        }
    }

    fn cause_of_enosys(&self) -> Cause {
        if let Some(cause) = self.kernel_before((5, 1), "io_uring (since Linux 5.1)") {
            return cause;
        }
        let Some(version) = self.version() else {
            return suspects("a kernel before 5.1, a seccomp filter or a sandbox such as gVisor");
        };
        match (self.sysctl, self.seccomp) {
            // Since 6.6 the sysctl is there if and only if io_uring is.
            (None, _) if version >= (6, 6) => Cause::NotBuiltIn,
            (_, Some(2)) => Cause::Seccomp,
            (None, Some(_)) => Cause::NotBuiltIn,
            _ => suspects("a seccomp filter or a sandbox such as gVisor"),
        }
    }

    fn cause_of_enomem(&self, needed: u64) -> Cause {
        match (self.memlock_limit, self.has_capability(CAP_IPC_LOCK)) {
            (Some(u64::MAX), _) | (_, Some(true)) => Cause::OutOfMemory,
            _ if self.counts_rings() == Some(false) => Cause::OutOfMemory,
            (Some(limit), Some(false)) => Cause::MemlockLimit { limit, needed },
            _ => suspects("the limit on locked memory (ulimit -l), or a lack of memory"),
        }
    }

    fn cause_of_einval(&self, stage: Stage) -> Cause {
        let missing = match stage {
            Stage::Setup => "IORING_SETUP_DEFER_TASKRUN (since Linux 6.1)",
            Stage::Features => "NODROP, EXT_ARG, CQE_SKIP or FAST_POLL (since Linux 5.17)",
            Stage::Enter => "a wait with EXT_ARG (since Linux 5.11)",
            Stage::Register => "rings of provided buffers (since Linux 5.19)",
            Stage::Probe(operation) => operation,
        };
        if let Some(cause) = self.kernel_before((6, 1), missing) {
            return cause;
        }
        let is_call = matches!(stage, Stage::Setup | Stage::Enter | Stage::Register);
        match (self.version(), self.seccomp) {
            // Filters see system calls, not what the entries of a ring ask for.
            (Some(_), Some(2)) if is_call => Cause::Seccomp,
            (Some(_), Some(_)) => Cause::Unknown { suspects: None },
            _ => suspects("a kernel before 6.1 or a seccomp filter"),
        }
    }

    fn kernel_before(&self, needed: (u32, u32), missing: &'static str) -> Option<Cause> {
        let release = self.release.clone()?;
        (self.version()? < needed).then_some(Cause::KernelTooOld { release, missing })
    }

    fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.as_deref()?.split(|it: char| !it.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// Whether a `kernel.io_uring_disabled` of 1 lets this process through.
    fn is_exempt_from_sysctl(&self) -> Option<bool> {
        match (self.has_capability(CAP_SYS_ADMIN), self.sysctl_group, self.in_user_namespace) {
            (Some(true), _, _) => Some(true),
            (Some(false), Some(-1), _) => Some(false),
            // Inside a user namespace groups have other numbers than the sysctl uses.
            (Some(false), Some(group), Some(false)) => Some(self.groups.as_ref()?.contains(&group)),
            _ => None,
        }
    }

    /// Whether the kernel counts rings against the limit on locked memory: it did so until 5.11,
    /// and does again since 6.14, which has given rings their memory by a way of its own.
    pub(crate) fn counts_rings(&self) -> Option<bool> {
        self.version().map(|version| !((5, 12)..(6, 14)).contains(&version))
    }

    /// Whether the limit on locked memory does not hold for this process.
    pub(crate) fn is_exempt_from_memlock(&self) -> Option<bool> {
        self.has_capability(CAP_IPC_LOCK)
    }

    fn has_capability(&self, number: u32) -> Option<bool> {
        match (self.capabilities, self.in_user_namespace) {
            (Some(set), _) if set & (1 << number) == 0 => Some(false),
            (Some(_), Some(in_user_namespace)) => Some(!in_user_namespace),
            _ => None,
        }
    }
}

fn suspects(list: &'static str) -> Cause {
    Cause::Unknown { suspects: Some(list) }
}

fn number<T: std::str::FromStr>(text: impl AsRef<str>) -> Option<T> {
    text.as_ref().trim().parse().ok()
}

/// Whether a `uid_map` is that of the machine itself: every user stands for itself.
fn maps_every_user(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// An errno by its name in the manual pages.
struct Errno(i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            libc::EPERM => "EPERM",
            libc::EACCES => "EACCES",
            libc::EAGAIN => "EAGAIN",
            libc::EBUSY => "EBUSY",
            libc::ENOSYS => "ENOSYS",
            libc::ENOMEM => "ENOMEM",
            libc::EINVAL => "EINVAL",
            libc::EOPNOTSUPP => "EOPNOTSUPP",
            libc::EMFILE => "EMFILE",
            libc::ENFILE => "ENFILE",
            errno => return write!(f, "errno {errno}"),
        })
    }
}

/// A size as people say it. Never smaller than it is.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            u64::MAX => f.write_str("unlimited"),
            bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => {
                write!(f, "{} MiB", bytes >> 20)
            }
            bytes if bytes >= 1 << 10 => write!(f, "{} KiB", bytes.div_ceil(1 << 10)),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

#[cfg(test)]
mod tests;
