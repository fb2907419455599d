//! TCP: connecting, listening, and what only TCP has.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use annulus_runtime::LIMITS;
use annulus_runtime::io::{Fd, Op};
use socket2::Socket;

use crate::addr::{ToSocketAddrs, explain_bind, resolve};
use crate::family::Tcp;
use crate::listener::Listener;
use crate::operations::Connect;
use crate::sockets;
use crate::stream::{self, Stream};

/// A TCP connection: [`Stream`] has its methods.
///
/// `TCP_NODELAY` is on: the runtime itself gathers small writes.
///
/// # Examples
///
/// ```
/// use annulus_net::{TcpListener, TcpStream};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let mut client = TcpStream::connect(listener.local_addr()?).await?;
/// let (mut served, _peer) = listener.accept().await?;
///
/// client.write_all(b"hello").await?;
/// let mut buffer = [0; 5];
/// served.read_exact(&mut buffer).await?;
/// assert_eq!(&buffer, b"hello");
/// # Ok(())
/// # })
/// # }
/// ```
pub type TcpStream = Stream<Tcp>;

/// A TCP socket that accepts connections: [`Listener`] has its methods.
///
/// # Examples
///
/// ```
/// use annulus_net::{TcpListener, TcpStream};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let client = TcpStream::connect(listener.local_addr()?).await?;
/// let (served, peer) = listener.accept().await?;
/// assert_eq!(peer, client.local_addr()?);
/// # drop(served);
/// # Ok(())
/// # })
/// # }
/// ```
pub type TcpListener = Listener<Tcp>;

/// A half of a [`TcpStream`]: [`Stream::split`].
pub type ReadHalf<'a> = stream::ReadHalf<'a, Tcp>;

/// A half of a [`TcpStream`]: [`Stream::split`].
pub type WriteHalf<'a> = stream::WriteHalf<'a, Tcp>;

/// A half of a [`TcpStream`]: [`Stream::into_split`].
pub type OwnedReadHalf = stream::OwnedReadHalf<Tcp>;

/// A half of a [`TcpStream`]: [`Stream::into_split`].
pub type OwnedWriteHalf = stream::OwnedWriteHalf<Tcp>;

impl Stream<Tcp> {
    /// Connects to the first of the addresses that answers. Names are resolved off the shard.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let addresses = ["127.0.0.1:1".parse().unwrap(), listener.local_addr()?];
    /// // Nobody listens at the first one.
    /// let client = TcpStream::connect(&addresses[..]).await?;
    /// assert_eq!(client.peer_addr()?, addresses[1]);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The last address's error, of the kind that the standard library gives: refused, unreachable,
    /// timed out; a name that cannot be resolved; no descriptor left.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// A dropped connect closes its socket. The peer may see a connection that is closed at once.
    pub async fn connect(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
        let mut last = None;
        for address in resolve(address).await? {
            match connect_one(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("`resolve` gives at least one address"))
    }

    /// Whether small segments leave at once (`TCP_NODELAY`, tcp(7)). On unless switched off.
    ///
    /// See [`set_nodelay`](TcpStream::set_nodelay).
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn nodelay(&self) -> io::Result<bool> {
        sockets::nodelay(&**self.connection()?.fd())
    }

    /// Switches `TCP_NODELAY`.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (mut served, peer) = listener.accept().await?;
    /// assert!(client.nodelay()?);
    /// client.set_nodelay(false)?;
    /// assert!(!client.nodelay()?);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        sockets::set_nodelay(&**self.connection()?.fd(), nodelay)
    }

    /// How many routers a packet may pass (`IP_TTL`, ip(7)).
    ///
    /// See [`set_ttl`](TcpStream::set_ttl).
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn ttl(&self) -> io::Result<u32> {
        sockets::ttl(&**self.connection()?.fd())
    }

    /// Sets `IP_TTL`.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (mut served, peer) = listener.accept().await?;
    /// client.set_ttl(3)?;
    /// assert_eq!(client.ttl()?, 3);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        sockets::set_ttl(&**self.connection()?.fd(), ttl)
    }
}

async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Fd::new(sockets::open(address)?.into());
    let socket = Op::new(Connect::new(socket, address.into())).await?;
    sockets::set_nodelay(&*socket, true)?;
    TcpStream::settle_in(socket)
}

impl Listener<Tcp> {
    /// Listens on the first of the addresses that can be bound. Port 0 takes a free port.
    ///
    /// Sets `SO_REUSEADDR`, so that a restarted server gets its port at once.
    ///
    /// ```
    /// # use annulus_net::TcpListener;
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// assert_ne!(listener.local_addr()?.port(), 0);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The last address's error, if none can be bound: an address in use, not on this machine, or
    /// not permitted; a name that cannot be resolved; no descriptor left.
    ///
    /// # Panics
    ///
    /// Outside of a runtime, if a name has to be resolved; otherwise that is an error.
    ///
    /// # Cancel safety
    ///
    /// A dropped `bind` listens to nothing.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
        TcpListener::bind_with(address, ListenOptions::new()).await
    }

    /// As [`bind`](TcpListener::bind), with options.
    ///
    /// # Errors
    ///
    /// As [`bind`](TcpListener::bind).
    ///
    /// # Panics
    ///
    /// As [`bind`](TcpListener::bind).
    ///
    /// # Cancel safety
    ///
    /// As [`bind`](TcpListener::bind).
    pub async fn bind_with(
        address: impl ToSocketAddrs,
        options: ListenOptions,
    ) -> io::Result<TcpListener> {
        let mut last = None;
        for address in resolve(address).await? {
            match options.listen(address) {
                Ok(socket) => return TcpListener::from_socket(socket),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("`resolve` gives at least one address"))
    }
}

/// How a listener is bound.
///
/// # Examples
///
/// ```
/// use annulus_net::{ListenOptions, TcpListener};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let options = ListenOptions::new().backlog(128).reuse_port(true);
/// let first = TcpListener::bind_with("127.0.0.1:0", options).await?;
/// let second = TcpListener::bind_with(first.local_addr()?, options).await?;
/// # drop(second);
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "options do nothing unless a listener is bound with them"]
pub struct ListenOptions {
    backlog: u32,
    reuse_port: bool,
    only_v6: Option<bool>,
}

impl ListenOptions {
    /// The defaults.
    pub fn new() -> ListenOptions {
        ListenOptions { backlog: LIMITS.backlog, reuse_port: false, only_v6: None }
    }

    /// How many established connections may wait in the kernel. Default 1024; the sysctl
    /// `net.core.somaxconn` bounds it. Clients that find it full are slow to connect, not refused.
    pub fn backlog(mut self, connections: u32) -> ListenOptions {
        self.backlog = connections;
        self
    }

    /// Lets several sockets of one user listen on the same port; the kernel spreads connections
    /// over them by a hash of the addresses (`SO_REUSEPORT`, socket(7)). Off by default: with it,
    /// a second server started by mistake takes half of the connections without an error.
    ///
    /// ```
    /// # use annulus_net::{ListenOptions, TcpListener};
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// let options = ListenOptions::new();
    /// let first = TcpListener::bind_with("127.0.0.1:0", options.reuse_port(true)).await?;
    /// let address = first.local_addr()?;
    /// let error = TcpListener::bind_with(address, options).await.unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    /// let second = TcpListener::bind_with(address, options.reuse_port(true)).await?;
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    pub fn reuse_port(mut self, reuse: bool) -> ListenOptions {
        self.reuse_port = reuse;
        self
    }

    /// Whether an IPv6 socket refuses IPv4 clients (`IPV6_V6ONLY`). Default: the system's.
    ///
    /// Two listeners with one port, for machines that have IPv6:
    ///
    /// ```no_run
    /// # use annulus_net::{ListenOptions, TcpListener};
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// let v6 = TcpListener::bind_with("[::]:7000", ListenOptions::new().only_v6(true)).await?;
    /// let v4 = TcpListener::bind("0.0.0.0:7000").await?;
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    pub fn only_v6(mut self, only: bool) -> ListenOptions {
        self.only_v6 = Some(only);
        self
    }

    fn listen(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        let socket = self.bound(address)?;
        self.listen_on(&socket)?;
        Ok(socket.into())
    }

    pub(crate) fn listen_on(&self, socket: &Socket) -> io::Result<()> {
        sockets::listen(socket, self.backlog)
    }

    /// A socket that has the address and does not listen yet.
    pub(crate) fn bound(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = sockets::open(address).map_err(|error| explain_bind(error, address))?;
        sockets::bind(&socket, address, self.reuse_port, self.only_v6)?;
        Ok(socket)
    }
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions::new()
    }
}
