//! How a connection was lost, as far as sends were told.
//!
//! The kernel tells a reset to one call only. If that is a send, a receive finds an end where there
//! is none. If it is a send that has sent a part, it answers how much that was, and nobody is told:
//! the next send finds a broken pipe, as it does when the peer has finished and then gone.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use annulus_runtime::io::{Fd, Received, Rest, receive, tell_rest};

/// What sends were told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Lost {
    #[default]
    Nothing,
    /// Perhaps, for a reason that was not told.
    Somehow,
    /// The errno by which it was lost though nobody had ended it.
    By(i32),
}

impl Lost {
    pub(super) fn note(&mut self, error: &io::Error) {
        match (error.raw_os_error(), *self) {
            (Some(errno @ (libc::ECONNRESET | libc::ETIMEDOUT)), _) => *self = Lost::By(errno),
            (Some(libc::EPIPE), Lost::Nothing) => *self = Lost::Somehow,
            _ => {}
        }
    }

    /// A send may have hidden something.
    pub(super) fn suspect(&mut self) {
        if matches!(self, Lost::Nothing) {
            *self = Lost::Somehow;
        }
    }

    /// What is behind the last byte: the end, or how the connection was lost.
    pub(super) fn end(self, fd: &Fd) -> io::Result<()> {
        match self {
            Lost::By(errno) => Err(io::Error::from_raw_os_error(errno)),
            Lost::Somehow if !has_fin(fd) => Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
            Lost::Nothing | Lost::Somehow => Ok(()),
        }
    }
}

/// Whether the peer has finished, asked behind the last byte: the kernel counts a FIN among what is
/// left behind a receive (`TCP_INQ`). Sockets that are none of TCP's hide nothing.
fn has_fin(fd: &Fd) -> bool {
    if tell_rest(fd.as_fd(), Rest::Asked).is_err() {
        return true;
    }
    let received = receive(fd.as_fd(), &mut [MaybeUninit::uninit()], Rest::Asked);
    // Whoever has the socket next has not asked.
    let _gone = tell_rest(fd.as_fd(), Rest::Ignored);
    !matches!(received, Ok(Received { bytes: 0, rest: Some(0) }))
}
