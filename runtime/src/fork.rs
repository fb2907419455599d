//! What is left of a runtime in a forked child: memory that must not be used, and nothing else.
//!
//! A child of `fork(2)` has the one thread that called it, and copies of all descriptors. What
//! those refer to is shared with the parent: a ring's queues, the epoll instance (a registration
//! that the child ends is gone for the parent), the eventfd. And what other threads were at just
//! then stays undone for ever: a lock that is held, a lock-free queue with an entry half pushed,
//! which makes others spin. So in the child
//!
//! 1. no shard is current any more: a handler that runs within `fork` has seen to it, and all who
//!    ask for one find none;
//! 2. the loop, which may be further down the stack, finds that its shard is another process's
//!    (`ShardId::is_ours`) before it polls a task, takes mail or enters the kernel;
//! 3. values that may be used or dropped without a shard remember their [`Process`], where a lock,
//!    a queue or a shared object is behind them: mailboxes, jobs, leases, registrations, sockets;
//! 4. what a whole process shares is made anew: [`PerProcess`];
//! 5. a shard of the parent is never ended or dropped, as that would drive, unmap and close what
//!    the parent drives; the end that is under way stops where a drop in it has forked.
//!
//! The ring's memory is not in the child at all (`dontfork`): what all this has overlooked faults
//! there, and reaches nobody's queue. A child that was made past the C library, by a bare `clone`
//! or by `_Fork`, has that last line only.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

/// What to tell who uses a runtime that was made before the fork.
pub(crate) const NO_RUNTIME_SURVIVES: &str = "this process is a fork of the one that made the \
     runtime, and no runtime survives fork(2): exec a program, or build a new Runtime in the child";

/// How many forks lie between this process and the first of its line.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Tells a process from those that it was forked from, once that one has had a runtime.
///
/// A child of `fork(2)` shares each socket with its parent. What has one remembers its process, so
/// that its drop in a child does no more than close the child's descriptor.
///
/// # Examples
///
/// ```
/// use std::net::{Shutdown, TcpStream};
///
/// use annulus_runtime::io::Process;
///
/// struct Session {
///     stream: TcpStream,
///     process: Process,
/// }
///
/// impl Drop for Session {
///     fn drop(&mut self) {
///         if self.process.is_current() {
///             let _gone = self.stream.shutdown(Shutdown::Both);
///         }
///     }
/// }
///
/// assert!(Process::current().is_current());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(u32);

impl Process {
    /// The one that asks.
    #[must_use]
    #[inline]
    pub fn current() -> Process {
        // Relaxed: it changes only where there are no other threads.
        Process(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this is the one that asks; otherwise that is a child of it, or a child's child.
    #[must_use]
    #[inline]
    pub fn is_current(self) -> bool {
        self == Process::current()
    }

    /// Whether it was forked from one that had a runtime.
    pub(crate) fn is_forked(self) -> bool {
        self.0 != 0
    }
}

/// Has `in_child` called in every child, within `fork`. Before the first of whatever it is to
/// keep from the child.
///
/// # Errors
///
/// ENOMEM.
pub(crate) fn watch(in_child: unsafe extern "C" fn()) -> io::Result<()> {
    // No lock, which a child could find held. Two who come at once both call: twice does no harm.
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if WATCHED.load(Ordering::Acquire) {
        return Ok(());
    }
    // SAFETY: the function is there as long as the program, and does what a handler may: it
    // stores to atomics and to thread-locals that take no allocation.
    match unsafe { libc::pthread_atfork(None, None, Some(in_child)) } {
        0 => WATCHED.store(true, Ordering::Release),
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    Ok(())
}

/// From now on this is another process. For the handler given to [`watch`].
pub(crate) fn begin_process() {
    FORKS.store(FORKS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// A value of which each process has its own. A child finds a new one: whatever of the parent's it
/// touched, it could wait there for a thread that the child does not have. That one is leaked.
pub(crate) struct PerProcess<T: 'static> {
    latest: AtomicPtr<Owned<T>>,
    make: fn() -> T,
}

struct Owned<T> {
    process: Process,
    value: T,
}

impl<T: Sync> PerProcess<T> {
    pub(crate) const fn new(make: fn() -> T) -> PerProcess<T> {
        PerProcess { latest: AtomicPtr::new(std::ptr::null_mut()), make }
    }

    /// This process's own. Made by the first call.
    pub(crate) fn get(&self) -> &'static T {
        // Acquire: pairs with the exchange in `renew`.
        let latest = self.latest.load(Ordering::Acquire);
        // SAFETY: what the pointer was ever set to was leaked by `renew`.
        match unsafe { latest.as_ref() } {
            Some(owned) if owned.process.is_current() => &owned.value,
            _ => self.renew(latest),
        }
    }

    #[cold]
    fn renew(&self, before: *mut Owned<T>) -> &'static T {
        let owned = Owned { process: Process::current(), value: (self.make)() };
        let owned = Box::into_raw(Box::new(owned));
        let (set, known) = (Ordering::AcqRel, Ordering::Acquire);
        match self.latest.compare_exchange(before, owned, set, known) {
            // SAFETY: it was made above and is never freed from here on.
            Ok(_) => unsafe { &(*owned).value },
            Err(theirs) => {
                // SAFETY: nobody else has seen it.
                drop(unsafe { Box::from_raw(owned) });
                // SAFETY: another thread of this process has set it, and leaked it.
                unsafe { &(*theirs).value }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;

    /// How long a child may take, in seconds; then a signal ends it.
    const CHILD_S: u32 = 20;

    /// Does this in a forked child, where it must not panic. A runtime must have been made before.
    #[track_caller]
    pub(crate) fn in_child(work: impl FnOnce()) {
        // SAFETY: the child runs the work, and no more than that.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork failed: {}", io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: no pointers.
            unsafe { libc::alarm(CHILD_S) };
            let failed = catch_unwind(AssertUnwindSafe(work)).is_err();
            // SAFETY: the call ends the process, and runs nothing of it.
            unsafe { libc::_exit(i32::from(failed)) };
        }
        let mut status = 0;
        // SAFETY: the pointer is to an integer, which the call fills. The alarm bounds it.
        while unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {}
        assert_eq!(status, 0, "the wait status of the child");
    }

    #[test]
    fn what_is_per_process_is_one_value_for_all_its_threads() {
        static VALUES: PerProcess<Mutex<u32>> = PerProcess::new(|| Mutex::new(7));
        let here = VALUES.get();
        let others: Vec<_> = (0..8)
            .map(|_| std::thread::spawn(|| std::ptr::from_ref(VALUES.get()) as usize))
            .collect();
        for other in others {
            assert_eq!(other.join().unwrap(), std::ptr::from_ref(here) as usize);
        }
        assert!(Process::current().is_current());
    }
}
