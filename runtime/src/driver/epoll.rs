//! The epoll driver: readiness in, the same answers out.
//!
//! A descriptor is registered once, for both directions and edge-triggered, when a call on it
//! first would have blocked. Every operation tries its system call first. After `WouldBlock` the
//! direction's bit is cleared and stays clear until an edge sets it, so that nothing is asked of
//! the kernel while its answer is known.
//!
//! Nothing is ever in flight here: an operation that is dropped has not begun.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;

use super::operation::{Completion, MultishotOperation, Operation};
use super::patience::Patience;
use super::{Counts, Wait, Work};
use crate::buf::Pool;
use crate::contain::contain;
use crate::executor::{is_of_task, wake_own};
use crate::fd::{Fd, Interest, Readiness, Registration, Selector};
use crate::fork::Process;
use crate::sys::{self, EPOLL_EVENTS_MAX, EpollFd};

/// The token of the wake-up descriptor.
const WAKE_TOKEN: u64 = u64::MAX;

pub(crate) struct Epoll {
    selector: Rc<Selector>,
    registrations: RefCell<Slab<(u32, Rc<Readiness>)>>,
    generation: Cell<u32>,
    pool: Rc<Pool>,
    enters: Cell<u64>,
    events: Cell<u64>,
    /// The last wait may have left events behind.
    behind: Cell<bool>,
    patience: Patience,
}

impl Epoll {
    pub(crate) fn new(pool: Rc<Pool>, wake_fd: RawFd) -> io::Result<Epoll> {
        let epoll = EpollFd::new()?;
        // Edge-triggered and never drained: each write to the eventfd gives one event.
        epoll.add(wake_fd, (libc::EPOLLIN | libc::EPOLLET) as u32, WAKE_TOKEN)?;
        Ok(Epoll {
            selector: Rc::new(Selector {
                epoll,
                dead: RefCell::default(),
                process: Process::current(),
            }),
            registrations: RefCell::default(),
            generation: Cell::new(0),
            pool,
            enters: Cell::new(0),
            events: Cell::new(0),
            behind: Cell::new(false),
            patience: Patience::default(),
        })
    }

    pub(crate) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            enters: self.enters.get(),
            completions: self.events.get(),
            pool_dry: self.pool.dry(),
            ..Counts::default()
        }
    }

    /// The descriptor that other loops can wait for.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.selector.epoll.raw_fd()
    }

    /// True if every event that had come by the last wait was taken.
    pub(crate) fn is_drained(&self) -> bool {
        !self.behind.get()
    }

    /// Polls an operation of one answer.
    pub(crate) fn poll_op<T: Operation>(
        &self,
        operation: &mut T,
        waker: &Waker,
    ) -> Poll<io::Result<u32>> {
        loop {
            let interest = operation.interest();
            let known = |fd: &Rc<Fd>| self.known_ready(fd, interest, waker);
            if !operation.descriptor().is_none_or(known) {
                return Poll::Pending;
            }
            match operation.call() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // What cannot be waited for has its answer.
                    let Some(fd) = operation.descriptor() else { return Poll::Ready(Err(e)) };
                    if let Err(refused) = self.not_ready(fd, interest) {
                        return Poll::Ready(Err(refused));
                    }
                }
                answer => return Poll::Ready(answer),
            }
        }
    }

    /// Polls an operation of many answers.
    pub(crate) fn poll_multishot<T: MultishotOperation>(
        &self,
        operation: &mut T,
        waker: &Waker,
    ) -> Poll<Completion> {
        loop {
            if !self.known_ready(operation.descriptor(), operation.interest(), waker) {
                return Poll::Pending;
            }
            match operation.call() {
                Ok(completion) => return Poll::Ready(completion),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let interest = operation.interest();
                    if let Err(refused) = self.not_ready(operation.descriptor(), interest) {
                        return Poll::Ready(Completion::from_error(&refused));
                    }
                }
                Err(e) => return Poll::Ready(Completion::from_error(&e)),
            }
        }
    }

    /// A call on this descriptor would have blocked: from now on an edge tells when it would not.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`: ENOSPC (`fs.epoll.max_user_watches`), ENOMEM, or EPERM for a file
    /// that cannot be waited for.
    pub(crate) fn not_ready(&self, fd: &Fd, interest: Interest) -> io::Result<()> {
        if let Some(registration) = fd.registration() {
            self.check_home(registration);
            registration.readiness.clear(interest);
            return Ok(());
        }
        let readiness = Rc::new(Readiness::new());
        readiness.clear(interest);
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let index = self.registrations.borrow_mut().insert((generation, Rc::clone(&readiness)));
        let token = u64::from(generation) << 32 | index as u64;
        let readable = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLPRI;
        let events = readable | libc::EPOLLOUT | libc::EPOLLET;
        // An edge that came before this call is reported by it: nothing is missed.
        if let Err(error) = self.selector.epoll.add(fd.raw(), events as u32, token) {
            self.registrations.borrow_mut().remove(index);
            return Err(error);
        }
        fd.set_registration(Registration { selector: Rc::clone(&self.selector), token, readiness });
        Ok(())
    }

    pub(crate) fn poll_unblocked(&self, fd: &Fd, interest: Interest, waker: &Waker) -> Poll<()> {
        if self.known_ready(fd, interest, waker) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ends a turn: waits as told and notes every event.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait(2)`, which only a bug can cause.
    pub(crate) fn turn(&self, wait: Wait, work: &mut Work) -> io::Result<()> {
        // What is ready since then must not be slept over.
        let wait = if self.sweep() { Wait::No } else { wait };
        let timeout = match wait {
            Wait::No => Some(Duration::ZERO),
            Wait::AtMost(limit) => limit.map(sys::clamp_wait),
        };
        let registrations = self.registrations.borrow();
        let before = self.events.get();
        self.enters.set(self.enters.get() + 1);
        let answer = self.selector.epoll.wait(timeout, |event| {
            self.events.set(self.events.get() + 1);
            // The wake-up has no registration; a token of another generation is a late event of a
            // descriptor that is closed.
            let index = (event.token & u64::from(u32::MAX)) as usize;
            match registrations.get(index) {
                Some((generation, readiness)) if event.token >> 32 == u64::from(*generation) => {
                    readiness.notice(event.events, &mut work.wakers, wake_own);
                }
                _ => {}
            }
        });
        let full = self.events.get() - before >= EPOLL_EVENTS_MAX as u64;
        self.behind.set(full || answer.is_err());
        self.patience.weigh(answer)
    }

    /// Forgets the registrations that have ended. True if that has run what may be anybody's code.
    fn sweep(&self) -> bool {
        if self.selector.dead.borrow().is_empty() {
            return false;
        }
        let dead = self.selector.dead.take();
        let wakers: Vec<_> = {
            let mut registrations = self.registrations.borrow_mut();
            let mut remove = |token| registrations.remove((token & u64::from(u32::MAX)) as usize);
            dead.into_iter().flat_map(|token| remove(token).1.take_wakers()).collect()
        };
        // Others than those of tasks may own anything: more descriptors too, or what wakes a task.
        let anybodys = wakers.iter().any(|waker| !is_of_task(waker));
        wakers.into_iter().for_each(|waker| contain(|| drop(waker)));
        anybodys
    }

    /// False while the kernel's answer is known to be `WouldBlock`; then the waker is remembered.
    fn known_ready(&self, fd: &Fd, interest: Interest, waker: &Waker) -> bool {
        let Some(registration) = fd.registration() else { return true };
        self.check_home(registration);
        let readiness = &registration.readiness;
        if readiness.is_ready(interest) {
            return true;
        }
        if !readiness.await_by(interest, waker) {
            let new = waker.clone();
            drop(readiness.set_waker(interest, new));
        }
        false
    }

    /// # Panics
    ///
    /// If the descriptor is registered elsewhere: its edges would be noticed there only.
    fn check_home(&self, registration: &Registration) {
        assert!(
            Rc::ptr_eq(&registration.selector, &self.selector),
            "a descriptor was used within another runtime than where it waits"
        );
    }
}
