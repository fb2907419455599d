use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use super::*;
use crate::executor::JoinHandle;
use crate::runtime::Runtime;
use crate::shard;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn block_on<F: Future>(future: F) -> F::Output {
    Runtime::new().unwrap().block_on(future)
}

/// Runs with a clock that stands, and moves by itself.
fn block_on_paused<F: Future>(future: F) -> F::Output {
    block_on(async {
        pause();
        future.await
    })
}

fn spawn<F: Future + 'static>(future: F) -> JoinHandle<F::Output> {
    shard::current().executor.spawn(future)
}

/// Timers in the wheel of this shard.
fn timers() -> usize {
    shard::current().timers.borrow().len()
}

#[derive(Default)]
struct Count(AtomicU32);

impl Count {
    fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll_once<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

fn panic_text(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
    }
}

#[test]
fn a_sleep_is_never_early_and_hardly_late() {
    block_on(async {
        for duration in [Duration::from_nanos(1), Duration::from_micros(100), MS, 20 * MS] {
            let start = std::time::Instant::now();
            sleep(duration).await;
            let slept = start.elapsed();
            assert!(slept >= duration && slept < duration + SECOND, "{duration:?}: {slept:?}");
        }
    });
}

#[test]
fn a_deadline_is_fixed_at_creation() {
    block_on_paused(async {
        let start = Instant::now();
        let sleep = sleep(SECOND);
        advance(600 * MS).await;
        sleep.await;
        assert_eq!(start.elapsed(), SECOND);
    });
}

#[test]
fn zero_and_past_deadlines_are_ready_at_the_first_poll() {
    block_on(async {
        let waker = Waker::noop();
        assert!(poll_once(&mut sleep(Duration::ZERO), waker).is_ready());
        assert!(poll_once(&mut sleep_until(Instant::now() - MS), waker).is_ready());
        assert!(poll_once(&mut timeout(Duration::ZERO, pending::<()>()), waker).is_ready());
        assert_eq!(timers(), 0);
    });
}

#[test]
fn a_loop_of_zero_sleeps_lets_other_tasks_run() {
    block_on(async {
        let done = Rc::new(Cell::new(false));
        let other = spawn({
            let done = done.clone();
            async move {
                sleep(MS).await;
                done.set(true);
            }
        });
        while !done.get() {
            sleep(Duration::ZERO).await;
        }
        other.await.unwrap();

        done.set(false);
        let other = spawn({
            let done = done.clone();
            async move { done.set(true) }
        });
        while !done.get() {
            timeout(Duration::ZERO, pending::<()>()).await.unwrap_err();
        }
        other.await.unwrap();
    });
}

#[test]
fn far_deadlines_never_come_and_disturb_nobody() {
    block_on_paused(async {
        let waker = Waker::noop();
        let mut never = sleep(Duration::MAX);
        let mut far = timeout(Duration::from_secs(600 * 366 * 86_400), pending::<()>());
        assert!(poll_once(&mut never, waker).is_pending());
        assert!(poll_once(&mut far, waker).is_pending());
        let start = Instant::now();
        sleep(SECOND).await;
        assert_eq!(start.elapsed(), SECOND);
        advance(Duration::from_secs(500 * 366 * 86_400)).await;
        assert!(poll_once(&mut never, waker).is_pending());
        assert!(poll_once(&mut far, waker).is_pending());
        assert!(!never.is_elapsed());
        let mut ticks = interval(Duration::MAX);
        ticks.tick().await;
        assert!(poll_fn(|cx| Poll::Ready(ticks.poll_tick(cx).is_pending())).await);
    });
}

#[test]
fn a_completed_sleep_stays_complete_until_it_is_reset() {
    block_on_paused(async {
        let mut sleep = sleep(SECOND);
        assert!(!sleep.is_elapsed());
        (&mut sleep).await;
        assert!(sleep.is_elapsed());
        (&mut sleep).await;
        let next = Instant::now() + SECOND;
        Pin::new(&mut sleep).reset(next);
        assert!(!sleep.is_elapsed());
        assert_eq!(sleep.deadline(), next);
        (&mut sleep).await;
        assert_eq!(Instant::now(), next);
        assert_eq!(timers(), 0);
    });
}

#[test]
fn a_reset_wakes_the_waiting_task_at_the_new_deadline() {
    block_on_paused(async {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut sleep = sleep(SECOND);
        assert!(poll_once(&mut sleep, &waker).is_pending());
        Pin::new(&mut sleep).reset(Instant::now() + 3 * SECOND);
        advance(2 * SECOND).await;
        assert_eq!(count.get(), 0);
        assert!(poll_once(&mut sleep, &waker).is_pending());
        advance(SECOND).await;
        assert_eq!(count.get(), 1);

        // Fired, but not polled since: the new deadline counts, not the old.
        Pin::new(&mut sleep).reset(Instant::now() + SECOND);
        assert!(poll_once(&mut sleep, &waker).is_pending());
        Pin::new(&mut sleep).reset(Instant::now());
        assert!(poll_once(&mut sleep, &waker).is_pending(), "woken by the wheel, in the next turn");
        advance(Duration::ZERO).await;
        assert_eq!(count.get(), 2);
        assert!(poll_once(&mut sleep, &waker).is_ready());
    });
}

#[test]
fn the_latest_waker_is_woken() {
    block_on_paused(async {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut sleep = sleep(SECOND);
        assert!(poll_once(&mut sleep, &Waker::from(first.clone())).is_pending());
        assert!(poll_once(&mut sleep, &Waker::from(second.clone())).is_pending());
        assert_eq!(Arc::strong_count(&first), 1, "the waker before is let go");
        advance(SECOND).await;
        assert_eq!((first.get(), second.get()), (0, 1));
    });
}

#[test]
fn dropping_a_sleep_takes_its_timer_out() {
    block_on(async {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut sleeps: Vec<_> = (0..100).map(|_| sleep(SECOND)).collect();
        for sleep in &mut sleeps {
            assert!(poll_once(sleep, &waker).is_pending());
        }
        assert_eq!(timers(), 100);
        drop(sleeps);
        assert_eq!((timers(), Arc::strong_count(&count)), (0, 2));
    });
}

#[test]
fn a_waker_may_use_timers_while_it_is_dropped_replaced_or_woken() {
    /// Its task held another sleep, which goes with it, or in it.
    struct Nested(std::sync::Mutex<Option<Sleep>>);
    impl Wake for Nested {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
        }
    }
    fn nested() -> Waker {
        let mut inner = sleep(SECOND);
        assert!(poll_once(&mut inner, Waker::noop()).is_pending());
        Waker::from(Arc::new(Nested(Some(inner).into())))
    }
    block_on_paused(async {
        let mut outer = sleep(2 * SECOND);
        assert!(poll_once(&mut outer, &nested()).is_pending());
        assert!(poll_once(&mut outer, &nested()).is_pending());
        assert_eq!(timers(), 2);
        drop(outer);
        assert_eq!(timers(), 0);

        let mut outer = sleep(MS);
        assert!(poll_once(&mut outer, &nested()).is_pending());
        advance(MS).await;
        assert_eq!(timers(), 0);
        drop(outer);
    });
}

#[test]
fn a_sleep_dropped_on_another_thread_takes_its_timer_out() {
    block_on(async {
        let mut sleep = sleep(Duration::from_secs(1000));
        assert!(poll_once(&mut sleep, Waker::noop()).is_pending());
        thread::spawn(move || drop(sleep)).join().unwrap();
        while timers() > 0 {
            super::sleep(MS).await;
        }
    });
}

#[test]
fn a_sleep_may_outlive_its_runtime() {
    let count = Arc::new(Count::default());
    let mut kept = Vec::new();
    block_on(async {
        for _ in 0..3 {
            let mut sleep = sleep(2 * MS);
            assert!(poll_once(&mut sleep, &Waker::from(count.clone())).is_pending());
            kept.push(sleep);
        }
    });
    assert_eq!(Arc::strong_count(&count), 1, "the wheel's wakers went with the runtime");
    drop(kept.pop());
    let elsewhere = kept.pop().unwrap();
    thread::spawn(move || drop(elsewhere)).join().unwrap();
    let mut last = kept.pop().unwrap();
    Pin::new(&mut last).reset(Instant::now() + MS);
    block_on(last);
}

#[test]
fn a_sleep_moves_between_shards() {
    let mut short = sleep(30 * MS);
    let mut long = sleep(Duration::from_secs(1000));
    let deadline = short.deadline();
    let first = Runtime::new().unwrap();
    first.block_on(async {
        assert!(poll_once(&mut short, Waker::noop()).is_pending());
        assert!(poll_once(&mut long, Waker::noop()).is_pending());
        assert_eq!(timers(), 2);
    });
    let second = thread::spawn(move || {
        block_on(async {
            assert!(poll_once(&mut long, Waker::noop()).is_pending());
            assert_eq!(timers(), 1);
            short.await;
            Some(long) // wrapped, or it reads as a forgotten await
        })
    });
    let _long = second.join().unwrap();
    assert!(Instant::now() >= deadline);
    first.block_on(async {
        sleep(MS).await;
        assert_eq!(timers(), 0, "the first shard forgot both");
    });
}

#[test]
fn a_fired_sleep_that_another_thread_resets_waits_again() {
    block_on_paused(async {
        let mut sleep = sleep(SECOND);
        assert!(poll_once(&mut sleep, Waker::noop()).is_pending());
        advance(SECOND).await;
        let next = Instant::now() + SECOND;
        let reset = thread::spawn(move || {
            Pin::new(&mut sleep).reset(next);
            sleep
        });
        reset.join().unwrap().await;
        assert_eq!(Instant::now(), next);
    });
}

#[test]
fn a_reset_from_another_thread_reaches_the_waiting_task() {
    block_on(async {
        let count = Arc::new(Count::default());
        let mut sleep = sleep(Duration::from_secs(1000));
        assert!(poll_once(&mut sleep, &Waker::from(count.clone())).is_pending());
        let deadline = Instant::now() + MS;
        let sleep = thread::spawn(move || {
            Pin::new(&mut sleep).reset(deadline);
            sleep
        });
        let _sleep = sleep.join().unwrap();
        while count.get() == 0 {
            super::sleep(MS).await;
        }
        assert!(Instant::now() >= deadline);
    });
}

#[test]
fn outside_of_a_runtime_a_poll_panics_and_the_rest_works() {
    let mut sleep = sleep(MS);
    Pin::new(&mut sleep).reset(Instant::now() + 2 * MS);
    assert!(!sleep.is_elapsed());
    let text = panic_text(|| assert!(poll_once(&mut sleep, Waker::noop()).is_ready()));
    assert!(text.contains("no annulus runtime"), "{text}");
    assert!(panic_text(pause).contains("no annulus runtime"));
    drop(sleep);
}

#[test]
fn timers_fire_in_order() {
    block_on_paused(async {
        let order = Rc::new(RefCell::new(Vec::new()));
        let start = Instant::now();
        let tasks: Vec<_> = [7_u32, 3, 9, 3, 1, 5]
            .into_iter()
            .map(|ms| {
                let order = order.clone();
                spawn(async move {
                    sleep_until(start + ms * MS).await;
                    order.borrow_mut().push((ms, start.elapsed()));
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let expected = [1, 3, 3, 5, 7, 9].map(|ms| (ms, ms * MS));
        assert_eq!(*order.borrow(), expected);
    });
}

#[test]
fn advance_runs_what_became_due_before_it_returns() {
    block_on_paused(async {
        let ran = Rc::new(RefCell::new(Vec::new()));
        for ms in [20_u32, 10, 31] {
            let ran = ran.clone();
            drop(spawn(async move {
                sleep(ms * MS).await;
                ran.borrow_mut().push(ms);
            }));
        }
        advance(Duration::ZERO).await; // the tasks begin their sleeps
        advance(30 * MS).await;
        assert_eq!(*ran.borrow(), [10, 20]);
        advance(MS).await;
        assert_eq!(*ran.borrow(), [10, 20, 31]);
    });
}

// More than a turn runs.
#[test]
fn advance_runs_however_many_became_due_before_it_returns() {
    block_on_paused(async {
        let ran = Rc::new(Cell::new(0));
        for _ in 0..1000 {
            let ran = ran.clone();
            drop(spawn(async move {
                sleep(MS).await;
                ran.set(ran.get() + 1);
            }));
        }
        advance(Duration::ZERO).await; // the tasks begin their sleeps
        advance(MS).await;
        assert_eq!(ran.get(), 1000);
    });
}

#[test]
fn a_paused_clock_stands_for_one_shard_and_runs_on_after_resume() {
    block_on(async {
        pause();
        let paused = Instant::now();
        thread::sleep(5 * MS);
        assert_eq!(Instant::now(), paused);
        let there = thread::spawn(|| {
            block_on(async {
                let start = Instant::now();
                thread::sleep(2 * MS);
                start.elapsed()
            })
        });
        assert!(there.join().unwrap() >= 2 * MS);
        advance(SECOND).await;
        assert_eq!(paused.elapsed(), SECOND);
        resume();
        let start = std::time::Instant::now();
        sleep(3 * MS).await;
        assert!(start.elapsed() >= 3 * MS);
        assert!(paused.elapsed() >= SECOND + 3 * MS);
        assert!(paused.elapsed() < 2 * SECOND);
    });
}

#[test]
fn misuse_of_the_clock_panics_with_a_text() {
    block_on(async {
        assert_eq!(panic_text(resume), "time is not paused");
        let mut stray = pin!(advance(MS));
        let poll =
            || assert!(stray.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        assert!(panic_text(poll).starts_with("time is not paused"));
        pause();
        assert_eq!(panic_text(pause), "time is paused already");
    });
}

#[test]
fn a_timeout_gives_the_output_or_an_error_and_drops_the_future() {
    block_on_paused(async {
        assert_eq!(timeout(MS, async { 5 }).await, Ok(5));
        assert_eq!(timeout(2 * MS, async { sleep(MS).await }).await, Ok(()));

        let held = Rc::new(());
        let future = {
            let held = held.clone();
            async move {
                sleep(SECOND).await;
                drop(held);
            }
        };
        let error = timeout(MS, future).await.unwrap_err();
        assert_eq!(error.to_string(), "deadline has elapsed");
        assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::TimedOut);
        assert_eq!((Rc::strong_count(&held), timers()), (1, 0));

        let mut slow = pin!(sleep(SECOND));
        assert!(timeout(MS, &mut slow).await.is_err());
        assert!(timeout_at(Instant::now() + SECOND, slow).await.is_ok());
    });
}

#[test]
fn a_timeout_polls_its_future_first() {
    block_on_paused(async {
        // Both are over; the future wins.
        let both = timeout(MS, sleep(MS));
        advance(SECOND).await;
        assert_eq!(both.await, Ok(()));
        assert_eq!(timeout(Duration::ZERO, async { 1 }).await, Ok(1));
    });
}

#[test]
fn a_future_that_never_rests_is_timed_out_all_the_same() {
    block_on(async {
        let restless = async {
            loop {
                sleep(Duration::ZERO).await;
            }
        };
        assert!(timeout(5 * MS, restless).await.is_err());
    });
}

#[test]
fn an_interval_ticks_at_once_and_then_on_the_beat() {
    block_on_paused(async {
        let start = Instant::now();
        let mut ticks = interval(10 * MS);
        assert_eq!(ticks.period(), 10 * MS);
        for beat in 0..4 {
            assert_eq!(ticks.tick().await, start + beat * 10 * MS);
            assert_eq!(start.elapsed(), beat * 10 * MS);
            sleep(4 * MS).await;
        }
        let mut ticks = interval_at(Instant::now() + SECOND, MS);
        let start = Instant::now();
        ticks.tick().await;
        assert_eq!(start.elapsed(), SECOND);
    });
}

/// When ticks are given to a task that takes those of 0 and 10, and is busy from 12 to 35.
fn ticks_after_a_stall(behavior: MissedTickBehavior) -> Vec<u128> {
    block_on_paused(async {
        let start = Instant::now();
        let mut ticks = interval(10 * MS);
        ticks.set_missed_tick_behavior(behavior);
        assert_eq!(ticks.missed_tick_behavior(), behavior);
        ticks.tick().await;
        ticks.tick().await;
        advance(25 * MS).await;
        let mut given = Vec::new();
        for _ in 0..4 {
            ticks.tick().await;
            given.push(start.elapsed().as_millis());
        }
        given
    })
}

#[test]
fn missed_ticks_are_made_up_for_as_the_behavior_says() {
    assert_eq!(ticks_after_a_stall(MissedTickBehavior::Burst), [35, 35, 40, 50]);
    assert_eq!(ticks_after_a_stall(MissedTickBehavior::Delay), [35, 45, 55, 65]);
    assert_eq!(ticks_after_a_stall(MissedTickBehavior::Skip), [35, 40, 50, 60]);
}

#[test]
fn a_tick_that_is_given_up_is_not_lost() {
    block_on_paused(async {
        let start = Instant::now();
        let mut ticks = interval(10 * MS);
        ticks.tick().await;
        assert!(timeout(3 * MS, ticks.tick()).await.is_err());
        assert!(timeout(3 * MS, ticks.tick()).await.is_err());
        assert_eq!(ticks.tick().await, start + 10 * MS);
        assert_eq!(start.elapsed(), 10 * MS);
    });
}

#[test]
fn an_interval_can_be_reset() {
    block_on_paused(async {
        let start = Instant::now();
        let mut ticks = interval(10 * MS);
        ticks.tick().await;
        advance(4 * MS).await;
        ticks.reset();
        assert_eq!(ticks.tick().await, start + 14 * MS);
        ticks.reset_after(MS);
        assert_eq!(ticks.tick().await, start + 15 * MS);
        ticks.reset_immediately();
        assert_eq!(ticks.tick().await, start + 15 * MS);
        ticks.reset_at(start + 18 * MS);
        assert_eq!(ticks.tick().await, start + 18 * MS);
        assert_eq!(ticks.tick().await, start + 28 * MS);
    });
}

#[test]
fn an_interval_without_a_period_panics() {
    assert!(panic_text(|| drop(interval(Duration::ZERO))).contains("not zero"));
    assert!(panic_text(|| drop(interval_at(Instant::now(), Duration::ZERO))).contains("not zero"));
}

#[test]
fn instants_count_like_those_of_std() {
    let std = std::time::Instant::now();
    let start = Instant::from_std(std);
    let mut later = start + SECOND;
    assert_eq!(later.into_std(), std + SECOND);
    assert_eq!(Instant::from(std::time::Instant::from(later)), later);
    assert_eq!((later - start, start - later), (SECOND, Duration::ZERO));
    assert_eq!(later.checked_duration_since(start), Some(SECOND));
    assert_eq!(start.checked_duration_since(later), None);
    assert_eq!(start.saturating_duration_since(later), Duration::ZERO);
    assert_eq!(start.checked_add(Duration::MAX), None);
    assert_eq!(later.checked_sub(SECOND), Some(start));
    later -= SECOND;
    assert_eq!(later, start);
    later += SECOND;
    assert!(later > start && later - SECOND == start);
}

#[test]
fn ten_thousand_tasks_sleep_at_once() {
    block_on_paused(async {
        let start = Instant::now();
        let tasks: Vec<_> = (0..10_000_u32)
            .map(|number| spawn(sleep(Duration::from_micros(u64::from(number * 7919 % 10_000)))))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::from_micros(9999));
        assert_eq!(timers(), 0);
    });
}
