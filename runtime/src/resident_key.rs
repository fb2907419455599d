//! The name of a value that lives on a shard, low enough in the layers for drivers to carry it.

use crate::executor::ShardId;

/// Where a resident is found on its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidentKey {
    pub(crate) shard: ShardId,
    pub(crate) index: u32,
    /// Never used again, so that a handle cannot find another's value.
    pub(crate) generation: u64,
}
