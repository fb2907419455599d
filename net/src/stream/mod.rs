//! What users hold of a connection, whatever the family of its socket.
//!
//! | file | idea |
//! | --- | --- |
//! | `stream/mod` | the stream, and its methods with borrowed buffers |
//! | `stream/owned` | its methods with buffers that are given and come back |
//! | `stream/detach` | a stream between two shards, or on its way to the standard library |
//! | `stream/split` | its halves |
//! | `stream/connection` | its state, which stays on its shard |
//! | `stream/inbound`, `stream/outbound` | the two directions |
//! | `stream/outbound/handed` | buffers that are handed over to be sent |
//! | `stream/send` | the send that waits in the kernel |
//! | `stream/zero_copy` | the send that reads the caller's memory |

mod connection;
mod detach;
mod direct;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod inbound;
mod outbound;
mod owned;
mod send;
mod split;
mod zero_copy;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use annulus_runtime::buf::Lease;
use annulus_runtime::io::{Fd, Homed, set_nonblocking};
use socket2::SockRef;

pub(crate) use self::connection::Connection;
pub use self::detach::{AttachError, DetachError, Detached};
pub(crate) use self::inbound::Take;
use self::owned::fill;
pub use self::split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use self::zero_copy::ZeroCopy;
use crate::family::Family;
use crate::memory::memory_of;
use crate::sockets;

/// A connection: [`TcpStream`](crate::TcpStream) or [`UnixStream`](crate::UnixStream).
///
/// Reads take what the kernel has received; writes are accepted into a buffer of 64 KiB and sent at
/// the end of the shard's turn, several small ones by one system call, large ones at once. An error
/// of a send is reported by the next write, flush or shutdown.
///
/// There are three ways to read and to write, which can be mixed:
///
/// - with **borrowed** buffers: [`read`](Stream::read), [`write_all`](Stream::write_all) and their
///   like;
/// - with **owned** buffers, which are given and come back: [`recv`](Stream::recv),
///   [`send_all`](Stream::send_all); what is sent is not copied here, and with
///   [`send_zc`](Stream::send_zc) not by the kernel either;
/// - with **leases**, the memory that the kernel has received into:
///   [`recv_lease`](Stream::recv_lease), and [`send_all`](Stream::send_all) again.
///
/// The stream works on the shard where it was made; elsewhere its methods give an error that says
/// so. It may be dropped anywhere, and [moved](Stream::detach). Dropping it sends what is unsent,
/// then FIN, and returns at once. A peer that does not take those bytes within 30 s, or 1 s when
/// the runtime ends, loses them, and over TCP what the kernel had not sent by then: it finds a
/// reset behind what it got, over a Unix socket an end.
///
/// # Examples
///
/// What was written from a borrowed buffer is echoed from a lease, and received into an owned one:
///
/// ```
/// # annulus_runtime::Runtime::new().unwrap().block_on(async {
/// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
/// one.write_all(b"hello").await?;
/// let lease = other.recv_lease().await?;
/// other.send_all(lease).await?;
/// let (count, buffer) = one.recv(Vec::with_capacity(64)).await?;
/// assert_eq!((count, &buffer[..]), (5, &b"hello"[..]));
/// # Ok::<_, std::io::Error>(())
/// # }).unwrap();
/// ```
pub struct Stream<F: Family> {
    state: Homed<Connection>,
    _family: PhantomData<fn() -> F>,
}

impl<F: Family> Stream<F> {
    /// Takes a connected stream of the standard library, which is made non-blocking.
    ///
    /// ```
    /// # use annulus_net::UnixStream;
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// let (one, other) = std::os::unix::net::UnixStream::pair()?;
    /// let (mut one, mut other) = (UnixStream::from_std(one)?, UnixStream::from_std(other)?);
    /// one.write_all(b"hello").await?;
    /// assert_eq!(other.read(&mut [0; 8]).await?, 5);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Outside of a runtime, and those of `fcntl(2)`.
    pub fn from_std(stream: F::StdStream) -> io::Result<Stream<F>> {
        let socket: OwnedFd = stream.into();
        set_nonblocking(socket.as_fd(), true)?;
        let linger = SockRef::from(&socket).linger()?;
        Stream::from_socket(socket, linger)
    }

    /// Reads what has been received, as much as the buffer takes; waits if that is nothing.
    ///
    /// 0 means that the peer has finished, or that the buffer is empty.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// one.write_all(b"hello").await?;
    /// one.shutdown().await?;
    /// let (mut received, mut buffer) = (Vec::new(), [0; 4]);
    /// loop {
    ///     match other.read(&mut buffer).await? {
    ///         0 => break,
    ///         count => received.extend_from_slice(&buffer[..count]),
    ///     }
    /// }
    /// assert_eq!(received, b"hello");
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The connection's, such as a reset.
    ///
    /// # Cancel safety
    ///
    /// A dropped read has read nothing: bytes that arrive meanwhile are the next read's.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buffer, Take::Some)).await
    }

    /// Reads until the buffer is full. Answers the buffer's length.
    ///
    /// However the message was divided on its way:
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// one.write_all(b"hel").await?;
    /// one.flush().await?;
    /// one.write_all(b"lo").await?;
    /// let mut buffer = [0; 5];
    /// assert_eq!(other.read_exact(&mut buffer).await?, 5);
    /// assert_eq!(&buffer, b"hello");
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
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
        self.fill_exactly(buffer).await
    }

    /// Reads without taking: the next read finds the same bytes.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// one.write_all(b"hello").await?;
    /// let mut first = [0; 1];
    /// other.peek(&mut first).await?;
    /// assert_eq!(&first, b"h");
    /// assert_eq!(other.read(&mut [0; 8]).await?, 5);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`read`](Stream::read).
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
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// // Nobody reads, so that a part of it is accepted.
    /// let zeros = vec![0; 64 << 20];
    /// let count = one.write(&zeros).await?;
    /// assert!(0 < count && count < zeros.len());
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The connection's, also of earlier bytes: `BrokenPipe` or `ConnectionReset` once the peer is
    /// gone. Never SIGPIPE. For a shortage (`ENOSPC`, `ENOBUFS`, `ENOMEM`) too, also of an earlier
    /// send: what was accepted is kept then, and the next call tries again, or the runtime does
    /// within about a second.
    ///
    /// # Cancel safety
    ///
    /// A dropped write has written nothing.
    pub async fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_write(cx, &[IoSlice::new(buffer)])).await
    }

    /// Writes the whole buffer.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// let megabyte = vec![7; 1 << 20];
    /// let reading = annulus_runtime::spawn(async move {
    ///     other.recv_exact(Vec::with_capacity(1 << 20)).await
    /// });
    /// one.write_all(&megabyte).await?;
    /// let (_, received) = reading.await.unwrap()?;
    /// assert!(received == megabyte);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`write`](Stream::write).
    ///
    /// # Cancel safety
    ///
    /// A dropped `write_all` has written some first part of the buffer; nobody can tell how much.
    pub async fn write_all(&mut self, buffer: &[u8]) -> io::Result<()> {
        self.write_whole(buffer).await
    }

    /// Writes bytes of the buffers, in order, and answers how many were accepted.
    ///
    /// ```
    /// # use std::io::IoSlice;
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// let buffers = [IoSlice::new(b"hello, "), IoSlice::new(b"world")];
    /// assert_eq!(one.write_vectored(&buffers).await?, 12);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`write`](Stream::write).
    ///
    /// # Cancel safety
    ///
    /// A dropped write has written nothing.
    pub async fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_write(cx, buffers)).await
    }

    /// Waits until the kernel has everything that was written.
    ///
    /// ```
    /// # use std::io::Read;
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (one, mut other) = std::os::unix::net::UnixStream::pair()?;
    /// # let mut one = annulus_net::UnixStream::from_std(one)?;
    /// one.write_all(b"hello").await?;
    /// one.flush().await?;
    /// // Now it has left, and a read that blocks this thread finds it.
    /// other.read_exact(&mut [0; 5])?;
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
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
    /// A question that ends, and the answer to it:
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// one.write_all(b"how much?").await?;
    /// one.shutdown().await?;
    /// while other.read(&mut [0; 16]).await? > 0 {}
    /// other.write_all(b"7").await?;
    /// assert_eq!(one.read(&mut [0; 16]).await?, 1);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
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
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// other.write_all(b"hello").await?;
    /// other.shutdown().await?;
    /// let (mut read, mut write) = one.split();
    /// annulus_net::io::copy(&mut read, &mut write).await?;
    /// assert_eq!(other.read(&mut [0; 8]).await?, 5);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    pub fn split(&mut self) -> (ReadHalf<'_, F>, WriteHalf<'_, F>) {
        (ReadHalf::new(self), WriteHalf::new(self))
    }

    /// Two halves that own the stream together, to read and write in two tasks of the shard.
    ///
    /// Dropping the write half sends what is unsent, then FIN; the read half works on.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// let (mut read, mut write) = one.into_split();
    /// let reading = annulus_runtime::spawn(async move { read.read(&mut [0; 8]).await });
    /// let writing = annulus_runtime::spawn(async move { write.write_all(b"ping").await });
    /// assert_eq!(other.read(&mut [0; 8]).await?, 4);
    /// writing.await.unwrap()?;
    /// assert_eq!(other.read(&mut [0; 8]).await?, 0); // its half was dropped
    /// other.write_all(b"pong").await?;
    /// assert_eq!(reading.await.unwrap()?, 4);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn into_split(self) -> (OwnedReadHalf<F>, OwnedWriteHalf<F>) {
        split::split_owned(self)
    }

    /// The address of this end.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (mut served, peer) = listener.accept().await?;
    /// assert_eq!(served.local_addr()?, listener.local_addr()?);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn local_addr(&self) -> io::Result<F::Address> {
        F::local_address(&**self.state.get()?.fd())
    }

    /// The address of the other end.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (mut served, peer) = listener.accept().await?;
    /// assert_eq!(served.peer_addr()?, peer);
    /// assert_eq!(served.peer_addr()?, client.local_addr()?);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// `NotConnected` once the connection is gone.
    pub fn peer_addr(&self) -> io::Result<F::Address> {
        F::peer_address(&**self.state.get()?.fd())
    }

    /// How long a close waits for the peer to take what was sent (`SO_LINGER`, socket(7)).
    ///
    /// See [`set_linger`](Stream::set_linger).
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        self.state.get()?.socket().linger()
    }

    /// Sets `SO_LINGER`. With a time of zero, dropping the stream drops what is unsent and resets
    /// the connection. With more, the close that follows the drop happens on a thread of its own,
    /// because it blocks. On Unix sockets the option changes nothing.
    ///
    /// ```
    /// # use std::{io::ErrorKind, time::Duration};
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (mut served, peer) = listener.accept().await?;
    /// assert_eq!(served.linger()?, None);
    /// served.set_linger(Some(Duration::ZERO))?;
    /// drop(served);
    /// let error = client.read(&mut [0; 8]).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        let connection = self.state.get()?;
        sockets::set_linger(&**connection.fd(), linger)?;
        if F::LINGERS {
            connection.note_linger(linger);
        }
        Ok(())
    }

    /// Takes the error that the socket has pending (`SO_ERROR`, socket(7)).
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// assert!(one.take_error()?.is_none());
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        sockets::take_error(&**self.state.get()?.fd())
    }

    fn shutdown_when_sent(&self) {
        self.state.visit(|state| state.shutdown_when_sent());
    }

    pub(crate) fn from_socket(socket: OwnedFd, linger: Option<Duration>) -> io::Result<Stream<F>> {
        let stream = Stream::settle_in(Fd::new(socket))?;
        if F::LINGERS && linger.is_some() {
            stream.connection()?.note_linger(linger);
        }
        Ok(stream)
    }

    pub(crate) fn settle_in(socket: Rc<Fd>) -> io::Result<Stream<F>> {
        Ok(Stream { state: Connection::settle_in::<F>(socket)?, _family: PhantomData })
    }

    pub(crate) fn home(&self) -> &Homed<Connection> {
        &self.state
    }

    pub(crate) fn connection(&self) -> io::Result<Rc<Connection>> {
        self.state.get()
    }

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        self.poll_fill(cx, memory_of(buffer), take)
    }

    fn poll_fill(
        &self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        self.connection()?.poll_read(cx, memory, take)
    }

    pub(crate) fn poll_lease(&self, cx: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        self.connection()?.poll_lease(cx)
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

    /// Gives back bytes that a read took and did not hand on; from elsewhere, by mail.
    fn put_back(&self, bytes: Vec<u8>) {
        self.state.visit(move |state| state.put_back(&bytes));
    }

    async fn fill_exactly(&self, mut buffer: &mut [u8]) -> io::Result<usize> {
        let (filled, result) = fill(self, &mut buffer).await;
        result.map(|()| filled)
    }

    async fn write_whole(&self, mut buffer: &[u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let count = poll_fn(|cx| self.poll_write(cx, &[IoSlice::new(buffer)])).await?;
            buffer = &buffer[count..];
        }
        Ok(())
    }
}

impl<F: Family> fmt::Debug for Stream<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Stream");
        match self.state.get() {
            Ok(state) => fields.field("fd", &state.fd().raw()).finish(),
            Err(_) => fields.finish_non_exhaustive(),
        }
    }
}
