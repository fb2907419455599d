//! Shards that are started, fail and are told to end while others send to them.

use super::*;
use crate::executor::{Executor, spawn_at};
use crate::sync::{Cell, thread_local};
use loom::thread::{self, JoinHandle};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const PREEMPTIONS_MAX: usize = 2;

thread_local! {
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

/// What `crew::Crew` makes of seats and a door, with shards that know no kernel.
struct Crew {
    seats: Seats<JoinHandle<()>>,
    door: Door,
    /// So many shards fail before they run.
    failing: AtomicU32,
}

impl Crew {
    fn new(failing: u32) -> Arc<Crew> {
        let failing = AtomicU32::new(failing);
        Arc::new(Crew { seats: Seats::new(1), door: Door::new(), failing })
    }

    fn mailbox(self: &Arc<Self>) -> SharedMailbox {
        self.seats.mailbox(0, &self.door, |mailbox| {
            let (crew, mailbox) = (Arc::clone(self), mailbox.clone());
            crew.door.enter();
            Some(thread::spawn(move || crew.run(&mailbox)))
        })
    }

    fn run(&self, mailbox: &SharedMailbox) {
        if self.failing.load(Ordering::Relaxed) > 0 {
            self.failing.fetch_sub(1, Ordering::Relaxed);
            self.seats.vacate(0, mailbox);
            mailbox.close_as_failed("it was to fail");
            return self.door.leave();
        }
        let executor = Executor::new(mailbox.clone());
        while !TOLD.with(Cell::get) {
            executor.take_mail(usize::MAX);
            executor.run(4, &());
            if !executor.has_ready() && !TOLD.with(Cell::get) && mailbox.prepare_sleep() {
                mailbox.wait_for_bell();
                mailbox.awake();
            }
        }
        self.seats.vacate(0, mailbox);
        drop(executor);
        self.door.leave();
    }

    fn end(&self) {
        self.door.shut();
        let mut threads = Vec::new();
        for (_, Taken { mailbox, thread }) in self.seats.clear() {
            mailbox.push_call(Box::new(|| TOLD.with(|told| told.set(true))));
            threads.push(thread);
        }
        assert!(self.door.wait(Instant::now() + Duration::from_secs(3600)));
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(body);
}

#[test]
fn what_is_sent_while_all_are_told_to_end_is_done_or_ended() {
    model(|| {
        let crew = Crew::new(0);
        let there = Arc::clone(&crew);
        let sender = thread::spawn(move || spawn_at(&there.mailbox(), || async {}));
        crew.end();
        // Who came behind the end was not started; all others have ended.
        let task = sender.join().unwrap();
        assert!(task.is_finished(), "it waits for ever");
    });
}

#[test]
fn what_is_sent_to_a_shard_that_fails_is_ended_and_its_seat_taken_again() {
    model(|| {
        let crew = Crew::new(1);
        let first = spawn_at(&crew.mailbox(), || async {});
        while !first.is_finished() {
            thread::yield_now();
        }
        let mut next = spawn_at(&crew.mailbox(), || async {});
        crew.end();
        let answer = Pin::new(&mut next).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(answer, Poll::Ready(Ok(()))), "{answer:?}");
    });
}
