//! The descriptor at which a driver shows another loop that a turn would find something.
//!
//! On epoll it is the driver's own. On io_uring it gathers two eventfds, each an edge that the next
//! turn takes: one that the ring writes when task work or a completion comes, and the shard's bell.
//! Neither could be left out (measured on 6.18):
//!
//! - A ring with `DEFER_TASKRUN` shows task work at its own descriptor to whoever asks, and wakes
//!   nobody who sleeps in `poll` or `epoll_wait` there.
//! - Task work that the write to an eventfd has made, such as that of the poll on the bell, is told
//!   by the ring's eventfd once, and later not.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::sys::{EpollFd, EventFd};

pub(crate) enum Shown {
    Gathered { epoll: EpollFd, _of_ring: EventFd },
    Own(RawFd),
}

impl Shown {
    pub(super) fn gather(of_ring: EventFd, bell: RawFd) -> io::Result<Shown> {
        let epoll = EpollFd::new()?;
        // Never read: each write is an edge.
        let edges = (libc::EPOLLIN | libc::EPOLLET) as u32;
        epoll.add(bell, edges, 0)?;
        // What has come before this was not told.
        of_ring.signal();
        epoll.add(of_ring.raw_fd(), edges, 0)?;
        Ok(Shown::Gathered { epoll, _of_ring: of_ring })
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        match self {
            Shown::Gathered { epoll, .. } => epoll.raw_fd(),
            Shown::Own(own) => *own,
        }
    }

    /// Takes what has been shown so far: what comes next is shown anew.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait(2)`, which only a bug can cause.
    pub(crate) fn take(&self) -> io::Result<()> {
        match self {
            Shown::Gathered { epoll, .. } => epoll.wait(Some(Duration::ZERO), |_edge| {}),
            // Its turns do that.
            Shown::Own(_) => Ok(()),
        }
    }
}
