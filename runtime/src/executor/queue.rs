//! The run queue: tasks in the order in which they were woken, linked through their own headers.

use super::task::TaskPtr;
use crate::sync::Cell;

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
