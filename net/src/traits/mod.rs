//! The traits by which other crates use a stream, on streams and their halves. A feature each.
//!
//! They poll the connection as the stream's own methods do: nothing is buffered or allocated on the
//! way, errors are those of the methods, and a poll that is pending has taken or sent nothing.

#[cfg(feature = "futures-io")]
mod futures_io;
#[cfg(feature = "hyper")]
pub mod hyper;
#[cfg(feature = "tokio-io")]
mod tokio_io;
