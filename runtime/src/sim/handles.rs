//! The descriptors of simulated sockets.
//!
//! A simulated socket needs a descriptor, so that programs and drivers can hold and close it. It is
//! one end of a socket pair whose other end is ours: when the program has closed the last of its
//! descriptors the kernel shows that at our end, wherever the close was made. No byte goes this
//! way. Which socket a descriptor stands for is told by its cookie, which is never used again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::network::SocketId;
use crate::sys::EpollFd;

#[derive(Default)]
pub(super) struct Handles {
    by_cookie: BTreeMap<u64, SocketId>,
    ours: BTreeMap<SocketId, Ours>,
    /// Tells whose program's end was closed. Made with the first handle.
    closed: Option<EpollFd>,
}

struct Ours {
    _end: OwnedFd,
    cookie: u64,
}

impl Handles {
    /// A descriptor for this socket.
    pub(super) fn make(&mut self, id: SocketId) -> io::Result<OwnedFd> {
        let closed = match &mut self.closed {
            Some(closed) => closed,
            none => none.insert(EpollFd::new()?),
        };
        let [theirs, ours] = pair()?;
        let cookie = cookie(theirs.as_fd()).expect("a socket has a cookie");
        closed.add_in_kernel(ours.as_raw_fd(), libc::EPOLLRDHUP as u32, id)?;
        self.by_cookie.insert(cookie, id);
        self.ours.insert(id, Ours { _end: ours, cookie });
        Ok(theirs)
    }

    /// The socket that this descriptor stands for.
    pub(super) fn find(&self, fd: BorrowedFd<'_>) -> Option<SocketId> {
        if self.by_cookie.is_empty() {
            return None;
        }
        self.by_cookie.get(&cookie(fd)?).copied()
    }

    /// The sockets whose last descriptor has been closed since, in the order of their making.
    pub(super) fn take_closed(&mut self) -> Vec<SocketId> {
        let (mut gone, mut open) = (Vec::new(), usize::MAX);
        // One look shows so many at most; what was shown is not there for the next. But what a
        // forked child holds open is shown for ever.
        while self.ours.len() < open {
            open = self.ours.len();
            let mut shown = Vec::new();
            if let Some(closed) = &self.closed {
                // An error would be a bug; then sockets stay open, which shows.
                let _asked =
                    closed.wait_for_kernel(Some(Duration::ZERO), |event| shown.push(event.token));
            }
            for id in shown {
                if let Some(ours) = self.ours.remove(&id) {
                    self.by_cookie.remove(&ours.cookie);
                    gone.push(id);
                }
            }
        }
        gone.sort_unstable();
        gone
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.ours.len()
    }
}

fn pair() -> io::Result<[OwnedFd; 2]> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call fills the two integers that the pointer is to.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made these descriptors and nobody else knows them.
    Ok(ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) }))
}

/// The number that the kernel has given to a socket, and gives to no other. `None` if it is none.
fn cookie(fd: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value and its length are valid for writing and agree with each other.
    let answer = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (answer == 0).then_some(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::EPOLL_EVENTS_MAX;

    /// Two descriptors for each socket are more than many a process may have.
    fn raise_descriptor_limit() {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the struct is valid for writing.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the struct is valid for reading.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    }

    #[test]
    fn everything_that_was_closed_is_noticed_at_once() {
        let made = Vec::from_iter(0..EPOLL_EVENTS_MAX as u64 + 1);
        raise_descriptor_limit();
        let mut handles = Handles::default();
        let descriptors: Vec<_> = made.iter().map(|id| handles.make(*id).unwrap()).collect();
        drop(descriptors);
        assert_eq!(handles.take_closed(), made);
        assert_eq!(handles.len(), 0);
    }
}
