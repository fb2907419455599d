//! What `spawn` gives back: a handle to await, to abort, or to drop, and the error it may report.

use super::state::{Leave, Look, Waiting};
use super::task::{Header, TaskRef};
use super::waker::abort_task;
use crate::contain::{contain, text_of};
use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A spawned task, to be awaited, aborted or let go.
///
/// Awaiting it gives the task's output, or a [`JoinError`] if the task panicked or was aborted.
/// Dropping it detaches the task, which runs on.
///
/// The handle may go to another thread and be awaited there, in any runtime, if the output may. The
/// task itself stays on the shard on which it was spawned.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let handle = annulus_runtime::spawn(async { 6 * 7 });
///     assert_eq!(handle.await.unwrap(), 42);
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
///
/// A handle that is awaited by reference (`(&mut handle).await`) in a branch that loses keeps the
/// output for the next time.
pub struct JoinHandle<T> {
    /// None once the output has been handed out.
    task: Option<TaskRef>,
    /// The handle may come to own an output. A pointer, so that only the impls below make the
    /// handle `Send` and `Sync`.
    output: PhantomData<*const T>,
}

// SAFETY: the handle may take or drop the output on the thread it has gone to, which `T: Send`
// allows. Nothing else of the task is reached through it but what any thread may have (see
// `TaskRef`).
unsafe impl<T: Send> Send for JoinHandle<T> {}

// SAFETY: a shared handle only looks at and asks for things through atomics; the output is reached
// through a unique one. `T: Send` is more than that needs.
unsafe impl<T: Send> Sync for JoinHandle<T> {}

// The output is either stored whole or not at all, so a panic cannot leave it half made.
impl<T> UnwindSafe for JoinHandle<T> {}
impl<T> RefUnwindSafe for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// # Safety
    /// `task` is the reference made for the handle, and `T` is its future's output.
    pub(super) unsafe fn new(task: TaskRef) -> JoinHandle<T> {
        JoinHandle { task: Some(task), output: PhantomData }
    }

    /// Aborts the task: its future is dropped, on its own shard, without being polled again.
    ///
    /// This only asks. A task that is being polled goes on until it next waits; one that finishes
    /// there keeps its output, and one that has finished is not changed. Awaiting the handle tells
    /// when the future is gone, by an error for which [`JoinError::is_cancelled`] holds.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// annulus_runtime::Runtime::new()?.block_on(async {
    ///     let handle = annulus_runtime::spawn(std::future::pending::<()>());
    ///     handle.abort();
    ///     assert!(handle.await.unwrap_err().is_cancelled());
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub fn abort(&self) {
        if let Some(task) = &self.task {
            abort_task(task.ptr());
        }
    }

    /// A second hold on the task, which can abort it but not await it.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// annulus_runtime::Runtime::new()?.block_on(async {
    ///     let handle = annulus_runtime::spawn(std::future::pending::<()>());
    ///     let abort = handle.abort_handle();
    ///     abort.abort();
    ///     assert!(handle.await.unwrap_err().is_cancelled());
    ///     assert!(abort.is_finished());
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { task: self.task.clone() }
    }

    /// Whether the task has finished, be it by its output, a panic or an abort.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// annulus_runtime::Runtime::new()?.block_on(async {
    ///     let handle = annulus_runtime::spawn(async {});
    ///     assert!(!handle.is_finished(), "spawning only queues");
    ///     handle.await.unwrap();
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(|task| task.header().shared.is_complete())
    }
}

/// # Panics
///
/// If it is polled again after it has given the output.
impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let task = self.task.as_ref().expect("a JoinHandle was polled after it gave its output");
        if task.header().shared.look() != Look::Complete {
            // The copy of a task that a forked child has is never polled again.
            if !task.header().owner.is_ours() {
                return Poll::Ready(Err(JoinError::cancelled()));
            }
            if task.header().wait(cx.waker()) == Waiting::Done {
                return Poll::Pending;
            }
        }
        // SAFETY: the task is complete, this is its handle, and it takes the output once, as it
        // forgets the task. `new` was promised that the type is right.
        let output = unsafe { task.ptr().take_output() };
        if let Some(task) = self.task.take() {
            task.drop_complete();
        }
        Poll::Ready(output)
    }
}

impl<T> Drop for JoinHandle<T> {
    // Most handles have given their output.
    #[inline]
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            leave(&task);
        }
    }
}

/// The handle of this task goes, before it has given the output.
fn leave(task: &TaskRef) {
    match task.header().shared.leave() {
        Leave::Nothing => {}
        Leave::Waker => {
            // SAFETY: the field is filled, and the handle just got it back.
            let waker = unsafe { task.header().take_waker() };
            contain(|| drop(waker));
        }
        // SAFETY: the task is complete and left the output to its handle, which is this one.
        Leave::Output => unsafe { task.ptr().drop_output() },
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("is_finished", &self.is_finished()).finish()
    }
}

/// The handle's side of the waker field. Only the handle calls these.
impl Header {
    /// Sees to it that `waker` is woken when the task completes, if it has not.
    fn wait(&self, waker: &Waker) -> Waiting {
        match self.shared.look() {
            Look::Complete => Waiting::Complete,
            Look::WakerOwned => self.lend(waker.clone()),
            Look::WakerLent if self.lent_waker_wakes_as(waker) => Waiting::Done,
            Look::WakerLent => self.exchange(waker.clone()),
        }
    }

    fn lent_waker_wakes_as(&self, waker: &Waker) -> bool {
        self.waker.with(|lent| {
            // SAFETY: the field is filled. The task may be copying the waker out meanwhile, and
            // even wake and drop that copy, but the field's bytes stay, and the comparison reads no
            // more.
            let lent = unsafe { &*lent };
            // SAFETY: as above.
            unsafe { lent.assume_init_ref() }.will_wake(waker)
        })
    }

    fn exchange(&self, waker: Waker) -> Waiting {
        if self.shared.reclaim_waker() == Waiting::Complete {
            return Waiting::Complete;
        }
        // SAFETY: the field is filled, and the handle just got it back.
        let before = unsafe { self.take_waker() };
        let answer = self.lend(waker);
        // Last, since this runs the user's code.
        drop(before);
        answer
    }

    fn lend(&self, waker: Waker) -> Waiting {
        // SAFETY: the field is the handle's and empty.
        self.waker.with_mut(|field| unsafe { field.write(MaybeUninit::new(waker)) });
        let answer = self.shared.lend_waker();
        if answer == Waiting::Complete {
            // SAFETY: the task completed before it could see the waker, so the field stayed ours.
            drop(unsafe { self.take_waker() });
        }
        answer
    }
}

/// A hold on a spawned task that can abort it. From [`JoinHandle::abort_handle`].
///
/// It keeps neither the task running nor its output; dropping it does nothing.
#[derive(Clone)]
pub struct AbortHandle {
    task: Option<TaskRef>,
}

impl AbortHandle {
    /// Aborts the task, as [`JoinHandle::abort`] does.
    pub fn abort(&self) {
        if let Some(task) = &self.task {
            abort_task(task.ptr());
        }
    }

    /// Whether the task has finished, as [`JoinHandle::is_finished`] tells.
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(|task| task.header().shared.is_complete())
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("is_finished", &self.is_finished()).finish()
    }
}

/// Why a task has no output: it panicked, or it was cancelled.
///
/// A task is cancelled by [`JoinHandle::abort`], or because its runtime has ended.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let handle = annulus_runtime::spawn(async { panic!("out of luck") });
///     let error = handle.await.unwrap_err();
///     assert!(error.is_panic());
///     assert_eq!(error.to_string(), "the task panicked: out of luck");
/// });
/// # Ok(())
/// # }
/// ```
pub struct JoinError {
    /// The panic's payload, or [`Lost`], or [`Cancelled`], which takes no allocation.
    payload: Box<dyn Any + Send>,
}

/// Marks a task that did not panic.
struct Cancelled;

/// Marks a task whose shard failed, and says how.
struct Lost(Arc<str>);

// SAFETY: a payload that is shared is only asked for its type and read if it is `Cancelled`, `Lost`
// or a string, which any thread may read; as a whole it leaves only an error that is owned.
unsafe impl Sync for JoinError {}

// Nothing of the payload that a panic could have left half done is reached through a reference.
impl UnwindSafe for JoinError {}
impl RefUnwindSafe for JoinError {}

impl JoinError {
    pub(super) fn cancelled() -> JoinError {
        JoinError { payload: Box::new(Cancelled) }
    }

    /// The task's shard could not run, or did not run on, for this reason.
    pub(super) fn lost(reason: Arc<str>) -> JoinError {
        JoinError { payload: Box::new(Lost(reason)) }
    }

    pub(super) fn panic(payload: Box<dyn Any + Send>) -> JoinError {
        JoinError { payload }
    }

    /// Whether the task was aborted, or dropped by the end of its runtime, or had a shard that
    /// could not run; the error's text says which shard and why.
    pub fn is_cancelled(&self) -> bool {
        self.payload.is::<Cancelled>() || self.payload.is::<Lost>()
    }

    /// Whether the task panicked.
    pub fn is_panic(&self) -> bool {
        !self.is_cancelled()
    }

    /// What the task panicked with, for `std::panic::resume_unwind`.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// annulus_runtime::Runtime::new()?.block_on(async {
    ///     let handle = annulus_runtime::spawn(async { std::panic::panic_any(7_u32) });
    ///     let payload = handle.await.unwrap_err().into_panic();
    ///     assert_eq!(*payload.downcast::<u32>().unwrap(), 7);
    /// });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If the task did not panic. [`JoinError::try_into_panic`] does not mind.
    #[track_caller]
    pub fn into_panic(self) -> Box<dyn Any + Send> {
        self.try_into_panic().expect("into_panic was called on the error of a cancelled task")
    }

    /// What the task panicked with.
    ///
    /// # Errors
    ///
    /// Gives the error back if the task did not panic.
    pub fn try_into_panic(self) -> Result<Box<dyn Any + Send>, JoinError> {
        if self.is_panic() { Ok(self.payload) } else { Err(self) }
    }

    /// The panic's text, where it has one.
    fn text(&self) -> Option<&str> {
        text_of(&*self.payload)
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Lost(reason)) = self.payload.downcast_ref() {
            return write!(f, "the task was cancelled: {reason}");
        }
        match (self.is_cancelled(), self.text()) {
            (true, _) => f.write_str("the task was cancelled"),
            (false, Some(text)) => write!(f, "the task panicked: {text}"),
            (false, None) => f.write_str("the task panicked"),
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Lost(reason)) = self.payload.downcast_ref() {
            return write!(f, "JoinError::Cancelled({reason:?})");
        }
        match (self.is_cancelled(), self.text()) {
            (true, _) => f.write_str("JoinError::Cancelled"),
            (false, Some(text)) => write!(f, "JoinError::Panic({text:?})"),
            (false, None) => f.write_str("JoinError::Panic(..)"),
        }
    }
}

impl Error for JoinError {}

impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> io::Error {
        io::Error::other(error)
    }
}
