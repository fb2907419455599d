//! Timers: never early, never in the way, and as told under a paused clock.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use annulus::time::{
    Instant, MissedTickBehavior, advance, interval, pause, sleep, sleep_until, timeout,
};

use common::each_driver;
use common::peer::peer;
use common::steps::{eventually, poll_once, settle};

mod common;

each_driver! {
    async fn a_sleep_is_never_early() {
        for micros in [1, 10, 100, 500, 999, 1000, 1001, 1500, 2500, 10_000, 33_333] {
            let wanted = Duration::from_micros(micros);
            let start = std::time::Instant::now();
            sleep(wanted).await;
            let slept = start.elapsed();
            assert!(slept >= wanted, "a sleep of {wanted:?} took {slept:?}");
        }
    }

    async fn many_sleeps_at_once_are_never_early_and_all_end() {
        let tasks: Vec<_> = (0..2000_u64)
            .map(|number| {
                let wanted = Duration::from_micros(number * 7919 % 50_000);
                annulus::spawn(async move {
                    let start = std::time::Instant::now();
                    sleep(wanted).await;
                    assert!(start.elapsed() >= wanted, "a sleep of {wanted:?} was early");
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }

    async fn deadlines_of_zero_or_in_the_past_are_over_at_once() {
        sleep(Duration::ZERO).await;
        sleep_until(Instant::now()).await;
        let past = Instant::now();
        sleep(Duration::from_millis(5)).await;
        sleep_until(past).await;
    }

    async fn a_loop_of_zero_sleeps_does_not_starve_sockets() {
        let addr = common::steps::serve_echo().await;
        let busy = annulus::spawn(async {
            loop {
                sleep(Duration::ZERO).await;
            }
        });
        peer(move || {
            common::peer::echo(&common::peer::connect(addr), common::bytes::Keyed(1), 50_000);
        })
        .await;
        busy.abort();
    }

    async fn a_deadline_is_set_when_the_sleep_is_made() {
        let wanted = Duration::from_millis(30) * common::slower();
        let mut sleeping = pin!(sleep(wanted));
        thread::sleep(wanted);
        // Polled for the first time when it is already over.
        let start = std::time::Instant::now();
        sleeping.as_mut().await;
        assert!(start.elapsed() < wanted, "the sleep began at its first poll");
    }

    async fn the_longest_sleeps_mean_never() {
        let far = [Duration::MAX, Duration::from_secs(u64::MAX / 4), Duration::from_secs(1 << 40)];
        for duration in far {
            let mut sleeping = pin!(sleep(duration));
            assert!(poll_once(sleeping.as_mut()).await.is_pending());
            // Other timers go on beside it.
            timeout(Duration::from_millis(2), sleeping).await.unwrap_err();
            assert_eq!(timeout(duration, async { 1 }).await.unwrap(), 1);
        }
    }

    async fn sleeps_end_in_the_order_of_their_deadlines() {
        pause();
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        let tasks: Vec<_> = [50_u64, 10, 40, 7000, 20, 30, 1, 600_000, 5000]
            .into_iter()
            .map(|ms| {
                let order = Rc::clone(&order);
                annulus::spawn(async move {
                    sleep(Duration::from_millis(ms)).await;
                    order.borrow_mut().push(ms);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.borrow(), [1, 10, 20, 30, 40, 50, 5000, 7000, 600_000]);
    }

    #[deadline_s(60)]
    async fn a_million_timers_are_armed_and_dropped() {
        let mut sleeps = Vec::new();
        for number in 0..1_000_000_u64 {
            let mut sleeping = Box::pin(sleep(Duration::from_millis(60_000 + number % 100_000)));
            assert!(poll_once(sleeping.as_mut()).await.is_pending());
            sleeps.push(sleeping);
        }
        sleep(Duration::from_millis(1)).await;
        drop(sleeps);
        sleep(Duration::from_millis(1)).await;
    }

    async fn a_hundred_thousand_timers_that_fire_all_fire() {
        pause();
        let fired = Rc::new(Cell::new(0));
        for number in 0..100_000_u64 {
            let fired = Rc::clone(&fired);
            drop(annulus::spawn(async move {
                sleep(Duration::from_micros(number * 37)).await;
                fired.set(fired.get() + 1);
            }));
        }
        settle().await;
        advance(Duration::from_secs(10)).await;
        eventually("all timers fire", || fired.get() == 100_000).await;
    }

    async fn a_timeout_gives_the_result_or_ends_in_time() {
        assert_eq!(timeout(Duration::from_secs(60), async { 5 }).await.unwrap(), 5);
        let start = std::time::Instant::now();
        let wanted = Duration::from_millis(10);
        let error = timeout(wanted, std::future::pending::<()>()).await.unwrap_err();
        assert!(start.elapsed() >= wanted);
        assert!(!error.to_string().is_empty());
    }

    async fn a_timeout_of_zero_lets_a_ready_future_through() {
        assert_eq!(timeout(Duration::ZERO, async { 5 }).await.unwrap(), 5);
        timeout(Duration::ZERO, std::future::pending::<()>()).await.unwrap_err();
    }

    async fn a_timeout_belongs_to_one_operation() {
        let (mut stream, _other) = common::steps::pair().await;
        let mut buf = [0; 8];
        timeout(Duration::from_millis(5), stream.read(&mut buf)).await.unwrap_err();
        // The next read has no deadline: it is still waiting long after the first one's.
        let mut reading = pin!(stream.read(&mut buf));
        assert!(poll_once(reading.as_mut()).await.is_pending());
        sleep(Duration::from_millis(20)).await;
        assert!(poll_once(reading.as_mut()).await.is_pending());
    }

    async fn an_interval_ticks_at_once_and_then_never_early() {
        let period = Duration::from_millis(5);
        let start = Instant::now();
        let mut ticks = interval(period);
        for number in 0..10 {
            let due = ticks.tick().await;
            assert!(Instant::now() >= start + period * number);
            assert!(due >= start + period * number);
        }
    }

    async fn a_paused_clock_stands_still_and_jumps_to_the_next_timer() {
        pause();
        let start = Instant::now();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(Instant::now(), start);
        let real = std::time::Instant::now();
        sleep(Duration::from_secs(24 * 3600)).await;
        let passed = Instant::now() - start;
        assert!(passed >= Duration::from_secs(24 * 3600));
        assert!(passed < Duration::from_secs(24 * 3600 + 1));
        assert!(real.elapsed() < Duration::from_secs(10), "the clock was not paused");
    }

    #[deadline_s(20)]
    async fn what_is_overdue_fires_though_a_blocking_job_holds_the_paused_clock() {
        let (end, ended) = channel();
        let (begin, begun) = channel();
        let job = annulus::task::spawn_blocking(move || {
            begin.send(()).unwrap();
            ended.recv().unwrap();
        });
        eventually("the job begins", || begun.try_recv().is_ok()).await;
        let overdue = sleep(Duration::from_millis(1));
        // The time passes within one poll, before anybody looks at the clock.
        thread::sleep(Duration::from_millis(5));
        pause();
        overdue.await;
        end.send(()).unwrap();
        job.await.unwrap();
    }

    async fn advance_fires_what_is_due_and_nothing_else() {
        pause();
        let start = Instant::now();
        let mut soon = pin!(sleep(Duration::from_millis(100)));
        let mut later = pin!(sleep(Duration::from_millis(200)));
        assert!(poll_once(soon.as_mut()).await.is_pending());
        assert!(poll_once(later.as_mut()).await.is_pending());
        advance(Duration::from_millis(99)).await;
        assert_eq!(start.elapsed(), Duration::from_millis(99));
        assert!(poll_once(soon.as_mut()).await.is_pending());
        advance(Duration::from_millis(2)).await;
        assert!(poll_once(soon.as_mut()).await.is_ready());
        assert!(poll_once(later.as_mut()).await.is_pending());
        advance(Duration::from_millis(200)).await;
        assert!(poll_once(later.as_mut()).await.is_ready());
    }

    async fn missed_ticks_burst_by_default() {
        let due = late_ticks(None).await;
        assert_eq!(due, [0, 100, 200, 300, 400]);
    }

    async fn missed_ticks_may_burst() {
        let due = late_ticks(Some(MissedTickBehavior::Burst)).await;
        assert_eq!(due, [0, 100, 200, 300, 400]);
    }

    async fn missed_ticks_may_delay_the_next() {
        let due = late_ticks(Some(MissedTickBehavior::Delay)).await;
        assert_eq!(due, [0, 100, 200, 450, 550]);
    }

    async fn missed_ticks_may_be_skipped() {
        let due = late_ticks(Some(MissedTickBehavior::Skip)).await;
        assert_eq!(due, [0, 100, 200, 400, 500]);
    }

    async fn a_timer_may_be_dropped_on_another_thread() {
        for _ in 0..20 {
            let mut sleeping = Box::pin(sleep(Duration::from_millis(20)));
            assert!(poll_once(sleeping.as_mut()).await.is_pending());
            peer(move || drop(sleeping)).await;
        }
        sleep(Duration::from_millis(30)).await;
    }

    fn a_timer_may_be_dropped_after_its_runtime(driver: Driver) {
        let runtime = common::runtime(driver);
        let mut sleeping = Box::pin(sleep(Duration::from_secs(60)));
        runtime.block_on(async {
            assert!(poll_once(sleeping.as_mut()).await.is_pending());
        });
        drop(runtime);
        drop(sleeping);
    }

    async fn timers_do_not_starve_under_a_storm_of_input() {
        let (mut stream, flood) = common::steps::with_peer(|mut stream| {
            use std::io::Write;
            let noise = vec![0; 1 << 16];
            while stream.write_all(&noise).is_ok() {}
        })
        .await;
        let sink = annulus::spawn(async move {
            let mut buf = vec![0; 1 << 16];
            while stream.read(&mut buf).await.is_ok_and(|n| n > 0) {}
        });
        for _ in 0..50 {
            sleep(Duration::from_millis(1)).await;
        }
        sink.abort();
        flood.await;
    }
}

// An idle clock that is stopped goes on to whatever is due next.
#[test]
fn never_is_never_also_to_a_clock_that_was_stopped_later() {
    let mut never = Box::pin(sleep(Duration::MAX));
    let made = std::time::Instant::now();
    while made.elapsed() < Duration::from_millis(2) {}
    let runtime = annulus::Runtime::builder().start_paused(true).build().unwrap();
    let (tell, told) = channel();
    let mut tell = Some(tell);
    runtime.block_on(poll_fn(|cx| {
        assert!(never.as_mut().poll(cx).is_pending(), "it has come");
        if let Some(tell) = tell.take() {
            let waker = cx.waker().clone();
            thread::spawn(move || {
                // Time enough for the clock to move, if it does.
                thread::sleep(Duration::from_millis(20));
                tell.send(()).unwrap();
                waker.wake();
            });
        }
        told.try_recv().map_or(Poll::Pending, Poll::Ready)
    }));
}

#[annulus::test(start_paused = true)]
async fn a_test_may_start_with_a_paused_clock() {
    let real = std::time::Instant::now();
    sleep(Duration::from_secs(3600)).await;
    assert!(real.elapsed() < Duration::from_secs(10));
}

/// When the first five ticks of an interval of 100 ms were due, in milliseconds. The third is taken
/// 50 ms after the fourth was due.
async fn late_ticks(behavior: Option<MissedTickBehavior>) -> Vec<u128> {
    pause();
    let start = Instant::now();
    let mut ticks = interval(Duration::from_millis(100));
    if let Some(behavior) = behavior {
        ticks.set_missed_tick_behavior(behavior);
    }
    let mut due = Vec::new();
    for number in 0..5 {
        if number == 2 {
            advance(Duration::from_millis(250)).await;
        }
        due.push((ticks.tick().await - start).as_millis());
    }
    due
}
