//! What the kernel may answer to a wait or a request, and what must not come of it.
//!
//! Answers that a healthy kernel does not give are put in by `strace -e inject`, into a server in
//! a process of its own.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use annulus::net::TcpStream;
use annulus::runtime::{Entry, Fd, Interest, Op, Operation};
use annulus::task::yield_now;
use annulus::time::{sleep, timeout};
use annulus::{Driver, Runtime};
use io_uring::opcode;
use io_uring::types::CancelBuilder;

use common::bytes::Keyed;
use common::faults::{LOG, faults, with_faults};
use common::peer::{self, peer};
use common::process::{self, READY, Running, Scratch, need_strace};
use common::steps::{echo, listen, poll_once, serve_echo, settle, with_peer};
use common::{Test, each_driver};

mod common;

each_driver! {
    #[alone]
    #[deadline_s(120)]
    fn calls_that_a_signal_ends_are_made_again(driver: Driver) {
        let rules: &[&str] = match driver {
            // Also those that try the ring out.
            Driver::Uring => &["io_uring_enter:error=EINTR:when=1+2"],
            _ => &[
                "epoll_wait:error=EINTR:when=3+2",
                "epoll_pwait2:error=EINTR:when=3+2",
                "accept4:error=EINTR:when=2+2",
                "recvfrom:error=EINTR:when=2+2",
                "sendto:error=EINTR:when=2+2",
            ],
        };
        serves_in_spite_of(driver, rules);
    }

    #[alone]
    #[deadline_s(60)]
    fn a_vectored_write_that_a_signal_ends_is_made_again(driver: Driver) {
        need_strace();
        let scratch = Scratch::new();
        let role = process::role("role_writes_large_slices");
        let rule = "sendmsg:error=EINTR:when=1+2";
        let mut child = Running::start(with_faults(driver, role, &scratch, &[rule]));
        child.line_after(READY);
        let (status, _, errors) = child.finish();
        assert!(status.success(), "{status}: {errors}");
        assert!(faults(&scratch) > 0, "no call has met a fault");
    }

    #[alone]
    #[deadline_s(60)]
    fn a_connect_that_a_signal_ends_is_made_again(driver: Driver) {
        need_strace();
        let rule = match driver {
            Driver::Uring => "io_uring_enter:error=EINTR:when=1+2",
            _ => "connect:error=EINTR:when=1+2",
        };
        let scratch = Scratch::new();
        let role = process::role("role_connects_again_and_again");
        let mut child = Running::start(with_faults(driver, role, &scratch, &[rule]));
        child.line_after(READY);
        let (status, _, errors) = child.finish();
        assert!(status.success(), "{status}: {errors}");
        assert!(faults(&scratch) > 0, "no call has met a fault");
    }

    // Nothing of what was queued is taken then, and nothing is to be given up for that.
    #[alone]
    #[deadline_s(240)]
    fn a_kernel_short_of_something_is_asked_again(driver: Driver) {
        if driver == Driver::Uring {
            for errno in ["EAGAIN", "EBUSY", "ENOMEM"] {
                serves_in_spite_of(driver, &[&format!("io_uring_enter:error={errno}:when=50+2")]);
            }
        } else {
            for errno in ["ENOBUFS", "ENOMEM", "ENFILE"] {
                serves_in_spite_of(driver, &[&format!("accept4:error={errno}:when=3+4")]);
            }
        }
    }

    #[alone]
    #[deadline_s(60)]
    fn a_wait_refused_for_good_ends_block_on_and_nothing_else(driver: Driver) {
        need_strace();
        let rule = match driver {
            Driver::Uring => "io_uring_enter:error=EBADR:when=200+",
            _ => "epoll_wait,epoll_pwait2:error=EBADF:when=200+",
        };
        let scratch = Scratch::new();
        let role = process::role("role_meets_a_kernel_that_refuses_to_wait");
        let mut child = Running::start(with_faults(driver, role, &scratch, &[rule]));
        let ended = child.line_after("@ended ");
        assert!(ended.contains("the kernel refuses"), "block_on ended with: {ended}");
        let dropped = child.line_after("@dropped ");
        assert_eq!(dropped, "quietly", "the end of the runtime has panicked");
        let (status, _, errors) = child.finish();
        assert!(status.success(), "{status}: {errors}");
        let log = std::fs::read_to_string(scratch.path(LOG)).unwrap();
        let waits = log.lines().filter(|line| line.contains("enter(") || line.contains("epoll_"));
        let count = waits.count();
        assert!(count < 1000, "{count} waits: the refused one was repeated");
    }

    #[alone]
    fn timers_and_sockets_keep_going_in_a_storm_of_signals(driver: Driver) {
        let runtime = common::runtime(driver);
        let storm = Storm::start();
        runtime.block_on(async {
            let addr = serve_echo().await;
            let client = peer(move || {
                let stream = peer::connect(addr);
                for key in 0..200 {
                    peer::echo(&stream, Keyed(key), 2000);
                }
            });
            for _ in 0..40 {
                let (start, wanted) = (Instant::now(), Duration::from_millis(5));
                sleep(wanted).await;
                let took = start.elapsed();
                assert!(took >= wanted, "a sleep of {wanted:?} took {took:?}");
                assert!(took < Duration::from_secs(2), "a sleep of {wanted:?} took {took:?}");
            }
            client.await;
            // With nothing else to do, a signal wakes the thread and nobody on it.
            let (mut stream, _other) = common::steps::pair().await;
            let polls = Cell::new(0);
            let mut buf = [0; 8];
            let mut reading = pin!(stream.read(&mut buf));
            let counting = poll_fn(|cx| {
                polls.set(polls.get() + 1);
                reading.as_mut().poll(cx)
            });
            timeout(Duration::from_millis(100), counting).await.unwrap_err();
            assert!(polls.get() <= 3, "{} polls of a read that nothing came for", polls.get());
        });
        let signals = storm.stop();
        assert!(signals > 20, "{signals} signals are no storm");
    }

    // The kernel may end requests that nobody asked it to end. That is no end of a stream, and no
    // reason to be deaf from then on.
    async fn requests_that_the_kernel_gives_up_are_errors_or_made_again() {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let (mut stream, peer) = with_peer(move |stream| {
            let mut sent = Keyed(1).cursor();
            while told.recv().is_ok() {
                peer::send(&stream, &mut sent, 10);
            }
        })
        .await;
        let (listener, addr) = listen().await;
        let (mut stuck, deaf) = with_peer(|stream| stream).await;
        let mut accepted = 0;
        loop {
            let bytes = Keyed(2).bytes(accepted, 100_000);
            match timeout(Duration::from_millis(50), stuck.write(&bytes)).await {
                Ok(count) => accepted += count.unwrap() as u64,
                Err(_elapsed) => break,
            }
        }
        let reading = annulus::spawn(async move {
            let mut received = Keyed(1).cursor();
            let mut buf = [0; 10];
            while received.offset < 50 {
                match stream.read(&mut buf).await {
                    Ok(0) => panic!("taken for the end of the stream"),
                    Ok(n) => received.check(&buf[..n]),
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ECANCELED)),
                }
            }
        });
        let accepting = annulus::spawn(async move {
            for _ in 0..5 {
                while let Err(error) = listener.accept().await {
                    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
                }
            }
        });
        settle().await;
        for _ in 0..5 {
            Op::new(CancelAll(fd())).await.unwrap();
            settle().await;
            // Wakes from other threads come through a request of the ring as well. Without a
            // timeout: a timer would wake the shard in their place.
            for _ in 0..5 {
                peer::peer(|| thread::sleep(Duration::from_millis(5))).await;
            }
            tell.send(()).unwrap();
            drop(peer::peer(move || peer::connect(addr)).await);
        }
        timeout(Duration::from_secs(5), reading).await.expect("the stream is deaf").unwrap();
        timeout(Duration::from_secs(5), accepting).await.expect("the listener is deaf").unwrap();
        drop(tell);
        peer.await;
        let deaf = deaf.await;
        let all = peer::peer(move || peer::expect_until_end(&deaf, &mut Keyed(2).cursor()));
        while let Err(error) = stuck.shutdown().await {
            assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        }
        assert_eq!(all.await, accepted, "unsent bytes were taken for sent");
    }
}

// Such errors are a client's, and the client is gone. Into a ring nothing can be put: there it has
// to be the real thing, which `echo.rs` does.
#[test]
fn an_accept_that_fails_for_a_client_is_no_end_of_the_listener() {
    let test = Test::named("an_accept_that_fails_for_a_client_is_no_end_of_the_listener");
    test.alone().deadline_s(120).plain(|| {
        for errno in ["ECONNABORTED", "EPROTO", "ENETDOWN"] {
            let rule = format!("accept4:error={errno}:when=1+2");
            let errors = serves_in_spite_of(Driver::Epoll, &[&rule]);
            assert!(!errors.contains(REPORTED), "{errno} is not the listener's:\n{errors}");
        }
    });
}

// A ring whose task work is deferred gives nothing without GETEVENTS, and a thread that waits in it
// counts as one that waits for a disk, unless told otherwise.
#[test]
fn every_enter_of_a_ring_asks_for_events_and_is_no_wait_for_a_disk() {
    let test = Test::named("every_enter_of_a_ring_asks_for_events_and_is_no_wait_for_a_disk");
    test.alone().deadline_s(60).with_uring(|| {
        need_strace();
        let scratch = Scratch::new();
        let mut strace = Command::new("strace");
        let calls = "trace=io_uring_setup,io_uring_enter";
        strace.args(["-f", "-qq", "-X", "raw", "-e", calls, "-o"]).arg(scratch.path(LOG));
        strace.arg("--");
        let mut role = process::role("role_serves_echo_whatever_accept_says");
        role.env("ANNULUS_DRIVER", "uring");
        let mut child = Running::start(process::behind(strace, &role));
        let addr: SocketAddr = child.line_after(READY).parse().unwrap();
        let tried_out = enters(&scratch.path(LOG)).len();
        peer::echo_interleaved(addr, 1);
        drop(child);
        let all = std::fs::read_to_string(scratch.path(LOG)).unwrap();
        let setup = all.lines().rfind(|line| line.contains("features=")).expect("a ring was made");
        let (_, features) = setup.split_once("features=0x").expect("features in figures");
        let digits: String = features.chars().take_while(char::is_ascii_hexdigit).collect();
        let knows_no_iowait = u32::from_str_radix(&digits, 16).unwrap() & FEAT_NO_IOWAIT != 0;
        let flags = enters(&scratch.path(LOG)).split_off(tried_out);
        assert!(flags.len() > 20, "{} enters", flags.len());
        for flags in flags {
            assert_ne!(flags & ENTER_GETEVENTS, 0, "an enter with flags {flags:#x}");
            let no_iowait = flags & ENTER_NO_IOWAIT != 0;
            assert_eq!(no_iowait, knows_no_iowait, "an enter with flags {flags:#x}");
        }
    });
}

/// The flags of every enter in a log of strace.
fn enters(log: &Path) -> Vec<u32> {
    let log = std::fs::read_to_string(log).expect("read the log of strace");
    let arguments = log.lines().filter_map(|line| line.split_once("io_uring_enter("));
    arguments
        .map(|(_, arguments)| {
            let flags = arguments.split(", ").nth(3).expect("four arguments at least");
            u32::from_str_radix(flags.trim_start_matches("0x"), 16).expect("flags in figures")
        })
        .collect()
}

/// Echoes over many connections through a server that meets these faults, and gives what it has
/// complained of.
fn serves_in_spite_of(driver: Driver, rules: &[&str]) -> String {
    need_strace();
    let scratch = Scratch::new();
    let role = process::role("role_serves_echo_whatever_accept_says");
    let mut child = Running::start(with_faults(driver, role, &scratch, rules));
    let addr = child.line_after(READY).parse().expect("the server's address");
    let peers = [1, 2].map(|key| peer(move || peer::echo_interleaved(addr, key)));
    peer::echo(&peer::connect(addr), Keyed(3), 300_000);
    peers.into_iter().for_each(peer::Peer::join);
    // Killed, strace would leave the call that it is about to answer without an answer.
    let (status, output, errors) = child.finish();
    assert!(status.success(), "{rules:?}: {status}: {output}\n{errors}");
    assert!(!errors.contains("panicked"), "{rules:?}: {output}\n{errors}");
    let faults = faults(&scratch);
    println!("{faults} faults of {rules:?}");
    assert!(faults > 0, "no call has met a fault of {rules:?}");
    errors
}

// Started under strace by the tests above.
#[test]
fn role_serves_echo_whatever_accept_says() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::new().expect("build a runtime");
    exit_at_end_of_input();
    runtime.block_on(async {
        let (listener, addr) = listen().await;
        println!("{READY}{addr}");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(annulus::spawn(async move { drop(echo(stream).await) })),
                // A shortage is reported, and no reason to end.
                Err(error) => eprintln!("{REPORTED}{error}"),
            }
        }
    });
}

// Started under strace by a_connect_that_a_signal_ends_is_made_again.
#[test]
fn role_connects_again_and_again() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::new().expect("build a runtime");
    let (listener, addr) = peer::listen();
    runtime.block_on(async {
        let server = peer(move || {
            for key in 0..30 {
                peer::expect(&peer::accept(&listener), &mut Keyed(key).cursor(), 100);
            }
        });
        for key in 0..30 {
            let mut stream = TcpStream::connect(addr).await.expect("connect");
            stream.write_all(&Keyed(key).bytes(0, 100)).await.expect("write");
        }
        server.await;
    });
    println!("{READY}over");
}

// Started under strace by a_vectored_write_that_a_signal_ends_is_made_again.
#[test]
fn role_writes_large_slices() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::new().expect("build a runtime");
    runtime.block_on(async {
        let (mut stream, peer) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(1).cursor())).await;
        let mut offset = 0;
        for _ in 0..20 {
            let bytes = Keyed(1).bytes(offset, 20_000);
            let (front, back) = bytes.split_at(10_000);
            let slices = [io::IoSlice::new(front), io::IoSlice::new(back)];
            offset += stream.write_vectored(&slices).await.expect("a write") as u64;
            stream.flush().await.expect("a flush");
        }
        drop(stream);
        assert_eq!(peer.await, offset);
    });
    println!("{READY}over");
}

// Started under strace by a_wait_refused_for_good_ends_block_on_and_nothing_else.
#[test]
fn role_meets_a_kernel_that_refuses_to_wait() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::new().expect("build a runtime");
    let (full, queued) = peer::full_listener();
    let addr = full.local_addr().unwrap();
    let mut peers = Vec::new();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let _connecting = poll_once(pin!(TcpStream::connect(addr)).as_mut()).await;
            let (listener, _) = listen().await;
            annulus::spawn(async move { listener.accept().await.map(drop) });
            for unsent in [false, true] {
                let (mut stream, peer) = with_peer(|stream| stream).await;
                peers.push(peer.await);
                while unsent && timeout(PATIENCE, stream.write(&[0; 100_000])).await.is_ok() {}
                if !unsent {
                    annulus::spawn(async move { stream.read(&mut [0; 8]).await });
                }
            }
            loop {
                // One wait with a limit, one without waiting.
                sleep(Duration::from_millis(1)).await;
                yield_now().await;
            }
        })
    }));
    println!("@ended {}", text_of(ended));
    let start = Instant::now();
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(runtime)));
    assert!(start.elapsed() < Duration::from_secs(5), "the end took {:?}", start.elapsed());
    let text = if dropped.is_ok() { "quietly".to_owned() } else { text_of(dropped) };
    println!("@dropped {text}");
    drop((queued, peers));
}

fn text_of(outcome: thread::Result<()>) -> String {
    let Err(panic) = outcome else { return "no panic".to_owned() };
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// When the test is over, or killed, the input ends.
fn exit_at_end_of_input() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
}

/// Signals to the thread that made it, one after the other, until it is stopped.
struct Storm {
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u64>>,
}

impl Storm {
    fn start() -> Self {
        extern "C" fn ignore(_signal: libc::c_int) {}
        // SAFETY: a zeroed sigaction is a valid one: no flags, so that calls are not restarted.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore as *const () as usize;
        // SAFETY: the pointers are to a whole sigaction and to nothing; the handler does nothing.
        unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
        let target = process::thread_id();
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut signals = 0;
            while !told.load(Ordering::Relaxed) {
                let pid = std::process::id();
                // SAFETY: no pointers; a thread that has ended is an error.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, target, libc::SIGUSR1) };
                signals += 1;
                thread::sleep(Duration::from_micros(20));
            }
            signals
        });
        Self { over, thread: Some(thread) }
    }

    fn stop(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().expect("stopped once").join().expect("the storm does not panic")
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Ends every request that the ring has in flight. On epoll there is none.
struct CancelAll(Rc<Fd>);

// SAFETY: the entry refers to no memory.
unsafe impl Operation for CancelAll {
    type Output = io::Result<()>;

    fn entry(&mut self) -> Entry {
        opcode::AsyncCancel2::new(CancelBuilder::any()).build()
    }

    fn call(&mut self) -> io::Result<u32> {
        Ok(0)
    }

    fn descriptor(&self) -> Option<&Rc<Fd>> {
        Some(&self.0)
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn complete(self, result: io::Result<u32>) -> Self::Output {
        result.map(drop)
    }
}

fn fd() -> Rc<Fd> {
    Fd::new(peer::listen().0.into())
}

const REPORTED: &str = "accept has failed: ";
const PATIENCE: Duration = Duration::from_millis(20);
// As in linux/io_uring.h.
const ENTER_GETEVENTS: u32 = 1;
const ENTER_NO_IOWAIT: u32 = 1 << 7;
const FEAT_NO_IOWAIT: u32 = 1 << 17;
