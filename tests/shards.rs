//! A runtime of several shards: where things run, what comes home, and how all of it ends.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use annulus::net::{TcpListener, TcpStream};
use annulus::time::sleep;
use annulus::{Driver, Runtime, Shard, on_each_shard, spawn};

use common::each_driver;
use common::process::{
    descriptor_limit, in_own_process, in_role, leave_descriptors, open_descriptors,
    set_descriptor_limit, threads,
};
use common::steps::{end_beside_a_task_that_does_not_yield, eventually_blocking};

mod common;

fn runtime(driver: Driver, shards: u32) -> Runtime {
    Runtime::builder().driver(driver).shards(shards).build().unwrap()
}

each_driver! {
    #[alone]
    fn each_shard_is_a_thread_that_starts_when_addressed(driver: Driver) {
        let runtime = runtime(driver, 4);
        runtime.block_on(async {
            let all = Shard::all();
            assert_eq!(all.iter().map(Shard::index).collect::<Vec<_>>(), [0, 1, 2, 3]);
            assert_eq!(shard_threads(), 0, "asking starts none");
            assert_eq!(Shard::current(), all[0]);
            let here = thread::current().id();
            let there = all[2].spawn_with(|| async { (Shard::current(), thread::current().id()) });
            let (shard, thread) = there.await.unwrap();
            assert_eq!(shard, all[2]);
            assert_ne!(thread, here);
            assert_eq!(shard_threads(), 1);
            let home = all[0].spawn_with(|| async { thread::current().id() });
            assert_eq!(home.await.unwrap(), here);
        });
        drop(runtime);
        // The kernel lists a thread that was joined for a moment longer.
        eventually_blocking("no thread is left", || shard_threads() == 0);
    }

    fn a_task_is_made_polled_and_dropped_on_its_shard(driver: Driver) {
        struct Witness(mpsc::Sender<usize>);
        impl Drop for Witness {
            fn drop(&mut self) {
                self.0.send(Shard::current().index()).unwrap();
            }
        }
        runtime(driver, 3).block_on(async {
            let (sender, dropped_on) = mpsc::channel();
            let other = &Shard::all()[2];
            let handle = other.spawn_with(move || {
                let local = Rc::new(Witness(sender));
                async move {
                    sleep(Duration::from_millis(1)).await;
                    let _kept = local;
                    Shard::current().index()
                }
            });
            assert_eq!(handle.await.unwrap(), 2);
            assert_eq!(dropped_on.recv().unwrap(), 2);
        });
    }

    fn results_panics_and_aborts_come_home(driver: Driver) {
        runtime(driver, 2).block_on(async {
            let other = &Shard::all()[1];
            let boxed = other.spawn_with(|| async { vec![7; 1000] }).await.unwrap();
            assert_eq!(boxed, [7; 1000]);
            let error = other.spawn_with(|| async { panic!("on purpose") }).await.unwrap_err();
            assert_eq!(error.to_string(), "the task panicked: on purpose");
            let closure = other.spawn_with(|| -> std::future::Ready<()> { panic!("early") });
            assert!(closure.await.unwrap_err().is_panic());
            let endless = other.spawn_with(std::future::pending::<()>);
            endless.abort();
            assert!(endless.await.unwrap_err().is_cancelled());
            // The shard lives on.
            assert_eq!(other.spawn_with(|| async { 1 }).await.unwrap(), 1);
        });
    }

    fn every_shard_runs_its_part_at_the_same_time(driver: Driver) {
        let all_are_there = Arc::new(Barrier::new(5));
        runtime(driver, 5).block_on(async {
            let outputs = on_each_shard(async move |shard| {
                // Blocks its thread, and so fails on one that has to run two of these.
                all_are_there.wait();
                assert_eq!(Shard::current(), shard);
                shard.index()
            });
            let outputs: Vec<_> = outputs.await.into_iter().map(Result::unwrap).collect();
            assert_eq!(outputs, [0, 1, 2, 3, 4]);
        });
    }

    fn sockets_and_timers_work_on_every_shard(driver: Driver) {
        runtime(driver, 3).block_on(async {
            let outputs = on_each_shard(async move |_| {
                assert_eq!(annulus::driver_info().driver(), driver);
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let echo = spawn(async move {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut buffer = [0; 5];
                    stream.read_exact(&mut buffer).await.unwrap();
                    sleep(Duration::from_millis(5)).await;
                    stream.write_all(&buffer).await.unwrap();
                });
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"hello").await.unwrap();
                let mut buffer = [0; 5];
                stream.read_exact(&mut buffer).await.unwrap();
                echo.await.unwrap();
                buffer
            });
            for output in outputs.await {
                assert_eq!(&output.unwrap(), b"hello");
            }
        });
    }

    fn any_thread_can_send_to_any_shard(driver: Driver) {
        let runtime = runtime(driver, 2);
        let shards = runtime.shards();
        assert_eq!(runtime.handle(), shards[0]);
        let sender = thread::spawn(move || {
            let handles: Vec<_> = shards
                .iter()
                .map(|shard| shard.spawn_with(|| async { Shard::current().index() }))
                .collect();
            handles
        });
        let handles = sender.join().unwrap();
        runtime.block_on(async {
            for (index, handle) in handles.into_iter().enumerate() {
                assert_eq!(handle.await.unwrap(), index);
            }
        });
    }

    #[deadline_s(120)]
    fn shards_that_flood_each_other_do_not_deadlock(driver: Driver) {
        const TASKS: u64 = 10_000;
        let arrived = Arc::new(AtomicU64::new(0));
        runtime(driver, 3).block_on(async {
            let count = Arc::clone(&arrived);
            let outputs = on_each_shard(async move |_| {
                for index in 0..TASKS {
                    for shard in Shard::all() {
                        let count = Arc::clone(&count);
                        drop(shard.spawn_with(move || async move {
                            count.fetch_add(1, Ordering::Relaxed);
                        }));
                    }
                    // Mostly not: what is sent meanwhile has to find room.
                    if index % 2500 == 0 {
                        annulus::task::yield_now().await;
                    }
                }
            });
            outputs.await.into_iter().for_each(Result::unwrap);
            while arrived.load(Ordering::Relaxed) < 9 * TASKS {
                annulus::task::yield_now().await;
            }
        });
    }

    #[deadline_s(120)]
    fn a_flooded_shard_still_looks_at_its_timers_and_sockets(driver: Driver) {
        runtime(driver, 2).block_on(async {
            let over = Arc::new(AtomicBool::new(false));
            let victim = Shard::all()[1].clone();
            let flood = {
                let (over, victim) = (Arc::clone(&over), victim.clone());
                thread::spawn(move || {
                    let mut sent = 0_u64;
                    let done = Arc::new(AtomicU64::new(0));
                    while !over.load(Ordering::Relaxed) {
                        // Bounded here, as programs have to: the mailbox is not.
                        if sent - done.load(Ordering::Relaxed) < 10_000 {
                            let done = Arc::clone(&done);
                            drop(victim.spawn_with(move || async move {
                                done.fetch_add(1, Ordering::Relaxed);
                            }));
                            sent += 1;
                        }
                    }
                    sent
                })
            };
            let beats = victim.spawn_with(|| async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let mut client = TcpStream::connect(address).await.unwrap();
                let (mut served, _) = listener.accept().await.unwrap();
                for byte in 0..100_u8 {
                    sleep(Duration::from_millis(1)).await;
                    client.write_all(&[byte]).await.unwrap();
                    let mut buffer = [0];
                    served.read_exact(&mut buffer).await.unwrap();
                    assert_eq!(buffer, [byte]);
                }
            });
            beats.await.unwrap();
            over.store(true, Ordering::Relaxed);
            assert!(flood.join().unwrap() > 1000, "that was no flood");
        });
    }

    fn a_shard_that_cannot_start_says_why_and_can_start_later(driver: Driver) {
        let name = "a_shard_that_cannot_start_says_why_and_can_start_later";
        in_own_process(name, driver, || {
            let runtime = runtime(driver, 2);
            let shards = runtime.shards();
            let before = descriptor_limit();
            leave_descriptors(0);
            let error = runtime.block_on(shards[1].spawn_with(|| async {})).unwrap_err();
            assert!(error.is_cancelled());
            let text = error.to_string();
            assert!(text.contains("shard 1 could not start: "), "{text}");
            assert!(text.contains("RLIMIT_NOFILE"), "{text}");
            set_descriptor_limit(before).unwrap();
            assert_eq!(runtime.block_on(shards[1].spawn_with(|| async { 5 })).unwrap(), 5);
        });
    }

    fn the_end_of_the_runtime_cancels_what_waits_on_other_shards(driver: Driver) {
        let runtime = runtime(driver, 2);
        let shards = runtime.shards();
        let (started, is_running) = mpsc::channel();
        let endless = shards[1].spawn_with(move || async move {
            started.send(()).unwrap();
            std::future::pending::<()>().await;
        });
        is_running.recv().unwrap();
        let never_run = shards[0].spawn_with(|| async {});
        drop(runtime);
        let after = shards.iter().map(|shard| shard.spawn_with(|| async {}));
        let handles: Vec<_> = after.chain([endless, never_run]).collect();
        Runtime::builder().driver(driver).build().unwrap().block_on(async {
            for handle in handles {
                assert!(handle.await.unwrap_err().is_cancelled());
            }
        });
    }

    #[alone]
    fn an_end_closes_what_all_shards_had_open(driver: Driver) {
        drop(runtime(driver, 4));
        let before = open_descriptors();
        let runtime = runtime(driver, 4);
        let held = runtime.block_on(on_each_shard(async |_| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut streams = Vec::new();
            for _ in 0..50 {
                streams.push(TcpStream::connect(address).await.unwrap());
                let (mut served, _) = listener.accept().await.unwrap();
                spawn(async move { served.read(&mut [0; 10]).await.map(drop) });
            }
            // Handles that outlive the runtime.
            (listener, streams)
        }));
        assert!(open_descriptors() >= before + 400);
        let begun = Instant::now();
        drop(runtime);
        let took = begun.elapsed();
        assert_eq!(open_descriptors(), before);
        assert!(took < Duration::from_secs(20), "an end of {took:?}");
        drop(held);
        assert_eq!(open_descriptors(), before);
    }

    fn a_task_that_does_not_yield_holds_the_end_up_for_a_bounded_time(driver: Driver) {
        let name = "a_task_that_does_not_yield_holds_the_end_up_for_a_bounded_time";
        let notice = in_own_process(name, driver, || {
            end_beside_a_task_that_does_not_yield(runtime(driver, 2));
        });
        let notice_is_right = notice.contains("annulus: shard 1 does not end");
        assert!(notice_is_right || in_role(), "{notice}");
    }

    #[deadline_s(120)]
    fn each_handle_gets_an_answer_though_the_runtime_ends_meanwhile(driver: Driver) {
        /// Sends more when it goes, to whatever is left: what a lock that is held would block.
        struct Bomb(Vec<Shard>, Arc<AtomicU64>);
        impl Drop for Bomb {
            fn drop(&mut self) {
                self.0.iter().for_each(|shard| drop(shard.spawn_with(|| async {})));
                self.1.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let alive = Arc::new(AtomicU64::new(0));
        let mut answers = [0_u64; 2];
        for round in 0..60_u64 {
            let runtime = runtime(driver, 3);
            let over = Arc::new(AtomicBool::new(false));
            let senders: Vec<_> = (0..3)
                .map(|sender| {
                    let (over, alive) = (Arc::clone(&over), Arc::clone(&alive));
                    let shards = runtime.shards();
                    thread::spawn(move || {
                        let mut handles = Vec::new();
                        while !over.load(Ordering::Relaxed) && handles.len() < 2000 {
                            alive.fetch_add(1, Ordering::Relaxed);
                            let bomb = Bomb(shards.clone(), Arc::clone(&alive));
                            let to = &shards[(handles.len() + sender) % shards.len()];
                            let ends = handles.len() % 3 != 0;
                            handles.push(to.spawn_with(move || async move {
                                let _bomb = bomb;
                                if !ends {
                                    std::future::pending::<()>().await;
                                }
                            }));
                        }
                        handles
                    })
                })
                .collect();
            runtime.block_on(sleep(Duration::from_micros(50 * round)));
            drop(runtime);
            over.store(true, Ordering::Relaxed);
            // The watchdog ends this if one is never answered.
            Runtime::builder().driver(driver).shards(1).build().unwrap().block_on(async {
                for handle in senders.into_iter().flat_map(|it| it.join().unwrap()) {
                    let answer = handle.await;
                    answers[usize::from(answer.is_ok())] += 1;
                    assert!(answer.map_or_else(|error| error.is_cancelled(), |()| true));
                }
            });
        }
        assert_eq!(alive.load(Ordering::Relaxed), 0, "captures were leaked, or dropped twice");
        assert!(answers.iter().all(|&number| number > 0), "{answers:?}");
    }

    fn shards_of_one_runtime_are_not_those_of_another(driver: Driver) {
        let one = runtime(driver, 2);
        let other = runtime(driver, 2);
        assert_ne!(one.shards()[1], other.shards()[1]);
        let thread_of = |runtime: &Runtime| {
            let there = runtime.shards()[1].spawn_with(|| async { thread::current().id() });
            runtime.block_on(there).unwrap()
        };
        assert_ne!(thread_of(&one), thread_of(&other));
        drop(one);
        assert_eq!(thread_of(&other), thread_of(&other));
    }

    fn shards_are_bound_to_processors_of_their_own(driver: Driver) {
        let mine = affinity();
        let shards = u32::try_from(mine.len()).unwrap();
        if usize::from(thread::available_parallelism().unwrap()) < mine.len() {
            // Under a quota nobody is bound; `cpus` has tests of the choice.
            println!("this process runs under a quota of its cgroup");
            return;
        }
        let bound = runtime(driver, shards).block_on(on_each_shard(async |_| affinity()));
        let bound: Vec<_> = bound.into_iter().map(Result::unwrap).collect();
        assert_eq!(bound[0], mine, "the program's own thread is left alone");
        assert!(bound[1..].iter().all(|set| set.len() == 1), "{bound:?}");
        let distinct: BTreeSet<_> = bound[1..].iter().flatten().collect();
        assert_eq!(distinct.len(), bound.len() - 1);

        let all = Runtime::builder().driver(driver).shards(shards).pin(true).build().unwrap();
        let bound = all.block_on(on_each_shard(async |_| affinity()));
        let distinct: BTreeSet<_> = bound.into_iter().flat_map(Result::unwrap).collect();
        assert_eq!(distinct, mine);
        assert_eq!(affinity(), mine, "free again behind block_on");

        let none = Runtime::builder().driver(driver).shards(shards).pin(false).build().unwrap();
        let crowded = runtime(driver, shards + 1);
        for runtime in [none, crowded] {
            for set in runtime.block_on(on_each_shard(async |_| affinity())) {
                assert_eq!(set.unwrap(), mine);
            }
        }
    }

    #[alone]
    fn shards_of_a_thread_that_the_program_holds_stay_where_it_is(driver: Driver) {
        let name = "shards_of_a_thread_that_the_program_holds_stay_where_it_is";
        in_own_process(name, driver, || {
            let mine = affinity();
            // Binds the others to all processors but the first.
            let shards = u32::try_from(mine.len()).unwrap();
            let everywhere = runtime(driver, shards);
            everywhere.block_on(on_each_shard(async |_| ())).into_iter().for_each(Result::unwrap);
            for cpu in [*mine.first().unwrap(), *mine.last().unwrap()] {
                let (tell, told) = mpsc::channel();
                let (go, gone) = mpsc::channel();
                let held = thread::spawn(move || {
                    hold_to(cpu);
                    let builder = Runtime::builder().driver(driver).shards(2).pin(false);
                    let runtime = builder.build().unwrap();
                    tell.send(runtime.shards()[1].clone()).unwrap();
                    gone.recv().unwrap();
                    runtime.block_on(on_each_shard(async |_| affinity()))
                });
                // This thread is not held, and makes that of the second shard.
                drop(told.recv().unwrap().spawn_with(|| async {}));
                go.send(()).unwrap();
                for set in held.join().unwrap() {
                    assert_eq!(set.unwrap(), BTreeSet::from([cpu]), "of {mine:?}");
                }
            }
        });
    }

    fn blocking_jobs_of_a_bound_shard_run_anywhere(driver: Driver) {
        let mine = affinity();
        runtime(driver, 2).block_on(async {
            let there = Shard::all()[1].spawn_with(|| async {
                // As many at once as make new threads.
                let all_are_there = Arc::new(Barrier::new(20));
                let sets = Arc::new(Mutex::new(Vec::new()));
                let jobs: Vec<_> = (0..20)
                    .map(|_| {
                        let (all_are_there, sets) = (Arc::clone(&all_are_there), Arc::clone(&sets));
                        annulus::task::spawn_blocking(move || {
                            all_are_there.wait();
                            sets.lock().unwrap().push(affinity());
                        })
                    })
                    .collect();
                for job in jobs {
                    job.await.unwrap();
                }
                std::mem::take(&mut *sets.lock().unwrap())
            });
            assert!(there.await.unwrap().iter().all(|set| *set == mine));
        });
    }
}

#[test]
fn the_number_of_shards_is_set_by_builder_and_environment() {
    let all = thread::available_parallelism().unwrap().get();
    assert_eq!(Runtime::new().unwrap().shards().len(), all);
    assert_eq!(Runtime::builder().shards(7).build().unwrap().shards().len(), 7);
    for wrong in [0, 1025] {
        let text = Runtime::builder().shards(wrong).build().unwrap_err().to_string();
        assert!(text.starts_with(&format!("Builder::shards({wrong}) cannot be used")), "{text}");
    }
}

fn shard_threads() -> usize {
    let is_shard =
        |name: &str| name.strip_prefix("annulus-").is_some_and(|rest| rest.parse::<u32>().is_ok());
    threads().iter().filter(|name| is_shard(name)).count()
}

/// Holds this thread to one processor.
fn hold_to(cpu: usize) {
    // SAFETY: a set of processors is plain bits, of which none may be set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the call checks that the processor is in the range of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set has the size that is given; 0 is this thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// The processors that this thread may run on, as the kernel says.
fn affinity() -> BTreeSet<usize> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
    let list = line.split_whitespace().nth(1).unwrap();
    let bounds = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<usize>().unwrap()..=last.parse().unwrap()
    };
    list.split(',').flat_map(bounds).collect()
}
