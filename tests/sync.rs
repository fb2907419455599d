//! Channels and locks of tokio's wake tasks of every shard, whoever wakes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use annulus::sync::{Mutex, Notify, RwLock, Semaphore, broadcast, mpsc, oneshot, watch};
use annulus::task::yield_now;
use annulus::time::timeout;
use annulus::{Driver, JoinHandle, Runtime, Shard};

use common::each_driver;

mod common;

each_driver! {
    fn what_is_sent_from_all_shards_is_received_once(driver: Driver) {
        runtime(driver).block_on(async {
            // Few places, so that senders wait as well.
            let (sender, mut receiver) = mpsc::channel(2);
            let tasks: Vec<_> = each_shard(|shard| {
                let sender = sender.clone();
                async move {
                    for number in 0..1000 {
                        sender.send((shard, number)).await.unwrap();
                    }
                }
            });
            drop(sender);
            let mut next = [0; SHARDS];
            while let Some((shard, number)) = receiver.recv().await {
                assert_eq!(number, next[shard], "of shard {shard}");
                next[shard] += 1;
            }
            assert_eq!(next, [1000; SHARDS]);
            all(tasks).await;
        });
    }

    fn receives_that_were_dropped_lose_nothing(driver: Driver) {
        runtime(driver).block_on(async {
            let (sender, mut receiver) = mpsc::channel(1);
            let sending = Shard::all()[1].spawn_with(|| async move {
                for number in 0..500 {
                    sender.send(number).await.unwrap();
                    yield_now().await;
                }
            });
            let mut next = 0;
            loop {
                match timeout(Duration::from_micros(20), receiver.recv()).await {
                    Ok(Some(number)) => {
                        assert_eq!(number, next);
                        next += 1;
                    }
                    Ok(None) => break,
                    Err(_elapsed) => {}
                }
            }
            assert_eq!(next, 500);
            sending.await.unwrap();
        });
    }

    fn an_answer_wakes_the_shard_that_asked_also_from_a_thread(driver: Driver) {
        runtime(driver).block_on(async {
            for number in 0..200 {
                let (sender, receiver) = oneshot::channel();
                if number % 2 == 0 {
                    // The shard has nothing to do meanwhile and sleeps.
                    thread::spawn(move || sender.send(number).unwrap());
                } else {
                    drop(Shard::all()[2].spawn_with(move || async move {
                        sender.send(number).unwrap();
                    }));
                }
                assert_eq!(receiver.await, Ok(number));
            }
            let (sender, receiver) = oneshot::channel::<()>();
            thread::spawn(move || drop(sender));
            assert!(receiver.await.is_err(), "a sender that has gone is told");
        });
    }

    fn a_value_that_is_watched_is_seen_on_every_shard(driver: Driver) {
        runtime(driver).block_on(async {
            let (sender, receiver) = watch::channel(0);
            let tasks = each_shard(|_| {
                let mut receiver = receiver.clone();
                async move {
                    let mut seen = 0;
                    while receiver.changed().await.is_ok() {
                        let value = *receiver.borrow_and_update();
                        assert!(value > seen, "{value} after {seen}");
                        seen = value;
                    }
                    assert_eq!(seen, 100, "the last value was missed");
                }
            });
            for value in 1..=100 {
                sender.send(value).unwrap();
                yield_now().await;
            }
            drop(sender);
            all(tasks).await;
        });
    }

    fn what_is_broadcast_reaches_every_shard(driver: Driver) {
        runtime(driver).block_on(async {
            let (sender, _) = broadcast::channel(200);
            let ready = Arc::new(Semaphore::new(0));
            let tasks = each_shard(|_| {
                let (mut receiver, ready) = (sender.subscribe(), Arc::clone(&ready));
                async move {
                    ready.add_permits(1);
                    for number in 0..200 {
                        assert_eq!(receiver.recv().await, Ok(number));
                    }
                }
            });
            drop(ready.acquire_many(SHARDS as u32).await.unwrap());
            for number in 0..200 {
                sender.send(number).unwrap();
            }
            all(tasks).await;
        });
    }

    fn a_notice_wakes_one_and_is_kept_for_who_comes_later(driver: Driver) {
        runtime(driver).block_on(async {
            let (ball, back) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (hit, returned) = (Arc::clone(&ball), Arc::clone(&back));
            let other = Shard::all()[1].spawn_with(|| async move {
                for _ in 0..500 {
                    hit.notified().await;
                    returned.notify_one();
                }
            });
            for _ in 0..500 {
                ball.notify_one();
                back.notified().await;
            }
            other.await.unwrap();
        });
    }

    fn no_more_have_a_permit_than_there_are(driver: Driver) {
        runtime(driver).block_on(async {
            let (permits, inside) = (Arc::new(Semaphore::new(2)), Arc::new(AtomicUsize::new(0)));
            let tasks = each_shard(|_| {
                let (permits, inside) = (Arc::clone(&permits), Arc::clone(&inside));
                async move {
                    for _ in 0..50 {
                        let _permit = permits.acquire().await.unwrap();
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 2, "too many");
                        yield_now().await;
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            });
            all(tasks).await;
        });
    }

    fn a_lock_that_is_held_over_an_await_keeps_all_others_out(driver: Driver) {
        runtime(driver).block_on(async {
            let (count, list) = (Arc::new(Mutex::new(0)), Arc::new(RwLock::new(Vec::new())));
            let tasks = each_shard(|shard| {
                let (count, list) = (Arc::clone(&count), Arc::clone(&list));
                async move {
                    for _ in 0..200 {
                        let mut count = count.lock().await;
                        let before = *count;
                        yield_now().await;
                        *count = before + 1;
                        drop(count);
                        let len = list.read().await.len();
                        list.write().await.push(shard);
                        assert!(list.read().await.len() > len);
                    }
                }
            });
            all(tasks).await;
            assert_eq!(*count.lock().await, 200 * SHARDS);
            assert_eq!(list.read().await.len(), 200 * SHARDS);
        });
    }
}

fn runtime(driver: Driver) -> Runtime {
    let runtime = Runtime::builder().driver(driver).shards(SHARDS as u32).build();
    runtime.expect("a runtime")
}

/// A task on each shard.
fn each_shard<F>(mut make: impl FnMut(usize) -> F) -> Vec<JoinHandle<()>>
where
    F: Future<Output = ()> + Send + 'static,
{
    let spawn = |shard: Shard| {
        let future = make(shard.index());
        shard.spawn_with(move || future)
    };
    Shard::all().into_iter().map(spawn).collect()
}

async fn all(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        task.await.expect("a task");
    }
}

const SHARDS: usize = 3;
