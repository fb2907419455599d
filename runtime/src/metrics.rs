//! What a shard has done so far, in numbers.

/// Counts of a shard since its beginning: see [`metrics`](crate::metrics). Each costs a plain
/// store.
///
/// ```
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let before = annulus_runtime::metrics();
/// annulus_runtime::task::yield_now().await;
/// assert!(annulus_runtime::metrics().pool_dry >= before.pool_dry);
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Calls of `io_uring_enter`. On epoll this and the next four are 0.
    pub enters: u64,
    /// Entries that the kernel took.
    pub submissions: u64,
    /// Answers that it gave.
    pub completions: u64,
    /// Turns that found answers for which the ring had no room.
    pub overflows: u64,
    /// Answers that nobody waited for any more.
    pub stale_keys: u64,
    /// How often a receive found no free buffer in its pool and used other memory.
    pub pool_dry: u64,
}
