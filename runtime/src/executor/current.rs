//! Where code learns that it runs on a shard's own thread: a thread-local names the shard whose
//! executor is at work, and what its tasks and wakers may use of it.

use super::mailbox::ShardId;
use super::queue::Queue;
use super::spare::Spare;
use super::task::TaskPtr;
use crate::sync::{Cell, thread_local};
use std::marker::PhantomData;
use std::ptr;

/// What the tasks of an executor reach of it, on its thread.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) queue: Queue,
    pub(super) spare: Spare,
}

impl Core {
    pub(super) fn new() -> Core {
        Core { queue: Queue::new(), spare: Spare::new() }
    }
}

/// The shard at work on this thread, and its core; nobody and null outside.
#[derive(Clone, Copy, Debug)]
struct Current {
    shard: ShardId,
    core: *const Core,
}

const NOWHERE: Current = Current { shard: ShardId::NOBODY, core: ptr::null() };

// No destructor and a constant start, so it can be read at any time, also while the thread ends.
thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(NOWHERE) };
}

/// While this lives, the thread works for the executor that made it.
#[derive(Debug)]
#[must_use]
pub(crate) struct EnterGuard<'a> {
    before: Current,
    core: PhantomData<&'a Core>,
}

pub(super) fn enter(shard: ShardId, core: &Core) -> EnterGuard<'_> {
    let entered = Current { shard, core };
    EnterGuard { before: CURRENT.with(|current| current.replace(entered)), core: PhantomData }
}

impl Drop for EnterGuard<'_> {
    fn drop(&mut self) {
        CURRENT.with(|current| {
            // In a forked child there is nothing to go back to.
            if current.get().shard != ShardId::NOBODY {
                current.set(self.before);
            }
        });
    }
}

/// In a forked child: the thread works for no executor any more, whatever guards there are.
pub(super) fn leave() {
    CURRENT.with(|current| current.set(NOWHERE));
}

/// Whether this thread is at work for that shard.
pub(super) fn is_current(shard: ShardId) -> bool {
    CURRENT.with(|current| current.get().shard == shard)
}

/// Looks at the core of the executor that is at work on this thread, if one is.
#[inline]
pub(super) fn with<R>(look: impl FnOnce(&Core) -> R) -> Option<R> {
    let core = CURRENT.with(|current| current.get().core);
    // SAFETY: it is null, or the guard that set it borrows the executor, which therefore still
    // exists, as the guard is on this thread's stack below us.
    unsafe { core.as_ref() }.map(look)
}

/// Puts a task of the current shard into its run queue.
pub(super) fn push_current(task: TaskPtr) {
    debug_assert!(is_current(task.header().owner.get()));
    let queued = with(|core| core.queue.push(task));
    debug_assert!(queued.is_some());
}
