//! Models that loom runs in every order of the threads, and of what they see of each other's
//! memory.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p annulus-runtime --lib --release models`
//!
//! Not every order, after all: loom 0.7 remembers the latest access to an atomic only. A store is
//! tried before another thread's load, unless its own thread has made a load of its own since. So a
//! model is worth what it was seen to catch: nearly all were seen to fail when what they guard was
//! broken, and where one did not, the thread that loads became the later one.

use super::state::{Released, Shared};
use super::{Executor, Mailbox, RootWaker, spawn_at};
use crate::sync::{Arc, AtomicBool, AtomicU32, Ordering};
use loom::thread;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::AtomicU32 as RealU32;
use std::sync::{Arc as StdArc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// Loom cannot finish with more switches than this in the larger models, and most bugs need one or
/// two.
const PREEMPTIONS_MAX: usize = 3;

fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(body);
}

fn executor() -> Executor {
    Executor::new(Mailbox::new())
}

/// Runs the executor until `done`, sleeping in between as a shard does. Loom reports a deadlock if
/// it sleeps through the last wake.
fn run_until(executor: &Executor, mut done: impl FnMut() -> bool) {
    loop {
        executor.take_mail(usize::MAX);
        executor.run(4, &());
        if done() {
            return;
        }
        if executor.has_ready() {
            continue;
        }
        if executor.mailbox.prepare_sleep() {
            executor.mailbox.wait_for_bell();
            executor.mailbox.awake();
        }
    }
}

/// A future that counts its drop, and gives out its waker at its first poll.
struct Watched {
    state: StdArc<WatchedState>,
}

#[derive(Default)]
struct WatchedState {
    waker: Mutex<Option<Waker>>,
    drops: RealU32,
}

impl WatchedState {
    fn drops(&self) -> u32 {
        self.drops.load(Ordering::Relaxed)
    }

    fn take_waker(&self) -> Waker {
        self.waker.lock().unwrap().take().unwrap()
    }
}

impl Watched {
    fn new() -> (Watched, StdArc<WatchedState>) {
        let state = StdArc::<WatchedState>::default();
        (Watched { state: StdArc::clone(&state) }, state)
    }
}

impl Future for Watched {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        *self.state.waker.lock().unwrap() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.state.drops.fetch_add(1, Ordering::Relaxed);
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: StdArc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn sleeper_never_sleeps_through_mail() {
    model(|| {
        let mailbox = Mailbox::new();
        let executor = Executor::new(Arc::clone(&mailbox));
        let pushers: Vec<_> = (0..2)
            .map(|_| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || mailbox.ring())
            })
            .collect();
        let mut taken = 0;
        let mut announced = 0;
        while taken < 2 {
            taken += executor.take_mail(usize::MAX);
            if taken == 2 {
                break;
            }
            announced += 1;
            if mailbox.prepare_sleep() {
                mailbox.wait_for_bell();
                mailbox.awake();
            }
        }
        for pusher in pushers {
            pusher.join().unwrap();
        }
        assert!(mailbox.rings() <= announced, "one ring a sleep at most");
    });
}

#[test]
fn foreign_wakes_lose_nothing() {
    model(|| {
        let executor = executor();
        let count = StdArc::new(AtomicU32::new(0));
        let slot = StdArc::new(Mutex::new(None));
        let (seen, waker) = (StdArc::clone(&count), StdArc::clone(&slot));
        let handle = executor.spawn(poll_fn(move |cx| {
            *waker.lock().unwrap() = Some(cx.waker().clone());
            // Relaxed: the wake itself has to carry the order.
            if seen.load(Ordering::Relaxed) == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        executor.run(1, &());
        let waker: Waker = slot.lock().unwrap().take().unwrap();
        let wakers: Vec<_> = [waker.clone(), waker]
            .into_iter()
            .map(|waker| {
                let count = StdArc::clone(&count);
                thread::spawn(move || {
                    count.fetch_add(1, Ordering::Relaxed);
                    waker.wake();
                })
            })
            .collect();
        run_until(&executor, || handle.is_finished());
        for waker in wakers {
            waker.join().unwrap();
        }
        slot.lock().unwrap().take();
    });
}

#[test]
fn root_waker_loses_no_wake() {
    model(|| {
        let executor = executor();
        let root = RootWaker::new(Arc::clone(&executor.mailbox));
        assert!(root.take_woken());
        let count = StdArc::new(AtomicU32::new(0));
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (waker, count) = (root.waker(), StdArc::clone(&count));
                thread::spawn(move || {
                    count.fetch_add(1, Ordering::Relaxed);
                    waker.wake();
                })
            })
            .collect();
        let mut polled = 0;
        {
            let _entered = executor.enter();
            root.waker().wake();
        }
        run_until(&executor, || {
            if root.take_woken() {
                polled = polled.max(count.load(Ordering::Relaxed));
            }
            polled == 2
        });
        for waker in wakers {
            waker.join().unwrap();
        }
    });
}

#[test]
fn foreign_wake_races_with_close() {
    model(|| {
        let executor = executor();
        let (future, state) = Watched::new();
        drop(executor.spawn(future));
        executor.run(1, &());
        let waker = state.take_waker();
        let by_value = thread::spawn(move || {
            waker.wake_by_ref();
            waker.wake();
        });
        drop(executor);
        assert_eq!(state.drops(), 1);
        by_value.join().unwrap();
        assert_eq!(state.drops(), 1);
        // Loom reports the mailbox as leaked, or as used after it was freed.
    });
}

#[test]
fn foreign_wake_races_with_completion_and_the_end() {
    model(|| {
        let executor = executor();
        let slot = StdArc::new(Mutex::new(None));
        let waker = StdArc::clone(&slot);
        let mut polls = 0;
        drop(executor.spawn(poll_fn(move |cx| {
            *waker.lock().unwrap() = Some(cx.waker().clone());
            polls += 1;
            if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
        })));
        executor.run(1, &());
        let waker: Waker = slot.lock().unwrap().take().unwrap();
        let other = waker.clone();
        let one = thread::spawn(move || waker.wake());
        let two = thread::spawn(move || other.wake());
        executor.take_mail(usize::MAX);
        executor.run(1, &());
        slot.lock().unwrap().take();
        drop(executor);
        one.join().unwrap();
        two.join().unwrap();
    });
}

#[test]
fn foreign_abort_races_with_wake_and_end() {
    model(|| {
        let executor = executor();
        let (future, state) = Watched::new();
        let handle = executor.spawn(future);
        executor.run(1, &());
        let waker = state.take_waker();
        let waking = thread::spawn(move || waker.wake());
        let aborting = thread::spawn(move || handle.abort());
        run_until(&executor, || state.drops() == 1);
        state.waker.lock().unwrap().take();
        waking.join().unwrap();
        aborting.join().unwrap();
        assert_eq!(executor.len(), 0);
    });
}

#[test]
fn completion_races_with_polls_of_the_handle() {
    model(|| {
        let executor = executor();
        let output = Box::new(5);
        let mut handle = executor.spawn(async move { output });
        let waiter = thread::spawn(move || {
            let flags = [(), ()].map(|()| StdArc::new(Flag(AtomicBool::new(false))));
            let mut poll = |flag: &StdArc<Flag>| {
                let waker = Waker::from(StdArc::clone(flag));
                Pin::new(&mut handle).poll(&mut Context::from_waker(&waker))
            };
            // A first waker, the same again, and another: the last one has to be woken.
            for flag in [&flags[0], &flags[0], &flags[1]] {
                if let Poll::Ready(output) = poll(flag) {
                    return output.unwrap();
                }
            }
            while !flags[1].0.load(Ordering::Acquire) {
                thread::yield_now();
            }
            match poll(&flags[1]) {
                Poll::Ready(output) => output.unwrap(),
                Poll::Pending => panic!("woken, but not finished"),
            }
        });
        executor.run(1, &());
        drop(executor);
        assert_eq!(*waiter.join().unwrap(), 5);
    });
}

#[test]
fn completion_races_with_the_drop_of_the_handle() {
    struct CountsDrop(StdArc<RealU32>);
    impl Drop for CountsDrop {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    model(|| {
        let executor = executor();
        let drops = StdArc::new(RealU32::new(0));
        let output = CountsDrop(StdArc::clone(&drops));
        let mut handle = executor.spawn(async move { output });
        let flag = StdArc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(StdArc::clone(&flag));
        let dropper = thread::spawn(move || {
            let answer = Pin::new(&mut handle).poll(&mut Context::from_waker(&waker));
            drop((handle, answer));
        });
        executor.run(1, &());
        drop(executor);
        dropper.join().unwrap();
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert_eq!(StdArc::strong_count(&flag), 1, "the waker is dropped once");
    });
}

#[test]
fn end_of_a_task_whose_handle_stays_races_with_aborts_and_clones() {
    model(|| {
        let executor = executor();
        let handle = executor.spawn(async {});
        let other = thread::spawn(move || {
            handle.abort();
            let abort = handle.abort_handle();
            abort.abort();
            (handle, abort)
        });
        executor.run(1, &());
        drop(executor);
        let (handle, abort) = other.join().unwrap();
        assert!(handle.is_finished());
        drop(handle);
        // Of a task that is complete, without its handle and without its shard.
        abort.abort();
    });
}

#[test]
fn end_of_a_task_whose_handle_stays_races_with_the_abort_of_a_clone() {
    model(|| {
        let executor = executor();
        let handle = executor.spawn(async {});
        let abort = handle.abort_handle();
        let other = thread::spawn(move || abort.abort());
        executor.run(1, &());
        drop(handle);
        drop(executor);
        other.join().unwrap();
    });
}

#[test]
fn sent_task_races_with_the_end() {
    model(|| {
        let executor = executor();
        let mailbox = Arc::clone(&executor.mailbox);
        let (future, state) = Watched::new();
        let sender = thread::spawn(move || {
            let handle = spawn_at(&mailbox, move || future);
            handle.abort();
            drop(handle);
        });
        executor.take_mail(usize::MAX);
        executor.run(1, &());
        drop(executor);
        sender.join().unwrap();
        assert_eq!(state.drops(), 1);
        state.waker.lock().unwrap().take();
    });
}

#[test]
fn sent_tasks_of_two_threads_race_with_the_end() {
    model(|| {
        let executor = executor();
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let mailbox = Arc::clone(&executor.mailbox);
                thread::spawn(move || drop(spawn_at(&mailbox, || async {})))
            })
            .collect();
        drop(executor);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn call_runs_or_is_dropped_once_however_its_shard_ends() {
    #[derive(Default)]
    struct Seen {
        runs: RealU32,
        drops: RealU32,
    }
    struct Captured(StdArc<Seen>);
    impl Drop for Captured {
        fn drop(&mut self) {
            self.0.drops.fetch_add(1, Ordering::Relaxed);
        }
    }
    model(|| {
        let executor = executor();
        let seen: [_; 2] = std::array::from_fn(|_| StdArc::<Seen>::default());
        let senders = seen.clone().map(|seen| {
            let mailbox = Arc::clone(&executor.mailbox);
            thread::spawn(move || {
                let captured = Captured(seen);
                let call = move || {
                    captured.0.runs.fetch_add(1, Ordering::Relaxed);
                };
                mailbox.push_call(Box::new(call));
            })
        });
        executor.take_mail(usize::MAX);
        drop(executor);
        for sender in senders {
            sender.join().unwrap();
        }
        for seen in seen {
            assert!(seen.runs.load(Ordering::Relaxed) <= 1);
            assert_eq!(seen.drops.load(Ordering::Relaxed), 1);
        }
    });
}

#[test]
fn handle_of_a_sent_task_is_dropped_by_its_owner_while_another_ends_it() {
    model(|| {
        let executor = executor();
        let mailbox = Arc::clone(&executor.mailbox);
        let other = thread::spawn(move || mailbox.ring());
        let handle = spawn_at(&executor.mailbox, || async {});
        // Dropped when the executor drops its tasks: after the box was closed, on its own thread.
        drop(executor.spawn(async move {
            let _kept = handle;
            std::future::pending::<()>().await;
        }));
        drop(executor);
        other.join().unwrap();
    });
}

#[test]
fn two_part_count_finds_its_last_reference_once() {
    model(|| {
        // The owner gives its reference away, and later gets one back that was made elsewhere.
        let refs = Arc::new(Shared::held_and_one());
        let there = Arc::clone(&refs);
        let other = thread::spawn(move || {
            there.retain_shared();
            assert_eq!(there.release_shared(), Released::OthersRemain);
            u32::from(there.release_shared() == Released::Last)
        });
        refs.retain_local();
        refs.release_local();
        let mut last = if refs.only_held() { 1 } else { 0 };
        if last == 0 {
            last += u32::from(refs.merge() == Released::Last);
        }
        let found_there = other.join().unwrap();
        assert_eq!(last + found_there, 1);
    });
}
