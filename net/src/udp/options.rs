//! What a socket can be set to: when it is bound, and later.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use annulus_runtime::io::simulated::is_here;
use socket2::{Domain, Protocol, Socket, Type};

use super::offload;
use super::socket::UdpSocket;
use crate::addr::explain_bind;

/// How a socket is bound.
///
/// # Examples
///
/// ```
/// use annulus_net::{UdpOptions, UdpSocket};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let options = UdpOptions::new().reuse_port(true).receive_buffer_bytes(1 << 20);
/// let first = UdpSocket::bind_with("127.0.0.1:0", options).await?;
/// let second = UdpSocket::bind_with(first.local_addr()?, options).await?;
/// # drop(second);
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "options do nothing unless a socket is bound with them"]
pub struct UdpOptions {
    reuse_address: bool,
    reuse_port: bool,
    only_v6: Option<bool>,
    receive_buffer_bytes: Option<usize>,
    send_buffer_bytes: Option<usize>,
}

impl UdpOptions {
    /// The defaults: those of the system.
    pub fn new() -> UdpOptions {
        UdpOptions::default()
    }

    /// Lets several sockets have the address (`SO_REUSEADDR`, socket(7)). All get what is sent to a
    /// multicast group; of the rest only one, the one bound last.
    pub fn reuse_address(mut self, reuse: bool) -> UdpOptions {
        self.reuse_address = reuse;
        self
    }

    /// Lets several sockets of one user have the port; the kernel spreads senders over them by a
    /// hash of the addresses (`SO_REUSEPORT`, socket(7)).
    pub fn reuse_port(mut self, reuse: bool) -> UdpOptions {
        self.reuse_port = reuse;
        self
    }

    /// Whether an IPv6 socket leaves IPv4 alone (`IPV6_V6ONLY`, ipv6(7)). Default: the system's.
    pub fn only_v6(mut self, only: bool) -> UdpOptions {
        self.only_v6 = Some(only);
        self
    }

    /// How much may wait to be received (`SO_RCVBUF`, socket(7)); what comes beyond it is lost. The
    /// kernel doubles it for its own needs, and `net.core.rmem_max` bounds it.
    pub fn receive_buffer_bytes(mut self, bytes: usize) -> UdpOptions {
        self.receive_buffer_bytes = Some(bytes);
        self
    }

    /// How much may wait to be sent (`SO_SNDBUF`, socket(7)). The kernel doubles it for its own
    /// needs, and `net.core.wmem_max` bounds it.
    pub fn send_buffer_bytes(mut self, bytes: usize) -> UdpOptions {
        self.send_buffer_bytes = Some(bytes);
        self
    }

    pub(super) fn bind(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        if is_here() {
            let text = "a simulation has no UDP: its datagrams would be real, and late at random";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))
            .map_err(|error| explain_bind(error, address))?;
        if self.reuse_address {
            socket.set_reuse_address(true)?;
        }
        if self.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if let (Some(only), true) = (self.only_v6, address.is_ipv6()) {
            socket.set_only_v6(only)?;
        }
        if let Some(bytes) = self.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        socket.bind(&address.into()).map_err(|error| explain_bind(error, address))?;
        Ok(socket.into())
    }
}

/// Each of them gives an error on another shard than the socket's, and those of `setsockopt(2)`.
impl UdpSocket {
    /// Whether it may send to broadcast addresses (`SO_BROADCAST`, socket(7)). Off by default.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn broadcast(&self) -> io::Result<bool> {
        self.state()?.socket().broadcast()
    }

    /// Sets `SO_BROADCAST`.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn set_broadcast(&self, on: bool) -> io::Result<()> {
        self.state()?.socket().set_broadcast(on)
    }

    /// How many routers a datagram may pass (`IP_TTL`, ip(7)).
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn ttl(&self) -> io::Result<u32> {
        self.state()?.socket().ttl_v4()
    }

    /// Sets `IP_TTL`.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's; a number outside 1..=255.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.state()?.socket().set_ttl_v4(ttl)
    }

    /// Joins a multicast group (`IP_ADD_MEMBERSHIP`, ip(7)) on the interface that has this address,
    /// or on one of the system's choice if the address is unspecified.
    ///
    /// # Errors
    ///
    /// No such interface, no route, a group joined already; on another shard than the socket's.
    pub fn join_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.state()?.socket().join_multicast_v4(&group, &interface)
    }

    /// Leaves a multicast group (`IP_DROP_MEMBERSHIP`, ip(7)).
    ///
    /// # Errors
    ///
    /// A group that was not joined; on another shard than the socket's.
    pub fn leave_multicast_v4(&self, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
        self.state()?.socket().leave_multicast_v4(&group, &interface)
    }

    /// Joins a multicast group (`IPV6_ADD_MEMBERSHIP`, ipv6(7)) on the interface of this index, or
    /// on one of the system's choice if it is 0.
    ///
    /// # Errors
    ///
    /// As [`join_multicast_v4`](UdpSocket::join_multicast_v4).
    pub fn join_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.state()?.socket().join_multicast_v6(group, interface)
    }

    /// Leaves a multicast group (`IPV6_DROP_MEMBERSHIP`, ipv6(7)).
    ///
    /// # Errors
    ///
    /// As [`leave_multicast_v4`](UdpSocket::leave_multicast_v4).
    pub fn leave_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.state()?.socket().leave_multicast_v6(group, interface)
    }

    /// Whether this machine's own members get what is sent to a group (`IP_MULTICAST_LOOP`, ip(7)).
    /// On by default.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn multicast_loop_v4(&self) -> io::Result<bool> {
        self.state()?.socket().multicast_loop_v4()
    }

    /// Sets `IP_MULTICAST_LOOP`.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn set_multicast_loop_v4(&self, on: bool) -> io::Result<()> {
        self.state()?.socket().set_multicast_loop_v4(on)
    }

    /// Whether this machine's own members get what is sent to a group (`IPV6_MULTICAST_LOOP`,
    /// ipv6(7)). On by default.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn multicast_loop_v6(&self) -> io::Result<bool> {
        self.state()?.socket().multicast_loop_v6()
    }

    /// Sets `IPV6_MULTICAST_LOOP`.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn set_multicast_loop_v6(&self, on: bool) -> io::Result<()> {
        self.state()?.socket().set_multicast_loop_v6(on)
    }

    /// How many routers a datagram to a group may pass (`IP_MULTICAST_TTL`, ip(7)). 1 by default:
    /// it stays in the local network.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn multicast_ttl_v4(&self) -> io::Result<u32> {
        self.state()?.socket().multicast_ttl_v4()
    }

    /// Sets `IP_MULTICAST_TTL`.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's; a number over 255.
    pub fn set_multicast_ttl_v4(&self, ttl: u32) -> io::Result<()> {
        self.state()?.socket().set_multicast_ttl_v4(ttl)
    }

    /// How many routers a datagram to a group may pass (`IPV6_MULTICAST_HOPS`, ipv6(7)). 1 by
    /// default.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn multicast_hops_v6(&self) -> io::Result<u32> {
        self.state()?.socket().multicast_hops_v6()
    }

    /// Sets `IPV6_MULTICAST_HOPS`.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's; a number over 255.
    pub fn set_multicast_hops_v6(&self, hops: u32) -> io::Result<()> {
        self.state()?.socket().set_multicast_hops_v6(hops)
    }

    /// The address of the interface that datagrams to a group leave by (`IP_MULTICAST_IF`, ip(7)).
    /// Unspecified: the system chooses.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn multicast_if_v4(&self) -> io::Result<Ipv4Addr> {
        self.state()?.socket().multicast_if_v4()
    }

    /// Sets `IP_MULTICAST_IF`.
    ///
    /// # Errors
    ///
    /// No such interface; on another shard than the socket's.
    pub fn set_multicast_if_v4(&self, interface: Ipv4Addr) -> io::Result<()> {
        self.state()?.socket().set_multicast_if_v4(&interface)
    }

    /// The index of the interface that datagrams to a group leave by (`IPV6_MULTICAST_IF`,
    /// ipv6(7)). 0: the system chooses.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn multicast_if_v6(&self) -> io::Result<u32> {
        self.state()?.socket().multicast_if_v6()
    }

    /// Sets `IPV6_MULTICAST_IF`.
    ///
    /// # Errors
    ///
    /// No such interface; on another shard than the socket's.
    pub fn set_multicast_if_v6(&self, interface: u32) -> io::Result<()> {
        self.state()?.socket().set_multicast_if_v6(interface)
    }

    /// How much may wait to be received (`SO_RCVBUF`, socket(7)), as the kernel counts: twice what
    /// was asked for.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn receive_buffer_bytes(&self) -> io::Result<usize> {
        self.state()?.socket().recv_buffer_size()
    }

    /// Sets `SO_RCVBUF`; `net.core.rmem_max` bounds it without an error.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn set_receive_buffer_bytes(&self, bytes: usize) -> io::Result<()> {
        self.state()?.socket().set_recv_buffer_size(bytes)
    }

    /// How much may wait to be sent (`SO_SNDBUF`, socket(7)), as the kernel counts: twice what was
    /// asked for.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn send_buffer_bytes(&self) -> io::Result<usize> {
        self.state()?.socket().send_buffer_size()
    }

    /// Sets `SO_SNDBUF`; `net.core.wmem_max` bounds it without an error.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn set_send_buffer_bytes(&self, bytes: usize) -> io::Result<()> {
        self.state()?.socket().set_send_buffer_size(bytes)
    }

    /// Whether the kernel joins datagrams of one sender that come one after the other (`UDP_GRO`,
    /// udp(7)). Off by default.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn receive_offload(&self) -> io::Result<bool> {
        offload::receive_offload(self.state()?.fd().as_fd())
    }

    /// Has the kernel join datagrams of one sender (`UDP_GRO`, since Linux 5.0): fewer receives for
    /// the same bytes. Then [`recv_segments`](UdpSocket::recv_segments) must be used, with a buffer
    /// of 64 KiB: the other receives do not tell where one datagram ends and the next begins.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the kernel has no such option; on another shard than the socket's.
    pub fn set_receive_offload(&self, on: bool) -> io::Result<()> {
        offload::set_receive_offload(self.state()?.fd().as_fd(), on)
    }
}
