//! What holds a shard is named, with a backtrace; what does not is let alone; and where nobody asks
//! there is nothing.

use std::cell::Cell;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use annulus::stall::{Holder, Stall};
use annulus::time::sleep;
use annulus::{Driver, Runtime, Shard, on_each_shard, spawn, task};

use common::process::{fork_for, in_own_process, in_role, role, threads};
use common::{Test, each_driver, slower};

mod common;

const LIMIT: Duration = Duration::from_millis(20);

/// A runtime with this limit, and what it reports.
fn watched(driver: Driver, limit: Duration) -> (Runtime, Receiver<Stall>) {
    let (sender, reports) = channel();
    let tell = Arc::new(move |stall: &Stall| drop(sender.send(stall.clone())));
    let builder = Runtime::builder().driver(driver).shards(2).stall(limit).on_stall(tell);
    (builder.build().unwrap(), reports)
}

/// Holds its thread until that is reported, and its function is in the report.
#[inline(never)]
fn blocks_right_here(reports: &Receiver<Stall>) -> Stall {
    loop {
        let stall = black_box(reports.recv().expect("a report"));
        // On a busy machine a thread may not get to answer in time. The next report asks again.
        if !stall.frames_missing.as_ref().is_some_and(|why| why.contains("does not answer")) {
            return black_box(stall);
        }
    }
}

/// The functions of a report: by their names if it has them, else as `addr2line` finds them. None
/// where that is not installed.
fn functions(stall: &Stall) -> Option<String> {
    if cfg!(feature = "backtrace") {
        let named = stall.frames.iter().flat_map(|frame| frame.functions());
        return Some(named.map(|function| format!("{function}\n")).collect());
    }
    let program = std::env::current_exe().unwrap();
    let here = stall.frames.iter().filter_map(|frame| frame.module());
    let offsets: Vec<_> = here.filter(|(path, _)| *path == program).collect();
    assert!(!offsets.is_empty(), "no frame lies in the program: {stall}");
    let mut command = Command::new("addr2line");
    command.args(["-Cfpie".as_ref(), program.as_os_str()]);
    command.args(offsets.iter().map(|(_, offset)| format!("{offset:#x}")));
    command.output().ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn assert_stands_in(stall: &Stall, function: &str) {
    assert_eq!(stall.frames_missing, None, "{stall}");
    assert!(!stall.frames.is_empty(), "{stall}");
    if let Some(functions) = functions(stall) {
        assert!(functions.contains(function), "{stall}\n{functions}");
        assert!(!functions.contains("on_signal"), "the handler is left out: {functions}");
    }
}

/// No report, and the watch goes on: one that is due comes.
fn assert_none_but_the_next(runtime: &Runtime, reports: Receiver<Stall>) {
    assert_eq!(reports.try_recv().map(|it| it.to_string()), Err(TryRecvError::Empty));
    let stall = runtime.block_on(async { spawn(async move { blocks_right_here(&reports) }).await });
    assert_stands_in(&stall.unwrap(), "blocks_right_here");
}

each_driver! {
    fn a_task_that_blocks_is_named_with_its_place_and_its_stack(driver: Driver) {
        let (runtime, reports) = watched(driver, LIMIT);
        let (line, id, stall) = runtime.block_on(async {
            let blocks = async move { (task::id(), blocks_right_here(&reports)) };
            let line = line!() + 1;
            let handle = task::Builder::new().name("indexer").spawn(blocks);
            let (id, stall) = handle.await.unwrap();
            (line, id, stall)
        });
        assert_eq!(stall.shard, 0);
        assert!(stall.held >= LIMIT, "{stall}");
        let Holder::Task(task) = &stall.holder else { panic!("{stall}") };
        assert_eq!(task.id, id);
        assert_eq!(task.name.as_deref(), Some("indexer"));
        assert_eq!((task.place.file(), task.place.line()), (file!(), line));
        assert!(task.type_name.contains("a_task_that_blocks"), "{}", task.type_name);
        assert_stands_in(&stall, "blocks_right_here");
        let text = stall.to_string();
        assert!(text.starts_with("annulus: shard 0 has been stalled for "), "{text}");
        assert!(text.contains(&format!("by task {id} \"indexer\" (")), "{text}");
        assert!(text.contains(&format!("spawned at {}:{line}:", file!())), "{text}");
    }

    fn a_task_of_another_shard_is_reported_as_its(driver: Driver) {
        let (runtime, reports) = watched(driver, LIMIT);
        let stall = runtime.block_on(async {
            let blocks = move || async move {
                // Where it takes long to start a shard, the first one is reported before.
                let mut seen = std::iter::repeat_with(|| blocks_right_here(&reports));
                seen.find(|stall| stall.shard == 1).unwrap()
            };
            Shard::all()[1].spawn_with(blocks).await.unwrap()
        });
        let Holder::Task(task) = &stall.holder else { panic!("{stall}") };
        assert_eq!((task.name.as_deref(), task.place.file()), (None, file!()));
        assert_stands_in(&stall, "blocks_right_here");
    }

    fn the_future_of_block_on_is_reported_by_its_place(driver: Driver) {
        let (runtime, reports) = watched(driver, LIMIT);
        let line = line!() + 1;
        let stall = runtime.block_on(async { blocks_right_here(&reports) });
        let Holder::BlockOn { place, type_name, .. } = &stall.holder else { panic!("{stall}") };
        assert_eq!((place.file(), place.line()), (file!(), line));
        assert!(type_name.contains("the_future_of_block_on"), "{stall}");
        assert_stands_in(&stall, "blocks_right_here");
    }

    fn a_future_whose_drop_blocks_is_reported_as_upkeep(driver: Driver) {
        struct Blocks(Receiver<Stall>, std::sync::mpsc::Sender<Stall>);
        impl Drop for Blocks {
            fn drop(&mut self) {
                self.1.send(blocks_right_here(&self.0)).unwrap();
            }
        }
        let (runtime, reports) = watched(driver, LIMIT);
        let (sender, seen) = channel();
        runtime.block_on(async {
            let blocks = Blocks(reports, sender);
            let task = spawn(async move {
                let _blocks = blocks;
                std::future::pending::<()>().await;
            });
            task::yield_now().await;
            // Polled before it in the same turn, and not to be blamed.
            drop(spawn(async {}));
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        });
        let stall = seen.recv().unwrap();
        assert!(matches!(stall.holder, Holder::Upkeep), "{stall}");
        assert_stands_in(&stall, "blocks_right_here");
    }

    fn a_name_without_end_is_cut(driver: Driver) {
        let (runtime, reports) = watched(driver, LIMIT);
        let stall = runtime.block_on(async {
            let name = format!("x{}", "\u{e9}".repeat(1000));
            let task = task::Builder::new().name(name);
            task.spawn(async move { blocks_right_here(&reports) }).await.unwrap()
        });
        let Holder::Task(task) = &stall.holder else { panic!("{stall}") };
        let name = task.name.as_deref().unwrap();
        assert!(name.starts_with("x\u{e9}\u{e9}") && name.len() < 140, "{name}");
    }

    // The handler comes in the middle of the allocator, and of the unwinder, again and again.
    #[deadline_s(120)]
    fn a_thread_that_allocates_or_unwinds_is_asked_and_goes_on(driver: Driver) {
        const SHARDS: usize = 4;
        let seen: Arc<[AtomicUsize; SHARDS]> = Arc::default();
        let tell = {
            let seen = Arc::clone(&seen);
            move |stall: &Stall| {
                assert_eq!(stall.frames_missing, None, "{stall}");
                seen[stall.shard].fetch_add(1, Ordering::Relaxed);
            }
        };
        let builder = Runtime::builder().driver(driver).shards(SHARDS as u32);
        let runtime = builder.stall(Duration::from_millis(5)).on_stall(Arc::new(tell)).build();
        runtime.unwrap().block_on(async {
            let outputs = on_each_shard(async move |shard| {
                // As many as are reported in a row.
                for reports in 1..=5 {
                    while seen[shard.index()].load(Ordering::Relaxed) < reports {
                        busy_with_memory(shard.index());
                    }
                    task::yield_now().await;
                }
            });
            outputs.await.into_iter().for_each(Result::unwrap);
        });
    }

    fn a_system_call_that_is_interrupted_goes_on(driver: Driver) {
        let (mut near, far) = UnixStream::pair().unwrap();
        let far = Mutex::new(far);
        // The answer comes after the signal.
        let tell = move |_: &Stall| far.lock().unwrap().write_all(b"!").unwrap();
        let builder = Runtime::builder().driver(driver).stall(LIMIT);
        let runtime = builder.on_stall(Arc::new(tell)).build().unwrap();
        let read = runtime.block_on(async { spawn(async move { near.read(&mut [0]) }).await });
        assert_eq!(read.unwrap().unwrap(), 1, "not even EINTR");
    }

    #[deadline_s(60)]
    fn reports_of_a_shard_are_few_and_come_at_ever_longer_times(driver: Driver) {
        // So that nothing but the task below holds the shard for so long.
        let (runtime, reports) = watched(driver, Duration::from_millis(1) * slower());
        runtime.block_on(async {
            spawn(async move {
                let mut held = Duration::ZERO;
                for _ in 0..5 {
                    let stall = reports.recv().unwrap();
                    assert!(stall.held >= 2 * held, "{stall}");
                    held = stall.held;
                }
                let more = reports.recv_timeout(10 * held + Duration::from_millis(200));
                assert!(matches!(more, Err(RecvTimeoutError::Timeout)), "{more:?}");
            })
            .await
            .unwrap();
        });
    }

    fn a_shard_that_waits_is_no_stall(driver: Driver) {
        let (runtime, reports) = watched(driver, Duration::from_millis(100));
        runtime.block_on(async {
            let elsewhere = Shard::all()[1].spawn_with(|| sleep(Duration::from_millis(500)));
            let blocking = task::spawn_blocking(|| thread::sleep(Duration::from_millis(500)));
            sleep(Duration::from_millis(500)).await;
            elsewhere.await.unwrap();
            blocking.await.unwrap();
        });
        // Between two calls of `block_on` nothing holds the shard.
        thread::sleep(Duration::from_millis(300));
        assert_none_but_the_next(&runtime, reports);
    }

    fn many_short_polls_are_no_stall(driver: Driver) {
        let (runtime, reports) = watched(driver, Duration::from_millis(500));
        let until = Instant::now() + Duration::from_millis(1500);
        runtime.block_on(async move {
            let busy = || async move {
                while Instant::now() < until {
                    task::yield_now().await;
                }
            };
            for task in [spawn(busy()), spawn(busy())] {
                task.await.unwrap();
            }
        });
        assert_none_but_the_next(&runtime, reports);
    }

    fn a_block_on_that_panicked_holds_nothing(driver: Driver) {
        let (runtime, reports) = watched(driver, LIMIT);
        let block_on = || runtime.block_on(async { resume_unwind(Box::new(())) });
        assert!(catch_unwind(AssertUnwindSafe(block_on)).is_err());
        thread::sleep(10 * LIMIT);
        assert_none_but_the_next(&runtime, reports);
    }

    fn a_callback_that_panics_does_not_end_the_watch(driver: Driver) {
        let (sender, reports) = channel();
        let calls = AtomicU32::new(0);
        let tell = move |stall: &Stall| {
            sender.send(stall.clone()).unwrap();
            if calls.fetch_add(1, Ordering::Relaxed) == 0 {
                resume_unwind(Box::new("on purpose"));
            }
        };
        let builder = Runtime::builder().driver(driver).stall(LIMIT);
        let runtime = builder.on_stall(Arc::new(tell)).build().unwrap();
        runtime.block_on(async { spawn(async move {
            blocks_right_here(&reports);
            blocks_right_here(&reports);
        }).await.unwrap() });
    }

    fn a_thread_that_blocks_the_signal_is_reported_without_a_stack(driver: Driver) {
        let (runtime, reports) = watched(driver, LIMIT);
        let before = block_urgent();
        let stall = runtime.block_on(async {
            let task = task::Builder::new().name("deaf");
            task.spawn(async move { reports.recv().unwrap() }).await.unwrap()
        });
        set_mask(&before);
        assert!(stall.frames.is_empty());
        assert!(stall.frames_missing.as_ref().unwrap().contains("blocks SIGURG"), "{stall}");
        assert!(stall.to_string().contains("\n  no backtrace: "), "{stall}");
        let Holder::Task(task) = &stall.holder else { panic!("{stall}") };
        assert_eq!((task.name.as_deref(), task.place.file()), (None, file!()));
    }

    fn where_nobody_asks_there_is_no_thread_and_no_handler(driver: Driver) {
        in_own_process("where_nobody_asks_there_is_no_thread_and_no_handler", driver, || {
            let runtime = Runtime::builder().driver(driver).shards(2).build().unwrap();
            runtime.block_on(on_each_shard(async |_| task::yield_now().await));
            assert!(!threads().contains(&"annulus-stall".to_owned()), "{:?}", threads());
            assert_eq!(urgent_action().sa_sigaction, libc::SIG_DFL);
            drop(runtime);
            // What was looked for is what there is with a limit.
            let (runtime, reports) = watched(driver, LIMIT);
            assert_none_but_the_next(&runtime, reports);
            assert!(threads().contains(&"annulus-stall".to_owned()), "{:?}", threads());
            assert_ne!(urgent_action().sa_sigaction, libc::SIG_DFL);
        });
    }

    fn a_handler_that_was_there_before_gets_what_is_its_own(driver: Driver) {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        extern "C" fn count(_: libc::c_int) {
            CALLS.fetch_add(1, Ordering::Relaxed);
        }
        in_own_process("a_handler_that_was_there_before_gets_what_is_its_own", driver, || {
            let handler = count as extern "C" fn(libc::c_int) as *const ();
            // SAFETY: the handler adds to an atomic.
            unsafe { libc::signal(libc::SIGURG, handler as libc::sighandler_t) };
            let (runtime, reports) = watched(driver, LIMIT);
            // SAFETY: a signal to this thread, whose handler is there.
            unsafe { libc::raise(libc::SIGURG) };
            assert_eq!(CALLS.load(Ordering::Relaxed), 1);
            assert_none_but_the_next(&runtime, reports);
            assert_eq!(CALLS.load(Ordering::Relaxed), 1, "ours is not passed on");
        });
    }

    #[alone]
    fn a_forked_child_is_watched_as_its_parent_is(driver: Driver) {
        let (runtime, reports) = watched(driver, LIMIT);
        let child = fork_for(|| {
            let (runtime, reports) = watched(driver, LIMIT);
            assert_none_but_the_next(&runtime, reports);
        });
        child.join();
        assert_none_but_the_next(&runtime, reports);
    }

    #[deadline_s(60)]
    fn a_process_that_is_stopped_is_not_stalled(driver: Driver) {
        in_own_process("a_process_that_is_stopped_is_not_stalled", driver, || {
            let limit = Duration::from_secs(3);
            let (runtime, reports) = watched(driver, limit);
            runtime.block_on(async { spawn(async { is_stopped_for_seconds(4) }).await.unwrap() });
            assert_none_but_the_next(&runtime, reports);
        });
    }
}

mod the_environment_turns_it_on_and_the_report_is_printed {
    use super::*;

    #[test]
    fn uring() {
        Test::named("the_environment::uring").call(Driver::Uring, printed);
    }

    #[test]
    fn epoll() {
        Test::named("the_environment::epoll").call(Driver::Epoll, printed);
    }

    fn printed(driver: Driver) {
        if in_role() {
            let runtime = Runtime::builder().driver(driver).build().unwrap();
            let task = task::Builder::new().name("sleeper");
            runtime.block_on(async { task.spawn(async { sleeps_right_here() }).await.unwrap() });
            return;
        }
        let name = "the_environment_turns_it_on_and_the_report_is_printed";
        let mut command = role(&format!("{name}::{driver}"));
        command.env("ANNULUS_STALL_MS", "20");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It is stalled until the report is there, however long names take to be found.
        let last = if cfg!(feature = "backtrace") { "sleeps_right_here at " } else { "addr2line " };
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut errors = String::new();
        while !errors.contains(last) {
            errors += &lines.next().unwrap_or_else(|| panic!("no {last:?} in: {errors}"));
            errors.push('\n');
        }
        drop(child.stdin.take());
        errors.extend(lines.map(|line| line + "\n"));
        assert!(child.wait().unwrap().success(), "{errors}");
        assert!(errors.contains("annulus: shard 0 has been stalled for "), "{errors}");
        assert!(errors.contains("\"sleeper\""), "{errors}");
        if cfg!(feature = "backtrace") {
            assert!(errors.contains("sleeps_right_here at "), "{errors}");
            return;
        }
        // The command that the report ends with, as a person would paste it.
        let program = std::env::current_exe().unwrap();
        let command = format!("addr2line -Cfpie {} ", program.display());
        let line = errors.lines().find(|line| line.trim_start().starts_with(&command));
        let line = line.unwrap_or_else(|| panic!("no {command:?} in: {errors}"));
        if Command::new("addr2line").arg("--version").output().is_ok() {
            let output = Command::new("sh").args(["-c", line]).output().unwrap();
            let functions = String::from_utf8_lossy(&output.stdout);
            assert!(functions.contains("sleeps_right_here"), "{errors}\n{functions}");
        }
    }
}

/// Until the one who has started this process ends its input.
#[inline(never)]
fn sleeps_right_here() {
    std::io::stdin().read_to_end(&mut black_box(Vec::new())).unwrap();
    black_box(());
}

#[inline(never)]
fn busy_with_memory(which: usize) {
    let nested: Vec<Vec<usize>> = (0..100).map(|length| vec![which; length * 10]).collect();
    drop(black_box(nested));
    if which % 2 == 0 {
        let _unwound = catch_unwind(|| resume_unwind(Box::new(which)));
    }
}

/// Is held for a while, has the whole process stopped, and is held for a while again, so that the
/// watchdog looks before and after.
fn is_stopped_for_seconds(seconds: u64) {
    let pid = std::process::id();
    let script = format!("sleep 0.5; kill -STOP {pid}; sleep {seconds}; kill -CONT {pid}");
    let gap = Duration::from_millis(seconds * 500);
    // The stop may come as early as in the call that starts the other process.
    let last = Cell::new(Instant::now());
    let mut stopper = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    while last.replace(Instant::now()).elapsed() < gap {}
    while last.get().elapsed() < Duration::from_millis(300) {}
    stopper.wait().unwrap();
}

fn urgent_action() -> libc::sigaction {
    // SAFETY: all zeros are the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null action changes nothing; the present one is written to a whole struct.
    let answer = unsafe { libc::sigaction(libc::SIGURG, std::ptr::null(), &raw mut action) };
    assert_eq!(answer, 0);
    action
}

/// Blocks SIGURG on this thread, and returns the mask before.
fn block_urgent() -> libc::sigset_t {
    // SAFETY: all zeros are an empty set, on Linux.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    let mut before = set;
    // SAFETY: the set is whole.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGURG) };
    // SAFETY: both sets are whole.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) };
    before
}

fn set_mask(mask: &libc::sigset_t) {
    // SAFETY: the set is whole; nobody asks for the present one.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}
