//! TCP: listeners, streams, and the halves of streams.

mod connection;
mod inbound;
mod listener;
mod notice;
mod operations;
mod outbound;
mod split;
mod stream;

pub use listener::{Accepting, Incoming, ListenOptions, TcpListener};
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};
pub use stream::{IntoStdError, TcpStream};
