//! The interface of listeners and streams, beside the bytes themselves.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use annulus::net::tcp::ListenOptions;
use annulus::net::{TcpListener, TcpStream};
use annulus::time::timeout;

use common::bytes::Keyed;
use common::each_driver;
use common::peer::{self, peer};
use common::process::descriptors;
use common::steps::{listen, pair, settle, with_peer};

mod common;

each_driver! {
    async fn addresses_are_those_of_the_sockets() {
        let (listener, addr) = listen().await;
        assert_eq!(addr.ip(), Ipv4Addr::LOCALHOST);
        assert_ne!(addr.port(), 0);
        let client = peer(move || peer::connect(addr)).await;
        let (stream, from) = listener.accept().await.unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        assert_eq!(stream.peer_addr().unwrap(), from);
        assert_eq!(stream.local_addr().unwrap(), addr);
    }

    async fn both_families_are_served() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            if std::net::TcpListener::bind(address).is_err() {
                common::leave_out_part("both_families_are_served", &format!("no {address} here"));
                continue;
            }
            let listener = TcpListener::bind(address).await.unwrap();
            let addr = listener.local_addr().unwrap();
            let connecting = annulus::spawn(TcpStream::connect(addr));
            let (accepted, from) = listener.accept().await.unwrap();
            let connected = connecting.await.unwrap().unwrap();
            assert_eq!(connected.peer_addr().unwrap(), addr);
            assert_eq!(connected.local_addr().unwrap(), from);
            assert_eq!(accepted.peer_addr().unwrap(), from);
        }
    }

    async fn an_ipv6_listener_serves_ipv4_too_unless_it_says_otherwise() {
        let options = ListenOptions::new();
        let Ok(both) = TcpListener::bind_with("[::]:0", options.only_v6(false)).await else {
            let test = "an_ipv6_listener_serves_ipv4_too_unless_it_says_otherwise";
            return common::leave_out(test, "no IPv6 here");
        };
        let four = SocketAddr::from(([127, 0, 0, 1], both.local_addr().unwrap().port()));
        let connected = TcpStream::connect(four).await.unwrap();
        let (_accepted, from) = both.accept().await.unwrap();
        // As the standard library shows it: an address of IPv4 within one of IPv6.
        let SocketAddr::V6(from) = from else { panic!("a peer of another family: {from}") };
        assert_eq!(from.ip().to_ipv4_mapped(), Some([127, 0, 0, 1].into()));
        assert_eq!(from.port(), connected.local_addr().unwrap().port());

        let six = TcpListener::bind_with("[::]:0", options.only_v6(true)).await.unwrap();
        let port = six.local_addr().unwrap().port();
        let refused = TcpStream::connect(("127.0.0.1", port)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        // The port is free for somebody else on the other family.
        TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    }

    async fn nodelay_is_on_by_default_and_can_be_changed() {
        let (connected, accepted) = pair().await;
        for stream in [connected, accepted] {
            assert!(stream.nodelay().unwrap());
            stream.set_nodelay(false).unwrap();
            assert!(!stream.nodelay().unwrap());
        }
    }

    async fn ttl_and_linger_can_be_read_and_set() {
        let (stream, _other) = pair().await;
        stream.set_ttl(42).unwrap();
        assert_eq!(stream.ttl().unwrap(), 42);
        assert_eq!(stream.linger().unwrap(), None);
        stream.set_linger(Some(Duration::from_secs(3))).unwrap();
        assert_eq!(stream.linger().unwrap(), Some(Duration::from_secs(3)));
        stream.set_linger(None).unwrap();
        assert_eq!(stream.linger().unwrap(), None);
    }

    // Closing such a socket blocks the caller, also where the socket itself does not block.
    async fn a_linger_time_blocks_no_other_task() {
        for inherited in [false, true] {
            let (listener, addr) = peer::listen();
            let stream = std::net::TcpStream::connect(addr).unwrap();
            let deaf = peer::accept(&listener);
            let linger = Some(Duration::from_secs(5));
            if inherited {
                socket2::SockRef::from(&stream).set_linger(linger).unwrap();
            }
            let mut stream = TcpStream::from_std(stream).unwrap();
            if !inherited {
                stream.set_linger(linger).unwrap();
            }
            // With nothing unsent on our side, the close comes at once.
            stream.write(&vec![0; 8 << 20]).await.unwrap();
            let start = std::time::Instant::now();
            drop(stream);
            settle().await;
            let took = start.elapsed();
            assert!(took < Duration::from_secs(2), "inherited {inherited}: blocked for {took:?}");
            drop(deaf);
        }
    }

    async fn a_zero_linger_makes_the_drop_a_reset() {
        let (stream, peer) = with_peer(|mut stream| stream.read(&mut [0; 8])).await;
        stream.set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        assert_eq!(peer.await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    async fn a_blocking_stream_of_the_standard_library_works_and_blocks_nobody() {
        let (std_listener, addr) = peer::listen();
        let peer = peer(move || {
            let stream = peer::accept(&std_listener);
            peer::expect(&stream, &mut Keyed(1).cursor(), 100);
            peer::send(&stream, &mut Keyed(2).cursor(), 100);
        });
        let std_stream = peer::peer(move || std::net::TcpStream::connect(addr).unwrap()).await;
        let mut stream = TcpStream::from_std(std_stream).unwrap();
        let mut buf = [0; 100];
        // A read that blocked the thread would never time out.
        timeout(Duration::from_millis(10), stream.read(&mut buf)).await.unwrap_err();
        stream.write_all(&Keyed(1).bytes(0, 100)).await.unwrap();
        stream.read_exact(&mut buf).await.unwrap();
        Keyed(2).check(0, &buf);
        peer.await;
    }

    async fn a_blocking_listener_of_the_standard_library_works_and_blocks_nobody() {
        let (std_listener, addr) = peer::listen();
        let listener = TcpListener::from_std(std_listener).unwrap();
        timeout(Duration::from_millis(10), listener.accept()).await.map(drop).unwrap_err();
        let client = peer(move || peer::connect(addr));
        listener.accept().await.unwrap();
        drop(client.await);
    }

    async fn into_std_refuses_while_bytes_would_be_lost_and_gives_the_stream_back() {
        let (mut stream, peer) = with_peer(|stream| {
            peer::send(&stream, &mut Keyed(3).cursor(), 1000);
            peer::expect_until_end(&stream, &mut Keyed(4).cursor())
        })
        .await;
        let mut received = Keyed(3).cursor();
        // One byte is taken, the others lie in the runtime's hands by now, or in the socket.
        let mut first = [0];
        stream.read_exact(&mut first).await.unwrap();
        received.check(&first);
        settle().await;
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(refused) => {
                assert!(!refused.to_string().is_empty());
                let mut stream = refused.into_stream().expect("the stream is whole");
                let mut rest = [0; 999];
                stream.read_exact(&mut rest).await.unwrap();
                received.check(&rest);
                stream.into_std().expect("a stream with nothing unread")
            }
        };
        peer::peer(move || {
            let rest = 1000 - received.offset as usize;
            peer::expect(&stream, &mut received, rest);
            peer::send(&stream, &mut Keyed(4).cursor(), 20);
        })
        .await;
        assert_eq!(peer.await, 20);
    }

    async fn into_std_of_an_idle_stream_works() {
        let (go, wait) = std::sync::mpsc::channel();
        let (mut stream, peer) = with_peer(move |stream| {
            let mut received = Keyed(4).cursor();
            peer::expect(&stream, &mut received, 10);
            wait.recv().unwrap();
            peer::send(&stream, &mut Keyed(3).cursor(), 1000);
            peer::expect_until_end(&stream, &mut received)
        })
        .await;
        timeout(Duration::from_millis(5), stream.read(&mut [0; 8])).await.unwrap_err();
        stream.write_all(&Keyed(4).bytes(0, 10)).await.unwrap();
        stream.flush().await.unwrap();
        let stream = stream.into_std().expect("an idle stream");
        go.send(()).unwrap();
        peer::peer(move || {
            peer::expect(&stream, &mut Keyed(3).cursor(), 1000);
            (&stream).write_all(&Keyed(4).bytes(10, 10)).unwrap();
        })
        .await;
        assert_eq!(peer.await, 10);
    }

    async fn into_std_does_not_hide_a_reset() {
        let (go, wait) = std::sync::mpsc::channel();
        let (mut stream, peer) = with_peer(move |stream| {
            wait.recv().unwrap();
            peer::reset(stream);
        })
        .await;
        timeout(Duration::from_millis(5), stream.read(&mut [0; 8])).await.unwrap_err();
        go.send(()).unwrap();
        peer.await;
        settle().await;
        let told = match stream.into_std() {
            Ok(mut stream) => peer::peer(move || stream.read(&mut [0; 8]).is_err()).await,
            Err(_) => true,
        };
        assert!(told, "the reset is gone");
    }

    async fn into_std_does_not_hide_a_failed_send() {
        let (mut stream, peer) = with_peer(peer::reset).await;
        peer.await;
        // Accepted into the buffer; the send at the end of the turn fails, and nobody asks.
        if stream.write_all(b"lost").await.is_ok() {
            settle().await;
            let told = match stream.into_std() {
                Ok(mut stream) => peer::peer(move || stream.read(&mut [0; 8]).is_err()).await,
                Err(_) => true,
            };
            assert!(told, "the error of the send is gone");
        }
    }

    async fn a_listener_given_back_to_the_standard_library_accepts_the_next_client() {
        let (listener, addr) = listen().await;
        timeout(Duration::from_millis(5), listener.accept()).await.map(drop).unwrap_err();
        let listener = listener.into_std().expect("an idle listener");
        let client = peer(move || peer::connect(addr));
        peer(move || {
            listener.set_nonblocking(false).unwrap();
            peer::accept(&listener)
        })
        .await;
        drop(client.await);
    }

    async fn split_halves_work_at_the_same_time() {
        let (mut stream, peer) = with_peer(|stream| peer::echo(&stream, Keyed(5), 500_000)).await;
        let (mut read, mut write) = stream.split();
        let mut buf = vec![0; 10_000];
        let mut total = 0;
        while total < 500_000 {
            let n = read.read(&mut buf).await.unwrap();
            write.write_all(&buf[..n]).await.unwrap();
            total += n;
        }
        peer.await;
    }

    async fn owned_halves_can_be_put_together_again() {
        let (stream, peer) = with_peer(|stream| peer::echo(&stream, Keyed(6), 2000)).await;
        let addr = stream.peer_addr().unwrap();
        let (mut read, mut write) = stream.into_split();
        let mut buf = [0; 1000];
        read.read_exact(&mut buf).await.unwrap();
        write.write_all(&buf).await.unwrap();
        let mut stream = read.reunite(write).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addr);
        stream.read_exact(&mut buf).await.unwrap();
        stream.write_all(&buf).await.unwrap();
        peer.await;
    }

    async fn halves_of_two_streams_are_given_back() {
        let (one, _one_end) = pair().await;
        let (other, mut other_end) = pair().await;
        let (read, _write) = one.into_split();
        let (_read, write) = other.into_split();
        let error = read.reunite(write).unwrap_err();
        assert!(!error.to_string().is_empty());
        // Both halves are in the error and still good.
        let mut write = error.1;
        write.write_all(b"x").await.unwrap();
        let mut byte = [0];
        other_end.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"x");
    }

    async fn dropping_the_owned_write_half_sends_fin_and_reads_go_on() {
        let (stream, peer) = with_peer(|stream| {
            assert_eq!(peer::expect_until_end(&stream, &mut Keyed(7).cursor()), 5000);
            peer::send(&stream, &mut Keyed(8).cursor(), 200_000);
        })
        .await;
        let (mut read, mut write) = stream.into_split();
        write.write_all(&Keyed(7).bytes(0, 5000)).await.unwrap();
        drop(write);
        let mut received = Keyed(8).cursor();
        let mut buf = vec![0; 30_000];
        while let n @ 1.. = read.read(&mut buf).await.unwrap() {
            received.check(&buf[..n]);
        }
        assert_eq!(received.offset, 200_000);
        peer.await;
    }

    async fn dropping_the_owned_read_half_leaves_writes_working() {
        let (stream, peer) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(9).cursor())).await;
        let (read, mut write) = stream.into_split();
        drop(read);
        write.write_all(&Keyed(9).bytes(0, 300_000)).await.unwrap();
        drop(write);
        assert_eq!(peer.await, 300_000);
    }

    async fn shutdown_twice_is_fine() {
        let (mut stream, peer) = with_peer(|stream| peer::expect_end(&stream)).await;
        stream.shutdown().await.unwrap();
        stream.shutdown().await.unwrap();
        peer.await;
    }

    async fn shutdown_after_a_reset_is_ok_or_an_error_and_never_hangs() {
        let (mut stream, peer) = with_peer(peer::reset).await;
        peer.await;
        let _ = stream.read(&mut [0; 8]).await;
        for _ in 0..2 {
            if let Err(error) = stream.shutdown().await {
                let kinds =
                    [ErrorKind::NotConnected, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                assert!(kinds.contains(&error.kind()), "shutdown failed with {error}");
            }
        }
    }

    async fn shutdown_sends_what_was_written_first() {
        let (mut stream, peer) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(10).cursor())).await;
        stream.write_all(&Keyed(10).bytes(0, 1)).await.unwrap();
        stream.write_all(&Keyed(10).bytes(1, 7000)).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await, 7001);
    }

    async fn flush_waits_until_nothing_is_unsent() {
        let (mut stream, peer) = with_peer(|stream| {
            peer::expect(&stream, &mut Keyed(11).cursor(), 3000);
            stream
        })
        .await;
        stream.write_all(&Keyed(11).bytes(0, 3000)).await.unwrap();
        stream.flush().await.unwrap();
        stream.flush().await.unwrap();
        // From here on this thread blocks, and the bytes arrive all the same.
        drop(peer.join());
    }

    async fn empty_buffers_are_answered_at_once_and_are_no_end() {
        let (mut stream, peer) = with_peer(|stream| {
            peer::expect(&stream, &mut Keyed(12).cursor(), 4);
            peer::send(&stream, &mut Keyed(13).cursor(), 4);
        })
        .await;
        assert_eq!(stream.read(&mut []).await.unwrap(), 0);
        assert_eq!(stream.read_exact(&mut []).await.unwrap(), 0);
        assert_eq!(stream.write(&[]).await.unwrap(), 0);
        stream.write_all(&[]).await.unwrap();
        assert_eq!(stream.write_vectored(&[]).await.unwrap(), 0);
        let empty = [IoSlice::new(&[]), IoSlice::new(&[])];
        assert_eq!(stream.write_vectored(&empty).await.unwrap(), 0);
        stream.write_all(&Keyed(12).bytes(0, 4)).await.unwrap();
        let mut buf = [0; 4];
        stream.read_exact(&mut buf).await.unwrap();
        Keyed(13).check(0, &buf);
        peer.await;
    }

    async fn vectored_writes_keep_order_and_report_what_they_took() {
        let (mut stream, peer) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(14).cursor())).await;
        let mut offset = 0;
        for (count, len) in [(1, 5), (3, 0), (2, 9000), (7, 1000), (64, 64), (1024, 1), (3, 70_000)]
        {
            let bytes: Vec<_> =
                (0..count).map(|i| Keyed(14).bytes(offset + i * len, len as usize)).collect();
            let slices: Vec<_> = bytes.iter().map(|bytes| IoSlice::new(bytes)).collect();
            let n = stream.write_vectored(&slices).await.unwrap() as u64;
            assert!(n <= count * len);
            assert!(n > 0 || len == 0);
            offset += n;
        }
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await, offset);
    }

    async fn more_slices_than_the_kernel_takes_are_a_short_write() {
        let (mut stream, peer) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(15).cursor())).await;
        let bytes = Keyed(15).bytes(0, 5000 * 20);
        let mut slices: Vec<_> = bytes.chunks(20).map(IoSlice::new).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let n = stream.write_vectored(rest).await.unwrap();
            assert!(n > 0, "a vectored write of {} slices took nothing", rest.len());
            IoSlice::advance_slices(&mut rest, n);
        }
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await, 100_000);
    }

    // A length of 4 GiB is zero in 32 bits, one of 2 GiB negative.
    async fn buffers_of_gibibytes_are_used_in_part() {
        for len in [1_usize << 31, 1 << 32, (1 << 32) + 1] {
            let (mut stream, peer) = with_peer(|mut stream| {
                let mut count = 0;
                let mut buf = vec![0; 1 << 16];
                while let n @ 1.. = stream.read(&mut buf).unwrap() {
                    assert!(buf[..n].iter().all(|&byte| byte == 0));
                    count += n;
                }
                peer::send(&stream, &mut Keyed(21).cursor(), 1000);
                count
            })
            .await;
            // Zeroed by the kernel, page by page, and only what is touched.
            let mut huge = vec![0; len];
            let mut taken = stream.write(&huge).await.unwrap();
            assert!((1..=len).contains(&taken), "a write of {len} bytes took {taken}");
            let slices = [IoSlice::new(&huge[..3]), IoSlice::new(&huge), IoSlice::new(&huge)];
            let n = stream.write_vectored(&slices).await.unwrap();
            assert!((1..=2 * len + 3).contains(&n), "a write of {len} bytes twice took {n}");
            taken += n;
            stream.shutdown().await.unwrap();
            let mut received = Keyed(21).cursor();
            while let n @ 1.. = stream.read(&mut huge).await.unwrap() {
                received.check(&huge[..n]);
            }
            assert_eq!(received.offset, 1000);
            assert_eq!(peer.await, taken);
        }
    }

    async fn a_request_costs_about_two_polls() {
        let (mut stream, peer) = with_peer(|stream| {
            for key in 0..200 {
                peer::echo(&stream, Keyed(key), 64);
            }
        })
        .await;
        let mut polls = 0;
        let mut serving = std::pin::pin!(async move {
            let mut buf = [0; 256];
            while let n @ 1.. = stream.read(&mut buf).await.unwrap() {
                stream.write_all(&buf[..n]).await.unwrap();
            }
        });
        let counting = std::future::poll_fn(|cx| {
            polls += 1;
            serving.as_mut().poll(cx)
        });
        counting.await;
        // Woken for each request once; a few more at the start and the end.
        assert!(polls <= 210, "{polls} polls for 200 requests");
        peer.await;
    }

    async fn peek_shows_bytes_without_taking_them() {
        let (mut stream, peer) =
            with_peer(|stream| peer::send(&stream, &mut Keyed(16).cursor(), 100)).await;
        let mut buf = [0; 100];
        for _ in 0..3 {
            let n = stream.peek(&mut buf[..10]).await.unwrap();
            assert!((1..=10).contains(&n));
            Keyed(16).check(0, &buf[..n]);
        }
        stream.read_exact(&mut buf).await.unwrap();
        Keyed(16).check(0, &buf);
        assert_eq!(stream.peek(&mut buf).await.unwrap(), 0);
        peer.await;
    }

    async fn writes_to_a_peer_that_does_not_read_become_pending_and_others_go_on() {
        let addr = common::steps::serve_echo().await;
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (mut stuck, peer) = with_peer(move |stream| {
            wait.recv().unwrap();
            peer::expect_until_end(&stream, &mut Keyed(17).cursor())
        })
        .await;
        let mut offset = 0;
        loop {
            let bytes = Keyed(17).bytes(offset, 4000);
            match timeout(Duration::from_millis(200), stuck.write(&bytes)).await {
                Ok(n) => offset += n.unwrap() as u64,
                Err(_) => break,
            }
            assert!(offset < 64 << 20, "unsent bytes have no bound");
        }
        peer::peer(move || peer::echo(&peer::connect(addr), Keyed(18), 100_000)).await;
        go.send(()).unwrap();
        stuck.write_all(&Keyed(17).bytes(offset, 50_000)).await.unwrap();
        drop(stuck);
        assert_eq!(peer.await, offset + 50_000);
    }

    async fn a_refused_connect_says_so() {
        let (listener, addr) = peer::listen();
        drop(listener);
        let error = TcpStream::connect(addr).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    async fn connect_tries_every_address() {
        let (closed, refused) = peer::listen();
        drop(closed);
        let (listener, addr) = peer::listen();
        let peer = peer(move || peer::accept(&listener));
        let stream = TcpStream::connect(&[refused, addr][..]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addr);
        peer.await;
        let error = TcpStream::connect(&[refused, refused][..]).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    async fn connect_to_no_address_is_an_error() {
        let none: &[SocketAddr] = &[];
        let error = TcpStream::connect(none).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[deadline_s(60)]
    async fn names_are_resolved() {
        let (listener, addr) = peer::listen();
        let peer = peer(move || peer::accept(&listener));
        let stream = TcpStream::connect(format!("localhost:{}", addr.port())).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().port(), addr.port());
        peer.await;
        let stream = TcpListener::bind("localhost:0").await.unwrap();
        assert!(stream.local_addr().unwrap().ip().is_loopback());
        TcpStream::connect("no port").await.map(drop).unwrap_err();
        TcpStream::connect(("name.invalid", 80)).await.map(drop).unwrap_err();
    }

    async fn a_port_in_use_is_an_error() {
        let (_listener, addr) = listen().await;
        let error = TcpListener::bind(addr).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    async fn a_port_can_be_bound_again_right_after_its_connections_closed() {
        let (listener, addr) = listen().await;
        let client = peer(move || peer::connect(addr)).await;
        let (stream, _) = listener.accept().await.unwrap();
        // Our end closes first, so the port is in TIME_WAIT.
        drop(stream);
        peer(move || peer::expect_end(&client)).await;
        drop(listener);
        TcpListener::bind(addr).await.unwrap();
    }

    async fn two_tasks_accepting_on_one_listener_both_go_on() {
        let (listener, addr) = listen().await;
        let listener = Rc::new(listener);
        let tasks: Vec<_> = (0..2)
            .map(|_| {
                let listener = Rc::clone(&listener);
                annulus::spawn(async move { listener.accept().await.map(drop) })
            })
            .collect();
        settle().await;
        let clients = peer(move || [peer::connect(addr), peer::connect(addr)]).await;
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        drop(clients);
    }

    // A write to a closed connection raises SIGPIPE unless every send forbids it. The test
    // harness ignores the signal, so this asks for its default action first.
    async fn a_write_to_a_closed_connection_is_an_error_and_no_signal() {
        // SAFETY: no handler is installed, only the default action restored; sockets of the
        // standard library never raise the signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let (mut stream, peer) = with_peer(peer::reset).await;
        peer.await;
        let kinds = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        let mut failures = 0;
        for len in [10, 100_000, 10, 100_000] {
            let bytes = vec![0; len];
            let slices = [IoSlice::new(&bytes), IoSlice::new(&bytes)];
            for result in [stream.write_all(&bytes).await, stream.flush().await] {
                failures += usize::from(result.is_err_and(|e| kinds.contains(&e.kind())));
            }
            let result = stream.write_vectored(&slices).await;
            failures += usize::from(result.is_err_and(|e| kinds.contains(&e.kind())));
        }
        assert!(failures > 3, "writes to a reset connection succeeded");
    }

    // Urgent bytes are skipped by reads, and split what is around them in two.
    async fn bytes_around_an_urgent_one_all_arrive() {
        let (go, wait) = std::sync::mpsc::channel();
        let (mut stream, peer) = with_peer(move |mut stream| {
            for _ in 0..2 {
                stream.write_all(b"abc").unwrap();
                socket2::SockRef::from(&stream).send_out_of_band(b"!").unwrap();
                stream.write_all(b"def").unwrap();
                wait.recv().unwrap();
            }
        })
        .await;
        for pause in [Duration::ZERO, Duration::from_millis(100)] {
            // Once waiting for the bytes, once with all of them there already.
            std::thread::sleep(pause);
            let mut received = Vec::new();
            while received.len() < 6 {
                let mut buf = [0; 64];
                let outcome = timeout(Duration::from_secs(5), stream.read(&mut buf)).await;
                let n = outcome.expect("the bytes after the urgent one are stuck").unwrap();
                received.extend_from_slice(&buf[..n]);
            }
            assert_eq!(received, b"abcdef");
            go.send(()).unwrap();
        }
        peer.await;
    }

    #[alone]
    fn every_descriptor_closes_on_exec(driver: Driver) {
        let inherited = descriptors();
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let _listener = listen().await;
            let _streams = pair().await;
            let ours: Vec<_> =
                descriptors().into_iter().filter(|fd| !inherited.contains(fd)).collect();
            assert!(ours.len() >= 4, "the runtime has more descriptors than {ours:?}");
            for fd in ours {
                // SAFETY: the call takes no pointer; a closed descriptor is an error.
                let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
                let target = std::fs::read_link(format!("/proc/self/fd/{fd}"));
                assert!(flags < 0 || flags & libc::FD_CLOEXEC != 0, "{target:?} is inherited");
            }
        });
    }
}
