//! Bytes go through whole and in order, whatever their sizes and whoever ends the stream.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use annulus::net::TcpStream;

use common::bytes::{Keyed, Numbers};
use common::each_driver;
use common::peer::{self, peer};
use common::steps::{listen, pair, serve_echo, with_peer};

mod common;

each_driver! {
    async fn sizes_from_a_byte_to_a_mebibyte_come_back_whole() {
        let addr = serve_echo().await;
        peer(move || {
            let stream = peer::connect(addr);
            for (key, &len) in SIZES.iter().enumerate() {
                peer::echo(&stream, Keyed(key as u64), len);
            }
        })
        .await;
    }

    async fn many_connections_keep_their_bytes_apart() {
        let addr = serve_echo().await;
        let peers: Vec<_> =
            (0..4).map(|thread| peer(move || peer::echo_interleaved(addr, thread))).collect();
        for peer in peers {
            peer.await;
        }
    }

    async fn pipelined_requests_come_back_in_order() {
        let addr = serve_echo().await;
        peer(move || {
            let stream = peer::connect(addr);
            let mut sent = Keyed(1).cursor();
            for _ in 0..2000 {
                peer::send(&stream, &mut sent, 17);
            }
            peer::expect(&stream, &mut Keyed(1).cursor(), 2000 * 17);
        })
        .await;
    }

    async fn bytes_sent_one_at_a_time_arrive_in_order() {
        let addr = serve_echo().await;
        peer(move || {
            let stream = peer::connect(addr);
            let (mut sent, mut received) = (Keyed(2).cursor(), Keyed(2).cursor());
            for _ in 0..500 {
                for _ in 0..8 {
                    peer::send(&stream, &mut sent, 1);
                }
                peer::expect(&stream, &mut received, 8);
            }
        })
        .await;
    }

    async fn reads_of_one_byte_see_every_byte() {
        let (mut stream, peer) =
            with_peer(|stream| peer::send(&stream, &mut Keyed(3).cursor(), 20_000)).await;
        let mut received = Keyed(3).cursor();
        let mut byte = [0];
        while stream.read(&mut byte).await.unwrap() == 1 {
            received.check(&byte);
        }
        assert_eq!(received.offset, 20_000);
        peer.await;
    }

    async fn reads_of_changing_sizes_see_every_byte() {
        let (mut stream, peer) =
            with_peer(|stream| peer::send(&stream, &mut Keyed(4).cursor(), 3_000_000)).await;
        let mut received = Keyed(4).cursor();
        let mut sizes = Numbers(4);
        loop {
            let mut buf = vec![0; 1 + sizes.below(100_000) as usize];
            match stream.read(&mut buf).await.unwrap() {
                0 => break,
                n => received.check(&buf[..n]),
            }
        }
        assert_eq!(received.offset, 3_000_000);
        peer.await;
    }

    // Small writes wait in the stream's buffer, large ones go out at once: none overtakes another.
    async fn small_and_large_writes_keep_their_order() {
        let (mut stream, peer) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(5).cursor())).await;
        let mut sent = Keyed(5).cursor();
        for round in 0..10 {
            for len in [1, 8191, 3, 8192, 2, 8193, 1, 100_000, 70 + round, 65_535, 65_536, 65_537] {
                stream.write_all(&sent.next(len)).await.unwrap();
            }
        }
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await, sent.offset);
    }

    async fn a_write_returns_how_much_it_took() {
        let (mut stream, peer) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(6).cursor())).await;
        let mut offset = 0;
        let mut sizes = Numbers(6);
        while offset < 2_000_000 {
            let len = 1 + sizes.below(200_000) as usize;
            let n = stream.write(&Keyed(6).bytes(offset, len)).await.unwrap();
            assert!((1..=len).contains(&n), "a write of {len} bytes returned {n}");
            offset += n as u64;
        }
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await, offset);
    }

    async fn a_write_of_megabytes_reaches_a_slow_reader_whole() {
        let (mut stream, peer) = with_peer(|mut stream| {
            let mut received = Keyed(7).cursor();
            let mut sizes = Numbers(7);
            loop {
                let mut buf = vec![0; 1 + sizes.below(30_000) as usize];
                match stream.read(&mut buf).unwrap() {
                    0 => return received.offset,
                    n => received.check(&buf[..n]),
                }
                if sizes.below(16) == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        })
        .await;
        stream.write_all(&Keyed(7).bytes(0, 4 << 20)).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await, 4 << 20);
    }

    async fn both_directions_flow_at_once() {
        const LEN: usize = 4 << 20;
        let (stream, peer) = with_peer(|stream| {
            let other = stream.try_clone().unwrap();
            let sender = peer(move || {
                peer::send(&other, &mut Keyed(8).cursor(), LEN);
                other.shutdown(Shutdown::Write).unwrap();
            });
            let received = peer::expect_until_end(&stream, &mut Keyed(9).cursor());
            sender.join();
            received
        })
        .await;
        let (mut read, mut write) = stream.into_split();
        let reading = annulus::spawn(async move {
            let mut received = Keyed(8).cursor();
            let mut buf = vec![0; 50_000];
            loop {
                match read.read(&mut buf).await.unwrap() {
                    0 => return received.offset,
                    n => received.check(&buf[..n]),
                }
            }
        });
        let mut sent = Keyed(9).cursor();
        while sent.offset < LEN as u64 {
            write.write_all(&sent.next(1 << 16)).await.unwrap();
        }
        write.shutdown().await.unwrap();
        assert_eq!(reading.await.unwrap(), LEN as u64);
        assert_eq!(peer.await, LEN as u64);
    }

    async fn both_ends_of_a_connection_may_be_on_one_runtime() {
        let (mut client, mut server) = pair().await;
        let echoing = annulus::spawn(async move {
            let mut buf = vec![0; 1000];
            while let n @ 1.. = server.read(&mut buf).await.unwrap() {
                server.write_all(&buf[..n]).await.unwrap();
            }
        });
        let (mut sent, mut received) = (Keyed(10).cursor(), Keyed(10).cursor());
        let mut buf = vec![0; 3000];
        for _ in 0..200 {
            client.write_all(&sent.next(3000)).await.unwrap();
            assert_eq!(client.read_exact(&mut buf).await.unwrap(), 3000);
            received.check(&buf);
        }
        drop(client);
        echoing.await.unwrap();
    }

    async fn the_peers_half_close_is_an_end_every_time_and_writes_go_on() {
        let (mut stream, peer) = with_peer(|stream| {
            peer::send(&stream, &mut Keyed(11).cursor(), 10);
            stream.shutdown(Shutdown::Write).unwrap();
            peer::expect_until_end(&stream, &mut Keyed(12).cursor())
        })
        .await;
        let mut buf = [0; 100];
        assert_eq!(stream.read_exact(&mut buf[..10]).await.unwrap(), 10);
        Keyed(11).check(0, &buf[..10]);
        for _ in 0..3 {
            assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
        }
        stream.write_all(&Keyed(12).bytes(0, 300_000)).await.unwrap();
        assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
        assert_eq!(stream.peek(&mut buf).await.unwrap(), 0);
        drop(stream);
        assert_eq!(peer.await, 300_000);
    }

    async fn a_half_close_sends_fin_and_reads_go_on() {
        let (mut stream, peer) = with_peer(|stream| {
            assert_eq!(peer::expect_until_end(&stream, &mut Keyed(13).cursor()), 1000);
            peer::send(&stream, &mut Keyed(14).cursor(), 300_000);
        })
        .await;
        stream.write_all(&Keyed(13).bytes(0, 1000)).await.unwrap();
        stream.shutdown().await.unwrap();
        let error = stream.write(b"late").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        let mut received = Keyed(14).cursor();
        let mut buf = vec![0; 10_000];
        while let n @ 1.. = stream.read(&mut buf).await.unwrap() {
            received.check(&buf[..n]);
        }
        assert_eq!(received.offset, 300_000);
        peer.await;
    }

    async fn an_end_before_the_buffer_is_full_is_an_unexpected_end() {
        let (mut stream, peer) =
            with_peer(|stream| peer::send(&stream, &mut Keyed(15).cursor(), 7)).await;
        let error = stream.read_exact(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        peer.await;
    }

    async fn a_reset_is_an_error_and_harms_no_other_connection() {
        let addr = serve_echo().await;
        let (mut doomed, peer) = with_peer(peer::reset).await;
        peer.await;
        let error = doomed.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        peer::peer(move || peer::echo(&peer::connect(addr), Keyed(16), 100_000)).await;
    }

    async fn a_reset_ends_a_pending_read_and_a_pending_write() {
        let (stream, peer) = with_peer(|mut stream| {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            peer::reset(stream);
        })
        .await;
        let (mut read, mut write) = stream.into_split();
        let reading = annulus::spawn(async move { read.read(&mut [0; 8]).await });
        let writing = annulus::spawn(async move { write.write_all(&vec![1; 64 << 20]).await });
        // The error is reported once by the kernel: one of the two sees the reset, the other that
        // or the broken connection.
        let read = reading.await.unwrap();
        let write = writing.await.unwrap().unwrap_err();
        let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(kinds.contains(&write.kind()), "the write failed with {write}");
        match read {
            Ok(n) => assert_eq!(n, 0, "bytes came from a peer that sent none"),
            Err(read) => assert!(kinds.contains(&read.kind()), "the read failed with {read}"),
        }
        peer.await;
    }

    async fn bytes_before_a_reset_are_right_and_the_end_is_not_clean() {
        for len in [1, 5000, 200_000] {
            let (mut stream, peer) = with_peer(move |stream| {
                peer::send(&stream, &mut Keyed(17).cursor(), len);
                peer::reset(stream);
            })
            .await;
            peer.await;
            let mut received = Keyed(17).cursor();
            let mut buf = vec![0; 1500];
            let error = loop {
                match stream.read(&mut buf).await {
                    Ok(0) => panic!("a reset was reported as a clean end"),
                    Ok(n) => received.check(&buf[..n]),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(received.offset <= len as u64);
        }
    }

    async fn connections_closed_at_once_leave_the_listener_working() {
        let addr = serve_echo().await;
        peer(move || {
            for round in 0..500 {
                let stream = peer::connect(addr);
                if round % 2 == 0 {
                    peer::reset(stream);
                }
            }
            peer::echo(&peer::connect(addr), Keyed(18), 5000);
        })
        .await;
    }

    async fn clients_that_reset_while_queued_do_not_end_the_listener() {
        let (listener, addr) = listen().await;
        peer(move || {
            for _ in 0..20 {
                peer::reset(peer::connect(addr));
            }
        })
        .await;
        let client = peer(move || peer::echo(&peer::connect(addr), Keyed(19), 100));
        annulus::spawn(async move {
            // An aborted client may be skipped or reported; the next ones are served either way.
            for _ in 0..1000 {
                if let Ok((stream, _)) = listener.accept().await {
                    annulus::spawn(async move { drop(common::steps::echo(stream).await) });
                }
            }
        });
        client.await;
    }

    async fn a_flood_on_one_connection_does_not_starve_a_quiet_one() {
        let addr = serve_echo().await;
        let (mut flooded, flood) = with_peer(|mut stream| {
            let noise = vec![7; 1 << 16];
            // Ends when the other side has gone.
            while stream.write_all(&noise).is_ok() {}
        })
        .await;
        let sink = annulus::spawn(async move {
            let mut buf = vec![0; 1 << 16];
            while flooded.read(&mut buf).await.is_ok_and(|n| n > 0) {}
        });
        peer(move || {
            let stream = peer::connect(addr);
            let (mut sent, mut received) = (Keyed(20).cursor(), Keyed(20).cursor());
            for _ in 0..200 {
                peer::send(&stream, &mut sent, 32);
                peer::expect(&stream, &mut received, 32);
            }
        })
        .await;
        sink.abort();
        flood.await;
    }

    async fn a_connection_of_our_own_echoes_through_a_blocking_peer() {
        let (listener, addr) = peer::listen();
        let peer = peer(move || {
            let mut stream = peer::accept(&listener);
            let mut buf = [0; 4096];
            while let n @ 1.. = stream.read(&mut buf).unwrap() {
                stream.write_all(&buf[..n]).unwrap();
            }
        });
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let (mut sent, mut received) = (Keyed(21).cursor(), Keyed(21).cursor());
        let mut buf = vec![0; 4000];
        for _ in 0..100 {
            stream.write_all(&sent.next(4000)).await.unwrap();
            stream.read_exact(&mut buf).await.unwrap();
            received.check(&buf);
        }
        drop(stream);
        peer.await;
    }
}

// Around every boundary between ways of sending and receiving.
const SIZES: [usize; 25] = [
    1,
    2,
    3,
    7,
    8,
    63,
    64,
    511,
    512,
    1000,
    4095,
    4096,
    4097,
    8191,
    8192,
    8193,
    16_383,
    16_384,
    16_385,
    65_535,
    65_536,
    65_537,
    262_144,
    1_000_001,
    1 << 20,
];
