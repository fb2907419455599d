//! Streams that move between runtimes, with everything that is on its way in either direction.

use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use annulus::net::stream::Detached;
use annulus::net::{Tcp, TcpStream, UnixStream};
use annulus::time::timeout;
use annulus::{Driver, Runtime};

use common::bytes::{Cursor, Keyed, Numbers};
use common::cut::{attempt, check_attempts, rationed_peer, streaming_peer};
use common::each_driver;
use common::peer::{self, Peer};
use common::process::open_descriptors;
use common::steps::{eventually, poll_once, settle, with_peer};

mod common;

each_driver! {
    #[deadline_s(120)]
    fn a_stream_that_moves_hundreds_of_times_keeps_every_byte(driver: Driver) {
        for other in [driver, Driver::Uring, Driver::Epoll] {
            if other == Driver::Uring && common::uring_left_out() {
                continue;
            }
            let (over, echoed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
            let (detached, incoming, outgoing) = common::runtime(driver).block_on(async {
                let (stream, peer) = both_ways(&over, &echoed).await;
                let (incoming, outgoing) = peer;
                (stream.detach().unwrap(), incoming, outgoing)
            });
            let traveller = Traveller {
                received: Keyed(1).cursor(),
                sent: Keyed(2).cursor(),
                numbers: Numbers(driver as u64 + 10 * other as u64),
                stays: 0,
            };
            let (mut detached, traveller) = travel([driver, other], detached, traveller, 400);
            over.store(true, Ordering::Relaxed);
            let received = common::runtime(other).block_on(async {
                let mut stream = TcpStream::attach(detached.take().unwrap()).unwrap();
                stream.shutdown().await.unwrap();
                drain(&mut stream, traveller.received).await
            });
            assert_eq!(received, incoming.join(), "bytes to us were lost");
            assert_eq!(outgoing.join(), traveller.sent.offset, "bytes from us were lost");
        }
    }

    #[deadline_s(120)]
    fn an_abandoned_send_all_moves_as_a_prefix(driver: Driver) {
        let ration = Arc::new(AtomicU64::new(0));
        let home = common::runtime(driver);
        let away = Away::new(driver);
        home.block_on(async {
            let (mut stream, peer) = rationed_peer(&ration).await;
            let mut whole = Vec::new();
            for round in 0..300 {
                let patience = Duration::from_micros(round as u64 % 301);
                let outcome = match round % 3 {
                    0 => timeout(patience, stream.write_all(&attempt(round))).await.is_ok(),
                    _ => timeout(patience, stream.send_all(attempt(round))).await.is_ok(),
                };
                if !outcome {
                    ration.fetch_add(70_000, Ordering::Relaxed);
                }
                whole.push(outcome);
                stream = away.there_and_back(stream, round % 2 == 0);
            }
            assert!(whole.contains(&false), "no send was ever cut short, so nothing was tested");
            ration.store(u64::MAX, Ordering::Relaxed);
            stream.shutdown().await.unwrap();
            check_attempts(&peer.await, &whole);
        });
    }

    fn bytes_that_are_not_sent_yet_move(driver: Driver) {
        let away = Away::new(driver);
        common::runtime(driver).block_on(async {
            for round in 0..12 {
                let (tell, told) = channel::<()>();
                let (mut stream, peer) = with_peer(move |mut stream| {
                    told.recv().unwrap();
                    let mut wire = Vec::new();
                    stream.read_to_end(&mut wire).unwrap();
                    wire
                })
                .await;
                // A little, or until the socket is full and a send waits in the kernel.
                let mut sent = Keyed(3).cursor();
                let piece = [10, 700, 5000, 60_000][round % 4];
                let enough = if round % 3 == 0 { piece as u64 } else { u64::MAX };
                while sent.offset < enough {
                    let bytes = Keyed(3).bytes(sent.offset, piece);
                    match timeout(Duration::from_millis(20), stream.write(&bytes)).await {
                        Ok(count) => sent.offset += count.unwrap() as u64,
                        Err(_) => break,
                    }
                }
                for _ in 0..round % 4 {
                    stream = away.there_and_back(stream, false);
                }
                let last = away.finish(stream, move |mut stream| async move {
                    tell.send(()).unwrap();
                    stream.write_all(&Keyed(3).bytes(sent.offset, 30_000)).await.unwrap();
                    sent.offset += 30_000;
                    match round % 3 {
                        0 => stream.flush().await.unwrap(),
                        1 => stream.shutdown().await.unwrap(),
                        _ => {}
                    }
                    drop(stream);
                    sent.offset
                });
                let wire = peer.await;
                Keyed(3).check(0, &wire);
                assert_eq!(wire.len() as u64, last);
            }
        });
    }

    fn bytes_that_are_not_read_yet_move(driver: Driver) {
        let away = Away::new(driver);
        common::runtime(driver).block_on(async {
            for round in 0..24 {
                let length = [50, 3000, 200_000][round % 3];
                let (tell, told) = channel::<()>();
                let (mut stream, peer) = with_peer(move |stream| {
                    let mut sent = Keyed(4).cursor();
                    peer::send(&stream, &mut sent, 40);
                    told.recv().unwrap();
                    peer::send(&stream, &mut sent, length);
                    // The end, when nobody tells any more.
                    told.recv().unwrap_err();
                })
                .await;
                let mut received = Keyed(4).cursor();
                // Queued, partly read, given back, shown only.
                let mut buffer = [0; 7];
                stream.read_exact(&mut buffer).await.unwrap();
                received.check(&buffer);
                let mut all = vec![0; 40 + length];
                match round % 4 {
                    0 => {
                        let exact = stream.read_exact(&mut all);
                        timeout(Duration::from_millis(3), exact).await.unwrap_err();
                    }
                    1 => {
                        let exact = stream.recv_exact(all);
                        timeout(Duration::from_millis(3), exact).await.map(drop).unwrap_err();
                    }
                    2 => {
                        let mut shown = [0; 20];
                        let count = stream.peek(&mut shown).await.unwrap();
                        Keyed(4).check(received.offset, &shown[..count]);
                    }
                    _ => {}
                }
                tell.send(()).unwrap();
                if round % 2 == 0 {
                    settle().await;
                }
                let mut stream = away.there_and_back(stream, false);
                if round % 5 == 0 {
                    // Taken here, given back here, and away again.
                    let exact = stream.recv_exact(vec![0; 60 + length]);
                    timeout(Duration::from_millis(2), exact).await.map(drop).unwrap_err();
                }
                drop(tell);
                let last = away.finish(stream, move |mut stream| async move {
                    drain(&mut stream, received).await
                });
                assert_eq!(last, 40 + length as u64);
                peer.await;
            }
        });
    }

    // The kernel tells a reset to one call only, and here that is a send.
    fn a_reset_that_was_told_to_a_writer_moves(driver: Driver) {
        let away = Away::new(driver);
        common::runtime(driver).block_on(async {
            let (mut stream, peer) = with_peer(peer::reset).await;
            peer.await;
            settle().await;
            stream.write_all(b"into the void").await.unwrap();
            let told = stream.flush().await.unwrap_err();
            assert_eq!(told.kind(), ErrorKind::ConnectionReset);
            away.finish(stream, |mut stream| async move {
                let read = within(stream.read(&mut [0; 8])).await;
                assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
            });
        });
    }

    fn bytes_that_are_given_up_leave_no_clean_end(driver: Driver) {
        for way in [GivenUp::WithTheRuntime, GivenUp::AfterHalfAMinute, GivenUp::Detached] {
            let paused = way == GivenUp::AfterHalfAMinute;
            let builder = Runtime::builder().driver(driver).start_paused(paused);
            let runtime = builder.build().unwrap();
            let (go, told) = channel::<()>();
            let (accepted, peer) = runtime.block_on(async {
                let (mut stream, peer) = with_peer(move |mut stream| {
                    told.recv().unwrap();
                    let (mut cursor, mut some) = (Keyed(9).cursor(), [0; 1 << 16]);
                    loop {
                        match stream.read(&mut some) {
                            Ok(0) => return (cursor.offset, None),
                            Ok(count) => cursor.check(&some[..count]),
                            Err(error) => return (cursor.offset, Some(error.kind())),
                        }
                    }
                })
                .await;
                let mut accepted = 0;
                loop {
                    let bytes = Keyed(9).bytes(accepted, 4096);
                    match timeout(Duration::from_millis(20), stream.write(&bytes)).await {
                        Ok(count) => accepted += count.unwrap() as u64,
                        Err(_elapsed) => break,
                    }
                }
                match way {
                    GivenUp::WithTheRuntime => drop(stream),
                    GivenUp::Detached => drop(stream.detach().unwrap()),
                    GivenUp::AfterHalfAMinute => {
                        drop(stream);
                        annulus::time::sleep(Duration::from_secs(31)).await;
                        settle().await;
                    }
                }
                (accepted, peer)
            });
            if way == GivenUp::WithTheRuntime {
                drop(runtime);
            }
            go.send(()).unwrap();
            let (received, end) = peer.join();
            // The socket may have found room for all of it.
            let expected = (received < accepted).then_some(ErrorKind::ConnectionReset);
            assert_eq!(end, expected, "{way:?}: {received} of {accepted}");
        }
    }

    // The kernel hands out some 20 answers at a time, and the end of this receive is the last.
    #[alone]
    #[deadline_s(60)]
    fn a_stream_beside_thousands_of_answers_moves_or_is_given_back(driver: Driver) {
        for to_std in [false, true] {
            common::runtime(driver).block_on(async {
                let (mut streams, far): (Vec<_>, Vec<_>) = (0..3000)
                    .map(|_| std::os::unix::net::UnixStream::pair().unwrap())
                    .map(|(near, far)| (UnixStream::from_std(near).unwrap(), far))
                    .unzip();
                for stream in &mut streams {
                    let read = poll_once(pin!(stream.read(&mut [0; 8])).as_mut()).await;
                    assert!(read.is_pending());
                }
                settle().await;
                let stream = streams.pop().unwrap();
                // In one poll, so that all answers wait in the kernel.
                let far = peer::peer(move || {
                    far.iter().for_each(|mut far| far.write_all(b"some").unwrap());
                    far
                });
                let far = far.join();
                let left = if to_std {
                    stream.into_std().map(|near| UnixStream::from_std(near).unwrap())
                } else {
                    stream.detach().map(|detached| UnixStream::attach(detached).unwrap())
                };
                let mut stream = left.unwrap_or_else(|refused| {
                    refused.into_stream().expect("the stream is whole")
                });
                let mut some = [0; 4];
                within(stream.read_exact(&mut some)).await.unwrap();
                assert_eq!(&some, b"some");
                drop(far);
                assert_eq!(within(stream.read(&mut some)).await.unwrap(), 0);
            });
        }
    }

    fn an_end_and_an_error_move(driver: Driver) {
        let away = Away::new(driver);
        common::runtime(driver).block_on(async {
            for told_before in [false, true] {
                // An end that was seen, and one that was not.
                let (mut stream, peer) = with_peer(|mut s| s.write_all(b"end").unwrap()).await;
                peer.await;
                settle().await;
                if told_before {
                    stream.read_exact(&mut [0; 3]).await.unwrap();
                    assert_eq!(stream.read(&mut [0; 3]).await.unwrap(), 0);
                }
                away.finish(stream, move |mut stream| async move {
                    if !told_before {
                        stream.read_exact(&mut [0; 3]).await.unwrap();
                    }
                    for _ in 0..3 {
                        assert_eq!(within(stream.read(&mut [0; 3])).await.unwrap(), 0);
                        assert!(within(stream.recv_lease()).await.unwrap().is_empty());
                    }
                });
                // A reset behind bytes, armed for before.
                let (mut stream, peer) = with_peer(|mut stream| {
                    stream.write_all(b"reset").unwrap();
                    stream
                })
                .await;
                stream.read_exact(&mut [0; 4]).await.unwrap();
                peer::reset(peer.await);
                if told_before {
                    settle().await;
                }
                away.finish(stream, |mut stream| async move {
                    let mut buffer = [0; 100];
                    let mut errors = 0;
                    while errors == 0 {
                        match within(stream.read(&mut buffer)).await {
                            Ok(0) => panic!("the reset has become an end"),
                            Ok(_) => {}
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                                errors += 1;
                            }
                        }
                    }
                });
                // A send that failed, and nobody was told.
                let (mut stream, peer) = with_peer(|stream| stream).await;
                peer::reset(peer.await);
                settle().await;
                stream.write_all(b"into the void").await.unwrap();
                settle().await;
                away.finish(stream, |mut stream| async move {
                    let first = stream.flush().await;
                    assert!(first.is_err(), "the error of a send stayed behind");
                    stream.send_all(vec![0; 50_000]).await.unwrap_err();
                });
            }
        });
    }

    fn a_stream_that_was_shut_down_moves(driver: Driver) {
        let away = Away::new(driver);
        common::runtime(driver).block_on(async {
            let (tell, told) = channel::<()>();
            let (mut stream, peer) = with_peer(move |stream| {
                let count = peer::expect_until_end(&stream, &mut Keyed(5).cursor());
                told.recv().unwrap();
                peer::send(&stream, &mut Keyed(6).cursor(), 30_000);
                count
            })
            .await;
            stream.write_all(&Keyed(5).bytes(0, 5000)).await.unwrap();
            stream.shutdown().await.unwrap();
            away.finish(stream, move |mut stream| async move {
                let error = stream.write(b"more").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::BrokenPipe);
                stream.shutdown().await.unwrap();
                tell.send(()).unwrap();
                assert_eq!(drain(&mut stream, Keyed(6).cursor()).await, 30_000);
            });
            assert_eq!(peer.await, 5000);
        });
    }

    fn options_move(driver: Driver) {
        let away = Away::new(driver);
        common::runtime(driver).block_on(async {
            let (stream, peer) = with_peer(|mut stream| {
                stream.read(&mut [0; 8]).map_err(|error| error.kind())
            })
            .await;
            stream.set_linger(Some(Duration::ZERO)).unwrap();
            let addresses = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            away.finish(stream, move |mut stream| async move {
                assert_eq!(stream.linger().unwrap(), Some(Duration::ZERO));
                assert_eq!((stream.local_addr().unwrap(), stream.peer_addr().unwrap()), addresses);
                stream.write_all(b"dropped").await.unwrap();
            });
            // As before the move: a drop with a linger time of zero resets, and sends nothing.
            assert_eq!(peer.await, Err(ErrorKind::ConnectionReset));
            let (stream, peer) = with_peer(|stream| {
                peer::expect_until_end(&stream, &mut Keyed(7).cursor())
            })
            .await;
            stream.set_linger(Some(Duration::from_secs(5))).unwrap();
            away.finish(stream, |mut stream| async move {
                assert_eq!(stream.linger().unwrap(), Some(Duration::from_secs(5)));
                stream.write_all(&Keyed(7).bytes(0, 9000)).await.unwrap();
            });
            assert_eq!(peer.await, 9000);
        });
    }

    #[alone]
    fn a_detached_stream_that_is_dropped_sends_and_closes(driver: Driver) {
        common::runtime(driver).block_on(async {
            let before = open_descriptors();
            for round in 0..20 {
                let (mut stream, peer) = with_peer(|stream| {
                    peer::expect_until_end(&stream, &mut Keyed(8).cursor())
                })
                .await;
                let _ = poll_once(pin!(stream.read(&mut [0; 8])).as_mut()).await;
                if round % 2 == 0 {
                    settle().await;
                }
                stream.write_all(&Keyed(8).bytes(0, 500)).await.unwrap();
                let detached = stream.detach().unwrap();
                if round % 3 == 0 {
                    std::thread::spawn(move || drop(detached)).join().unwrap();
                } else {
                    drop(detached);
                }
                assert_eq!(peer.await, 500);
            }
            eventually("all descriptors are closed", || open_descriptors() <= before).await;
        });
    }

    async fn a_detached_stream_that_lingers_blocks_nobody() {
        let (listener, addr) = peer::listen();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let deaf = peer::accept(&listener);
        stream.set_linger(Some(Duration::from_secs(5))).unwrap();
        stream.write(&vec![0; 8 << 20]).await.unwrap();
        let detached = stream.detach().unwrap();
        let start = std::time::Instant::now();
        drop(detached);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(2), "blocked for {took:?}");
        drop(deaf);
    }

    fn a_stream_cannot_be_attached_outside_of_a_runtime(driver: Driver) {
        let runtime = common::runtime(driver);
        let (detached, peer) = runtime.block_on(async {
            let (mut stream, peer) =
                with_peer(|stream| peer::echo(&stream, Keyed(9), 2000)).await;
            stream.peek(&mut [0; 1]).await.unwrap();
            (stream.detach().unwrap(), peer)
        });
        let refused = TcpStream::attach(detached).unwrap_err();
        assert!(!refused.to_string().is_empty());
        let detached = refused.into_detached();
        let again = std::thread::spawn(|| TcpStream::attach(detached).unwrap_err().into_detached());
        let detached = again.join().unwrap();
        // It has lost nothing.
        runtime.block_on(async {
            let stream = TcpStream::attach(detached).unwrap();
            let echoing = annulus::spawn(common::steps::echo(stream));
            peer.await;
            echoing.await.unwrap().unwrap();
        });
    }

    fn a_stream_is_not_detached_elsewhere_than_at_home(driver: Driver) {
        let home = common::runtime(driver);
        let away = common::runtime(driver);
        let (stream, peer) = home.block_on(async {
            let (mut stream, peer) = with_peer(|stream| peer::echo(&stream, Keyed(10), 2000)).await;
            stream.peek(&mut [0; 1]).await.unwrap();
            (stream, peer)
        });
        let stream = stream.detach().unwrap_err().into_stream().expect("it is given back");
        let stream = away.block_on(async move {
            stream.detach().unwrap_err().into_stream().expect("it is given back")
        });
        let other = std::thread::spawn(move || stream.detach().unwrap_err().into_stream().unwrap());
        let stream = other.join().unwrap();
        home.block_on(async {
            let echoing = annulus::spawn(common::steps::echo(stream));
            peer.await;
            echoing.await.unwrap().unwrap();
        });
    }

    async fn a_stream_is_detached_beside_forgotten_futures() {
        for round in 0..20 {
            let over = Arc::new(AtomicBool::new(false));
            let (mut stream, peer) = streaming_peer(Keyed(11), &over).await;
            let mut received = Keyed(11).cursor();
            for way in 0..20 {
                let mut buffer = vec![0; [10, 30_000][way % 2]];
                match (way + round) % 4 {
                    0 => {
                        if let Some(answer) = forget_pending(stream.recv(buffer)).await {
                            received.check(&answer.unwrap().1);
                        }
                    }
                    1 => {
                        if let Some(lease) = forget_pending(stream.recv_lease()).await {
                            received.check(&lease.unwrap());
                        }
                    }
                    2 => drop(forget_pending(stream.flush()).await),
                    _ => {
                        let count = stream.read(&mut buffer).await.unwrap();
                        received.check(&buffer[..count]);
                    }
                }
                stream = TcpStream::attach(stream.detach().unwrap()).unwrap();
            }
            over.store(true, Ordering::Relaxed);
            assert_eq!(drain(&mut stream, received).await, peer.await);
        }
    }

    async fn a_stream_with_a_forgotten_send_all_moves_and_goes_on() {
        let (tell, told) = channel::<()>();
        let (mut stream, peer) = with_peer(move |mut stream| {
            told.recv().unwrap();
            let mut wire = Vec::new();
            stream.read_to_end(&mut wire).unwrap();
            wire
        })
        .await;
        let mut sending = Box::pin(stream.send_all(Keyed(12).bytes(0, 24 << 20)));
        assert!(poll_once(sending.as_mut()).await.is_pending());
        settle().await;
        std::mem::forget(sending);
        let mut stream = TcpStream::attach(stream.detach().unwrap()).unwrap();
        stream.write_all(&Keyed(13).bytes(0, 30_000)).await.unwrap();
        tell.send(()).unwrap();
        stream.shutdown().await.unwrap();
        let wire = peer.await;
        let prefix = wire.len() - 30_000;
        Keyed(12).check(0, &wire[..prefix]);
        Keyed(13).check(0, &wire[prefix..]);
    }
}

/// When accepted bytes are sent no more.
#[derive(Clone, Copy, Debug, PartialEq)]
enum GivenUp {
    WithTheRuntime,
    AfterHalfAMinute,
    Detached,
}

/// What is between two runtimes belongs to none.
const _: () = {
    const fn can_be_sent<T: Send>() {}
    can_be_sent::<Detached<Tcp>>();
};

/// Where a stream has come in both directions.
struct Traveller {
    received: Cursor,
    sent: Cursor,
    numbers: Numbers,
    stays: usize,
}

impl Traveller {
    /// Reads and writes for a while.
    async fn stay(&mut self, stream: &mut TcpStream) {
        self.stays += 1;
        for _ in 0..self.numbers.below(6) {
            let patience = Duration::from_micros(self.numbers.below(300));
            let capacity = [9, 2000, 50_000][self.numbers.below(3) as usize];
            match self.numbers.below(6) {
                0 => {
                    let mut buffer = vec![0; capacity];
                    if let Ok(count) = timeout(patience, stream.read(&mut buffer)).await {
                        self.received.check(&buffer[..count.unwrap()]);
                    }
                }
                1 => {
                    let receiving = stream.recv_exact(vec![0; capacity]);
                    if let Ok(answer) = timeout(patience, receiving).await {
                        self.received.check(&answer.unwrap().1);
                    }
                }
                2 => {
                    if let Ok(lease) = timeout(patience, stream.recv_lease()).await {
                        self.received.check(&lease.unwrap());
                    }
                }
                3 => {
                    let bytes = self.sent.next(capacity);
                    stream.send_all(bytes).await.unwrap();
                }
                _ => {
                    let mut bytes = self.sent.next(capacity);
                    // What is accepted when it is dropped is known of `write` only.
                    match timeout(patience, stream.write(&bytes)).await {
                        Ok(count) => bytes.truncate(count.unwrap()),
                        Err(_) => bytes.clear(),
                    }
                    self.sent.offset -= (capacity - bytes.len()) as u64;
                }
            }
        }
    }
}

/// Moves a stream back and forth between two runtimes, each on a thread of its own.
fn travel(
    drivers: [Driver; 2],
    detached: Detached<Tcp>,
    traveller: Traveller,
    moves: usize,
) -> (Option<Detached<Tcp>>, Traveller) {
    type Bag = (Detached<Tcp>, Traveller);
    let (out, back) = channel::<Bag>();
    let (to_first, first) = channel::<Bag>();
    let (to_second, second) = channel::<Bag>();
    to_first.send((detached, traveller)).unwrap();
    let host = move |driver, inbox: Receiver<Bag>, next: Sender<Bag>, out: Sender<Bag>| {
        move || {
            common::runtime(driver).block_on(async {
                while let Ok((detached, mut traveller)) = inbox.recv() {
                    let mut stream = TcpStream::attach(detached).unwrap();
                    traveller.stay(&mut stream).await;
                    let detached = stream.detach().unwrap();
                    if traveller.stays == moves {
                        out.send((detached, traveller)).unwrap();
                        return;
                    }
                    if let Err(gone) = next.send((detached, traveller)) {
                        panic!("the other host is gone after {} moves", gone.0.1.stays);
                    }
                }
            });
        }
    };
    let [driver, other] = drivers;
    let one = std::thread::spawn(host(driver, first, to_second, out.clone()));
    let two = std::thread::spawn(host(other, second, to_first, out));
    let arrived = back.recv();
    one.join().expect("the first host");
    two.join().expect("the second host");
    let (detached, traveller) = arrived.expect("it has arrived");
    (Some(detached), traveller)
}

/// A peer that streams one way until told that it is over, and checks what comes the other way.
async fn both_ways(
    over: &Arc<AtomicBool>,
    echoed: &Arc<AtomicU64>,
) -> (TcpStream, (Peer<u64>, Peer<u64>)) {
    let (over, echoed) = (Arc::clone(over), Arc::clone(echoed));
    let (stream, ends) = with_peer(move |mut stream| {
        let reading = stream.try_clone().unwrap();
        let outgoing = peer::peer(move || {
            let count = peer::expect_until_end(&reading, &mut Keyed(2).cursor());
            echoed.store(count, Ordering::Relaxed);
            count
        });
        let incoming = peer::peer(move || {
            let (mut sent, mut numbers) = (Keyed(1).cursor(), Numbers(1));
            while !over.load(Ordering::Relaxed) {
                stream.write_all(&sent.next(1 + numbers.below(5000) as usize)).unwrap();
                std::thread::sleep(Duration::from_micros(numbers.below(100)));
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            sent.offset
        });
        (incoming, outgoing)
    })
    .await;
    (stream, ends.await)
}

/// Another runtime on a thread of its own, which streams can visit. It lives as long as this.
struct Away {
    guests: Arc<Guests>,
    thread: Option<std::thread::JoinHandle<()>>,
}

type Visit = Pin<Box<dyn Future<Output = ()>>>;

/// What waits to be taken in, and the waker of whoever takes it.
#[derive(Default)]
struct Guests {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    visits: Vec<Box<dyn FnOnce() -> Visit + Send>>,
    over: bool,
    waker: Option<Waker>,
}

impl Guests {
    fn tell(&self, change: impl FnOnce(&mut Queue)) {
        let waker = {
            let mut queue = self.queue.lock().expect("no panic under this lock");
            change(&mut queue);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes in whoever comes, until it is over.
    fn poll_over(&self, cx: &Context<'_>) -> Poll<()> {
        let mut queue = self.queue.lock().expect("no panic under this lock");
        for visit in queue.visits.drain(..) {
            drop(annulus::spawn(visit()));
        }
        queue.waker = Some(cx.waker().clone());
        if queue.over { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.guests.tell(|queue| queue.over = true);
        let ended = self.thread.take().expect("taken once").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the other runtime panicked");
    }
}

impl Away {
    fn new(driver: Driver) -> Self {
        let guests = Arc::new(Guests::default());
        let taken_in = Arc::clone(&guests);
        let thread = std::thread::spawn(move || {
            common::runtime(driver).block_on(poll_fn(|cx| taken_in.poll_over(cx)));
        });
        Self { guests, thread: Some(thread) }
    }

    /// Has the stream there for this work, and waits for its end.
    fn finish<T: Send + 'static, F: Future<Output = T>>(
        &self,
        stream: TcpStream,
        work: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) -> T {
        let detached = stream.detach().unwrap();
        let (tell, told) = channel();
        let visit = move || -> Visit {
            Box::pin(async move {
                let stream = TcpStream::attach(detached).unwrap();
                tell.send(work(stream).await).unwrap();
            })
        };
        self.guests.tell(move |queue| queue.visits.push(Box::new(visit)));
        told.recv().expect("the visit went well")
    }

    /// Has the stream there for a moment, or for a few turns.
    fn there_and_back(&self, stream: TcpStream, settles: bool) -> TcpStream {
        let detached = self.finish(stream, move |stream| async move {
            if settles {
                annulus::task::yield_now().await;
                settle().await;
            }
            stream.detach().unwrap()
        });
        TcpStream::attach(detached).unwrap()
    }
}

async fn drain(stream: &mut TcpStream, mut received: Cursor) -> u64 {
    let mut buf = vec![0; 9000];
    loop {
        match within(stream.read(&mut buf)).await.unwrap() {
            0 => return received.offset,
            n => received.check(&buf[..n]),
        }
    }
}

/// Polls a future once, and forgets it if it waits.
async fn forget_pending<F: Future>(future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    match poll_once(future.as_mut()).await {
        Poll::Ready(output) => Some(output),
        Poll::Pending => {
            std::mem::forget(future);
            None
        }
    }
}

/// Fails rather than waits for ever.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(peer::patience(), future).await.expect("it hangs")
}
