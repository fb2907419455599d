//! Tasks that do nothing but exist.

use std::future::pending;
use std::hint::black_box;

use super::timed;
use crate::subject::{Subject, on_task};

/// Tasks that are spawned before the first of them is awaited.
const BATCH: u64 = 1000;

/// Tasks that yield to one another.
const YIELDING: u64 = 100;

/// Spawns tasks in batches and awaits them: a task.
pub fn spawn_join<R: Subject>(operations: u64) -> f64 {
    on_task::<R, _>(timed(operations, async |tasks| {
        let mut handles = Vec::with_capacity(BATCH as usize);
        let mut left = tasks;
        while left > 0 {
            let batch = left.min(BATCH);
            handles.extend((0..batch).map(|number| R::spawn(async move { number })));
            for handle in handles.drain(..) {
                black_box(R::value(handle.await));
            }
            left -= batch;
        }
    }))
}

/// Spawns a task and awaits it.
pub fn spawn_one<R: Subject>(operations: u64) -> f64 {
    on_task::<R, _>(timed(operations, async |tasks| {
        for number in 0..tasks {
            black_box(R::value(R::spawn(async move { number }).await));
        }
    }))
}

/// A hundred tasks yield in turn: a yield.
pub fn yields<R: Subject>(operations: u64) -> f64 {
    on_task::<R, _>(timed(operations, async |yields| {
        let mut handles = Vec::with_capacity(YIELDING as usize);
        handles.extend((0..YIELDING).map(|_| {
            R::spawn(async move {
                for _ in 0..yields.div_ceil(YIELDING) {
                    R::yield_now().await;
                }
            })
        }));
        for handle in handles {
            R::value(handle.await);
        }
    }))
}

/// Looks before and after so many tasks are there, which wait for nothing, without a handle.
pub fn park<R: Subject>(tasks: u64, look: &mut dyn FnMut()) {
    R::run(async {
        // Tables have the size that a few tasks need.
        (0..BATCH).for_each(|_| R::detach(R::spawn(pending::<()>())));
        R::yield_now().await;
        look();
        (0..tasks).for_each(|_| R::detach(R::spawn(pending::<()>())));
        R::yield_now().await;
        look();
    });
}
