//! `Multishot`: the stream that carries one operation with many answers.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::driver::operation::{Many, MultishotOperation, hand_over};
use crate::driver::{Driver, Key};
use crate::op::{Flight, Landing};
use crate::shard;

/// A stream of the kernel's answers to one request.
///
/// The request is made at the first poll, and made again when the kernel has ended it and all its
/// answers were taken: so the stream itself never ends. An item that says that nothing more will
/// come (the end of a stream, an error) is for the owner to obey.
///
/// # Cancel safety
///
/// Answers wait here, in order, until they are taken: a caller of
/// [`poll_next`](Multishot::poll_next) that goes away loses none. Dropping the `Multishot` itself
/// disposes of the answers that wait and of those still to come.
///
/// # Panics
///
/// As [`Op`](crate::io::Op).
#[must_use = "streams do nothing unless polled"]
pub struct Multishot<T: MultishotOperation> {
    /// Taken only by drop.
    operation: Option<T>,
    flight: Flight,
}

impl<T: MultishotOperation> Multishot<T> {
    /// A stream for this operation.
    pub fn new(operation: T) -> Multishot<T> {
        Multishot { operation: Some(operation), flight: Flight::default() }
    }

    /// The next answer. Arms the request if it is not armed.
    #[inline]
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<T::Item> {
        match self.poll_armed(cx) {
            Poll::Ready(Some(item)) => Poll::Ready(item),
            Poll::Ready(None) => self.poll_arming(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_arming(&mut self, cx: &mut Context<'_>) -> Poll<T::Item> {
        let shard = shard::current();
        self.flight.check(&shard);
        let operation = self.operation.as_mut().expect("taken by drop only");
        let answer = shard.driver.poll_multishot(&mut self.flight.key, operation, cx.waker());
        self.flight.note(&shard);
        // SAFETY: the driver gives each answer of this operation once.
        answer.map(|completion| unsafe { operation.item(completion) })
    }

    /// As [`poll_next`](Multishot::poll_next), but arms nothing: `None` if nothing is armed and
    /// all answers were taken.
    #[inline]
    pub fn poll_armed(&mut self, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        let answer = self.on_shard(|driver, key| driver.poll_armed(key, cx.waker()));
        let operation = self.operation.as_mut().expect("taken by drop only");
        // SAFETY: the driver gives each answer of this operation once.
        answer.map(|completion| completion.map(|completion| unsafe { operation.item(completion) }))
    }

    /// An answer that has arrived.
    pub fn pop(&mut self) -> Option<T::Item> {
        let completion = self.on_shard(|driver, key| driver.pop_multishot(key))?;
        // SAFETY: the driver gives each answer of this operation once.
        self.operation.as_mut().map(|operation| unsafe { operation.item(completion) })
    }

    #[inline]
    fn on_shard<R>(&self, ask: impl FnOnce(&Driver, Option<Key>) -> R) -> R {
        shard::with(|shard| {
            self.flight.check(shard);
            ask(&shard.driver, self.flight.key)
        })
    }

    /// The operation.
    #[must_use]
    pub fn operation(&self) -> &T {
        self.operation.as_ref().expect("taken by drop only")
    }

    /// True while the kernel may still answer.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.on_shard(Driver::is_armed)
    }

    /// Asks the kernel to stop. Answers under way still arrive; then the request is no longer
    /// armed, until the next [`poll_next`](Multishot::poll_next).
    pub fn stop(&mut self) {
        self.on_shard(Driver::stop_multishot);
    }

    /// Stops the request and waits, in the kernel and for no longer than it takes to say so, until
    /// it has ended. Answers that came before the end can be [popped](Multishot::pop).
    pub fn stop_now(&mut self) {
        self.stop();
        shard::current().settle(|| !self.is_armed());
    }
}

impl<T: MultishotOperation> Stream for Multishot<T> {
    type Item = T::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        self.get_mut().poll_next(cx).map(Some)
    }
}

impl<T: MultishotOperation> Drop for Multishot<T> {
    fn drop(&mut self) {
        let Some(operation) = self.operation.take() else { return };
        match self.flight.end() {
            Landing::Nowhere => {}
            Landing::On(shard, key) => shard.driver.orphan_multishot(key, operation),
            Landing::Late(answers) => {
                let mut orphan = Many(operation);
                answers.into_iter().for_each(|answer| hand_over(&mut orphan, answer));
            }
        }
    }
}

impl<T: MultishotOperation> fmt::Debug for Multishot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight = self.flight.key.is_some();
        f.debug_struct("Multishot").field("in_flight", &in_flight).finish_non_exhaustive()
    }
}
