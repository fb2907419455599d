//! The state of a socket. It lives on its shard; a `UdpSocket` finds it there.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use annulus_runtime::io::{Fd, Homed, Release, Resident, Waiters, settle, within_budget};
use socket2::SockRef;

use super::inbound::{HELD, Inbound, Received, Take};
use super::outbound::{Outbound, Outgoing};

pub(super) struct State {
    fd: Rc<Fd>,
    inbound: RefCell<Inbound>,
    outbound: RefCell<Outbound>,
    /// Wake all who wait to receive, to send. The driver is given these, never a task's own.
    receivers: Waker,
    senders: Waker,
}

impl State {
    /// Takes a non-blocking socket to the current shard.
    pub(super) fn settle_in(
        socket: OwnedFd,
        receivers: Arc<Waiters>,
        senders: Arc<Waiters>,
    ) -> io::Result<Homed<State>> {
        let fd = Fd::new(socket);
        Homed::new(|_key| State {
            inbound: RefCell::new(Inbound::new(Rc::clone(&fd))),
            outbound: RefCell::new(Outbound::new(Rc::clone(&fd))),
            fd,
            receivers: Waker::from(receivers),
            senders: Waker::from(senders),
        })
    }

    pub(super) fn fd(&self) -> &Rc<Fd> {
        &self.fd
    }

    pub(super) fn socket(&self) -> SockRef<'_> {
        SockRef::from(&*self.fd)
    }

    pub(super) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
        take: Take,
    ) -> Poll<io::Result<Received>> {
        within_budget(cx, |_| {
            let mut cx = Context::from_waker(&self.receivers);
            self.inbound.borrow_mut().poll_receive(&mut cx, memory, take)
        })
    }

    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        outgoing: Outgoing<'_>,
    ) -> Poll<io::Result<usize>> {
        within_budget(cx, |_| {
            // An error of earlier sends that the kernel's receive has met is this call's.
            if let Some(error) = self.inbound.borrow_mut().take_error() {
                return Poll::Ready(Err(error));
            }
            let mut cx = Context::from_waker(&self.senders);
            self.outbound.borrow_mut().poll_send(&mut cx, outgoing)
        })
    }

    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        let met = self.inbound.borrow_mut().take_error();
        if met.is_some() { Ok(met) } else { self.socket().take_error() }
    }

    /// Stops all that is under way. An error if datagrams wait that only this state has, and if the
    /// kernel has too much else to do to let go of the descriptor soon; the socket goes on then.
    pub(super) fn quiesce(&self) -> io::Result<()> {
        if self.inbound.borrow_mut().stop()? {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the socket has received datagrams that nobody has taken yet: receive them first",
            ));
        }
        if let Some(error) = self.inbound.borrow_mut().take_error() {
            return Err(error);
        }
        self.outbound.borrow_mut().release();
        let own = 2 + self.inbound.borrow().descriptors();
        if self.is_let_go(own) { Ok(()) } else { Err(io::Error::other(HELD)) }
    }

    /// Waits until nobody else holds the descriptor. False if that takes too long.
    fn is_let_go(&self, own: usize) -> bool {
        let is_let_go = || Rc::strong_count(&self.fd) <= own;
        settle(is_let_go);
        is_let_go()
    }

    /// Ends what is in flight, and waits until the kernel has let go of the descriptor.
    fn let_go(&self) {
        self.inbound.borrow_mut().release();
        self.outbound.borrow_mut().release();
        // What cannot be ended soon is closed when it ends.
        let _is_free = self.is_let_go(HOLDERS);
    }

    /// The socket, when nothing is under way and nobody else holds the state.
    pub(super) fn into_fd(this: Rc<State>) -> Option<OwnedFd> {
        let State { fd, inbound, outbound, .. } = Rc::into_inner(this)?;
        drop((inbound, outbound));
        Fd::into_owned(fd).ok()
    }
}

/// Who holds the descriptor while nothing is in flight: the state and its two directions.
const HOLDERS: usize = 3;

impl Resident for State {
    fn release(self: Rc<Self>) -> Release {
        // The port must be free when the drop of the socket returns.
        self.let_go();
        Release::Depart
    }
}
