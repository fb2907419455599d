//! A shutdown on one thread and a wait on another, in every order.

use super::ShutdownToken;
use crate::sync::{Arc as LoomArc, AtomicU32, Ordering};
use loom::thread;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU32 as RealU32;
use std::task::{Context, Poll, Wake, Waker};

#[derive(Default)]
struct Count(RealU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_waiter_sees_the_shutdown_or_is_woken_by_it() {
    loom::model(|| {
        let token = ShutdownToken::new();
        let done = LoomArc::new(AtomicU32::new(0));
        let (remote, remote_done) = (token.clone(), done.clone());
        let ending = thread::spawn(move || {
            remote_done.store(1, Ordering::Relaxed);
            remote.shutdown();
        });
        let count = Arc::<Count>::default();
        let waker = Waker::from(Arc::clone(&count));
        let mut waiting = token.requested();
        let poll = Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker));
        if poll == Poll::Ready(()) {
            // What came before the shutdown is seen with it.
            assert_eq!(done.load(Ordering::Relaxed), 1);
        }
        ending.join().unwrap();
        assert!(poll.is_ready() || count.0.load(Ordering::Relaxed) == 1, "it sleeps for ever");
        drop(waiting);
        drop(waker);
        assert_eq!(Arc::strong_count(&count), 1, "a waker was kept");
    });
}

#[test]
fn of_two_shutdowns_at_once_one_requests_and_one_forces() {
    loom::model(|| {
        let token = ShutdownToken::new();
        let count = Arc::<Count>::default();
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let (mut requested, mut forced) = (token.requested(), token.forced());
        assert!(Pin::new(&mut requested).poll(&mut cx).is_pending());
        assert!(Pin::new(&mut forced).poll(&mut cx).is_pending());
        let remote = token.clone();
        let other = thread::spawn(move || remote.shutdown());
        token.shutdown();
        other.join().unwrap();
        assert!(token.is_forced());
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    });
}
