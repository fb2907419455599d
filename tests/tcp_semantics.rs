//! What TCP means stays what it means: ends, resets, urgent bytes, errors, and the order of bytes.

use std::cell::Cell;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;
use std::time::Duration;

use annulus::Runtime;
use annulus::net::tcp::OwnedWriteHalf;
use annulus::net::{ListenOptions, TcpListener, TcpStream};
use annulus::task::yield_now;
use annulus::time::timeout;
use socket2::SockRef;

use common::bytes::{Keyed, Numbers};
use common::each_driver;
use common::peer::{self, Peer, peer};
use common::process::{self, READY, Running, Scratch, need_strace};
use common::steps::{listen, pair, serve_echo, settle, with_peer};

mod common;

each_driver! {
    async fn both_directions_end_in_either_order() {
        for peer_first in [false, true] {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let (mut stream, peer) = with_peer(move |stream| {
                if peer_first {
                    stream.shutdown(Shutdown::Write).unwrap();
                }
                peer::expect_end(&stream);
                if !peer_first {
                    stream.shutdown(Shutdown::Write).unwrap();
                }
                wait.recv().unwrap();
                // Still a clean end, and no reset, though both sides have said all.
                peer::expect_end(&stream);
            })
            .await;
            let mut buf = [0; 8];
            if peer_first {
                assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
            }
            stream.shutdown().await.unwrap();
            for _ in 0..3 {
                assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
                assert_eq!(stream.peek(&mut buf).await.unwrap(), 0);
                let late = stream.write(&buf).await.unwrap_err();
                assert_eq!(late.kind(), ErrorKind::BrokenPipe);
                stream.shutdown().await.unwrap();
            }
            go.send(()).unwrap();
            drop(stream);
            peer.await;
        }
    }

    #[alone]
    #[deadline_s(60)]
    fn reading_the_end_again_asks_the_kernel_nothing(driver: Driver) {
        need_strace();
        let scratch = Scratch::new();
        let log = scratch.path("strace.log");
        let mut role = process::role("role_reads_the_end_again_and_again");
        role.env("ANNULUS_DRIVER", driver.to_string());
        let mut child = Running::start(process::under_strace(&role, &log));
        child.line_after(READY);
        let (status, _, errors) = child.finish();
        assert!(status.success(), "{status}: {errors}");
        let log = std::fs::read_to_string(&log).unwrap();
        let marks: Vec<_> = log.match_indices("@mark").map(|(at, _)| at).collect();
        let [from, to] = marks[..] else { panic!("{} marks in the log", marks.len()) };
        let is_ours = |line: &&str| !process::is_look_at_processor_time(line);
        let calls: Vec<_> = log[from..to].lines().skip(1).filter(is_ours).collect();
        // A task that is never told to wait must look after others now and then.
        assert!(calls.len() < 40, "{} calls for 2000 reads:\n{}", calls.len(), calls.join("\n"));
    }

    // The signal's default action, which the test harness has switched off, ends the process.
    #[alone]
    fn no_write_to_a_broken_connection_raises_a_signal(driver: Driver) {
        let mut role = process::role("role_writes_to_broken_connections");
        role.env("ANNULUS_DRIVER", driver.to_string());
        let (status, output, errors) = Running::start(role).finish();
        assert_eq!(status.signal(), None, "{output}\n{errors}");
        assert!(status.success(), "{status}: {output}\n{errors}");
    }

    async fn a_flush_and_a_shutdown_report_what_became_of_the_bytes_before() {
        for way in 0..3 {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let (mut stream, peer) = with_peer(move |stream| {
                wait.recv().unwrap();
                peer::reset(stream);
            })
            .await;
            // More than the kernel takes: the rest is with us when the connection breaks.
            while timeout(PAUSE, stream.write(&[1; 100_000])).await.is_ok() {}
            go.send(()).unwrap();
            peer.await;
            settle().await;
            let error = match way {
                0 => stream.flush().await.unwrap_err(),
                1 => stream.shutdown().await.unwrap_err(),
                _ => stream.write(&[1; 10]).await.unwrap_err(),
            };
            assert!(BROKEN.contains(&error.kind()), "{error}");
        }
    }

    async fn connect_fails_with_the_errors_of_the_standard_library() {
        let (listener, refused) = peer::listen();
        drop(listener);
        let mut addrs = vec![refused];
        // None of these leaves the machine: no route takes them, or no socket does.
        for text in ["255.255.255.255:9", "[fe80::1]:9", "0.0.0.0:9", "[::1]:9", "127.0.0.1:0"] {
            addrs.push(text.parse().unwrap());
        }
        for addr in addrs {
            let theirs = peer(move || std::net::TcpStream::connect(addr).map(drop)).await;
            let theirs = theirs.expect_err("nobody listens there");
            let outcome = timeout(Duration::from_secs(5), TcpStream::connect(addr)).await;
            let ours = outcome.expect("it waits").map(drop).unwrap_err();
            assert_eq!(ours.kind(), theirs.kind(), "{addr}: ours {ours}, theirs {theirs}");
            assert_eq!(ours.raw_os_error(), theirs.raw_os_error(), "{addr}");
        }
    }

    async fn a_port_is_shared_only_where_both_listeners_ask_for_it() {
        let shared = ListenOptions::new().reuse_port(true);
        let first = TcpListener::bind_with("127.0.0.1:0", shared).await.unwrap();
        let addr = first.local_addr().unwrap();
        let second = TcpListener::bind_with(addr, shared).await.unwrap();
        let error = TcpListener::bind(addr).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let clients = peer(move || (0..20).map(|_| peer::connect(addr)).collect::<Vec<_>>()).await;
        for _ in &clients {
            common::steps::race(first.accept(), second.accept()).await;
        }
        let (alone, addr) = listen().await;
        let error = TcpListener::bind_with(addr, shared).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        drop(alone);
    }

    // With the option, urgent bytes stand where they were sent, and reads stop in front of them.
    async fn urgent_bytes_in_line_arrive_in_their_place() {
        let (listener, addr) = peer::listen();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let sender = peer(move || {
            let mut stream = peer::connect(addr);
            for round in 0..60 {
                stream.write_all(b"abc").unwrap();
                SockRef::from(&stream).send_out_of_band(b"!").unwrap();
                stream.write_all(b"def").unwrap();
                if round % 2 == 0 {
                    // Both when the reader waits already and when all is there.
                    wait.recv().unwrap();
                }
            }
        });
        let accepted = peer(move || peer::accept(&listener)).await;
        SockRef::from(&accepted).set_out_of_band_inline(true).unwrap();
        let mut stream = TcpStream::from_std(accepted).unwrap();
        let mut received = Vec::new();
        let mut buf = [0; 64];
        let mut told = 0;
        while received.len() < 60 * 7 {
            let read = timeout(Duration::from_secs(5), stream.read(&mut buf)).await;
            let n = read.unwrap_or_else(|_| panic!("stuck after {} bytes", received.len()));
            received.extend_from_slice(&buf[..n.unwrap()]);
            while told < 30 && received.len() >= (2 * told + 1) * 7 {
                go.send(()).unwrap();
                told += 1;
            }
        }
        assert_eq!(received, b"abc!def".repeat(60));
        sender.await;
    }

    #[deadline_s(60)]
    async fn writers_that_take_turns_on_a_half_keep_the_order_of_their_turns() {
        let key = Keyed(1);
        let (stream, peer) = with_peer(move |stream| {
            // Slowly at first, so that writes have to wait.
            for _ in 0..50 {
                let mut some = [0; 2000];
                (&stream).read_exact(&mut some).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
            let mut cursor = key.cursor();
            cursor.offset = 100_000;
            100_000 + peer::expect_until_end(&stream, &mut cursor)
        })
        .await;
        let (_read, write) = stream.into_split();
        // Whoever has the half writes; what was taken, by whomever, is what the next one goes on
        // from.
        let shared = Rc::new((Cell::new(Some(write)), Cell::new(0_u64)));
        let mut writers = Vec::new();
        for index in 0..2_u64 {
            let shared = Rc::clone(&shared);
            writers.push(annulus::spawn(async move {
                let mut numbers = Numbers(index);
                for _ in 0..400 {
                    let (half, offset) = &*shared;
                    let mut write: OwnedWriteHalf = loop {
                        match half.take() {
                            Some(write) => break write,
                            None => yield_now().await,
                        }
                    };
                    let len = 1 + numbers.below([100, 20_000][index as usize]) as usize;
                    let bytes = key.bytes(offset.get(), len);
                    let (front, back) = bytes.split_at(len / 2);
                    let slices = [IoSlice::new(front), IoSlice::new(back)];
                    let patience = Duration::from_micros(numbers.below(300));
                    let taken = match numbers.below(2) {
                        0 => timeout(patience, write.write(&bytes)).await,
                        _ => timeout(patience, write.write_vectored(&slices)).await,
                    };
                    // Cut short, it has taken nothing.
                    let taken = taken.map_or(0, Result::unwrap);
                    offset.set(offset.get() + taken as u64);
                    half.set(Some(write));
                    yield_now().await;
                }
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
        let total = shared.1.get();
        assert!(total > 200_000, "{total} bytes are too few to mean anything");
        drop(shared.0.take());
        assert_eq!(peer.await, total);
    }

    #[deadline_s(60)]
    async fn floods_both_ways_do_not_starve_quiet_connections() {
        let addr = serve_echo().await;
        // Their echoes keep the server's tasks ready all the time.
        let mut floods = Vec::new();
        for _ in 0..3 {
            let (mut client, server) = pair().await;
            annulus::spawn(async move { drop(common::steps::echo(server).await) });
            floods.push(annulus::spawn(async move {
                let mut noise = vec![7; 1 << 16];
                loop {
                    client.write_all(&noise).await.unwrap();
                    client.read_exact(&mut noise).await.unwrap();
                }
            }));
        }
        let quiet: Vec<Peer<Duration>> = (0..3)
            .map(|key| {
                peer(move || {
                    let stream = peer::connect(addr);
                    let start = std::time::Instant::now();
                    for _ in 0..100 {
                        peer::echo(&stream, Keyed(key), 32);
                    }
                    start.elapsed()
                })
            })
            .collect();
        for peer in quiet {
            let took = peer.await;
            let soon = Duration::from_secs(5) * common::slower();
            assert!(took < soon, "100 requests took {took:?} beside floods");
        }
        floods.iter().for_each(|flood| flood.abort());
    }

    async fn a_reset_that_comes_while_nobody_waits_is_the_next_calls_error() {
        for armed in [false, true] {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let (mut stream, peer) = with_peer(move |stream| {
                wait.recv().unwrap();
                peer::reset(stream);
            })
            .await;
            if armed {
                timeout(PAUSE, stream.read(&mut [0; 8])).await.unwrap_err();
            }
            go.send(()).unwrap();
            peer.await;
            settle().await;
            let error = stream.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            // And then it is over, whoever asks.
            let again = timeout(Duration::from_secs(5), stream.read(&mut [0; 8])).await;
            assert!(!again.expect("it waits").is_ok_and(|n| n > 0));
            let late = stream.write_all(&[1; 100_000]).await.unwrap_err();
            assert!(BROKEN.contains(&late.kind()), "{late}");
        }
    }

    // Sends of these sizes go out at once, from the caller's memory.
    async fn a_reset_that_a_send_has_met_at_once_is_no_end_for_the_reader() {
        for way in 0..4 {
            let (mut stream, peer) = with_peer(peer::reset).await;
            peer.await;
            settle().await;
            let large = [1; 9000];
            let two = [IoSlice::new(&large[..6000]), IoSlice::new(&large[..6000])];
            let error = match way {
                0 => stream.write_all(&large).await.unwrap_err(),
                1 => stream.write_vectored(&two).await.unwrap_err(),
                2 => stream.send_all(vec![1; 5000]).await.unwrap_err().error,
                _ => {
                    let parts = vec![vec![1; 6000], vec![2; 6000]];
                    stream.send_vectored(parts).await.unwrap_err().error
                }
            };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "way {way}");
            let read = stream.read(&mut [0; 8]).await;
            assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset, "way {way}");
        }
    }

    // The peer has said all, and then takes nothing more until our answer times out.
    async fn an_end_behind_a_request_stays_one_when_the_answer_times_out() {
        let (listener, addr) = peer::listen();
        let mut theirs = peer::connect(addr);
        let ours = peer::accept(&listener);
        SockRef::from(&ours).set_tcp_user_timeout(Some(Duration::from_millis(300))).unwrap();
        theirs.write_all(b"request").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        let mut stream = TcpStream::from_std(ours).unwrap();
        let error = stream.write_all(&vec![1; 50_000_000]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let mut request = Vec::new();
        loop {
            let mut some = [0; 4];
            match stream.read(&mut some).await.unwrap() {
                0 => break,
                count => request.extend_from_slice(&some[..count]),
            }
        }
        assert_eq!(request, b"request");
    }
}

// Started under strace by reading_the_end_again_asks_the_kernel_nothing.
#[test]
fn role_reads_the_end_again_and_again() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::new().expect("build a runtime");
    runtime.block_on(async {
        let (mut stream, peer) = with_peer(|stream| {
            (&stream).write_all(b"the end").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .await;
        let _open = peer.await;
        let mut buf = [0; 64];
        while stream.read(&mut buf).await.unwrap() > 0 {}
        println!("@mark one");
        for _ in 0..1000 {
            assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
            assert_eq!(stream.peek(&mut buf).await.unwrap(), 0);
        }
        println!("@mark two");
    });
    println!("{READY}over");
}

// Started by no_write_to_a_broken_connection_raises_a_signal.
#[test]
fn role_writes_to_broken_connections() {
    if !process::in_role() {
        return;
    }
    // SAFETY: no handler is installed, only the default action restored; sockets of the standard
    // library never raise the signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let runtime = Runtime::new().expect("build a runtime");
    runtime.block_on(async {
        let large = vec![1; 1 << 20];
        for way in 0..7 {
            let (mut stream, peer) = with_peer(peer::reset).await;
            peer.await;
            // The reset is known: the first write may still have been answered by it.
            stream.read(&mut [0; 8]).await.unwrap_err();
            let mut failed = 0;
            for _ in 0..3 {
                let small = [IoSlice::new(&large[..5]), IoSlice::new(&large[..5])];
                let many = [IoSlice::new(&large), IoSlice::new(&large)];
                let written = match way {
                    0 => stream.write_all(&large[..10]).await,
                    1 => stream.write_all(&large).await,
                    2 => stream.write_vectored(&small).await.map(drop),
                    3 => stream.write_vectored(&many).await.map(drop),
                    4 => {
                        let (read, mut write) = stream.into_split();
                        let written = write.write_all(&large).await;
                        stream = read.reunite(write).unwrap();
                        written
                    }
                    5 => match stream.write_all(&large[..10]).await {
                        Ok(()) => stream.shutdown().await,
                        failed => failed,
                    },
                    _ => match stream.write_all(&large[..10]).await {
                        Ok(()) => stream.flush().await,
                        failed => failed,
                    },
                };
                // What was only accepted goes out at the end of the turn.
                settle().await;
                failed += u32::from(written.is_err());
            }
            assert!(failed > 0, "writes of kind {way} to a broken connection succeed");
            // Also what a drop sends.
            drop(stream.write_all(&large[..10]).await);
        }
        // Broken while a send waits in the kernel.
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (mut stream, peer) = with_peer(move |stream| {
            wait.recv().unwrap();
            peer::reset(stream);
        })
        .await;
        while timeout(PAUSE, stream.write(&large)).await.is_ok() {}
        go.send(()).unwrap();
        peer.await;
        stream.flush().await.unwrap_err();
    });
}

const BROKEN: [ErrorKind; 2] = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
const PAUSE: Duration = Duration::from_millis(50);
