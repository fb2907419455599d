//! A connection's receives by system call, and the wait until one can succeed.
//!
//! On epoll the driver knows whether anything is to be received. On io_uring this does, and waits
//! by a poll that answers once and looks at the socket when it is submitted; so it may also wait
//! where no more than a guess says that nothing is left.
//!
//! Who waits in this way again and again, as a stream that brings much does, gets a poll that stays
//! [armed](Arrivals), so that a message costs no entry and no slot. It tells of an arrival once.
//! So before it is waited for, nothing must be left: a call has found nothing, or the kernel has
//! told that nothing is behind what a call has brought (`TCP_INQ`), and nothing can have gone wrong
//! since. A call that has brought less than it could does not prove it: the end of the stream may
//! have been told together with the bytes before it, and a mark of urgent data cuts a read short
//! (tcp(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use annulus_runtime::buf::Lease;
use annulus_runtime::io::{
    Arrivals, Fd, Interest, Multishot, Op, Ready, Received, Rest, not_ready, poll_unblocked,
    receive, receives_ahead, recv, recv_lease, short_read, tell_rest,
};

pub(super) struct Direct {
    fd: Rc<Fd>,
    wait: Wait,
    /// A wait has begun since receives [went this way](Direct::set_aside).
    waited: bool,
    /// The poll that stays armed, once there was need for it.
    arrivals: Option<Multishot<Arrivals>>,
    /// The end has arrived, or a failure: nothing arrives after it. What a call tells of the rest
    /// does not count failures.
    over: bool,
    /// Whether the socket was asked to tell what is left.
    told: Rest,
    /// On io_uring nobody else knows whether anything is left.
    on_ring: bool,
    /// A call that took less than it could have says that nothing is left, as far as that goes.
    short_read_empties: bool,
}

/// What comes before the next call.
enum Wait {
    Nothing,
    Once(Op<Ready>),
    Arrival,
}

impl Direct {
    pub(super) fn new(fd: Rc<Fd>, short_read_empties: bool) -> Direct {
        Direct {
            fd,
            wait: Wait::Nothing,
            waited: false,
            arrivals: None,
            over: false,
            told: Rest::Ignored,
            on_ring: receives_ahead(),
            short_read_empties,
        }
    }

    /// Receives into this memory.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
    ) -> Poll<io::Result<usize>> {
        let asked = memory.len();
        let rest = self.told;
        let received = ready!(self.poll(cx, |fd| receive(fd.as_fd(), memory, rest)))?;
        self.note(received, received.bytes == asked);
        Poll::Ready(Ok(received.bytes))
    }

    /// As [`poll_receive`](Direct::poll_receive), but leaves the bytes where they are.
    pub(super) fn poll_peek(
        &mut self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, |fd| recv(fd.as_fd(), memory, libc::MSG_PEEK))
    }

    /// Receives into memory that can be given away: see [`recv_lease`]. The flag says that it was
    /// filled.
    pub(super) fn poll_lease(
        &mut self,
        cx: &mut Context<'_>,
        bytes_max: usize,
    ) -> Poll<io::Result<(Lease, bool)>> {
        let rest = self.told;
        let (lease, filled, received) =
            ready!(self.poll(cx, |fd| recv_lease(fd, bytes_max, rest)))?;
        self.note(received, filled);
        Poll::Ready(Ok((lease, filled)))
    }

    /// Makes a receiving call as soon as it does not block.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut call: impl FnMut(&Fd) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            if self.on_ring {
                ready!(self.poll_wait(cx))?;
            } else {
                ready!(poll_unblocked(&self.fd, Interest::Read, cx));
            }
            match call(&self.fd) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.note_nothing()?;
                }
                answer => return Poll::Ready(answer),
            }
        }
    }

    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let answer = match (&mut self.wait, &mut self.arrivals) {
            (Wait::Once(ready), _) => ready!(Pin::new(ready).poll(cx)),
            (Wait::Arrival, Some(arrivals)) => ready!(arrivals.poll_next(cx)).map(|arrived| {
                self.over |= arrived.is_last();
            }),
            _ => return Poll::Ready(Ok(())),
        };
        self.wait = Wait::Nothing;
        Poll::Ready(answer)
    }

    /// A call would have blocked.
    fn note_nothing(&mut self) -> io::Result<()> {
        if self.on_ring {
            self.begin_wait();
            return Ok(());
        }
        not_ready(&self.fd, Interest::Read)
    }

    /// The next call waits, on the ring.
    fn begin_wait(&mut self) {
        if self.waited {
            self.watch();
            self.wait = Wait::Arrival;
            return;
        }
        self.waited = true;
        self.wait = Wait::Once(Op::new(Ready::new(Rc::clone(&self.fd), Interest::Read)));
    }

    fn watch(&mut self) {
        if self.arrivals.is_none() {
            self.arrivals = Some(Multishot::new(Arrivals::new(Rc::clone(&self.fd))));
            let asked = self.short_read_empties && tell_rest(self.fd.as_fd(), Rest::Asked).is_ok();
            self.told = if asked { Rest::Asked } else { Rest::Ignored };
        }
    }

    /// Is anything left behind what a call has brought?
    fn note(&mut self, received: Received, filled: bool) {
        if received.rest == Some(0) && !self.over {
            self.begin_wait();
            return;
        }
        let short = received.bytes > 0 && !filled && self.short_read_empties;
        if !short || self.arrivals.is_some() {
            // More may be left: the next call finds out.
            return;
        }
        if self.on_ring {
            self.begin_wait();
        } else {
            short_read(&self.fd);
        }
    }

    /// Receives go another way for now.
    #[inline]
    pub(super) fn set_aside(&mut self) {
        if self.waited {
            self.stop_waiting();
        }
    }

    #[cold]
    fn stop_waiting(&mut self) {
        self.waited = false;
        self.wait = Wait::Nothing;
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.stop();
        }
    }

    /// Lets go of everything but the descriptor itself.
    pub(super) fn release(&mut self) {
        self.waited = false;
        self.wait = Wait::Nothing;
        self.arrivals = None;
    }

    /// As [`release`](Direct::release), and leaves the socket as it was.
    pub(super) fn halt(&mut self) {
        self.release();
        if std::mem::replace(&mut self.told, Rest::Ignored) == Rest::Asked {
            // A socket that refuses is one that tells nobody anything any more.
            let _gone = tell_rest(self.fd.as_fd(), Rest::Ignored);
        }
    }
}
