//! What becomes of the memory of tasks.

use super::super::spare::Block;
use super::*;
use crate::config::{SPARE_TASK_BYTES_MAX, SPARE_TASKS_BYTES_MAX};
use std::future::ready;

type Small = [u64; 11];
type Large = [u8; SPARE_TASK_BYTES_MAX];

#[test]
fn memory_of_a_task_is_used_again_on_its_shard() {
    let executor = executor();
    let _entered = executor.enter();
    let block = Block::of::<Small>();
    let first = block.allocate();
    let second = block.allocate();
    for memory in [first, second] {
        // SAFETY: it was allocated as this block, and nobody uses it.
        unsafe { block.free(memory) };
    }
    assert_eq!(executor.core.spare.bytes(), 2 * size_of::<Small>());
    assert_eq!([block.allocate(), block.allocate()], [second, first]);
    assert_eq!(executor.core.spare.bytes(), 0);
    for memory in [first, second] {
        // SAFETY: as above.
        unsafe { block.free(memory) };
    }
}

#[test]
fn memory_of_ended_tasks_is_kept_within_a_bound() {
    let executor = executor();
    let _entered = executor.enter();
    let many = 2 * SPARE_TASKS_BYTES_MAX / 64;
    let handles: Vec<_> = (0..many).map(|_| executor.spawn(ready(1_u64))).collect();
    settle(&executor);
    drop(handles);
    let kept = executor.core.spare.bytes();
    assert!(kept <= SPARE_TASKS_BYTES_MAX && kept > SPARE_TASKS_BYTES_MAX - 128, "{kept}");
}

#[test]
fn large_tasks_are_left_to_the_allocator() {
    let executor = executor();
    let _entered = executor.enter();
    drop(executor.spawn(async {
        let large: Large = std::hint::black_box([0; SPARE_TASK_BYTES_MAX]);
        std::future::pending::<()>().await;
        std::hint::black_box(large);
    }));
    settle(&executor);
    executor.close();
    assert_eq!(executor.core.spare.bytes(), 0);
}

#[test]
fn memory_that_is_freed_elsewhere_is_not_kept() {
    let executor = executor();
    let handle = executor.spawn(ready(1_u64));
    settle(&executor);
    thread::spawn(move || drop(handle)).join().unwrap();
    assert_eq!(executor.core.spare.bytes(), 0);
}
