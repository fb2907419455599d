//! What users hold of a connection.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use annulus_runtime::io::{Fd, Homed, Op, set_nonblocking};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::connection::Connection;
use super::inbound::Take;
use super::listener::address;
use super::operations::Connect;
use super::split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
use crate::addr::{ToSocketAddrs, resolve};

/// A TCP connection.
///
/// Reads take what the kernel has received; writes are accepted into a buffer of 64 KiB and sent at
/// the end of the shard's turn, several small ones by one system call, large ones at once. An error
/// of a send is reported by the next write, flush or shutdown.
///
/// The stream works on the shard where it was made; elsewhere its methods give an error that says
/// so. It may be dropped anywhere. Dropping it sends what is unsent, then FIN, and returns at once.
/// A peer that does not take those bytes within 30 s loses them.
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
pub struct TcpStream {
    state: Homed<Connection>,
}

impl TcpStream {
    /// Connects to the first of the addresses that answers. Names are resolved off the shard.
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

    /// Takes a connected stream of the standard library, which is made non-blocking.
    ///
    /// # Errors
    ///
    /// Outside of a runtime, and those of `fcntl(2)`.
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        let socket = OwnedFd::from(stream);
        set_nonblocking(socket.as_fd(), true)?;
        let linger = SockRef::from(&socket).linger()?;
        TcpStream::from_socket(socket, linger)
    }

    /// Gives the socket to the standard library, blocking as that expects.
    ///
    /// # Errors
    ///
    /// If bytes have been received and not read, or written and not sent: they would be lost. Also
    /// on another shard than the stream's. The error holds the stream.
    pub fn into_std(self) -> Result<std::net::TcpStream, IntoStdError> {
        let ready = self.state.get().and_then(|state| state.quiesce());
        if let Err(error) = ready {
            return Err(IntoStdError { stream: Some(self), error });
        }
        let state = match self.state.take() {
            Ok(state) => state,
            Err((state, error)) => {
                return Err(IntoStdError { stream: Some(TcpStream { state }), error });
            }
        };
        let busy = || io::Error::other("the socket is still held by an operation");
        Connection::into_fd(state)
            .ok_or_else(busy)
            .and_then(|socket| {
                set_nonblocking(socket.as_fd(), false)?;
                Ok(socket.into())
            })
            .map_err(|error| IntoStdError { stream: None, error })
    }

    /// `linger` is what the socket has been set to, or has inherited.
    pub(super) fn from_socket(socket: OwnedFd, linger: Option<Duration>) -> io::Result<TcpStream> {
        let state = Connection::settle_in(Fd::new(socket))?;
        if linger.is_some() {
            state.get()?.note_linger(linger);
        }
        Ok(TcpStream { state })
    }

    /// Reads what has been received, as much as the buffer takes; waits if that is nothing.
    ///
    /// 0 means that the peer has finished, or that the buffer is empty.
    ///
    /// # Errors
    ///
    /// The connection's, such as a reset.
    ///
    /// # Cancel safety
    ///
    /// A dropped read has read nothing: bytes that arrive meanwhile are the next read's.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buffer, Take::Away)).await
    }

    /// Reads until the buffer is full. Answers the buffer's length.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the peer finishes before that; what it sent is in the buffer. Otherwise
    /// the connection's.
    ///
    /// # Cancel safety
    ///
    /// A dropped `read_exact` gives the bytes it took back to the stream: the next read gets them.
    pub async fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_exact(self, buffer).await
    }

    /// Reads without taking: the next read finds the same bytes.
    ///
    /// # Errors
    ///
    /// As [`read`](TcpStream::read).
    ///
    /// # Cancel safety
    ///
    /// A dropped peek changes nothing.
    pub async fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buffer, Take::Peek)).await
    }

    /// Writes bytes of the buffer, and answers how many were accepted. Waits while 64 KiB are
    /// unsent.
    ///
    /// # Errors
    ///
    /// The connection's, also of earlier bytes: `BrokenPipe` or `ConnectionReset` once the peer is
    /// gone. Never SIGPIPE.
    ///
    /// # Cancel safety
    ///
    /// A dropped write has written nothing.
    pub async fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_write(cx, &[IoSlice::new(buffer)])).await
    }

    /// Writes the whole buffer.
    ///
    /// # Errors
    ///
    /// As [`write`](TcpStream::write).
    ///
    /// # Cancel safety
    ///
    /// A dropped `write_all` has written some first part of the buffer; nobody can tell how much.
    pub async fn write_all(&mut self, buffer: &[u8]) -> io::Result<()> {
        write_all(self, buffer).await
    }

    /// Writes bytes of the buffers, in order, and answers how many were accepted.
    ///
    /// # Errors
    ///
    /// As [`write`](TcpStream::write).
    ///
    /// # Cancel safety
    ///
    /// A dropped write has written nothing.
    pub async fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_write(cx, buffers)).await
    }

    /// Waits until the kernel has everything that was written.
    ///
    /// # Errors
    ///
    /// What a send of earlier bytes has failed with.
    ///
    /// # Cancel safety
    ///
    /// A dropped flush changes nothing; the bytes go out all the same.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Sends what is unsent, then FIN: nothing can be written after it, and the peer reads an end.
    /// Reads go on. The second time, nothing is left to be done.
    ///
    /// # Errors
    ///
    /// What a send of earlier bytes has failed with; `NotConnected` after a reset.
    ///
    /// # Cancel safety
    ///
    /// A dropped shutdown may or may not have sent FIN. Call it again.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_shutdown(cx)).await
    }

    /// Two halves that borrow the stream, to read and write at once within one task.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (ReadHalf::new(self), WriteHalf::new(self))
    }

    /// Two halves that own the stream together, to read and write in two tasks of the shard.
    ///
    /// Dropping the write half sends what is unsent, then FIN; the read half works on.
    #[must_use]
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        super::split::split_owned(self)
    }

    /// The address of this end.
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        address(self.state.get()?.socket().local_addr()?)
    }

    /// The address of the other end.
    ///
    /// # Errors
    ///
    /// `NotConnected` once the connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        address(self.state.get()?.socket().peer_addr()?)
    }

    /// Whether small segments leave at once (`TCP_NODELAY`, tcp(7)). On unless switched off.
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.state.get()?.socket().tcp_nodelay()
    }

    /// Switches `TCP_NODELAY`.
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.state.get()?.socket().set_tcp_nodelay(nodelay)
    }

    /// How many routers a packet may pass (`IP_TTL`, ip(7)).
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn ttl(&self) -> io::Result<u32> {
        self.state.get()?.socket().ttl_v4()
    }

    /// Sets `IP_TTL`.
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        self.state.get()?.socket().set_ttl_v4(ttl)
    }

    /// How long a close waits for the peer to take what was sent (`SO_LINGER`, socket(7)).
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        self.state.get()?.socket().linger()
    }

    /// Sets `SO_LINGER`. With a time of zero, dropping the stream drops what is unsent and resets
    /// the connection. With more, the close that follows the drop happens on a thread of its own,
    /// because it blocks.
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.state.get()?.set_linger(linger)
    }

    /// Takes the error that the socket has pending (`SO_ERROR`, socket(7)).
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.state.get()?.socket().take_error()
    }

    pub(super) fn shutdown_when_sent(&self) {
        self.state.visit(|state| state.shutdown_when_sent());
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("TcpStream");
        match self.state.get() {
            Ok(state) => fields.field("fd", &state.fd().raw()).finish(),
            Err(_) => fields.finish_non_exhaustive(),
        }
    }
}

async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    let socket = Op::new(Connect::new(Fd::new(socket.into()), address)).await?;
    SockRef::from(&*socket).set_tcp_nodelay(true)?;
    Ok(TcpStream { state: Connection::settle_in(socket)? })
}

/// What reads, by polling: a stream and its halves.
pub(super) trait Source {
    fn connection(&self) -> io::Result<Rc<Connection>>;

    /// Gives back bytes that a read took and did not hand on; from elsewhere, by mail.
    fn put_back(&self, bytes: Vec<u8>);

    fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        self.connection()?.poll_read(cx, buffer, take)
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.connection()?.poll_write(cx, slices)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection()?.poll_flush(cx)
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection()?.poll_shutdown(cx)
    }
}

impl Source for TcpStream {
    fn connection(&self) -> io::Result<Rc<Connection>> {
        self.state.get()
    }

    fn put_back(&self, bytes: Vec<u8>) {
        self.state.visit(move |state| state.put_back(&bytes));
    }
}

pub(super) async fn read_exact(source: &impl Source, buffer: &mut [u8]) -> io::Result<usize> {
    let mut reading = ReadingExact { source, buffer, filled: 0 };
    while reading.filled < reading.buffer.len() {
        let count = poll_fn(|cx| {
            let ReadingExact { source, buffer, filled } = &mut reading;
            source.poll_read(cx, &mut buffer[*filled..], Take::Away)
        })
        .await;
        match count {
            Ok(0) => {
                reading.filled = 0;
                let text = "the peer finished before the buffer was full";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            Ok(count) => reading.filled += count,
            Err(error) => {
                reading.filled = 0;
                return Err(error);
            }
        }
    }
    Ok(std::mem::take(&mut reading.filled))
}

/// Dropped before its end, gives back what it took.
struct ReadingExact<'a, S: Source> {
    source: &'a S,
    buffer: &'a mut [u8],
    filled: usize,
}

impl<S: Source> Drop for ReadingExact<'_, S> {
    fn drop(&mut self) {
        if self.filled > 0 {
            self.source.put_back(self.buffer[..self.filled].to_vec());
        }
    }
}

pub(super) async fn write_all(source: &impl Source, mut buffer: &[u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let count = poll_fn(|cx| source.poll_write(cx, &[IoSlice::new(buffer)])).await?;
        buffer = &buffer[count..];
    }
    Ok(())
}

/// Why a stream could not be given to the standard library. Holds the stream, unless it is broken.
#[derive(Debug)]
pub struct IntoStdError {
    stream: Option<TcpStream>,
    error: io::Error,
}

impl IntoStdError {
    /// The stream, as it was.
    #[must_use]
    pub fn into_stream(self) -> Option<TcpStream> {
        self.stream
    }
}

impl fmt::Display for IntoStdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for IntoStdError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<IntoStdError> for io::Error {
    fn from(error: IntoStdError) -> io::Error {
        error.error
    }
}
