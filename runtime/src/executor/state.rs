//! The four words of a task's state, each moved by named transitions whose answer must be used.
//!
//! [`Local`] is the owner thread's alone and costs no locked instruction. [`Remote`] is how every
//! other thread asks for a wake or an abort. [`JoinState`] is what the task and its handle agree
//! on. [`Refs`] keeps the memory.

use crate::sync::{AtomicU8, AtomicU32, Cell, Ordering, fence};
use std::process::abort;

/// What the task is doing, as its owner thread sees it.
#[derive(Debug)]
pub(super) struct Local(Cell<Phase>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for a wake.
    Idle,
    /// In the run queue.
    Scheduled,
    /// In the run queue, where it will be cancelled instead of polled.
    Doomed,
    /// Being polled or dropped.
    Running,
    /// Being polled, and woken meanwhile.
    RunningWoken,
    /// Being polled, and aborted meanwhile.
    RunningDoomed,
    /// The future is gone. Nothing leads out of here.
    Complete,
}

/// Whether a transition asks for a place in the run queue.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Enqueue {
    Now,
    Needless,
}

/// What the executor does with a task that it took from the run queue.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Start {
    Poll,
    Cancel,
}

/// What the executor does with a task whose poll answered `Pending`.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Pause {
    Wait,
    Requeue,
    Cancel,
}

impl Local {
    /// A new task is in the run queue from the start.
    pub(super) fn scheduled() -> Self {
        Self(Cell::new(Phase::Scheduled))
    }

    pub(super) fn wake(&self) -> Enqueue {
        match self.0.get() {
            Phase::Idle => {
                self.0.set(Phase::Scheduled);
                Enqueue::Now
            }
            Phase::Running => {
                self.0.set(Phase::RunningWoken);
                Enqueue::Needless
            }
            _ => Enqueue::Needless,
        }
    }

    pub(super) fn abort(&self) -> Enqueue {
        match self.0.get() {
            Phase::Idle => {
                self.0.set(Phase::Doomed);
                Enqueue::Now
            }
            Phase::Scheduled => {
                self.0.set(Phase::Doomed);
                Enqueue::Needless
            }
            Phase::Running | Phase::RunningWoken => {
                self.0.set(Phase::RunningDoomed);
                Enqueue::Needless
            }
            Phase::Doomed | Phase::RunningDoomed | Phase::Complete => Enqueue::Needless,
        }
    }

    /// The task has left the run queue.
    pub(super) fn start(&self) -> Start {
        match self.0.replace(Phase::Running) {
            Phase::Scheduled => Start::Poll,
            Phase::Doomed => Start::Cancel,
            phase => unreachable!("a task in the run queue was {phase:?}"),
        }
    }

    /// The poll has answered `Pending`.
    pub(super) fn pause(&self) -> Pause {
        match self.0.get() {
            Phase::Running => {
                self.0.set(Phase::Idle);
                Pause::Wait
            }
            Phase::RunningWoken => {
                self.0.set(Phase::Scheduled);
                Pause::Requeue
            }
            Phase::RunningDoomed => Pause::Cancel,
            phase => unreachable!("a polled task was {phase:?}"),
        }
    }

    /// The executor takes the task into its hands, so that no wake puts it into the run queue.
    pub(super) fn seize(&self) {
        debug_assert!(!self.is_complete());
        self.0.set(Phase::Running);
    }

    pub(super) fn complete(&self) {
        self.0.set(Phase::Complete);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.0.get() == Phase::Complete
    }
}

/// What other threads ask of the task. The one that finds no request pending sends the mail; the
/// others know that mail is under way.
#[derive(Debug)]
pub(super) struct Remote(AtomicU8);

/// Mail is under way, or the task is complete and needs none any more.
const MAILED: u8 = 1;
/// The mail asks for more than a poll.
const ABORT: u8 = 2;

/// Whether the asking thread has to send the mail.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Post {
    Now,
    Needless,
}

/// What the mail asks for.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Asked {
    Wake,
    Abort,
}

/// Whether a sender may still be about to send when its task completes.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Retire {
    Quiet,
    MailUnderWay,
}

impl Remote {
    pub(super) fn quiet() -> Self {
        Self(AtomicU8::new(0))
    }

    pub(super) fn wake(&self) -> Post {
        self.ask(MAILED)
    }

    pub(super) fn abort(&self) -> Post {
        self.ask(MAILED | ABORT)
    }

    fn ask(&self, bits: u8) -> Post {
        // Release: what the waker wrote before is seen by the poll that follows `take`. So it is
        // written also when mail is under way already. Acquire: pairs with `take`, so that the mail
        // is sent after the one before it was taken.
        match self.0.fetch_or(bits, Ordering::AcqRel) & MAILED {
            0 => Post::Now,
            _ => Post::Needless,
        }
    }

    /// The owner has the mail in its hands; the next request sends mail again.
    pub(super) fn take(&self) -> Asked {
        // An exchange, not a store: Acquire needs to read what the last `ask` has written.
        match self.0.swap(0, Ordering::AcqRel) & ABORT {
            0 => Asked::Wake,
            _ => Asked::Abort,
        }
    }

    /// The task is complete: from now on every request is needless.
    pub(super) fn retire(&self) -> Retire {
        // Acquire: pairs with `ask`; Release is not needed, as `ask` answers `Needless` after it.
        match self.0.fetch_or(MAILED, Ordering::AcqRel) & MAILED {
            0 => Retire::Quiet,
            _ => Retire::MailUnderWay,
        }
    }
}

/// What a task and its handle agree on.
///
/// The output belongs to the task until `complete`, then to the handle if it was there at that
/// moment. The waker field belongs to the handle, except between `lend_waker` and the first of
/// `reclaim_waker`, `leave` and `complete`; if that is `complete`, it is the task's for good.
#[derive(Debug)]
pub(super) struct JoinState(AtomicU8);

/// The handle is there.
const HANDLE: u8 = 1;
/// The waker field holds a waker and is lent to the task.
const WAKER: u8 = 2;
/// The output is stored.
const COMPLETE: u8 = 4;

/// What is left to do for a task that has stored its output.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Completion {
    /// Nobody will ask: the task drops the output.
    DropOutput,
    /// The handle will look by itself.
    LeaveOutput,
    /// The handle waits: the waker is the task's, to be taken out and woken.
    WakeHandle,
}

/// What a handle finds that polls.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Look {
    Complete,
    /// Pending, and the waker field is the handle's and empty.
    WakerOwned,
    /// Pending, and the waker field is lent to the task.
    WakerLent,
}

/// How the handle's transition on the waker field went.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Waiting {
    Done,
    /// The task was faster: the output is the handle's, the waker field stays where it was.
    Complete,
}

/// What a handle has to drop before it goes.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Leave {
    Nothing,
    Waker,
    Output,
}

impl JoinState {
    pub(super) fn with_handle() -> Self {
        Self(AtomicU8::new(HANDLE))
    }

    /// The output is stored. Only the task calls this, once.
    pub(super) fn complete(&self) -> Completion {
        // Release: hands the output over. Acquire: receives the waker, pairs with `lend_waker`.
        let before = self.0.fetch_or(COMPLETE, Ordering::AcqRel);
        debug_assert_eq!(before & COMPLETE, 0);
        match (before & HANDLE, before & WAKER) {
            (0, _) => Completion::DropOutput,
            (_, 0) => Completion::LeaveOutput,
            (_, _) => Completion::WakeHandle,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.0.load(Ordering::Acquire) & COMPLETE != 0
    }

    /// The handle looks.
    pub(super) fn look(&self) -> Look {
        // Acquire: pairs with `complete`, for the output.
        let now = self.0.load(Ordering::Acquire);
        match (now & COMPLETE, now & WAKER) {
            (0, 0) => Look::WakerOwned,
            (0, _) => Look::WakerLent,
            (_, _) => Look::Complete,
        }
    }

    /// The handle has filled the waker field.
    pub(super) fn lend_waker(&self) -> Waiting {
        // Release: hands the waker over. Acquire: pairs with `complete`, for the output.
        let before = self.0.fetch_or(WAKER, Ordering::AcqRel);
        debug_assert_eq!(before & WAKER, 0);
        if before & COMPLETE == 0 { Waiting::Done } else { Waiting::Complete }
    }

    /// The handle wants the waker field back, to put another waker in.
    pub(super) fn reclaim_waker(&self) -> Waiting {
        // Acquire: pairs with `complete`, for the output.
        let before = self.0.fetch_and(!WAKER, Ordering::AcqRel);
        debug_assert_ne!(before & WAKER, 0);
        if before & COMPLETE == 0 { Waiting::Done } else { Waiting::Complete }
    }

    /// The handle goes.
    pub(super) fn leave(&self) -> Leave {
        // Acquire: pairs with `complete`, for the output. Release: the handle's reads of the waker
        // field are over before the task drops the output.
        let before = self.0.fetch_and(!(HANDLE | WAKER), Ordering::AcqRel);
        debug_assert_ne!(before & HANDLE, 0);
        match (before & COMPLETE, before & WAKER) {
            (0, 0) => Leave::Nothing,
            (0, _) => Leave::Waker,
            (_, _) => Leave::Output,
        }
    }
}

/// How many references there are to a task, counted in two parts.
///
/// The owner thread counts in `local`, without locked instructions; everybody else counts in
/// `shared`. A reference may be made on one side and dropped on the other, so each part alone can
/// be anything; their sum is the truth. While the executor holds the task, `shared` also contains
/// [`HELD`], so that no sum on the foreign side reaches zero. `merge` ends that: it moves the
/// owner's part over, takes `HELD` away, and from then on `shared` alone decides.
#[derive(Debug)]
pub(super) struct Refs {
    shared: AtomicU32,
    local: Cell<i32>,
}

/// The executor's own hold on the task.
const HELD: u32 = 1 << 30;
/// A count above this can only be a program that forgets references. It would wrap in the end and
/// free the task under their feet, so the process ends here.
const SHARED_MAX: u32 = 1 << 31;
/// When the owner's part has drifted this far from zero it is moved to the shared part, so that
/// references which are always made here and dropped elsewhere do not exhaust either.
const LOCAL_DRIFT_MAX: i32 = 1 << 16;

/// Whether the reference just given back was the last.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Released {
    Last,
    OthersRemain,
}

impl Refs {
    /// Held by the executor, and one reference for the handle.
    pub(super) fn held_and_one() -> Self {
        Self { shared: AtomicU32::new(HELD), local: Cell::new(1) }
    }

    /// Only on the owner thread, before `merge`.
    pub(super) fn retain_local(&self) {
        self.drift(1);
    }

    /// Only on the owner thread, before `merge`. Never the last: the executor holds the task.
    pub(super) fn release_local(&self) {
        self.drift(-1);
    }

    fn drift(&self, by: i32) {
        let local = self.local.get() + by;
        if local.abs() < LOCAL_DRIFT_MAX {
            self.local.set(local);
            return;
        }
        // Relaxed: this orders nothing, `merge` does.
        self.add_shared(local as u32, Ordering::Relaxed);
        self.local.set(0);
    }

    pub(super) fn retain_shared(&self) {
        // Relaxed: who makes a reference has one, and hands the new one on by other means.
        self.add_shared(1, Ordering::Relaxed);
    }

    fn add_shared(&self, by: u32, order: Ordering) {
        if self.shared.fetch_add(by, order) > SHARED_MAX {
            abort();
        }
    }

    pub(super) fn release_shared(&self) -> Released {
        // Release: this thread is done with the task; pairs with the Acquire of the last one.
        match self.shared.fetch_sub(1, Ordering::Release) {
            1 => {
                fence(Ordering::Acquire);
                Released::Last
            }
            _ => Released::OthersRemain,
        }
    }

    /// Whether nobody but the executor has a reference, so that nobody can make one either.
    ///
    /// The load may be old, but not too old: a reference is dropped after those that were made from
    /// it, so every state that the owner can still see counts at least one for each that is alive.
    pub(super) fn only_held(&self) -> bool {
        // Acquire: pairs with the Release of those who dropped theirs.
        self.shared.load(Ordering::Acquire).wrapping_add(self.local.get() as u32) == HELD
    }

    /// The executor lets go: both parts become one. Only on the owner thread, once.
    pub(super) fn merge(&self) -> Released {
        // Set before the exchange, after which the task may be freed by somebody else.
        let moved = (self.local.replace(0) as u32).wrapping_sub(HELD);
        // Release and Acquire: as in `release_shared`.
        match self.shared.fetch_add(moved, Ordering::AcqRel).wrapping_add(moved) {
            0 => Released::Last,
            _ => Released::OthersRemain,
        }
    }
}
