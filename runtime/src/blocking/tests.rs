use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use super::*;
use crate::fork::tests::in_child;
use crate::runtime::Runtime;

/// A pool of its own, for tests that count threads.
fn pool(threads_max: usize, spawn_thread: fn(&'static Pool) -> io::Result<()>) -> &'static Pool {
    Box::leak(Box::new(Pool::new(threads_max, Duration::from_millis(50), spawn_thread)))
}

fn block_on<F: Future>(future: F) -> F::Output {
    Runtime::new().unwrap().block_on(future)
}

fn text_of(payload: Payload) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
    }
}

fn eventually(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "it never came true");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_job_runs_on_another_thread_and_its_result_comes_back() {
    block_on(async {
        let here = thread::current().id();
        let there = spawn_blocking(|| {
            (thread::current().id(), thread::current().name().map(str::to_owned))
        });
        let (id, name) = there.await.unwrap();
        assert_ne!(id, here);
        assert_eq!(name.as_deref(), Some(THREAD_NAME));
        assert_eq!(offload(|| 6 * 7).await, 42);
    });
}

#[test]
fn a_panic_reaches_the_awaiter_and_the_pool_survives() {
    block_on(async {
        for round in 0..20 {
            let error = spawn_blocking(move || assert!(round > 100, "round {round}")).await;
            let error = error.unwrap_err();
            assert!(error.is_panic());
            assert_eq!(text_of(error.into_panic()), format!("round {round}"));
        }
        assert_eq!(spawn_blocking(|| 1).await.unwrap(), 1);
    });
}

#[test]
fn jobs_run_at_the_same_time_up_to_the_limit_and_queue_beyond_it() {
    let pool = pool(3, spawn_thread);
    let running = Arc::new(AtomicU32::new(0));
    let (release, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let jobs: Vec<_> = (0..10)
        .map(|number| {
            let (running, gate) = (running.clone(), gate.clone());
            let job = move || {
                running.fetch_add(1, Ordering::SeqCst);
                gate.lock().unwrap().recv().unwrap();
                number
            };
            pool.submit(job, None)
        })
        .collect();
    eventually(|| running.load(Ordering::SeqCst) == 3);
    thread::sleep(Duration::from_millis(20));
    assert_eq!((running.load(Ordering::SeqCst), lock(&pool.state).threads), (3, 3));
    assert_eq!(lock(&pool.state).queue.len(), 7);
    for _ in 0..10 {
        release.send(()).unwrap();
    }
    block_on(async {
        for (number, job) in jobs.into_iter().enumerate() {
            assert_eq!(job.await.unwrap(), number);
        }
    });
    eventually(|| lock(&pool.state).threads == 0);
}

#[test]
fn an_idle_thread_is_used_again() {
    let pool = pool(8, spawn_thread);
    for _ in 0..200 {
        block_on(pool.submit(|| (), None)).unwrap();
        let threads = || lock(&pool.state).threads;
        let idle = || lock(&pool.state).idle;
        eventually(|| idle() == threads());
        assert!(threads() <= 1); // none, if this thread was stalled for as long as one idles
    }
}

#[test]
fn jobs_that_wait_for_each_other_find_a_thread_each() {
    let pool = pool(8, spawn_thread);
    block_on(pool.submit(|| (), None)).unwrap();
    // One thread may be idle now, for two jobs.
    let (send, receive) = mpsc::channel::<()>();
    let first = pool.submit(move || receive.recv_timeout(Duration::from_secs(10)), None);
    let second = pool.submit(move || send.send(()), None);
    assert_eq!(block_on(first).unwrap(), Ok(()));
    block_on(second).unwrap().unwrap();
}

#[test]
fn a_job_in_the_queue_does_not_run_once_it_is_abandoned_and_leaves_it() {
    let pool = pool(1, spawn_thread);
    let (release, gate) = mpsc::channel::<()>();
    let blocker = pool.submit(move || gate.recv().unwrap(), None);
    eventually(|| lock(&pool.state).queue.is_empty());

    let ran = Arc::new(AtomicU32::new(0));
    for _ in 0..1000 {
        let counted = ran.clone();
        let job = pool.submit(move || counted.fetch_add(1, Ordering::SeqCst), None);
        drop(job);
        assert_eq!(Arc::strong_count(&ran), 1, "what it held is dropped at once");
    }
    assert!(lock(&pool.state).queue.len() <= ABANDONED_MIN);
    let last = pool.submit(|| 7, None);
    release.send(()).unwrap();
    assert_eq!(block_on(last).unwrap(), 7);
    block_on(blocker).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

#[test]
fn a_job_that_has_begun_runs_to_its_end_and_its_result_is_dropped() {
    struct Bomb(mpsc::Sender<()>);
    impl Drop for Bomb {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
            panic!("a result that panics when it is dropped");
        }
    }
    let pool = pool(1, spawn_thread);
    let (begun, has_begun) = mpsc::channel();
    let (release, gate) = mpsc::channel::<()>();
    let (dropped, was_dropped) = mpsc::channel();
    let job = pool.submit(
        move || {
            begun.send(()).unwrap();
            gate.recv().unwrap();
            Bomb(dropped)
        },
        None,
    );
    has_begun.recv().unwrap();
    drop(job);
    assert!(was_dropped.try_recv().is_err());
    release.send(()).unwrap();
    was_dropped.recv_timeout(Duration::from_secs(10)).unwrap();
    // The thread that bore the panic takes the next job.
    assert_eq!(block_on(pool.submit(|| 1, None)).unwrap(), 1);
    assert_eq!(lock(&pool.state).threads, 1);
}

#[test]
fn an_aborted_handle_keeps_a_queued_job_from_running() {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let (release, gate) = mpsc::channel::<()>();
        let running = spawn_blocking(move || gate.recv().is_ok());
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        drop(release);
    });
}

#[test]
fn without_a_thread_the_awaiter_gets_an_error_that_says_why() {
    fn refuse(_: &'static Pool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }
    let pool = pool(4, refuse);
    for _ in 0..3 {
        let payload = block_on(pool.submit(|| (), None)).unwrap_err();
        let text = text_of(payload);
        assert!(text.starts_with("no thread for blocking work"), "{text}");
        assert_eq!(lock(&pool.state).threads, 0);
    }
}

#[test]
fn with_a_thread_a_refused_job_waits_for_it() {
    fn one_only(pool: &'static Pool) -> io::Result<()> {
        match lock(&pool.state).threads {
            1 => spawn_thread(pool),
            _ => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        }
    }
    let pool = pool(4, one_only);
    let (release, gate) = mpsc::channel::<()>();
    let first = pool.submit(move || gate.recv().unwrap(), None);
    let second = pool.submit(|| 2, None);
    release.send(()).unwrap();
    assert_eq!(block_on(second).unwrap(), 2);
    block_on(first).unwrap();
}

#[test]
fn the_latest_waker_is_woken() {
    struct Flag(AtomicU32);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let pool = pool(1, spawn_thread);
    let (release, gate) = mpsc::channel::<()>();
    let mut job = pool.submit(move || gate.recv().unwrap(), None);
    let flags = [0, 1].map(|_| Arc::new(Flag(AtomicU32::new(0))));
    for flag in &flags {
        let waker = Waker::from(flag.clone());
        assert!(Pin::new(&mut job).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    assert_eq!(Arc::strong_count(&flags[0]), 1);
    release.send(()).unwrap();
    eventually(|| flags[1].0.load(Ordering::SeqCst) == 1);
    assert_eq!(flags[0].0.load(Ordering::SeqCst), 0);
}

#[test]
fn a_runtime_ends_without_waiting_for_a_running_job() {
    let (release, gate) = mpsc::channel::<()>();
    let (ended, has_ended) = mpsc::channel();
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        drop(spawn_blocking(move || {
            let released = gate.recv().is_ok();
            ended.send(released).unwrap();
        }));
        crate::time::sleep(Duration::from_millis(20)).await;
    });
    drop(runtime);
    release.send(()).unwrap();
    assert!(has_ended.recv_timeout(Duration::from_secs(10)).unwrap());
}

#[test]
fn a_paused_clock_waits_for_a_job() {
    block_on(async {
        crate::time::pause();
        let start = crate::time::Instant::now();
        let job = spawn_blocking(|| thread::sleep(Duration::from_millis(30)));
        let hour = shard::current().executor.spawn(crate::time::sleep(Duration::from_secs(3600)));
        job.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        hour.await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(3600));
    });
}

#[test]
fn many_jobs_from_many_runtimes_all_come_back() {
    let threads: Vec<_> = (0..4_u64)
        .map(|seed| {
            thread::spawn(move || {
                block_on(async {
                    let jobs: Vec<_> = (0..500).map(|n| spawn_blocking(move || n * seed)).collect();
                    let mut sum = 0;
                    for job in jobs {
                        sum += job.await.unwrap();
                    }
                    sum
                })
            })
        })
        .collect();
    for (seed, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), 499 * 500 / 2 * seed as u64);
    }
}

#[test]
fn a_forked_child_waits_for_no_lock_of_its_parents_and_has_threads_of_its_own() {
    let _watching = Runtime::new().unwrap();
    let (tell, told) = mpsc::channel::<()>();
    let waiting = Box::pin(POOL.get().submit(move || told.recv(), None));
    let job = Arc::clone(&waiting.job);
    let copy = std::cell::RefCell::new(Some(waiting));
    {
        // As if other threads were at it, which the child does not have.
        let _pool = lock(&POOL.get().state);
        let _stage = lock(&job.stage);
        in_child(|| {
            let mut waiting = copy.take().unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            match waiting.as_mut().poll(&mut cx) {
                Poll::Ready(Err(reason)) => assert_eq!(text_of(reason), NO_RUNTIME_SURVIVES),
                _ => panic!("a job of the parent is over, or waited for"),
            }
            drop(waiting);
            job.finish(Ok(Ok(())));
            assert_eq!(block_on(async { spawn_blocking(|| 5).await.unwrap() }), 5);
        });
    }
    tell.send(()).unwrap();
    block_on(copy.take().unwrap()).ok().unwrap().unwrap();
}
