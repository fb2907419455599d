//! Timers that are cancelled, as most are, and timers that fire.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::timed;
use crate::subject::{Subject, on_task};

/// A usual timeout, which never comes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Timers that stand while others come and go end within this time, after the measurement.
const STANDING_MIN: Duration = Duration::from_secs(30);
const STANDING_STEP: Duration = Duration::from_millis(7);

/// Tasks that sleep again and again.
const SLEEPERS: u64 = 1000;
const SLEEP_MIN_US: u64 = 1_000;
const SLEEP_MAX_US: u64 = 19_000;

/// Arms a timer and cancels it, while so many others stand.
pub fn arm_and_cancel<R: Subject>(operations: u64, standing: usize) -> f64 {
    on_task::<R, _>(async move {
        let mut others: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::with_capacity(standing);
        for number in 0..standing as u32 {
            let sleep = R::sleep(STANDING_MIN + STANDING_STEP * number);
            let mut sleep = Box::pin(async move { drop(sleep.await) });
            assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            others.push(sleep);
        }
        timed(operations, async |timers| {
            for _ in 0..timers {
                let mut sleep = pin!(R::sleep(TIMEOUT));
                let armed = poll_fn(|cx| Poll::Ready(sleep.as_mut().poll(cx).is_pending()));
                assert!(armed.await);
            }
        })
        .await
    })
}

/// What timers that fire come to.
#[derive(Clone, Copy)]
pub struct Fired {
    /// From the time that was asked for to the poll, in the mean.
    pub late_ns: f64,
    /// Processor time of the thread, for each timer.
    pub cpu_ns: f64,
}

/// A thousand tasks sleep from 1 to 19 ms, again and again: 100 timers a millisecond.
pub fn fired<R: Subject>(operations: u64) -> Fired {
    on_task::<R, _>(async move {
        sleep_all::<R>(SLEEPERS).await;
        let cpu_ns = thread_cpu_ns();
        let late_ns = sleep_all::<R>(operations).await;
        let each = |sum: u64| sum as f64 / operations.next_multiple_of(SLEEPERS) as f64;
        Fired { late_ns: each(late_ns), cpu_ns: each(thread_cpu_ns() - cpu_ns) }
    })
}

/// Sleeps so often, in all tasks together. Returns by how much that came late, in sum.
async fn sleep_all<R: Subject>(timers: u64) -> u64 {
    let late_ns = Rc::new(Cell::new(0));
    let mut handles = Vec::with_capacity(SLEEPERS as usize);
    for number in 0..SLEEPERS {
        let late_ns = Rc::clone(&late_ns);
        handles.push(R::spawn(async move {
            let mut random = Random(number);
            for _ in 0..timers.div_ceil(SLEEPERS) {
                let us = SLEEP_MIN_US + random.next() % (SLEEP_MAX_US - SLEEP_MIN_US);
                let until = Instant::now() + Duration::from_micros(us);
                R::sleep(Duration::from_micros(us)).await;
                late_ns.set(late_ns.get() + until.elapsed().as_nanos() as u64);
            }
        }));
    }
    for handle in handles {
        R::value(handle.await);
    }
    late_ns.get()
}

/// Numbers that follow no pattern (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// The processor time that this thread has used.
fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a writable timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "clock_gettime(CLOCK_THREAD_CPUTIME_ID)");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
