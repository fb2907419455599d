//! The run queue: tasks in the order in which they were woken, linked through their own headers.
//!
//! Also where a waker learns that it runs on the task's own shard: a thread-local names the shard
//! whose executor is at work, and its queue.

use super::mailbox::ShardId;
use super::task::TaskPtr;
use crate::sync::{Cell, thread_local};
use std::marker::PhantomData;
use std::ptr;

/// First in, first out. The tasks in it are uncompleted, so the executor holds them.
#[derive(Debug)]
pub(super) struct Queue {
    head: Cell<Option<TaskPtr>>,
    tail: Cell<Option<TaskPtr>>,
    len: Cell<u32>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { head: Cell::new(None), tail: Cell::new(None), len: Cell::new(0) }
    }

    pub(super) fn len(&self) -> u32 {
        self.len.get()
    }

    /// Appends a task whose state just said that it is to be enqueued, so it is in no queue yet.
    pub(super) fn push(&self, task: TaskPtr) {
        task.header().next.set(None);
        match self.tail.replace(Some(task)) {
            Some(tail) => tail.header().next.set(Some(task)),
            None => self.head.set(Some(task)),
        }
        self.len.set(self.len.get() + 1);
    }

    pub(super) fn pop(&self) -> Option<TaskPtr> {
        let task = self.head.get()?;
        let next = task.header().next.take();
        self.head.set(next);
        if next.is_none() {
            self.tail.set(None);
        }
        self.len.set(self.len.get() - 1);
        Some(task)
    }
}

/// The shard at work on this thread, and its run queue; nobody and null outside.
#[derive(Clone, Copy, Debug)]
struct Current {
    shard: ShardId,
    queue: *const Queue,
}

const NOWHERE: Current = Current { shard: ShardId::NOBODY, queue: ptr::null() };

// No destructor and a constant start, so it can be read at any time, also while the thread ends.
thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(NOWHERE) };
}

/// While this lives, the thread works for the executor that made it.
#[derive(Debug)]
#[must_use]
pub(crate) struct EnterGuard<'a> {
    before: Current,
    queue: PhantomData<&'a Queue>,
}

pub(super) fn enter(shard: ShardId, queue: &Queue) -> EnterGuard<'_> {
    let entered = Current { shard, queue };
    EnterGuard { before: CURRENT.with(|current| current.replace(entered)), queue: PhantomData }
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

/// Puts a task of the current shard into its run queue.
pub(super) fn push_current(task: TaskPtr) {
    let current = CURRENT.with(|current| current.get());
    debug_assert_eq!(current.shard, task.header().owner.get());
    // SAFETY: the guard that set the pointer borrows the executor, which therefore still exists. It
    // is not null, as the caller has found the task's shard to be current.
    let queue = unsafe { &*current.queue };
    queue.push(task);
}
