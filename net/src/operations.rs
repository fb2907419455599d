//! Accept and connect: each as an entry of the ring and as a system call.

use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use annulus_runtime::LIMITS;
use annulus_runtime::io::{
    Completion, Entry, Fd, Interest, MultishotOperation, Operation, accept, take_socket_error,
};
use io_uring::{opcode, types};
use socket2::SockAddr;

use crate::sockets;

/// Accepts connections, each a descriptor that is non-blocking and closed on exec.
pub(crate) struct Accept {
    listener: Rc<Fd>,
    queued_max: usize,
}

impl Accept {
    pub(crate) fn new(listener: Rc<Fd>) -> Accept {
        Accept { listener, queued_max: LIMITS.accept_queue_max }
    }
}

// SAFETY: the entry refers to no memory: the peer's address is asked for afterwards.
unsafe impl MultishotOperation for Accept {
    type Item = io::Result<OwnedFd>;

    /// Past this the kernel's backlog holds the rest.
    fn queued_max(&self) -> usize {
        self.queued_max
    }

    fn entry(&mut self) -> Entry {
        opcode::AcceptMulti::new(types::Fd(self.listener.raw()))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build()
    }

    fn call(&mut self) -> io::Result<Completion> {
        let accepted = accept(self.listener.as_fd())?;
        // An owned descriptor is never negative.
        Ok(Completion::from_call(accepted.into_raw_fd() as u32))
    }

    fn descriptor(&self) -> &Rc<Fd> {
        &self.listener
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn item(&mut self, completion: Completion) -> Self::Item {
        // SAFETY: the result of an accept is a descriptor made for us, handed over once, as the
        // caller says.
        completion.result().map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }
}

/// Connects a socket. Its output is the descriptor, connected.
pub(crate) struct Connect {
    socket: Rc<Fd>,
    /// On the heap, because the kernel may read it after the operation has moved.
    address: Box<SockAddr>,
    begun: bool,
}

impl Connect {
    pub(crate) fn new(socket: Rc<Fd>, address: SockAddr) -> Connect {
        Connect { socket, address: Box::new(address), begun: false }
    }

    fn begin(&mut self) -> io::Result<u32> {
        match sockets::connect(&*self.socket, &self.address) {
            Ok(()) => Ok(0),
            // The handshake is under way, perhaps since a try that a signal ended; the descriptor
            // is writable when it is over.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY)) => {
                self.begun = true;
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(e) => Err(e),
        }
    }
}

// SAFETY: the entry refers to the boxed address only.
unsafe impl Operation for Connect {
    type Output = io::Result<Rc<Fd>>;

    fn entry(&mut self) -> Entry {
        let address = self.address.as_ptr().cast();
        opcode::Connect::new(types::Fd(self.socket.raw()), address, self.address.len()).build()
    }

    fn call(&mut self) -> io::Result<u32> {
        if !self.begun {
            return self.begin();
        }
        take_socket_error(self.socket.as_fd()).map(|()| 0)
    }

    fn descriptor(&self) -> Option<&Rc<Fd>> {
        Some(&self.socket)
    }

    fn interest(&self) -> Interest {
        Interest::Write
    }

    unsafe fn complete(self, result: io::Result<u32>) -> Self::Output {
        match result {
            Ok(_) => Ok(self.socket),
            // A connect that was interrupted and made once more.
            Err(e) if e.raw_os_error() == Some(libc::EISCONN) => Ok(self.socket),
            Err(e) => Err(e),
        }
    }
}
