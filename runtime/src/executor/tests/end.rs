//! The end of an executor.

use super::{OnDrop, executor, finished, idle, settle, wanted};
use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

#[test]
fn close_drops_every_future_and_all_mail() {
    let executor = executor();
    let (idle_future, idle_counts) = idle();
    let (fresh_future, fresh_counts) = idle();
    let mut handle = executor.spawn(idle_future);
    settle(&executor);
    drop(executor.spawn(fresh_future));
    let called = Arc::new(AtomicBool::new(false));
    let call = Arc::clone(&called);
    executor.mailbox.push_call(Box::new(move || call.store(true, Ordering::SeqCst)));
    executor.close();
    executor.close();
    assert_eq!((idle_counts.drops(), fresh_counts.drops()), (1, 1));
    assert_eq!((fresh_counts.polls(), executor.len(), executor.ready()), (0, 0, 0));
    assert!(finished(&mut handle).unwrap_err().is_cancelled());
    assert_eq!(Arc::strong_count(&called), 1, "the closure is gone");
    let call = Arc::clone(&called);
    executor.mailbox.push_call(Box::new(move || call.store(true, Ordering::SeqCst)));
    assert_eq!(Arc::strong_count(&called), 1);
    assert!(!called.load(Ordering::SeqCst));
}

#[test]
fn spawn_and_wake_from_drops_during_close() {
    let executor = Rc::new(executor());
    let (late, late_counts) = idle();
    let late = Cell::new(Some(late));
    let (sibling, sibling_counts) = idle();
    let spawner = Rc::downgrade(&executor);
    let (done, wakes) = (Rc::new(Cell::new(false)), Arc::clone(&sibling_counts));
    let flag = Rc::clone(&done);
    let held = OnDrop(move || {
        // `upgrade` fails while the executor is dropped; `close` is called before that.
        let executor = spawner.upgrade().unwrap();
        let mut handle = executor.spawn(late.take().unwrap());
        assert!(finished(&mut handle).unwrap_err().is_cancelled());
        wakes.waker().wake();
        flag.set(true);
    });
    let first = executor.spawn(async move {
        let _held = held;
        pending::<()>().await
    });
    let second = executor.spawn(sibling);
    settle(&executor);
    executor.close();
    assert!(done.get());
    assert_eq!((late_counts.polls(), late_counts.drops()), (0, 1));
    assert_eq!(sibling_counts.drops(), 1);
    drop((first, second));
}

#[test]
fn panicking_drops_during_close_leak_no_sibling() {
    let executor = executor();
    let (before, before_counts) = idle();
    let (after, after_counts) = idle();
    drop(executor.spawn(before));
    let held = OnDrop(|| panic!("wanted"));
    drop(executor.spawn(async move {
        let _held = held;
        pending::<()>().await
    }));
    drop(executor.spawn(after));
    let held = OnDrop(|| panic!("wanted"));
    executor.mailbox.push_call(Box::new(move || drop(held)));
    wanted(|| drop(executor));
    assert_eq!((before_counts.drops(), after_counts.drops()), (1, 1));
}

#[test]
fn tasks_that_hold_each_others_handles_are_dropped() {
    let executor = executor();
    let (future, counts) = idle();
    let handle = executor.spawn(future);
    drop(executor.spawn(handle));
    settle(&executor);
    drop(executor);
    assert_eq!(counts.drops(), 1);
}

#[test]
fn close_inside_a_task_panics_with_a_text() {
    let executor = Rc::new(executor());
    let inner = Rc::downgrade(&executor);
    let mut handle = executor.spawn(async move { inner.upgrade().unwrap().close() });
    settle(&executor);
    let error = finished(&mut handle).unwrap_err();
    assert!(error.to_string().contains("by one of its own tasks"), "{error}");
}

#[test]
fn wakes_and_aborts_race_with_the_end() {
    for _ in 0..300 {
        let executor = executor();
        let mailbox = Arc::downgrade(&executor.mailbox);
        let (future, counts) = idle();
        let handle = executor.spawn(future);
        settle(&executor);
        let gate = Arc::new(Barrier::new(4));
        let (abort, there) = (handle.abort_handle(), Arc::clone(&gate));
        let mut threads = vec![thread::spawn(move || {
            there.wait();
            abort.abort();
        })];
        for _ in 0..2 {
            let (waker, there) = (counts.waker(), Arc::clone(&gate));
            threads.push(thread::spawn(move || {
                there.wait();
                waker.wake_by_ref();
                waker.wake();
            }));
        }
        counts.forget_waker();
        gate.wait();
        drop(executor);
        assert_eq!(counts.drops(), 1);
        assert!(counts.dropped_here());
        for thread in threads {
            thread.join().unwrap();
        }
        drop(handle);
        assert!(mailbox.upgrade().is_none(), "nothing is left behind");
    }
}
