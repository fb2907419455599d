//! The calls that the crate itself has no need of: of the kernel, unless this thread lives in a
//! world.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::Answer;
use crate::sim::calls::{self, Binding};

/// A TCP socket for addresses such as this one. `None`: there is no such network here.
pub(super) fn socket(of: SocketAddr) -> Option<OwnedFd> {
    if let Some(made) = calls::socket() {
        return made.ok();
    }
    let family = if of.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call takes integers and touches no memory of ours.
    let fd = unsafe { libc::socket(family, kind, 0) };
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds as `sockets::bind` of the network crate does.
pub(super) fn bind(socket: &OwnedFd, address: SocketAddr, binding: Binding) -> Answer {
    if let Some(answer) = calls::bind(socket.as_fd(), address, binding) {
        return errno_of(answer);
    }
    set(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, binding.shares.into())?;
    if address.is_ipv6() {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, binding.only_v6.into())?;
    }
    let (name, length) = name(address);
    // SAFETY: the name is that of an address, of this length, and outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), length) })
}

pub(super) fn listen(socket: &OwnedFd) -> Answer {
    if let Some(answer) = calls::listen(socket.as_fd(), 8) {
        return errno_of(answer);
    }
    // SAFETY: the call takes integers and touches no memory of ours.
    check(unsafe { libc::listen(socket.as_raw_fd(), 8) })
}

/// Begins to connect.
pub(super) fn connect(socket: &OwnedFd, to: SocketAddr) {
    let answer = calls::connect(socket.as_fd(), to).map(errno_of).unwrap_or_else(|| {
        let (name, length) = name(to);
        // SAFETY: the name is that of an address, of this length, and outlives the call.
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const name).cast(), length) })
    });
    assert!(matches!(answer, Ok(()) | Err(libc::EINPROGRESS)), "{answer:?}");
}

/// Has the close of a socket reset its connection.
pub(super) fn abort_on_close(socket: &OwnedFd) {
    if calls::options(socket.as_fd(), |options| options.abortive = true).is_some() {
        return;
    }
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let length = size_of::<libc::linger>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_LINGER);
    // SAFETY: the value and its length agree and outlive the call.
    let answer = check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const linger).cast(), length)
    });
    assert_eq!(answer, Ok(()));
}

/// The address of an end of IPv4.
pub(super) fn local_address(socket: &OwnedFd) -> Result<SocketAddr, i32> {
    match calls::local_address(socket.as_fd()) {
        Some(answer) => errno_of(answer),
        None => address_by(socket, libc::getsockname),
    }
}

/// Whether there is an address of the other end.
pub(super) fn peer_address(socket: &OwnedFd) -> Result<usize, i32> {
    let answer = match calls::peer_address(socket.as_fd()) {
        Some(answer) => errno_of(answer),
        None => address_by(socket, libc::getpeername),
    };
    answer.map(|_| 1)
}

type AddressCall =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address_by(socket: &OwnedFd, call: AddressCall) -> Result<SocketAddr, i32> {
    let (mut name, _) = name(SocketAddr::from(([0, 0, 0, 0], 0)));
    let mut length = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    // SAFETY: the name and its length are valid for writing and agree with each other.
    check(unsafe { call(socket.as_raw_fd(), (&raw mut name).cast(), &raw mut length) })?;
    let ip = name.sin6_flowinfo.to_ne_bytes();
    Ok(SocketAddr::from((ip, u16::from_be(name.sin6_port))))
}

/// What poll(2) tells of a socket of that which is asked for most.
pub(super) fn poll(socket: &OwnedFd) -> u32 {
    let asked = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;
    let always = libc::POLLERR | libc::POLLHUP;
    if let Some(events) = calls::poll(socket.as_fd()) {
        return events & (asked | always) as u32;
    }
    let mut wanted = libc::pollfd { fd: socket.as_raw_fd(), events: asked, revents: 0 };
    // SAFETY: the pointer is to one pollfd, which the call reads and fills.
    let _ready = unsafe { libc::poll(&raw mut wanted, 1, 0) };
    wanted.revents as u16 as u32
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: libc::c_int) -> Answer {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value and its length agree and outlive the call.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length)
    })
}

/// An address as the kernel reads it.
fn name(address: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: all zeros is an address of no family.
    let mut name: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    match address.ip() {
        IpAddr::V6(ip) => {
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = address.port().to_be();
            name.sin6_addr.s6_addr = ip.octets();
            (name, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
        IpAddr::V4(ip) => {
            // `sockaddr_in` has its address where `sockaddr_in6` has the flow.
            name.sin6_family = libc::AF_INET as libc::sa_family_t;
            name.sin6_port = address.port().to_be();
            name.sin6_flowinfo = u32::from_ne_bytes(ip.octets());
            (name, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
    }
}

fn check(answer: libc::c_int) -> Answer {
    if answer < 0 { errno_of(Err(io::Error::last_os_error())) } else { Ok(()) }
}

pub(super) fn errno_of<T>(answer: io::Result<T>) -> Result<T, i32> {
    answer.map_err(|error| error.raw_os_error().unwrap_or(0))
}
