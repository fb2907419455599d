//! Copying: every byte, every end and every error passes through, and nothing piles up.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::pin::pin;
use std::time::Duration;

use annulus::io::{copy, copy_bidirectional};
use annulus::task::yield_now;
use annulus::time::{sleep, timeout};

use common::bytes::{Keyed, Numbers};
use common::each_driver;
use common::peer::{self, peer};
use common::steps::{Either, pair, poll_once, race, with_peer};

mod common;

each_driver! {
    // Dropped elsewhere, it would give back what it holds too late.
    async fn a_copy_stays_on_its_thread() {
        // The inherent method exists for what is `Send` only, and then hides the trait's.
        trait Bound {
            fn stays(&self) -> bool {
                true
            }
        }
        struct Of<T>(T);
        impl<T> Bound for Of<T> {}
        impl<T: Send> Of<T> {
            fn stays(&self) -> bool {
                false
            }
        }
        let (mut one, mut other) = annulus::net::UnixStream::pair().unwrap();
        let copying = Of(copy(&mut one, &mut other));
        assert!(copying.stays());
        drop(copying);
        let copying = Of(copy_bidirectional(&mut one, &mut other));
        assert!(copying.stays());
        assert!(!Of(7).stays(), "this takes everything for bound");
    }

    async fn a_copy_passes_every_byte_on_and_leaves_the_writer_open() {
        let (mut from, source) =
            with_peer(|stream| send_unevenly(&stream, Keyed(1), 3_000_000)).await;
        let (mut to, sink) =
            with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(1).cursor())).await;
        assert_eq!(copy(&mut from, &mut to).await.unwrap(), 3_000_000);
        to.write_all(&Keyed(1).bytes(3_000_000, 10)).await.unwrap();
        drop(to);
        assert_eq!(sink.await, 3_000_010);
        source.await;
    }

    async fn halves_of_every_kind_can_be_copied() {
        let (mut stream, peer) = with_peer(|stream| {
            peer::echo(&stream, Keyed(2), 500_000);
            stream.shutdown(Shutdown::Write).unwrap();
            peer::expect_end(&stream);
        })
        .await;
        let (mut read, mut write) = stream.split();
        assert_eq!(copy(&mut read, &mut write).await.unwrap(), 500_000);
        stream.shutdown().await.unwrap();
        peer.await;

        let (stream, peer) = with_peer(|stream| {
            peer::echo(&stream, Keyed(3), 500_000);
            stream.shutdown(Shutdown::Write).unwrap();
            peer::expect_end(&stream);
        })
        .await;
        let (mut read, mut write) = stream.into_split();
        let copying = annulus::spawn(async move { copy(&mut read, &mut write).await });
        assert_eq!(copying.await.unwrap().unwrap(), 500_000);
        peer.await;
    }

    async fn both_directions_carry_every_byte_at_once() {
        let talk = |mine: u64, theirs: u64| {
            move |stream: std::net::TcpStream| {
                let other = stream.try_clone().unwrap();
                let sending = peer(move || {
                    send_unevenly(&other, Keyed(mine), 4_000_000);
                    other.shutdown(Shutdown::Write).unwrap();
                });
                receive_unevenly(&stream, Keyed(theirs), 4_000_000);
                sending.join();
            }
        };
        let (mut a, left) = with_peer(talk(4, 5)).await;
        let (mut b, right) = with_peer(talk(5, 4)).await;
        let counts = copy_bidirectional(&mut a, &mut b).await.unwrap();
        assert_eq!(counts, (4_000_000, 4_000_000));
        left.await;
        right.await;
    }

    // Each of the two is the one that finishes first, and still gets its answer.
    async fn a_half_close_passes_through_either_way() {
        for turned in [false, true] {
            let (a, asking) = with_peer(|stream| {
                peer::send(&stream, &mut Keyed(6).cursor(), 70_000);
                stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(peer::expect_until_end(&stream, &mut Keyed(7).cursor()), 90_000);
            })
            .await;
            let (b, answering) = with_peer(|stream| {
                assert_eq!(peer::expect_until_end(&stream, &mut Keyed(6).cursor()), 70_000);
                peer::send(&stream, &mut Keyed(7).cursor(), 90_000);
            })
            .await;
            let (mut first, mut second) = if turned { (b, a) } else { (a, b) };
            let counts = copy_bidirectional(&mut first, &mut second).await.unwrap();
            assert_eq!(counts, if turned { (90_000, 70_000) } else { (70_000, 90_000) });
            asking.await;
            answering.await;
        }
    }

    async fn an_end_without_a_byte_passes_through() {
        let (mut a, left) = with_peer(|stream| {
            stream.shutdown(Shutdown::Write).unwrap();
            peer::expect_end(&stream);
        })
        .await;
        let (mut b, right) = with_peer(|stream| peer::expect_end(&stream)).await;
        assert_eq!(copy_bidirectional(&mut a, &mut b).await.unwrap(), (0, 0));
        left.await;
        right.await;
    }

    async fn a_reset_of_either_side_ends_both() {
        for turned in [false, true] {
            let (a, silent) = with_peer(|stream| peer::expect_closed(&stream)).await;
            let (b, resetting) = with_peer(peer::reset).await;
            let (mut first, mut second) = if turned { (b, a) } else { (a, b) };
            let error = copy_bidirectional(&mut first, &mut second).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            drop((first, second));
            silent.await;
            resetting.await;
        }
    }

    async fn a_writer_whose_peer_has_gone_ends_a_copy() {
        let (mut from, source) = with_peer(|mut stream| {
            // Ends when the copy has.
            while stream.write_all(&[7; 1000]).is_ok() {}
        })
        .await;
        let (mut to, sink) = with_peer(peer::reset).await;
        sink.await;
        let error = copy(&mut from, &mut to).await.unwrap_err();
        let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(kinds.contains(&error.kind()), "the copy failed with {error}");
        drop(from);
        source.await;
    }

    // What is held on the way is the sockets' buffers and a little: the source cannot go on.
    async fn a_reader_that_stops_holds_back_the_source() {
        let (mut from, source) = with_peer(|stream| {
            let sent = send_until_held_back(&stream, Keyed(8));
            assert!(sent < FLOOD, "{sent} bytes went on their way though nobody reads them");
            sent
        })
        .await;
        let (mut to, mut sink) = pair().await;
        let receiving = {
            let mut copying = pin!(copy(&mut from, &mut to));
            let sent = match race(copying.as_mut(), source).await {
                Either::Left(over) => panic!("the copy ended: {over:?}"),
                Either::Right(sent) => sent,
            };
            let receiving = annulus::spawn(async move {
                let mut received = Keyed(8).cursor();
                let mut buffer = vec![0; 50_000];
                while let n @ 1.. = sink.read(&mut buffer).await.unwrap() {
                    received.check(&buffer[..n]);
                }
                assert_eq!(received.offset, sent);
            });
            assert_eq!(copying.await.unwrap(), sent);
            receiving
        };
        drop(to);
        receiving.await.unwrap();
    }

    async fn a_dropped_copy_loses_no_byte() {
        const LEN: usize = 3_000_000;
        let (mut from, source) =
            with_peer(|stream| send_unevenly(&stream, Keyed(9), LEN)).await;
        let (mut to, sink) =
            with_peer(|stream| receive_unevenly(&stream, Keyed(9), LEN)).await;
        let mut numbers = Numbers(9);
        loop {
            let polls = 1 + numbers.below(4);
            let mut copying = pin!(copy(&mut from, &mut to));
            let mut over = false;
            for _ in 0..polls {
                over = poll_once(copying.as_mut()).await.is_ready();
                if over {
                    break;
                }
                yield_now().await;
            }
            if over {
                break;
            }
        }
        to.shutdown().await.unwrap();
        source.await;
        sink.await;
    }

    async fn a_dropped_copy_gives_back_what_its_writer_had_no_room_for() {
        let (mut from, source) =
            with_peer(|stream| peer::send(&stream, &mut Keyed(10).cursor(), 64 << 20)).await;
        let (mut to, mut sink) = pair().await;
        // Nobody reads: it ends by being dropped, with bytes in its hands.
        timeout(Duration::from_millis(300), copy(&mut from, &mut to)).await.unwrap_err();
        let receiving = annulus::spawn(async move {
            let mut received = Keyed(10).cursor();
            let mut buffer = vec![0; 50_000];
            while let n @ 1.. = sink.read(&mut buffer).await.unwrap() {
                received.check(&buffer[..n]);
            }
            received.offset
        });
        copy(&mut from, &mut to).await.unwrap();
        drop(to);
        assert_eq!(receiving.await.unwrap(), 64 << 20);
        source.await;
    }

    async fn a_dropped_copy_in_both_directions_can_be_taken_up_again() {
        let (mut a, left) = with_peer(|stream| peer::echo(&stream, Keyed(11), 2_000_000)).await;
        let (mut b, right) = with_peer(|stream| {
            let mut stream = stream;
            let mut buffer = [0; 5000];
            while let n @ 1.. = stream.read(&mut buffer).unwrap() {
                stream.write_all(&buffer[..n]).unwrap();
            }
        })
        .await;
        let mut numbers = Numbers(11);
        loop {
            let limit = sleep(Duration::from_micros(numbers.below(2000)));
            match race(copy_bidirectional(&mut a, &mut b), limit).await {
                Either::Left(over) => {
                    over.unwrap();
                    break;
                }
                Either::Right(()) => {}
            }
        }
        left.await;
        right.await;
    }
}

/// Far more than all sockets on the way hold.
const FLOOD: u64 = 64 << 20;

/// Sends pieces of random sizes, now and then after a pause.
fn send_unevenly(mut stream: &std::net::TcpStream, key: Keyed, len: usize) {
    let mut cursor = key.cursor();
    let mut numbers = Numbers(key.0);
    while cursor.offset < len as u64 {
        let rest = len - cursor.offset as usize;
        let most = [100, 5000, 200_000][numbers.below(3) as usize];
        let piece = rest.min(1 + numbers.below(most) as usize);
        stream.write_all(&cursor.next(piece)).expect("a peer's write");
        pause_sometimes(&mut numbers);
    }
}

/// Receives pieces of random sizes, now and then after a pause, until the end.
fn receive_unevenly(mut stream: &std::net::TcpStream, key: Keyed, len: usize) {
    let mut cursor = key.cursor();
    let mut numbers = Numbers(!key.0);
    let mut buffer = vec![0; 200_000];
    loop {
        let most = [100, 5000, 200_000][numbers.below(3) as usize];
        let piece = 1 + numbers.below(most) as usize;
        match stream.read(&mut buffer[..piece]).expect("a peer's read") {
            0 => break,
            n => cursor.check(&buffer[..n]),
        }
        pause_sometimes(&mut numbers);
    }
    assert_eq!(cursor.offset, len as u64);
}

fn pause_sometimes(numbers: &mut Numbers) {
    if numbers.below(32) == 0 {
        std::thread::sleep(Duration::from_micros(numbers.below(3000)));
    }
}

/// Sends until nothing more is taken for a while. Answers how much that was.
fn send_until_held_back(mut stream: &std::net::TcpStream, key: Keyed) -> u64 {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = key.cursor();
    while sent.offset < FLOOD {
        let start = sent.offset;
        match stream.write(&sent.next(16 * 1024)) {
            Ok(count) => sent.offset = start + count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return start,
            Err(error) => panic!("a peer's write failed: {error}"),
        }
    }
    sent.offset
}
