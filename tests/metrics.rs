//! The figures of a shard: each moves for its reason, and for nothing else.

use std::future::{pending, poll_fn};
use std::io::{Read, Write};
use std::pin::pin;
use std::sync::mpsc::channel;
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use annulus::metrics::{Board, board};
use annulus::net::UnixStream;
use annulus::task::yield_now;
use annulus::time::{sleep, timeout};
use annulus::{Driver, Metrics, Runtime, metrics};

use common::each_driver;
use common::steps::{listen, pair, settle, with_peer};

mod common;

each_driver! {
    async fn every_poll_counts_once() {
        settle().await;
        let before = metrics();
        let task = annulus::spawn(async {
            let before = metrics().polls;
            for _ in 0..100 {
                yield_now().await;
            }
            metrics().polls - before
        });
        assert_eq!(task.await.unwrap(), 100);
        let after = metrics();
        // The task's first poll, and the one here that found it done.
        assert_eq!(after.polls - before.polls, 102);
    }

    fn each_round_of_the_loop_counts_once(driver: Driver) {
        let builder = Runtime::builder().driver(driver).event_interval(10);
        builder.build().unwrap().block_on(async {
            let before = metrics().turns;
            let task = annulus::spawn(async {
                for _ in 0..999 {
                    yield_now().await;
                }
            });
            task.await.unwrap();
            let turns = metrics().turns - before;
            assert!((100..=102).contains(&turns), "{turns} turns for 1000 polls by tens");
        });
    }

    async fn who_sleeps_takes_no_turn() {
        let before = settled().await;
        sleep(Duration::from_millis(50)).await;
        let after = metrics();
        assert!(after.turns - before.turns <= 3, "{:?}", (before, after));
        assert!(after.polls - before.polls <= 3, "{:?}", (before, after));
        assert!(after.enters - before.enters <= 3, "{:?}", (before, after));
        assert_eq!(after.remote_wakes, before.remote_wakes);
    }

    async fn wakes_from_elsewhere_count_and_wakes_from_here_do_not() {
        let (give, take) = channel::<Waker>();
        let waking = thread::spawn(move || take.into_iter().for_each(Waker::wake));
        let task = annulus::spawn(async move {
            for _ in 0..10 {
                let mut woken = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut woken, true) {
                        return Poll::Ready(());
                    }
                    give.send(cx.waker().clone()).unwrap();
                    Poll::Pending
                })
                .await;
            }
        });
        assert_eq!(metrics().remote_wakes, 0, "nobody has been polled yet");
        task.await.unwrap();
        let after = metrics();
        assert_eq!(after.remote_wakes, 10);
        waking.join().unwrap();
        for _ in 0..10 {
            annulus::spawn(yield_now()).await.unwrap();
        }
        assert_eq!(metrics().remote_wakes, 10);
    }

    async fn living_tasks_are_counted() {
        assert_eq!(metrics().tasks, 0);
        let tasks: Vec<_> = (0..100).map(|_| annulus::spawn(pending::<()>())).collect();
        assert_eq!(metrics().tasks, 100);
        tasks[..40].iter().for_each(|task| task.abort());
        settle().await;
        assert_eq!(metrics().tasks, 60);
        assert!(annulus::spawn(async { metrics().tasks }).await.unwrap() == 61);
        assert_eq!(metrics().tasks, 60);
    }

    async fn open_connections_are_counted_wherever_they_come_from() {
        assert_eq!(metrics().connections, 0);
        let (one, other) = pair().await;
        assert_eq!(metrics().connections, 2);
        let (unix, twin) = UnixStream::pair().unwrap();
        assert_eq!(metrics().connections, 4);
        drop((one, twin));
        settle().await;
        assert_eq!(metrics().connections, 2);
        // One on its way is nobody's.
        let detached = unix.detach().unwrap();
        assert_eq!(metrics().connections, 1);
        let unix = UnixStream::attach(detached).unwrap();
        assert_eq!(metrics().connections, 2);
        let (reading, writing) = other.into_split();
        drop(reading);
        assert_eq!(metrics().connections, 2);
        drop((writing, unix));
        settle().await;
        assert_eq!(metrics().connections, 0);
    }

    async fn a_listener_and_a_connect_that_fails_are_no_connections() {
        let (listener, addr) = listen().await;
        drop(listener);
        annulus::net::TcpStream::connect(addr).await.unwrap_err();
        settle().await;
        assert_eq!((metrics().connections, metrics().accept_pauses), (0, 0));
    }

    async fn what_goes_through_the_kernel_is_counted() {
        let uring = annulus::driver_info().driver() == Driver::Uring;
        let (mut stream, peer) = with_peer(|mut stream| {
            let mut buf = [7; 10];
            for _ in 0..100 {
                stream.write_all(&buf).unwrap();
                stream.read_exact(&mut buf).unwrap();
            }
        })
        .await;
        let before = settled().await;
        let mut buf = [0; 10];
        for _ in 0..100 {
            stream.read_exact(&mut buf).await.unwrap();
            stream.write_all(&buf).await.unwrap();
        }
        stream.flush().await.unwrap();
        let after = metrics();
        peer.await;
        let enters = after.enters - before.enters;
        assert!(enters > 0);
        assert!(after.completions > before.completions);
        assert_eq!(after.submissions > before.submissions, uring);
        assert_eq!((after.overflows, after.stale_keys, after.pool_dry), (0, 0, 0));
        if uring {
            let before = settled().await.enters;
            for _ in 0..10_000 {
                yield_now().await;
            }
            assert_eq!(metrics().enters, before, "nothing was to be submitted");
        }
    }

    async fn a_sleeping_shard_is_parked_and_a_working_one_busy() {
        // Each time is taken around the metrics that it bounds, as what else runs on the machine
        // may hold this up anywhere.
        let start = Instant::now();
        let before = metrics();
        sleep(NAP).await;
        let awake = Instant::now();
        let after_sleep = metrics();
        let (parked, slept) = (after_sleep.parked - before.parked, start.elapsed());
        assert!(parked + SLACK >= NAP && parked <= slept + SLACK, "{parked:?} of {slept:?}");
        work(NAP);
        let after = metrics();
        let (busy, worked) = (after.busy - after_sleep.busy, awake.elapsed());
        assert!(busy + SLACK >= NAP && busy <= worked + SLACK, "{busy:?} of {worked:?}");
        assert!(after.parked - after_sleep.parked <= SLACK);
    }

    #[alone]
    async fn what_the_kernel_does_within_a_wait_is_work() {
        let (mut stream, peer) = with_peer(|mut stream| {
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
        })
        .await;
        settle().await;
        let (before, cpu, start) = (metrics(), thread_cpu(), Instant::now());
        let block = [7; 4096];
        while start.elapsed() < 3 * NAP {
            // They go out together, with the call that waits for the timer.
            for _ in 0..15 {
                stream.write_all(&block).await.unwrap();
            }
            sleep(Duration::from_micros(50)).await;
        }
        let (busy, cpu) = (metrics().busy - before.busy, thread_cpu() - cpu);
        let life = start.elapsed();
        drop(stream);
        peer.await;
        // The processor time is looked at every 10 ms.
        assert!(busy + SLACK >= cpu, "{busy:?} busy, with {cpu:?} of the processor");
        assert!(busy <= life + SLACK, "{busy:?} busy in {life:?}");
    }

    fn a_runtime_that_nobody_runs_is_parked(driver: Driver) {
        let runtime = common::runtime(driver);
        let board = runtime.block_on(async { board() });
        let before = board.read();
        thread::sleep(NAP);
        let after = board.read();
        assert_eq!(after.busy, before.busy);
        assert!(after.parked - before.parked + SLACK >= NAP);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async { panic!("this panic is wanted") });
        }));
        panicked.unwrap_err();
        let before = board.read();
        thread::sleep(Duration::from_millis(10));
        assert_eq!(board.read().busy, before.busy);
        assert_eq!(board.read().longest_poll, before.longest_poll);
    }

    fn the_future_of_block_on_is_polled_and_measured_too(driver: Driver) {
        let runtime = common::runtime(driver);
        let board = runtime.block_on(async { board() });
        assert_eq!(board.read().polls, 1);
        runtime.block_on(async { work(LONG) });
        assert_eq!(board.read().polls, 2);
        assert!(board.read().longest_poll + SLACK >= LONG);
    }

    #[alone]
    async fn the_longest_poll_is_kept_and_forgotten() {
        assert!(metrics().longest_poll < LONG, "{:?}", metrics());
        annulus::spawn(async { work(LONG) }).await.unwrap();
        let after = metrics();
        assert!(after.longest_poll + SLACK >= LONG, "{after:?}");
        assert_eq!(after.longest_poll_lately, after.longest_poll);
        // A shard that works forgets, and so does one that sleeps.
        for working in [true, false] {
            annulus::spawn(async { work(LONG) }).await.unwrap();
            let start = Instant::now();
            while working && start.elapsed() < Duration::from_millis(2100) {
                yield_now().await;
            }
            if !working {
                sleep(Duration::from_millis(2100)).await;
            }
            let later = metrics();
            assert!(later.longest_poll_lately < LONG, "{later:?}");
            assert!(later.longest_poll >= after.longest_poll, "{later:?}");
        }
    }

    async fn a_poll_under_way_is_seen_from_elsewhere() {
        let (here, (give, take)) = (board(), channel());
        // Before the poll begins, however late the thread is.
        let start = Instant::now();
        let watching = thread::spawn(move || {
            loop {
                let seen = here.read();
                if seen.longest_poll >= LONG && seen.longest_poll_lately >= LONG {
                    give.send(()).unwrap();
                    return (seen.polls, start.elapsed());
                }
            }
        });
        let polls = annulus::spawn(async move {
            take.recv().unwrap();
            metrics().polls
        });
        let polls = polls.await.unwrap();
        let (seen, after) = watching.join().unwrap();
        // Within the poll it counts; others see its number when its turn is over.
        assert!(seen < polls, "it was seen while it was under way");
        assert!(after + SLACK >= LONG);
    }

    fn a_board_outlives_its_shard(driver: Driver) {
        let runtime = common::runtime(driver);
        let (board, last) = runtime.block_on(async {
            drop(annulus::spawn(pending::<()>()));
            let (_one, _other) = pair().await;
            annulus::spawn(async { work(Duration::from_millis(5)) }).await.unwrap();
            (board(), metrics())
        });
        assert_eq!(last.tasks, 1);
        drop(runtime);
        let end = board.read();
        assert_eq!((end.tasks, end.connections), (0, 0));
        assert!(end.polls >= last.polls && end.turns >= last.turns);
        // Others come and go; the shard's time stands still.
        for _ in 0..3 {
            common::runtime(driver).block_on(settle());
        }
        assert_eq!(board.read(), end);
    }

    fn boards_are_not_mixed_up(driver: Driver) {
        let shards = [10, 20, 30].map(|tasks| {
            thread::spawn(move || {
                let runtime = common::runtime(driver);
                runtime.block_on(async {
                    for _ in 0..tasks {
                        drop(annulus::spawn(pending::<()>()));
                    }
                    settle().await;
                    (board(), metrics().tasks)
                })
            })
        });
        for (shard, tasks) in shards.into_iter().zip([10, 20, 30]) {
            let (board, counted) = shard.join().unwrap();
            assert_eq!(counted, tasks);
            assert_eq!(board.read().tasks, 0);
        }
    }

    // 64 polls of a millisecond must not keep sockets, timers and mail waiting for 64 of them.
    async fn slow_tasks_leave_the_turn_after_a_millisecond() {
        let polls = if slow_polls_of(Duration::from_millis(2)).await { 0 } else { 1 };
        assert_eq!(polls, 0, "several slow polls fit into one turn");
    }

    async fn quick_tasks_share_a_turn() {
        let tasks: Vec<_> = (0..50).map(|_| annulus::spawn(yield_now())).collect();
        let before = metrics();
        for task in tasks {
            task.await.unwrap();
        }
        let turns = metrics().turns - before.turns;
        assert!(turns <= 25, "{turns} turns for 100 polls of nothing");
    }

    async fn a_timer_fires_between_slow_tasks() {
        let burning: Vec<_> = (0..64)
            .map(|_| {
                annulus::spawn(async {
                    loop {
                        work(Duration::from_millis(2));
                        yield_now().await;
                    }
                })
            })
            .collect();
        let mut nap = pin!(sleep(Duration::from_millis(1)));
        let before = metrics().polls;
        timeout(Duration::from_secs(20), &mut nap).await.unwrap();
        let polls = metrics().polls - before;
        // This future is polled at the end of the turn in which the timer fires.
        assert!(polls <= 8, "a timer of 1 ms waited for {polls} polls of 2 ms");
        burning.iter().for_each(|task| task.abort());
    }
}

#[test]
fn figures_cross_threads() {
    fn is_sent<T: Send + Sync>() {}
    is_sent::<Board>();
    is_sent::<Metrics>();
}

#[test]
fn a_shard_without_a_place_in_the_file_is_measured_all_the_same() {
    common::Test::named("a_shard_without_a_place_in_the_file").alone().plain(|| {
        let runtime = |_| Runtime::builder().driver(Driver::Epoll).recv_pool(1, 256).build();
        let boards: Vec<_> =
            (0..1100).map(|number| runtime(number).unwrap().block_on(async { board() })).collect();
        let last = boards.last().unwrap().read();
        assert_eq!((last.polls, last.tasks), (1, 0));
        assert!(boards.iter().all(|board| board.read().polls == 1));
    });
}

/// Whether at most one of 20 slow polls was made in each turn.
async fn slow_polls_of(length: Duration) -> bool {
    let tasks: Vec<_> = (0..20).map(|_| annulus::spawn(async move { work(length) })).collect();
    let before = metrics().turns;
    for task in tasks {
        task.await.unwrap();
    }
    metrics().turns - before >= 20
}

/// The figures when everything that was begun is over.
async fn settled() -> Metrics {
    settle().await;
    metrics()
}

/// Keeps the processor busy.
fn work(length: Duration) {
    let start = Instant::now();
    while start.elapsed() < length {
        std::hint::spin_loop();
    }
}

/// The processor time of this thread.
fn thread_cpu() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is valid for writing.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    assert_eq!(answer, 0);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

const NAP: Duration = Duration::from_millis(200);
/// Longer than anything that a loaded machine adds to a poll.
const LONG: Duration = Duration::from_millis(100);
/// What two looks at two clocks, and a loaded machine, may be apart.
const SLACK: Duration = Duration::from_millis(15);
