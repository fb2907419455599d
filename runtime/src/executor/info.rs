//! What can be told of a task from outside: its number, its name, its type, where it was spawned.

use super::mailbox::ShardId;
use super::task::TaskPtr;
use crate::trace::untraced_name;
use std::fmt;
use std::marker::PhantomData;
use std::panic::Location;

/// Tells a task from all others that are alive in this process.
///
/// The number is used again some time after the task has ended.
///
/// # Examples
///
/// ```
/// use annulus_runtime::task;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let one = task::spawn(async { task::id() }).await.unwrap();
/// println!("this was task {one}");
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    shard: ShardId,
    /// Where the executor lists the task.
    index: u32,
}

impl TaskId {
    pub(crate) fn new(shard: ShardId, index: u32) -> TaskId {
        TaskId { shard, index }
    }

    /// Tells it from the others of its shard.
    pub(crate) fn index(self) -> u32 {
        self.index
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.shard.number(), self.index)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

/// What is known of a task. Nothing is looked up before it is asked for.
#[derive(Clone, Copy)]
pub struct TaskInfo<'a> {
    task: TaskPtr,
    shard: usize,
    _borrowed: PhantomData<&'a ()>,
}

impl<'a> TaskInfo<'a> {
    /// For as long as the executor that calls this holds the task.
    pub(super) fn new(task: TaskPtr, shard: usize) -> TaskInfo<'a> {
        TaskInfo { task, shard, _borrowed: PhantomData }
    }

    /// The task's number.
    #[must_use]
    pub fn id(&self) -> TaskId {
        let header = self.task.header();
        TaskId { shard: header.owner.get(), index: header.index.get() }
    }

    /// The place in its runtime of the shard on which it lives.
    #[must_use]
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// The name that [`Builder::name`](crate::task::Builder::name) gave it.
    #[must_use]
    pub fn name(&self) -> Option<&'a str> {
        // SAFETY: the executor holds the task for the time that this is made for.
        unsafe { self.task.origin() }.name()
    }

    /// The type of its future, as [`std::any::type_name`] writes it.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        untraced_name(self.task.type_name())
    }

    /// Where in the program it was spawned.
    #[must_use]
    pub fn location(&self) -> &'static Location<'static> {
        // SAFETY: as above.
        unsafe { self.task.origin() }.place()
    }
}

impl fmt::Debug for TaskInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskInfo")
            .field("id", &self.id())
            .field("shard", &self.shard())
            .field("name", &self.name())
            .field("type_name", &self.type_name())
            .field("location", &format_args!("{}", self.location()))
            .finish()
    }
}
