//! Buffers that the kernel fills.

mod pool;

pub use pool::PoolBuffer;
pub(crate) use pool::{GROUP, Pool};
