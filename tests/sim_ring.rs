//! The ring driver over a simulated ring that does what a kernel may do at its worst.
//!
//! Each program runs with many seeds. What a seed has found is kept by a test of its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use annulus::net::{TcpListener, TcpStream};
use annulus::sim::{self, Faults, Simulation};
use annulus::{Driver, Shard, time};

use common::asked;
use common::steps::echo_by;

#[allow(unused_imports, unused_macros, reason = "each simulation is of one driver")]
mod common;

/// Faults of the ring alone: whatever goes wrong above is the driver's doing.
fn hostile() -> Faults {
    Faults::none()
        .latency(Duration::ZERO, Duration::from_micros(300))
        .short_io(3)
        .late_events(3)
        .interruptions(8)
        .ring_failures(6)
        .tight_limits(1)
}

/// How many seeds each program runs with; `ANNULUS_SIM_SEEDS` has more of them.
fn seeds() -> std::ops::Range<u64> {
    0..asked::number("ANNULUS_SIM_SEEDS", 1).unwrap_or(60)
}

fn each<Fut: Future<Output = ()>>(program: impl Fn() -> Fut) {
    sim::each_seed(seeds(), |simulation| {
        let simulation = simulation.driver(Driver::Uring).faults(hostile());
        let ((), report) = simulation.run_and_report(&program);
        assert_eq!(report.left_open, 0, "{report:?}");
    });
}

async fn serve_echo() -> SocketAddr {
    let listener = TcpListener::bind("10.0.0.1:7000").await.unwrap();
    let address = listener.local_addr().unwrap();
    annulus::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            annulus::spawn(async move { echo_by(stream, 512).await.unwrap() });
        }
    });
    address
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[test]
fn what_is_sent_comes_back() {
    each(|| async {
        let server = serve_echo().await;
        let clients = (1..6).map(|it| {
            annulus::spawn(async move {
                let mut stream = TcpStream::connect(server).await.unwrap();
                let sent = bytes(it * 700);
                for part in sent.chunks(97) {
                    stream.write_all(part).await.unwrap();
                }
                stream.flush().await.unwrap();
                let mut received = vec![0; sent.len()];
                stream.read_exact(&mut received).await.unwrap();
                assert_eq!(received, sent);
                stream.shutdown().await.unwrap();
                assert_eq!(stream.read(&mut received).await.unwrap(), 0);
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    });
}

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("10.0.0.2:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = annulus::spawn(async move { TcpStream::connect(address).await.unwrap() });
    let (server, _) = listener.accept().await.unwrap();
    (client.await.unwrap(), server)
}

fn micros(bound: u64) -> Duration {
    Duration::from_micros(sim::random(bound))
}

/// Writes all of it, in pieces and with pauses, and ends.
async fn pour(stream: &mut TcpStream, sent: Vec<u8>) {
    let mut rest = sent.as_slice();
    while !rest.is_empty() {
        let count = 1 + sim::random(rest.len().min(3000) as u64) as usize;
        stream.write_all(&rest[..count]).await.unwrap();
        rest = &rest[count..];
        if sim::random(4) == 0 {
            time::sleep(micros(400)).await;
        }
    }
    stream.shutdown().await.unwrap();
}

/// Reads to the end, each time in a way that is drawn, and drops reads that take too long. So many
/// bytes come at least.
async fn drink(stream: &mut TcpStream, least: usize) -> Vec<u8> {
    let mut received = Vec::new();
    let mut leases = Vec::new();
    loop {
        let patience = micros(300);
        let size = 1 + sim::random(20_000) as usize;
        match sim::random(6) {
            0 => {
                let mut buffer = vec![0; size];
                match time::timeout(patience, stream.read(&mut buffer)).await {
                    Ok(Ok(0)) => return received,
                    Ok(count) => received.extend(&buffer[..count.unwrap()]),
                    Err(_) => {}
                }
            }
            1 => {
                if let Ok(lease) = time::timeout(patience, stream.recv_lease()).await {
                    let lease = lease.unwrap();
                    if lease.is_empty() {
                        return received;
                    }
                    received.extend(&*lease);
                    leases.push(lease);
                    leases.truncate(sim::random(6) as usize);
                }
            }
            2 => {
                if let Ok(answer) = time::timeout(patience, stream.recv(vec![0u8; size])).await {
                    let (count, buffer) = answer.unwrap();
                    if count == 0 {
                        return received;
                    }
                    received.extend(&buffer[..count]);
                }
            }
            3 => {
                let mut buffer = vec![0; size];
                if let Ok(count) = time::timeout(patience, stream.peek(&mut buffer)).await {
                    let count = count.unwrap();
                    let mut again = vec![0; count];
                    if count > 0 {
                        stream.read_exact(&mut again).await.unwrap();
                        assert_eq!(again, buffer[..count]);
                        received.extend(again);
                    }
                }
            }
            4 => {
                // What it has taken comes back when it is dropped.
                let mut buffer = vec![0; size.min(least.saturating_sub(received.len()))];
                let exactly = time::timeout(patience, stream.read_exact(&mut buffer)).await;
                if let Ok(count) = exactly {
                    received.extend(&buffer[..count.unwrap()]);
                }
            }
            _ => drop(time::timeout(Duration::ZERO, stream.read(&mut [0; 0])).await),
        }
    }
}

#[test]
fn reads_that_are_dropped_lose_no_byte() {
    each(|| async {
        let (client, mut server) = pair().await;
        let sent = bytes(20_000 + sim::random(60_000) as usize);
        let expected = sent.clone();
        let pouring = annulus::spawn(async move {
            let mut client = client;
            pour(&mut client, sent).await;
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        });
        let received = drink(&mut server, expected.len()).await;
        assert!(received == expected, "{} of {} bytes", received.len(), expected.len());
        drop(server);
        pouring.await.unwrap();
    });
}

#[test]
fn many_streams_share_a_pool_that_is_too_small() {
    each(|| async {
        let mut both = Vec::new();
        for _ in 0..8 {
            let (client, mut server) = pair().await;
            let sent = bytes(5_000 + sim::random(8_000) as usize);
            let expected = sent.clone();
            both.push(annulus::spawn(async move {
                let mut client = client;
                pour(&mut client, sent).await;
            }));
            both.push(annulus::spawn(async move {
                let received = drink(&mut server, expected.len()).await;
                assert!(received == expected);
            }));
        }
        for task in both {
            task.await.unwrap();
        }
    });
}

/// Writes in every way, drops some of them, and keeps account of what may have arrived.
async fn write_in_every_way(stream: &mut TcpStream) -> Vec<u8> {
    let mut sent = Vec::new();
    for round in 0..12 {
        let length = 1 + sim::random(if round % 3 == 0 { 30_000 } else { 700 }) as usize;
        let piece: Vec<u8> = (0..length).map(|at| (sent.len() + at) as u8).collect();
        match sim::random(5) {
            0 => stream.write_all(&piece).await.unwrap(),
            1 => drop(stream.send_all(piece.clone()).await.unwrap()),
            2 => {
                let (count, _) = stream.send_zc(piece.clone()).await.unwrap();
                assert_eq!(count, length);
            }
            3 => {
                let (front, back) = piece.split_at(length / 2);
                let parts = vec![front.to_vec(), back.to_vec()];
                let (count, _) = stream.send_vectored(parts).await.unwrap();
                sent.extend(&piece[..count]);
                continue;
            }
            // A write that is dropped before it was ready has taken nothing.
            _ => match time::timeout(micros(100), stream.write(&piece)).await {
                Ok(count) => {
                    sent.extend(&piece[..count.unwrap()]);
                    continue;
                }
                Err(_) => continue,
            },
        }
        sent.extend(piece);
        if sim::random(4) == 0 {
            stream.flush().await.unwrap();
        }
    }
    stream.shutdown().await.unwrap();
    sent
}

#[test]
fn every_way_of_writing_sends_each_byte_once() {
    each(|| async {
        let (mut client, mut server) = pair().await;
        let writing = annulus::spawn(async move {
            let sent = write_in_every_way(&mut client).await;
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
            sent
        });
        let received = drink(&mut server, 0).await;
        drop(server);
        let sent = writing.await.unwrap();
        assert!(received == sent, "{} received, {} sent", received.len(), sent.len());
    });
}

#[test]
fn both_directions_of_a_stream_go_on_at_the_same_time() {
    each(|| async {
        let (client, server) = pair().await;
        let ends = [client, server].map(|stream| {
            let (mut read, mut write) = stream.into_split();
            let writing = annulus::spawn(async move {
                for part in bytes(40_000).chunks(1 + sim::random(9_000) as usize) {
                    write.write_all(part).await.unwrap();
                }
                write.shutdown().await.unwrap();
            });
            let reading = annulus::spawn(async move {
                let (mut received, mut buffer) = (Vec::<u8>::new(), vec![0; 1 << 14]);
                loop {
                    match read.read(&mut buffer).await.unwrap() {
                        0 => return received,
                        count => received.extend(&buffer[..count]),
                    }
                }
            });
            (writing, reading)
        });
        for (writing, reading) in ends {
            writing.await.unwrap();
            assert!(reading.await.unwrap() == bytes(40_000));
        }
    });
}

#[test]
fn what_is_dropped_in_flight_leaves_nothing_behind() {
    each(|| async {
        let listener = TcpListener::bind("10.0.0.1:7000").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = annulus::spawn(async move {
            let mut kept = Vec::new();
            for _ in 0..30 {
                if let Ok(accepted) = time::timeout(micros(200), listener.accept()).await {
                    kept.push(accepted.unwrap().0);
                }
                kept.truncate(sim::random(4) as usize);
            }
        });
        let clients = (0..20).map(|_| {
            annulus::spawn(async move {
                time::sleep(micros(2_000)).await;
                let connect = TcpStream::connect(address);
                let Ok(Ok(mut stream)) = time::timeout(micros(900), connect).await else { return };
                // Nobody may be there, or not for long.
                let _sent = time::timeout(micros(300), stream.send_all(bytes(5_000))).await;
                let _got = time::timeout(micros(300), stream.recv(vec![0; 100])).await;
            })
        });
        let clients: Vec<_> = clients.collect();
        for (at, client) in clients.into_iter().enumerate() {
            if at % 3 == 0 {
                client.abort();
            }
            let _aborted = client.await;
        }
        serving.await.unwrap();
    });
}

#[test]
fn a_stream_moves_between_shards_with_every_byte() {
    sim::each_seed(seeds(), |simulation| {
        let simulation = simulation.driver(Driver::Uring).faults(hostile()).shards(2);
        let ((), report) = simulation.run_and_report(|| async {
            let (client, mut server) = pair().await;
            let sent = bytes(30_000);
            let pouring = annulus::spawn(async move {
                let mut client = client;
                pour(&mut client, sent).await;
            });
            let mut received = Vec::new();
            for round in 0..6 {
                let mut part = vec![0; 1 + sim::random(4_000) as usize];
                if let Ok(count) = time::timeout(micros(500), server.read(&mut part)).await {
                    received.extend(&part[..count.unwrap()]);
                }
                let moved = server.detach().unwrap();
                let shard = &Shard::all()[(round + 1) % 2];
                let back = shard.spawn_with(move || async move {
                    let mut here = TcpStream::attach(moved).unwrap();
                    let mut part = vec![0; 1 + sim::random(4_000) as usize];
                    let got = time::timeout(micros(500), here.read(&mut part)).await;
                    part.truncate(got.map_or(0, |count| count.unwrap()));
                    (here.detach().unwrap(), part)
                });
                let (moved, part) = back.await.unwrap();
                received.extend(part);
                server = TcpStream::attach(moved).unwrap();
            }
            let left = 30_000 - received.len();
            received.extend(drink(&mut server, left).await);
            pouring.await.unwrap();
            assert!(received == bytes(30_000), "{} bytes", received.len());
        });
        assert_eq!(report.left_open, 0, "{report:?}");
    });
}

#[test]
fn the_driver_is_drawn_and_a_seed_is_one_run() {
    let mut drivers = Vec::new();
    let mut prints = std::collections::BTreeSet::new();
    for seed in 0..12 {
        let run = || {
            Simulation::new(seed).faults(hostile()).run_and_report(|| async {
                let server = serve_echo().await;
                let (client, mut end) = pair().await;
                let sent = bytes(8_000);
                let pouring = annulus::spawn(async move {
                    let mut client = client;
                    pour(&mut client, sent).await;
                });
                let mut stream = TcpStream::connect(server).await.unwrap();
                stream.write_all(b"beside").await.unwrap();
                let received = drink(&mut end, 8_000).await;
                assert!(received == bytes(8_000));
                let mut back = [0; 6];
                stream.read_exact(&mut back).await.unwrap();
                pouring.await.unwrap();
                annulus::driver_info().driver()
            })
        };
        let (driver, report) = run();
        assert_eq!((driver, report), run(), "seed {seed}");
        drivers.push(driver);
        prints.insert(report.fingerprint);
    }
    assert!(drivers.contains(&Driver::Uring) && drivers.contains(&Driver::Epoll), "{drivers:?}");
    assert_eq!(prints.len(), 12);
}

/// Sends and reads back until that has worked once; whatever fails is tried again.
async fn insist(server: SocketAddr) -> u32 {
    for tries in 1..1000 {
        let attempt = async {
            let mut stream = TcpStream::connect(server).await?;
            stream.write_all(&bytes(3_000)).await?;
            let mut back = vec![0; 3_000];
            stream.read_exact(&mut back).await?;
            assert!(back == bytes(3_000));
            Ok::<_, io::Error>(())
        };
        // A peer that was reset and cannot tell is not waited for.
        if let Ok(Ok(())) = time::timeout(Duration::from_secs(20), attempt).await {
            return tries;
        }
    }
    panic!("a thousand tries, and none of them worked");
}

#[test]
fn on_a_bad_network_too_who_tries_again_is_served_in_the_end() {
    let mut tries = 0;
    sim::each_seed(seeds(), |simulation| {
        let simulation = simulation.driver(Driver::Uring).faults(Faults::harsh());
        let (most, report) = simulation.run_and_report(|| async {
            let listener = TcpListener::bind("10.0.0.1:7000").await.unwrap();
            let server = listener.local_addr().unwrap();
            annulus::spawn(async move {
                loop {
                    // What was reset before it was accepted is no reason to stop.
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    annulus::spawn(echo_by(stream, 512));
                }
            });
            let clients: Vec<_> = (0..4).map(|_| annulus::spawn(insist(server))).collect();
            let mut most = 0;
            for client in clients {
                most = most.max(client.await.unwrap());
            }
            most
        });
        tries = tries.max(most);
        assert_eq!(report.left_open, 0, "{report:?}");
    });
    assert!(tries > 1, "nothing has failed");
}
