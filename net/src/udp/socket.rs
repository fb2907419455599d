//! What users hold of a socket.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use annulus_runtime::io::{Homed, Place, Waiters, set_nonblocking};
use socket2::SockAddr;

use super::inbound::{Received, Take};
use super::offload::{Segments, check_segments};
use super::options::UdpOptions;
use super::outbound::Outgoing;
use super::state::State;
use crate::addr::{ToSocketAddrs, internet_address, resolve, resolve_first};
use crate::into_std::{self, IntoStdError};
use crate::memory::memory_of;

/// A UDP socket.
///
/// Every send is one system call, made at once; it waits only while the socket's send buffer is
/// full. On io_uring the kernel receives ahead, into buffers of the shard, once something has been
/// asked for: some 16 datagrams of a socket wait there, the rest in the socket's own buffer
/// (`SO_RCVBUF`, socket(7)). While those that come are 8 KiB or larger, they are received straight
/// into the caller's memory.
///
/// Methods take `&self`: several tasks of the shard may send and receive at once, and each datagram
/// goes to one of them. The socket works on the shard where it was made; elsewhere its methods give
/// an error that says so. It may be dropped anywhere; that closes it and frees the port, at once on
/// its own shard, also while receives wait in the kernel.
///
/// # Examples
///
/// ```
/// use annulus_net::UdpSocket;
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let server = UdpSocket::bind("127.0.0.1:0").await?;
/// let client = UdpSocket::bind("127.0.0.1:0").await?;
/// client.connect(server.local_addr()?).await?;
///
/// client.send(b"hello").await?;
/// let mut buffer = [0; 1500];
/// let (length, peer) = server.recv_from(&mut buffer).await?;
/// server.send_to(&buffer[..length], peer).await?;
///
/// let length = client.recv(&mut buffer).await?;
/// assert_eq!(&buffer[..length], b"hello");
/// # Ok(())
/// # })
/// # }
/// ```
pub struct UdpSocket {
    state: Homed<State>,
    receivers: Arc<Waiters>,
    senders: Arc<Waiters>,
}

impl UdpSocket {
    /// Binds the first of the addresses that can be bound. Port 0 takes a free port.
    ///
    /// # Errors
    ///
    /// The last address's error, if none can be bound: an address in use, not on this machine, or
    /// not permitted; a name that cannot be resolved; no descriptor left; no runtime on this
    /// thread.
    ///
    /// # Panics
    ///
    /// Outside of a runtime, if a name has to be resolved.
    ///
    /// # Cancel safety
    ///
    /// A dropped `bind` has bound nothing.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        UdpSocket::bind_with(address, UdpOptions::new()).await
    }

    /// As [`bind`](UdpSocket::bind), with options.
    ///
    /// # Errors
    ///
    /// As [`bind`](UdpSocket::bind).
    ///
    /// # Panics
    ///
    /// As [`bind`](UdpSocket::bind).
    ///
    /// # Cancel safety
    ///
    /// As [`bind`](UdpSocket::bind).
    pub async fn bind_with(
        address: impl ToSocketAddrs,
        options: UdpOptions,
    ) -> io::Result<UdpSocket> {
        let mut last = None;
        for address in resolve(address).await? {
            match options.bind(address) {
                Ok(socket) => return UdpSocket::from_socket(socket),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("`resolve` gives at least one address"))
    }

    /// Takes a socket of the standard library, which is made non-blocking.
    ///
    /// # Errors
    ///
    /// Outside of a runtime, and those of `fcntl(2)`.
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        let socket = OwnedFd::from(socket);
        set_nonblocking(socket.as_fd(), true)?;
        UdpSocket::from_socket(socket)
    }

    fn from_socket(socket: OwnedFd) -> io::Result<UdpSocket> {
        let receivers = Arc::<Waiters>::default();
        let senders = Arc::<Waiters>::default();
        let state = State::settle_in(socket, Arc::clone(&receivers), Arc::clone(&senders))?;
        Ok(UdpSocket { state, receivers, senders })
    }

    /// Gives the socket to the standard library, blocking as that expects.
    ///
    /// # Errors
    ///
    /// If datagrams have been received ahead and not taken: they would be lost. Also an error of
    /// earlier sends that was not yet reported; on another shard than the socket's; and if the
    /// kernel has so much else to do that it holds on to the socket: try again. The error holds the
    /// socket, which goes on.
    pub fn into_std(self) -> Result<std::net::UdpSocket, IntoStdError<UdpSocket>> {
        let ready = self.state.get().and_then(|state| state.quiesce());
        if let Err(error) = ready {
            return Err(IntoStdError::new(self, error));
        }
        let UdpSocket { state, receivers, senders } = self;
        let state = match state.take() {
            Ok(state) => state,
            Err((state, error)) => {
                return Err(IntoStdError::new(UdpSocket { state, receivers, senders }, error));
            }
        };
        into_std::blocking(State::into_fd(state))
    }

    /// Sets the peer: what [`send`](UdpSocket::send) sends to, and the only one from whom datagrams
    /// are received from now on. Those that came before stay. Sends nothing; tries the addresses in
    /// turn.
    ///
    /// # Errors
    ///
    /// The last address's: no route, a broadcast address without
    /// [`set_broadcast`](UdpSocket::set_broadcast), an address of the other family. A name that
    /// cannot be resolved; another shard than the socket's.
    ///
    /// # Panics
    ///
    /// Outside of a runtime, if a name has to be resolved.
    ///
    /// # Cancel safety
    ///
    /// A dropped `connect` has done nothing.
    pub async fn connect(&self, address: impl ToSocketAddrs) -> io::Result<()> {
        let mut last = None;
        for address in resolve(address).await? {
            match self.state()?.socket().connect(&address.into()) {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("`resolve` gives at least one address"))
    }

    /// Sends one datagram to the connected peer, and answers its length. Waits only for room in the
    /// socket's send buffer; whether it arrives, nobody tells.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` if an earlier datagram found nobody at the peer's port (udp(7)): the
    /// socket goes on, and this datagram was not sent. Without a peer; a datagram that is too long
    /// (`EMSGSIZE`, over 65,507 bytes on IPv4); no route; another shard than the socket's.
    ///
    /// # Cancel safety
    ///
    /// A dropped send has sent nothing.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_out(Outgoing { bytes, target: None, segment_bytes: None }).await
    }

    /// Sends one datagram to an address, the first if a name stands for several.
    ///
    /// # Errors
    ///
    /// As [`send`](UdpSocket::send); `PermissionDenied` for a broadcast address without
    /// [`set_broadcast`](UdpSocket::set_broadcast); an address of the other family; a name that
    /// cannot be resolved.
    ///
    /// # Panics
    ///
    /// Outside of a runtime, if a name has to be resolved.
    ///
    /// # Cancel safety
    ///
    /// As [`send`](UdpSocket::send).
    pub async fn send_to(&self, bytes: &[u8], target: impl ToSocketAddrs) -> io::Result<usize> {
        let target = SockAddr::from(resolve_first(target).await?);
        self.send_out(Outgoing { bytes, target: Some(&target), segment_bytes: None }).await
    }

    /// Sends several datagrams by one call: the bytes, cut into datagrams of `segment_bytes` each;
    /// the last may be shorter. To the connected peer if no target is given. Since Linux 4.18
    /// (`UDP_SEGMENT`, udp(7)).
    ///
    /// # Errors
    ///
    /// As [`send`](UdpSocket::send). `Unsupported` where the kernel cannot cut; `InvalidInput` for
    /// segments of no bytes and, from the kernel, for ones that do not fit the route's packets or
    /// are too many (64 on older kernels); `EMSGSIZE` for too many bytes in all (over 65,507 on
    /// IPv4).
    ///
    /// # Cancel safety
    ///
    /// As [`send`](UdpSocket::send): all of it or nothing.
    pub async fn send_segments(
        &self,
        bytes: &[u8],
        segment_bytes: usize,
        target: Option<SocketAddr>,
    ) -> io::Result<usize> {
        let segment_bytes = check_segments(self.state()?.fd().as_fd(), bytes.len(), segment_bytes)?;
        let target = target.map(SockAddr::from);
        self.send_out(Outgoing { bytes, target: target.as_ref(), segment_bytes }).await
    }

    pub(super) async fn send_out(&self, outgoing: Outgoing<'_>) -> io::Result<usize> {
        let mut place = self.senders.place();
        poll_fn(|cx| place.poll(cx, |cx| self.state.get()?.poll_send(cx, outgoing))).await
    }

    /// Receives one datagram, and answers how many of its bytes are in the buffer. What the buffer
    /// does not take is lost. 0 is a datagram without bytes, or a buffer without room: no end.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` if a datagram sent to the connected peer found nobody at its port
    /// (udp(7)): the socket goes on. On another shard than the socket's.
    ///
    /// # Cancel safety
    ///
    /// A dropped receive loses no datagram: the next one gets it.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(buffer, Take::Away).await.map(|received| received.bytes)
    }

    /// As [`recv`](UdpSocket::recv), and tells who sent the datagram.
    ///
    /// # Errors
    ///
    /// As [`recv`](UdpSocket::recv).
    ///
    /// # Cancel safety
    ///
    /// As [`recv`](UdpSocket::recv).
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let received = self.receive(buffer, Take::Away).await?;
        Ok((received.bytes, peer_of(&received)?))
    }

    /// As [`recv`](UdpSocket::recv), but leaves the datagram, the whole of it, for the next
    /// receive.
    ///
    /// # Errors
    ///
    /// As [`recv`](UdpSocket::recv).
    ///
    /// # Cancel safety
    ///
    /// A dropped peek changes nothing.
    pub async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(buffer, Take::Peek).await.map(|received| received.bytes)
    }

    /// As [`recv_from`](UdpSocket::recv_from), but leaves the datagram, the whole of it, for the
    /// next receive.
    ///
    /// # Errors
    ///
    /// As [`recv`](UdpSocket::recv).
    ///
    /// # Cancel safety
    ///
    /// A dropped peek changes nothing.
    pub async fn peek_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let received = self.receive(buffer, Take::Peek).await?;
        Ok((received.bytes, peer_of(&received)?))
    }

    /// Receives a datagram, or several of one sender that the kernel has joined: see
    /// [`set_receive_offload`](UdpSocket::set_receive_offload). The buffer should take 64 KiB: of
    /// joined datagrams, too, what it does not take is lost.
    ///
    /// # Errors
    ///
    /// As [`recv`](UdpSocket::recv).
    ///
    /// # Cancel safety
    ///
    /// As [`recv`](UdpSocket::recv).
    pub async fn recv_segments(&self, buffer: &mut [u8]) -> io::Result<Segments> {
        let received = self.receive(buffer, Take::Away).await?;
        let bytes = received.bytes;
        let segment_bytes = received.segment_bytes.unwrap_or(bytes.max(1));
        Ok(Segments { bytes, segment_bytes, peer: peer_of(&received)? })
    }

    async fn receive(&self, buffer: &mut [u8], take: Take) -> io::Result<Received> {
        let memory = memory_of(buffer);
        let mut place = self.receiver();
        poll_fn(|cx| self.poll_receive(cx, &mut place, memory, take)).await
    }

    pub(super) fn receiver(&self) -> Place<'_> {
        self.receivers.place()
    }

    pub(super) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        place: &mut Place<'_>,
        memory: &mut [MaybeUninit<u8>],
        take: Take,
    ) -> Poll<io::Result<Received>> {
        place.poll(cx, |cx| self.state.get()?.poll_receive(cx, memory, take))
    }

    /// The address that the socket is bound to: tells which port 0 has become.
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        internet_address(self.state()?.socket().local_addr()?)
    }

    /// The address of the connected peer.
    ///
    /// # Errors
    ///
    /// `NotConnected` without one; on another shard than the socket's.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        internet_address(self.state()?.socket().peer_addr()?)
    }

    /// Takes the error that the socket has pending (`SO_ERROR`, socket(7)).
    ///
    /// # Errors
    ///
    /// On another shard than the socket's.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.state()?.take_error()
    }

    pub(super) fn state(&self) -> io::Result<Rc<State>> {
        self.state.get()
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("UdpSocket");
        match self.state.get() {
            Ok(state) => fields.field("fd", &state.fd().raw()).finish(),
            Err(_) => fields.finish_non_exhaustive(),
        }
    }
}

pub(super) fn peer_of(received: &Received) -> io::Result<SocketAddr> {
    received.peer.ok_or_else(|| io::Error::other("the datagram came without an internet address"))
}
