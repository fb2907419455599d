//! Dropped futures lose no byte and no connection, and leave nothing behind.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use annulus::net::{TcpListener, TcpStream};
use annulus::time::{sleep, timeout};

use common::bytes::{Keyed, Numbers};
use common::cut::{attempt, check_attempts, rationed_peer, streaming_peer};
use common::each_driver;
use common::peer::{self, Peer, peer};
use common::steps::{Either, eventually, listen, poll_once, race, settle, with_peer};

mod common;

each_driver! {
    #[deadline_s(120)]
    async fn timed_out_reads_lose_no_byte() {
        let over = Arc::new(AtomicBool::new(false));
        let (mut stream, peer) = streaming_peer(Keyed(1), &over).await;
        let mut received = Keyed(1).cursor();
        let mut numbers = Numbers(1);
        let mut buf = vec![0; 4096];
        let mut timed_out = 0;
        for round in 0..20_000 {
            let patience = Duration::from_micros(round % 201);
            let len = 1 + numbers.below(4096) as usize;
            match timeout(patience, stream.read(&mut buf[..len])).await {
                Ok(n) => received.check(&buf[..n.unwrap()]),
                Err(_) => timed_out += 1,
            }
        }
        over.store(true, Ordering::Relaxed);
        loop {
            match stream.read(&mut buf).await.unwrap() {
                0 => break,
                n => received.check(&buf[..n]),
            }
        }
        println!("{timed_out} of 20000 reads were cut short, {} bytes", received.offset);
        assert_eq!(received.offset, peer.await, "not every byte sent was received");
        assert!(timed_out > 0, "no read was ever cut short, so nothing was tested");
    }

    #[deadline_s(120)]
    async fn timed_out_accepts_lose_no_connection() {
        let (listener, addr) = listen().await;
        let over = Arc::new(AtomicBool::new(false));
        let peer = connecting_peer(addr, &over);
        let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut timed_out = 0;
        for round in 0..20_000 {
            match timeout(Duration::from_micros(round % 201), listener.accept()).await {
                Ok(accepted) => read_number(accepted.unwrap().0, &seen),
                Err(_) => timed_out += 1,
            }
        }
        over.store(true, Ordering::Relaxed);
        let mut peer = pin!(peer);
        let count = loop {
            match race(listener.accept(), peer.as_mut()).await {
                Either::Left(accepted) => read_number(accepted.unwrap().0, &seen),
                Either::Right(count) => break count,
            }
        };
        while let Ok(accepted) = timeout(Duration::from_millis(200), listener.accept()).await {
            read_number(accepted.unwrap().0, &seen);
        }
        eventually("all numbers are read", || seen.borrow().len() as u64 >= count).await;
        println!("{timed_out} of 20000 accepts were cut short, {count} connections");
        let mut seen = seen.take();
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..count), "connections were lost or came twice");
        assert!(timed_out > 0, "no accept was ever cut short, so nothing was tested");
    }

    async fn reads_dropped_by_select_lose_no_byte() {
        let over = Arc::new(AtomicBool::new(false));
        let (mut left, left_peer) = streaming_peer(Keyed(2), &over).await;
        let (mut right, right_peer) = streaming_peer(Keyed(3), &over).await;
        let (mut left_received, mut right_received) = (Keyed(2).cursor(), Keyed(3).cursor());
        let (mut left_buf, mut right_buf) = (vec![0; 700], vec![0; 700]);
        for _ in 0..5000 {
            // The loser is dropped in flight every time.
            match race(left.read(&mut left_buf), right.read(&mut right_buf)).await {
                Either::Left(n) => left_received.check(&left_buf[..n.unwrap()]),
                Either::Right(n) => right_received.check(&right_buf[..n.unwrap()]),
            }
            std::mem::swap(&mut left, &mut right);
            std::mem::swap(&mut left_received, &mut right_received);
        }
        over.store(true, Ordering::Relaxed);
        let left_received = drain(&mut left, left_received).await;
        let right_received = drain(&mut right, right_received).await;
        assert_eq!(left_received + right_received, left_peer.await + right_peer.await);
    }

    async fn a_dropped_read_exact_gives_its_bytes_back() {
        let over = Arc::new(AtomicBool::new(false));
        let (mut stream, peer) = streaming_peer(Keyed(4), &over).await;
        let mut received = Keyed(4).cursor();
        let mut dropped = 0;
        for round in 0..1500 {
            let len = [9000, 100, 100_000][round % 3];
            let mut buf = vec![0; len];
            let reading = stream.read_exact(&mut buf);
            match timeout(Duration::from_micros(round as u64 % 201), reading).await {
                Ok(n) => {
                    assert_eq!(n.unwrap(), len);
                    received.check(&buf);
                }
                Err(_) => dropped += 1,
            }
            if round % 5 == 0 {
                let n = stream.read(&mut buf).await.unwrap();
                received.check(&buf[..n]);
            }
        }
        assert!(dropped > 0, "no read was ever cut short, so nothing was tested");
        over.store(true, Ordering::Relaxed);
        let total = drain(&mut stream, received).await;
        assert_eq!(total, peer.await);
    }

    async fn a_dropped_peek_takes_nothing() {
        let over = Arc::new(AtomicBool::new(false));
        let (mut stream, peer) = streaming_peer(Keyed(5), &over).await;
        let mut received = Keyed(5).cursor();
        let mut buf = vec![0; 512];
        for round in 0..3000 {
            if let Ok(n) = timeout(Duration::from_micros(round % 101), stream.peek(&mut buf)).await
            {
                Keyed(5).check(received.offset, &buf[..n.unwrap()]);
            }
            if round % 3 == 0 {
                let n = stream.read(&mut buf).await.unwrap();
                received.check(&buf[..n]);
            }
        }
        over.store(true, Ordering::Relaxed);
        let total = drain(&mut stream, received).await;
        assert_eq!(total, peer.await);
    }

    #[deadline_s(60)]
    async fn a_timed_out_write_took_nothing() {
        let ration = Arc::new(AtomicU64::new(0));
        let (mut stream, peer) = rationed_peer(&ration).await;
        let mut offset = 0;
        let mut dropped = 0;
        let mut numbers = Numbers(6);
        for round in 0..3000 {
            let len = 1 + numbers.below(40_000) as usize;
            let bytes = Keyed(6).bytes(offset, len);
            match timeout(Duration::from_micros(round % 201), stream.write(&bytes)).await {
                Ok(n) => offset += n.unwrap() as u64,
                Err(_) => {
                    dropped += 1;
                    ration.fetch_add(15_000, Ordering::Relaxed);
                }
            }
        }
        assert!(dropped > 0, "no write was ever cut short, so nothing was tested");
        ration.store(u64::MAX, Ordering::Relaxed);
        stream.shutdown().await.unwrap();
        let wire = peer.await;
        Keyed(6).check(0, &wire);
        assert_eq!(wire.len() as u64, offset, "the wire carries what the writes took");
    }

    #[deadline_s(60)]
    async fn a_timed_out_write_all_sent_a_prefix_and_nothing_twice() {
        let ration = Arc::new(AtomicU64::new(0));
        let (mut stream, peer) = rationed_peer(&ration).await;
        let mut whole = Vec::new();
        for round in 0..400 {
            let bytes = attempt(round);
            let writing = stream.write_all(&bytes);
            let outcome = timeout(Duration::from_micros(round as u64 % 201), writing).await;
            if outcome.is_err() {
                ration.fetch_add(70_000, Ordering::Relaxed);
            }
            whole.push(outcome.map(Result::unwrap).is_ok());
        }
        assert!(whole.contains(&false), "no write was ever cut short, so nothing was tested");
        ration.store(u64::MAX, Ordering::Relaxed);
        stream.shutdown().await.unwrap();
        check_attempts(&peer.await, &whole);
    }

    async fn fin_comes_soon_when_a_stream_with_a_dropped_read_is_dropped() {
        let (mut stream, peer) = with_peer(end_seen_at).await;
        {
            let mut buf = [0; 100];
            let mut reading = pin!(stream.read(&mut buf));
            assert!(poll_once(reading.as_mut()).await.is_pending());
            settle().await;
        }
        assert_fin_soon(|| drop(stream), peer).await;
    }

    async fn fin_comes_soon_when_a_task_is_aborted_in_a_read() {
        let (mut stream, peer) = with_peer(end_seen_at).await;
        let task = annulus::spawn(async move { stream.read(&mut [0; 100]).await });
        settle().await;
        assert_fin_soon(|| task.abort(), peer).await;
        assert!(task.await.unwrap_err().is_cancelled());
    }

    async fn fin_comes_soon_when_the_write_half_is_dropped_beside_a_pending_read() {
        let (stream, peer) = with_peer(end_seen_at).await;
        let (mut read, write) = stream.into_split();
        let reading = annulus::spawn(async move { read.read(&mut [0; 100]).await });
        settle().await;
        assert_fin_soon(|| drop(write), peer).await;
        // The peer has closed as well by now.
        assert_eq!(reading.await.unwrap().unwrap(), 0);
    }

    async fn fin_comes_soon_when_both_halves_go_with_a_read_pending() {
        let (stream, peer) = with_peer(end_seen_at).await;
        let (mut read, write) = stream.into_split();
        let reading = annulus::spawn(async move { read.read(&mut [0; 100]).await });
        settle().await;
        let drop_both = move || {
            reading.abort();
            drop(write);
        };
        assert_fin_soon(drop_both, peer).await;
    }

    async fn a_dropped_stream_still_sends_what_was_written() {
        let (mut stream, peer) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(7).cursor())).await;
        {
            let mut buf = [0; 100];
            let mut reading = pin!(stream.read(&mut buf));
            assert!(poll_once(reading.as_mut()).await.is_pending());
        }
        stream.write_all(&Keyed(7).bytes(0, 5000)).await.unwrap();
        drop(stream);
        assert_eq!(peer.await, 5000);
    }

    async fn a_dropped_listener_frees_its_port_refuses_and_ends_its_queue() {
        let (listener, addr) = listen().await;
        let mut clients = Vec::new();
        {
            // Armed first, so that some of the clients are accepted before anyone asks for them.
            let mut accepting = pin!(listener.accept());
            assert!(poll_once(accepting.as_mut()).await.is_pending());
            for _ in 0..5 {
                clients.push(peer(move || peer::connect(addr)).await);
            }
            settle().await;
            for _ in 0..5 {
                clients.push(peer(move || peer::connect(addr)).await);
            }
        }
        drop(listener);
        peer(move || clients.iter().for_each(peer::expect_closed)).await;
        let refused = peer(move || std::net::TcpStream::connect(addr)).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let again = TcpListener::bind(addr).await.expect("the port is free");
        let client = peer(move || peer::connect(addr));
        again.accept().await.unwrap();
        drop(client.await);
    }

    async fn a_listener_dropped_by_an_aborted_task_frees_its_port() {
        let (listener, addr) = listen().await;
        let task = annulus::spawn(async move { listener.accept().await.map(drop) });
        settle().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        let again = TcpListener::bind(addr).await.expect("the port is free");
        drop(again);
    }

    async fn futures_that_are_never_polled_do_nothing() {
        let (mut stream, peer) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(8).cursor())).await;
        drop(stream.write(b"not"));
        drop(stream.write_all(b"not"));
        drop(stream.shutdown());
        let mut buf = [0; 8];
        drop(stream.read(&mut buf));
        let (std_listener, std_addr) = peer::listen();
        drop(TcpStream::connect(std_addr));
        let (listener, addr) = listen().await;
        drop(listener.accept());
        settle().await;

        std_listener.set_nonblocking(true).unwrap();
        let nobody = std_listener.accept().map(drop).unwrap_err();
        assert_eq!(nobody.kind(), ErrorKind::WouldBlock, "connect began before it was polled");
        let client = peer::peer(move || peer::connect(addr));
        listener.accept().await.unwrap();
        drop(client.await);

        let (free, free_addr) = peer::listen();
        drop(free);
        let binding = TcpListener::bind(free_addr);
        settle().await;
        std::net::TcpListener::bind(free_addr).expect("bind began before it was polled");
        drop(binding);

        stream.write_all(&Keyed(8).bytes(0, 3)).await.unwrap();
        drop(stream);
        assert_eq!(peer.await, 3);
    }

    async fn a_read_that_completed_unpolled_gives_its_bytes_to_the_next() {
        let (tell, told) = std::sync::mpsc::channel::<usize>();
        let (mut stream, peer) = with_peer(move |stream| {
            let mut sent = Keyed(9).cursor();
            while let Ok(len) = told.recv() {
                peer::send(&stream, &mut sent, len);
            }
        })
        .await;
        let mut received = Keyed(9).cursor();
        for round in 0..50 {
            let mut unused = [0xaa; 4096];
            {
                let mut reading = pin!(stream.read(&mut unused));
                assert!(poll_once(reading.as_mut()).await.is_pending());
                settle().await;
                tell.send(1 + round * 50).unwrap();
                settle().await;
            }
            assert_eq!(unused, [0xaa; 4096], "a read wrote to its buffer outside of a poll");
            let mut buf = vec![0; 1 + round * 50];
            stream.read_exact(&mut buf).await.unwrap();
            received.check(&buf);
        }
        drop(tell);
        peer.await;
    }

    async fn an_accept_that_completed_unpolled_gives_its_connection_to_the_next() {
        let (listener, addr) = listen().await;
        for round in 0..20 {
            let client = {
                let mut accepting = pin!(listener.accept());
                assert!(poll_once(accepting.as_mut()).await.is_pending());
                settle().await;
                let client = peer(move || peer::connect(addr)).await;
                settle().await;
                client
            };
            let (mut stream, from) = listener.accept().await.unwrap();
            assert_eq!(from, client.local_addr().unwrap());
            stream.write_all(&Keyed(round).bytes(0, 10)).await.unwrap();
            peer(move || peer::expect(&client, &mut Keyed(round).cursor(), 10)).await;
        }
    }

    async fn an_accept_that_is_kept_and_not_polled_holds_up_no_other() {
        let (listener, addr) = listen().await;
        let listener = Rc::new(listener);
        let other = Rc::clone(&listener);
        let waiting = annulus::spawn(async move { other.accept().await.map(drop) });
        settle().await;
        let mut kept = Box::pin(listener.accept());
        assert!(poll_once(kept.as_mut()).await.is_pending());
        let client = peer(move || peer::connect(addr)).await;
        let outcome = timeout(Duration::from_secs(5), waiting).await;
        outcome.expect("the connection waits for a future that nobody polls").unwrap().unwrap();
        drop((kept, client));
    }

    async fn a_forgotten_accept_holds_up_no_other() {
        let (listener, addr) = listen().await;
        let listener = Rc::new(listener);
        let other = Rc::clone(&listener);
        let waiting = annulus::spawn(async move { other.accept().await.map(drop) });
        settle().await;
        let mut forgotten = Box::pin(listener.accept());
        assert!(poll_once(forgotten.as_mut()).await.is_pending());
        std::mem::forget(forgotten);
        let client = peer(move || peer::connect(addr)).await;
        let outcome = timeout(Duration::from_secs(5), waiting).await;
        outcome.expect("the connection waits for a forgotten future").unwrap().unwrap();
        drop(client);
    }

    fn an_accept_dropped_outside_of_the_runtime_holds_up_no_other(driver: Driver) {
        let runtime = common::runtime(driver);
        let (listener, addr) = runtime.block_on(listen());
        let listener = Rc::new(listener);
        let other = Rc::clone(&listener);
        let mut waiting = None;
        runtime.block_on(async {
            waiting = Some(annulus::spawn(async move { other.accept().await.map(drop) }));
            settle().await;
        });
        let waiting = waiting.expect("the task was spawned");
        let mut accepting = Box::pin(listener.accept());
        assert!(runtime.block_on(poll_once(accepting.as_mut())).is_pending());
        drop(accepting);
        let client = peer::connect(addr);
        let outcome = runtime.block_on(async { timeout(Duration::from_secs(5), waiting).await });
        outcome.expect("the connection waits for a dropped future").unwrap().unwrap();
        drop(client);
    }

    fn a_read_exact_dropped_outside_of_the_runtime_gives_its_bytes_back(driver: Driver) {
        let runtime = common::runtime(driver);
        let (go, wait) = std::sync::mpsc::channel();
        let (mut stream, peer) = runtime.block_on(with_peer(move |stream| {
            let mut sent = Keyed(14).cursor();
            peer::send(&stream, &mut sent, 3);
            wait.recv().unwrap();
            peer::send(&stream, &mut sent, 3);
        }));
        {
            let mut buf = [0; 6];
            let mut reading = Box::pin(stream.read_exact(&mut buf));
            let patience = Duration::from_millis(50);
            runtime.block_on(async { timeout(patience, reading.as_mut()).await }).unwrap_err();
            drop(reading);
        }
        go.send(()).unwrap();
        let mut buf = [0; 6];
        runtime.block_on(stream.read_exact(&mut buf)).unwrap();
        Keyed(14).check(0, &buf);
        peer.join();
    }

    async fn a_connect_that_completed_unpolled_is_closed() {
        let (listener, addr) = peer::listen();
        {
            let mut connecting = pin!(TcpStream::connect(addr));
            // It may be done at the first poll already, then its stream is what is dropped.
            drop(poll_once(connecting.as_mut()).await);
            settle().await;
        }
        peer(move || peer::expect_closed(&peer::accept(&listener))).await;
    }

    async fn a_dropped_connect_leaves_no_connection() {
        let (listener, addr) = peer::listen();
        let marker = Keyed(11);
        for _ in 0..50 {
            let mut connecting = Box::pin(TcpStream::connect(addr));
            drop(poll_once(connecting.as_mut()).await);
        }
        let mut last = TcpStream::connect(addr).await.unwrap();
        last.write_all(&marker.bytes(0, 16)).await.unwrap();
        // Every connection before the last is over; the last one carries its bytes.
        let peer = peer(move || {
            loop {
                let mut stream = peer::accept(&listener);
                let mut buf = [0; 16];
                match stream.read(&mut buf) {
                    Ok(0) => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                    Ok(n) => return marker.check(0, &buf[..n]),
                    Err(error) => panic!("a dropped connect left its connection open: {error}"),
                }
            }
        });
        peer.await;
    }

    async fn a_connect_to_a_full_backlog_can_be_dropped() {
        let (full, queued) = peer::full_listener();
        let addr = full.local_addr().unwrap();
        let mut pending = 0;
        for _ in 0..5 {
            let patience = Duration::from_millis(30);
            if timeout(patience, TcpStream::connect(addr)).await.is_err() {
                pending += 1;
            }
        }
        assert!(pending > 0, "no connect was ever cut short, so nothing was tested");
        drop((full, queued));
    }

    async fn a_descriptor_used_again_never_brings_bytes_of_the_stream_before() {
        let (listener, addr) = listen().await;
        let peer = peer(move || {
            for key in 0..400 {
                let mut stream = peer::connect(addr);
                // Half of the streams are dropped before their bytes come.
                let _ = stream.write_all(&Keyed(key).bytes(0, 100));
                let mut end = [0];
                let _ = stream.read(&mut end);
            }
        });
        for key in 0..400 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buf = [0; 100];
            if key % 2 == 0 {
                let mut reading = pin!(stream.read(&mut buf));
                let _ = poll_once(reading.as_mut()).await;
                continue;
            }
            stream.read_exact(&mut buf).await.unwrap();
            Keyed(key).check(0, &buf);
        }
        peer.await;
    }

    // More cancellations at once than the submission queue has room for.
    #[deadline_s(60)]
    async fn a_thousand_reads_aborted_at_once_all_end_their_connections() {
        let (listener, addr) = listen().await;
        let peers = peer(move || (0..1000).map(|_| peer::connect(addr)).collect::<Vec<_>>());
        let mut tasks = Vec::new();
        for _ in 0..1000 {
            let (mut stream, _) = listener.accept().await.unwrap();
            tasks.push(annulus::spawn(async move { stream.read(&mut [0; 64]).await }));
        }
        let peers = peers.await;
        settle().await;
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            assert!(task.await.unwrap_err().is_cancelled());
        }
        peer(move || peers.iter().for_each(peer::expect_end)).await;
    }

    #[deadline_s(60)]
    async fn a_thousand_reads_dropped_and_polled_again_lose_no_byte() {
        let (listener, addr) = listen().await;
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let peers = peer(move || {
            let streams: Vec<_> = (0..1000).map(|_| peer::connect(addr)).collect();
            while told.recv().is_ok() {
                for (key, mut stream) in streams.iter().enumerate() {
                    stream.write_all(&Keyed(key as u64).bytes(0, 20)).unwrap();
                }
            }
        });
        let mut streams = Vec::new();
        for _ in 0..1000 {
            streams.push(listener.accept().await.unwrap().0);
        }
        for round in 0..3 {
            let mut unused = vec![[0; 64]; 1000];
            {
                let mut reads: Vec<_> = streams
                    .iter_mut()
                    .zip(&mut unused)
                    .map(|(stream, buf)| Box::pin(stream.read(buf)))
                    .collect();
                for read in &mut reads {
                    assert!(poll_once(read.as_mut()).await.is_pending());
                }
                if round != 1 {
                    settle().await;
                }
                tell.send(()).unwrap();
                if round == 2 {
                    settle().await;
                }
            }
            for (key, stream) in streams.iter_mut().enumerate() {
                let mut buf = [0; 20];
                stream.read_exact(&mut buf).await.unwrap();
                Keyed(key as u64).check(0, &buf);
            }
        }
        drop(tell);
        peers.await;
    }

    async fn a_forgotten_read_never_writes_to_its_buffer() {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let (mut stream, peer) = with_peer(move |stream| {
            told.recv().unwrap();
            peer::send(&stream, &mut Keyed(12).cursor(), 4096);
        })
        .await;
        let mut buf = [0xaa; 4096];
        {
            let mut reading = Box::pin(stream.read(&mut buf));
            assert!(poll_once(reading.as_mut()).await.is_pending());
            settle().await;
            std::mem::forget(reading);
        }
        tell.send(()).unwrap();
        settle().await;
        assert_eq!(buf, [0xaa; 4096]);
        // The stream itself is still good: the forgotten future held only a borrow of it.
        let outcome = timeout(Duration::from_secs(5), stream.read_exact(&mut buf)).await;
        outcome.expect("a forgotten read took the bytes").unwrap();
        Keyed(12).check(0, &buf);
        peer.await;
    }

    fn forgotten_futures_survive_the_end_of_the_runtime(driver: Driver) {
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let (listener, addr) = listen().await;
            let (mut stream, _peer) = with_peer(|mut stream| {
                // Ends when the other side has gone, however that happens.
                while stream.write_all(&[1; 100]).is_ok() {}
            })
            .await;
            let mut reading = Box::pin(async move {
                // More than can come in one go.
                let mut buf = vec![0; 1 << 28];
                stream.read_exact(&mut buf).await
            });
            let outcome = poll_once(reading.as_mut()).await;
            assert!(outcome.is_pending(), "the read ended: {outcome:?}");
            let mut accepting = Box::pin(async move { listener.accept().await });
            assert!(poll_once(accepting.as_mut()).await.is_pending());
            let mut sleeping = Box::pin(sleep(Duration::from_secs(3600)));
            assert!(poll_once(sleeping.as_mut()).await.is_pending());
            let mut connecting = Box::pin(TcpStream::connect(addr));
            let _ = poll_once(connecting.as_mut()).await;
            settle().await;
            std::mem::forget((reading, accepting, sleeping, connecting));
        });
        drop(runtime);
        // A forgotten stream may stay open; what it may not do is harm the next runtime.
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let addr = common::steps::serve_echo().await;
            peer(move || peer::echo(&peer::connect(addr), Keyed(13), 100_000)).await;
        });
    }
}

/// A peer that connects again and again, each time with its number, and says how often.
fn connecting_peer(addr: SocketAddr, over: &Arc<AtomicBool>) -> Peer<u64> {
    let over = Arc::clone(over);
    peer(move || {
        let mut numbers = Numbers(77);
        let mut count: u64 = 0;
        while !over.load(Ordering::Relaxed) && count < CONNECTIONS_MAX {
            let mut stream = peer::connect(addr);
            stream.write_all(&count.to_le_bytes()).unwrap();
            count += 1;
            std::thread::sleep(Duration::from_micros(numbers.below(300)));
        }
        count
    })
}

fn read_number(mut stream: TcpStream, seen: &Rc<std::cell::RefCell<Vec<u64>>>) {
    let seen = Rc::clone(seen);
    annulus::spawn(async move {
        let mut number = [0; 8];
        stream.read_exact(&mut number).await.expect("the client's number");
        seen.borrow_mut().push(u64::from_le_bytes(number));
    });
}

async fn drain(stream: &mut TcpStream, mut received: common::bytes::Cursor) -> u64 {
    let mut buf = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buf).await.unwrap() {
            0 => return received.offset,
            n => received.check(&buf[..n]),
        }
    }
}

fn end_seen_at(stream: std::net::TcpStream) -> Instant {
    peer::expect_end(&stream);
    Instant::now()
}

async fn assert_fin_soon(drop_it: impl FnOnce(), peer: Peer<Instant>) {
    let dropped_at = Instant::now();
    drop_it();
    let late = peer.await.saturating_duration_since(dropped_at);
    assert!(late <= Duration::from_millis(100), "the peer saw the end {late:?} after the drop");
}

// Fewer than there are local ports for one remote address.
const CONNECTIONS_MAX: u64 = 20_000;
