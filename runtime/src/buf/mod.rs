//! Buffers that the kernel fills, and buffers that it empties.

mod pool;
mod spare;

pub use pool::PoolBuffer;
pub(crate) use pool::{GROUP, Pool};
pub(crate) use spare::Spare;
