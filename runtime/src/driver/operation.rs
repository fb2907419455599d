//! What a request to the kernel must say of itself: once as a ring entry, once as a system call.

use std::io;
use std::rc::Rc;

use io_uring::cqueue;
pub use io_uring::squeue::Entry;

use crate::contain::contain;
use crate::fd::{Fd, Interest};

/// One request with one answer.
///
/// The operation owns everything that the kernel may touch: buffers, addresses, the descriptor.
/// The future [`Op`](crate::io::Op) carries it; when that future is dropped while the request is in
/// flight, the operation moves to the driver and lives on until the kernel has answered.
///
/// # Safety
///
/// [`entry`](Operation::entry) may refer only to memory that stays valid and at its address while
/// the operation lives, *also when the operation itself is moved*: to the heap, never to the
/// operation's own fields. The entry must have exactly one completion.
///
/// While the kernel may write to that memory, nothing may read or write it by way of the operation:
/// [`Op::operation`](crate::io::Op::operation) lends it to safe code, so that what it shows of
/// itself must not be that memory.
pub unsafe trait Operation: Unpin + 'static {
    /// What the future resolves to.
    type Output;

    /// The request as an entry of the ring. Called once, or again after an interrupted try.
    fn entry(&mut self) -> Entry;

    /// The request as a system call that does not wait. `WouldBlock` means: try again when the
    /// descriptor is ready for [`interest`](Operation::interest).
    ///
    /// A request without a descriptor may wait here, if it is carried by
    /// [`carry`](crate::io::carry), which makes the call on a thread of the blocking pool.
    ///
    /// # Errors
    ///
    /// Those of the system call, which become the operation's result.
    fn call(&mut self) -> io::Result<u32>;

    /// The descriptor that is waited for. None if nothing can be: files are always ready, and a
    /// path has no descriptor.
    fn descriptor(&self) -> Option<&Rc<Fd>> {
        None
    }

    /// What the descriptor must be ready for.
    fn interest(&self) -> Interest {
        Interest::Read
    }

    /// Turns the kernel's answer into the output. Also called, and the output dropped, when the
    /// future is gone: an accepted socket or a buffer must be owned by the output.
    ///
    /// # Safety
    ///
    /// The result must be the answer to this operation's entry or call, handed over once.
    unsafe fn complete(self, result: io::Result<u32>) -> Self::Output;
}

/// One request with many answers.
///
/// # Safety
///
/// As [`Operation`].
pub unsafe trait MultishotOperation: Unpin + 'static {
    /// What the stream yields for each answer.
    type Item;

    /// How many answers may wait to be taken before the request is stopped. It is armed again
    /// when they have been taken.
    fn queued_max(&self) -> usize;

    /// The request as an entry of the ring. Called each time it is armed.
    fn entry(&mut self) -> Entry;

    /// One answer by a system call that does not wait.
    ///
    /// # Errors
    ///
    /// Those of the system call, which become an item.
    fn call(&mut self) -> io::Result<Completion>;

    /// The descriptor that the request is about.
    fn descriptor(&self) -> &Rc<Fd>;

    /// What the descriptor must be ready for.
    fn interest(&self) -> Interest;

    /// Turns an answer into an item. Also called, and the item dropped, for answers that arrive
    /// when nobody wants them: descriptors and buffers must be owned by the item.
    ///
    /// # Safety
    ///
    /// The completion must be an answer to this operation's entry or call, handed over once.
    unsafe fn item(&mut self, completion: Completion) -> Self::Item;
}

/// One answer of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    result: i32,
    flags: u32,
}

impl Completion {
    pub(crate) fn from_ring(entry: &cqueue::Entry) -> Completion {
        Completion { result: entry.result(), flags: entry.flags() }
    }

    /// An answer as the ring would have given it, for a system call that succeeded.
    #[must_use]
    pub fn from_call(result: u32) -> Completion {
        Completion { result: result as i32, flags: MORE }
    }

    /// As [`from_call`](Completion::from_call), with the bytes in a buffer of the shard's pool.
    pub(crate) fn with_buffer(result: u32, buffer: u16) -> Completion {
        let flags = MORE | BUFFER | u32::from(buffer) << 16;
        Completion { result: result as i32, flags }
    }

    pub(crate) fn from_error(error: &io::Error) -> Completion {
        Completion { result: -error.raw_os_error().unwrap_or(libc::EIO), flags: 0 }
    }

    /// The result, or the errno as an error. A [notice](Completion::is_notice) has none.
    ///
    /// # Errors
    ///
    /// The error that the kernel answered.
    pub fn result(self) -> io::Result<u32> {
        // The result of a notice may be the one number that has no negative.
        let errno = self.result.wrapping_neg();
        u32::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(errno))
    }

    /// The result as a count: 0 for an error.
    pub(crate) fn count(self) -> u32 {
        u32::try_from(self.result).unwrap_or(0)
    }

    pub(crate) fn is_errno(self, errno: i32) -> bool {
        self.result == -errno
    }

    /// True while the multishot that gave this answer is still armed.
    #[must_use]
    pub fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    /// True if this answer counts nothing: it says that the kernel reads the memory of a zero-copy
    /// send no more.
    #[must_use]
    pub fn is_notice(self) -> bool {
        cqueue::notif(self.flags)
    }

    /// True if this is a notice, and it reports that the kernel has copied after all.
    #[must_use]
    pub fn was_copied(self) -> bool {
        self.is_notice() && self.result & COPIED != 0
    }

    /// The pool's buffer that the kernel has filled, if any.
    pub(crate) fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// `IORING_CQE_F_BUFFER` and `IORING_CQE_F_MORE`, which the crate keeps private.
const BUFFER: u32 = 1;
const MORE: u32 = 2;

/// `IORING_NOTIF_USAGE_ZC_COPIED`, in the result of a notice. Since 6.2.
const COPIED: i32 = i32::MIN;

/// An operation whose future is gone. It takes the kernel's last answers and disposes of them.
pub(crate) trait Orphan {
    fn take(&mut self, completion: Completion);
}

/// User code that must not unwind: more answers may follow, or the operation may still be in
/// flight, and unwinding would free what the kernel writes to.
pub(crate) fn hand_over(orphan: &mut dyn Orphan, completion: Completion) {
    contain(|| orphan.take(completion));
}

/// An orphan of one answer.
pub(crate) struct Single<T: Operation>(pub(crate) Option<T>);

impl<T: Operation> Orphan for Single<T> {
    fn take(&mut self, completion: Completion) {
        if let Some(operation) = self.0.take() {
            // SAFETY: the driver hands over each answer of an orphan once.
            drop(unsafe { operation.complete(completion.result()) });
        }
    }
}

/// An orphan of many answers.
pub(crate) struct Many<T: MultishotOperation>(pub(crate) T);

impl<T: MultishotOperation> Orphan for Many<T> {
    fn take(&mut self, completion: Completion) {
        // SAFETY: the driver hands over each answer of an orphan once.
        drop(unsafe { self.0.item(completion) });
    }
}
