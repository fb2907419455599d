//! What tasks, wakers and handles keep to, on one executor and across threads.

use super::task::{self, Header, TaskPtr};
use super::{AbortHandle, EnterGuard, Executor, JoinError, JoinHandle, Mailbox};
use crate::sys::EventFd;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};

mod elsewhere;
mod end;
mod handles;
#[cfg(not(asan))]
mod spare;
mod tasks;
mod wakers;

fn executor() -> Executor {
    let mailbox = Mailbox::new();
    mailbox.hang_bell(EventFd::new().unwrap());
    Executor::new(mailbox)
}

/// Takes mail and runs tasks until neither is left. Answers how many polls that took.
fn settle(executor: &Executor) -> u32 {
    let mut polls = 0;
    loop {
        let mail = executor.take_mail(usize::MAX);
        let turns = executor.run(64, &());
        polls += turns;
        if mail == 0 && turns == 0 {
            return polls;
        }
    }
}

/// What has become of a future.
#[derive(Default)]
struct Counts {
    polls: AtomicU32,
    drops: AtomicU32,
    dropped_on: Mutex<Option<ThreadId>>,
    waker: Mutex<Option<Waker>>,
}

impl Counts {
    fn polls(&self) -> u32 {
        self.polls.load(Ordering::SeqCst)
    }

    fn drops(&self) -> u32 {
        self.drops.load(Ordering::SeqCst)
    }

    fn dropped_here(&self) -> bool {
        *self.dropped_on.lock().unwrap() == Some(thread::current().id())
    }

    /// A waker from the last poll.
    fn waker(&self) -> Waker {
        self.waker.lock().unwrap().clone().expect("polled")
    }

    fn forget_waker(&self) {
        *self.waker.lock().unwrap() = None;
    }
}

/// A future that counts, and does what `behave` says.
struct Counting<B> {
    counts: Arc<Counts>,
    behave: B,
    /// Tasks need not be `Send`.
    _not_send: Rc<()>,
}

impl<T, B: FnMut(&mut Context<'_>) -> Poll<T> + Unpin> Future for Counting<B> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.counts.polls.fetch_add(1, Ordering::SeqCst);
        *self.counts.waker.lock().unwrap() = Some(cx.waker().clone());
        (self.behave)(cx)
    }
}

impl<B> Drop for Counting<B> {
    fn drop(&mut self) {
        self.counts.drops.fetch_add(1, Ordering::SeqCst);
        *self.counts.dropped_on.lock().unwrap() = Some(thread::current().id());
    }
}

fn counting<T, B>(behave: B) -> (Counting<B>, Arc<Counts>)
where
    B: FnMut(&mut Context<'_>) -> Poll<T>,
{
    let counts = Arc::new(Counts::default());
    (Counting { counts: Arc::clone(&counts), behave, _not_send: Rc::new(()) }, counts)
}

fn idle() -> (Counting<impl FnMut(&mut Context<'_>) -> Poll<()>>, Arc<Counts>) {
    counting(|_: &mut Context<'_>| Poll::Pending)
}

/// Runs its closure when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[derive(Default)]
struct CountingWaker(AtomicU32);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl CountingWaker {
    fn wakes(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Polls a handle once, without waiting.
fn peek<T>(handle: &mut JoinHandle<T>) -> Poll<Result<T, JoinError>> {
    Pin::new(handle).poll(&mut Context::from_waker(Waker::noop()))
}

fn finished<T>(handle: &mut JoinHandle<T>) -> Result<T, JoinError> {
    match peek(handle) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the task is not finished"),
    }
}

/// Waits for a handle on a thread without a runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Silences the panic hook for panics that a test wants.
fn wanted<R>(code: impl FnOnce() -> R) -> R {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let literal = payload.downcast_ref::<&'static str>().copied();
            let text = literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            if !text.is_some_and(|text| text.contains("wanted")) {
                before(info);
            }
        }));
    });
    code()
}

#[test]
fn header_is_one_cache_line_and_parked_tasks_are_small() {
    assert_eq!(size_of::<Header>(), 64);
    assert_eq!(size_of::<Result<(), JoinError>>(), 16);
    assert_eq!(task::size_of_task::<std::future::Pending<()>>(), 88);
    assert_eq!(size_of::<JoinHandle<[u8; 100]>>(), 8);
    assert_eq!(size_of::<Option<TaskPtr>>(), 8);
}

/// Answers whether a type has a trait, at compile time, by which of two functions is found first.
macro_rules! implements {
    ($type:ty: $trait:path) => {{
        #[allow(dead_code, reason = "only one of the two is chosen")]
        trait Lacks {
            fn has(&self) -> bool {
                false
            }
        }
        impl<T: ?Sized> Lacks for &std::marker::PhantomData<T> {}
        #[allow(dead_code, reason = "only one of the two is chosen")]
        trait Has {
            fn has(&self) -> bool;
        }
        impl<T: ?Sized + $trait> Has for std::marker::PhantomData<T> {
            fn has(&self) -> bool {
                true
            }
        }
        (&std::marker::PhantomData::<$type>).has()
    }};
}

#[test]
fn only_what_may_crosses_threads() {
    assert!(!implements!(Executor: Send));
    assert!(!implements!(Executor: Sync));
    assert!(!implements!(EnterGuard<'static>: Send));
    assert!(implements!(Mailbox: Send));
    assert!(implements!(Mailbox: Sync));
    assert!(implements!(JoinHandle<i32>: Send));
    assert!(implements!(JoinHandle<i32>: Sync));
    assert!(!implements!(JoinHandle<Rc<()>>: Send));
    assert!(!implements!(JoinHandle<Rc<()>>: Sync));
    assert!(implements!(JoinHandle<std::marker::PhantomPinned>: Unpin));
    assert!(implements!(AbortHandle: Send));
    assert!(implements!(JoinError: Send));
    assert!(implements!(JoinError: Sync));
}
