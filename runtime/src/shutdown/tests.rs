use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use super::{ShutdownToken, Waiting};
use crate::waiters::tests::counted;

fn poll(waiting: &mut Waiting, waker: &Waker) -> Poll<()> {
    Pin::new(waiting).poll(&mut Context::from_waker(waker))
}

/// Blocks this thread, with nothing but the standard library.
fn wait(mut waiting: Waiting) {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    while poll(&mut waiting, &waker).is_pending() {
        thread::park();
    }
}

#[test]
fn tokens_and_their_futures_may_go_anywhere() {
    fn may_go<T: Send + Sync + Unpin + std::panic::UnwindSafe + 'static>() {}
    may_go::<ShutdownToken>();
    may_go::<Waiting>();
}

#[test]
fn the_first_call_requests_and_the_second_forces() {
    let token = ShutdownToken::new();
    let (requests, on_request) = counted();
    let (forces, on_force) = counted();
    let (mut requested, mut forced) = (token.requested(), token.forced());
    assert!(poll(&mut requested, &on_request).is_pending());
    assert!(poll(&mut forced, &on_force).is_pending());
    assert_eq!((token.is_requested(), token.is_forced()), (false, false));

    token.clone().shutdown();
    assert_eq!((token.is_requested(), token.is_forced()), (true, false));
    let woken = || (requests.0.load(Ordering::Relaxed), forces.0.load(Ordering::Relaxed));
    assert_eq!(woken(), (1, 0));
    assert!(poll(&mut requested, &on_request).is_ready());
    assert!(poll(&mut forced, &on_force).is_pending());

    token.shutdown();
    assert_eq!((token.is_requested(), token.is_forced()), (true, true));
    assert_eq!(woken(), (1, 1));
    assert!(poll(&mut forced, &on_force).is_ready());
    token.shutdown();
    token.shutdown_now();
    assert_eq!(woken(), (1, 1));
}

#[test]
fn shutdown_now_reaches_both_levels_at_once() {
    let token = ShutdownToken::new();
    let (count, waker) = counted();
    let (mut requested, mut forced) = (token.requested(), token.forced());
    assert!(poll(&mut requested, &waker).is_pending());
    assert!(poll(&mut forced, &waker).is_pending());
    token.shutdown_now();
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
    assert!(poll(&mut requested, &waker).is_ready());
    assert!(poll(&mut forced, &waker).is_ready());
}

#[test]
fn a_level_that_was_reached_before_completes_at_once_and_again() {
    let token = ShutdownToken::new();
    token.shutdown_now();
    let mut requested = token.requested();
    for _ in 0..2 {
        assert!(poll(&mut requested, Waker::noop()).is_ready());
    }
    wait(token.forced());
}

#[test]
fn polling_again_registers_once_and_the_latest_waker_is_woken() {
    let token = ShutdownToken::new();
    let ((old, old_waker), (new, new_waker)) = (counted(), counted());
    let mut requested = token.requested();
    for waker in [&old_waker, &old_waker, &new_waker, &new_waker] {
        assert!(poll(&mut requested, waker).is_pending());
    }
    drop(old_waker);
    assert_eq!(Arc::strong_count(&old), 1, "a waker was kept");
    token.shutdown();
    assert_eq!((old.0.load(Ordering::Relaxed), new.0.load(Ordering::Relaxed)), (0, 1));
}

#[test]
fn dropped_waiters_leave_nothing_behind() {
    let token = ShutdownToken::new();
    let (count, waker) = counted();
    let waiting: Vec<Waiting> = (0..10_000)
        .map(|number| if number % 2 == 0 { token.requested() } else { token.forced() })
        .map(|mut waiting| {
            assert!(poll(&mut waiting, &waker).is_pending());
            waiting
        })
        .collect();
    drop(waiting);
    assert_eq!(Arc::strong_count(&count), 2, "wakers were kept");
    token.shutdown_now();
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
}

#[test]
fn threads_without_a_runtime_all_go_on() {
    for _ in 0..100 {
        let token = ShutdownToken::new();
        thread::scope(|scope| {
            for number in 0..4 {
                let waiting = if number % 2 == 0 { token.requested() } else { token.forced() };
                scope.spawn(|| wait(waiting));
            }
            scope.spawn(|| token.shutdown());
            token.shutdown();
        });
        assert!(token.is_forced());
    }
}

#[test]
fn a_waker_may_use_the_token_that_wakes_it() {
    struct Forces(ShutdownToken);
    impl Wake for Forces {
        fn wake(self: Arc<Self>) {
            self.0.shutdown();
            drop(self.0.requested());
        }
    }
    let token = ShutdownToken::new();
    let waker = Waker::from(Arc::new(Forces(token.clone())));
    let mut requested = token.requested();
    assert!(poll(&mut requested, &waker).is_pending());
    token.shutdown();
    assert!(token.is_forced());
}

#[test]
fn work_goes_on_until_it_would_wait_behind_the_end() {
    let (count, waker) = counted();
    let mut cx = Context::from_waker(&waker);
    let token = ShutdownToken::new();
    let mut requested = token.requested();
    let mut polls = 0;
    let work = std::future::poll_fn(|cx| {
        polls += 1;
        if polls < 3 {
            return Poll::Pending;
        }
        cx.waker().wake_by_ref();
        Poll::Ready(polls)
    });
    let mut done = Box::pin(requested.unless(work));
    assert_eq!(done.as_mut().poll(&mut cx), Poll::Pending);
    assert_eq!(done.as_mut().poll(&mut cx), Poll::Pending);
    token.shutdown();
    assert_eq!(count.0.load(Ordering::Relaxed), 1, "the end wakes who works");
    // What is ready by now is done all the same.
    assert_eq!(done.as_mut().poll(&mut cx), Poll::Ready(Some(3)));
    drop(done);
    let mut dropped = Box::pin(requested.unless(std::future::pending::<()>()));
    assert_eq!(dropped.as_mut().poll(&mut cx), Poll::Ready(None));
}
