//! The run queue: tasks in the order in which they were woken, linked through their own headers.

use super::task::TaskPtr;
use crate::sync::Cell;

/// First in, first out. The tasks in it are uncompleted, so the executor holds them.
#[derive(Debug)]
pub(super) struct Queue {
    head: Cell<Option<TaskPtr>>,
    tail: Cell<Option<TaskPtr>>,
    /// How many tasks were ever pushed and popped; both wrap.
    pushed: Cell<u32>,
    popped: Cell<u32>,
}

/// A place in a queue: behind what was pushed before it was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(u32);

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            head: Cell::new(None),
            tail: Cell::new(None),
            pushed: Cell::new(0),
            popped: Cell::new(0),
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.pushed.get().wrapping_sub(self.popped.get())
    }

    pub(super) fn end(&self) -> Place {
        Place(self.pushed.get())
    }

    /// Whether all that was in front of this place has left the queue.
    pub(super) fn has_reached(&self, place: Place) -> bool {
        // Places that were asked for two thousand million tasks ago are nobody's.
        self.popped.get().wrapping_sub(place.0) < 1 << 31
    }

    /// Appends a task whose state just said that it is to be enqueued, so it is in no queue yet.
    pub(super) fn push(&self, task: TaskPtr) {
        task.header().next.set(None);
        match self.tail.replace(Some(task)) {
            Some(tail) => tail.header().next.set(Some(task)),
            None => self.head.set(Some(task)),
        }
        self.pushed.set(self.pushed.get().wrapping_add(1));
    }

    pub(super) fn pop(&self) -> Option<TaskPtr> {
        let task = self.head.get()?;
        let next = task.header().next.take();
        self.head.set(next);
        if next.is_none() {
            self.tail.set(None);
        }
        self.popped.set(self.popped.get().wrapping_add(1));
        Some(task)
    }
}
