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
