//! Wakers, called by a neighbour and by another thread.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::hint::spin_loop;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::time::Instant;

use super::timed;
use crate::place;
use crate::subject::{Subject, on_task};

/// What one task sets and another waits for.
#[derive(Default)]
struct Flag {
    raised: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Flag {
    fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = &*self.waiting.borrow() {
            waker.wake_by_ref();
        }
    }

    async fn lowered(&self) {
        poll_fn(|cx| {
            if self.raised.take() {
                return Poll::Ready(());
            }
            match &mut *self.waiting.borrow_mut() {
                // Does nothing if it would wake the same task.
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        })
        .await;
    }
}

/// Two tasks of one shard wake each other: a round trip.
pub fn local<R: Subject>(operations: u64) -> f64 {
    on_task::<R, _>(timed(operations, async |round_trips| {
        let (ping, pong) = (Rc::<Flag>::default(), Rc::<Flag>::default());
        let answering = {
            let (ping, pong) = (Rc::clone(&ping), Rc::clone(&pong));
            R::spawn(async move {
                for _ in 0..round_trips {
                    ping.lowered().await;
                    pong.raise();
                }
            })
        };
        for _ in 0..round_trips {
            ping.raise();
            pong.lowered().await;
        }
        R::value(answering.await);
    }))
}

/// A task that another thread wakes, as often as it likes.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    /// How often the busy task had been polled when it was rung.
    at: AtomicU64,
}

/// So many tasks are woken in turn, so that the other thread need not wait for one.
const BELLS: usize = 64;

/// What waking a busy shard comes to.
#[derive(Clone, Copy)]
pub struct Busy {
    /// For each wake that was served.
    pub ns: f64,
    /// Polls of a task that always yields between a wake and its service: as many or fewer for
    /// 999 wakes of 1000. The others are those whose ringer was interrupted while it rang.
    pub late_polls: u64,
}

/// Another thread wakes tasks of a shard that always has something to do.
pub fn busy<R: Subject>(operations: u64) -> Busy {
    on_task::<R, _>(async move {
        let bells: Arc<Vec<Bell>> = Arc::new((0..BELLS).map(|_| Bell::default()).collect());
        let polls = Arc::new(AtomicU64::new(0));
        let ended = Arc::new(AtomicBool::new(false));
        let served = Rc::new(Cell::new(0));
        let delays = Rc::new(RefCell::new(Vec::with_capacity(operations as usize * 2)));
        let (sender, wakers) = mpsc::channel();
        for number in 0..BELLS {
            let (bells, polls) = (Arc::clone(&bells), Arc::clone(&polls));
            let (served, delays) = (Rc::clone(&served), Rc::clone(&delays));
            let mut sender = Some(sender.clone());
            R::detach(R::spawn(poll_fn(move |cx| {
                if let Some(sender) = sender.take() {
                    // The task and so its waker stay the same.
                    sender.send((number, cx.waker().clone())).expect("the ringer waits");
                }
                let bell = &bells[number];
                if bell.rung.load(Ordering::Acquire) {
                    let late = polls.load(Ordering::Relaxed) - bell.at.load(Ordering::Relaxed);
                    delays.borrow_mut().push(late);
                    served.set(served.get() + 1);
                    bell.rung.store(false, Ordering::Release);
                }
                Poll::<()>::Pending
            })));
        }
        let ringer = {
            let (bells, polls, ended) = (bells, Arc::clone(&polls), Arc::clone(&ended));
            place::elsewhere(move || ring(&bells, &polls, &ended, &wakers))
        };
        let warm_up = operations / super::WARM_UP_PART;
        while served.get() < warm_up {
            polls.fetch_add(1, Ordering::Relaxed);
            R::yield_now().await;
        }
        delays.borrow_mut().clear();
        let (start, before) = (Instant::now(), served.get());
        while served.get() - before < operations {
            polls.fetch_add(1, Ordering::Relaxed);
            R::yield_now().await;
        }
        let ns = start.elapsed().as_nanos() as f64 / (served.get() - before) as f64;
        ended.store(true, Ordering::Relaxed);
        ringer.join().expect("the ringer ends");
        let mut delays = delays.take();
        delays.sort_unstable();
        Busy { ns, late_polls: delays[delays.len() * 999 / 1000] }
    })
}

/// The other thread: rings every bell that is silent.
fn ring(
    bells: &[Bell],
    polls: &AtomicU64,
    ended: &AtomicBool,
    wakers: &mpsc::Receiver<(usize, Waker)>,
) {
    let mut all = vec![Waker::noop().clone(); bells.len()];
    for _ in bells {
        let (number, waker) = wakers.recv().expect("every task sends its waker");
        all[number] = waker;
    }
    while !ended.load(Ordering::Relaxed) {
        for (bell, waker) in bells.iter().zip(&all) {
            if bell.rung.load(Ordering::Acquire) {
                spin_loop();
                continue;
            }
            bell.at.store(polls.load(Ordering::Relaxed), Ordering::Relaxed);
            bell.rung.store(true, Ordering::Release);
            waker.wake_by_ref();
        }
    }
}

/// One side of a ping-pong between threads.
struct Side<'a> {
    own: &'a AtomicBool,
    others: &'a AtomicBool,
    other: Waker,
}

impl<'a> Side<'a> {
    /// Exchanges wakers, which stay the same as the tasks do.
    async fn meet(
        own: &'a AtomicBool,
        others: &'a AtomicBool,
        sender: &mpsc::Sender<Waker>,
        receiver: &mpsc::Receiver<Waker>,
    ) -> Self {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        sender.send(waker).expect("the other side waits");
        Self { own, others, other: receiver.recv().expect("the other side sends") }
    }

    fn strike(&self) {
        self.others.store(true, Ordering::Release);
        self.other.wake_by_ref();
    }

    async fn returned(&self) {
        poll_fn(|_| match self.own.swap(false, Ordering::Acquire) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

/// Two shards that sleep wake each other: a wake, which is half a round trip.
pub fn sleeping<R: Subject>(operations: u64) -> f64 {
    let (left_waker, for_right) = mpsc::channel();
    let (right_waker, for_left) = mpsc::channel();
    let raised: Arc<[AtomicBool; 2]> = Arc::default();
    let total = operations / super::WARM_UP_PART + operations;
    let flags = Arc::clone(&raised);
    let other = place::elsewhere(move || {
        on_task::<R, _>(async move {
            let side = Side::meet(&flags[1], &flags[0], &right_waker, &for_right).await;
            for _ in 0..total {
                side.returned().await;
                side.strike();
            }
        });
    });
    let ns = on_task::<R, _>(async move {
        let side = Side::meet(&raised[0], &raised[1], &left_waker, &for_left).await;
        let mut start = Instant::now();
        for number in 0..total {
            if number == total - operations {
                start = Instant::now();
            }
            side.strike();
            side.returned().await;
        }
        start.elapsed().as_nanos() as f64 / operations as f64 / 2.0
    });
    other.join().expect("the other side ends");
    ns
}
