//! The calls on files that wait for others: sockets, eventfds.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::attempt::{Answer, pointer};
use super::entry::Request;
use crate::sim::{World, calls};
use crate::sys::{self, EpollFd};

fn errno_of(error: &io::Error) -> i32 {
    match error.kind() {
        io::ErrorKind::WouldBlock => libc::EAGAIN,
        _ => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

pub(super) fn not_now<T>(answer: io::Result<T>) -> Result<Option<T>, i32> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(errno_of(&error)),
    }
}

/// Another descriptor of the same file.
pub(super) fn hold(fd: RawFd) -> Result<OwnedFd, i32> {
    // SAFETY: the call takes integers and touches no memory of ours.
    let held = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if held < 0 {
        return Err(errno_of(&io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(held) })
}

/// What a file is ready for, of what is asked; ends and errors are always told.
pub(super) fn ready(file: BorrowedFd<'_>, events: u32) -> u32 {
    if let Some(found) = calls::poll(file) {
        return found & (events | (libc::POLLERR | libc::POLLHUP) as u32);
    }
    let mut wanted =
        libc::pollfd { fd: file.as_raw_fd(), events: events as libc::c_short, revents: 0 };
    // SAFETY: the pointer is to one pollfd, which the call reads and fills.
    let count = unsafe { libc::poll(&raw mut wanted, 1, 0) };
    if count > 0 { wanted.revents as u16 as u32 } else { 0 }
}

/// Tells each time when something comes, and not while it is there.
pub(super) enum Edges {
    /// The kernel's, of a descriptor of its own.
    OfKernel { epoll: EpollFd, seen: Cell<u32> },
    /// The world's, of a simulated socket.
    OfWorld { world: Arc<World>, socket: OwnedFd, instance: u64 },
}

impl Edges {
    pub(super) fn of(file: BorrowedFd<'_>, events: u32) -> Result<Edges, i32> {
        let world = World::current().expect("a simulated ring is used in its world");
        if let Some(instance) = world.watch_alone(file, events) {
            let socket = hold(file.as_raw_fd())?;
            return Ok(Edges::OfWorld { world, socket, instance });
        }
        let epoll = EpollFd::new().map_err(|error| errno_of(&error))?;
        let events = events | libc::EPOLLET as u32;
        let added = epoll.add_in_kernel(file.as_raw_fd(), events, 0);
        added.map_err(|error| errno_of(&error))?;
        Ok(Edges::OfKernel { epoll, seen: Cell::new(0) })
    }

    /// What has come since it was last taken.
    pub(super) fn look(&self) -> u32 {
        match self {
            Edges::OfKernel { epoll, seen } => {
                // It cannot fail but for a bug.
                let _looked = epoll.wait_for_kernel(Some(Duration::ZERO), |event| {
                    seen.set(seen.get() | event.events);
                });
                seen.get()
            }
            Edges::OfWorld { world, socket, instance } => {
                world.pending_alone(socket.as_fd(), *instance)
            }
        }
    }

    pub(super) fn take(&self) -> Option<u32> {
        let found = self.look();
        match self {
            Edges::OfKernel { seen, .. } => seen.set(0),
            Edges::OfWorld { world, socket, instance } => {
                if found != 0 {
                    world.told_alone(socket.as_fd(), *instance);
                }
            }
        }
        (found != 0).then_some(found)
    }
}

impl Drop for Edges {
    fn drop(&mut self) {
        if let Edges::OfWorld { world, socket, instance } = self {
            world.forget_alone(socket.as_fd(), *instance);
        }
    }
}

pub(super) fn accept(listener: BorrowedFd<'_>, flags: u32) -> Result<Option<OwnedFd>, i32> {
    let accepted = not_now(sys::accept(listener))?;
    if let Some(accepted) = &accepted {
        adapt(accepted, flags as libc::c_int);
    }
    Ok(accepted)
}

/// An accepted socket is non-blocking and closed on exec, unless the entry did not ask for that.
fn adapt(accepted: &OwnedFd, flags: libc::c_int) {
    let raw = accepted.as_raw_fd();
    if flags & libc::SOCK_NONBLOCK == 0 {
        // SAFETY: the call takes integers and touches no memory of ours.
        unsafe { libc::fcntl(raw, libc::F_SETFL, 0) };
    }
    if flags & libc::SOCK_CLOEXEC == 0 {
        // SAFETY: as above.
        unsafe { libc::fcntl(raw, libc::F_SETFD, 0) };
    }
}

pub(super) fn connect(socket: BorrowedFd<'_>, request: &Request) -> Answer {
    if let Some(answer) = address_of(request).and_then(|to| calls::connect(socket, to)) {
        return match answer {
            Ok(()) => Ok(Some(0)),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(None),
            Err(error) => Err(errno_of(&error)),
        };
    }
    let (address, length) = (pointer::<libc::sockaddr>(request), request.offset);
    // SAFETY: the entry's address is kept by its operation, and has the length that is told.
    let answer = unsafe { libc::connect(socket.as_raw_fd(), address, length as libc::socklen_t) };
    match answer {
        0 => Ok(Some(0)),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(None),
            error => Err(errno_of(&error)),
        },
    }
}

/// The address of a connect, if it is one of the internet's.
fn address_of(request: &Request) -> Option<SocketAddr> {
    let family = pointer::<libc::sa_family_t>(request);
    let length = request.offset as usize;
    // SAFETY: every address begins with its family, and the operation keeps it.
    match libc::c_int::from(unsafe { *family }) {
        libc::AF_INET if length >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: the family and the length say that it is such an address.
            let address = unsafe { pointer::<libc::sockaddr_in>(request).read_unaligned() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin_port)))
        }
        libc::AF_INET6 if length >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above.
            let address = unsafe { pointer::<libc::sockaddr_in6>(request).read_unaligned() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin6_port)))
        }
        _ => None,
    }
}

/// How a connect that was under way has ended.
pub(super) fn connected(socket: BorrowedFd<'_>) -> Answer {
    if ready(socket, libc::POLLOUT as u32) == 0 {
        return Ok(None);
    }
    sys::take_socket_error(socket).map(|()| Some(0)).map_err(|error| errno_of(&error))
}

pub(super) fn shutdown(socket: BorrowedFd<'_>, how: u32) -> Result<u32, i32> {
    let how = match how as libc::c_int {
        libc::SHUT_RD => Shutdown::Read,
        libc::SHUT_WR => Shutdown::Write,
        libc::SHUT_RDWR => Shutdown::Both,
        _ => return Err(libc::EINVAL),
    };
    sys::shutdown(socket, how).map(|()| 0).map_err(|error| errno_of(&error))
}

/// A part of the memory that a send reads from.
pub(super) fn bytes_of(request: &Request, start: usize, length: usize) -> &[u8] {
    // SAFETY: the part lies within what the entry describes, which its operation keeps until the
    // last completion.
    let start = unsafe { pointer::<u8>(request).add(start) };
    // SAFETY: as above; the bytes are initialized, as they are to be sent.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// A part of the memory that a receive writes to.
#[expect(clippy::mut_from_ref, reason = "the memory is not the request's, which only names it")]
pub(super) fn memory_of(request: &Request, start: usize, length: usize) -> &mut [MaybeUninit<u8>] {
    // SAFETY: as in `bytes_of`.
    let start = unsafe { pointer::<MaybeUninit<u8>>(request).add(start) };
    // SAFETY: as above; the operation leaves the memory to the kernel meanwhile.
    unsafe { std::slice::from_raw_parts_mut(start, length) }
}

pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Answer {
    not_now(sys::send(socket, bytes)).map(|count| count.map(|count| count as u32))
}

pub(super) fn recv(
    socket: BorrowedFd<'_>,
    memory: &mut [MaybeUninit<u8>],
    flags: libc::c_int,
) -> Answer {
    not_now(sys::recv(socket, memory, flags)).map(|count| count.map(|count| count as u32))
}
