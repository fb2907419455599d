//! A task's waker that tells the subscriber what is done with it. Without these events the console
//! takes every waiting task for one that has lost its waker.
//!
//! There is one for each task, and all its clones are equal to it, so that `will_wake` says what it
//! says without. The task's future has it and is dropped by the executor, which ends the circle.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::task::{RawWaker, RawWakerVTable, Waker};

use tracing::dispatcher::with_default;
use tracing::{Dispatch, Span};

/// What the wakers of one task point to.
pub(super) struct Watched {
    waker: Waker,
    /// The number of the span, not the span, which would then be open for as long as a waker is.
    span: u64,
    /// Where that number means something: the one of the thread that wakes may be another.
    subscriber: Dispatch,
}

/// Wakers go to every thread.
const _: () = {
    const fn goes_anywhere<T: Send + Sync>() {}
    goes_anywhere::<Watched>();
};

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop_waker);

impl Watched {
    /// None if no subscriber has the span.
    pub(super) fn new(waker: &Waker, span: &Span) -> Option<Arc<Watched>> {
        span.with_subscriber(|(id, subscriber)| {
            let (waker, subscriber) = (waker.clone(), subscriber.clone());
            Arc::new(Watched { waker, span: id.into_u64(), subscriber })
        })
    }

    pub(super) fn wakes_as(&self, waker: &Waker) -> bool {
        self.waker.will_wake(waker)
    }

    /// Lends a waker for as long as `f` runs. It is not counted, and no event tells of it.
    pub(super) fn lend<R>(self: &Arc<Self>, f: impl FnOnce(&Waker) -> R) -> R {
        let raw = RawWaker::new(Arc::as_ptr(self).cast(), &VTABLE);
        // SAFETY: the table keeps the contract of wakers for a pointer from an `Arc<Watched>`. This
        // one is the caller's, who has it until `f` is over, and it is not dropped here.
        let waker = ManuallyDrop::new(unsafe { Waker::from_raw(raw) });
        f(&waker)
    }

    fn tell(&self, op: &'static str) {
        with_default(&self.subscriber, || {
            tracing::trace!(target: "tokio::task::waker", op, task.id = self.span);
        });
    }
}

unsafe fn clone(raw: *const ()) -> RawWaker {
    // SAFETY: the waker that is cloned keeps the value alive, and its count is left alone.
    let watched = ManuallyDrop::new(unsafe { Arc::from_raw(raw.cast::<Watched>()) });
    watched.tell("waker.clone");
    RawWaker::new(Arc::into_raw(Arc::clone(&watched)).cast(), &VTABLE)
}

unsafe fn wake(raw: *const ()) {
    // SAFETY: the waker was a count and gives it up.
    let watched = unsafe { Arc::from_raw(raw.cast::<Watched>()) };
    watched.tell("waker.wake");
    watched.waker.wake_by_ref();
}

unsafe fn wake_by_ref(raw: *const ()) {
    // SAFETY: the waker keeps the value alive.
    let watched = unsafe { &*raw.cast::<Watched>() };
    watched.tell("waker.wake_by_ref");
    watched.waker.wake_by_ref();
}

unsafe fn drop_waker(raw: *const ()) {
    // SAFETY: the waker was a count and gives it up.
    let watched = unsafe { Arc::from_raw(raw.cast::<Watched>()) };
    watched.tell("waker.drop");
}
