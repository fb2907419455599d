//! Answers of a kernel that is short of something, and processes that are stopped or killed: what
//! must be told of it is told, and life goes on.
//!
//! What must never be seen is asked by `.ci/faults`, of every test there is.

use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use annulus::net::TcpListener;
use annulus::time::{interval, sleep, timeout};
use annulus::{Driver, Runtime, Shard};

use common::bytes::Keyed;
use common::faults::{faults, with_faults};
use common::peer::{self, peer};
use common::process::{self, READY, Running, Scratch, in_own_process, need_strace};
use common::steps::{self, echo, listen, serve_echo};
use common::{Test, each_driver, storm};

mod common;

// The answer of the trial holds for the life of the process.
#[test]
fn a_kernel_short_of_something_is_asked_again_while_the_ring_is_tried_out() {
    let test =
        Test::named("a_kernel_short_of_something_is_asked_again_while_the_ring_is_tried_out");
    test.alone().deadline_s(120).with_uring(|| {
        for errno in ["EAGAIN", "EBUSY", "ENOMEM", "EINTR"] {
            // With one entry the queue is full while it is tried out.
            for entries in ["1", "256"] {
                let rule = format!("io_uring_enter:error={errno}:when=1+2");
                let (said, faults) = builds_with(Driver::Uring, entries, &rule);
                assert_eq!(said, "io_uring", "{rule}, {entries} entries");
                assert!(faults > 0, "no call has met a fault");
            }
        }
    });
}

#[test]
fn a_shortage_without_end_is_a_refusal_that_names_it() {
    let test = Test::named("a_shortage_without_end_is_a_refusal_that_names_it");
    test.alone().deadline_s(120).with_uring(|| {
        for (call, errno) in [
            ("io_uring_enter", "EAGAIN"),
            ("io_uring_enter", "ENOMEM"),
            ("io_uring_setup", "ENOMEM"),
            ("io_uring_register", "ENOMEM"),
        ] {
            let rule = format!("{call}:error={errno}");
            let (said, _) = builds_with(Driver::Auto, "256", &rule);
            let told = format!("{call} was refused with {errno}");
            assert!(said.starts_with("epoll (") && said.contains(&told), "{rule}: {said}");
            let (said, _) = builds_with(Driver::Uring, "256", &rule);
            assert!(said.starts_with("error: refused: ") && said.contains(&told), "{rule}: {said}");
        }
    });
}

each_driver! {
    // The error of one wait spoils nothing: whoever tries again is served.
    #[alone]
    #[deadline_s(60)]
    fn who_tries_again_after_a_failed_registration_is_served(driver: Driver) {
        need_strace();
        let scratch = Scratch::new();
        for errno in ["ENOSPC", "ENOMEM"] {
            // Not the first ones: the runtime itself needs them.
            let rule = format!("epoll_ctl:error={errno}:when=3+3");
            let role = process::role("role_tries_again");
            let mut child = Running::start(with_faults(driver, role, &scratch, &[&rule]));
            let retried: u32 = child.line_after(READY).parse().expect("a number");
            let (status, _, errors) = child.finish();
            assert!(status.success(), "{status}: {errors}");
            assert_eq!(retried > 0, driver == Driver::Epoll, "{retried} were tried again");
            assert_eq!(faults(&scratch) > 0, driver == Driver::Epoll);
        }
    }

    // It jumps when nothing is left to be told, which a wait that failed does not say.
    #[alone]
    #[deadline_s(60)]
    fn a_paused_clock_does_not_jump_past_what_a_failed_wait_has_not_told(driver: Driver) {
        need_strace();
        let rule = match driver {
            Driver::Uring => "io_uring_enter:error=EAGAIN:when=2+3",
            _ => "epoll_wait:error=EINTR:when=2+3",
        };
        let scratch = Scratch::new();
        let role = process::role("role_waits_with_a_paused_clock");
        let mut child = Running::start(with_faults(driver, role, &scratch, &[rule]));
        assert_eq!(child.line_after(READY), "no jump");
        let (status, _, errors) = child.finish();
        assert!(status.success(), "{status}: {errors}");
        assert!(faults(&scratch) > 0, "no call has met a fault");
    }

    // A server that is stopped and goes on, as by a job control, a debugger or a frozen container.
    // (Stopped within a poll: `stall::a_process_that_is_stopped_is_not_stalled`.)
    #[alone]
    #[deadline_s(120)]
    fn a_stopped_server_goes_on_where_it_was(driver: Driver) {
        let mut command = process::role("role_serves_and_keeps_time");
        command.env("ANNULUS_DRIVER", driver.to_string()).env("ANNULUS_STALL_MS", "2000");
        let mut child = Running::start(command);
        let addr: SocketAddr = child.line_after(READY).parse().expect("an address");
        let waiting = peer::connect(addr);
        peer::echo(&waiting, Keyed(9), 10);
        let load = [1, 2].map(|key| {
            peer(move || {
                let start = Instant::now();
                let mut rounds = 0;
                while start.elapsed() < Duration::from_secs(8) {
                    peer::echo_interleaved(addr, key);
                    rounds += 1;
                }
                rounds
            })
        });
        for stopped_ms in [1, 10, 50, 4000, 1, 1, 1, 700] {
            thread::sleep(Duration::from_millis(100));
            child.signal(libc::SIGSTOP);
            thread::sleep(Duration::from_millis(stopped_ms));
            child.signal(libc::SIGCONT);
        }
        for peer in load {
            assert!(peer.join() > 0);
        }
        peer::echo(&waiting, Keyed(10), 10_000);
        child.tell("over");
        let fired = child.line_after("@timers ");
        assert_eq!(fired, "50 of 50 once", "timers");
        let (status, output, errors) = child.finish();
        assert!(status.success(), "{status}: {output}{errors}");
        assert_eq!(errors, "", "something was reported");
    }

    // What a child holds is held, and a ring holds its connections: until the child ends.
    #[alone]
    fn what_a_ring_in_a_child_holds_ends_with_the_child(driver: Driver) {
        let mut command = process::role("role_serves_beside_a_child_with_the_ring");
        command.env("ANNULUS_DRIVER", driver.to_string());
        let mut parent = Running::start(command);
        let addr: SocketAddr = parent.line_after(READY).parse().expect("an address");
        let held: u32 = parent.line_after("@held ").parse().expect("a number");
        assert_eq!(held > 0, driver == Driver::Uring, "{held} rings are held");
        let client = peer::connect(addr);
        peer::echo(&client, Keyed(1), 1000);
        parent.signal(libc::SIGKILL);
        if driver == Driver::Epoll {
            peer::expect_closed(&client);
        }
        // The child ends with its input, which it shares with its parent.
        parent.close_input();
        peer::expect_closed(&client);
        // What starts again in its place.
        common::runtime(driver).block_on(async {
            let bound = timeout(Duration::from_secs(5), async {
                loop {
                    match TcpListener::bind(addr).await {
                        Ok(listener) => return listener,
                        Err(_still_ending) => sleep(Duration::from_millis(5)).await,
                    }
                }
            });
            let listener = bound.await.expect("the port is free");
            let client = peer(move || peer::echo(&peer::connect(addr), Keyed(2), 1000));
            echo(listener.accept().await.unwrap().0).await.unwrap();
            client.await;
        });
    }

    // What `.ci/faults` has all tests run in.
    #[alone]
    fn the_storm_of_signals_ends_waits(driver: Driver) {
        in_own_process("the_storm_of_signals_ends_waits", driver, || {
            common::runtime(driver).block_on(async {
                storm::start();
                let (signals, enters) = (storm::handled(), annulus::metrics().enters);
                sleep(Duration::from_millis(500)).await;
                let signals = storm::handled() - signals;
                assert!(signals > 100, "{signals} signals in half a second");
                let enters = annulus::metrics().enters - enters;
                assert!(enters > 50, "{enters} waits in half a second: they were not ended");
            });
        });
    }
}

/// Builds the runtime of a role under strace: what it says, and how many faults it has met.
fn builds_with(driver: Driver, entries: &str, rule: &str) -> (String, usize) {
    need_strace();
    let scratch = Scratch::new();
    let mut role = process::role("role_builds");
    role.env("ANNULUS_RING_ENTRIES", entries);
    let mut child = Running::start(with_faults(driver, role, &scratch, &[rule]));
    let said = child.line_after(READY);
    let (status, _, errors) = child.finish();
    assert!(status.success(), "{status}: {errors}");
    (said, faults(&scratch))
}

#[test]
fn role_builds() {
    if !process::in_role() {
        return;
    }
    steps::build_and_tell();
}

#[test]
fn role_tries_again() {
    if !process::in_role() {
        return;
    }
    let mut retried = 0;
    Runtime::new().expect("build a runtime").block_on(async {
        let (listener, addr) = listen().await;
        for key in 0..20 {
            let client = peer(move || {
                // Both sides wait: the server for the connection, then for its bytes.
                thread::sleep(Duration::from_millis(5));
                let stream = peer::connect(addr);
                thread::sleep(Duration::from_millis(5));
                peer::echo(&stream, Keyed(key), 100);
            });
            let (mut stream, _) = loop {
                match listener.accept().await {
                    Ok(accepted) => break accepted,
                    Err(error) => retried += is_of_epoll(&error),
                }
            };
            let mut bytes = [0; 100];
            let mut filled = 0;
            while filled < bytes.len() {
                match stream.read(&mut bytes[filled..]).await {
                    Ok(count) => filled += count,
                    Err(error) => retried += is_of_epoll(&error),
                }
            }
            Keyed(key).check(0, &bytes);
            stream.write_all(&bytes).await.expect("a small write waits for nothing");
            stream.flush().await.expect("nor does its flush");
            client.await;
        }
    });
    println!("{READY}{retried}");
}

fn is_of_epoll(error: &std::io::Error) -> u32 {
    assert!(matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::ENOMEM)), "{error}");
    1
}

#[test]
fn role_waits_with_a_paused_clock() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::builder().start_paused(true).build().expect("build a runtime");
    runtime.block_on(async {
        let (listener, addr) = listen().await;
        let mut client = peer(move || peer::connect(addr)).await;
        let (mut stream, _) = listener.accept().await.expect("accept");
        for _ in 0..60 {
            let mut byte = [0];
            let before = timeout(Duration::from_millis(1), stream.read(&mut byte)).await;
            before.expect_err("nothing is there yet");
            client.write_all(b"!").expect("a peer's write");
            let start = annulus::time::Instant::now();
            let read = timeout(Duration::from_secs(3600), stream.read(&mut byte)).await;
            assert_eq!(read.expect("the byte came first").expect("a read"), 1);
            assert_eq!(start.elapsed(), Duration::ZERO, "the clock jumped past the byte");
        }
    });
    println!("{READY}no jump");
}

#[test]
fn role_serves_and_keeps_time() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::builder().shards(2).build().expect("build a runtime");
    runtime.block_on(async {
        // Some are due while the process stands, most are not.
        let timers: Vec<_> = (1..=50)
            .map(|number: u32| {
                annulus::spawn(async move {
                    let (start, wanted) = (Instant::now(), Duration::from_millis(100) * number);
                    sleep(wanted).await;
                    assert!(start.elapsed() >= wanted, "a timer of {wanted:?} was early");
                    1
                })
            })
            .collect();
        drop(Shard::all()[1].spawn_with(|| async {
            let mut ticks = interval(Duration::from_millis(10));
            loop {
                ticks.tick().await;
            }
        }));
        println!("{READY}{}", serve_echo().await);
        let told = annulus::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(drop)
        });
        told.await.expect("no panic").expect("read the input");
        let mut fired = 0;
        for timer in timers {
            fired += timer.await.expect("a timer that was not early");
        }
        println!("@timers {fired} of 50 once");
    });
}

#[test]
fn role_serves_beside_a_child_with_the_ring() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::new().expect("build a runtime");
    runtime.block_on(async {
        println!("{READY}{}", serve_echo().await);
        sleep(Duration::from_millis(10)).await;
        let _child = process::fork_for(|| {
            let mut rings = 0;
            for fd in process::descriptors() {
                let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
                let is_ring = link.is_ok_and(|link| link.ends_with("anon_inode:[io_uring]"));
                rings += u32::from(is_ring);
                if !is_ring && fd > 2 {
                    // SAFETY: the descriptor is this child's copy, which nothing here uses again.
                    unsafe { libc::close(fd) };
                }
            }
            println!("@held {rings}");
            let _ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        });
        std::future::pending::<()>().await;
    });
}
