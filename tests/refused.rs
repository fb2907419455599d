//! Refusals and limits of a process: what they cost is told with its name, and spoils nothing else.

use std::future::pending;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use annulus::net::{ListenerGroup, TcpStream};
use annulus::task::yield_now;
use annulus::time::{sleep, timeout};
use annulus::{Driver, Runtime, Shard};
use socket2::SockRef;

use common::bytes::Keyed;
use common::peer::{self, peer};
use common::process::{
    self, IO_URING_ENTER, IO_URING_REGISTER, IO_URING_SETUP, READY, Running, Scratch, cpu_ms,
    in_own_process, refuse_here, unprivileged,
};
use common::steps::{self, listen, pair, serve_echo, serve_somebody, with_peer};
use common::{Test, each_driver, slower, uring_left_out};

mod common;

// Refused on one thread only, as a filter is: nothing of it sticks to the process.
#[test]
fn a_shortage_at_the_building_of_a_runtime_is_told_and_holds_for_no_other() {
    let name = "a_shortage_at_the_building_of_a_runtime_is_told_and_holds_for_no_other";
    Test::named(name).deadline_s(60).with_uring(|| {
        let (status, output, errors) =
            Running::start(process::role("role_builds_while_short")).finish();
        assert!(status.success(), "{output}\n{errors}");
    });
}

// All processes of a user share the limit, so that each size has a process of its own.
#[test]
fn a_limit_on_locked_memory_gives_a_smaller_ring_or_is_named() {
    let test = Test::named("a_limit_on_locked_memory_gives_a_smaller_ring_or_is_named");
    test.alone().deadline_s(120).with_uring(|| {
        let scratch = Scratch::new();
        let role = process::role("role_builds");
        let program = scratch.program(role.get_program().as_ref());
        let said = |limit: u64, driver: Driver| {
            let mut command = process::moved(&role, &program);
            command.env("ANNULUS_DRIVER", driver.to_string());
            unprivileged(&mut command, limit);
            let mut child = Running::start(command);
            let said = child.line_after(READY);
            let (status, _, errors) = child.finish();
            assert!(status.success(), "{errors}");
            (said, errors)
        };
        if !process::rings_are_counted() {
            let (said, notice) = said(0, Driver::Auto);
            return assert_eq!((said.as_str(), notice.as_str()), ("io_uring", ""));
        }
        let (none, notice) = said(0, Driver::Auto);
        let told =
            "epoll (io_uring_setup was refused with ENOMEM (locked memory limited to 0 bytes, ";
        assert!(none.starts_with(told), "{none}");
        assert!(notice.contains("annulus: running on epoll: "), "{notice}");
        let (strict, _) = said(0, Driver::Uring);
        assert!(strict.starts_with("error: refused: "), "{strict}");
        for part in ["RLIMIT_MEMLOCK", "ulimit -l", "ANNULUS_DRIVER=epoll"] {
            assert!(strict.contains(part), "{part} is missing in: {strict}");
        }
        // Half of what the whole ring needs: a smaller one, without a word.
        assert_eq!(said(64 << 10, Driver::Auto), ("io_uring".to_owned(), String::new()));
        assert_eq!(said(8 << 20, Driver::Auto), ("io_uring".to_owned(), String::new()));
    });
}

each_driver! {
    // By `fs.epoll.max_user_watches`, say. On the ring nothing is registered.
    #[alone]
    #[deadline_s(60)]
    fn a_descriptor_that_cannot_be_registered_is_an_error_now_and_then(driver: Driver) {
        let name = "a_descriptor_that_cannot_be_registered_is_an_error_now_and_then";
        in_own_process(name, driver, || {
            let runtime = common::runtime(driver);
            runtime.block_on(async {
                let (listener, addr) = listen().await;
                // The accepted end: the connect has registered the other one.
                    let (_near, mut stream) = pair().await;
                refuse_here(&[(libc::SYS_epoll_ctl as u32, libc::ENOSPC)]);
                let before = cpu_ms();
                let start = Instant::now();
                let mut errors = 0;
                while start.elapsed() < Duration::from_secs(1) {
                    match timeout(Duration::from_millis(300), listener.accept()).await {
                        Ok(Err(error)) => {
                            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                            errors += 1;
                        }
                        Ok(Ok(_)) => panic!("nobody has connected"),
                        Err(_elapsed) => {}
                    }
                }
                let spent = cpu_ms() - before;
                assert!(errors <= 11, "{errors} errors in a second");
                assert!(spent < 500, "{spent} ms of processor time in a second of waiting");
                let read = timeout(Duration::from_millis(20), stream.read(&mut [0])).await;
                if driver == Driver::Epoll {
                    assert!(errors > 1, "{errors} errors in a second");
                    let error = read.expect("an error").unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                } else {
                    assert_eq!(errors, 0);
                    read.unwrap_err();
                }
                // What needs no waiting works.
                let client = peer(move || peer::connect(addr)).await;
                let accepted = timeout(Duration::from_secs(5), async {
                    while listener.accept().await.is_err() {}
                });
                accepted.await.expect("it accepts in the end");
                drop(client);
            });
        });
    }

    // The socket is full, and the descriptor cannot be watched: on epoll sends fail.
    #[alone]
    #[deadline_s(60)]
    fn accepted_bytes_survive_sends_that_fail_for_a_shortage(driver: Driver) {
        let name = "accepted_bytes_survive_sends_that_fail_for_a_shortage";
        in_own_process(name, driver, || {
            for dropped in [false, true] {
                let told = thread::spawn(move || writes_while_short(driver, dropped)).join();
                let errors = told.expect("no byte is missing");
                assert_eq!(errors > 0, driver == Driver::Epoll, "{errors} errors");
            }
        });
    }

    // No call follows that would try again.
    #[alone]
    #[deadline_s(60)]
    fn what_a_shortage_has_kept_back_is_sent_without_a_call(driver: Driver) {
        in_own_process("what_a_shortage_has_kept_back_is_sent_without_a_call", driver, || {
            for finished in [false, true] {
                let quiet = thread::spawn(move || is_quiet_while_short(driver, finished));
                quiet.join().expect("all arrives");
            }
        });
    }

    #[alone]
    #[deadline_s(60)]
    fn the_end_of_a_runtime_sends_what_a_shortage_has_kept_back(driver: Driver) {
        let name = "the_end_of_a_runtime_sends_what_a_shortage_has_kept_back";
        in_own_process(name, driver, || {
            let ended = thread::spawn(move || ends_while_short(driver));
            ended.join().expect("all arrives");
        });
    }

    #[alone]
    #[deadline_s(60)]
    fn a_lingering_close_without_a_thread_blocks_nobody(driver: Driver) {
        in_own_process("a_lingering_close_without_a_thread_blocks_nobody", driver, || {
            let took = common::runtime(driver).block_on(async {
                let (listener, addr) = peer::listen();
                let deaf = peer::connect(addr);
                let ours = peer::accept(&listener);
                SockRef::from(&ours).set_linger(Some(Duration::from_secs(15))).unwrap();
                ours.set_nonblocking(true).unwrap();
                while (&ours).write(&[1; 1 << 16]).is_ok() {}
                let stream = TcpStream::from_std(ours).unwrap();
                refuse_here(&[
                    (libc::SYS_clone as u32, libc::EAGAIN),
                    (libc::SYS_clone3 as u32, libc::EAGAIN),
                ]);
                let start = Instant::now();
                drop(stream);
                steps::settle().await;
                drop(deaf);
                start.elapsed()
            });
            assert!(took < Duration::from_secs(5), "{took:?}");
        });
    }

    #[alone]
    fn a_connect_without_descriptors_keeps_its_errno(driver: Driver) {
        in_own_process("a_connect_without_descriptors_keeps_its_errno", driver, || {
            common::runtime(driver).block_on(async {
                let (_listener, addr) = listen().await;
                for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
                    let failed = thread::spawn(move || {
                        let runtime = common::runtime(driver);
                        refuse_here(&[(libc::SYS_socket as u32, errno)]);
                        runtime.block_on(TcpStream::connect(addr)).map(drop).unwrap_err()
                    });
                    let error = failed.join().expect("no panic");
                    assert_eq!(error.raw_os_error(), Some(errno), "{error}");
                }
            });
        });
    }

    // More clients than descriptors, and no right to have more of them.
    #[alone]
    #[deadline_s(60)]
    fn a_flood_beyond_the_descriptors_of_a_user_is_served_in_the_end(driver: Driver) {
        for role in ["role_accepts_on_64_descriptors", "role_serves_on_64_descriptors"] {
            let scratch = Scratch::new();
            let role = process::role(role);
            let program = scratch.program(role.get_program().as_ref());
            let mut command = process::moved(&role, &program);
            command.env("ANNULUS_DRIVER", driver.to_string());
            unprivileged(&mut command, 8 << 20);
            let mut child = Running::start(command);
            let addr: SocketAddr = child.line_after(READY).parse().expect("an address");
            let start = Instant::now();
            let clients: Vec<_> = (0..200).map(|_| peer::connect(addr)).collect();
            for client in &clients {
                peer::send(client, &mut Keyed(1).cursor(), 100);
            }
            for client in clients {
                // In the order in which they came: each end makes room for another.
                peer::expect(&client, &mut Keyed(1).cursor(), 100);
            }
            peer::echo(&peer::connect(addr), Keyed(2), 100_000);
            let seconds = start.elapsed().as_secs() + 1;
            child.close_input();
            let told: u64 = child.line_after("@errors ").parse().expect("a number");
            let (status, output, errors) = child.finish();
            assert!(status.success(), "{status}: {output}{errors}");
            // Every 100 ms on each of two shards.
            assert!((1..=20 * seconds).contains(&told), "{told} errors in {seconds} s");
        }
    }

    // A filter may come after the start, when a program gives up its rights.
    #[alone]
    fn a_shard_that_starts_behind_a_filter_runs_or_says_why_not(driver: Driver) {
        let refusals = [
            (IO_URING_SETUP, libc::EPERM, "setup was refused with EPERM (seccomp filter)"),
            (IO_URING_SETUP, libc::ENOSYS, "setup was refused with ENOSYS (seccomp filter)"),
            (IO_URING_REGISTER, libc::EPERM, "register was refused with EPERM"),
        ];
        in_own_process("a_shard_that_starts_behind_a_filter_runs_or_says_why_not", driver, || {
            for (call, errno, told) in refusals {
                for asked in [driver, Driver::Auto] {
                    let second = move || second_shard_behind_a_filter(asked, call, errno);
                    let said = thread::spawn(second);
                    let said = said.join().expect("no panic");
                    match asked {
                        Driver::Uring => assert!(said.contains("seccomp"), "{said}"),
                        Driver::Epoll => assert_eq!(said, "epoll (asked for)"),
                        // Refused before there was a filter, and the answer holds.
                        _ if uring_left_out() => assert!(said.contains("was refused"), "{said}"),
                        _ => assert!(said.contains(told), "{said}"),
                    }
                }
            }
        });
    }

    // It cannot be cured. But it is told, and what was in flight is let go of.
    #[alone]
    fn a_wait_that_a_filter_refuses_ends_block_on_with_its_errno(driver: Driver) {
        let name = "a_wait_that_a_filter_refuses_ends_block_on_with_its_errno";
        in_own_process(name, driver, || {
            for (errno, told) in [(libc::EPERM, "os error 1"), (libc::ENOSYS, "os error 38")] {
                let ended = thread::spawn(move || {
                    let runtime = common::runtime(driver);
                    runtime.block_on(async {
                        let _addr = serve_echo().await;
                        sleep(Duration::from_millis(1)).await;
                        refuse_here(&[
                            (IO_URING_ENTER, errno),
                            (libc::SYS_epoll_wait as u32, errno),
                            (libc::SYS_epoll_pwait2 as u32, errno),
                        ]);
                        sleep(Duration::from_secs(60)).await;
                    });
                });
                let panic = ended.join().expect_err("it cannot wait");
                let text = panic.downcast_ref::<String>().expect("a text");
                assert!(text.contains("refuses to wait") && text.contains(told), "{text}");
            }
        });
    }
}

/// Writes beyond what the socket takes to a peer that reads late, and checks that it gets all that
/// was accepted. Answers how many writes have failed; such a write took nothing.
fn writes_while_short(driver: Driver, dropped: bool) -> u32 {
    common::runtime(driver).block_on(async {
        let (go, told) = channel::<()>();
        let (mut stream, peer) = with_peer(move |stream| {
            told.recv().unwrap();
            peer::expect_until_end(&stream, &mut Keyed(7).cursor())
        })
        .await;
        let (accepted, errors) = fill_while_short(&mut stream).await;
        go.send(()).unwrap();
        if dropped {
            drop(stream);
        } else {
            while stream.shutdown().await.is_err() {
                sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(peer.await, accepted);
        errors
    })
}

/// Writes until no more is accepted, on epoll because the descriptor cannot be watched. Answers how
/// much was, and how many errors there were.
async fn fill_while_short(stream: &mut TcpStream) -> (u64, u32) {
    refuse_here(&[(libc::SYS_epoll_ctl as u32, libc::ENOSPC)]);
    let (mut accepted, mut errors) = (0, 0);
    while errors < 5 {
        let bytes = Keyed(7).bytes(accepted, 4096);
        match timeout(Duration::from_millis(100), stream.write(&bytes)).await {
            Ok(Ok(count)) => accepted += count as u64,
            Ok(Err(error)) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                errors += 1;
            }
            Err(_elapsed) => break,
        }
        yield_now().await;
    }
    (accepted, errors)
}

fn is_quiet_while_short(driver: Driver, finished: bool) {
    common::runtime(driver).block_on(async {
        let (go, told) = channel();
        let (mut stream, peer) = with_peer(move |stream| {
            let accepted = told.recv().unwrap();
            peer::expect(&stream, &mut Keyed(7).cursor(), accepted);
            if finished {
                peer::expect_end(&stream);
            }
        })
        .await;
        let (accepted, _) = fill_while_short(&mut stream).await;
        let (reader, writer) = stream.into_split();
        let mut writer = (!finished).then_some(writer);
        // What the last error has had tried again has failed too.
        steps::settle().await;
        go.send(accepted as usize).unwrap();
        peer.await;
        if let Some(writer) = &mut writer {
            writer.write_all(b"!").await.expect("what is over is not told");
        }
        drop((reader, writer));
    });
}

/// Tells a peer how much was accepted, when its task is dropped.
struct ToldAtEnd(Sender<u64>, u64);

impl Drop for ToldAtEnd {
    fn drop(&mut self) {
        self.0.send(self.1).expect("the peer waits");
    }
}

fn ends_while_short(driver: Driver) {
    let (at_end, told) = channel();
    let shard = process::thread_id();
    let runtime = common::runtime(driver);
    let mut at_work = None;
    runtime.block_on(async {
        let (mut stream, peer) = with_peer(move |stream| {
            let accepted: u64 = told.recv().unwrap();
            // Until the first try is over, and the shard waits: for longer than a lock is held. It
            // tries for a second, of which this takes a part.
            let start = Instant::now();
            let waits = || (0..20).all(|_look| process::rests(shard));
            while !waits() && start.elapsed() < Duration::from_millis(300) {
                thread::yield_now();
            }
            assert_eq!(peer::expect_until_end(&stream, &mut Keyed(7).cursor()), accepted);
        })
        .await;
        let (accepted, _) = fill_while_short(&mut stream).await;
        annulus::spawn(async move {
            let _stream = stream;
            let _told = ToldAtEnd(at_end, accepted);
            pending::<()>().await;
        });
        steps::settle().await;
        at_work = Some(peer);
    });
    drop(runtime);
    at_work.expect("the peer").join();
}

#[test]
fn role_builds_while_short() {
    if !process::in_role() {
        return;
    }
    let shortages = [
        (libc::SYS_mmap, libc::ENOMEM, "annot allocate memory"),
        (libc::SYS_eventfd2, libc::EMFILE, "RLIMIT_NOFILE"),
        (libc::SYS_epoll_create1, libc::EMFILE, "RLIMIT_NOFILE"),
        (libc::SYS_epoll_create1, libc::ENFILE, "fs.file-max"),
        (libc::SYS_epoll_create1, libc::ENOMEM, "annot allocate memory"),
        (libc::SYS_epoll_ctl, libc::ENOSPC, "fs.epoll.max_user_watches"),
        (libc::SYS_epoll_ctl, libc::ENOMEM, "annot allocate memory"),
        (i64::from(IO_URING_SETUP), libc::EMFILE, "RLIMIT_NOFILE"),
        (i64::from(IO_URING_SETUP), libc::ENFILE, "fs.file-max"),
    ];
    for driver in [Driver::Auto, Driver::Epoll] {
        for (call, errno, told) in shortages {
            let only_the_ring = call == i64::from(IO_URING_SETUP);
            let only_epoll = [libc::SYS_epoll_create1, libc::SYS_epoll_ctl].contains(&call);
            let surfaces = match driver {
                Driver::Epoll => !only_the_ring,
                _ => !only_epoll,
            };
            let built = thread::spawn(move || {
                refuse_here(&[(call as u32, errno)]);
                built(driver)
            });
            let built = built.join().expect("no panic");
            match built {
                Ok(driver) => assert!(!surfaces, "{call} with {errno}: built on {driver}"),
                Err(error) => {
                    assert!(surfaces, "{call} with {errno} on {driver}: {error}");
                    assert!(error.contains(told), "{call} with {errno} on {driver}: {error}");
                }
            }
        }
    }
    assert_eq!(built(Driver::Auto).as_deref(), Ok("io_uring"));
}

/// Builds a runtime and uses it. Which driver it is on, or what the error says.
fn built(driver: Driver) -> Result<String, String> {
    let runtime = Runtime::builder().driver(driver).build().map_err(|error| error.to_string())?;
    runtime.block_on(serve_somebody());
    let info = runtime.driver().to_string();
    Ok(info)
}

#[test]
fn role_builds() {
    if !process::in_role() {
        return;
    }
    steps::build_and_tell();
}

#[test]
fn role_accepts_on_64_descriptors() {
    serves_on_64_descriptors(async |addr| {
        let (listener, bound) = listen().await;
        addr(bound);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    annulus::spawn(async move { drop(echo_once(stream).await) });
                }
                Err(_) => count_error(),
            }
        }
    });
}

#[test]
fn role_serves_on_64_descriptors() {
    serves_on_64_descriptors(async |addr| {
        let group = ListenerGroup::bind("127.0.0.1:0").expect("bind a group");
        addr(group.local_addr());
        let group = group.on_accept_error(|_| count_error());
        group.serve(async |stream, _| drop(echo_once(stream).await)).await.expect("serve");
    });
}

fn serves_on_64_descriptors(serve: impl AsyncFnOnce(&dyn Fn(SocketAddr))) {
    if !process::in_role() {
        return;
    }
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    process::set_descriptor_limit(limit).expect("lower the limit of descriptors");
    let runtime = Runtime::builder().shards(2).build().expect("build a runtime");
    runtime.block_on(async {
        let over = annulus::task::spawn_blocking(|| {
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop)
        });
        let serving = serve(&|addr| println!("{READY}{addr}"));
        steps::race(over, serving).await;
    });
    println!("@errors {}", ERRORS.load(Ordering::Relaxed));
}

/// How often the roles above were told that they cannot accept.
static ERRORS: AtomicU64 = AtomicU64::new(0);

fn count_error() {
    ERRORS.fetch_add(1, Ordering::Relaxed);
}

/// Answers what comes, till nothing does for a moment: a client of a flood asks once.
async fn echo_once(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = vec![0; 16 * 1024];
    let moment = Duration::from_millis(300) * slower();
    // All connect before the first of them sends, which may take longer.
    let mut read = stream.read(&mut bytes).await;
    loop {
        match read? {
            0 => return Ok(()),
            count => stream.write_all(&bytes[..count]).await?,
        }
        let Ok(next) = timeout(moment, stream.read(&mut bytes)).await else { return Ok(()) };
        read = next;
    }
}

/// What the second shard of a runtime says that starts behind a filter: its driver, or why not.
fn second_shard_behind_a_filter(driver: Driver, call: u32, errno: i32) -> String {
    let runtime = Runtime::builder().driver(driver).shards(2).build().expect("build a runtime");
    runtime.block_on(async {
        refuse_here(&[(call, errno)]);
        let second = Shard::all()[1].spawn_with(|| async {
            serve_somebody().await;
            annulus::driver_info().to_string()
        });
        second.await.unwrap_or_else(|error| error.to_string())
    })
}
