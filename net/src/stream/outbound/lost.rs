//! How a connection was lost, as far as sends were told.
//!
//! The kernel tells a reset to one call only. If that is a send, a receive finds an end where there
//! is none. If it is a send that has sent a part, it answers how much that was, and nobody is told:
//! the next send finds a broken pipe, as it does when the peer has finished and then gone.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use annulus_runtime::io::{Fd, Received, Rest, receive, tell_rest};

use crate::shortage::passes;

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
            (Some(libc::EPIPE), Lost::Nothing) => *self = Lost::Somehow,
            (Some(libc::EPIPE), _) | (None, _) => {}
            (Some(errno), _) if !passes(error) => *self = Lost::By(errno),
            _ => {}
        }
    }

    /// A send may have hidden something.
    pub(super) fn suspect(&mut self) {
        if matches!(self, Lost::Nothing) {
            *self = Lost::Somehow;
        }
    }

    /// What is behind the last byte: the end, or how the connection was lost. A peer that has
    /// finished has said all, whatever has become of the other direction.
    pub(super) fn end(self, fd: &Fd) -> io::Result<()> {
        let errno = match self {
            Lost::Nothing => return Ok(()),
            Lost::Somehow => libc::ECONNRESET,
            Lost::By(errno) => errno,
        };
        match (fin(fd), self) {
            (Fin::Came, _) | (Fin::Unknown, Lost::Somehow) => Ok(()),
            _ => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Whether the peer has finished.
enum Fin {
    Came,
    Missing,
    /// Only TCP's sockets tell. Others hide nothing.
    Unknown,
}

/// Asks, behind the last byte: the kernel counts a FIN among what is left behind a receive
/// (`TCP_INQ`).
fn fin(fd: &Fd) -> Fin {
    if tell_rest(fd.as_fd(), Rest::Asked).is_err() {
        return Fin::Unknown;
    }
    let received = receive(fd.as_fd(), &mut [MaybeUninit::uninit()], Rest::Asked);
    // Whoever has the socket next has not asked.
    let _gone = tell_rest(fd.as_fd(), Rest::Ignored);
    match received {
        Ok(Received { bytes: 0, rest: Some(0) }) => Fin::Missing,
        Ok(_) => Fin::Came,
        // An error that nobody has been told is none that a FIN precedes.
        Err(error) if passes(&error) => Fin::Unknown,
        Err(_) => Fin::Missing,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;

    fn told(errno: i32) -> Lost {
        let mut lost = Lost::Nothing;
        lost.note(&io::Error::from_raw_os_error(errno));
        lost
    }

    fn errno_at_end(lost: Lost, fd: &Fd) -> Option<i32> {
        lost.end(fd).err().map(|error| error.raw_os_error().unwrap())
    }

    /// Our end of a connection that the peer has reset behind one byte, which was read, and behind
    /// a FIN or not. Nobody else will be told of the reset.
    fn lost_connection(finished: bool) -> Rc<Fd> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut ours, _) = listener.accept().unwrap();
        theirs.write_all(b"!").unwrap();
        if finished {
            theirs.shutdown(Shutdown::Write).unwrap();
        }
        ours.read_exact(&mut [0]).unwrap();
        SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
        drop(theirs);
        ours.take_error().unwrap();
        ours.set_nonblocking(true).unwrap();
        Fd::new(ours.into())
    }

    #[test]
    fn whatever_ended_the_connection_is_told_the_reader() {
        let errors = [
            libc::ECONNRESET,
            libc::ETIMEDOUT,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
            libc::ECONNABORTED,
            libc::ECONNREFUSED,
            libc::EPROTO,
        ];
        for errno in errors {
            assert_eq!(errno_at_end(told(errno), &lost_connection(false)), Some(errno));
        }
        let pipe = errno_at_end(told(libc::EPIPE), &lost_connection(false));
        assert_eq!(pipe, Some(libc::ECONNRESET));
        for errno in [libc::EAGAIN, libc::EINTR, libc::ECANCELED, libc::ENOBUFS, libc::ENOSPC] {
            assert_eq!(errno_at_end(told(errno), &lost_connection(false)), None, "{errno}");
        }
    }

    #[test]
    fn a_peer_that_had_finished_has_said_all() {
        for errno in [libc::ECONNRESET, libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::EPIPE] {
            assert_eq!(errno_at_end(told(errno), &lost_connection(true)), None, "{errno}");
        }
    }

    #[test]
    fn a_socket_that_cannot_tell_of_a_fin_keeps_what_it_was_lost_by() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let ours = Fd::new(ours.into());
        assert_eq!(errno_at_end(told(libc::ECONNRESET), &ours), Some(libc::ECONNRESET));
        assert_eq!(errno_at_end(told(libc::EPIPE), &ours), None);
    }
}
