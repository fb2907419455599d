//! The executor: keeps the tasks of one shard, and polls those that are ready. It knows no I/O.
//!
//! # The life of a task
//!
//! ```text
//!                 spawn
//!                   |
//!                   v            run
//!    wake  +--> Scheduled --------------------> Running <------+
//!          |        |  ^                         | | |         | wake
//!          |  abort |  | woken while it ran      | | |         |
//!          |        |  +-------------------------|-|-+---> RunningWoken
//!          |        v            Pending         | |
//!        Idle <---- | ---------------------------+ |  abort, then Pending
//!          |        |                              +----> RunningDoomed --+
//!    abort |        v       run                    |                      |
//!          +----> Doomed ------> future dropped ---+ Ready, panic         |
//!                                       ^          |                      |
//!                                       |          v                      |
//!                                       |       Complete                  |
//!                                       +---------------------------------+
//! ```
//!
//! # Rules
//!
//! 1. A task is polled, and its future dropped, on its owner's thread only, and dropped once. The
//!    executor holds every uncompleted task, so no reference that is dropped elsewhere is the last.
//! 2. `Local`, the run queue and the owner's part of the count in `Shared` are touched by the
//!    owner's thread only.
//!    Who asks whether it is the owner compares the task's [`ShardId`] with the thread's, which
//!    only [`Executor::enter`] sets, and which is never used again after the shard.
//! 3. Every other thread goes through `Shared` and the [`Mailbox`].
//! 4. No borrow is held while the user's code runs: a poll, and the drop of a future, an output, a
//!    waker or a closure. All of them may spawn, wake and abort. What they panic with is caught.
//! 5. Once a task is complete its future is gone; whose the output is, `Shared` says. Then the
//!    executor lets go, and the memory is freed by whoever drops the last reference, wherever.
//!
//! # Why the mailbox is alive when a foreign waker uses it
//!
//! A task points to the mailbox without counting. Only a thread that turned the task's `MAILED`
//! (in `Shared`) on follows the pointer. Before it pushes it takes a strong count of its own,
//! so all that is to be shown is that the mailbox is alive until then. The thread has a reference
//! to the task all the while. Let M be the moment it turned the bit on.
//!
//! - The bit is turned off only when the owner takes the mail, hence after the push. And no
//!   thread turns it after `Shared::complete` did, for good. So `complete` comes after M.
//! - Either `complete` finds the bit off. Then the mail was taken before, so the count was taken
//!   before, and that while the executor had not yet let go of the task: an executor lets go of
//!   all its tasks before it drops its own strong count.
//! - Or `complete` finds it on. Then [`TaskPtr::finish`] gives the task a strong count of its own,
//!   while the executor still has one. The task keeps it until it is freed, and it is not freed
//!   before the thread has given up its reference, after the push.
//!
//! A task that is spawned for another shard ([`spawn_at`]) is mail first. Until its executor takes
//! it, who has the mail stands for the executor: the one mailbox that it waits in, or the thread
//! that found this closed and ends the task. Either has a strong count at hand, which is all that
//! `finish` asks for. No mailbox is let go of before it is closed, also where its shard never came
//! to be (`crew`). Nobody owns the task meanwhile, so that all others go through `Shared` and
//! count there; what they send comes behind the task itself, as the queue keeps the order.
//!
//! A task that nobody but the executor knows has no such thread, nor mail on the way, as mail is a
//! reference too; it is freed without a look at the bit.

mod current;
mod hooks;
mod info;
mod join;
mod list;
mod mailbox;
mod origin;
mod queue;
#[cfg(not(any(loom, asan)))]
#[path = "spare.rs"]
mod spare;
#[cfg(any(loom, asan))]
#[path = "no_spare.rs"]
mod spare;
mod state;
mod task;
mod waker;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) use current::EnterGuard;
pub(crate) use hooks::Hooks;
pub use info::{TaskId, TaskInfo};
pub use join::{AbortHandle, JoinError, JoinHandle};
pub(crate) use mailbox::{Mailbox, ShardId, SharedMailbox};
pub(crate) use queue::Place;
pub(crate) use waker::{RootWaker, is_of_task, wake_own};

use crate::contain::contain;
use crate::sync::{Arc, Cell};
use current::Core;
use hooks::Hook;
use list::List;
use mailbox::{Mail, Owner};
use origin::Origin;
use state::{Asked, Enqueue, Pause, Start};
use std::cell::RefCell;
use std::future::Future;
use std::task::{Context, Poll};
use task::{Newborn, TaskPtr, TaskRef, UNLISTED};

/// The tasks of one shard. Stays on its thread, and is used through shared references, also by the
/// tasks it runs.
pub(crate) struct Executor {
    shard: ShardId,
    mailbox: Arc<Mailbox>,
    core: Core,
    /// Every uncompleted task; being listed is being held.
    tasks: RefCell<List>,
    /// The task whose future is being polled or dropped.
    current: Cell<Option<TaskPtr>>,
    /// The shard's place in its runtime.
    index: usize,
    hooks: Option<Box<Hooks>>,
    /// How many calls of `run` are on the stack.
    runs: Cell<u32>,
    closed: Cell<bool>,
}

impl Executor {
    /// An executor for the shard that the mailbox belongs to.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Executor {
        Executor {
            shard: mailbox.shard(),
            mailbox,
            core: Core::new(),
            tasks: RefCell::new(List::new()),
            current: Cell::new(None),
            index: 0,
            hooks: None,
            runs: Cell::new(0),
            closed: Cell::new(false),
        }
    }

    /// With the shard's place in its runtime, and who is told of its tasks.
    pub(crate) fn with_hooks(mut self, index: usize, hooks: Hooks) -> Executor {
        self.index = index;
        self.hooks = hooks.into_word();
        self
    }

    /// Makes this executor the one at work on this thread, until the guard goes. Wakes of its tasks
    /// are then cheap; outside they go through the mailbox, like those from other threads.
    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        current::enter(self.shard, &self.core)
    }

    /// Queues a new task, and does not poll it. After [`Executor::close`] the future is dropped at
    /// once, and the handle reports a cancelled task.
    #[track_caller]
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.spawn_from(Origin::here(), future)
    }

    /// As [`spawn`](Executor::spawn), with a name for the task.
    #[track_caller]
    pub(crate) fn spawn_named<F>(&self, name: &str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.spawn_from(Origin::named(name), future)
    }

    fn spawn_from<F>(&self, origin: Origin, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let task = TaskPtr::allocate(future, &self.mailbox, Owner::settled(self.shard), origin);
        // SAFETY: this takes over the reference that a new task has for its handle.
        let handle = unsafe { TaskRef::adopt(task) };
        if self.closed.get() {
            task.header().local.seize();
            self.cancel(task);
        } else {
            self.admit(task);
        }
        // SAFETY: this is the reference made for the handle, and the output is that of the future.
        unsafe { JoinHandle::new(handle) }
    }

    /// Takes a new task in, which is held from then on.
    #[inline]
    fn admit(&self, task: TaskPtr) {
        let index = self.tasks.borrow_mut().insert(task);
        task.header().index.set(index);
        self.core.queue.push(task);
        if let Some(hooks) = &self.hooks {
            self.tell(&hooks.spawn, task);
        }
    }

    /// Most shards have no hooks.
    #[cold]
    fn tell(&self, hook: &Option<Hook>, task: TaskPtr) {
        hooks::call(hook, self.info(task));
    }

    fn info(&self, task: TaskPtr) -> TaskInfo<'_> {
        TaskInfo::new(task, self.index)
    }

    /// Polls ready tasks, first woken first, until `budget` have had their turn or none is ready.
    /// Tasks that are woken meanwhile, also by themselves, are queued behind the others. The
    /// observer sees each poll, and may end the run. Answers how many had their turn.
    pub(crate) fn run(&self, budget: u32, observer: &impl Observer) -> u32 {
        let _entered = self.enter();
        let _running = RunGuard::new(&self.runs);
        for turns in 0..budget {
            let Some(task) = self.core.queue.pop() else { return turns };
            if self.run_task(task, observer) == Pace::Stop {
                return turns + 1;
            }
        }
        budget
    }

    fn run_task(&self, task: TaskPtr, observer: &impl Observer) -> Pace {
        match task.header().local.start() {
            Start::Poll => self.poll(task, observer),
            Start::Cancel => {
                self.cancel(task);
                Pace::GoOn
            }
        }
    }

    fn poll(&self, task: TaskPtr, observer: &impl Observer) -> Pace {
        // SAFETY: the executor holds the task at least until the poll is over.
        let waker = unsafe { waker::borrowed(task) };
        let mut cx = Context::from_waker(&waker);
        let before = self.current.replace(Some(task));
        if let Some(hooks) = &self.hooks {
            self.tell(&hooks.before_poll, task);
        }
        observer.before_poll(self.info(task));
        // SAFETY: this is the owner's thread, and `start` has found the task waiting for its poll.
        let poll = unsafe { task.poll(&mut cx) };
        let pace = observer.after_poll(self.info(task));
        if let Some(hooks) = &self.hooks {
            self.tell(&hooks.after_poll, task);
        }
        self.current.set(before);
        match poll {
            Poll::Ready(()) => self.complete(task),
            Poll::Pending => match task.header().local.pause() {
                Pause::Wait => {}
                Pause::Requeue => self.core.queue.push(task),
                Pause::Cancel => self.cancel(task),
            },
        }
        pace
    }

    /// Ends a task that is in the executor's hands: running, but not being polled.
    fn cancel(&self, task: TaskPtr) {
        let before = self.current.replace(Some(task));
        // SAFETY: this is the owner's thread, and the caller has the uncompleted task in hand.
        unsafe { task.cancel(self.mailbox.lost()) };
        self.current.set(before);
        self.complete(task);
    }

    /// The task's output is stored: hands it on and lets go of the task.
    fn complete(&self, task: TaskPtr) {
        let index = task.header().index.get();
        if index != UNLISTED {
            // Still listed, so that what the hook spawns gets another number.
            if let Some(hooks) = &self.hooks {
                self.tell(&hooks.terminate, task);
            }
            self.tasks.borrow_mut().remove(index);
        }
        // SAFETY: the task was just taken off the list by which the executor held it, and the
        // executor has a strong count.
        unsafe { task.finish() };
    }

    /// Takes the mail that is there, at most so many pieces: queues woken tasks and runs closures,
    /// in order. Answers how many pieces there were.
    pub(crate) fn take_mail(&self, limit: usize) -> u32 {
        let _entered = self.enter();
        // Only what is there now, so that a busy sender does not keep the shard from its turn.
        let mut taken = 0;
        for _ in 0..self.mailbox.len().min(limit) {
            let Some(mail) = self.mailbox.take() else { break };
            match mail {
                Mail::Wake(task) => self.deliver(task.ptr()),
                Mail::Spawn(task) => {
                    let task = task.adopt(&self.mailbox);
                    self.admit(task);
                }
                Mail::Call(call) => contain(call),
                Mail::Ring => {}
            }
            taken += 1;
        }
        taken
    }

    fn deliver(&self, task: TaskPtr) {
        let header = task.header();
        if header.local.is_complete() {
            // `Shared` stays as it is, so that no more mail is sent.
            return;
        }
        let enqueue = match header.shared.take() {
            Asked::Wake => header.local.wake(),
            Asked::Abort => header.local.abort(),
        };
        if enqueue == Enqueue::Now {
            self.core.queue.push(task);
        }
    }

    /// The task whose future is being polled or dropped. A look at it must not outlive that.
    pub(crate) fn current(&self) -> Option<TaskInfo<'_>> {
        self.current.get().map(|task| self.info(task))
    }

    /// How many tasks are ready.
    pub(crate) fn ready(&self) -> u32 {
        self.core.queue.len()
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.ready() > 0
    }

    /// The place behind all that are ready now.
    pub(crate) fn behind_ready(&self) -> Place {
        self.core.queue.end()
    }

    /// Whether all that were ready in front of this place have been taken to be run.
    pub(crate) fn has_reached(&self, place: Place) -> bool {
        self.core.queue.has_reached(place)
    }

    /// How many tasks are not complete.
    pub(crate) fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Ends everything: drops every future and all mail, and whatever these spawn, until nothing is
    /// left. From now on what is spawned or sent is dropped at once. Does nothing the second time.
    ///
    /// # Panics
    ///
    /// If a task of this executor is being polled, as its future cannot be dropped.
    pub(crate) fn close(&self) {
        assert!(self.runs.get() == 0, "a runtime cannot be ended by one of its own tasks");
        let _entered = self.enter();
        if self.closed.replace(true) {
            return;
        }
        self.seize_all();
        self.mailbox.close();
        // Nothing is listed any more, so the indexes of today are enough.
        let end = self.tasks.borrow().end();
        for index in 0..end {
            let task = self.tasks.borrow().get(index);
            if let Some(task) = task {
                self.cancel(task);
            }
        }
        debug_assert_eq!(self.len(), 0);
        debug_assert!(!self.has_ready());
    }

    /// Takes every task out of the run queue and sees to it that none comes back, since the queue
    /// does not keep a task alive that is cancelled in it.
    fn seize_all(&self) {
        while self.core.queue.pop().is_some() {}
        for task in self.tasks.borrow().iter() {
            task.header().local.seize();
        }
    }
}

/// Sends a new task to the shard that the mailbox belongs to. The closure makes its future there.
/// If that shard has ended, or ends before it takes its mail, the closure is dropped here or there
/// and the handle reports a cancelled task.
#[track_caller]
pub(crate) fn spawn_at<F, Fut>(mailbox: &Arc<Mailbox>, make: F) -> JoinHandle<Fut::Output>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + 'static,
    Fut::Output: Send + 'static,
{
    let future = async move { make().await };
    let task = TaskPtr::allocate(future, mailbox, Owner::unborn(mailbox.shard()), Origin::here());
    // SAFETY: this takes over the reference that a new task has for its handle.
    let handle = unsafe { TaskRef::adopt(task) };
    // SAFETY: the task is unborn, and nobody has it but the handle, which is still here. Before
    // its first poll the future holds nothing but the closure, which is `Send`.
    let newborn = unsafe { Newborn::new(task) };
    mailbox.push(Mail::Spawn(newborn));
    // SAFETY: this is the reference made for the handle, and the output is that of the future.
    unsafe { JoinHandle::new(handle) }
}

/// In a forked child, within `fork`: no executor of the parent is at work here any more.
pub(crate) fn disown_all() {
    ShardId::disown_all();
    current::leave();
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.close();
    }
}

/// Who watches the executor at work. What it does must not panic.
pub(crate) trait Observer {
    /// The task is about to be polled.
    fn before_poll(&self, task: TaskInfo<'_>);

    /// It has been, and nobody has its output yet. Answers whether others may follow in this run.
    fn after_poll(&self, task: TaskInfo<'_>) -> Pace;
}

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    GoOn,
    Stop,
}

/// Nobody watches.
#[cfg(test)]
impl Observer for () {
    fn before_poll(&self, _task: TaskInfo<'_>) {}

    fn after_poll(&self, _task: TaskInfo<'_>) -> Pace {
        Pace::GoOn
    }
}

/// Counts a call of `run` while it is on the stack.
struct RunGuard<'a>(&'a Cell<u32>);

impl<'a> RunGuard<'a> {
    fn new(runs: &'a Cell<u32>) -> Self {
        runs.set(runs.get() + 1);
        Self(runs)
    }
}

impl Drop for RunGuard<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
