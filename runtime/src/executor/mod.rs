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
//! 2. `Local`, `Home`, the run queue, the list and the owner's part of the count in `Shared` are
//!    touched by the owner's thread only, but for one flag of `Home`.
//!    Who asks whether it is the owner compares the task's [`ShardId`] with the thread's, which
//!    only [`Executor::enter`] sets, and which is never used again after the shard.
//! 3. Every other thread goes through `Shared` and the [`Mailbox`].
//! 4. No borrow is held while the user's code runs: a poll, and the drop of a future, an output, a
//!    waker or a closure. All of them may spawn, wake and abort. What they panic with is caught.
//! 5. Once a task is complete its future is gone; whose the output is, `Home` says, or `Shared`
//!    if the handle is abroad. Then the executor lets go, and the memory is freed by whoever drops
//!    the last reference, wherever.
//!
//! # Where the handle is
//!
//! Most handles are made, awaited and dropped on the thread that owns the task. As long as that
//! holds the handle is **at home**, and agrees with its task without a locked instruction. The
//! executor holds such a task after its end, too, until the handle has seen that.
//!
//! A handle that is used on another thread finds that it is not **abroad**, and is a visitor there:
//! it may look whether the task is done, and then has the output; for all else it writes home
//! (`visit`). When the owner reads of a visitor that waits, it puts the handle abroad, by one
//! exchange in `Shared`, where the two agree from then on. So does the end of the shard, before it
//! closes its mailbox, with every handle that is at home. Nobody comes back from abroad. The handle
//! of a task that was sent to its shard is born there.
//!
//! # Why the mailbox is alive when a foreign waker uses it
//!
//! A task points to the mailbox without counting. Only two follow the pointer from another thread;
//! before they push they take a strong count of their own, so all that is to be shown is that the
//! mailbox is alive until then. Both have a reference to the task all the while.
//!
//! A visitor has found the handle not abroad. The owner holds the task until its handle is abroad
//! or has gone, and before it puts it abroad it gives the task a strong count of its own.
//!
//! The other is the thread that turned the task's `MAILED` (in `Shared`) on. Let M be the moment
//! when it did. To let go of a task is to turn the bit on for good (`Shared::complete`, `close`).
//!
//! - The bit is turned off only when the owner takes the mail, hence after the push. And no
//!   thread turns it after the executor let go. So that comes after M.
//! - Either letting go finds the bit off. Then the mail was taken before, so the count was taken
//!   before, and that while the executor held the task: an executor lets go of all its tasks before
//!   it drops its own strong count.
//! - Or it finds it on. Then the task gets a strong count of its own, while the executor still has
//!   one. The task keeps it until it is freed, and it is not freed before the thread has given up
//!   its reference, after the push.
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
mod visit;
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
pub(crate) use waker::{RootWaker, wake_own};

use crate::contain::contain;
use crate::sync::{Arc, Cell, Ordering, fence};
use current::Core;
use hooks::Hook;
use mailbox::{Mail, Owner};
use origin::Origin;
use state::{Asked, Enqueue, Handle, Pause, Start};
use std::future::Future;
use std::task::{Context, Poll};
use task::{Newborn, TaskPtr, TaskRef, UNLISTED};

/// The tasks of one shard. Stays on its thread, and is used through shared references, also by the
/// tasks it runs.
pub(crate) struct Executor {
    shard: ShardId,
    mailbox: Arc<Mailbox>,
    core: Core,
    /// How many tasks are not complete.
    len: Cell<usize>,
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
            len: Cell::new(0),
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
        let at = if self.closed.get() { Handle::Abroad } else { Handle::Silent };
        let owner = Owner::settled(self.shard);
        let task = TaskPtr::allocate(future, &self.mailbox, owner, at, origin);
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
        let index = self.core.tasks.borrow_mut().insert(task);
        self.len.set(self.len.get() + 1);
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

    /// The task's output is stored: hands it on, and lets go of the task if its handle is not at
    /// home.
    fn complete(&self, task: TaskPtr) {
        let index = task.header().index.get();
        if index != UNLISTED {
            // Still listed, so that what the hook spawns gets another number.
            if let Some(hooks) = &self.hooks {
                self.tell(&hooks.terminate, task);
            }
            self.len.set(self.len.get() - 1);
        }
        if let Handle::Silent | Handle::Waits = task.header().home.handle() {
            // SAFETY: the task stays listed, and the handle is at home.
            return unsafe { task.tell_handle() };
        }
        if index != UNLISTED {
            self.core.tasks.borrow_mut().remove(index);
        }
        // SAFETY: the executor has just let go of the task but for this, and has a strong count.
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
                Mail::Visit(visit) => visit.deliver(),
                Mail::Call(call) => contain(call),
                Mail::Ring => {}
            }
            taken += 1;
        }
        taken
    }

    /// Takes the mail before the executor stands still: visitors that do not know that their tasks
    /// are done would wait for as long as that lasts.
    fn rest(&self) {
        // In a forked child the mail is the parent's.
        if !self.shard.is_ours() {
            return;
        }
        // Pairs with the fence in `Mailbox::push`: either the mail is seen here, or its sender sees
        // what has been stored up to now.
        fence(Ordering::SeqCst);
        self.take_mail(usize::MAX);
    }

    /// The executor stands still when the answer is dropped.
    pub(crate) fn rest_at_end(&self) -> Resting<'_> {
        Resting(self)
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

    /// How many tasks are not complete.
    pub(crate) fn len(&self) -> usize {
        self.len.get()
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
        let end = self.core.tasks.borrow().end();
        for index in 0..end {
            let task = self.core.tasks.borrow().get(index);
            if let Some(task) = task {
                self.cancel(task);
            }
        }
        debug_assert_eq!(self.len(), 0);
        debug_assert!(!self.has_ready());
    }

    /// Takes every task out of the run queue and sees to it that none comes back, since the queue
    /// does not keep a task alive that is cancelled in it. Handles go abroad; those of tasks that
    /// are complete are all that these were held for.
    fn seize_all(&self) {
        while self.core.queue.pop().is_some() {}
        let end = self.core.tasks.borrow().end();
        for index in 0..end {
            let Some(task) = self.core.tasks.borrow().get(index) else { continue };
            let header = task.header();
            if header.local.is_complete() {
                self.core.tasks.borrow_mut().remove(index);
                // SAFETY: the task is off the list, and was held for its handle at home only.
                unsafe { task.let_go_abroad() };
                continue;
            }
            header.local.seize();
            if header.home.handle() != Handle::Abroad {
                // SAFETY: the executor holds the task and has a strong count.
                unsafe { task.go_abroad() };
            }
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
    let (owner, at) = (Owner::unborn(), Handle::Abroad);
    let task = TaskPtr::allocate(future, mailbox, owner, at, Origin::here());
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

/// From [`Executor::rest_at_end`].
#[must_use]
pub(crate) struct Resting<'a>(&'a Executor);

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.rest();
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
