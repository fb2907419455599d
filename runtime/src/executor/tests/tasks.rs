//! Spawning, polling and waking on the own shard.

use super::{counting, executor, finished, idle, peek, settle};
use crate::executor::state::{Refs, Released};
use std::cell::{Cell, RefCell};
use std::mem;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::thread;

#[test]
fn spawn_only_queues() {
    let executor = executor();
    let (future, counts) = counting(|_| Poll::Ready(7));
    let mut handle = executor.spawn(future);
    assert_eq!((counts.polls(), executor.ready(), executor.len()), (0, 1, 1));
    assert!(peek(&mut handle).is_pending());
    assert_eq!(settle(&executor), 1);
    assert_eq!((counts.polls(), counts.drops(), executor.len()), (1, 1, 0));
    assert!(handle.is_finished());
    assert_eq!(finished(&mut handle).unwrap(), 7);
}

#[test]
fn detached_task_runs_on() {
    let executor = executor();
    let (future, counts) = counting(|_| Poll::Ready(String::from("unread")));
    drop(executor.spawn(future));
    settle(&executor);
    assert_eq!((counts.polls(), counts.drops()), (1, 1));
}

#[test]
fn wakes_on_the_own_shard_coalesce() {
    let executor = executor();
    let (future, counts) = idle();
    let _handle = executor.spawn(future);
    settle(&executor);
    let _entered = executor.enter();
    let waker = counts.waker();
    waker.wake_by_ref();
    waker.wake_by_ref();
    waker.wake();
    assert_eq!((executor.ready(), executor.mailbox.len()), (1, 0));
    assert_eq!(settle(&executor), 1);
    assert_eq!(counts.polls(), 2);
}

#[test]
fn wake_while_running_polls_once_more() {
    let executor = executor();
    let mut first = true;
    let (future, counts) = counting(move |cx| {
        if mem::take(&mut first) {
            cx.waker().wake_by_ref();
            let waker = cx.waker().clone();
            waker.wake();
        }
        Poll::<()>::Pending
    });
    let _handle = executor.spawn(future);
    assert_eq!(settle(&executor), 2);
    assert_eq!(counts.polls(), 2);
}

#[test]
fn foreign_wake_while_running_polls_once_more() {
    let executor = executor();
    let mut first = true;
    let (future, counts) = counting(move |cx| {
        if mem::take(&mut first) {
            let waker = cx.waker().clone();
            thread::spawn(move || waker.wake()).join().unwrap();
        }
        Poll::<()>::Pending
    });
    let _handle = executor.spawn(future);
    assert_eq!(settle(&executor), 2);
    assert_eq!(counts.polls(), 2);
}

#[test]
fn self_waking_task_lets_its_siblings_run() {
    let executor = executor();
    let order = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&order);
    let (busy, _) = counting(move |cx| {
        log.borrow_mut().push(0);
        cx.waker().wake_by_ref();
        Poll::<()>::Pending
    });
    drop(executor.spawn(busy));
    for name in 1..4 {
        let log = Rc::clone(&order);
        drop(executor.spawn(async move { log.borrow_mut().push(name) }));
    }
    assert_eq!(executor.run(6, || {}), 6);
    assert_eq!(*order.borrow(), [0, 1, 2, 3, 0, 0]);
    assert!(executor.has_ready());
}

#[test]
fn run_keeps_to_its_budget_and_announces_each_poll() {
    let executor = executor();
    for _ in 0..5 {
        drop(executor.spawn(async {}));
    }
    let announced = Cell::new(0);
    let announce = || announced.set(announced.get() + 1);
    assert_eq!((executor.run(3, announce), announced.get(), executor.len()), (3, 3, 2));
    assert_eq!((executor.run(3, announce), announced.get(), executor.len()), (2, 5, 0));
}

#[test]
fn tasks_spawn_and_await_tasks() {
    let executor = Rc::new(executor());
    let inner = Rc::clone(&executor);
    let mut handle = executor.spawn(async move {
        let one = inner.spawn(async { 1 });
        let two = inner.spawn(async { 2 });
        one.await.unwrap() + two.await.unwrap()
    });
    settle(&executor);
    assert_eq!(finished(&mut handle).unwrap(), 3);
}

#[test]
fn wakers_made_here_and_dropped_elsewhere_balance() {
    // More than the drift that is kept in one part of the count, both ways.
    let executor = executor();
    let (future, counts) = idle();
    let handle = executor.spawn(future);
    settle(&executor);
    let _entered = executor.enter();
    let here = counts.waker();
    let there: Vec<Waker> = (0..100_000).map(|_| here.clone()).collect();
    let back = thread::spawn(move || {
        let more: Vec<Waker> = (0..200_000).map(|_| there[0].clone()).collect();
        drop(there);
        more
    });
    drop(back.join().unwrap());
    handle.abort();
    settle(&executor);
    assert_eq!((counts.polls(), counts.drops(), executor.len()), (1, 1, 0));
    here.wake_by_ref();
    counts.forget_waker();
}

#[test]
fn two_part_count_adds_up_however_far_the_parts_drift() {
    let refs = Refs::held_and_one();
    for _ in 0..200_000 {
        refs.retain_local();
        assert_eq!(refs.release_shared(), Released::OthersRemain);
    }
    assert!(!refs.only_held());
    for _ in 0..300_000 {
        refs.retain_shared();
        refs.release_local();
    }
    assert!(!refs.only_held());
    refs.release_local();
    assert!(refs.only_held());
    assert_eq!(refs.merge(), Released::Last);
}
