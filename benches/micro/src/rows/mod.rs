//! The rows, each generic over the runtime, each warmed up before it counts.

use std::ops::AsyncFn;
use std::time::Instant;

pub mod channels;
pub mod runtimes;
pub mod sockets;
pub mod tasks;
pub mod timers;
pub mod wakes;

/// Before a measurement counts, this part of it is done: pages are touched, queues have grown,
/// branch predictors are trained.
const WARM_UP_PART: u64 = 8;

/// Nanoseconds for each of so many operations of the runtime that runs this.
async fn timed<F: AsyncFn(u64)>(operations: u64, body: F) -> f64 {
    body((operations / WARM_UP_PART).max(1)).await;
    let start = Instant::now();
    body(operations).await;
    start.elapsed().as_nanos() as f64 / operations as f64
}
