//! Small rings and pools, full queues, settings that change the order of work: all goes on.

use std::io::Write;
use std::pin::pin;
use std::time::Duration;

use annulus::net::{ListenOptions, TcpListener};
use annulus::time::{sleep, timeout};
use annulus::{Builder, Runtime};

use common::bytes::Keyed;
use common::peer::{self, peer};
use common::process::{cpu_ms, need_descriptors, open_descriptors, resident_bytes};
use common::steps::{listen, pair, poll_once, serve_echo, settle, with_peer};
use common::{each_driver, slower};

mod common;

each_driver! {
    // Every operation of a turn beyond the first needs a flush.
    fn a_ring_of_one_entry_serves_many_connections(driver: Driver) {
        serves_and_cancels(Runtime::builder().driver(driver).ring_entries(1));
    }

    fn a_pool_of_one_small_buffer_serves_many_connections(driver: Driver) {
        serves_and_cancels(Runtime::builder().driver(driver).recv_pool(1, 256));
    }

    fn looking_at_events_after_every_poll_changes_nothing(driver: Driver) {
        serves_and_cancels(Runtime::builder().driver(driver).event_interval(1));
    }

    fn looking_at_events_rarely_changes_nothing(driver: Driver) {
        serves_and_cancels(Runtime::builder().driver(driver).event_interval(10_000));
    }

    fn spinning_before_sleeping_changes_nothing(driver: Driver) {
        serves_and_cancels(Runtime::builder().driver(driver).spin(Duration::from_micros(200)));
    }

    #[alone]
    fn a_spin_ends_and_the_runtime_sleeps(driver: Driver) {
        let builder = Runtime::builder().driver(driver).spin(Duration::from_millis(1));
        build(builder).block_on(async {
            let _held = pair().await;
            settle().await;
            let before = cpu_ms();
            sleep(Duration::from_secs(1)).await;
            let spent = cpu_ms() - before;
            assert!(spent < 500, "{spent} ms of processor time in one idle second");
        });
    }

    // Nobody reads these streams, which may hold all buffers of the pool.
    fn streams_nobody_reads_do_not_starve_the_others(driver: Driver) {
        let builder = Runtime::builder().driver(driver).recv_pool(8, 512);
        build(builder).block_on(async {
            let addr = serve_echo().await;
            let mut unread = Vec::new();
            for key in 0..30 {
                let (mut stream, peer) = with_peer(move |stream| {
                    peer::send(&stream, &mut Keyed(key).cursor(), 20_000);
                    stream
                })
                .await;
                // Armed, then left alone with what comes.
                let _ = poll_once(pin!(stream.read(&mut [0; 1])).as_mut()).await;
                unread.push((key, stream, peer.await));
            }
            settle().await;
            for round in 0..5 {
                peer(move || peer::echo_interleaved(addr, 100 + round)).await;
            }
            // And their bytes are all there when somebody does read them.
            for (key, mut stream, peer) in unread {
                drop(peer);
                let mut bytes = Vec::new();
                let mut buf = [0; 3000];
                while let n @ 1.. = stream.read(&mut buf).await.unwrap() {
                    bytes.extend_from_slice(&buf[..n]);
                }
                // The read that armed the stream may have taken the first byte with it.
                let offset = 20_000 - bytes.len() as u64;
                assert!(offset <= 1, "{offset} bytes are missing");
                Keyed(key).check(offset, &bytes);
            }
        });
    }

    // A buffer that is not given back, on any path, leaves the pool one smaller each time.
    fn a_small_pool_survives_two_thousand_ends_of_streams(driver: Driver) {
        let builder = Runtime::builder().driver(driver).recv_pool(4, 512);
        build(builder).block_on(async {
            let (listener, addr) = listen().await;
            let peer = peer(move || {
                for round in 0..2000_u64 {
                    let mut stream = peer::connect(addr);
                    // The other side may have closed already.
                    let _ = stream.write_all(&Keyed(round).bytes(0, 700));
                    if round % 3 == 0 {
                        peer::reset(stream);
                    }
                }
            });
            let mut peer = pin!(peer);
            let mut round = 0_u64;
            loop {
                let accepted = common::steps::race(listener.accept(), peer.as_mut()).await;
                let common::steps::Either::Left(accepted) = accepted else { break };
                let (mut stream, _) = accepted.unwrap();
                round += 1;
                let mut buf = [0; 100];
                match round % 4 {
                    0 => drop(poll_once(pin!(stream.read(&mut buf)).as_mut()).await),
                    1 => drop(timeout(Duration::from_micros(50), stream.peek(&mut buf)).await),
                    2 => drop(timeout(Duration::from_millis(20), stream.read(&mut buf)).await),
                    _ => drop(annulus::spawn(async move {
                        let _ = stream.read(&mut buf).await;
                        drop(stream);
                    })),
                }
            }
            let addr = serve_echo().await;
            peer::peer(move || peer::echo_interleaved(addr, 1)).await;
        });
    }

    #[alone]
    async fn a_peer_that_floods_a_stream_nobody_reads_is_held_back() {
        const STREAMS: u64 = 50;
        let before = resident_bytes();
        let mut streams = Vec::new();
        for key in 0..STREAMS {
            let (mut stream, peer) = with_peer(move |mut stream| {
                let patience = Some(Duration::from_millis(500));
                stream.set_write_timeout(patience).unwrap();
                let mut sent = Keyed(key).cursor();
                // Until neither the kernel nor the runtime takes more.
                loop {
                    let mut piece = sent.next(10_000);
                    while !piece.is_empty() {
                        match stream.write(&piece) {
                            Ok(n) => drop(piece.drain(..n)),
                            Err(_) => return sent.offset - piece.len() as u64,
                        }
                    }
                    assert!(sent.offset < 64 << 20, "unread bytes have no bound");
                }
            })
            .await;
            let _ = poll_once(pin!(stream.peek(&mut [0; 1])).as_mut()).await;
            streams.push((key, stream, peer));
        }
        let mut taken = Vec::new();
        for (key, stream, peer) in streams {
            taken.push((key, stream, peer.await));
        }
        // 64 KiB for each stream, and what tests and peers need themselves.
        let grown = resident_bytes().saturating_sub(before) / STREAMS as usize;
        assert!(grown < 200_000, "{grown} bytes for each stream that nobody reads");
        for (key, mut stream, sent) in taken {
            let mut received = Keyed(key).cursor();
            let mut buf = vec![0; 30_000];
            while let n @ 1.. = stream.read(&mut buf).await.unwrap() {
                received.check(&buf[..n]);
            }
            assert_eq!(received.offset, sent);
        }
    }

    #[alone]
    async fn streams_whose_peers_do_not_read_hold_a_bounded_buffer_each() {
        const STREAMS: usize = 100;
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let (stream, peer) = with_peer(|stream| stream).await;
            streams.push((stream, peer.await));
        }
        let before = resident_bytes();
        for (stream, _peer) in &mut streams {
            // Now by the runtime's buffer, now from here.
            for len in [1000, 100_000].into_iter().cycle() {
                let bytes = vec![0; len];
                let patience = Duration::from_millis(5) * slower();
                if timeout(patience, stream.write_all(&bytes)).await.is_err() {
                    break;
                }
            }
            let patience = Duration::from_millis(5) * slower();
            timeout(patience, stream.write(&[0; 1000])).await.unwrap_err();
        }
        // 64 KiB that are unsent, and as much that is on its way into the kernel.
        let grown = resident_bytes().saturating_sub(before) / STREAMS;
        assert!(grown < 200_000, "{grown} bytes for each stream whose peer does not read");
    }

    #[alone]
    #[deadline_s(60)]
    async fn a_flood_of_clients_fills_a_bounded_queue_and_nobody_is_lost() {
        const CLIENTS: usize = 4000;
        need_descriptors(3 * CLIENTS as u64);
        let options = ListenOptions::new().backlog(4096);
        let listener = TcpListener::bind_with("127.0.0.1:0", options).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let before = open_descriptors();
        let _ = poll_once(pin!(listener.accept()).as_mut()).await;
        let clients =
            peer(move || (0..CLIENTS).map(|_| peer::connect(addr)).collect::<Vec<_>>()).await;
        settle().await;
        let accepted = open_descriptors() - before - CLIENTS;
        // Once the bound is seen, what the kernel had accepted before that comes on top.
        assert!(accepted <= 2 * 1024, "{accepted} connections wait in the runtime");
        let mut ports: Vec<u16> =
            clients.iter().map(|client| client.local_addr().unwrap().port()).collect();
        let mut served = Vec::new();
        for _ in 0..CLIENTS {
            let outcome = timeout(Duration::from_secs(10), listener.accept()).await;
            let (stream, from) = outcome.expect("a client was lost").unwrap();
            served.push((stream, from.port()));
        }
        let mut seen: Vec<u16> = served.iter().map(|(_, port)| *port).collect();
        ports.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, ports);
    }

    // More completions than the ring has room for: the kernel keeps the rest aside.
    #[alone]
    #[deadline_s(90)]
    async fn more_completions_at_once_than_the_ring_holds_lose_nothing() {
        const STREAMS: usize = 6000;
        need_descriptors(3 * STREAMS as u64);
        let (listener, addr) = listen().await;
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (done, all_sent) = std::sync::mpsc::channel::<()>();
        let peer = peer(move || {
            let streams: Vec<_> = (0..STREAMS).map(|_| peer::connect(addr)).collect();
            wait.recv().unwrap();
            for (key, stream) in streams.iter().enumerate() {
                peer::send(stream, &mut Keyed(key as u64).cursor(), 100);
            }
            done.send(()).unwrap();
            for (key, stream) in streams.iter().enumerate() {
                peer::expect(stream, &mut Keyed(key as u64).cursor(), 100);
            }
        });
        let mut tasks = Vec::new();
        for _ in 0..STREAMS {
            let (mut stream, _) = listener.accept().await.unwrap();
            tasks.push(annulus::spawn(async move {
                let mut buf = [0; 100];
                stream.read_exact(&mut buf).await.unwrap();
                stream.write_all(&buf).await.unwrap();
                assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
            }));
        }
        settle().await;
        go.send(()).unwrap();
        // This thread reaps nothing until all have sent.
        all_sent.recv().unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        peer.await;
    }

    fn two_runtimes_take_turns_on_one_thread(driver: Driver) {
        let runtimes = [common::runtime(driver), common::runtime(driver)];
        let mut addrs = Vec::new();
        for runtime in &runtimes {
            addrs.push(runtime.block_on(serve_echo()));
        }
        for round in 0..20 {
            for (runtime, &addr) in runtimes.iter().zip(&addrs) {
                runtime.block_on(peer(move || {
                    peer::echo(&peer::connect(addr), Keyed(round), 20_000);
                }));
            }
        }
        let [first, second] = runtimes;
        drop(first);
        let addr = addrs[1];
        second.block_on(peer(move || peer::echo(&peer::connect(addr), Keyed(1), 1000)));
    }
}

fn build(builder: Builder) -> Runtime {
    builder.build().expect("build a runtime with small limits")
}

/// Echoes over many connections while reads and accepts are cut short.
fn serves_and_cancels(builder: Builder) {
    build(builder).block_on(async {
        let addr = serve_echo().await;
        let (mut stream, streaming) =
            with_peer(|stream| peer::send(&stream, &mut Keyed(7).cursor(), 1_000_000)).await;
        let cancelling = annulus::spawn(async move {
            let mut received = Keyed(7).cursor();
            let mut buf = [0; 3000];
            for round in 0.. {
                let patience = Duration::from_micros(round % 100);
                match timeout(patience, stream.read(&mut buf)).await {
                    Ok(Ok(0)) => break,
                    Ok(n) => received.check(&buf[..n.unwrap()]),
                    Err(_) => {}
                }
            }
            assert_eq!(received.offset, 1_000_000);
        });
        let peers = [1, 2].map(|key| peer(move || peer::echo_interleaved(addr, key)));
        for peer in peers {
            peer.await;
        }
        streaming.await;
        cancelling.await.unwrap();
    });
}
