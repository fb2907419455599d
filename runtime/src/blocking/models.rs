//! The pool's queue, its threads and the futures that wait, in every order.

use super::*;
use crate::sync::{AtomicU32, Ordering};
use loom::sync::Notify;
use std::sync::atomic::AtomicU32 as RealU32;
use std::task::Wake;

/// As in `executor::models`.
const PREEMPTIONS_MAX: usize = 2;

fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(body);
}

fn pool(threads_max: usize, spawn: fn(&'static Pool) -> io::Result<()>) -> &'static Pool {
    Box::leak(Box::new(Pool::new(threads_max, IDLE_MAX, spawn)))
}

fn spawn(pool: &'static Pool) -> io::Result<()> {
    loom::thread::spawn(|| pool.work());
    Ok(())
}

fn refuse(_pool: &'static Pool) -> io::Result<()> {
    loom::thread::yield_now();
    Err(io::ErrorKind::WouldBlock.into())
}

impl Pool {
    /// Threads without work end, these and those to come. Loom reports one that does not.
    fn let_idle_time_pass(&self) {
        self.work.let_time_pass(&self.state);
    }
}

struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// Polls when it was woken, and only then. Loom reports a deadlock if no wake comes.
fn wait_for<F: Future + Unpin>(mut future: F) -> F::Output {
    let bell = Arc::new(Bell(Notify::new()));
    let waker = Waker::from(Arc::clone(&bell));
    loop {
        if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        bell.0.wait();
    }
}

struct CountsDrop(Arc<RealU32>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn jobs_are_answered_though_threads_are_about_to_end() {
    model(|| {
        let pool = pool(1, spawn);
        let seen = Arc::new(AtomicU32::new(0));
        let clock = loom::thread::spawn(|| pool.let_idle_time_pass());
        for round in 1..=2 {
            let there = Arc::clone(&seen);
            // Relaxed: the job's answer has to carry the order.
            let job = pool.submit(move || there.store(round, Ordering::Relaxed), None);
            assert!(wait_for(job).is_ok());
            assert_eq!(seen.load(Ordering::Relaxed), round);
        }
        clock.join().unwrap();
    });
}

#[test]
fn two_who_submit_at_once_are_both_answered() {
    model(|| {
        let pool = pool(2, spawn);
        let other = loom::thread::spawn(|| assert!(wait_for(pool.submit(|| 1, None)).is_ok()));
        assert!(wait_for(pool.submit(|| 2, None)).is_ok());
        other.join().unwrap();
        pool.let_idle_time_pass();
    });
}

#[test]
fn a_job_that_is_given_up_runs_to_its_end_or_not_at_all() {
    model(|| {
        let pool = pool(1, spawn);
        let (drops, runs) = (Arc::new(RealU32::new(0)), Arc::new(RealU32::new(0)));
        let (held, there) = (CountsDrop(Arc::clone(&drops)), Arc::clone(&runs));
        let run = move || {
            there.fetch_add(1, Ordering::Relaxed);
            held
        };
        let mut job = pool.submit(run, None);
        let bell = Arc::new(Bell(Notify::new()));
        let waker = Waker::from(Arc::clone(&bell));
        let answer = Pin::new(&mut job).poll(&mut Context::from_waker(&waker));
        let is_ready = answer.is_ready();
        drop((answer, job));
        // One more, behind which the first has been dealt with.
        assert!(wait_for(pool.submit(|| (), None)).is_ok());
        assert!(!is_ready || runs.load(Ordering::Relaxed) == 1);
        assert_eq!(drops.load(Ordering::Relaxed), 1, "what the job held");
        drop(waker);
        assert_eq!(Arc::strong_count(&bell), 1, "a waker was kept");
        pool.let_idle_time_pass();
    });
}

#[test]
fn where_no_thread_can_be_made_all_are_told() {
    model(|| {
        let pool = pool(2, refuse);
        let other = loom::thread::spawn(|| assert!(wait_for(pool.submit(|| 1, None)).is_err()));
        assert!(wait_for(pool.submit(|| 2, None)).is_err());
        other.join().unwrap();
        assert_eq!(lock(&pool.state).threads, 0);
    });
}

#[test]
fn who_finds_the_last_place_taken_hears_that_its_thread_could_not_be_made() {
    model(|| {
        let pool = pool(1, refuse);
        let other = loom::thread::spawn(|| assert!(wait_for(pool.submit(|| 1, None)).is_err()));
        assert!(wait_for(pool.submit(|| 2, None)).is_err());
        other.join().unwrap();
        assert!(lock(&pool.state).queue.is_empty());
    });
}
