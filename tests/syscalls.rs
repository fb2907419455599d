//! System calls are counted: few for a request, none for waiting.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use annulus::{Driver, Runtime};

use common::bytes::Keyed;
use common::peer;
use common::process::{self, READY, Running, Scratch, need_descriptors, need_strace, under_strace};
use common::{Test, each_driver, slower};

mod common;

each_driver! {
    #[alone]
    #[deadline_s(240)]
    fn ten_idle_seconds_with_ten_thousand_connections_cost_under_five_calls(driver: Driver) {
        need_descriptors(HELD + 200);
        let server = Server::start(driver);
        // Under strace each costs an emulated processor a tenth of a second.
        let held = HELD / u64::from(slower());
        let connections: Vec<_> = (0..held).map(|_| peer::connect(server.addr)).collect();
        // Each is served once, so that each has been accepted.
        for (key, stream) in connections.iter().enumerate() {
            peer::echo(stream, Keyed(key as u64), 10);
        }
        server.settle();
        let before = server.calls();
        thread::sleep(Duration::from_secs(10));
        let calls = server.calls().split_off(before.len());
        println!("{} calls in ten idle seconds", calls.len());
        assert!(
            calls.len() < 5,
            "{} calls in ten idle seconds:\n{}",
            calls.len(),
            calls.join("\n")
        );
        drop(connections);
    }
}

#[test]
fn a_ping_pong_on_io_uring_costs_one_call_a_request() {
    let test = Test::named("a_ping_pong_on_io_uring_costs_one_call_a_request");
    test.alone().deadline_s(120).with_uring(|| {
        let calls = calls_of_requests(Driver::Uring, REQUESTS);
        let each = calls.len() as f64 / REQUESTS as f64;
        println!("{each:.3} calls for each request");
        let sample = &calls[..calls.len().min(20)];
        assert!(each <= 1.1, "{each:.3} calls for each request, such as\n{}", sample.join("\n"));
    });
}

// What a receive leaves behind is told by the kernel, and no call asks for it.
#[test]
fn a_large_message_on_io_uring_costs_no_call_that_finds_nothing() {
    let test = Test::named("a_large_message_on_io_uring_costs_no_call_that_finds_nothing");
    test.alone().deadline_s(120).with_uring(|| {
        let server = Server::start(Driver::Uring);
        let mut stream = peer::connect(server.addr);
        let mut buf = vec![0; LARGE_BYTES];
        for _ in 0..LARGE_REQUESTS {
            stream.write_all(&[7; LARGE_BYTES]).expect("send a request");
            stream.read_exact(&mut buf).expect("receive an answer");
            // A server that asks has done so before the next request is there.
            thread::sleep(Duration::from_millis(2));
        }
        server.settle();
        let calls = server.calls();
        let in_vain = calls.iter().filter(|call| call.contains("EAGAIN")).count();
        println!("{in_vain} of {} calls have found nothing", calls.len());
        assert!(in_vain <= LARGE_REQUESTS / 10, "{in_vain} calls have found nothing");
    });
}

// Where every request is an event, epoll needs a wait, a receive and a send.
#[test]
fn a_ping_pong_on_epoll_costs_three_calls_a_request() {
    let test = Test::named("a_ping_pong_on_epoll_costs_three_calls_a_request");
    test.alone().deadline_s(120).plain(|| {
        let calls = calls_of_requests(Driver::Epoll, REQUESTS);
        let each = calls.len() as f64 / REQUESTS as f64;
        println!("{each:.3} calls for each request");
        let sample = &calls[..calls.len().min(20)];
        assert!(each <= 3.1, "{each:.3} calls for each request, such as\n{}", sample.join("\n"));
    });
}

/// The calls that so many requests cost. How much of a shard's time is work is asked for by the
/// clock, every 10 ms: that is counted apart, as slow requests have more of it each.
fn calls_of_requests(driver: Driver, count: usize) -> Vec<String> {
    let server = Server::start(driver);
    let mut stream = peer::connect(server.addr);
    let mut ping_pong = |count| {
        let mut buf = [0; 64];
        for _ in 0..count {
            stream.write_all(&[7; 64]).expect("send a request");
            stream.read_exact(&mut buf).expect("receive an answer");
        }
    };
    ping_pong(200);
    server.settle();
    let before = server.calls();
    let start = Instant::now();
    ping_pong(count);
    let looks_max = start.elapsed().as_millis() / 10 + 2;
    server.settle();
    let calls = server.calls().split_off(before.len());
    let is_look = |call: &String| process::is_look_at_processor_time(call);
    let (looks, calls): (Vec<_>, Vec<_>) = calls.into_iter().partition(is_look);
    assert!(looks.len() as u128 <= looks_max, "{} looks, {looks_max} are due", looks.len());
    calls
}

/// An echo server under strace.
struct Server {
    addr: SocketAddr,
    // In this order: the server ends before its log goes.
    _child: Running,
    scratch: Scratch,
}

impl Server {
    fn start(driver: Driver) -> Self {
        need_strace();
        let scratch = Scratch::new();
        let mut role = process::role("role_serves_echo");
        role.env("ANNULUS_DRIVER", driver.to_string());
        let mut child = Running::start(under_strace(&role, &scratch.path(LOG)));
        let addr = child.line_after(READY).parse().expect("the server's address");
        Self { addr, _child: child, scratch }
    }

    /// The calls of all threads so far. A call that is still waiting is one.
    fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.scratch.path(LOG)).expect("read the log of strace");
        // A call interrupted by another thread's has a second line, for its end. Signals and ends
        // of threads are no calls.
        let is_call =
            |line: &&str| !["resumed>", "+++", "---"].iter().any(|mark| line.contains(mark));
        log.lines().filter(is_call).map(str::to_owned).collect()
    }

    /// Waits until the server makes no more calls.
    fn settle(&self) {
        let deadline = Instant::now() + peer::patience();
        let mut last = (self.calls().len(), Instant::now());
        while last.1.elapsed() < QUIET {
            assert!(Instant::now() < deadline, "the server does not become quiet");
            thread::sleep(Duration::from_millis(20));
            let calls = self.calls().len();
            if calls != last.0 {
                last = (calls, Instant::now());
            }
        }
    }
}

// Started under strace by the tests above.
#[test]
fn role_serves_echo() {
    if !process::in_role() {
        return;
    }
    need_descriptors(HELD + 200);
    let runtime = Runtime::new().expect("build a runtime");
    // When the test is over, or killed, the input ends.
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    runtime.block_on(async {
        let addr = common::steps::serve_echo().await;
        println!("{READY}{addr}");
        std::future::pending::<()>().await;
    });
}

const HELD: u64 = 10_000;
const REQUESTS: usize = 2000;
const LARGE_REQUESTS: usize = 200;
// As long as the server's buffer: a full read may have emptied the socket or not.
const LARGE_BYTES: usize = 16 * 1024;
const LOG: &str = "strace.log";
// Longer than any timer that a busy server may have left behind.
const QUIET: Duration = Duration::from_millis(500);
