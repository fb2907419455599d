//! The state of a connection. It lives on its shard; a `TcpStream` finds it there.

use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use annulus_runtime::buf::Lease;
use annulus_runtime::io::simulated::is_simulated;
use annulus_runtime::io::{
    Connected, Fd, Homed, Release, Resident, ResidentKey, depart, mark_dirty, settle, within_budget,
};
use annulus_runtime::spawn;
use annulus_runtime::task::{AbortHandle, yield_now};
use annulus_runtime::time::sleep;
use socket2::SockRef;

use super::inbound::{HELD, Inbound, Take, Unread};
use super::outbound::{Attempt, By, Outbound, Unsent};
use super::send::Held;
use super::zero_copy::ZeroCopy;
use crate::family::Family;
use crate::sockets::set_linger;

pub(crate) struct Connection {
    key: ResidentKey,
    fd: Rc<Fd>,
    inbound: RefCell<Inbound>,
    outbound: RefCell<Outbound>,
    /// What a quiet send has not sent, not yet taken up.
    fallen_short: Cell<Option<Box<ShortSend>>>,
    /// The stream is gone; the connection lingers until everything is sent, or this task ends it.
    lingering: RefCell<Option<AbortHandle>>,
    /// Closed with a reset (`SO_LINGER` of zero): unsent bytes are not sent.
    abortive: Cell<bool>,
    /// `SO_LINGER` means something here.
    lingers: bool,
    _counted: Connected,
}

/// The buffer of a quiet send, and how much of it was sent.
type ShortSend = (Vec<u8>, io::Result<usize>);

/// How long the unsent bytes (64 KiB at most) of a stream that is gone wait for its peer.
const LINGER_MAX: Duration = Duration::from_secs(30);

impl Connection {
    /// Takes a connected socket to the current shard.
    pub(crate) fn settle_in<F: Family>(fd: Rc<Fd>) -> io::Result<Homed<Connection>> {
        Homed::new(|key| Connection {
            key,
            inbound: RefCell::new(Inbound::new(Rc::clone(&fd), F::SHORT_READ_EMPTIES)),
            outbound: RefCell::new(Outbound::new(Rc::clone(&fd), key)),
            fd,
            fallen_short: Cell::new(None),
            lingering: RefCell::new(None),
            abortive: Cell::new(false),
            lingers: F::LINGERS,
            _counted: Connected::new(),
        })
    }

    pub(crate) fn socket(&self) -> SockRef<'_> {
        SockRef::from(&*self.fd)
    }

    fn outbound(&self) -> RefMut<'_, Outbound> {
        let mut outbound = self.outbound.borrow_mut();
        if let Some(short) = self.fallen_short.take() {
            outbound.send_fell_short(short.0, short.1);
        }
        outbound
    }

    pub(crate) fn fd(&self) -> &Rc<Fd> {
        &self.fd
    }

    /// Prepares for what the close of a socket that lingers does.
    pub(crate) fn note_linger(&self, linger: Option<Duration>) {
        self.abortive.set(linger.is_some_and(|time| time.is_zero()));
        let blocks = linger.is_some_and(|time| !time.is_zero());
        self.fd.close_with(blocks.then_some(close_elsewhere));
    }

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        let count = ready!(within_budget(cx, |cx| {
            self.inbound.borrow_mut().poll_read(cx, memory, take)
        }))?;
        if count == 0 && !memory.is_empty() {
            self.outbound().end()?;
        }
        Poll::Ready(Ok(count))
    }

    pub(crate) fn poll_lease(&self, cx: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        let lease = ready!(within_budget(cx, |cx| self.inbound.borrow_mut().poll_lease(cx)))?;
        if lease.is_empty() {
            self.outbound().end()?;
        }
        Poll::Ready(Ok(lease))
    }

    /// A lease of what has come already.
    pub(crate) fn lease_out(&self) -> Option<Lease> {
        self.inbound.borrow_mut().lease_out()
    }

    /// Lets another connection copy the little that has come next. 0 if nothing has, or much.
    pub(crate) fn poll_pass_on(
        &self,
        cx: &mut Context<'_>,
        to: &Connection,
    ) -> Poll<io::Result<usize>> {
        let mut inbound = self.inbound.borrow_mut();
        let Some(front) = inbound.small_front() else { return Poll::Ready(Ok(0)) };
        let count = ready!(to.poll_write(cx, &[IoSlice::new(front)]))?;
        inbound.advance_front(count);
        Poll::Ready(Ok(count))
    }

    pub(crate) fn put_back(&self, bytes: &[u8]) {
        self.inbound.borrow_mut().put_back(bytes);
    }

    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        within_budget(cx, |cx| self.outbound().poll_write(cx, slices))
    }

    pub(super) fn poll_attempt(
        &self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<Attempt>> {
        within_budget(cx, |cx| self.outbound().poll_attempt(cx, bytes))
    }

    pub(super) fn poll_zero_copy(
        &self,
        cx: &mut Context<'_>,
        bytes: usize,
    ) -> Poll<io::Result<By>> {
        within_budget(cx, |cx| self.outbound().poll_zero_copy(cx, bytes))
    }

    pub(super) fn zero_copy(&self) -> ZeroCopy {
        self.outbound().zero_copy()
    }

    pub(super) fn hand_over(&self, buffer: Rc<dyn Held>, start: usize, by: By) {
        self.outbound().hand_over(buffer, start, by);
    }

    pub(super) fn poll_handed(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<(Rc<dyn Held>, io::Result<usize>)> {
        self.outbound().poll_handed(cx)
    }

    pub(super) fn abandon(&self) {
        self.outbound().abandon();
    }

    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound().poll_flush(cx)
    }

    #[cfg(feature = "hyper")]
    pub(crate) fn poll_on_its_way(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound().poll_on_its_way(cx)
    }

    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound().poll_shutdown(cx)
    }

    pub(crate) fn shutdown_when_sent(&self) {
        self.outbound().shutdown_when_sent();
    }

    /// Stops all that is under way. An error if bytes are left in either direction.
    pub(crate) fn quiesce(&self) -> io::Result<()> {
        settle(|| {
            let woken = self.outbound().write_out();
            if let Some(waker) = woken {
                waker.wake();
            }
            self.outbound().is_idle()
        });
        if !self.outbound().is_idle() {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the stream has bytes that are not sent yet: flush it first",
            ));
        }
        if let Some(error) = self.outbound().take_error() {
            return Err(error);
        }
        if self.inbound.borrow_mut().stop()? {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the stream has received bytes that are not read yet: read them first",
            ));
        }
        self.let_go()
    }

    /// Waits until no operation that has been given up holds the descriptor any more. An error if
    /// the kernel has too much else to do to say so soon.
    fn let_go(&self) -> io::Result<()> {
        let own = 2 + self.inbound.borrow().descriptors();
        let is_let_go = || Rc::strong_count(&self.fd) <= own;
        settle(is_let_go);
        if is_let_go() { Ok(()) } else { Err(io::Error::other(HELD)) }
    }

    /// Stops all that is under way, and takes what was received and not read, and what was written
    /// and not sent. An error if the kernel does not let go.
    pub(super) fn stop(&self) -> io::Result<(Unread, Unsent)> {
        self.outbound().start_moving();
        settle(|| self.outbound().has_stopped());
        if !self.outbound().has_stopped() {
            return Err(io::Error::other(HELD));
        }
        let halted = self.inbound.borrow_mut().halt();
        if let Err(error) = halted.and_then(|()| self.let_go()) {
            // The stream goes on, and what was to move with it is sent from here.
            mark_dirty(self.key);
            return Err(error);
        }
        let unread = self.inbound.borrow_mut().take_unread();
        Ok((unread, self.outbound().take_unsent()))
    }

    /// Goes on where another shard's connection has stopped.
    pub(super) fn resume(&self, unread: Unread, unsent: Unsent) {
        self.inbound.borrow_mut().resume(unread);
        self.outbound().resume(unsent);
    }

    /// The socket, when nothing is under way and nobody else holds the connection.
    pub(crate) fn into_fd(this: Rc<Connection>) -> Option<OwnedFd> {
        let connection = Rc::into_inner(this)?;
        let fd = Rc::clone(&connection.fd);
        drop(connection);
        Fd::into_owned(fd).ok()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let is_cut_off = self.outbound.get_mut().has_unsent() || self.fallen_short.take().is_some();
        if self.lingers && is_cut_off {
            reset_at_close(&*self.fd);
            // Such a close does not block, and nobody is to take the reset back.
            self.fd.close_with(None);
        }
    }
}

/// Has the close reset the connection: accepted bytes are given up, and an end would tell the peer
/// that it has everything.
pub(super) fn reset_at_close(socket: &impl AsFd) {
    // A socket that refuses has no connection any more.
    let _gone = set_linger(socket, Some(Duration::ZERO));
}

impl Resident for Connection {
    fn write_out(self: Rc<Self>) {
        let mut outbound = self.outbound();
        let woken = outbound.write_out();
        let lingers = self.lingering.borrow().is_some();
        let gone = lingers && outbound.is_idle();
        drop(outbound);
        if gone {
            if let Some(limit) = self.lingering.take() {
                limit.abort();
            }
            depart(self.key);
        }
        // Last: it may panic.
        if let Some(waker) = woken {
            waker.wake();
        }
    }

    fn release(self: Rc<Self>) -> Release {
        self.inbound.borrow_mut().release();
        if self.abortive.get() || self.outbound().release() {
            return Release::Depart;
        }
        let key = self.key;
        let limit = spawn(async move {
            sleep(LINGER_MAX).await;
            // What has just been sent is not given up: it is noticed at the end of this turn.
            yield_now().await;
            depart(key);
        });
        self.lingering.replace(Some(limit.abort_handle()));
        Release::Linger
    }

    fn send_fell_short(self: Rc<Self>, buffer: Vec<u8>, result: io::Result<usize>) {
        // Kept until the next use: whoever turned the driver may hold the borrow.
        self.fallen_short.set(Some(Box::new((buffer, result))));
        mark_dirty(self.key);
    }
}

/// With `SO_LINGER` a close blocks until the peer has everything or the time is up, also where the
/// socket is non-blocking: so it gets a thread of its own.
pub(super) fn close_elsewhere(socket: OwnedFd) {
    if is_simulated(socket.as_fd()) {
        return drop(socket);
    }
    let socket = Arc::new(Mutex::new(Some(socket)));
    let for_thread = Arc::clone(&socket);
    let thread = std::thread::Builder::new().name("annulus-close".to_owned());
    if thread.spawn(move || drop(take(&for_thread))).is_err() {
        if let Some(socket) = take(&socket) {
            // Without a thread it is closed here, and must not block: the kernel goes on alone.
            let _gone = set_linger(&socket, None);
        }
    }
}

fn take(socket: &Mutex<Option<OwnedFd>>) -> Option<OwnedFd> {
    socket.lock().unwrap_or_else(PoisonError::into_inner).take()
}
