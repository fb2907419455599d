//! What an epoll instance answers.
//!
//! Simulated sockets are watched by the world; every other descriptor, such as the one that wakes a
//! shard, by the kernel's instance, which is asked without waiting. What both tell is handed out in
//! an order that is drawn, and some of it later.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use super::world::World;
use crate::sys::{EpollEvent, EpollFd};

/// Watches a descriptor of a simulated socket. `None`: it is another's.
pub(crate) fn add(fd: RawFd, events: u32, token: u64) -> Option<io::Result<()>> {
    let world = World::current()?;
    // SAFETY: the caller has just been given the descriptor to watch, so it is open for this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    world.watch(fd, events, token).then_some(Ok(()))
}

/// Watches it no more.
pub(crate) fn remove(fd: RawFd) -> Option<()> {
    let world = World::current()?;
    // SAFETY: as in `add`: its owner is about to close it, and has not yet.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    world.forget_watch(fd).then_some(())
}

/// Waits for events and hands each to `take`.
pub(crate) fn wait(
    epoll: &EpollFd,
    timeout: Option<Duration>,
    take: &mut impl FnMut(EpollEvent),
) -> Option<io::Result<()>> {
    let world = World::current()?;
    let deadline = timeout.map(|timeout| world.now() + timeout);
    world.pause();
    let faults = world.faults();
    if world.roll(|dice| dice.one_in(faults.interruptions)) {
        return Some(Err(io::Error::from_raw_os_error(libc::EINTR)));
    }
    loop {
        let mut real = Vec::new();
        if let Err(error) = epoll.wait_for_kernel(Some(Duration::ZERO), |event| real.push(event)) {
            return Some(Err(error));
        }
        let waits = timeout != Some(Duration::ZERO);
        let told = world.choose_events(real, waits);
        let over = deadline.is_some_and(|deadline| world.now() >= deadline);
        if !told.is_empty() || over {
            told.into_iter().for_each(take);
            return Some(Ok(()));
        }
        world.park(deadline);
    }
}
