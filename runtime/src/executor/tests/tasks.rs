//! Spawning, polling and waking on the own shard.

use super::{OnDrop, counting, executor, finished, idle, peek, settle, wanted};
use crate::executor::state::{Released, Shared};
use crate::executor::{Observer, Pace, TaskId, TaskInfo};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::Future;
use std::mem;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::thread;

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
        if mem::take(&mut first) {
            cx.waker().wake_by_ref();
            let waker = cx.waker().clone();
            waker.wake();
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
        if mem::take(&mut first) {
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
    assert_eq!(executor.run(6, &()), 6);
    assert_eq!(*order.borrow(), [0, 1, 2, 3, 0, 0]);
    assert!(executor.has_ready());
}

#[test]
fn run_keeps_to_its_budget_and_announces_each_poll() {
    let executor = executor();
    for _ in 0..5 {
        drop(executor.spawn(async {}));
    }
    let witness = Witness::default();
    assert_eq!((executor.run(3, &witness), witness.polls(), executor.len()), (3, (3, 3), 2));
    assert_eq!((executor.run(3, &witness), witness.polls(), executor.len()), (2, (5, 5), 0));
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

#[test]
fn two_part_count_adds_up_however_far_the_parts_drift() {
    let refs = Shared::held_and_one();
    for _ in 0..200_000 {
        refs.retain_local();
        assert_eq!(refs.release_shared(), Released::OthersRemain);
    }
    assert!(!refs.only_held());
    for _ in 0..300_000 {
        refs.retain_shared();
        refs.release_local();
    }
    assert!(!refs.only_held());
    refs.release_local();
    assert!(refs.only_held());
    assert_eq!(refs.merge(), Released::Last);
}

#[test]
fn an_observer_may_end_the_run() {
    let executor = executor();
    for _ in 0..5 {
        drop(executor.spawn(async {}));
    }
    let witness = Witness { patience: Some(2), ..Witness::default() };
    assert_eq!((executor.run(64, &witness), executor.len()), (2, 3));
    assert_eq!(executor.run(64, &()), 3);
}

#[test]
fn an_aborted_task_is_not_observed() {
    let executor = executor();
    let (future, _) = idle();
    let handle = executor.spawn(future);
    let entered = executor.enter();
    handle.abort();
    drop(entered);
    let witness = Witness::default();
    assert_eq!((executor.run(64, &witness), witness.polls(), executor.len()), (1, (0, 0), 0));
}

#[test]
fn a_task_knows_its_name_its_type_and_its_place() {
    struct Named;
    impl Future for Named {
        type Output = ();
        fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }
    }
    let executor = executor();
    let line = line!() + 1;
    drop(executor.spawn(Named));
    drop(executor.spawn_named("", async { [0u8; 333] }));
    drop(executor.spawn_named(&"long".repeat(100), Named));
    let witness = Witness::default();
    executor.run(64, &witness);
    let seen = witness.seen.borrow();
    let [first, empty, long] = &seen[..] else { panic!("{seen:?}") };
    assert!(first.type_name.ends_with("::Named"), "{first:?}");
    assert_eq!((first.name.as_deref(), first.place.line()), (None, line));
    assert_eq!((empty.name.as_deref(), empty.place.line()), (Some(""), line + 1));
    assert_eq!(long.name.as_deref(), Some(&*"long".repeat(100)));
    assert!(seen.iter().all(|seen| seen.place.file() == file!()), "{seen:?}");
    let ids: HashSet<TaskId> = seen.iter().map(|seen| seen.id).collect();
    assert_eq!(ids.len(), 3);
}

#[test]
fn the_current_task_is_known_while_it_is_polled_or_dropped() {
    let executor = Rc::new(executor());
    let seen = Rc::new(RefCell::new(Vec::new()));
    let look = {
        let (executor, seen) = (Rc::downgrade(&executor), Rc::clone(&seen));
        move || {
            let executor = executor.upgrade().unwrap();
            seen.borrow_mut().push(executor.current().map(|task| task.id()));
        }
    };
    for aborted in [false, true] {
        let dropped = OnDrop(look.clone());
        let polled = look.clone();
        let handle = executor.spawn(async move {
            let _dropped = dropped;
            polled();
            wanted(|| panic!("wanted"))
        });
        if aborted {
            handle.abort();
        }
        settle(&executor);
    }
    assert!(executor.current().is_none());
    let seen = seen.borrow();
    // Polled and dropped; and only dropped.
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|id| id.is_some() && *id == seen[0]), "{seen:?}");
}

/// Notes what it observes.
#[derive(Default)]
struct Witness {
    seen: RefCell<Vec<Seen>>,
    after: Cell<usize>,
    /// After so many polls in one run it has seen enough.
    patience: Option<usize>,
}

#[derive(Debug)]
struct Seen {
    id: TaskId,
    name: Option<String>,
    type_name: &'static str,
    place: &'static Location<'static>,
}

impl Witness {
    /// How many it saw begin, and end.
    fn polls(&self) -> (usize, usize) {
        (self.seen.borrow().len(), self.after.get())
    }
}

impl Observer for Witness {
    fn before_poll(&self, task: TaskInfo<'_>) {
        self.seen.borrow_mut().push(Seen {
            id: task.id(),
            name: task.name().map(str::to_owned),
            type_name: task.type_name(),
            place: task.location(),
        });
    }

    fn after_poll(&self, task: TaskInfo<'_>) -> Pace {
        assert_eq!(self.seen.borrow().last().map(|seen| seen.id), Some(task.id()));
        self.after.set(self.after.get() + 1);
        if Some(self.after.get()) == self.patience { Pace::Stop } else { Pace::GoOn }
    }
}
