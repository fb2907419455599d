//! `Op`: the future that carries one operation.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use crate::driver::operation::{Completion, Operation, Single, hand_over};
use crate::driver::{Key, take_untaken};
use crate::shard::{self, Shard};

/// A future that makes one request to the kernel and resolves to its answer.
///
/// Nothing happens before the first poll. The operation stays in the future: no allocation is made
/// for it.
///
/// # Cancel safety
///
/// Dropping the future asks the kernel to give the request up, and never waits for it. What the
/// operation owns is kept until the kernel has answered for the last time; an answer that comes
/// after the drop is disposed of: an accepted socket is closed, a buffer freed. An operation whose
/// late answer must not be lost has to be polled to its end by its owner, as the streams do.
///
/// # Panics
///
/// When it is polled outside of a runtime, on another shard than where it began, or after it was
/// ready.
#[must_use = "futures do nothing unless polled"]
pub struct Op<T: Operation> {
    /// Taken when the future is ready, or when it is dropped in flight.
    operation: Option<T>,
    flight: Flight,
    cancelled: bool,
}

impl<T: Operation> Op<T> {
    /// A future for this operation.
    pub fn new(operation: T) -> Op<T> {
        Op { operation: Some(operation), flight: Flight::default(), cancelled: false }
    }

    /// Asks the kernel to give the request up. Its answer still comes: what had been done by then,
    /// or `ECANCELED`. Answers false if the request is not with the kernel, which has nothing to
    /// give up then: drop the future.
    ///
    /// # Panics
    ///
    /// As polling.
    pub fn cancel(&mut self) -> bool {
        let Some(key) = self.flight.key else { return false };
        shard::with(|shard| {
            self.flight.check(shard);
            shard.driver.cancel(key);
        });
        self.cancelled = true;
        true
    }

    /// The operation, if it is not with the kernel: the future has not begun, or its request is
    /// one that could only be tried and not left there, as on epoll.
    pub fn into_operation(mut self) -> Option<T> {
        if self.flight.key.is_none() { self.operation.take() } else { None }
    }

    /// The operation, unless the future has been ready.
    pub fn operation(&self) -> Option<&T> {
        self.operation.as_ref()
    }
}

impl<T: Operation> Future for Op<T> {
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        let this = self.get_mut();
        let shard = shard::current();
        this.flight.check(&shard);
        let operation = this.operation.as_mut().expect("an operation is not polled once ready");
        let before = this.flight.key;
        let answer = shard.driver.poll_op(&mut this.flight.key, operation, cx.waker());
        this.flight.note(&shard);
        let Poll::Ready(result) = answer else {
            if this.cancelled && this.flight.key != before {
                // A request that was interrupted, as a cancel may do, was made once more.
                this.cancel();
            }
            return Poll::Pending;
        };
        let operation = this.operation.take().expect("just used");
        // SAFETY: the driver has just given this operation's one answer.
        Poll::Ready(unsafe { operation.complete(result) })
    }
}

impl<T: Operation> Drop for Op<T> {
    fn drop(&mut self) {
        let Some(operation) = self.operation.take() else { return };
        match self.flight.end() {
            Landing::Nowhere => {}
            Landing::On(shard, key) => shard.driver.orphan(key, operation),
            Landing::Late(answers) => {
                let mut orphan = Single(Some(operation));
                answers.into_iter().for_each(|answer| hand_over(&mut orphan, answer));
            }
        }
    }
}

impl<T: Operation> fmt::Debug for Op<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Op").field("in_flight", &self.flight.key.is_some()).finish_non_exhaustive()
    }
}

/// Where an operation is in flight. Stays on the shard's thread.
#[derive(Default)]
pub(crate) struct Flight {
    pub(crate) key: Option<Key>,
    /// A shard that is gone was drained: nothing is in flight there, but answers may be left.
    shard: Weak<Shard>,
    _stays: PhantomData<*const ()>,
}

impl Flight {
    /// # Panics
    ///
    /// If the flight began on another shard.
    #[inline]
    pub(crate) fn check(&self, shard: &Shard) {
        assert!(
            self.key.is_none() || std::ptr::eq(self.shard.as_ptr(), shard),
            "an operation in flight was polled within another runtime than where it began"
        );
    }

    /// Remembers where the flight began.
    pub(crate) fn note(&mut self, shard: &Rc<Shard>) {
        if self.key.is_some() && !std::ptr::eq(self.shard.as_ptr(), Rc::as_ptr(shard)) {
            self.shard = Rc::downgrade(shard);
        }
    }

    /// The future goes: where its operation must be left, if it is in flight.
    pub(crate) fn end(&mut self) -> Landing {
        let Some(key) = self.key.take() else { return Landing::Nowhere };
        match self.shard.upgrade() {
            Some(shard) if shard.id.is_ours() => Landing::On(shard, key),
            // What is in flight for the parent of a forked child is the parent's to give up.
            Some(_parents) => Landing::Nowhere,
            None => {
                let driver = self.shard.as_ptr().wrapping_byte_add(offset_of!(Shard, driver));
                Landing::Late(take_untaken(driver.cast(), key))
            }
        }
    }
}

/// Where the operation of a future that goes is left.
pub(crate) enum Landing {
    /// Nothing is in flight.
    Nowhere,
    On(Rc<Shard>, Key),
    /// The shard has gone, and left these answers.
    Late(VecDeque<Completion>),
}
