//! Epoll instances.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{check, check_size};
use crate::sim;

/// What epoll reports of one descriptor.
#[derive(Clone, Copy)]
pub(crate) struct EpollEvent {
    pub(crate) token: u64,
    pub(crate) events: u32,
}

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct EpollFd(OwnedFd);

/// How many events one wait takes at most: bounds the work between two looks at the tasks.
pub(crate) const EPOLL_EVENTS_MAX: usize = 512;

impl EpollFd {
    pub(crate) fn new() -> io::Result<EpollFd> {
        // SAFETY: epoll_create1 takes an integer and touches no memory of ours.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just made this descriptor and nobody else knows it.
        Ok(EpollFd(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(crate) fn add(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        match sim::epoll::add(fd, events, token) {
            Some(answer) => answer,
            None => self.add_in_kernel(fd, events, token),
        }
    }

    pub(crate) fn add_in_kernel(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the event is valid for the length of the call; the kernel copies it.
        check(unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event)
        })?;
        Ok(())
    }

    pub(crate) fn remove(&self, fd: RawFd) {
        if sim::epoll::remove(fd).is_some() {
            return;
        }
        // A failure leaves nothing to do: the descriptor is about to be closed, and a late event
        // carries a token that nobody knows any more.
        // SAFETY: since Linux 2.6.9 the event pointer may be null for EPOLL_CTL_DEL.
        unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut())
        };
    }

    /// Waits for events and hands each to `take`. No timeout means: until something happens.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
        mut take: impl FnMut(EpollEvent),
    ) -> io::Result<()> {
        match sim::epoll::wait(self, timeout, &mut take) {
            Some(answer) => answer,
            None => self.wait_for_kernel(timeout, take),
        }
    }

    pub(crate) fn wait_for_kernel(
        &self,
        timeout: Option<Duration>,
        mut take: impl FnMut(EpollEvent),
    ) -> io::Result<()> {
        let mut events = [const { MaybeUninit::<libc::epoll_event>::uninit() }; EPOLL_EVENTS_MAX];
        let count = self.wait_raw(timeout, &mut events)?;
        for event in &events[..count] {
            // SAFETY: the kernel has filled the first `count` events.
            let event = unsafe { event.assume_init_read() };
            take(EpollEvent { token: event.u64, events: event.events });
        }
        Ok(())
    }

    fn wait_raw(
        &self,
        timeout: Option<Duration>,
        events: &mut [MaybeUninit<libc::epoll_event>],
    ) -> io::Result<usize> {
        let fd = self.0.as_raw_fd();
        let capacity = events.len() as libc::c_int;
        let pointer = events.as_mut_ptr().cast::<libc::epoll_event>();
        let fine = timeout.is_some_and(|t| t.subsec_nanos() % 1_000_000 != 0);
        if fine && !PWAIT2_MISSING.load(Ordering::Relaxed) {
            let spec = timespec(timeout.unwrap_or(Duration::ZERO));
            // SAFETY: pointer and capacity describe the writable slice; the time lives for the
            // call; a null signal mask leaves the mask alone.
            let answer = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    fd,
                    pointer,
                    capacity,
                    &raw const spec,
                    std::ptr::null::<libc::sigset_t>(),
                    0usize,
                )
            };
            match check_size(answer as libc::ssize_t) {
                // Linux before 5.11 lacks the call, and a seccomp filter may not know it.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    PWAIT2_MISSING.store(true, Ordering::Relaxed);
                }
                other => return other.map(|count| count as usize),
            }
        }
        // Rounded up: a timer is never early.
        let millis =
            timeout.map_or(-1, |t| t.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32);
        // SAFETY: pointer and capacity describe the writable slice.
        let count = check(unsafe { libc::epoll_wait(fd, pointer, capacity, millis) })?;
        Ok(count as usize)
    }
}

/// Set once `epoll_pwait2` was found missing, so that it is not asked for again.
static PWAIT2_MISSING: AtomicBool = AtomicBool::new(false);

/// Longest wait handed to the kernel: a day. Longer ones would be cut or turned negative.
const WAIT_MAX: Duration = Duration::from_secs(86_400);

fn timespec(duration: Duration) -> libc::timespec {
    let duration = duration.min(WAIT_MAX);
    libc::timespec {
        tv_sec: duration.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(duration.subsec_nanos() as i32),
    }
}

/// Cuts a wait to what every kernel interface can express.
pub(crate) fn clamp_wait(duration: Duration) -> Duration {
    duration.min(WAIT_MAX)
}
