//! The system calls that are measured, each as a function without surprises.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::AtomicU32;

use bench_support::process::check;

/// Whether a call on an empty descriptor waits.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    Blocking,
    Nonblocking,
}

pub(crate) fn eventfd(mode: Mode) -> io::Result<OwnedFd> {
    let flags = match mode {
        Mode::Blocking => libc::EFD_CLOEXEC,
        Mode::Nonblocking => libc::EFD_CLOEXEC | libc::EFD_NONBLOCK,
    };
    // SAFETY: takes two numbers and touches no memory of ours.
    owned(unsafe { libc::eventfd(0, flags) })
}

/// The end to read from, and the one to write to. Both block.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((owned(ends[0])?, owned(ends[1])?))
}

/// Two ends of a Unix stream, which do not block.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    Ok((owned(ends[0])?, owned(ends[1])?))
}

/// A descriptor that a system call has just made, or the error.
pub(crate) fn owned(descriptor: RawFd) -> io::Result<OwnedFd> {
    check(descriptor)?;
    // SAFETY: the kernel has just made it for us, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Adds one to an eventfd.
pub(crate) fn signal(eventfd: RawFd) -> io::Result<()> {
    match write(eventfd, &1_u64.to_ne_bytes())? {
        8 => Ok(()),
        short => Err(io::Error::other(format!("an eventfd took {short} bytes"))),
    }
}

/// Takes all that was added to an eventfd.
pub(crate) fn take(eventfd: RawFd) -> io::Result<u64> {
    let mut value = [0; 8];
    match read(eventfd, &mut value)? {
        8 => Ok(u64::from_ne_bytes(value)),
        short => Err(io::Error::other(format!("an eventfd gave {short} bytes"))),
    }
}

pub(crate) fn read(descriptor: RawFd, memory: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length describe memory that is ours to write.
    let result = unsafe { libc::read(descriptor, memory.as_mut_ptr().cast(), memory.len()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

pub(crate) fn write(descriptor: RawFd, memory: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length describe memory that is only read.
    let result = unsafe { libc::write(descriptor, memory.as_ptr().cast(), memory.len()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// `None` instead of the error that says that there is nothing now.
pub(crate) fn ready<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes a number and touches no memory of ours.
        owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(crate) fn add(&self, descriptor: RawFd, events: u32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, descriptor, events, data)
    }

    pub(crate) fn modify(&self, descriptor: RawFd, events: u32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, descriptor, events, data)
    }

    pub(crate) fn delete(&self, descriptor: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, descriptor, 0, 0)
    }

    fn control(&self, what: i32, descriptor: RawFd, events: u32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: `event` outlives the call, which only reads it.
        check(unsafe { libc::epoll_ctl(self.as_raw_fd(), what, descriptor, &raw mut event) })
    }

    /// Waits for at most so many milliseconds, for ever if -1; returns how many events there are.
    pub(crate) fn wait(
        &self,
        events: &mut [libc::epoll_event],
        limit_ms: i32,
    ) -> io::Result<usize> {
        let room = events.len() as i32;
        loop {
            // SAFETY: the pointer and the length describe memory that is ours to write.
            let count =
                unsafe { libc::epoll_wait(self.as_raw_fd(), events.as_mut_ptr(), room, limit_ms) };
            match usize::try_from(count) {
                Ok(count) => return Ok(count),
                Err(_) => interrupted(io::Error::last_os_error())?,
            }
        }
    }
}

/// Room for events.
pub(crate) fn no_events(count: usize) -> Vec<libc::epoll_event> {
    vec![libc::epoll_event { events: 0, u64: 0 }; count]
}

/// Passes on every error but an interruption.
pub(crate) fn interrupted(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// Sleeps while the word is `value`; may return early.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32) {
    let no_limit: *const libc::timespec = ptr::null();
    let what = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word outlives the call. An error means that the word has changed, or a signal.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), what, value, no_limit) };
}

/// Wakes one who sleeps on the word.
pub(crate) fn futex_wake(word: &AtomicU32) {
    let what = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel takes the word's address as a name only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), what, 1) };
}

/// What this thread has used up to now.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu_ns: u64,
    /// How often it has gone to sleep.
    pub(crate) sleeps: u64,
}

impl Usage {
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        // SAFETY: all zeros is a value of an rusage.
        let mut usage: libc::rusage = unsafe { mem::zeroed() };
        // SAFETY: `usage` is ours to write.
        check(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) })?;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is ours to write.
        check(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) })?;
        let cpu_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        Ok(Self { cpu_ns, sleeps: usage.ru_nvcsw as u64 })
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { cpu_ns: self.cpu_ns - earlier.cpu_ns, sleeps: self.sleeps - earlier.sleeps }
    }
}
