//! What tasks, wakers and handles keep to, on one executor and across threads.

use super::task::{Header, TaskPtr};
use super::*;
use crate::sys::EventFd;
use std::future::{pending, poll_fn, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Barrier, Mutex};
use std::task::{Wake, Waker};
use std::thread::{self, ThreadId};

// -- Helpers ----------------------------------------------------------------------------------

fn executor() -> Executor {
    Executor::new(Mailbox::new(ShardId::next(), EventFd::new().unwrap()))
}

/// Takes mail and runs tasks until neither is left. Answers how many polls that took.
fn settle(executor: &Executor) -> u32 {
    let mut polls = 0;
    loop {
        let mail = executor.take_mail();
        let turns = executor.run(64, || {});
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

// -- Sizes and auto traits --------------------------------------------------------------------

#[test]
fn header_is_one_cache_line_and_parked_tasks_are_small() {
    assert_eq!(size_of::<Header>(), 64);
    assert_eq!(size_of::<Result<(), JoinError>>(), 16);
    assert_eq!(task::size_of_task::<std::future::Pending<()>>(), 80);
    assert_eq!(size_of::<JoinHandle<[u8; 100]>>(), 8);
    assert_eq!(size_of::<Option<TaskPtr>>(), 8);
}

/// Answers whether a type has a trait, at compile time, by which of two functions is found first.
macro_rules! implements {
    ($type:ty: $trait:path) => {{
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

// -- Spawning, polling, waking ----------------------------------------------------------------

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
        if std::mem::take(&mut first) {
            cx.waker().wake_by_ref();
            cx.waker().clone().wake();
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
        if std::mem::take(&mut first) {
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

// -- Foreign wakes ----------------------------------------------------------------------------

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
                    waker.clone().wake();
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
    executor.mailbox.eventfd().raw_fd()
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
    assert_eq!((rings(&executor), executor.take_mail()), (1, 1));
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
    assert_eq!(wanted(|| executor.take_mail()), 3);
    assert_eq!(*ran.lock().unwrap(), [0, 1, 2]);
}

#[test]
fn mail_that_comes_while_mail_is_taken_waits() {
    let executor = executor();
    let mailbox = Arc::clone(&executor.mailbox);
    executor.mailbox.push_call(Box::new(move || mailbox.push_call(Box::new(|| {}))));
    assert_eq!(executor.take_mail(), 1);
    assert_eq!(executor.take_mail(), 1);
}

// -- Handles ----------------------------------------------------------------------------------

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

// -- Abort ------------------------------------------------------------------------------------

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

// -- Panics -----------------------------------------------------------------------------------

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

// -- The end ----------------------------------------------------------------------------------

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
    drop(executor.spawn(async move { handle.await }));
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
                waker.clone().wake();
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
