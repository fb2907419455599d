//! TCP sockets before they are streams or listeners: the kernel's, or those of a simulation, where
//! the thread lives in one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use annulus_runtime::io::{simulated, take_socket_error};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::addr::{explain_bind, internet_address};

/// A socket that does not block, for addresses such as this one.
pub(crate) fn open(address: SocketAddr) -> io::Result<Socket> {
    if let Some(socket) = simulated::socket() {
        return socket.map(Socket::from);
    }
    Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// Binds a socket that others may share the address with, or not, and sets what accepted sockets
/// inherit.
pub(crate) fn bind(
    socket: &Socket,
    address: SocketAddr,
    shares: bool,
    only_v6: Option<bool>,
) -> io::Result<()> {
    let explain = |error| explain_bind(error, address);
    let binding = simulated::Binding { shares, only_v6: only_v6 == Some(true) };
    if let Some(answer) = simulated::bind(socket.as_fd(), address, binding) {
        return answer.map_err(explain);
    }
    // Connections that are still being closed must not keep a restarted server from its port.
    socket.set_reuse_address(true)?;
    if shares {
        socket.set_reuse_port(true)?;
    }
    if let (Some(only), true) = (only_v6, address.is_ipv6()) {
        socket.set_only_v6(only)?;
    }
    socket.bind(&address.into()).map_err(explain)?;
    // Accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)
}

/// Lets others share the address of a socket that has it.
pub(crate) fn share_address(socket: &Socket) -> io::Result<()> {
    match simulated::share_address(socket.as_fd()) {
        Some(answer) => answer,
        None => socket.set_reuse_port(true),
    }
}

pub(crate) fn listen(socket: &Socket, backlog: u32) -> io::Result<()> {
    match simulated::listen(socket.as_fd(), backlog) {
        Some(answer) => answer,
        None => socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX)),
    }
}

/// Begins to connect: `EINPROGRESS` where that takes a while.
pub(crate) fn connect(fd: &impl AsFd, address: &SockAddr) -> io::Result<()> {
    let simulated = address.as_socket().and_then(|to| simulated::connect(fd.as_fd(), to));
    simulated.unwrap_or_else(|| SockRef::from(fd).connect(address))
}

pub(crate) fn nodelay(fd: &impl AsFd) -> io::Result<bool> {
    match simulated::options(fd.as_fd(), |_| {}) {
        Some(options) => Ok(options?.nodelay),
        None => SockRef::from(fd).tcp_nodelay(),
    }
}

pub(crate) fn set_nodelay(fd: &impl AsFd, nodelay: bool) -> io::Result<()> {
    match simulated::options(fd.as_fd(), |options| options.nodelay = nodelay) {
        Some(options) => options.map(drop),
        None => SockRef::from(fd).set_tcp_nodelay(nodelay),
    }
}

pub(crate) fn ttl(fd: &impl AsFd) -> io::Result<u32> {
    match simulated::options(fd.as_fd(), |_| {}) {
        Some(options) => Ok(options?.ttl),
        None => SockRef::from(fd).ttl_v4(),
    }
}

pub(crate) fn set_ttl(fd: &impl AsFd, ttl: u32) -> io::Result<()> {
    match simulated::options(fd.as_fd(), |options| options.ttl = ttl) {
        Some(options) => options.map(drop),
        None => SockRef::from(fd).set_ttl_v4(ttl),
    }
}

/// Sets `SO_LINGER`. The descriptor of a simulated socket keeps it, and its network is told.
pub(crate) fn set_linger(fd: &impl AsFd, linger: Option<Duration>) -> io::Result<()> {
    SockRef::from(fd).set_linger(linger)?;
    let abortive = linger.is_some_and(|time| time.is_zero());
    let told = simulated::options(fd.as_fd(), |options| options.abortive = abortive);
    told.map_or(Ok(()), |options| options.map(drop))
}

pub(crate) fn local_address(fd: &impl AsFd) -> io::Result<SocketAddr> {
    match simulated::local_address(fd.as_fd()) {
        Some(answer) => answer,
        None => internet_address(SockRef::from(fd).local_addr()?),
    }
}

pub(crate) fn peer_address(fd: &impl AsFd) -> io::Result<SocketAddr> {
    match simulated::peer_address(fd.as_fd()) {
        Some(answer) => answer,
        None => internet_address(SockRef::from(fd).peer_addr()?),
    }
}

/// Takes the pending error (`SO_ERROR`).
pub(crate) fn take_error(fd: &impl AsFd) -> io::Result<Option<io::Error>> {
    if simulated::is_simulated(fd.as_fd()) {
        return Ok(take_socket_error(fd.as_fd()).err());
    }
    SockRef::from(fd).take_error()
}
