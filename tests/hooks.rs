//! Hooks: what a program is told of its tasks, and what it may do when it is told.

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use annulus::task::{self, TaskId, TaskInfo, yield_now};
use annulus::{Builder, Runtime, Shard};

use common::each_driver;
use common::steps::settle;

mod common;

each_driver! {
    fn each_task_comes_once_is_polled_in_pairs_and_goes_once(driver: Driver) {
        let log = Log::default();
        let runtime = log.watch(Runtime::builder().driver(driver)).build().unwrap();
        let (line, ids) = runtime.block_on(async {
            let line = line!() + 1;
            let quiet = annulus::spawn(async { task::id() });
            let named = task::Builder::new().name("named").spawn(async {
                yield_now().await;
                yield_now().await;
                task::id()
            });
            (line, [quiet.await.unwrap(), named.await.unwrap()])
        });
        let seen = log.seen();
        assert_eq!(log.of(ids[0]), ["spawn", "before", "after", "terminate"]);
        let three = ["before", "after"].repeat(3);
        assert_eq!(log.of(ids[1]), [&["spawn"], &*three, &["terminate"]].concat());
        let place = |id| seen.iter().find(|seen| seen.id == id).unwrap().clone();
        assert_eq!((place(ids[0]).name, place(ids[0]).line), (None, line));
        assert_eq!((place(ids[1]).name, place(ids[1]).line), (Some("named".into()), line + 1));
        for seen in seen {
            assert!(seen.file.ends_with("hooks.rs"), "{seen:?}");
            assert!(seen.type_name.contains("each_task_comes"), "{seen:?}");
        }
    }

    fn a_task_goes_once_however_it_ends(driver: Driver) {
        let log = Log::default();
        let runtime = log.watch(Runtime::builder().driver(driver)).build().unwrap();
        runtime.block_on(async {
            let panics = annulus::spawn(async { panic!("this panic is wanted") });
            assert!(panics.await.unwrap_err().is_panic());
            let idle = annulus::spawn(pending::<()>());
            settle().await;
            idle.abort();
            assert!(idle.await.unwrap_err().is_cancelled());
            let unpolled = annulus::spawn(async {});
            unpolled.abort();
            assert!(unpolled.await.unwrap_err().is_cancelled());
        });
        let count = |what| log.seen().iter().filter(|seen| seen.what == what).count();
        assert_eq!((count("spawn"), count("terminate")), (3, 3));
        assert_eq!((count("before"), count("after")), (2, 2));
    }

    fn tasks_that_the_end_drops_go_too(driver: Driver) {
        let log = Log::default();
        let runtime = log.watch(Runtime::builder().driver(driver)).build().unwrap();
        runtime.block_on(async {
            for _ in 0..10 {
                drop(annulus::spawn(async {
                    let _spawns = OnDrop(|| drop(annulus::spawn(async {})));
                    pending::<()>().await;
                }));
            }
            settle().await;
        });
        drop(runtime);
        // What is spawned at the end is dropped at once, and never comes.
        let count = |what| log.seen().iter().filter(|seen| seen.what == what).count();
        assert_eq!((count("spawn"), count("terminate")), (10, 10));
    }

    fn the_future_of_block_on_is_no_task(driver: Driver) {
        let log = Log::default();
        let runtime = log.watch(Runtime::builder().driver(driver)).build().unwrap();
        runtime.block_on(async { yield_now().await });
        assert!(log.seen().is_empty());
    }

    fn a_hook_that_panics_harms_nobody(driver: Driver) {
        let panics = |_: &TaskInfo<'_>| panic!("this panic is wanted");
        let builder = Runtime::builder().driver(driver);
        let runtime = builder
            .on_task_spawn(panics)
            .on_before_task_poll(panics)
            .on_after_task_poll(panics)
            .on_task_terminate(panics)
            .build()
            .unwrap();
        runtime.block_on(async {
            let tasks: Vec<_> = (0..10)
                .map(|number| {
                    annulus::spawn(async move {
                        yield_now().await;
                        number
                    })
                })
                .collect();
            for (task, number) in tasks.into_iter().zip(0..) {
                assert_eq!(task.await.unwrap(), number);
            }
            assert_eq!(annulus::metrics().tasks, 0);
        });
    }

    fn hooks_may_spawn_and_wake(driver: Driver) {
        let spawned = Arc::<AtomicUsize>::default();
        let wakers = Arc::<Mutex<Vec<Waker>>>::default();
        let hook = {
            let (wakers, spawned) = (Arc::clone(&wakers), Arc::clone(&spawned));
            move |task: &TaskInfo<'_>| {
                wakers.lock().unwrap().iter().for_each(Waker::wake_by_ref);
                // Not for those that it spawns itself, or there would be no end.
                if task.name().is_none() {
                    let spawned = Arc::clone(&spawned);
                    let count = async move { spawned.fetch_add(1, Ordering::SeqCst) };
                    drop(task::Builder::new().name("of a hook").spawn(count));
                }
            }
        };
        let runtime = Runtime::builder()
            .driver(driver)
            .on_task_spawn(hook.clone())
            .on_before_task_poll(hook.clone())
            .on_after_task_poll(hook.clone())
            .on_task_terminate(hook)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut polls = 0;
            let task = annulus::spawn(std::future::poll_fn(move |cx| {
                wakers.lock().unwrap().push(cx.waker().clone());
                polls += 1;
                if polls == 3 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            }));
            // Nobody but the hooks wakes it.
            task.await.unwrap();
            settle().await;
        });
        assert_eq!(spawned.load(Ordering::SeqCst), 1 + 3 + 3 + 1);
    }

    fn hooks_tell_the_shard(driver: Driver) {
        let log = Log::default();
        let builder = Runtime::builder().driver(driver).shards(3);
        let runtime = log.watch(builder).build().unwrap();
        runtime.block_on(async {
            for shard in Shard::all() {
                shard.spawn_with(|| async {}).await.unwrap();
            }
        });
        drop(runtime);
        let mut shards: Vec<_> =
            log.seen().iter().filter(|seen| seen.what == "spawn").map(|seen| seen.shard).collect();
        shards.sort_unstable();
        assert_eq!(shards, [0, 1, 2]);
        assert_eq!(log.seen().iter().filter(|seen| seen.what == "terminate").count(), 3);
    }
}

/// Everything that the hooks were told.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Seen>>>);

#[derive(Clone, Debug)]
struct Seen {
    what: &'static str,
    id: TaskId,
    shard: usize,
    name: Option<String>,
    type_name: &'static str,
    file: &'static str,
    line: u32,
}

impl Log {
    fn watch(&self, builder: Builder) -> Builder {
        builder
            .on_task_spawn(self.hook("spawn"))
            .on_before_task_poll(self.hook("before"))
            .on_after_task_poll(self.hook("after"))
            .on_task_terminate(self.hook("terminate"))
    }

    fn hook(&self, what: &'static str) -> impl Fn(&TaskInfo<'_>) + Send + Sync + 'static {
        let log = Arc::clone(&self.0);
        move |task| {
            log.lock().unwrap().push(Seen {
                what,
                id: task.id(),
                shard: task.shard(),
                name: task.name().map(str::to_owned),
                type_name: task.type_name(),
                file: task.location().file(),
                line: task.location().line(),
            });
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }

    /// What happened to one task, in order.
    fn of(&self, id: TaskId) -> Vec<&'static str> {
        let mut by_task: HashMap<TaskId, Vec<_>> = HashMap::new();
        for seen in self.seen() {
            by_task.entry(seen.id).or_default().push(seen.what);
        }
        by_task.remove(&id).unwrap_or_default()
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
