//! Tasks that are sent to an executor from elsewhere.

use super::{OnDrop, block_on, counting, executor, idle, settle, wanted};
use crate::executor::{Mailbox, spawn_at};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::thread;

#[test]
fn a_task_sent_from_another_thread_runs_here() {
    let executor = executor();
    let mailbox = Arc::clone(&executor.mailbox);
    let here = thread::current().id();
    let sender = thread::spawn(move || {
        spawn_at(&mailbox, move || {
            // Neither the future nor what it holds is `Send`.
            let local = Rc::new(5);
            async move { (*local, thread::current().id() == here) }
        })
    });
    let handle = sender.join().unwrap();
    assert!(!handle.is_finished());
    assert_eq!(settle(&executor), 1);
    assert_eq!(block_on(handle).unwrap(), (5, true));
    assert_eq!(executor.len(), 0);
}

#[test]
fn a_panic_of_the_closure_or_the_future_comes_home() {
    let executor = executor();
    let closure = spawn_at(&executor.mailbox, || -> std::future::Ready<()> {
        panic!("wanted: the closure");
    });
    let future = spawn_at(&executor.mailbox, || async { panic!("wanted: the future") });
    wanted(|| settle(&executor));
    let text = |error: crate::executor::JoinError| error.to_string();
    assert_eq!(text(block_on(closure).unwrap_err()), "the task panicked: wanted: the closure");
    let error = block_on(future).unwrap_err();
    assert_eq!(text(error), "the task panicked: wanted: the future");
}

#[test]
fn an_abort_before_arrival_keeps_the_closure_from_running() {
    let executor = executor();
    let ran = Arc::new(AtomicU32::new(0));
    let closure = Arc::clone(&ran);
    let handle = spawn_at(&executor.mailbox, move || {
        closure.fetch_add(1, Ordering::Relaxed);
        async {}
    });
    handle.abort();
    settle(&executor);
    assert!(block_on(handle).unwrap_err().is_cancelled());
    assert_eq!((ran.load(Ordering::Relaxed), Arc::strong_count(&ran)), (0, 1));
}

#[test]
fn what_waits_in_the_mail_at_the_end_is_cancelled_and_freed() {
    let executor = executor();
    let mailbox = Arc::clone(&executor.mailbox);
    let held = Arc::new(());
    let send = || {
        let held = Arc::clone(&held);
        spawn_at(&mailbox, move || async move { drop(held) })
    };
    let (before, aborted) = (send(), send());
    aborted.abort();
    drop(send());
    drop(executor);
    let after = send();
    assert_eq!(Arc::strong_count(&held), 1);
    for handle in [before, aborted, after] {
        let error = block_on(handle).unwrap_err();
        assert!(error.is_cancelled());
        assert_eq!(error.to_string(), "the task was cancelled");
    }
}

#[test]
fn a_failed_shard_tells_why() {
    let executor = executor();
    let mailbox = Arc::clone(&executor.mailbox);
    let (future, counts) = idle();
    let running = executor.spawn(future);
    settle(&executor);
    let mail = spawn_at(&mailbox, || async {});
    mailbox.fail("shard 3 has failed: of old age");
    drop(executor);
    assert_eq!(counts.drops(), 1);
    for handle in [running, mail, spawn_at(&mailbox, || async {})] {
        let error = block_on(handle).unwrap_err();
        assert!(error.is_cancelled() && !error.is_panic());
        let text = "the task was cancelled: shard 3 has failed: of old age";
        assert_eq!(error.to_string(), text);
        assert!(error.try_into_panic().is_err());
    }
}

#[test]
fn a_mailbox_that_never_gets_its_shard_can_be_closed() {
    let mailbox = Mailbox::new();
    let dropped = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&dropped);
    let held = OnDrop(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let handle = spawn_at(&mailbox, move || async move { drop(held) });
    mailbox.fail("shard 1 could not start: no thread");
    mailbox.close();
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
    assert!(block_on(handle).unwrap_err().to_string().ends_with("no thread"));
}

#[test]
fn a_sent_task_wakes_and_is_awaited_like_any_other() {
    let executor = executor();
    let handle = spawn_at(&executor.mailbox, || {
        let mut polls = 0;
        counting(move |cx| {
            polls += 1;
            if polls == 3 {
                return Poll::Ready(polls);
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .0
    });
    let waiting = executor.spawn(async move { handle.await.unwrap() });
    settle(&executor);
    assert_eq!(block_on(waiting).unwrap(), 3);
}
