//! What the handle of a task writes home when it is used on another thread.
//!
//! A handle and its task agree by plain words of the owner's thread ([`Home`](super::state::Home))
//! as long as the handle is used there. One that is used elsewhere, and finds that the owner does
//! not know, leaves these words alone and writes home. Before the owner reads, the handle may write
//! again, or have come back. So where the owner cannot tell what is newer it keeps what it has and
//! wakes who wrote, upon which the handle looks again.

use super::join::{leave_abroad, leave_at_home, let_go};
use super::mailbox::{Mail, Mailbox};
use super::state::{Handle, Waiting};
use super::task::TaskRef;
use crate::contain::contain;
use std::task::Waker;

/// A handle's letter, with a reference to its task.
pub(super) struct Visit {
    task: TaskRef,
    says: Says,
}

enum Says {
    /// The handle was polled. Boxed, to keep mail small.
    Waits(Box<Waker>),
    /// It goes, and has not seen the output. The reference is its own.
    Leaves,
    /// It goes, and has taken or dropped the output. The reference is its own.
    Served,
}

/// Sees to it that `waker` is woken when the handle has reason to look again.
pub(super) fn wait(task: &TaskRef, waker: &Waker) -> Waiting {
    send(Visit { task: task.clone(), says: Says::Waits(Box::new(waker.clone())) });
    // The owner may stand still and read no mail. Between the letter and this look lies the fence
    // of a push, which pairs with that in `Executor::rest`.
    let header = task.header();
    if header.home.is_done() {
        Waiting::Complete
    } else if header.shared.is_abroad() {
        // By a letter before this one, perhaps, after which the task may have come to its end.
        header.wait_abroad(waker)
    } else {
        Waiting::Done
    }
}

pub(super) fn leave(task: TaskRef) {
    send(Visit { task, says: Says::Leaves });
}

pub(super) fn served(task: TaskRef) {
    send(Visit { task, says: Says::Served });
}

fn send(visit: Visit) {
    // SAFETY: the handle was not abroad when this thread looked, or else the task has a strong
    // count; until the letter is pushed somebody has one, as the module's text shows.
    let mailbox = unsafe { Mailbox::retain(visit.task.header().mailbox) };
    mailbox.push(Mail::Visit(visit));
}

impl Visit {
    /// The owner has the letter in its hands.
    pub(super) fn deliver(self) {
        let Visit { task, says } = self;
        let header = task.header();
        let handle = header.home.handle();
        match says {
            Says::Waits(waker) if header.local.is_complete() => contain(|| waker.wake()),
            Says::Waits(waker) => {
                if handle == Handle::Silent {
                    header.fill(*waker);
                    header.home.set(Handle::Waits);
                    // SAFETY: this is the owner's thread, whose executor takes its mail and holds
                    // the task, as it is not complete.
                    return unsafe { task.ptr().go_abroad() };
                }
                if handle == Handle::Waits {
                    // SAFETY: as above.
                    unsafe { task.ptr().go_abroad() };
                }
                contain(|| waker.wake());
            }
            Says::Leaves if handle == Handle::Abroad => leave_abroad(&task),
            Says::Leaves => leave_at_home(task),
            Says::Served if handle == Handle::Abroad => drop(task),
            Says::Served => let_go(task),
        }
    }

    /// The shard has ended, and all handles are abroad; or this is a forked child, in which nobody
    /// frees a task of the parent's.
    pub(super) fn undeliverable(self) {
        let Visit { task, says } = self;
        match says {
            Says::Waits(waker) => contain(|| waker.wake()),
            Says::Leaves => leave_abroad(&task),
            Says::Served => drop(task),
        }
    }
}
