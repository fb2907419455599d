//! Errors that say that the machine, or the process, has no more of something.

use std::io;

/// Errors that come back at once until something is freed.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    // ENOSPC: a descriptor could not be registered with epoll.
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::ENOSPC];
    error.raw_os_error().is_some_and(|errno| shortages.contains(&errno))
}

/// True if a send that failed so has sent nothing and says nothing of the connection: the same send
/// may do later.
pub(crate) fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    // Somebody may have cancelled what is under way on the descriptor.
    let cancelled = error.raw_os_error() == Some(libc::ECANCELED);
    is_shortage(error) || cancelled || matches!(error.kind(), Interrupted | WouldBlock)
}

/// What to do about a shortage of descriptors, or of what epoll may watch.
pub(crate) fn remedy(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error() {
        Some(libc::EMFILE) => Some("raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE= in systemd)"),
        Some(libc::ENFILE) => Some("raise the sysctl fs.file-max"),
        Some(libc::ENOSPC) => Some("raise the sysctl fs.epoll.max_user_watches"),
        _ => None,
    }
}
