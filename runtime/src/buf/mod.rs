//! Buffers that the kernel fills, and buffers that it empties.
//!
//! [`IoBuf`] and [`IoBufMut`] are what a program can give to an operation and get back with its
//! answer. A [`Lease`] is what the shard's pool has received.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod lease;
mod pool;
mod slice;
mod spare;

pub use lease::Lease;
pub use pool::PoolBuffer;
pub(crate) use pool::{DATAGRAM_GROUP, GROUP, Pool};
pub use slice::{BufError, BufResult, IoBuf, IoBufMut, Slice};
pub(crate) use spare::Spare;
