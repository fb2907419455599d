//! A stream between two shards, or on its way to the standard library.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};

use annulus_runtime::io::{Process, check_runtime, send, set_nonblocking};
use socket2::SockRef;

use super::connection::{close_elsewhere, reset_at_close};
use super::inbound::Unread;
use super::outbound::Unsent;
use super::{Connection, Stream};
use crate::family::Family;

/// A connection without a shard: what [`Stream::detach`] makes and [`Stream::attach`] takes.
///
/// It has what was received and not yet read, and what was written and not yet sent. Dropping it
/// sends of that what the socket has room for, and closes the connection: over TCP with a reset if
/// that was not everything, which also takes from the peer what the kernel had not sent by then.
/// A forked child that drops its copy closes that, and the connection stays its parent's.
pub struct Detached<F: Family> {
    /// Taken by `attach`, and by drop.
    parts: Option<Parts>,
    _family: PhantomData<fn() -> F>,
}

struct Parts {
    socket: OwnedFd,
    unread: Unread,
    unsent: Unsent,
    /// Whose bytes these are to send.
    process: Process,
}

impl<F: Family> Stream<F> {
    /// Takes the stream off its shard, to go on elsewhere: see [`attach`](Stream::attach).
    ///
    /// Nothing is lost: bytes that were received and not read, and bytes that were written and not
    /// sent, go with it. Ends what the kernel is doing for the stream before it returns, which
    /// takes it one or two turns.
    ///
    /// ```
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # use annulus_runtime::Runtime;
    /// # fn main() -> std::io::Result<()> {
    /// # Runtime::new()?.block_on(async {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (mut stream, _peer) = listener.accept().await?;
    /// client.write_all(b"hello").await?;
    /// client.flush().await?;
    /// let detached = stream.detach()?;
    /// let other = std::thread::spawn(move || {
    ///     Runtime::new()?.block_on(async {
    ///         let mut stream = TcpStream::attach(detached)?;
    ///         let mut buffer = [0; 5];
    ///         stream.read_exact(&mut buffer).await?;
    ///         assert_eq!(&buffer, b"hello");
    ///         Ok::<_, std::io::Error>(())
    ///     })
    /// });
    /// # other.join().expect("no panic")
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// On another shard than the stream's, and if the kernel has so much else to do that it holds
    /// on to the stream: try again. The error holds the stream.
    pub fn detach(self) -> Result<Detached<F>, DetachError<F>> {
        let stopped = self.connection().and_then(|connection| connection.stop());
        let (unread, unsent) = match stopped {
            Ok(stopped) => stopped,
            Err(error) => return Err(DetachError { stream: Some(self), error }),
        };
        let socket = self.into_socket()?;
        let parts = Parts { socket, unread, unsent, process: Process::current() };
        Ok(Detached { parts: Some(parts), _family: PhantomData })
    }

    /// Takes a stream to the shard that runs here, where it goes on.
    ///
    /// In a forked child what is unsent is not sent: its parent has it too.
    ///
    /// Outside of a runtime the stream comes back, and can be attached to one later:
    ///
    /// ```
    /// # use annulus_net::UnixStream;
    /// let mut runtime = annulus_runtime::Runtime::new()?;
    /// let (one, _other) = runtime.block_on(async { UnixStream::pair() })?;
    /// let detached = runtime.block_on(async { one.detach() })?;
    /// let error = UnixStream::attach(detached).unwrap_err();
    /// runtime.block_on(async { UnixStream::attach(error.into_detached()) })?;
    /// # Ok::<_, std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Outside of a runtime, and those of `getsockopt(2)`. The error holds what was given.
    pub fn attach(detached: Detached<F>) -> Result<Stream<F>, AttachError<F>> {
        let mut detached = detached;
        let Some(parts) = detached.parts.take() else {
            unreachable!("taken here and by drop only")
        };
        let linger = check_runtime().and_then(|()| SockRef::from(&parts.socket).linger());
        match linger {
            Ok(linger) => {
                let Parts { socket, unread, mut unsent, process } = parts;
                if !process.is_current() {
                    unsent.bytes.clear();
                }
                let stream = Stream::from_socket(socket, linger).expect("a runtime runs here");
                stream.connection().expect("this is its shard").resume(unread, unsent);
                Ok(stream)
            }
            Err(error) => {
                detached.parts = Some(parts);
                Err(AttachError { detached, error })
            }
        }
    }

    /// Gives the socket to the standard library, blocking as that expects.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// one.write_all(b"hello").await?;
    /// one.flush().await?;
    /// let mut one = one.into_std()?;
    /// assert_eq!(other.read(&mut [0; 8]).await?, 5);
    /// std::io::Write::write_all(&mut one, b"and more, blocking")?;
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// If bytes have been received and not read, or the socket has no room for what was written and
    /// not sent: they would be lost. An error of an earlier send. Also those of
    /// [`detach`](Stream::detach). The error holds the stream.
    pub fn into_std(self) -> Result<F::StdStream, DetachError<F>> {
        let ready = self.connection().and_then(|connection| connection.quiesce());
        if let Err(error) = ready {
            return Err(DetachError { stream: Some(self), error });
        }
        let socket = self.into_socket()?;
        match set_nonblocking(socket.as_fd(), false) {
            Ok(()) => Ok(socket.into()),
            Err(error) => Err(DetachError { stream: None, error }),
        }
    }

    /// The socket of a connection that has been stopped.
    fn into_socket(self) -> Result<OwnedFd, DetachError<F>> {
        let state = match self.state.take() {
            Ok(state) => state,
            Err((state, error)) => {
                let stream = Stream { state, _family: PhantomData };
                return Err(DetachError { stream: Some(stream), error });
            }
        };
        Connection::into_fd(state).ok_or_else(|| {
            let error = io::Error::other("the socket is still held by an operation");
            DetachError { stream: None, error }
        })
    }
}

impl<F: Family> Drop for Detached<F> {
    fn drop(&mut self) {
        let Some(Parts { socket, unsent, process, .. }) = self.parts.take() else { return };
        // A forked child shares the socket with its parent, which sends the bytes and sets what its
        // own close is to do.
        if !process.is_current() {
            return;
        }
        if !unsent.bytes.is_empty() {
            // The peer is told if it did not fit: nobody else is left.
            let sent = send(socket.as_fd(), &unsent.bytes);
            if F::LINGERS && sent.ok() != Some(unsent.bytes.len()) {
                return reset_at_close(&socket);
            }
        }
        let linger = SockRef::from(&socket).linger();
        if F::LINGERS && linger.is_ok_and(|linger| linger.is_some_and(|time| !time.is_zero())) {
            close_elsewhere(socket);
        }
    }
}

impl<F: Family> fmt::Debug for Detached<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Detached");
        if let Some(Parts { socket, unread, unsent, process: _ }) = &self.parts {
            fields
                .field("fd", socket)
                .field("unread_bytes", &unread.bytes.len())
                .field("unsent_bytes", &unsent.bytes.len());
        }
        fields.finish_non_exhaustive()
    }
}

/// Why a stream could not be taken off its shard. Holds the stream, unless it is broken.
#[derive(Debug)]
pub struct DetachError<F: Family> {
    stream: Option<Stream<F>>,
    error: io::Error,
}

impl<F: Family> DetachError<F> {
    /// The stream, as it was.
    #[must_use]
    pub fn into_stream(self) -> Option<Stream<F>> {
        self.stream
    }
}

/// Why a stream could not be taken to a shard. Holds it.
#[derive(Debug)]
pub struct AttachError<F: Family> {
    detached: Detached<F>,
    error: io::Error,
}

impl<F: Family> AttachError<F> {
    /// The stream, as it was.
    #[must_use]
    pub fn into_detached(self) -> Detached<F> {
        self.detached
    }
}

/// Both errors are their cause, with what was given.
macro_rules! error {
    ($error:ident) => {
        impl<F: Family> fmt::Display for $error<F> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.error.fmt(f)
            }
        }

        impl<F: Family> std::error::Error for $error<F> {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.error)
            }
        }

        impl<F: Family> From<$error<F>> for io::Error {
            fn from(error: $error<F>) -> io::Error {
                error.error
            }
        }
    };
}

error!(DetachError);
error!(AttachError);
