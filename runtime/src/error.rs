//! Why a runtime could not be built: a setting, io_uring's refusal, or the system's.

use std::fmt;
use std::io;

use crate::config::ConfigError;
use crate::driver::Refusal;

/// A runtime could not be built.
///
/// Nothing is left behind: what had been opened is closed again. The text names what failed and,
/// where there is one, the remedy.
///
/// ```
/// use annulus_runtime::{BuildError, Driver, Runtime};
///
/// match Runtime::builder().driver(Driver::Uring).build() {
///     Ok(runtime) => runtime.block_on(async { /* serve */ }),
///     Err(BuildError::Refused(refusal)) => eprintln!("no io_uring: {refusal}"),
///     Err(error) => eprintln!("{error}"),
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// A setting of the builder or the environment cannot be used.
    Config(ConfigError),
    /// `Driver::Uring` was asked for, and io_uring is not to be had.
    Refused(Refusal),
    /// A step that every driver needs failed: its name, and what the system answered.
    Io(&'static str, io::Error),
}

impl BuildError {
    /// The errno, if the system gave one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Config(_) => None,
            Self::Refused(refusal) => refusal.raw_os_error(),
            Self::Io(_, error) => error.raw_os_error(),
        }
    }

    /// The kind that an [`io::Error`] made from this has.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Config(_) => io::ErrorKind::InvalidInput,
            Self::Refused(refusal) => refusal.kind(),
            Self::Io(_, error) => error.kind(),
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Io(stage, error) => {
                write!(f, "{stage} failed: {error}")?;
                f.write_str(remedy(error))
            }
        }
    }
}

/// What to do about the errnos that building a runtime commonly meets.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            "; this process has as many descriptors as RLIMIT_NOFILE allows, raise it (ulimit -n)"
        }
        Some(libc::ENFILE) => "; the system has no descriptor left, raise the sysctl fs.file-max",
        Some(libc::ENOSPC) => {
            "; this user watches as much by epoll as is allowed, raise the sysctl \
             fs.epoll.max_user_watches"
        }
        Some(libc::EAGAIN) => {
            "; no further thread is allowed, raise RLIMIT_NPROC (ulimit -u) or the pids.max of the \
             cgroup"
        }
        _ => "",
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(_) | Self::Refused(_) => None,
            Self::Io(_, error) => Some(error),
        }
    }
}

impl From<ConfigError> for BuildError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<Refusal> for BuildError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<BuildError> for io::Error {
    /// Keeps kind and text; the error itself, and with it the errno, stays inside.
    fn from(error: BuildError) -> Self {
        Self::new(error.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;
    use crate::config::Driver;
    use crate::driver::Stage;

    #[test]
    fn the_text_of_a_full_descriptor_table_names_the_limit() {
        let full = io::Error::from_raw_os_error(libc::EMFILE);
        let error = BuildError::Io("epoll_create1", full);
        let text = error.to_string();
        assert!(text.starts_with("epoll_create1 failed: Too many open files"), "{text}");
        assert!(text.contains("RLIMIT_NOFILE"), "{text}");
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert!(error.source().is_some());

        let other = BuildError::Io("eventfd", io::Error::from_raw_os_error(libc::ENODEV));
        assert_eq!(other.to_string(), "eventfd failed: No such device (os error 19)");
    }

    #[test]
    fn an_io_error_keeps_kind_text_and_errno() {
        let refusal = Refusal::diagnose(Stage::Setup, libc::EPERM, 0);
        let setting = "kqueue".parse::<Driver>().unwrap_err();
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let cases = [
            (BuildError::from(refusal), io::ErrorKind::PermissionDenied, Some(libc::EPERM)),
            (BuildError::from(setting), io::ErrorKind::InvalidInput, None),
            (
                BuildError::Io("eventfd", denied),
                io::ErrorKind::PermissionDenied,
                Some(libc::EACCES),
            ),
        ];
        for (error, kind, errno) in cases {
            let text = error.to_string();
            let error = io::Error::from(error);
            assert_eq!(error.kind(), kind);
            assert_eq!(error.to_string(), text);
            let inside = error.get_ref().unwrap().downcast_ref::<BuildError>().unwrap();
            assert_eq!(inside.raw_os_error(), errno);
        }
    }
}
