//! Wakers: for tasks, and for the future that `block_on` keeps on its caller's stack.
//!
//! A waker works from every thread and at any time. On the task's own shard it touches the owner's
//! words only; from anywhere else it sends mail, and as long as that is under way it sends no more.

use super::current::{is_current, push_current};
use super::mailbox::{Mail, Mailbox};
use super::state::{Enqueue, Post};
use super::task::{TaskPtr, TaskRef};
use crate::sync::{Arc, AtomicBool, Ordering};
use std::mem::ManuallyDrop;
use std::sync::Arc as StdArc;
use std::task::{RawWaker, RawWakerVTable, Wake, Waker};

/// A waker for the poll that the executor is about to do. It takes no reference, so it is not
/// dropped either.
///
/// # Safety
/// The executor must hold the task for as long as the answer, not counting its clones, is used.
pub(super) unsafe fn borrowed(task: TaskPtr) -> ManuallyDrop<Waker> {
    // SAFETY: the table below keeps the contract of wakers for such a pointer.
    ManuallyDrop::new(unsafe { Waker::from_raw(RawWaker::new(task.as_raw(), &VTABLE)) })
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop_waker);

unsafe fn clone(raw: *const ()) -> RawWaker {
    // SAFETY: the waker that is cloned keeps the task alive.
    let task = TaskRef::new(unsafe { TaskPtr::from_raw(raw) });
    RawWaker::new(ManuallyDrop::new(task).ptr().as_raw(), &VTABLE)
}

unsafe fn wake(raw: *const ()) {
    // SAFETY: the waker keeps the task alive.
    let task = unsafe { TaskPtr::from_raw(raw) };
    // SAFETY: the waker was a reference and gives it up.
    let task = unsafe { TaskRef::adopt(task) };
    wake_task(task.ptr());
}

unsafe fn wake_by_ref(raw: *const ()) {
    // SAFETY: the waker keeps the task alive.
    wake_task(unsafe { TaskPtr::from_raw(raw) });
}

unsafe fn drop_waker(raw: *const ()) {
    // SAFETY: the waker keeps the task alive.
    let task = unsafe { TaskPtr::from_raw(raw) };
    // SAFETY: the waker was a reference and gives it up.
    drop(unsafe { TaskRef::adopt(task) });
}

/// Sees to it that the task is polled again, if it is not complete.
fn wake_task(task: TaskPtr) {
    let header = task.header();
    if is_current(header.owner.get()) {
        if header.local.wake() == Enqueue::Now {
            push_current(task);
        }
    } else if header.shared.ask_to_wake() == Post::Now {
        send(task);
    }
}

/// Wakes a task of the shard at work on this thread. False, and nothing done, if the waker is
/// another's. Unlike [`Waker::wake_by_ref`] it runs nobody's code.
pub(crate) fn wake_own(waker: &Waker) -> bool {
    if !is_of_task(waker) {
        return false;
    }
    // SAFETY: the table says that it is a task's, and the waker keeps the task alive.
    let task = unsafe { TaskPtr::from_raw(waker.data()) };
    let own = is_current(task.header().owner.get());
    if own && task.header().local.wake() == Enqueue::Now {
        push_current(task);
    }
    own
}

/// Whether it is the waker of a task, of this shard or another. Its drop runs nobody's code.
pub(crate) fn is_of_task(waker: &Waker) -> bool {
    std::ptr::eq(waker.vtable(), &raw const VTABLE)
}

/// Sees to it that the task's future is dropped, if the task is not complete.
pub(super) fn abort_task(task: TaskPtr) {
    let header = task.header();
    if is_current(header.owner.get()) {
        if header.local.abort() == Enqueue::Now {
            push_current(task);
        }
    } else if header.shared.ask_to_abort() == Post::Now {
        send(task);
    }
}

/// Sends the mail that `Shared` just asked this thread to send.
#[cold]
fn send(task: TaskPtr) {
    // A count of our own: once the mail is pushed the owner may be done with the task and the
    // mailbox, while this thread is still about to ring.
    // SAFETY: until the mail is pushed somebody has a strong count, as the module's text shows.
    let mailbox = unsafe { Mailbox::retain(task.header().mailbox) };
    mailbox.push(Mail::Wake(TaskRef::new(task)));
}

/// Wakes the future that `block_on` polls itself.
#[derive(Clone)]
pub(crate) struct RootWaker(StdArc<Root>);

struct Root {
    /// Woken on its own shard. Only that thread touches it, so no locked instruction is needed.
    woken_here: AtomicBool,
    /// Woken from elsewhere. A flag of its own, because a plain store by the owner would cut the
    /// order between a foreign waker's exchange and the owner's.
    woken_elsewhere: AtomicBool,
    mailbox: Arc<Mailbox>,
}

impl RootWaker {
    /// Woken from the start, as a new future is to be polled.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> RootWaker {
        // `std`'s own pointer, since only for that one does it make wakers.
        RootWaker(StdArc::new(Root {
            woken_here: AtomicBool::new(true),
            woken_elsewhere: AtomicBool::new(false),
            mailbox,
        }))
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker::from(StdArc::clone(&self.0))
    }

    /// Whether the future was woken since this was last asked. Only on the shard's own thread. A
    /// wake that comes between the answer and the sleep is found by [`Mailbox::prepare_sleep`], as
    /// it sends mail.
    pub(crate) fn take_woken(&self) -> bool {
        let here = self.0.woken_here.load(Ordering::Relaxed);
        if here {
            self.0.woken_here.store(false, Ordering::Relaxed);
        }
        // The plain load spares the locked instruction where nothing happened. The exchange is due
        // also when `here` is set: one poll answers both.
        // Acquire: pairs with `wake_by_ref`, so that the poll sees what the waker has written.
        let elsewhere = self.0.woken_elsewhere.load(Ordering::Relaxed)
            && self.0.woken_elsewhere.swap(false, Ordering::Acquire);
        here || elsewhere
    }
}

impl Wake for Root {
    fn wake(self: StdArc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &StdArc<Self>) {
        if is_current(self.mailbox.shard()) {
            // Relaxed: the shard itself looks at the flag before it sleeps.
            self.woken_here.store(true, Ordering::Relaxed);
        } else if !self.woken_elsewhere.swap(true, Ordering::AcqRel) {
            // Release: pairs with `take_woken`. The first to set the flag rings for all.
            self.mailbox.ring();
        }
    }
}
