//! Looking at another process: its shards are seen, and whatever is wrong is told as what it is.

use std::future::pending;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use annulus::Shard;
use annulus::metrics::{ProcessMetrics, ShardMetrics, board};

use common::process::{self, READY, Running, example, in_role, is_root, role, unprivileged};
use common::steps::{eventually_blocking, settle};
use common::{Test, each_driver};

mod common;

each_driver! {
    #[alone]
    fn the_shards_of_another_process_are_seen_from_outside(driver: Driver) {
        let mut command = role("role_has_three_shards");
        command.env("ANNULUS_DRIVER", driver.to_string());
        let mut child = Running::start(command);
        child.line_after(READY);
        let process = ProcessMetrics::attach(child.id()).unwrap();
        let expected = [(0, driver, 10), (1, driver, 11), (2, driver, 12)];
        let look = || {
            let shards = process.shards().unwrap();
            let tell = |it: &ShardMetrics| (it.shard, it.driver, it.metrics.tasks);
            (shards.iter().map(tell).collect::<Vec<_>>(), shards)
        };
        // What a shard did last is on its board when its turn ends.
        eventually_blocking("three shards with their tasks", || look().0 == expected);
        let (_, shards) = look();
        for shard in &shards {
            assert!(shard.metrics.polls >= 10 && shard.metrics.turns >= 1, "{shard:?}");
            assert!(shard.metrics.parked.as_secs() < 60 && shard.metrics.busy.as_secs() < 60);
        }
        // It sleeps, and is seen to sleep.
        let again = process.shards().unwrap();
        assert!(again[1].metrics.parked > shards[1].metrics.parked);
        assert!(again[1].metrics.turns - shards[1].metrics.turns <= 2, "{again:?}");
        // One that nobody has waited for is no more alive.
        child.signal(libc::SIGKILL);
        eventually_blocking("its end", || process.shards().is_err());
        let error = process.shards().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().ends_with("has ended"), "{error}");
        child.kill();
        assert_eq!(process.shards().unwrap_err().to_string(), error.to_string());
    }

    #[alone]
    async fn a_process_sees_itself_and_no_shard_that_has_ended() {
        for _ in 0..10 {
            drop(annulus::spawn(pending::<()>()));
        }
        let here = board();
        let ended = std::thread::spawn(|| {
            let runtime = annulus::Runtime::new().unwrap();
            runtime.block_on(async { board() })
        });
        let ended = ended.join().unwrap();
        settle().await;
        let shards = ProcessMetrics::attach(std::process::id()).unwrap().shards().unwrap();
        assert_eq!(shards.len(), 1, "{shards:?}");
        assert_eq!(shards[0].driver, annulus::driver_info().driver());
        assert_eq!(shards[0].metrics.tasks, here.read().tasks);
        drop(ended);
    }

    #[alone]
    fn the_example_shows_a_row_for_each_shard(driver: Driver) {
        let mut command = role("role_has_three_shards");
        command.env("ANNULUS_DRIVER", driver.to_string());
        let mut child = Running::start(command);
        child.line_after(READY);
        let shown = Command::new(example("top")).args([&child.id().to_string(), "--once"]).output();
        let shown = shown.unwrap();
        assert!(shown.status.success(), "{shown:?}");
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(!text.contains('\x1b'), "{text}");
        assert!(text.starts_with(&format!("process {}: 3 shards", child.id())), "{text}");
        let rows: Vec<Vec<_>> =
            text.lines().skip(3).map(|line| line.split_whitespace().collect()).collect();
        for (row, index) in rows.iter().zip(0..) {
            assert_eq!(row[..2], [index.to_string(), driver.to_string()], "{text}");
            assert_eq!(row[2].chars().count(), 20, "{text}");
            assert_eq!(row[6], (10 + index).to_string(), "{text}");
        }
        assert_eq!(rows.len(), 3, "{text}");
        child.kill();
    }
}

#[test]
fn what_cannot_be_attached_to_is_told_as_what_it_is() {
    Test::named("what_cannot_be_attached_to_is_told").plain(|| {
        let told = |pid| ProcessMetrics::attach(pid).unwrap_err();
        // The largest number that the kernel gives is 2^22.
        let none = told(u32::MAX);
        assert_eq!((none.kind(), &*none.to_string()), (ErrorKind::NotFound, NO_PROCESS));
        let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let foreign = told(other.id());
        assert_eq!(foreign.kind(), ErrorKind::NotFound);
        assert!(foreign.to_string().contains("has no annulus runtime"), "{foreign}");
        drop(other.stdin.take());
        other.wait().unwrap();
    });
}

#[test]
fn a_file_of_that_name_with_anything_in_it_harms_nobody() {
    Test::named("a_file_of_that_name").plain(|| {
        for (kind, expected) in [
            ("empty", Some("has no annulus runtime")),
            ("garbage", Some("has no annulus runtime")),
            ("another's", Some("has no annulus runtime")),
            ("layout", Some("has another version of annulus: layout 99")),
            ("clock", Some("has another version of annulus")),
            ("cut", None),
            ("wild", None),
        ] {
            let mut command = role("role_has_a_file_of_that_name");
            command.env(KIND, kind);
            let mut child = Running::start(command);
            child.line_after(READY);
            match (ProcessMetrics::attach(child.id()), expected) {
                (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{error}"),
                (Ok(process), None) if kind == "cut" => drop(process.shards().unwrap_err()),
                (Ok(process), None) => {
                    let shards = process.shards().unwrap();
                    assert_eq!(shards.len(), 16);
                    assert_eq!(shards[0].metrics.tasks, u64::MAX);
                }
                (other, _) => panic!("{kind}: {other:?}"),
            }
            child.kill();
        }
    });
}

#[test]
fn who_may_not_look_is_told_so() {
    Test::named("who_may_not_look_is_told_so").plain(|| {
        if !is_root() {
            return;
        }
        let scratch = process::Scratch::new();
        let runtime = annulus::Runtime::new().unwrap();
        let mut command = Command::new(scratch.program(&example("top")));
        command.args([&std::process::id().to_string(), "--once"]);
        unprivileged(&mut command, 0);
        let (status, _, errors) = Running::start(command).finish();
        drop(runtime);
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(errors.contains("cannot be looked at: that is for its user"), "{errors}");
    });
}

// Started by the tests above.
#[test]
fn role_has_three_shards() {
    if !in_role() {
        return;
    }
    let runtime = annulus::Runtime::builder().shards(3).build().unwrap();
    runtime.block_on(async {
        for shard in Shard::all() {
            let tasks = 10 + shard.index();
            let ready = shard.spawn_with(move || async move {
                (0..tasks).for_each(|_| drop(annulus::spawn(pending::<()>())));
            });
            ready.await.unwrap();
            // When this one is over, and all have been polled.
            shard.spawn_with(settle).await.unwrap();
        }
        println!("{READY}");
        pending::<()>().await;
    });
}

// Started by `a_file_of_that_name_with_anything_in_it_harms_nobody`.
#[test]
fn role_has_a_file_of_that_name() {
    if !in_role() {
        return;
    }
    let own = u64::from(std::process::id());
    let magic = u64::from_le_bytes(*b"annulus\n");
    // Magic, layout, bytes of a block, slots, slots used, clock, process.
    let (header, rest) = match std::env::var(KIND).unwrap().as_str() {
        "empty" => (vec![], 0),
        "garbage" => (vec![u64::MAX; 7], 4096),
        "another's" => (vec![magic, 1, 512, 1024, 1, 2, own + 1], 8192),
        "layout" => (vec![magic, 99, 512, 1024, 1, 2, own], 8192),
        "clock" => (vec![magic, 1, 512, 1024, 1, 77, own], 8192),
        "cut" => (vec![magic, 1, 512, u64::MAX, u64::MAX, 2, own], 8192),
        "wild" => (vec![magic, 1, 512, 1024, 16, 2, own], 8192),
        other => panic!("{other}"),
    };
    let mut contents: Vec<u8> = header.into_iter().flat_map(u64::to_ne_bytes).collect();
    if rest > 0 {
        contents.resize(4096, 0);
        contents.resize(4096 + rest, 0xff);
        // Each says that it is alive and on io_uring; all else is as large as can be.
        for block in contents[4096..].chunks_mut(512) {
            block[2 * 8..3 * 8].copy_from_slice(&1u64.to_ne_bytes());
            block[4 * 8..5 * 8].copy_from_slice(&0u64.to_ne_bytes());
        }
    }
    // SAFETY: the name ends with a zero, and the call makes a new descriptor.
    let fd = unsafe { libc::memfd_create(c"annulus-metrics".as_ptr(), 0) };
    assert!(fd >= 0);
    // SAFETY: it was just made, and nobody else knows it.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(&contents).unwrap();
    println!("{READY} {}", file.as_raw_fd());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

const NO_PROCESS: &str = "there is no process 4294967295";
const KIND: &str = "ANNULUS_TEST_KIND";
