//! A socket's way out: a system call at once, and again when the socket has room.

use std::io;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use annulus_runtime::io::{Fd, Interest, Op, Ready, is_known_blocked, not_ready, send};
use socket2::{MsgHdr, SockAddr, SockRef};

use super::offload::SegmentControl;

pub(super) struct Outbound {
    fd: Rc<Fd>,
    /// Waits until a send can succeed.
    writable: Option<Op<Ready>>,
}

/// One call's worth of datagrams.
#[derive(Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) bytes: &'a [u8],
    /// The connected peer, if not given.
    pub(super) target: Option<&'a SockAddr>,
    /// What to cut the bytes into, if not one datagram.
    pub(super) segment_bytes: Option<u16>,
}

impl Outbound {
    pub(super) fn new(fd: Rc<Fd>) -> Outbound {
        Outbound { fd, writable: None }
    }

    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        outgoing: Outgoing<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(writable) = &mut self.writable {
                let answer = ready!(Pin::new(writable).poll(cx));
                self.writable = None;
                answer?;
            } else if is_known_blocked(&self.fd, Interest::Write) {
                self.await_writable();
                continue;
            }
            match self.send_now(outgoing) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    not_ready(&self.fd, Interest::Write)?;
                    self.await_writable();
                }
                answer => return Poll::Ready(answer),
            }
        }
    }

    fn await_writable(&mut self) {
        self.writable = Some(Op::new(Ready::new(Rc::clone(&self.fd), Interest::Write)));
    }

    fn send_now(&self, outgoing: Outgoing<'_>) -> io::Result<usize> {
        let Outgoing { bytes, target, segment_bytes } = outgoing;
        let socket = SockRef::from(&*self.fd);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        match (target, segment_bytes) {
            (None, None) => send(self.fd.as_fd(), bytes),
            (Some(target), None) => socket.send_to_with_flags(bytes, target, flags),
            (target, Some(segment_bytes)) => {
                let control = SegmentControl::new(segment_bytes);
                let parts = [IoSlice::new(bytes)];
                let message = MsgHdr::new().with_buffers(&parts).with_control(control.bytes());
                match target {
                    None => socket.sendmsg(&message, flags),
                    Some(target) => socket.sendmsg(&message.with_addr(target), flags),
                }
            }
        }
    }

    /// Lets go of what waits.
    pub(super) fn release(&mut self) {
        self.writable = None;
    }
}
