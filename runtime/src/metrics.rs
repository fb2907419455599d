//! What shards have done so far, in numbers: for programs that watch themselves, and for those that
//! watch others.

use std::sync::Arc;

pub use crate::board::{Board, Metrics, ProcessMetrics, ShardMetrics};
use crate::shard;

/// The figures of the shard that runs on this thread, up to this moment.
///
/// # Examples
///
/// ```
/// use annulus_runtime::metrics;
///
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let task = annulus_runtime::spawn(std::future::pending::<()>());
/// assert_eq!(metrics().tasks, 1);
/// task.abort();
/// assert!(task.await.unwrap_err().is_cancelled());
/// assert_eq!(metrics().tasks, 0);
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
///
/// # Panics
///
/// Outside of a runtime.
#[must_use]
#[track_caller]
pub fn metrics() -> Metrics {
    board().read()
}

/// The board of the shard that runs on this thread: its figures, for other threads to read.
///
/// # Examples
///
/// ```
/// use annulus_runtime::metrics;
///
/// let runtime = annulus_runtime::Runtime::new()?;
/// let board = runtime.block_on(async { metrics::board() });
/// let reader = std::thread::spawn(move || board.read());
/// assert!(reader.join().unwrap().polls >= 1);
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
///
/// # Panics
///
/// Outside of a runtime.
#[must_use]
#[track_caller]
pub fn board() -> Arc<Board> {
    shard::with(|shard| shard.board())
}
