//! The socket families of streams and listeners.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net;

use socket2::{SockAddr, SockRef};

use crate::addr::internet_address;

/// A family of stream sockets: [`Tcp`] or [`Unix`].
pub trait Family: Sealed + fmt::Debug + 'static {
    /// What names an end of a connection.
    type Address: fmt::Debug;
    /// The standard library's stream.
    type StdStream: From<OwnedFd> + Into<OwnedFd> + fmt::Debug;
    /// The standard library's listener.
    type StdListener: From<OwnedFd> + Into<OwnedFd> + fmt::Debug;
}

/// What only this crate implements.
pub trait Sealed {
    /// An address of this family; an error if it is of another.
    #[doc(hidden)]
    fn address(address: SockAddr) -> io::Result<<Self as Family>::Address>
    where
        Self: Family;

    /// Sets what accepted sockets inherit.
    #[doc(hidden)]
    fn prepare_listener(_listener: &OwnedFd) -> io::Result<()> {
        Ok(())
    }
}

/// TCP, over IPv4 and IPv6.
#[derive(Clone, Copy, Debug)]
pub enum Tcp {}

/// Unix stream sockets, with paths and abstract names.
#[derive(Clone, Copy, Debug)]
pub enum Unix {}

impl Family for Tcp {
    type Address = SocketAddr;
    type StdStream = std::net::TcpStream;
    type StdListener = std::net::TcpListener;
}

impl Sealed for Tcp {
    fn address(address: SockAddr) -> io::Result<SocketAddr> {
        internet_address(address)
    }

    fn prepare_listener(listener: &OwnedFd) -> io::Result<()> {
        SockRef::from(listener).set_tcp_nodelay(true)
    }
}

impl Family for Unix {
    type Address = net::SocketAddr;
    type StdStream = net::UnixStream;
    type StdListener = net::UnixListener;
}

impl Sealed for Unix {
    fn address(address: SockAddr) -> io::Result<net::SocketAddr> {
        address.as_unix().ok_or_else(|| io::Error::other("the socket is not a Unix socket"))
    }
}
