//! The state of a connection. It lives on its shard; a `TcpStream` finds it there.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use annulus_runtime::io::{Fd, Homed, Release, Resident, ResidentKey, depart, poll_budget, settle};
use annulus_runtime::spawn;
use annulus_runtime::time::sleep;
use socket2::SockRef;

use super::inbound::{Inbound, Take};
use super::outbound::Outbound;

pub(super) struct Connection {
    key: ResidentKey,
    fd: Rc<Fd>,
    inbound: RefCell<Inbound>,
    outbound: RefCell<Outbound>,
    /// The stream is gone; the connection lingers until everything is sent.
    lingers: Cell<bool>,
    /// Closed with a reset (`SO_LINGER` of zero): unsent bytes are not sent.
    abortive: Cell<bool>,
}

/// How long the unsent bytes (64 KiB at most) of a stream that is gone wait for a peer to take them.
const LINGER_MAX: Duration = Duration::from_secs(30);

impl Connection {
    /// Takes a connected socket to the current shard.
    pub(super) fn settle_in(fd: Rc<Fd>) -> io::Result<Homed<Connection>> {
        Homed::new(|key| Connection {
            key,
            inbound: RefCell::new(Inbound::new(Rc::clone(&fd))),
            outbound: RefCell::new(Outbound::new(Rc::clone(&fd), key)),
            fd,
            lingers: Cell::new(false),
            abortive: Cell::new(false),
        })
    }

    pub(super) fn socket(&self) -> SockRef<'_> {
        SockRef::from(&*self.fd)
    }

    pub(super) fn fd(&self) -> &Rc<Fd> {
        &self.fd
    }

    pub(super) fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.socket().set_linger(linger)?;
        self.abortive.set(linger.is_some_and(|time| time.is_zero()));
        let blocks = linger.is_some_and(|time| !time.is_zero());
        self.fd.close_with(blocks.then_some(close_elsewhere));
        Ok(())
    }

    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        ready!(poll_budget(cx));
        self.inbound.borrow_mut().poll_read(cx, buffer, take)
    }

    pub(super) fn put_back(&self, bytes: &[u8]) {
        self.inbound.borrow_mut().put_back(bytes);
    }

    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(poll_budget(cx));
        self.outbound.borrow_mut().poll_write(cx, slices)
    }

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.borrow_mut().poll_flush(cx)
    }

    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.borrow_mut().poll_shutdown(cx)
    }

    pub(super) fn shutdown_when_sent(&self) {
        self.outbound.borrow_mut().shutdown_when_sent();
    }

    /// Stops all that is under way. An error if bytes are left in either direction.
    pub(super) fn quiesce(&self) -> io::Result<()> {
        settle(|| {
            let woken = self.outbound.borrow_mut().write_out();
            if let Some(waker) = woken {
                waker.wake();
            }
            self.outbound.borrow().is_idle()
        });
        if !self.outbound.borrow().is_idle() {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the stream has bytes that are not sent yet: flush it first",
            ));
        }
        if self.inbound.borrow_mut().stop() {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the stream has received bytes that are not read yet: read them first",
            ));
        }
        Ok(())
    }

    /// The socket, when nothing is under way and nobody else holds the connection.
    pub(super) fn into_fd(this: Rc<Connection>) -> Option<OwnedFd> {
        let Connection { fd, inbound, outbound, .. } = Rc::into_inner(this)?;
        drop((inbound, outbound));
        Fd::into_owned(fd).ok()
    }
}

impl Resident for Connection {
    fn write_out(self: Rc<Self>) {
        let woken = self.outbound.borrow_mut().write_out();
        if let Some(waker) = woken {
            waker.wake();
        }
        if self.lingers.get() && self.outbound.borrow().is_idle() {
            depart(self.key);
        }
    }

    fn release(self: Rc<Self>) -> Release {
        self.inbound.borrow_mut().release();
        if self.abortive.get() || self.outbound.borrow_mut().release() {
            return Release::Depart;
        }
        self.lingers.set(true);
        let key = self.key;
        drop(spawn(async move {
            sleep(LINGER_MAX).await;
            depart(key);
        }));
        Release::Linger
    }

    fn into_any(self: Rc<Self>) -> Rc<dyn Any> {
        self
    }
}

/// With `SO_LINGER` a close blocks until the peer has everything or the time is up, also where the
/// socket is non-blocking: so it gets a thread of its own.
fn close_elsewhere(socket: OwnedFd) {
    // Without a thread the closure, and with it the socket, is dropped here: late, but closed.
    let _refused =
        std::thread::Builder::new().name("annulus-close".to_owned()).spawn(move || drop(socket));
}
