//! A runtime ends quietly: soon, with every descriptor closed and every accepted byte sent.

use std::cell::RefCell;
use std::future::pending;
use std::io::Read;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::process::Command;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use annulus::Runtime;
use annulus::net::{TcpListener, TcpStream};
use annulus::time::{sleep, timeout};

use common::bytes::Keyed;
use common::each_driver;
use common::peer::{self, Peer, peer};
use common::process::{self, READY, Running, open_descriptors, resident_bytes};
use common::steps::{eventually_blocking, listen, poll_once, serve_echo, settle, with_peer};

mod common;

each_driver! {
    #[alone]
    fn an_end_with_operations_in_flight_is_quick_and_closes_everything(driver: Driver) {
        let before = baseline(driver);
        let runtime = common::runtime(driver);
        let peers = runtime.block_on(start_many_operations());
        let start = Instant::now();
        drop(runtime);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "the end took {took:?}");
        for stream in &peers {
            expect_over(stream);
        }
        drop(peers);
        assert_descriptors(before);
    }

    #[alone]
    fn an_end_while_unwinding_closes_everything(driver: Driver) {
        let before = baseline(driver);
        let mut peers = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let runtime = common::runtime(driver);
            runtime.block_on(async {
                peers = Some(start_many_operations().await);
                panic!("at the root");
            });
        }));
        outcome.unwrap_err();
        let peers = peers.expect("the operations were started");
        for stream in &peers {
            expect_over(stream);
        }
        drop(peers);
        assert_descriptors(before);
    }

    #[alone]
    fn a_thread_that_ends_with_its_runtime_in_a_thread_local_closes_everything(driver: Driver) {
        thread_local! {
            static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
        }
        let before = baseline(driver);
        let peers = std::thread::spawn(move || {
            RUNTIME.with_borrow_mut(|slot| {
                let runtime = slot.insert(common::runtime(driver));
                runtime.block_on(start_many_operations())
            })
        });
        let peers = peers.join().expect("the thread ends without a panic");
        for stream in &peers {
            expect_over(stream);
        }
        drop(peers);
        assert_descriptors(before);
    }

    #[alone]
    fn bytes_written_before_the_end_still_arrive(driver: Driver) {
        for len in [1, 1000, 8000, 60_000] {
            for hold in [Hold::Dropped, Hold::ByTask, Hold::ByCaller] {
                let runtime = common::runtime(driver);
                let (held, peer) = runtime.block_on(async {
                    let (mut stream, peer) =
                        with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(1).cursor()))
                            .await;
                    stream.write_all(&Keyed(1).bytes(0, len)).await.unwrap();
                    (hold.keep(stream), peer)
                });
                drop(runtime);
                drop(held);
                assert_eq!(peer.join(), len as u64, "held {hold:?}");
            }
        }
    }

    // The program may do other work after block_on, with nobody there to turn the shard.
    #[alone]
    fn bytes_and_ends_written_in_block_on_leave_when_it_returns(driver: Driver) {
        let runtime = common::runtime(driver);
        let (mut stream, peer) = runtime.block_on(with_peer(|stream| {
            peer::expect(&stream, &mut Keyed(2).cursor(), 1000);
        }));
        runtime.block_on(async { stream.write_all(&Keyed(2).bytes(0, 1000)).await.unwrap() });
        peer.join();
        let (stream, peer) = runtime.block_on(with_peer(|stream| peer::expect_end(&stream)));
        runtime.block_on(async move { drop(stream) });
        peer.join();
        let (mut stream, peer) = runtime.block_on(with_peer(|stream| {
            assert_eq!(peer::expect_until_end(&stream, &mut Keyed(3).cursor()), 1000);
        }));
        runtime.block_on(async move {
            let _ = poll_once(pin!(stream.read(&mut [0; 8])).as_mut()).await;
            settle().await;
            stream.write_all(&Keyed(3).bytes(0, 1000)).await.unwrap();
            drop(stream);
        });
        peer.join();
    }

    #[alone]
    fn a_peer_that_never_reads_does_not_hold_up_the_end(driver: Driver) {
        let runtime = common::runtime(driver);
        let (listener, addr) = peer::listen();
        let _deaf = runtime.block_on(async {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            let bytes = vec![0; 1 << 16];
            let full = Duration::from_millis(100);
            while timeout(full, stream.write(&bytes)).await.is_ok() {}
            peer::accept(&listener)
        });
        let start = Instant::now();
        drop(runtime);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "the end took {took:?}");
    }

    #[alone]
    fn ports_are_free_at_once(driver: Driver) {
        let mut addr: SocketAddr = "127.0.0.1:0".parse().unwrap();
        for _ in 0..10 {
            let runtime = common::runtime(driver);
            let client = runtime.block_on(async {
                let listener = TcpListener::bind(addr).await.expect("the port is free");
                addr = listener.local_addr().unwrap();
                let bound = addr;
                let client = peer(move || peer::connect(bound)).await;
                let (stream, _) = listener.accept().await.unwrap();
                drop(annulus::spawn(async move {
                    let (_stream, listener) = (stream, listener);
                    drop(listener.accept().await);
                }));
                settle().await;
                client
            });
            drop(runtime);
            peer::expect_closed(&client);
            let std_listener = std::net::TcpListener::bind(addr).expect("the port is free");
            drop(std_listener);
        }
    }

    #[alone]
    #[deadline_s(120)]
    fn two_hundred_runtimes_leave_nothing_behind(driver: Driver) {
        for _ in 0..20 {
            one_life(driver);
        }
        let (descriptors, bytes, maps) = (open_descriptors(), resident_bytes(), mappings());
        for _ in 0..200 {
            one_life(driver);
        }
        assert_descriptors(descriptors);
        let grown = resident_bytes().saturating_sub(bytes);
        assert!(grown < 8 << 20, "{grown} bytes more are resident after 200 runtimes");
        let more = mappings().saturating_sub(maps);
        assert!(more < 50, "{more} more memory mappings after 200 runtimes");
    }

    #[alone]
    fn a_stream_dropped_after_its_runtime_is_closed(driver: Driver) {
        let before = baseline(driver);
        let runtime = common::runtime(driver);
        let (stream, listener, peer) = runtime.block_on(async {
            let (mut stream, peer) = with_peer(|stream| expect_over(&stream)).await;
            let (listener, _) = listen().await;
            timeout(Duration::from_millis(2), stream.read(&mut [0; 8])).await.unwrap_err();
            timeout(Duration::from_millis(2), listener.accept()).await.map(drop).unwrap_err();
            (stream, listener, peer)
        });
        drop(runtime);
        drop((stream, listener));
        peer.join();
        assert_descriptors(before);
    }

    #[alone]
    async fn a_stream_dropped_on_another_thread_is_closed() {
        let before = open_descriptors();
        let (mut stream, peer) = with_peer(|stream| peer::expect_closed(&stream)).await;
        timeout(Duration::from_millis(2), stream.read(&mut [0; 8])).await.unwrap_err();
        let (listener, addr) = listen().await;
        timeout(Duration::from_millis(2), listener.accept()).await.map(drop).unwrap_err();
        peer::peer(move || drop((stream, listener))).await;
        peer.await;
        let closed = "all descriptors are closed";
        common::steps::eventually(closed, || open_descriptors() <= before).await;
        peer::peer(move || std::net::TcpStream::connect(addr)).await.unwrap_err();
    }

    #[alone]
    fn a_stream_used_after_its_runtime_or_in_another_says_so(driver: Driver) {
        let runtime = common::runtime(driver);
        let (mut stream, mut other, peers) = runtime.block_on(async {
            let (stream, peer) = with_peer(|stream| expect_over(&stream)).await;
            let (other, other_peer) = with_peer(|stream| expect_over(&stream)).await;
            (stream, other, [peer, other_peer])
        });
        let foreign = common::runtime(driver);
        let (text, stream) =
            foreign.block_on(async move { (complaint(stream.read(&mut [0; 8])), stream) });
        assert!(text.is_some_and(|text| !text.is_empty()), "used on a foreign runtime in silence");
        drop((stream, foreign, runtime));
        let text = complaint(other.read(&mut [0; 8]));
        assert!(text.is_some_and(|text| !text.is_empty()), "used after its runtime in silence");
        drop(other);
        peers.into_iter().for_each(Peer::join);
    }

    #[alone]
    fn child_programs_can_be_run_beside_operations_in_flight(driver: Driver) {
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let addr = serve_echo().await;
            let client = peer(move || {
                let stream = peer::connect(addr);
                for key in 0..200 {
                    peer::echo(&stream, Keyed(key), 1000);
                }
            });
            for _ in 0..20 {
                let status = annulus::task::spawn_blocking(|| Command::new("true").status()).await;
                assert!(status.unwrap().unwrap().success());
            }
            client.await;
        });
    }

    #[alone]
    fn a_process_that_exits_with_operations_in_flight_ends_at_once(driver: Driver) {
        let mut command = process::role("role_exits_with_operations_in_flight");
        command.env("ANNULUS_DRIVER", driver_name(driver));
        let mut child = Running::start(command);
        let addr: SocketAddr = child.line_after(READY).parse().unwrap();
        let client = peer::connect(addr);
        child.close_input();
        let start = Instant::now();
        let (status, _, errors) = child.finish();
        assert!(status.success(), "{status}: {errors}");
        assert!(start.elapsed() < Duration::from_secs(5), "the exit took {:?}", start.elapsed());
        peer::expect_closed(&client);
        drop(std::net::TcpListener::bind(addr).expect("the port is free"));
    }
}

// Started by a_process_that_exits_with_operations_in_flight_ends_at_once.
#[test]
fn role_exits_with_operations_in_flight() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::new().expect("build a runtime");
    runtime.block_on(async {
        let (listener, addr) = listen().await;
        println!("{READY}{addr}");
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut buf = [0; 8];
        let _ = poll_once(pin!(stream.read(&mut buf)).as_mut()).await;
        let _ = poll_once(pin!(listener.accept()).as_mut()).await;
        drop(annulus::spawn(pending::<()>()));
        annulus::task::spawn_blocking(|| std::io::stdin().read_to_string(&mut String::new()))
            .await
            .expect("wait for the order to end")
            .expect("read the input");
        std::process::exit(0);
    });
}

/// Who has the stream when the runtime ends.
#[derive(Clone, Copy, Debug)]
enum Hold {
    Dropped,
    ByTask,
    ByCaller,
}

impl Hold {
    fn keep(self, stream: TcpStream) -> Option<TcpStream> {
        match self {
            Self::Dropped => None,
            Self::ByTask => {
                drop(annulus::spawn(async move {
                    let _stream = stream;
                    pending::<()>().await;
                }));
                None
            }
            Self::ByCaller => Some(stream),
        }
    }
}

/// The descriptors that are open when there is no runtime. A first one has come and gone, so that
/// what a process keeps from it for good is counted.
fn baseline(driver: annulus::Driver) -> usize {
    one_life(driver);
    open_descriptors()
}

/// Makes a runtime, uses it, and drops it.
fn one_life(driver: annulus::Driver) {
    let runtime = common::runtime(driver);
    let peer = runtime.block_on(async {
        let addr = serve_echo().await;
        let client = peer(move || {
            let stream = peer::connect(addr);
            peer::echo(&stream, Keyed(1), 10_000);
            stream
        });
        drop(annulus::spawn(sleep(Duration::from_secs(3600))));
        client.await
    });
    drop(runtime);
    expect_over(&peer);
}

/// Leaves operations of every kind in flight, and gives the peers' ends of their connections.
async fn start_many_operations() -> Vec<std::net::TcpStream> {
    let (listener, addr) = listen().await;
    let mut peers = peer(move || (0..100).map(|_| peer::connect(addr)).collect::<Vec<_>>()).await;
    for number in 0..100 {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(annulus::spawn(async move {
            match number % 4 {
                0 => stream.read(&mut [0; 100]).await.map(drop),
                1 => stream.peek(&mut [0; 100]).await.map(drop),
                2 => stream.read_exact(&mut [0; 100]).await.map(drop),
                _ => stream.write_all(&vec![0; 16 << 20]).await,
            }
        }));
    }
    // More than the pending accept, so that some connections are queued and in nobody's hands.
    drop(annulus::spawn(async move {
        listener.accept().await.map(drop)?;
        pending::<std::io::Result<()>>().await
    }));
    peers.extend(peer(move || (0..10).map(|_| peer::connect(addr)).collect::<Vec<_>>()).await);
    for _ in 0..100 {
        drop(annulus::spawn(sleep(Duration::from_secs(3600))));
    }
    drop(annulus::task::spawn_blocking(|| 1));
    settle().await;
    peers
}

/// Reads until the connection is over, whatever came before that.
fn expect_over(mut stream: &std::net::TcpStream) {
    let mut buf = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the connection is not over: {error}"),
        }
    }
}

/// The text of the error or of the panic with which a future answers its first poll.
fn complaint<T>(future: impl Future<Output = std::io::Result<T>>) -> Option<String> {
    let mut future = pin!(future);
    let polled = catch_unwind(AssertUnwindSafe(|| {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop())).map(|r| r.map(drop))
    }));
    match polled {
        Ok(std::task::Poll::Ready(Err(error))) => Some(error.to_string()),
        Ok(_) => None,
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())),
    }
}

#[track_caller]
fn assert_descriptors(before: usize) {
    // The peers' threads may still be on their way out.
    let what = format!("{before} open descriptors again, now {}", open_descriptors());
    eventually_blocking(&what, || open_descriptors() <= before);
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("read /proc/self/maps").lines().count()
}

fn driver_name(driver: annulus::Driver) -> &'static str {
    match driver {
        annulus::Driver::Uring => "uring",
        _ => "epoll",
    }
}
