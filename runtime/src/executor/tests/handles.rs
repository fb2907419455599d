//! Handles: awaiting, detaching, aborting, and what a panic does.

use super::{
    CountingWaker, OnDrop, block_on, counting, executor, finished, idle, peek, settle, wanted,
};
use crate::executor::{AbortHandle, JoinError};
use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

#[test]
fn handle_is_awaited_from_another_thread() {
    let executor = executor();
    let gate = Arc::new(Barrier::new(2));
    for round in 0..200 {
        let handle = executor.spawn(async move { vec![round; 3] });
        let there = Arc::clone(&gate);
        let waiter = thread::spawn(move || {
            there.wait();
            block_on(handle).unwrap()
        });
        gate.wait();
        settle(&executor);
        assert_eq!(waiter.join().unwrap(), [round; 3]);
    }
}

#[test]
fn handle_is_awaited_on_another_executor() {
    let executor = executor();
    let handle = executor.spawn(async { 5 });
    let waiter = thread::spawn(move || {
        let other = self::executor();
        let mut outer = other.spawn(handle);
        while !outer.is_finished() {
            settle(&other);
            thread::yield_now();
        }
        finished(&mut outer).unwrap().unwrap()
    });
    settle(&executor);
    assert_eq!(waiter.join().unwrap(), 5);
}

#[test]
fn latest_waker_is_the_one_woken() {
    let executor = executor();
    let mut handle = executor.spawn(async {});
    let wakers: Vec<_> = (0..3).map(|_| Arc::new(CountingWaker::default())).collect();
    for waker in &wakers {
        let waker = Waker::from(Arc::clone(waker));
        for _ in 0..2 {
            let mut cx = Context::from_waker(&waker);
            assert!(Pin::new(&mut handle).poll(&mut cx).is_pending());
        }
    }
    assert_eq!(Arc::strong_count(&wakers[0]), 1, "replaced wakers are dropped");
    settle(&executor);
    assert_eq!(wakers.iter().map(|w| w.wakes()).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!(Arc::strong_count(&wakers[2]), 1);
    finished(&mut handle).unwrap();
}

#[test]
fn dropped_handle_drops_its_waker() {
    let executor = executor();
    let (future, _counts) = idle();
    let mut handle = executor.spawn(future);
    let waker = Arc::new(CountingWaker::default());
    let _ = Pin::new(&mut handle).poll(&mut Context::from_waker(&Waker::from(waker.clone())));
    assert_eq!(Arc::strong_count(&waker), 2);
    drop(handle);
    assert_eq!(Arc::strong_count(&waker), 1);
    drop(executor);
    assert_eq!(waker.wakes(), 0);
}

#[test]
fn output_is_dropped_once_by_whoever_is_left() {
    let executor = executor();
    let drops = Rc::new(Cell::new(0));
    let output = || {
        let drops = Rc::clone(&drops);
        OnDrop(move || drops.set(drops.get() + 1))
    };
    let early = executor.spawn(ready(output()));
    let late = executor.spawn(ready(output()));
    let mut taken = executor.spawn(ready(output()));
    drop(early);
    settle(&executor);
    assert_eq!(drops.get(), 1, "the task drops what nobody awaits");
    drop(late);
    assert_eq!(drops.get(), 2, "the handle drops what it did not take");
    drop(finished(&mut taken));
    drop(taken);
    assert_eq!(drops.get(), 3);
}

#[test]
#[should_panic(expected = "polled after it gave its output")]
fn polling_a_spent_handle_panics() {
    let executor = executor();
    let mut handle = executor.spawn(async {});
    settle(&executor);
    finished(&mut handle).unwrap();
    let _ = peek(&mut handle);
}

#[test]
fn abort_drops_the_future_without_another_poll() {
    let executor = executor();
    let _entered = executor.enter();
    for polls in [0, 1] {
        let (future, counts) = idle();
        let mut handle = executor.spawn(future);
        if polls == 1 {
            settle(&executor);
        }
        handle.abort();
        handle.abort();
        if polls == 1 {
            counts.waker().wake();
        }
        settle(&executor);
        assert_eq!((counts.polls(), counts.drops(), executor.len()), (polls, 1, 0));
        assert!(finished(&mut handle).unwrap_err().is_cancelled());
    }
}

#[test]
fn abort_from_another_thread_drops_on_the_owners() {
    let executor = executor();
    let (future, counts) = idle();
    let mut handle = executor.spawn(future);
    settle(&executor);
    let waker = counts.waker();
    let abort = handle.abort_handle();
    thread::spawn(move || {
        waker.wake();
        abort.abort();
        assert!(!abort.is_finished());
    })
    .join()
    .unwrap();
    assert_eq!((counts.drops(), executor.mailbox.len()), (0, 1));
    settle(&executor);
    assert_eq!((counts.polls(), counts.drops()), (1, 1));
    assert!(counts.dropped_here());
    assert!(finished(&mut handle).unwrap_err().is_cancelled());
}

#[test]
fn abort_of_a_running_task_waits_for_its_next_wait() {
    let executor = executor();
    let abort = Rc::new(RefCell::new(None::<AbortHandle>));
    let inner = Rc::clone(&abort);
    let (future, counts) = counting(move |cx| {
        inner.borrow().as_ref().unwrap().abort();
        cx.waker().wake_by_ref();
        Poll::<()>::Pending
    });
    let mut handle = executor.spawn(future);
    *abort.borrow_mut() = Some(handle.abort_handle());
    assert_eq!(settle(&executor), 1);
    assert_eq!((counts.polls(), counts.drops()), (1, 1));
    assert!(finished(&mut handle).unwrap_err().is_cancelled());

    let inner = Rc::clone(&abort);
    let mut handle = executor.spawn(poll_fn(move |_| {
        inner.borrow().as_ref().unwrap().abort();
        Poll::Ready("kept")
    }));
    *abort.borrow_mut() = Some(handle.abort_handle());
    settle(&executor);
    assert_eq!(finished(&mut handle).unwrap(), "kept");
}

#[test]
fn abort_of_a_finished_task_changes_nothing() {
    let executor = executor();
    let mut handle = executor.spawn(async { 1 });
    settle(&executor);
    handle.abort();
    let _entered = executor.enter();
    handle.abort();
    assert_eq!(settle(&executor), 0);
    assert_eq!(finished(&mut handle).unwrap(), 1);
}

#[test]
fn panic_in_a_poll_is_reported_and_harms_no_sibling() {
    let executor = executor();
    let number = std::hint::black_box(1);
    let (future, counts) = counting(move |_| -> Poll<()> { panic!("wanted {number}") });
    let mut handle = executor.spawn(future);
    let mut sibling = executor.spawn(async { "fine" });
    wanted(|| settle(&executor));
    assert_eq!((counts.polls(), counts.drops()), (1, 1));
    let error = finished(&mut handle).unwrap_err();
    assert!(error.is_panic() && !error.is_cancelled());
    assert_eq!(error.to_string(), "the task panicked: wanted 1");
    assert_eq!(format!("{error:?}"), "JoinError::Panic(\"wanted 1\")");
    assert_eq!(*error.into_panic().downcast::<String>().unwrap(), "wanted 1");
    assert_eq!(finished(&mut sibling).unwrap(), "fine");
}

#[test]
fn panics_in_drops_harm_no_sibling() {
    let executor = executor();
    let bomb = || OnDrop(|| panic!("wanted"));
    // The drop of an aborted future, of a future that finished, of an output that nobody takes, and
    // of an output that the handle drops.
    let held = bomb();
    let mut aborted = executor.spawn(async move {
        let _held = held;
        pending::<()>().await
    });
    let held = bomb();
    let mut done = executor.spawn(poll_fn(move |_| {
        let _ = &held;
        Poll::Ready(3)
    }));
    drop(executor.spawn(ready(bomb())));
    let dropped = executor.spawn(ready(bomb()));
    let mut sibling = executor.spawn(async { "fine" });
    wanted(|| {
        settle(&executor);
        aborted.abort();
        settle(&executor);
        drop(dropped);
    });
    assert!(finished(&mut aborted).unwrap_err().is_panic());
    assert_eq!(finished(&mut done).unwrap(), 3);
    assert_eq!(finished(&mut sibling).unwrap(), "fine");
    assert_eq!(executor.len(), 0);
}

#[test]
fn panicking_waker_of_a_handle_harms_no_sibling() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("wanted");
        }
    }
    let executor = executor();
    let mut handle = executor.spawn(async { 1 });
    let _ = Pin::new(&mut handle).poll(&mut Context::from_waker(&Waker::from(Arc::new(Bomb))));
    let mut sibling = executor.spawn(async { 2 });
    wanted(|| settle(&executor));
    assert_eq!(finished(&mut handle).unwrap(), 1);
    assert_eq!(finished(&mut sibling).unwrap(), 2);
}

#[test]
fn payload_that_panics_in_its_drop_is_contained() {
    let executor = executor();
    let bomb = || std::panic::panic_any(OnDrop(|| panic!("wanted")));
    drop(executor.spawn(async move { bomb() }));
    executor.mailbox.push_call(Box::new(bomb));
    wanted(|| settle(&executor));
    assert_eq!(executor.len(), 0);
}

#[test]
fn join_error_becomes_an_io_error() {
    let error: std::io::Error = JoinError::cancelled().into();
    assert_eq!(error.to_string(), "the task was cancelled");
    assert!(error.get_ref().unwrap().downcast_ref::<JoinError>().unwrap().is_cancelled());
    assert!(JoinError::cancelled().try_into_panic().is_err());
    let silent = JoinError::panic(Box::new(1));
    assert_eq!((silent.to_string(), silent.is_panic()), ("the task panicked".into(), true));
}
