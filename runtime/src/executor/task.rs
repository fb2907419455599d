//! A task: one allocation for its state, its future and, later, its output.
//!
//! The future and the output share their place. The future is there until the executor completes
//! the task, on the owner thread; then the output is, until the handle takes it, or whoever
//! [`Shared`] names drops it. When the memory goes, on whatever thread, both are gone.

use super::current::is_current;
use super::join::JoinError;
use super::mailbox::{Mailbox, Owner};
use super::origin::Origin;
use super::spare::Block;
use super::state::{Completion, Local, Mail, Released, Shared};
use crate::contain::contain;
use crate::sync::{Arc, Cell, UnsafeCell};
use std::mem::{ManuallyDrop, MaybeUninit, offset_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll, Waker};

/// What every task has, whatever its future. 64 bytes: one cache line.
#[repr(C)]
pub(super) struct Header {
    vtable: &'static VTable,
    pub(super) owner: Owner,
    /// Only for the thread that is to send mail; the module's text says why it is alive then.
    pub(super) mailbox: *const Mailbox,
    /// The one behind in the run queue. The owner's.
    pub(super) next: Cell<Option<TaskPtr>>,
    /// The waker of who awaits the handle. `shared` says whose it is and whether it is filled.
    pub(super) waker: UnsafeCell<MaybeUninit<Waker>>,
    pub(super) shared: Shared,
    /// Nothing, but loom takes note of who is done with the task, and of who frees it.
    used: UnsafeCell<()>,
    /// Where the executor lists the task, or [`UNLISTED`]. The owner's.
    pub(super) index: Cell<u32>,
    pub(super) local: Local,
    /// A strong count of the mailbox goes when the memory goes. Set by the owner while it holds the
    /// task, read by whoever frees it.
    holds_mailbox: Cell<bool>,
}

/// The executor has the task on no list.
pub(super) const UNLISTED: u32 = u32::MAX;

#[repr(C)]
struct Task<F: Future> {
    header: Header,
    stage: UnsafeCell<Stage<F>>,
    /// Behind all that a poll touches.
    origin: Origin,
}

union Stage<F: Future> {
    future: ManuallyDrop<F>,
    output: ManuallyDrop<Output<F>>,
}

type Output<F> = Result<<F as Future>::Output, JoinError>;

/// What only the one who knows the future's type can do.
struct VTable {
    poll: unsafe fn(TaskPtr, &mut Context<'_>) -> Poll<()>,
    cancel: unsafe fn(TaskPtr, JoinError),
    take_output: unsafe fn(TaskPtr, *mut ()),
    drop_output: unsafe fn(TaskPtr),
    free: unsafe fn(TaskPtr),
    type_name: fn() -> &'static str,
    /// Where in the allocation the origin lies, in bytes.
    origin_offset: usize,
}

impl<F: Future> Task<F> {
    const BLOCK: Block = Block::of::<Self>();

    const VTABLE: VTable = VTable {
        poll: Self::poll,
        cancel: Self::cancel,
        take_output: Self::take_output,
        drop_output: Self::drop_output,
        free: Self::free,
        type_name: std::any::type_name::<F>,
        origin_offset: offset_of!(Self, origin),
    };

    /// # Safety
    /// The task must have been allocated for `F`, and be alive for as long as the answer is used.
    unsafe fn stage<'a>(task: TaskPtr) -> &'a UnsafeCell<Stage<F>> {
        // SAFETY: the task is alive and of this type, and the pointer came from its allocation.
        &unsafe { task.0.cast::<Self>().as_ref() }.stage
    }

    /// # Safety
    /// As for [`TaskPtr::poll`].
    unsafe fn poll(task: TaskPtr, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: the vtable belongs to this type, and the executor holds the task.
        let stage = unsafe { Self::stage(task) };
        stage.with_mut(|stage| {
            // SAFETY: only the owner thread reaches the stage of an uncompleted task.
            let stage = unsafe { &mut *stage };
            // SAFETY: the task is uncompleted, so the future is there.
            let future: &mut F = unsafe { &mut stage.future };
            // SAFETY: the task stays where it was allocated until the future has been dropped.
            let future = unsafe { Pin::new_unchecked(future) };
            let output = match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(output)) => Ok(output),
                Err(payload) => Err(JoinError::panic(payload)),
            };
            // SAFETY: the future is still there, and replaced below.
            contain(|| unsafe { ManuallyDrop::drop(&mut stage.future) });
            stage.output = ManuallyDrop::new(output);
            Poll::Ready(())
        })
    }

    /// # Safety
    /// As for [`TaskPtr::cancel`].
    unsafe fn cancel(task: TaskPtr, error: JoinError) {
        // SAFETY: the vtable belongs to this type, and the caller holds the task.
        let stage = unsafe { Self::stage(task) };
        stage.with_mut(|stage| {
            // SAFETY: only who holds it for an executor reaches the stage of an uncompleted task.
            let stage = unsafe { &mut *stage };
            // SAFETY: the task is uncompleted, so the future is there; it is replaced below.
            let drop_future = || unsafe { ManuallyDrop::drop(&mut stage.future) };
            let error = match catch_unwind(AssertUnwindSafe(drop_future)) {
                Ok(()) => error,
                Err(payload) => JoinError::panic(payload),
            };
            stage.output = ManuallyDrop::new(Err(error));
        });
    }

    /// # Safety
    /// As for [`TaskPtr::take_output`], and `into` points to room for an `Output<F>`.
    unsafe fn take_output(task: TaskPtr, into: *mut ()) {
        // SAFETY: the vtable belongs to this type, and the caller has a reference.
        let stage = unsafe { Self::stage(task) };
        stage.with_mut(|stage| {
            // SAFETY: the task is complete and the caller alone may reach the output.
            let stage = unsafe { &mut *stage };
            // SAFETY: the task is complete, so the output is there, and it is taken only once.
            let output = unsafe { ManuallyDrop::take(&mut stage.output) };
            // SAFETY: the caller made room for it.
            unsafe { into.cast::<Output<F>>().write(output) };
        });
    }

    /// # Safety
    /// As for [`TaskPtr::drop_output`].
    unsafe fn drop_output(task: TaskPtr) {
        // SAFETY: the vtable belongs to this type, and the caller has or holds the task.
        let stage = unsafe { Self::stage(task) };
        stage.with_mut(|stage| {
            // SAFETY: the task is complete and the caller alone may reach the output.
            let stage = unsafe { &mut *stage };
            // SAFETY: the task is complete, so the output is there, and it goes only once.
            contain(|| unsafe { ManuallyDrop::drop(&mut stage.output) });
        });
    }

    /// # Safety
    /// Nobody may know the task any more, and its stage must be empty.
    unsafe fn free(task: TaskPtr) {
        task.header().used.with_mut(|_| ());
        let task = task.0.cast::<Self>();
        // SAFETY: it is of this type, and nobody knows it any more. The union drops nothing; the
        // origin holds nothing of the user's but a text.
        unsafe { task.drop_in_place() };
        // SAFETY: `allocate` took it as such a block.
        unsafe { Self::BLOCK.free(task.cast()) };
    }
}

/// A task that is alive for as long as this is used: the executor holds it, or a reference that the
/// caller has keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskPtr(NonNull<Header>);

impl TaskPtr {
    /// A task that is scheduled, held by the executor, and has one reference for its handle.
    pub(super) fn allocate<F: Future>(
        future: F,
        mailbox: &Arc<Mailbox>,
        owner: Owner,
        origin: Origin,
    ) -> TaskPtr {
        let task = Task::<F>::BLOCK.allocate().cast::<Task<F>>();
        let first = Task {
            header: Header {
                vtable: &Task::<F>::VTABLE,
                owner,
                mailbox: Arc::as_ptr(mailbox),
                next: Cell::new(None),
                waker: UnsafeCell::new(MaybeUninit::uninit()),
                shared: Shared::held_and_one(),
                used: UnsafeCell::new(()),
                index: Cell::new(UNLISTED),
                local: Local::scheduled(),
                holds_mailbox: Cell::new(false),
            },
            stage: UnsafeCell::new(Stage { future: ManuallyDrop::new(future) }),
            origin,
        };
        // SAFETY: the memory is as large and aligned as the type asks for, and just for this.
        unsafe { task.write(first) };
        TaskPtr(task.cast())
    }

    /// # Safety
    /// The pointer must come from [`TaskPtr::as_raw`], and the task be alive for as long as the
    /// answer is used.
    pub(super) unsafe fn from_raw(raw: *const ()) -> TaskPtr {
        // SAFETY: `as_raw` gives no null.
        TaskPtr(unsafe { NonNull::new_unchecked(raw.cast_mut().cast()) })
    }

    /// The way back from [`header_ptr`](TaskPtr::header_ptr), as long as the task is alive.
    #[inline]
    pub(super) fn from_header(header: NonNull<Header>) -> TaskPtr {
        TaskPtr(header)
    }

    #[inline]
    pub(super) fn header_ptr(self) -> NonNull<Header> {
        self.0
    }

    pub(super) fn as_raw(self) -> *const () {
        self.0.as_ptr().cast_const().cast()
    }

    #[inline]
    pub(super) fn header(&self) -> &Header {
        // SAFETY: the type promises that the task is alive.
        unsafe { self.0.as_ref() }
    }

    pub(super) fn type_name(self) -> &'static str {
        (self.header().vtable.type_name)()
    }

    /// # Safety
    /// The task must be alive for as long as the answer is used.
    pub(super) unsafe fn origin<'a>(self) -> &'a Origin {
        // SAFETY: the vtable is that of the task's type, and so is the offset; the pointer came
        // from the whole allocation.
        let origin = unsafe { self.0.byte_add(self.header().vtable.origin_offset) };
        // SAFETY: the task is alive, and nobody changes its origin.
        unsafe { origin.cast::<Origin>().as_ref() }
    }

    /// Polls the future; if that ends it, or it panics, drops it and stores the output.
    ///
    /// # Safety
    /// Only on the owner thread, for a task that is uncompleted and not being polled.
    pub(super) unsafe fn poll(self, cx: &mut Context<'_>) -> Poll<()> {
        let poll = self.header().vtable.poll;
        // SAFETY: as the caller promises.
        unsafe { poll(self, cx) }
    }

    /// Drops the future and stores the error.
    ///
    /// # Safety
    /// Only for a task that is uncompleted and not being polled, on the owner thread or by who has
    /// its [`Newborn`].
    pub(super) unsafe fn cancel(self, error: JoinError) {
        let cancel = self.header().vtable.cancel;
        // SAFETY: as the caller promises.
        unsafe { cancel(self, error) }
    }

    /// The output is stored: hands it on and lets go of the task.
    ///
    /// # Safety
    /// Once, on the owner thread by the executor, which has taken the task off its list, or by who
    /// has its [`Newborn`]; and with a strong count of the mailbox at hand.
    #[inline]
    pub(super) unsafe fn finish(self) {
        let header = self.header();
        header.local.complete();
        match header.shared.complete() {
            Completion::LetGo => {}
            // SAFETY: as the caller promises.
            completion => unsafe { self.hand_on(completion) },
        }
    }

    /// The rest of [`finish`](TaskPtr::finish), where the handle has gone or waits.
    ///
    /// # Safety
    /// As there.
    unsafe fn hand_on(self, completion: Completion) {
        let mail = match completion {
            Completion::LetGo => return,
            Completion::Alone => {
                // SAFETY: the handle has gone, so the output is the task's to drop.
                unsafe { self.drop_output() };
                // SAFETY: nobody else knows the task, and its stage was just emptied.
                return unsafe { self.free() };
            }
            Completion::DropOutput(mail) => {
                // SAFETY: the handle has gone, so the output is the task's to drop.
                unsafe { self.drop_output() };
                mail
            }
            Completion::LeaveOutput(mail) => mail,
            Completion::WakeHandle(mail) => {
                // SAFETY: the field is filled, and the handle does not touch it any more.
                let waker = unsafe { self.header().take_waker() };
                contain(|| waker.wake());
                mail
            }
        };
        // SAFETY: as the caller promises.
        unsafe { self.retire(mail) };
    }

    /// # Safety
    /// Only by the handle, once, when it has learnt that the task is complete; `T` is the output
    /// of the task's future.
    pub(super) unsafe fn take_output<T>(self) -> Result<T, JoinError> {
        let take_output = self.header().vtable.take_output;
        let mut output = MaybeUninit::<Result<T, JoinError>>::uninit();
        // SAFETY: as the caller promises, and there is room for just this type.
        unsafe { take_output(self, output.as_mut_ptr().cast()) };
        // SAFETY: it has been written.
        unsafe { output.assume_init() }
    }

    /// Drops the output; a panic in that goes no further.
    ///
    /// # Safety
    /// Only by the one whom [`Shared`] names, once.
    pub(super) unsafe fn drop_output(self) {
        let drop_output = self.header().vtable.drop_output;
        // SAFETY: as the caller promises.
        unsafe { drop_output(self) }
    }

    /// Whether this thread may count in the owner's part.
    fn counts_locally(self) -> bool {
        let header = self.header();
        // In this order: the local state is the owner's to read.
        is_current(header.owner.get()) && !header.local.is_complete()
    }

    fn retain(self) {
        if self.counts_locally() {
            self.header().shared.retain_local();
        } else {
            self.header().shared.retain_shared();
        }
    }

    /// # Safety
    /// Gives back a reference that the caller has, and with it the right to use the task.
    pub(super) unsafe fn release(self) {
        self.header().used.with(|_| ());
        if self.counts_locally() {
            self.header().shared.release_local();
        } else if self.header().shared.release_shared() == Released::Last {
            // SAFETY: the executor lets go of a task only when its stage is the handle's affair,
            // and the handle, which has emptied it, has gone too.
            unsafe { self.free() };
        }
    }

    /// The executor lets go of a completed task.
    ///
    /// # Safety
    /// As for [`finish`](TaskPtr::finish); with it goes the right to use the task.
    unsafe fn retire(self, mail: Mail) {
        let header = self.header();
        debug_assert!(header.local.is_complete());
        if mail == Mail::UnderWay {
            // SAFETY: who calls this has a strong count.
            unsafe { Arc::increment_strong_count(header.mailbox) };
            header.holds_mailbox.set(true);
        }
        if header.shared.merge() == Released::Last {
            // SAFETY: nobody else knows the task, so the handle has gone and the stage is empty.
            unsafe { self.free() };
        }
    }

    /// # Safety
    /// Nobody may know the task any more, and its stage must be empty.
    unsafe fn free(self) {
        let header = self.header();
        let mailbox = header.holds_mailbox.get().then(|| {
            // SAFETY: `retire` took this count for us.
            unsafe { Arc::from_raw(header.mailbox) }
        });
        let free = header.vtable.free;
        // SAFETY: as the caller promises.
        unsafe { free(self) };
        drop(mailbox);
    }
}

/// A task on its way to the shard that will own it, with the hold that an executor has. It has an
/// owner when it arrives; until then nobody touches what is the owner's, but who has this.
///
/// Not dropped but adopted or cancelled; what is forgotten leaks.
#[derive(Debug)]
#[must_use]
pub(super) struct Newborn(TaskPtr);

// SAFETY: the future has not been polled, and `new` was promised that it is `Send` until it has.
// All else of the task is atomic, or belongs to who has this, of which there is one.
unsafe impl Send for Newborn {}

impl Newborn {
    /// # Safety
    /// The task was allocated unborn and is in no other hands but those of its handle. Its future
    /// may go to another thread before it is polled.
    pub(super) unsafe fn new(task: TaskPtr) -> Newborn {
        Newborn(task)
    }

    /// Hands the task to the executor of its mailbox, on that executor's thread.
    pub(super) fn adopt(self, mailbox: &Mailbox) -> TaskPtr {
        debug_assert_eq!(self.0.header().mailbox, std::ptr::from_ref(mailbox));
        self.0.header().owner.settle(mailbox.shard());
        self.0
    }

    /// Ends the task before it has begun. Only with a strong count of its mailbox at hand.
    pub(super) fn cancel(self, error: JoinError) {
        // SAFETY: this is the newborn task, which nobody polls.
        unsafe { self.0.cancel(error) };
        // SAFETY: as above; the future was just replaced by the error.
        unsafe { self.0.finish() };
    }
}

/// A counted reference, which every thread may have.
#[derive(Debug)]
pub(super) struct TaskRef(TaskPtr);

// SAFETY: of a task that it does not own a thread reaches only what is atomic, what `Shared`
// gives it, and, when it was the last to know the task, the memory, which by then holds nothing of
// the user's. That the output crosses threads only if it may is up to `JoinHandle`.
unsafe impl Send for TaskRef {}

// SAFETY: as above; nothing here depends on who has the reference.
unsafe impl Sync for TaskRef {}

impl TaskRef {
    /// # Safety
    /// Takes over a reference that the caller has.
    pub(super) unsafe fn adopt(task: TaskPtr) -> TaskRef {
        TaskRef(task)
    }

    /// One more reference to a task that the caller may use.
    pub(super) fn new(task: TaskPtr) -> TaskRef {
        task.retain();
        TaskRef(task)
    }

    /// To be used while `self` is there.
    pub(super) fn ptr(&self) -> TaskPtr {
        self.0
    }

    pub(super) fn header(&self) -> &Header {
        self.0.header()
    }
}

impl TaskRef {
    /// Drops a reference to a task that the caller has seen complete, without asking whose it is.
    #[inline]
    pub(super) fn drop_complete(self) {
        let task = ManuallyDrop::new(self).0;
        task.header().used.with(|_| ());
        if task.header().shared.release_shared() == Released::Last {
            // SAFETY: as in `release`.
            unsafe { task.free() };
        }
    }
}

impl Clone for TaskRef {
    fn clone(&self) -> TaskRef {
        TaskRef::new(self.0)
    }
}

impl Drop for TaskRef {
    fn drop(&mut self) {
        // SAFETY: this is the reference that the value stands for.
        unsafe { self.0.release() };
    }
}

impl Header {
    /// Takes the waker out of its field.
    ///
    /// # Safety
    /// The field must be filled and belong to the caller, who regards it as empty from now on.
    pub(super) unsafe fn take_waker(&self) -> Waker {
        self.waker.with(|waker| {
            // SAFETY: the field is filled and the caller's.
            let waker = unsafe { waker.read() };
            // SAFETY: as above.
            unsafe { waker.assume_init() }
        })
    }
}

/// What a task with this future takes.
#[cfg(all(test, not(loom)))]
pub(super) const fn size_of_task<F: Future>() -> usize {
    size_of::<Task<F>>()
}
