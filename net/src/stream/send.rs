//! The send that waits in the kernel for room, as an entry of the ring and as a system call.

use std::any::Any;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use annulus_runtime::buf::IoBuf;
use annulus_runtime::io::{Entry, Fd, Interest, Operation, TRANSFER_BYTES_MAX, send};
use io_uring::{opcode, types};

/// A caller's buffer, of whatever type.
pub(super) trait Held: Any {
    fn bytes(&self) -> &[u8];

    /// To be given back as what it was.
    fn into_any(self: Rc<Self>) -> Rc<dyn Any>;
}

impl<B: IoBuf> Held for B {
    fn bytes(&self) -> &[u8] {
        self.as_slice()
    }

    fn into_any(self: Rc<Self>) -> Rc<dyn Any> {
        self
    }
}

/// Sends the bytes of a buffer from `start` on. The buffer comes back with the result.
pub(super) struct Send {
    fd: Rc<Fd>,
    buffer: Buffer,
    start: usize,
}

enum Buffer {
    Own(Vec<u8>),
    OfCaller(Rc<dyn Held>),
}

/// What a [`Send`] leaves.
pub(super) enum Sent {
    Own { buffer: Vec<u8>, start: usize, result: io::Result<usize> },
    OfCaller { buffer: Rc<dyn Held>, start: usize, result: io::Result<usize> },
}

impl Send {
    pub(super) fn own(fd: Rc<Fd>, buffer: Vec<u8>, start: usize) -> Send {
        Send { fd, buffer: Buffer::Own(buffer), start }
    }

    pub(super) fn of_caller(fd: Rc<Fd>, buffer: Rc<dyn Held>, start: usize) -> Send {
        Send { fd, buffer: Buffer::OfCaller(buffer), start }
    }

    /// What it has to send, if that is the stream's own.
    pub(super) fn into_rest(self) -> Vec<u8> {
        match self.buffer {
            Buffer::Own(mut buffer) => {
                buffer.drain(..self.start);
                buffer
            }
            Buffer::OfCaller(_) => Vec::new(),
        }
    }

    /// The buffer, if it is a caller's.
    pub(super) fn into_held(self) -> Option<Rc<dyn Held>> {
        match self.buffer {
            Buffer::Own(_) => None,
            Buffer::OfCaller(buffer) => Some(buffer),
        }
    }

    fn bytes(&self) -> &[u8] {
        let all = match &self.buffer {
            Buffer::Own(buffer) => buffer,
            Buffer::OfCaller(buffer) => buffer.bytes(),
        };
        let bytes = &all[self.start..];
        &bytes[..bytes.len().min(TRANSFER_BYTES_MAX)]
    }
}

// SAFETY: the entry refers to the memory of a vector or of an `IoBuf`, which stays where it is
// though the operation is moved, and which nobody changes while the operation lives.
unsafe impl Operation for Send {
    type Output = Sent;

    fn entry(&mut self) -> Entry {
        let bytes = self.bytes();
        // WAITALL: the kernel goes on after a part, so that one answer is for the whole.
        opcode::Send::new(types::Fd(self.fd.raw()), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
    }

    fn call(&mut self) -> io::Result<u32> {
        send(self.fd.as_fd(), self.bytes()).map(|count| count as u32)
    }

    fn descriptor(&self) -> Option<&Rc<Fd>> {
        Some(&self.fd)
    }

    fn interest(&self) -> Interest {
        Interest::Write
    }

    unsafe fn complete(self, result: io::Result<u32>) -> Sent {
        let result = result.map(|count| count as usize);
        let start = self.start;
        match self.buffer {
            Buffer::Own(buffer) => Sent::Own { buffer, start, result },
            Buffer::OfCaller(buffer) => Sent::OfCaller { buffer, start, result },
        }
    }
}
