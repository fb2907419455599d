//! What a server is asked to do. Each runtime does it as its users would write it, in one shape.

use std::fmt;
use std::str::FromStr;

/// The size of a request, where the work is not to echo.
pub(crate) const REQUEST_BYTES: usize = 64;

/// Writes that answer one request of [`Work::SmallWrites`], each of [`REQUEST_BYTES`].
pub(crate) const SMALL_WRITES: usize = 16;

/// A block of a bulk transfer, in either direction.
pub(crate) const BLOCK_BYTES: usize = 64 * 1024;

/// The body of [`Work::Http`].
pub(crate) const HELLO: &str = "Hello, world!";

/// Every connection is one task. A peer that ends the stream ends it; a peer that resets it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Sends back what it receives, as it comes: `read` into so many bytes, then `write_all`.
    Echo { buffer_bytes: usize },
    /// Reads exactly one request, then answers by [`SMALL_WRITES`] calls of `write_all` of the
    /// request itself, with no buffer of the program's between.
    SmallWrites,
    /// Sends blocks of [`BLOCK_BYTES`] until the peer has gone.
    Source,
    /// Receives into [`BLOCK_BYTES`] until the peer has gone.
    Sink,
    /// As `Echo`, but each request (exactly [`REQUEST_BYTES`]) is answered by a task on another
    /// thread of the same runtime, on the same processor, asked and answering through channels.
    Relay,
    /// HTTP/1.1 by hyper: any request is answered by [`HELLO`].
    Http,
}

impl fmt::Display for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo { buffer_bytes } => write!(formatter, "echo:{buffer_bytes}"),
            Self::SmallWrites => formatter.write_str("small-writes"),
            Self::Source => formatter.write_str("source"),
            Self::Sink => formatter.write_str("sink"),
            Self::Relay => formatter.write_str("relay"),
            Self::Http => formatter.write_str("http"),
        }
    }
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("no work {text:?}");
        if let Some(bytes) = text.strip_prefix("echo:") {
            let buffer_bytes = bytes.parse().map_err(|_| unknown())?;
            return Ok(Self::Echo { buffer_bytes });
        }
        let plain = [Self::SmallWrites, Self::Source, Self::Sink, Self::Relay, Self::Http];
        plain.into_iter().find(|work| work.to_string() == text).ok_or_else(unknown)
    }
}
