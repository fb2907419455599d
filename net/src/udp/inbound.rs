//! A socket's way in.
//!
//! On io_uring the kernel receives into the shard's pool of datagram buffers as long as one
//! multishot is armed, and what it has received waits here, so that a receive that is dropped loses
//! nothing. When the pool is dry, while datagrams are so large that a second copy costs more than a
//! second system call, and on epoll always, a receive goes straight to the caller's memory instead,
//! after waiting until there is something to receive. Only one of the two ways is open at a time,
//! so that datagrams keep their order.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use annulus_runtime::io::{
    Datagram, Fd, Interest, Multishot, Op, Ready, ReceiveDatagrams, is_known_blocked, not_ready,
    recv_message,
};

use super::name::{NAME_BYTES, socket_addr};
use super::offload::{CONTROL_BYTES, joined_segment_bytes};
use crate::memory::copy;

/// Why a socket cannot leave its shard yet.
pub(super) const HELD: &str = "the kernel holds on to the socket: try again";

pub(super) struct Inbound {
    fd: Rc<Fd>,
    /// Datagrams that the kernel has handed over and nobody has taken: come before all others.
    waiting: VecDeque<Datagram>,
    /// What the kernel's receive ended with, after those.
    error: Option<io::Error>,
    way: Way,
    /// The pool had no buffer for this socket: the next receive goes to the caller's memory.
    dry: bool,
    /// Large datagrams come: they go to the caller's memory.
    large: bool,
    /// How many in a row were of the other size.
    against: u8,
    /// Waits until a direct receive can succeed.
    readable: Option<Op<Ready>>,
}

enum Way {
    /// Nothing was received yet: a socket that only sends needs no pool.
    Undecided,
    /// Ahead, into the shard's pool.
    Pooled(Multishot<ReceiveDatagrams>),
    /// By system calls only: on epoll, without memory for a pool, on a kernel that refuses.
    Direct,
}

/// What is next for a receive.
#[derive(PartialEq, Eq)]
enum Step {
    /// At what the kernel's receive has brought.
    Look,
    /// Past it: it is not armed, and all it has brought was taken.
    Direct,
}

/// From here on a second copy costs more than a second system call: where streams draw the line,
/// too. What one packet carries is far below, what the kernel joins is above.
const LARGE_BYTES_MIN: usize = 8 * 1024;

/// So many datagrams in a row of the other size change the way: ending the kernel's receive and
/// arming it again costs about as much as one of them.
const AGAINST_MAX: u8 = 4;

/// What a receive does with the datagram it finds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    Away,
    /// Leaves it for the next receive.
    Peek,
}

/// What a receive tells of a datagram whose bytes it has copied.
pub(super) struct Received {
    pub(super) bytes: usize,
    pub(super) peer: Option<SocketAddr>,
    pub(super) segment_bytes: Option<usize>,
}

impl Received {
    fn new(bytes: usize, name: &[u8], control: &[u8]) -> Received {
        let segment_bytes = joined_segment_bytes(control);
        Received { bytes, peer: socket_addr(name), segment_bytes }
    }
}

impl Inbound {
    pub(super) fn new(fd: Rc<Fd>) -> Inbound {
        Inbound {
            fd,
            waiting: VecDeque::new(),
            error: None,
            way: Way::Undecided,
            dry: false,
            large: false,
            against: 0,
            readable: None,
        }
    }

    /// Copies the next datagram, as much of it as fits; waits if there is none.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
        take: Take,
    ) -> Poll<io::Result<Received>> {
        loop {
            if let Some(received) = self.copy_out(memory, take) {
                return Poll::Ready(Ok(received));
            }
            if let Some(error) = self.error.take() {
                return Poll::Ready(Err(error));
            }
            let step = match self.way {
                Way::Undecided => self.decide(),
                Way::Pooled(_) => ready!(self.poll_pooled(cx)),
                Way::Direct => Step::Direct,
            };
            if step == Step::Direct {
                return self.poll_direct(cx, memory, take);
            }
        }
    }

    fn decide(&mut self) -> Step {
        let pooled = ReceiveDatagrams::new(Rc::clone(&self.fd)).map(Multishot::new);
        self.way = pooled.map_or(Way::Direct, Way::Pooled);
        Step::Look
    }

    fn copy_out(&mut self, memory: &mut [MaybeUninit<u8>], take: Take) -> Option<Received> {
        let datagram = self.waiting.front()?;
        let bytes = copy(datagram.payload(), memory);
        let received = Received::new(bytes, datagram.name(), datagram.control());
        if take == Take::Away {
            self.waiting.pop_front();
            self.note_size(bytes);
        }
        Some(received)
    }

    fn note_size(&mut self, bytes: usize) {
        if self.large == (bytes >= LARGE_BYTES_MIN) {
            self.against = 0;
            return;
        }
        self.against += 1;
        if self.against == AGAINST_MAX {
            self.large = !self.large;
            self.against = 0;
        }
    }

    /// Takes the next answer of the kernel's receive, or finds that it is not the way now.
    fn poll_pooled(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let Way::Pooled(pooled) = &mut self.way else { return Poll::Ready(Step::Look) };
        if self.dry {
            return Poll::Ready(Step::Direct);
        }
        if self.large {
            pooled.stop();
        }
        let item = match ready!(pooled.poll_armed(cx)) {
            Some(item) => item,
            None if self.large => return Poll::Ready(Step::Direct),
            None if pooled.operation().has_buffers() => ready!(pooled.poll_next(cx)),
            None => {
                self.dry = true;
                return Poll::Ready(Step::Direct);
            }
        };
        self.note(item);
        Poll::Ready(Step::Look)
    }

    fn note(&mut self, item: io::Result<Datagram>) {
        match item {
            Ok(datagram) => self.waiting.push_back(datagram),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOBUFS) => self.dry = true,
                // The kernel has no multishot receive of messages (before 6.0). If it means
                // something else, the system call will say so.
                Some(libc::EINVAL | libc::EOPNOTSUPP) => self.way = Way::Direct,
                Some(libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {}
                _ => self.error = Some(error),
            },
        }
    }

    fn poll_direct(
        &mut self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
        take: Take,
    ) -> Poll<io::Result<Received>> {
        let flags = if take == Take::Peek { libc::MSG_PEEK } else { 0 };
        let mut name = [0; NAME_BYTES];
        let mut control = [0; CONTROL_BYTES];
        loop {
            if let Some(readable) = &mut self.readable {
                let answer = ready!(Pin::new(readable).poll(cx));
                self.readable = None;
                answer?;
            } else if is_known_blocked(&self.fd, Interest::Read) {
                self.await_readable();
                continue;
            }
            match recv_message(self.fd.as_fd(), memory, &mut name, &mut control, flags) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    not_ready(&self.fd, Interest::Read)?;
                    self.await_readable();
                }
                Ok(found) => {
                    // Back to the pool, if it has recovered; `poll_pooled` looks.
                    self.dry = false;
                    if take == Take::Away {
                        self.note_size(found.bytes);
                    }
                    let (name, control) =
                        (&name[..found.name_bytes], &control[..found.control_bytes]);
                    return Poll::Ready(Ok(Received::new(found.bytes, name, control)));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn await_readable(&mut self) {
        self.readable = Some(Op::new(Ready::new(Rc::clone(&self.fd), Interest::Read)));
    }

    /// The error that the kernel's receive has ended with, if it has.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        // An error ends the receive, which is armed again only when everything was taken: so what
        // is collected here is no more than the pool holds.
        if matches!(&self.way, Way::Pooled(pooled) if !pooled.is_armed()) {
            self.collect();
        }
        self.error.take()
    }

    /// Takes over everything that has arrived.
    fn collect(&mut self) {
        loop {
            let Way::Pooled(pooled) = &mut self.way else { return };
            let Some(item) = pooled.pop() else { return };
            self.note(item);
        }
    }

    /// Ends the kernel's receive. True if datagrams that it has handed over wait here. An error if
    /// the kernel has too much else to do to say so soon; the socket goes on then.
    pub(super) fn stop(&mut self) -> io::Result<bool> {
        self.readable = None;
        if let Way::Pooled(pooled) = &mut self.way {
            pooled.stop_now();
            if pooled.is_armed() {
                return Err(io::Error::other(HELD));
            }
        }
        self.collect();
        Ok(!self.waiting.is_empty())
    }

    /// How often this holds the descriptor when nothing is under way.
    pub(super) fn descriptors(&self) -> usize {
        1 + usize::from(matches!(self.way, Way::Pooled(_)))
    }

    /// The socket is gone: lets go of everything.
    pub(super) fn release(&mut self) {
        self.way = Way::Direct;
        self.readable = None;
        self.waiting = VecDeque::new();
    }
}
