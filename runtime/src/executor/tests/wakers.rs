//! Wakes and closures from elsewhere.

use super::{counting, executor, idle, settle, wanted};
use crate::executor::{Executor, RootWaker};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread;

#[test]
fn foreign_wake_storm_coalesces() {
    let executor = executor();
    let (future, counts) = idle();
    let _handle = executor.spawn(future);
    settle(&executor);
    thread::scope(|scope| {
        for _ in 0..4 {
            let waker = counts.waker();
            scope.spawn(move || {
                for _ in 0..10_000 {
                    waker.wake_by_ref();
                }
            });
        }
    });
    assert_eq!(executor.mailbox.len(), 1, "one piece of mail for 40 000 wakes");
    assert_eq!(settle(&executor), 1);
    assert_eq!(counts.polls(), 2);
}

#[test]
fn foreign_wake_storm_loses_no_wake() {
    // Each thread counts up and then wakes; the task is done when it has seen the total.
    const PER_THREAD: u32 = 20_000;
    let executor = executor();
    let total = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&total);
    let (future, counts) = counting(move |_| match seen.load(Ordering::Relaxed) {
        n if n == 4 * PER_THREAD => Poll::Ready(()),
        _ => Poll::Pending,
    });
    let handle = executor.spawn(future);
    settle(&executor);
    thread::scope(|scope| {
        for _ in 0..4 {
            let (waker, total) = (counts.waker(), &total);
            scope.spawn(move || {
                for _ in 0..PER_THREAD {
                    total.fetch_add(1, Ordering::Relaxed);
                    let waker = waker.clone();
                    waker.wake();
                }
            });
        }
        while !handle.is_finished() {
            if executor.mailbox.prepare_sleep() {
                let mut poll =
                    libc::pollfd { fd: eventfd(&executor), events: libc::POLLIN, revents: 0 };
                // SAFETY: one entry, which lives on this stack.
                let ready = unsafe { libc::poll(&mut poll, 1, 10_000) };
                assert_eq!(ready, 1, "slept through a wake");
                executor.mailbox.awake();
            }
            settle(&executor);
        }
    });
    assert_eq!(counts.drops(), 1);
}

fn eventfd(executor: &Executor) -> i32 {
    executor.mailbox.bell_fd()
}

/// How often the bell has rung since this was last asked.
fn rings(executor: &Executor) -> u64 {
    let mut count = [0u8; 8];
    // SAFETY: eight writable bytes; the descriptor does not block.
    let read = unsafe { libc::read(eventfd(executor), count.as_mut_ptr().cast(), 8) };
    if read == 8 { u64::from_ne_bytes(count) } else { 0 }
}

#[test]
fn wakes_of_a_sleeping_shard_ring_once() {
    let executor = executor();
    let wakers: Vec<Waker> = (0..8)
        .map(|_| {
            let (future, counts) = idle();
            drop(executor.spawn(future));
            settle(&executor);
            counts.waker()
        })
        .collect();
    thread::scope(|scope| {
        scope.spawn(|| wakers[0].wake_by_ref());
    });
    assert_eq!(rings(&executor), 0, "awake: nobody rings");
    assert!(!executor.mailbox.prepare_sleep(), "there is mail");
    settle(&executor);
    assert!(executor.mailbox.prepare_sleep());
    thread::scope(|scope| {
        for waker in &wakers {
            scope.spawn(|| waker.wake_by_ref());
        }
    });
    assert_eq!(rings(&executor), 1);
    executor.mailbox.awake();
    assert_eq!(settle(&executor), 8);
}

#[test]
fn root_waker_rings_only_from_elsewhere() {
    let executor = executor();
    let root = RootWaker::new(Arc::clone(&executor.mailbox));
    assert!(root.take_woken(), "a new future is to be polled");
    assert!(!root.take_woken());
    {
        let _entered = executor.enter();
        root.waker().wake();
    }
    assert!(executor.mailbox.is_empty());
    assert!(root.take_woken());
    assert!(executor.mailbox.prepare_sleep());
    let waker = root.waker();
    thread::spawn(move || {
        waker.wake_by_ref();
        waker.wake();
    })
    .join()
    .unwrap();
    assert_eq!((rings(&executor), executor.take_mail(usize::MAX)), (1, 1));
    assert!(root.take_woken());
    assert!(!root.take_woken());
}

#[test]
fn waker_outlives_executor() {
    let (future, counts) = idle();
    let executor = executor();
    let mailbox = Arc::downgrade(&executor.mailbox);
    let handle = executor.spawn(future);
    settle(&executor);
    drop(executor);
    assert_eq!(counts.drops(), 1);
    let waker = counts.waker();
    waker.wake_by_ref();
    thread::spawn(move || waker.wake()).join().unwrap();
    counts.waker().wake();
    handle.abort();
    counts.forget_waker();
    assert!(mailbox.upgrade().is_none(), "a quiet task does not keep the mailbox");
}

#[test]
fn mail_under_way_keeps_the_mailbox() {
    let executor = executor();
    let mailbox = Arc::downgrade(&executor.mailbox);
    let (future, counts) = idle();
    let handle = executor.spawn(future);
    settle(&executor);
    let waker = counts.waker();
    thread::spawn(move || waker.wake()).join().unwrap();
    drop(executor);
    assert!(mailbox.upgrade().is_some());
    counts.forget_waker();
    drop(handle);
    assert!(mailbox.upgrade().is_none(), "the last reference to the task lets go of it");
}

#[test]
fn last_waker_dropped_elsewhere_drops_no_future_there() {
    let executor = executor();
    let (future, counts) = idle();
    drop(executor.spawn(future));
    settle(&executor);
    let there = Arc::clone(&counts);
    thread::spawn(move || there.forget_waker()).join().unwrap();
    assert_eq!((counts.drops(), executor.len()), (0, 1));
    drop(executor);
    assert_eq!(counts.drops(), 1);
    assert!(counts.dropped_here());
}

#[test]
fn executors_nest_on_one_thread() {
    let (outer, inner) = (executor(), executor());
    let (future, counts) = idle();
    let _handle = outer.spawn(future);
    settle(&outer);
    let _entered = outer.enter();
    {
        let _entered = inner.enter();
        counts.waker().wake();
        assert_eq!((outer.ready(), inner.ready(), outer.mailbox.len()), (0, 0, 1));
    }
    counts.waker().wake();
    assert_eq!(outer.ready(), 1);
    assert_eq!(settle(&outer), 1, "mail for a task that is queued already adds no poll");
}

#[test]
fn calls_run_in_order_and_a_panic_loses_none() {
    let executor = executor();
    let ran = Arc::new(Mutex::new(Vec::new()));
    for name in 0..3 {
        let ran = Arc::clone(&ran);
        executor.mailbox.push_call(Box::new(move || {
            ran.lock().unwrap().push(name);
            assert!(name != 1, "wanted");
        }));
    }
    assert_eq!(wanted(|| executor.take_mail(usize::MAX)), 3);
    assert_eq!(*ran.lock().unwrap(), [0, 1, 2]);
}

#[test]
fn mail_that_comes_while_mail_is_taken_waits() {
    let executor = executor();
    let mailbox = Arc::clone(&executor.mailbox);
    executor.mailbox.push_call(Box::new(move || mailbox.push_call(Box::new(|| {}))));
    assert_eq!(executor.take_mail(usize::MAX), 1);
    assert_eq!(executor.take_mail(usize::MAX), 1);
}
