//! Descriptors with one owner, and what epoll has said about them.
//!
//! An operation in flight holds an `Rc<Fd>`, so that the number cannot be closed and given to
//! another file while the kernel, or an entry that still waits for the kernel, refers to it.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::Waker;

use crate::fork::Process;
use crate::sys::EpollFd;

/// Which way an operation waits for its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Until something can be received or accepted.
    Read,
    /// Until something can be sent, or a connect has ended.
    Write,
}

/// A descriptor that belongs to one shard and is closed when its last `Rc` goes.
#[derive(Debug)]
pub struct Fd {
    owned: ManuallyDrop<OwnedFd>,
    /// Set once the epoll driver has registered the descriptor; never set by the ring.
    registration: OnceCell<Registration>,
    /// Where to close a descriptor whose close may block (SO_LINGER).
    closer: Cell<Option<fn(OwnedFd)>>,
    process: Process,
}

impl Fd {
    /// Takes ownership of a descriptor.
    #[must_use]
    pub fn new(owned: OwnedFd) -> Rc<Fd> {
        Rc::new(Fd {
            owned: ManuallyDrop::new(owned),
            registration: OnceCell::new(),
            closer: Cell::new(None),
            process: Process::current(),
        })
    }

    /// The number.
    #[must_use]
    pub fn raw(&self) -> RawFd {
        self.owned.as_raw_fd()
    }

    /// Has the descriptor closed by this function, for a close that may block. Not in a forked
    /// child, whose close is one of a copy.
    pub fn close_with(&self, closer: Option<fn(OwnedFd)>) {
        self.closer.set(closer);
    }

    /// Takes the descriptor back if nothing else holds it.
    ///
    /// # Errors
    ///
    /// Gives the descriptor back while an operation in flight still holds it.
    pub fn into_owned(this: Rc<Fd>) -> Result<OwnedFd, Rc<Fd>> {
        let fd = Rc::try_unwrap(this)?;
        fd.deregister();
        let mut fd = ManuallyDrop::new(fd);
        // SAFETY: `fd` is never dropped, so nobody else takes the descriptor.
        let owned = unsafe { ManuallyDrop::take(&mut fd.owned) };
        // SAFETY: as above; the registration is dropped once, here.
        unsafe { std::ptr::drop_in_place(&raw mut fd.registration) };
        Ok(owned)
    }

    pub(crate) fn registration(&self) -> Option<&Registration> {
        self.registration.get()
    }

    pub(crate) fn set_registration(&self, registration: Registration) {
        let unset = self.registration.set(registration).is_ok();
        assert!(unset, "a descriptor is registered once");
    }

    fn deregister(&self) {
        if let Some(registration) = self.registration.get() {
            registration.end(self.raw());
        }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.owned.as_fd()
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // Before the close: a duplicate of the descriptor would keep the registration alive.
        self.deregister();
        // SAFETY: this is the only place, and it runs once, that takes the descriptor out.
        let owned = unsafe { ManuallyDrop::take(&mut self.owned) };
        match self.closer.get() {
            Some(close) if self.process.is_current() => close(owned),
            _ => drop(owned),
        }
    }
}

/// A descriptor's place in an epoll instance.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) selector: Rc<Selector>,
    pub(crate) token: u64,
    pub(crate) readiness: Rc<Readiness>,
}

impl Registration {
    fn end(&self, fd: RawFd) {
        // In a forked child the instance is the parent's, and so is the registration.
        if !self.selector.process.is_current() {
            return;
        }
        self.selector.epoll.remove(fd);
        self.selector.dead.borrow_mut().push(self.token);
    }
}

/// The epoll instance of a shard, and the registrations that have ended since the last turn.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) epoll: EpollFd,
    pub(crate) dead: RefCell<Vec<u64>>,
    pub(crate) process: Process,
}

/// What is known of a descriptor's readiness. A clear bit means that an edge will come.
#[derive(Debug)]
pub(crate) struct Readiness {
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// A short read proves nothing: the peer has finished or the socket has failed, and no further
    /// edge may come; or there was urgent data, at whose mark reads stop short (tcp(7)).
    short_reads_mislead: Cell<bool>,
    reader: Waiter,
    writer: Waiter,
}

/// Whom to wake. The waker stays when it has been used, for the next time.
#[derive(Debug, Default)]
struct Waiter {
    waker: RefCell<Option<Waker>>,
    /// Somebody has found nothing and is to be woken, once.
    awaited: Cell<bool>,
}

impl Waiter {
    /// Hands out the waker, unless nobody waits or `wake` did all there was to do.
    fn wake(&self, wake: fn(&Waker) -> bool) -> Option<Waker> {
        let mut waker = self.waker.borrow_mut();
        if !self.awaited.take() || waker.as_ref().is_some_and(wake) { None } else { waker.take() }
    }
}

impl Readiness {
    pub(crate) fn new() -> Readiness {
        Readiness {
            readable: Cell::new(true),
            writable: Cell::new(true),
            short_reads_mislead: Cell::new(false),
            reader: Waiter::default(),
            writer: Waiter::default(),
        }
    }

    pub(crate) fn is_ready(&self, interest: Interest) -> bool {
        self.bit(interest).get()
    }

    /// After a call that would have blocked.
    pub(crate) fn clear(&self, interest: Interest) {
        self.bit(interest).set(false);
    }

    /// After a read that took less than it could have: the next byte raises an edge.
    pub(crate) fn clear_after_short_read(&self) {
        if !self.short_reads_mislead.get() {
            self.readable.set(false);
        }
    }

    /// Remembers whom to wake; the replaced waker is the caller's to drop.
    pub(crate) fn set_waker(&self, interest: Interest, waker: Waker) -> Option<Waker> {
        let waiter = self.waiter(interest);
        waiter.awaited.set(true);
        waiter.waker.borrow_mut().replace(waker)
    }

    /// Somebody waits who is to be woken by this waker. False if it is not the one which is here:
    /// [replace](Readiness::set_waker) it.
    pub(crate) fn await_by(&self, interest: Interest, waker: &Waker) -> bool {
        let waiter = self.waiter(interest);
        let here = waiter.waker.borrow().as_ref().is_some_and(|known| known.will_wake(waker));
        waiter.awaited.set(here);
        here
    }

    /// The descriptor is gone; its wakers are the caller's to drop.
    pub(crate) fn take_wakers(&self) -> impl Iterator<Item = Waker> + use<> {
        let waiters = [&self.reader, &self.writer];
        waiters.map(|waiter| waiter.waker.take()).into_iter().flatten()
    }

    /// Notes an event and wakes those whom it concerns: by `wake`, which answers whether that was
    /// all there is to do, or else by handing out their wakers.
    pub(crate) fn notice(&self, events: u32, woken: &mut Vec<Waker>, wake: fn(&Waker) -> bool) {
        let has = |mask: libc::c_int| events & mask as u32 != 0;
        let failed = has(libc::EPOLLERR | libc::EPOLLHUP);
        if failed || has(libc::EPOLLRDHUP | libc::EPOLLPRI) {
            self.short_reads_mislead.set(true);
        }
        if failed || has(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLPRI) {
            self.readable.set(true);
            woken.extend(self.reader.wake(wake));
        }
        if failed || has(libc::EPOLLOUT) {
            self.writable.set(true);
            woken.extend(self.writer.wake(wake));
        }
    }

    fn bit(&self, interest: Interest) -> &Cell<bool> {
        match interest {
            Interest::Read => &self.readable,
            Interest::Write => &self.writable,
        }
    }

    fn waiter(&self, interest: Interest) -> &Waiter {
        match interest {
            Interest::Read => &self.reader,
            Interest::Write => &self.writer,
        }
    }
}

/// Marks a descriptor non-blocking, as every descriptor of the runtime must be.
///
/// # Errors
///
/// Those of `fcntl(2)`.
pub fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> io::Result<()> {
    // SAFETY: F_GETFL takes no further argument and touches no memory.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: F_SETFL takes an integer and touches no memory.
    if wanted != flags && unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
