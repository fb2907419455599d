//! Why a listener or a UDP socket could not go to the standard library.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use annulus_runtime::io::set_nonblocking;

/// Why a socket could not be given to the standard library. Holds the socket, unless it is broken.
///
/// ```
/// # use annulus_net::TcpListener;
/// # let runtime = annulus_runtime::Runtime::new()?;
/// let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
/// // The shard on which it lives does not run here.
/// let error = listener.into_std().unwrap_err();
/// let listener = error.into_socket().expect("it is whole");
/// let listener = runtime.block_on(async { listener.into_std() })?;
/// # drop(listener);
/// # Ok::<_, std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct IntoStdError<S> {
    socket: Option<S>,
    error: io::Error,
}

impl<S> IntoStdError<S> {
    pub(crate) fn new(socket: S, error: io::Error) -> IntoStdError<S> {
        IntoStdError { socket: Some(socket), error }
    }

    /// It is out of its shard already, and refuses to be what the standard library expects.
    fn broken(error: io::Error) -> IntoStdError<S> {
        IntoStdError { socket: None, error }
    }

    /// The socket, as it was.
    #[must_use]
    pub fn into_socket(self) -> Option<S> {
        self.socket
    }
}

/// What has left its shard, blocking as the standard library expects.
pub(crate) fn blocking<S, T: From<OwnedFd>>(socket: Option<OwnedFd>) -> Result<T, IntoStdError<S>> {
    let busy = || io::Error::other("the socket is still held by an operation");
    let socket = socket.ok_or_else(busy).map_err(IntoStdError::broken)?;
    set_nonblocking(socket.as_fd(), false).map_err(IntoStdError::broken)?;
    Ok(socket.into())
}

impl<S> fmt::Display for IntoStdError<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<S: fmt::Debug> std::error::Error for IntoStdError<S> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl<S> From<IntoStdError<S>> for io::Error {
    fn from(error: IntoStdError<S>) -> io::Error {
        error.error
    }
}
