//! Leases: received bytes in the memory that the kernel received them into.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use annulus::Runtime;
use annulus::buf::Lease;
use annulus::net::TcpStream;
use annulus::time::timeout;

use common::bytes::{Cursor, Keyed, Numbers};
use common::cut::streaming_peer;
use common::each_driver;
use common::peer::{self, Peer, peer};
use common::steps::{poll_once, serve_echo, settle, with_peer};

mod common;

each_driver! {
    async fn leases_carry_every_byte_in_order() {
        let (mut stream, peer) = bursts(Keyed(1), 3_000_000).await;
        let mut received = Keyed(1).cursor();
        let mut kept = Vec::new();
        loop {
            let lease = stream.recv_lease().await.unwrap();
            if lease.is_empty() {
                break;
            }
            received.check(&lease);
            // Some are kept while more come, and must not change.
            if kept.len() < 40 && lease.len() % 3 == 0 {
                kept.push((received.offset - lease.len() as u64, lease));
            } else if lease.len() % 5 == 0 {
                kept.clear();
            }
            kept.iter().for_each(|(at, lease)| Keyed(1).check(*at, lease));
        }
        assert_eq!(received.offset, peer.await);
        for _ in 0..3 {
            assert!(stream.recv_lease().await.unwrap().is_empty(), "the end is not the end");
        }
    }

    async fn a_lease_can_be_narrowed_and_written_to() {
        let (mut stream, peer) =
            with_peer(|stream| peer::send(&stream, &mut Keyed(2).cursor(), 300)).await;
        peer.await;
        let mut lease = stream.recv_lease().await.unwrap();
        let length = lease.len();
        assert!(length > 20);
        narrow(&mut lease, length);
        // The same for memory of its own.
        narrow(&mut Lease::from(Keyed(2).bytes(0, length)), length);
        let beyond = std::panic::catch_unwind(|| Lease::from(vec![1, 2]).advance(3));
        beyond.unwrap_err();
    }

    fn a_lease_outlives_its_stream_and_its_runtime(driver: Driver) {
        let runtime = common::runtime(driver);
        let mut leases = runtime.block_on(async {
            let (mut stream, peer) = bursts(Keyed(3), 300_000).await;
            let (mut leases, mut at) = (Vec::new(), 0);
            while at < 150_000 {
                let lease = stream.recv_lease().await.unwrap();
                at += lease.len();
                leases.push(lease);
            }
            drop(stream);
            settle().await;
            check_all(Keyed(3), &leases);
            drop(peer);
            leases
        });
        assert!(leases.iter().any(is_pooled), "no lease is of the pool: nothing was tested");
        drop(runtime);
        check_all(Keyed(3), &leases);
        // Also written to, and dropped by somebody else.
        leases.iter_mut().for_each(|lease| lease.fill(7));
        let other = std::thread::spawn(move || {
            assert!(leases.iter().all(|lease| lease.iter().all(|&byte| byte == 7)));
            drop(leases);
        });
        other.join().unwrap();
    }

    #[deadline_s(60)]
    fn ten_thousand_leases_of_four_buffers_each_come_back_once(driver: Driver) {
        let builder = Runtime::builder().driver(driver).recv_pool(4, 512);
        builder.build().unwrap().block_on(async {
            let (give, given) = channel::<Lease>();
            let elsewhere = std::thread::spawn(move || given.into_iter().map(drop).count());
            let (mut stream, mut peer) = asked_for().await;
            let mut received = Keyed(4).cursor();
            let mut pooled = 0;
            for round in 0..10_000 {
                peer.send(1 + round % 700);
                let lease = within(stream.recv_lease()).await.unwrap();
                received.check(&lease);
                pooled += usize::from(is_pooled(&lease));
                if round % 2 == 0 { give.send(lease).unwrap() } else { drop(lease) }
                peer.rest(&mut stream, &mut received).await;
            }
            drop(give);
            assert_eq!(elsewhere.join().unwrap(), 5000);
            println!("{pooled} of 10000 leases were of the pool");
            assert!(pooled > 1000, "the pool dried out: {pooled} of 10000 leases were of it");
            // All are back: as many as ever can be leased at once, each another one.
            let mut others = Vec::new();
            for _ in 0..6 {
                others.push(asked_for().await);
            }
            for _ in 0..20 {
                let mut held = Vec::new();
                for (stream, peer) in &mut others {
                    peer.send(100);
                    let lease = within(stream.recv_lease()).await.unwrap();
                    let at = peer.received.offset;
                    peer.received.check(&lease);
                    held.push((at, lease));
                }
                let leased: Vec<_> = held.iter().filter(|(_, lease)| is_pooled(lease)).collect();
                assert_eq!(leased.len(), 2, "half of the pool can be leased");
                let places: Vec<_> = leased.iter().map(|(_, lease)| lease.as_ptr()).collect();
                let apart = places[0].addr().abs_diff(places[1].addr());
                assert!(apart >= 512, "two owners of one buffer");
                held.iter().for_each(|(at, lease)| Keyed(4).check(*at, lease));
            }
            // And with none out, nobody finds the pool dry.
            let dry = annulus::metrics().pool_dry;
            for _ in 0..200 {
                peer.send(100);
                let lease = within(stream.recv_lease()).await.unwrap();
                assert!(is_pooled(&lease));
                received.check(&lease);
            }
            assert_eq!(annulus::metrics().pool_dry, dry);
        });
    }

    #[deadline_s(60)]
    fn a_stream_that_hoards_leases_starves_nobody(driver: Driver) {
        let builder = Runtime::builder().driver(driver).recv_pool(16, 1024);
        builder.build().unwrap().block_on(async {
            let addr = serve_echo().await;
            let (mut stream, mut flood) = asked_for().await;
            let mut hoard = Vec::new();
            for round in 0..5000 {
                flood.send(300);
                hoard.push(within(stream.recv_lease()).await.unwrap());
                let mut missing = 300 - hoard.last().unwrap().len();
                while missing > 0 {
                    hoard.push(within(stream.recv_lease()).await.unwrap());
                    missing -= hoard.last().unwrap().len();
                }
                if round % 500 == 0 {
                    // Others go on, also with leases of their own.
                    let key = Keyed(round as u64);
                    let echo = peer(move || peer::echo(&peer::connect(addr), key, 60_000));
                    let (mut other, mut source) = asked_for().await;
                    source.send(3000);
                    source.rest(&mut other, &mut Keyed(4).cursor()).await;
                    within(echo).await;
                }
            }
            within(peer(move || peer::echo_interleaved(addr, 5))).await;
            check_all(Keyed(4), &hoard);
            let pooled = hoard.iter().filter(|lease| is_pooled(lease)).count();
            assert!((1..=8).contains(&pooled), "{pooled} leases hold buffers of 16");
        });
    }

    #[deadline_s(60)]
    async fn leases_are_sent_on_without_a_byte_lost() {
        for slow in [false, true] {
            let (mut from, source) = bursts(Keyed(6), 6_000_000).await;
            let (mut to, sink) = with_peer(move |mut stream| {
                let mut received = Keyed(6).cursor();
                let mut buf = vec![0; 50_000];
                loop {
                    match stream.read(&mut buf).unwrap() {
                        0 => return received.offset,
                        n => received.check(&buf[..n]),
                    }
                    if slow && received.offset % 7 == 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            })
            .await;
            let mut numbers = Numbers(6);
            loop {
                let mut lease = from.recv_lease().await.unwrap();
                if lease.is_empty() {
                    break;
                }
                if numbers.below(4) == 0 {
                    let cut = numbers.below(lease.len() as u64 + 1) as usize;
                    to.write_all(&lease[..cut]).await.unwrap();
                    lease.advance(cut);
                }
                let length = lease.len();
                let (sent, lease) = to.send_all(lease).await.unwrap();
                assert_eq!((sent, lease.len()), (length, length));
            }
            to.shutdown().await.unwrap();
            assert_eq!(source.await, 6_000_000);
            assert_eq!(sink.await, 6_000_000);
        }
    }

    async fn a_lease_waits_with_the_kernel_when_its_send_is_dropped() {
        let (mut from, source) = bursts(Keyed(7), 4_000_000).await;
        let (tell, told) = channel::<()>();
        let (mut to, sink) = with_peer(move |mut stream| {
            told.recv().unwrap();
            let mut wire = Vec::new();
            stream.read_to_end(&mut wire).unwrap();
            wire
        })
        .await;
        // Fill the socket, so that leases are handed over.
        let filling = vec![0; 32 << 20];
        timeout(Duration::from_millis(50), to.send_all(filling)).await.unwrap_err();
        let mut received = Keyed(7).cursor();
        for _ in 0..200 {
            let lease = from.recv_lease().await.unwrap();
            received.check(&lease);
            let mut sending = Box::pin(to.send_all(lease));
            let _ = poll_once(sending.as_mut()).await;
            drop(sending);
            annulus::task::yield_now().await;
        }
        while received.offset < 4_000_000 {
            received.check(&within(from.recv_lease()).await.unwrap());
        }
        assert_eq!(received.offset, source.await);
        tell.send(()).unwrap();
        to.shutdown().await.unwrap();
        sink.await;
    }

    #[deadline_s(60)]
    async fn leases_and_reads_of_all_sizes_share_a_stream() {
        let (mut stream, peer) = bursts(Keyed(8), 5_000_000).await;
        let (mut received, mut numbers) = (Keyed(8).cursor(), Numbers(8));
        let mut leases = Vec::new();
        loop {
            let capacity = 1 + numbers.below(60_000) as usize;
            let bytes = match numbers.below(4) {
                0 => stream.recv(Vec::with_capacity(capacity)).await.unwrap().1,
                1 => match stream.recv_exact(Vec::with_capacity(capacity)).await {
                    Ok((_, bytes)) => bytes,
                    Err(failed) => {
                        assert_eq!(failed.error.kind(), ErrorKind::UnexpectedEof);
                        failed.buffer
                    }
                },
                _ => {
                    let lease = stream.recv_lease().await.unwrap();
                    let bytes = lease.to_vec();
                    leases.push(lease);
                    if leases.len() > 600 {
                        leases.drain(..500);
                    }
                    bytes
                }
            };
            received.check(&bytes);
            if bytes.is_empty() {
                break;
            }
        }
        assert_eq!(received.offset, peer.await);
    }

    #[deadline_s(60)]
    fn receives_that_wait_for_leases_hold_no_buffer(driver: Driver) {
        let builder = Runtime::builder().driver(driver).recv_pool(4, 512);
        builder.build().unwrap().block_on(async {
            let mut waiting = Vec::new();
            for _ in 0..100 {
                let (mut stream, peer) = asked_for().await;
                let mut receiving = Box::pin(async move { stream.recv_lease().await });
                assert!(poll_once(receiving.as_mut()).await.is_pending());
                waiting.push((receiving, peer));
            }
            settle().await;
            let dry = annulus::metrics().pool_dry;
            let (mut stream, mut peer) = asked_for().await;
            let mut received = Keyed(4).cursor();
            for _ in 0..100 {
                peer.send(300);
                let lease = within(stream.recv_lease()).await.unwrap();
                assert!(is_pooled(&lease), "who waits holds a buffer");
                received.check(&lease);
            }
            assert_eq!(annulus::metrics().pool_dry, dry);
            for (receiving, mut peer) in waiting {
                peer.send(10);
                let lease = within(receiving).await.unwrap();
                Keyed(4).check(0, &lease);
            }
        });
    }

    #[deadline_s(60)]
    async fn a_dropped_recv_lease_loses_no_byte() {
        let over = Arc::new(AtomicBool::new(false));
        let (mut stream, peer) = streaming_peer(Keyed(9), &over).await;
        let mut received = Keyed(9).cursor();
        let mut cut = 0;
        for round in 0..10_000 {
            match timeout(Duration::from_micros(round % 151), stream.recv_lease()).await {
                Ok(lease) => received.check(&lease.unwrap()),
                Err(_) => cut += 1,
            }
        }
        assert!(cut > 0, "none was ever cut short, so nothing was tested");
        over.store(true, Ordering::Relaxed);
        loop {
            let lease = stream.recv_lease().await.unwrap();
            if lease.is_empty() {
                break;
            }
            received.check(&lease);
        }
        assert_eq!(received.offset, peer.await);
    }

    async fn a_reset_ends_leases_with_an_error_behind_the_bytes() {
        let (mut stream, peer) = with_peer(|mut stream| {
            stream.write_all(b"last words").unwrap();
            stream
        })
        .await;
        let lease = stream.recv_lease().await.unwrap();
        assert_eq!(&lease[..], b"last words");
        let mut receiving = Box::pin(stream.recv_lease());
        assert!(poll_once(receiving.as_mut()).await.is_pending());
        peer::reset(peer.await);
        let error = within(receiving).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(&lease[..], b"last words");
    }
}

/// A lease may go to another thread, and be looked at by many.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Lease>();
};

/// A connection whose other end sends as it is told, on this thread.
async fn asked_for() -> (TcpStream, Source) {
    let (stream, peer) = with_peer(|stream| stream).await;
    let source =
        Source { stream: peer.await, sent: Keyed(4).cursor(), received: Keyed(4).cursor() };
    (stream, source)
}

struct Source {
    stream: std::net::TcpStream,
    sent: Cursor,
    received: Cursor,
}

impl Source {
    /// So little that the socket always takes it.
    fn send(&mut self, length: usize) {
        peer::send(&self.stream, &mut self.sent, length);
    }

    /// Receives what has been sent and is not received yet.
    async fn rest(&mut self, stream: &mut TcpStream, received: &mut Cursor) {
        while received.offset < self.sent.offset {
            received.check(&within(stream.recv_lease()).await.unwrap());
        }
    }
}

/// A peer that sends so many bytes in pieces of all sizes, and says how many.
async fn bursts(key: Keyed, total: u64) -> (TcpStream, Peer<u64>) {
    with_peer(move |mut stream| {
        let (mut sent, mut numbers) = (key.cursor(), Numbers(key.0));
        while sent.offset < total {
            let most = [10, 3000, 60_000][numbers.below(3) as usize];
            let piece = (1 + numbers.below(most)).min(total - sent.offset);
            if stream.write_all(&sent.next(piece as usize)).is_err() {
                break;
            }
        }
        sent.offset
    })
    .await
}

fn narrow(lease: &mut Lease, length: usize) {
    lease.advance(5);
    Keyed(2).check(5, lease);
    lease.truncate(length);
    assert_eq!(lease.len(), length - 5);
    lease.truncate(10);
    assert_eq!(lease.len(), 10);
    Keyed(2).check(5, lease);
    lease.advance(3);
    assert_eq!(lease.len(), 7);
    Keyed(2).check(8, lease);
    lease[0] ^= 1;
    assert_eq!(lease[0] ^ 1, Keyed(2).bytes(8, 1)[0]);
    Keyed(2).check(9, &lease[1..]);
    lease.truncate(0);
    assert!(lease.is_empty());
    lease.advance(0);
}

/// Fails unless the leases hold the stream from its beginning.
#[track_caller]
fn check_all(key: Keyed, leases: &[Lease]) {
    let mut cursor = key.cursor();
    leases.iter().for_each(|lease| cursor.check(lease));
}

fn is_pooled(lease: &Lease) -> bool {
    format!("{lease:?}").contains("pooled: true")
}

/// Fails rather than waits for ever.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(peer::patience(), future).await.expect("it hangs")
}
