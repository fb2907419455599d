//! Runtimes that come and go.

use std::hint::black_box;
use std::time::Instant;

use crate::subject::Subject;

/// Builds a runtime, runs a future that is ready, and drops it.
pub fn build<R: Subject>(operations: u64) -> f64 {
    let once = |_| {
        black_box(R::run(async { black_box(1) }));
    };
    // What a process finds out once, such as which driver there is, is no part of it.
    (0..operations.div_ceil(super::WARM_UP_PART)).for_each(once);
    let start = Instant::now();
    (0..operations).for_each(once);
    start.elapsed().as_nanos() as f64 / operations as f64
}
