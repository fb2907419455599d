//! Sets of tasks: what has ended is given once, nothing is lost, and nothing outlives the set.

use std::cell::Cell;
use std::future::{Future, pending};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use annulus::task::{JoinSet, spawn_blocking, yield_now};
use annulus::{Runtime, Shard};
use common::each_driver;
use common::steps::poll_once;

mod common;

each_driver! {
    async fn outputs_come_as_tasks_end() {
        let order = Rc::new(Cell::new(0));
        let mut set = JoinSet::new();
        for number in [3, 1, 2] {
            let order = Rc::clone(&order);
            set.spawn(async move {
                while order.get() + 1 < number {
                    yield_now().await;
                }
                order.set(number);
                number
            });
        }
        let mut ended = Vec::new();
        while let Some(output) = set.join_next().await {
            ended.push(output.unwrap());
            assert_eq!(set.len(), 3 - ended.len());
        }
        assert_eq!(ended, [1, 2, 3]);
        assert!(set.join_next().await.is_none(), "an empty set has nothing to wait for");
    }

    async fn a_dropped_join_next_loses_no_output() {
        let mut set = JoinSet::new();
        let total = 1000;
        for number in 0..total {
            set.spawn(async move {
                for _ in 0..number % 7 {
                    yield_now().await;
                }
                number
            });
        }
        let mut seen = vec![false; total];
        while !set.is_empty() {
            // Polled once, and dropped whether it is ready or not.
            if let Poll::Ready(Some(output)) = poll_once(pin!(set.join_next()).as_mut()).await {
                assert!(!std::mem::replace(&mut seen[output.unwrap()], true), "given twice");
            }
            yield_now().await;
        }
        assert!(seen.into_iter().all(|seen| seen));
    }

    async fn what_a_set_takes_may_run_anywhere() {
        let far = Shard::all().into_iter().next_back().expect("a runtime has a shard");
        let there = (0..100).map(|n| far.spawn_with(move || async move { n }));
        let mut set: JoinSet<u32> = there.collect();
        set.extend((100..200).map(|n| spawn_blocking(move || n)));
        for n in 200..300 {
            set.spawn(async move { n });
        }
        let mut outputs = set.join_all().await;
        outputs.sort_unstable();
        assert!(outputs.into_iter().eq(0..300));
    }

    async fn a_panic_and_an_abort_are_their_own_tasks_errors() {
        let mut set = JoinSet::new();
        set.spawn(async { panic!("on purpose") });
        let aborted = annulus::spawn(pending::<u8>());
        aborted.abort();
        set.push(aborted);
        set.spawn(async { 7 });
        let (mut panics, mut aborts, mut outputs) = (0, 0, 0);
        while let Some(ended) = set.join_next().await {
            match ended {
                Ok(output) => outputs += output,
                Err(error) if error.is_panic() => panics += 1,
                Err(error) => aborts += u32::from(error.is_cancelled()),
            }
        }
        assert_eq!((panics, aborts, outputs), (1, 1, 7));
    }

    async fn nothing_outlives_its_set_but_what_was_detached() {
        let alive = Arc::new(AtomicUsize::new(0));
        let count = |set: &mut JoinSet<()>| {
            for _ in 0..10 {
                let guard = Counted::one_more(&alive);
                set.spawn(async move {
                    pending::<()>().await;
                    drop(guard);
                });
            }
        };
        let mut set = JoinSet::new();
        count(&mut set);
        set.shutdown().await;
        assert_eq!((alive.load(Ordering::Relaxed), set.len()), (0, 0), "shut down");

        count(&mut set);
        set.detach_all();
        assert!(set.is_empty());
        count(&mut set);
        drop(set);
        // The first turn after an abort drops the future.
        yield_now().await;
        yield_now().await;
        assert_eq!(alive.load(Ordering::Relaxed), 10, "those that were detached go on");
    }

    async fn a_look_in_between_takes_no_wake_from_who_waits() {
        let mut set = JoinSet::new();
        let (go, gate) = std::sync::mpsc::channel();
        set.push(spawn_blocking(move || gate.recv().unwrap()));
        let (ring, bell) = std::sync::mpsc::channel();
        let waker = Waker::from(Arc::new(Bell(ring)));
        assert!(set.poll_join_next(&mut Context::from_waker(&waker)).is_pending());
        assert!(set.try_join_next().is_none(), "it has not ended");
        // Nobody registers anew: the waker of the poll above has to serve.
        go.send(5).unwrap();
        spawn_blocking(move || bell.recv().expect("a wake")).await.unwrap();
        assert_eq!(set.try_join_next().expect("it has ended").unwrap(), 5);
    }

    async fn join_all_passes_a_panic_on_and_aborts_the_others() {
        let alive = Arc::new(AtomicUsize::new(0));
        let guard = Counted::one_more(&alive);
        let task = annulus::spawn(async move {
            let mut set = JoinSet::new();
            set.spawn(async move {
                pending::<()>().await;
                drop(guard);
            });
            set.spawn(async { panic!("on purpose") });
            set.join_all().await
        });
        assert!(task.await.unwrap_err().is_panic());
        yield_now().await;
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    }

    fn a_set_is_awaited_on_another_thread(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).build().unwrap();
        let mut set = runtime.block_on(async {
            let mut set = JoinSet::new();
            for number in 0..100_u32 {
                set.push(spawn_blocking(move || number));
            }
            set
        });
        let sum = thread::spawn(move || {
            let woken = Arc::new(Parker(thread::current()));
            let waker = Waker::from(woken);
            let mut sum = 0;
            while let Some(output) = park_on(set.join_next(), &waker) {
                sum += output.unwrap();
            }
            sum
        });
        let sum = runtime.block_on(spawn_on_pool(sum));
        assert_eq!(sum, 4950);
    }
}

/// Waits for a thread, without holding the shard.
async fn spawn_on_pool<T: Send + 'static>(thread: thread::JoinHandle<T>) -> T {
    spawn_blocking(move || thread.join().unwrap()).await.unwrap()
}

/// A waker that tells a channel.
struct Bell(std::sync::mpsc::Sender<()>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.send(()).expect("somebody listens");
    }
}

/// A waker for a thread that has no runtime.
struct Parker(thread::Thread);

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn park_on<F: Future>(future: F, waker: &Waker) -> F::Output {
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Counts itself while it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one_more(alive: &Arc<AtomicUsize>) -> Counted {
        alive.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(alive))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
