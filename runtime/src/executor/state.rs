//! What a task's state consists of, each part moved by named transitions whose answer must be used.
//!
//! [`Local`] is the owner thread's alone and costs no locked instruction. [`Shared`] is one word
//! for all threads: how others ask for a wake or an abort, what the task and its handle agree on,
//! and how many references there are. One word, so that the end of a task whose handle is still
//! there, which moves all three, is one locked instruction.

use crate::sync::{AtomicU32, Cell, Ordering};
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

/// What all threads share of a task's state.
///
/// # What others ask for
///
/// The thread that finds no request pending sends the mail; the others know that mail is under way.
/// A task that is complete seems to have mail under way for ever.
///
/// # What the task and its handle agree on
///
/// The output belongs to the task until `complete`, then to the handle if it was there at that
/// moment. The waker field belongs to the handle, except between `lend_waker` and the first of
/// `reclaim_waker`, `leave` and `complete`; if that is `complete`, it is the task's for good.
///
/// # How many references there are
///
/// They are counted in two parts. The owner thread counts in `local`, without locked instructions;
/// everybody else counts in the upper bits of the word. A reference may be made on one side and
/// dropped on the other, so each part alone can be anything; their sum is the truth. While the
/// executor holds the task, the word also counts [`HELD`], so that no sum on the foreign side
/// reaches zero. `complete` or `merge` ends that: it moves the owner's part over, takes `HELD`
/// away, and from then on the word alone decides.
#[derive(Debug)]
pub(super) struct Shared {
    word: AtomicU32,
    local: Cell<i32>,
}

/// Mail is under way, or the task is complete and needs none any more.
const MAILED: u32 = 1 << 0;
/// The mail asks for more than a poll.
const ABORT: u32 = 1 << 1;
/// The handle is there.
const HANDLE: u32 = 1 << 2;
/// The waker field holds a waker and is lent to the task.
const WAKER: u32 = 1 << 3;
/// The output is stored.
const COMPLETE: u32 = 1 << 4;
/// Where the count begins. It wraps at the word's end and disturbs nothing there.
const COUNT_SHIFT: u32 = 5;
/// One reference.
const ONE: u32 = 1 << COUNT_SHIFT;
/// The executor's own hold on the task, as a count.
const HELD: u32 = 1 << 25;
/// A count above this can only be a program that forgets references. It would wrap in the end and
/// free the task under their feet, so the process ends here.
const SHARED_MAX: u32 = 1 << 26;
/// When the owner's part has drifted this far from zero it is moved to the word, so that
/// references which are always made here and dropped elsewhere do not exhaust either.
const LOCAL_DRIFT_MAX: i32 = 1 << 16;

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
pub(super) enum Mail {
    Quiet,
    UnderWay,
}

/// What is left to do for a task that has stored its output.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Completion {
    /// Nobody knows the task but the executor, nor will: it drops the output and frees the memory.
    Alone,
    /// The handle will look by itself, and has all that there was. The executor has let go.
    LetGo,
    /// Nobody will ask: the task drops the output. Then `merge`.
    DropOutput(Mail),
    /// The handle will look by itself. Then `merge`.
    LeaveOutput(Mail),
    /// The handle waits: the waker is the task's, to be taken out and woken. Then `merge`.
    WakeHandle(Mail),
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

/// Whether the reference just given back was the last.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Released {
    Last,
    OthersRemain,
}

/// What others ask for.
impl Shared {
    pub(super) fn ask_to_wake(&self) -> Post {
        self.ask(MAILED)
    }

    pub(super) fn ask_to_abort(&self) -> Post {
        self.ask(MAILED | ABORT)
    }

    fn ask(&self, bits: u32) -> Post {
        // Release: what the waker wrote before is seen by the poll that follows `take`. So it is
        // written also when mail is under way already. Acquire: pairs with `take`, so that the mail
        // is sent after the one before it was taken.
        match self.word.fetch_or(bits, Ordering::AcqRel) & MAILED {
            0 => Post::Now,
            _ => Post::Needless,
        }
    }

    /// The owner has the mail in its hands; the next request sends mail again.
    pub(super) fn take(&self) -> Asked {
        // An exchange, not a store: Acquire needs to read what the last `ask` has written.
        match self.word.fetch_and(!(MAILED | ABORT), Ordering::AcqRel) & ABORT {
            0 => Asked::Wake,
            _ => Asked::Abort,
        }
    }
}

/// What the task and its handle agree on.
impl Shared {
    /// The output is stored; from now on every request is needless. Only the task calls this,
    /// once.
    #[inline]
    pub(super) fn complete(&self) -> Completion {
        if self.only_held() {
            return Completion::Alone;
        }
        // Only the usual case is tried. Relaxed: the exchange finds out whether that is so.
        let now = self.word.load(Ordering::Relaxed);
        if now & (HANDLE | WAKER | MAILED) == HANDLE && self.complete_and_let_go(now) {
            return Completion::LetGo;
        }
        // Release: hands the output over. Acquire: receives the waker, pairs with `lend_waker`;
        // and pairs with `ask`, whose mail is sent by who turned the bit.
        let before = self.word.fetch_or(COMPLETE | MAILED, Ordering::AcqRel);
        debug_assert_eq!(before & COMPLETE, 0);
        let mail = if before & MAILED == 0 { Mail::Quiet } else { Mail::UnderWay };
        match (before & HANDLE, before & WAKER) {
            (0, _) => Completion::DropOutput(mail),
            (_, 0) => Completion::LeaveOutput(mail),
            (_, _) => Completion::WakeHandle(mail),
        }
    }

    /// `complete` and `merge` at once, if the word is still this. Others may free the task then,
    /// so that nothing of it is touched behind the exchange.
    #[inline]
    fn complete_and_let_go(&self, now: u32) -> bool {
        let local = self.local.replace(0);
        let next = (now | COMPLETE | MAILED).wrapping_add(without_hold(local));
        // Release and Acquire: as in `complete` and `merge`.
        let (done, failed) = (Ordering::AcqRel, Ordering::Relaxed);
        let is_done = self.word.compare_exchange(now, next, done, failed).is_ok();
        if !is_done {
            self.local.set(local);
        }
        is_done
    }

    pub(super) fn is_complete(&self) -> bool {
        self.word.load(Ordering::Acquire) & COMPLETE != 0
    }

    /// The handle looks.
    #[inline]
    pub(super) fn look(&self) -> Look {
        // Acquire: pairs with `complete`, for the output.
        let now = self.word.load(Ordering::Acquire);
        match (now & COMPLETE, now & WAKER) {
            (0, 0) => Look::WakerOwned,
            (0, _) => Look::WakerLent,
            (_, _) => Look::Complete,
        }
    }

    /// The handle has filled the waker field.
    pub(super) fn lend_waker(&self) -> Waiting {
        // Release: hands the waker over. Acquire: pairs with `complete`, for the output.
        let before = self.word.fetch_or(WAKER, Ordering::AcqRel);
        debug_assert_eq!(before & WAKER, 0);
        if before & COMPLETE == 0 { Waiting::Done } else { Waiting::Complete }
    }

    /// The handle wants the waker field back, to put another waker in.
    pub(super) fn reclaim_waker(&self) -> Waiting {
        // Acquire: pairs with `complete`, for the output.
        let before = self.word.fetch_and(!WAKER, Ordering::AcqRel);
        debug_assert_ne!(before & WAKER, 0);
        if before & COMPLETE == 0 { Waiting::Done } else { Waiting::Complete }
    }

    /// The handle goes.
    pub(super) fn leave(&self) -> Leave {
        // Acquire: pairs with `complete`, for the output. Release: the handle's reads of the waker
        // field are over before the task drops the output.
        let before = self.word.fetch_and(!(HANDLE | WAKER), Ordering::AcqRel);
        debug_assert_ne!(before & HANDLE, 0);
        match (before & COMPLETE, before & WAKER) {
            (0, 0) => Leave::Nothing,
            (0, _) => Leave::Waker,
            (_, _) => Leave::Output,
        }
    }
}

/// How many references there are.
impl Shared {
    /// Quiet, held by the executor, and with one reference, which is the handle's.
    pub(super) fn held_and_one() -> Self {
        Self { word: AtomicU32::new(HELD << COUNT_SHIFT | HANDLE), local: Cell::new(1) }
    }

    /// Only on the owner thread, before `complete`.
    pub(super) fn retain_local(&self) {
        self.drift(1);
    }

    /// Only on the owner thread, before `complete`. Never the last: the executor holds the task.
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
        self.add_shared(local, Ordering::Relaxed);
        self.local.set(0);
    }

    pub(super) fn retain_shared(&self) {
        // Relaxed: who makes a reference has one, and hands the new one on by other means.
        self.add_shared(1, Ordering::Relaxed);
    }

    fn add_shared(&self, by: i32, order: Ordering) {
        let before = self.word.fetch_add((by as u32) << COUNT_SHIFT, order);
        if before >> COUNT_SHIFT > SHARED_MAX {
            abort();
        }
    }

    #[inline]
    pub(super) fn release_shared(&self) -> Released {
        // Who has the only one knows that there will be no other, and needs no locked instruction.
        // Acquire: pairs with the Release of those who dropped theirs.
        if self.word.load(Ordering::Acquire) >> COUNT_SHIFT == 1 {
            return Released::Last;
        }
        // Release: this thread is done with the task; pairs with the Acquire of the last one.
        match self.word.fetch_sub(ONE, Ordering::Release) >> COUNT_SHIFT {
            1 => {
                // Acquire: pairs with the Release of those who dropped theirs. A load, where a
                // fence would do: ThreadSanitizer does not understand fences.
                let _zero = self.word.load(Ordering::Acquire);
                Released::Last
            }
            _ => Released::OthersRemain,
        }
    }

    /// Whether nobody but the executor has a reference, so that nobody can make one either.
    ///
    /// The load may be old, but not too old: a reference is dropped after those that were made from
    /// it, so every state that the owner can still see counts at least one for each that is alive.
    #[inline]
    pub(super) fn only_held(&self) -> bool {
        // Acquire: pairs with the Release of those who dropped theirs.
        let now = self.word.load(Ordering::Acquire);
        (now >> COUNT_SHIFT).wrapping_add(self.local.get() as u32) == HELD
    }

    /// The executor lets go: both parts become one. Only on the owner thread, once.
    pub(super) fn merge(&self) -> Released {
        // Set before the exchange, after which the task may be freed by somebody else.
        let moved = without_hold(self.local.replace(0));
        // Release and Acquire: as in `release_shared`.
        let before = self.word.fetch_add(moved, Ordering::AcqRel);
        match before.wrapping_add(moved) >> COUNT_SHIFT {
            0 => Released::Last,
            _ => Released::OthersRemain,
        }
    }
}

/// The owner's part less its hold, to be added to the word.
fn without_hold(local: i32) -> u32 {
    (local as u32).wrapping_sub(HELD) << COUNT_SHIFT
}
