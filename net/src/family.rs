//! The socket families of streams and listeners.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;

use socket2::{SockAddr, SockRef};

use crate::sockets;

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
    /// Whether `SO_LINGER` means something: only then may a close drop what is unsent, or block.
    #[doc(hidden)]
    const LINGERS: bool;

    /// Whether a read that took less than it could have has emptied the socket.
    #[doc(hidden)]
    const SHORT_READ_EMPTIES: bool;

    /// The address of a socket of this family; an error if it is of another.
    #[doc(hidden)]
    fn local_address(socket: &impl AsFd) -> io::Result<<Self as Family>::Address>
    where
        Self: Family;

    /// The address of its peer.
    #[doc(hidden)]
    fn peer_address(socket: &impl AsFd) -> io::Result<<Self as Family>::Address>
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
    const LINGERS: bool = true;
    const SHORT_READ_EMPTIES: bool = true;

    fn local_address(socket: &impl AsFd) -> io::Result<SocketAddr> {
        sockets::local_address(socket)
    }

    fn peer_address(socket: &impl AsFd) -> io::Result<SocketAddr> {
        sockets::peer_address(socket)
    }

    fn prepare_listener(listener: &OwnedFd) -> io::Result<()> {
        sockets::set_nodelay(listener, true)
    }
}

impl Family for Unix {
    type Address = net::SocketAddr;
    type StdStream = net::UnixStream;
    type StdListener = net::UnixListener;
}

impl Sealed for Unix {
    /// The kernel stores the option and never looks at it.
    const LINGERS: bool = false;
    /// A read ends behind a message that carries descriptors, whatever lies behind it (unix(7)).
    const SHORT_READ_EMPTIES: bool = false;

    fn local_address(socket: &impl AsFd) -> io::Result<net::SocketAddr> {
        unix_address(SockRef::from(socket).local_addr()?)
    }

    fn peer_address(socket: &impl AsFd) -> io::Result<net::SocketAddr> {
        unix_address(SockRef::from(socket).peer_addr()?)
    }
}

fn unix_address(address: SockAddr) -> io::Result<net::SocketAddr> {
    if !address.is_unix() {
        return Err(io::Error::other("the socket is not a Unix socket"));
    }
    if let Some(name) = address.as_abstract_namespace() {
        return net::SocketAddr::from_abstract_name(name);
    }
    // Other languages can bind 108 bytes without a NUL, which this type cannot be made from.
    // A peer that does so must not make an accept fail.
    let path = address.as_pathname().and_then(|path| net::SocketAddr::from_pathname(path).ok());
    path.map_or_else(|| net::SocketAddr::from_pathname(""), Ok)
}
