//! Buffers that are given and come back: what is in them, and what a dropped future leaves.

use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::time::Duration;

use annulus::buf::{BufResult, IoBuf, IoBufMut};
use annulus::net::TcpStream;
use annulus::time::timeout;

use common::asked;
use common::bytes::{Cursor, Keyed, Numbers};
use common::cut::{attempt, check_attempts, rationed_peer, streaming_peer};
use common::each_driver;
use common::peer::{self, Peer};
use common::steps::{eventually, poll_once, settle, with_peer};

mod common;

each_driver! {
    async fn a_vector_takes_the_length_of_what_came() {
        for sent in [5, 20_000] {
            for buffer in [Vec::with_capacity(32 * 1024), vec![9; 32 * 1024], vec![9; 3]] {
                let (capacity, address) = (buffer.capacity(), buffer.as_ptr());
                let (count, buffer) = received(buffer, sent).await;
                assert_eq!(buffer.len(), count);
                assert_eq!((buffer.capacity(), buffer.as_ptr()), (capacity, address));
                Keyed(1).check(0, &buffer);
            }
        }
    }

    async fn a_box_keeps_its_length() {
        let (count, buffer) = received(vec![9; 8].into_boxed_slice(), 5).await;
        assert_eq!((count, buffer.len()), (5, 8));
        Keyed(1).check(0, &buffer[..5]);
        assert_eq!(buffer[5..], [9; 3]);
        let (count, buffer) = received(Box::new([9; 3]), 5).await;
        assert_eq!(count, 3);
        Keyed(1).check(0, &buffer[..]);
        let (count, buffer) = received(Box::new([9; 20_000]), 5).await;
        Keyed(1).check(0, &buffer[..count]);
        assert!(buffer[count..].iter().all(|&byte| byte == 9));
    }

    async fn a_slice_is_received_into_within_its_bounds() {
        let (count, slice) = received(vec![9; 10].slice(2..6), 100).await;
        assert_eq!((count, slice.len()), (4, 4));
        let whole = slice.into_inner();
        assert_eq!((&whole[..2], &whole[6..]), (&[9; 2][..], &[9; 4][..]));
        Keyed(1).check(0, &whole[2..6]);
        // Into the spare capacity, behind what is there; and a slice of a slice.
        let mut head = Vec::with_capacity(64);
        head.extend_from_slice(b"head ");
        let (count, slice) = received(head.slice(5..), 10).await;
        Keyed(1).check(0, &slice[..count]);
        let head = slice.into_inner();
        assert_eq!((&head[..5], head.len()), (&b"head "[..], 5 + count));
        let (count, inner) = received(vec![9; 40_000].slice(10..).slice(5..30_000), 40_000).await;
        Keyed(1).check(0, &inner[..count]);
        let whole = inner.into_inner().into_inner();
        Keyed(1).check(0, &whole[15..15 + count]);
        assert!(whole[..15].iter().chain(&whole[30_010..]).all(|&byte| byte == 9));
    }

    async fn recv_exact_fills_to_the_capacity() {
        for length in [1, 100, 4096, 20_000, 300_000] {
            let (mut stream, peer) = sending(3 * length).await;
            let (count, vector) = stream.recv_exact(Vec::with_capacity(length)).await.unwrap();
            assert_eq!((count, vector.len()), (vector.capacity(), count));
            Keyed(1).check(0, &vector);
            let at = count as u64;
            let slice = vector.slice(..length / 2);
            let (count, slice) = stream.recv_exact(slice).await.unwrap();
            assert_eq!((count, slice.len()), (length / 2, length / 2));
            Keyed(1).check(at, &slice);
            let boxed = vec![0; length].into_boxed_slice();
            let (count, boxed) = stream.recv_exact(boxed).await.unwrap();
            assert_eq!(count, length);
            Keyed(1).check(at + length as u64 / 2, &boxed);
            drop(stream);
            drop(peer);
        }
    }

    async fn buffers_of_every_kind_are_sent_whole() {
        for length in [1, 1024, 1025, 8192, 8193, 200_000] {
            let (stream, peer) = collecting().await;
            let mut giving = Giving { stream, sent: KINDS.cursor() };
            giving.all(length, |bytes| bytes).await;
            giving.all(length, Vec::into_boxed_slice).await;
            giving.all(length, Arc::<[u8]>::from).await;
            giving.all(length, std::rc::Rc::<[u8]>::from).await;
            giving.all(length, |bytes| &*bytes.leak()).await;
            giving.all(length, |bytes| bytes.slice(..)).await;
            let padded = |bytes: Vec<u8>| [&b"ab"[..], &bytes, b"c"].concat();
            giving.all(length, |bytes| padded(bytes).slice(2..length + 2)).await;
            let shared = |bytes| Arc::<[u8]>::from(padded(bytes));
            giving.all(length, |bytes| shared(bytes).slice(1..).slice(1..=length)).await;
            #[cfg(feature = "bytes")]
            {
                giving.all(length, bytes::Bytes::from).await;
                giving.all(length, |given| bytes::BytesMut::from(&given[..])).await;
                giving.all(length, |given| bytes::Bytes::from(given).slice(..).slice(..)).await;
            }
            let total = giving.sent.offset;
            let (_, text) = giving.stream.send_all("text".repeat(length)).await.unwrap();
            assert_eq!(text, "text".repeat(length));
            giving.stream.send_all("static").await.unwrap();
            giving.stream.send_all(b"array").await.unwrap();
            giving.stream.send_all(Box::new(*b"boxed")).await.unwrap();
            giving.stream.shutdown().await.unwrap();
            let wire = peer.await;
            KINDS.check(0, &wire[..total as usize]);
            let tail = [text.as_str(), "static", "array", "boxed"].concat();
            assert!(&wire[total as usize..] == tail.as_bytes(), "length {length}");
        }
    }

    async fn a_send_says_how_much_it_took() {
        let (mut stream, peer) = collecting().await;
        let mut sent = Keyed(2).cursor();
        for round in 0..300 {
            let length = [1, 700, 5000, 9000, 100_000][round % 5];
            let at = sent.offset;
            let buffer = Keyed(2).bytes(at, length);
            let (count, buffer) = if round % 2 == 0 {
                stream.send(buffer).await.unwrap()
            } else {
                let parts = buffer.chunks(1 + length / 7).map(<[u8]>::to_vec).collect();
                let (count, parts) = stream.send_vectored(parts).await.unwrap();
                (count, parts.concat())
            };
            assert!((1..=length).contains(&count));
            assert_eq!(buffer.len(), length);
            Keyed(2).check(at, &buffer);
            sent.offset += count as u64;
        }
        stream.shutdown().await.unwrap();
        let wire = peer.await;
        assert_eq!(wire.len() as u64, sent.offset);
        Keyed(2).check(0, &wire);
    }

    async fn five_thousand_slices_go_out_in_order() {
        for length in [1, 7, 300] {
            let (mut stream, peer) = collecting().await;
            let whole = Keyed(3).bytes(0, 5000 * length);
            let mut sent = 0;
            while sent < whole.len() {
                let parts: Vec<_> = whole[sent..].chunks(length).map(<[u8]>::to_vec).collect();
                let (count, parts) = stream.send_vectored(parts).await.unwrap();
                assert!(count > 0);
                assert!(parts.concat() == whole[sent..]);
                sent += count;
            }
            sent = 0;
            while sent < whole.len() {
                let parts: Vec<_> = whole[sent..].chunks(length).map(io::IoSlice::new).collect();
                sent += stream.write_vectored(&parts).await.unwrap();
            }
            // More empty ones than one call takes, before the one that matters.
            let mut parts = vec![Vec::new(); 3000];
            parts.push(vec![7; 20_000]);
            let (mut sent, _) = stream.send_vectored(parts).await.unwrap();
            assert!(sent > 0, "a send of many bytes took none");
            while sent < 20_000 {
                sent += stream.send(vec![7; 20_000 - sent]).await.unwrap().0;
            }
            stream.shutdown().await.unwrap();
            assert!(peer.await == [&whole[..], &whole[..], &[7; 20_000]].concat());
        }
    }

    async fn empty_buffers_are_answered_at_once_and_mean_nothing() {
        let (mut stream, peer) = with_peer(|mut stream| {
            let mut word = [0; 4];
            stream.read_exact(&mut word).unwrap();
            stream.write_all(&word).unwrap();
            peer::expect_end(&stream);
        })
        .await;
        for _ in 0..2 {
            // There is nothing to be read: none of these may wait.
            assert_eq!(at_once(stream.recv(Vec::new())).await, (0, Vec::new()));
            assert_eq!(at_once(stream.recv_exact(Vec::new())).await, (0, Vec::new()));
            assert_eq!(at_once(stream.recv(Box::new([]))).await.0, 0);
            assert_eq!(at_once(stream.recv(vec![1, 2].slice(1..1))).await.0, 0);
            assert_eq!(at_once(stream.send("")).await, (0, ""));
            assert_eq!(at_once(stream.send_all(Vec::new())).await, (0, Vec::new()));
            assert_eq!(at_once(stream.send_all("abc".slice(3..))).await.0, 0);
            assert_eq!(at_once(stream.send_vectored(Vec::<Vec<u8>>::new())).await.0, 0);
            assert_eq!(at_once(stream.send_vectored(vec![""; 3000])).await.0, 0);
        }
        stream.send_all("ping").await.unwrap();
        let (_, answer) = stream.recv_exact(vec![0; 4]).await.unwrap();
        assert_eq!(answer, b"ping");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.recv(Vec::new()).await.unwrap().0, 0);
        peer.await;
        assert_eq!(stream.recv(vec![1; 9]).await.unwrap(), (0, Vec::new()));
    }

    async fn an_error_has_the_buffer() {
        let (mut stream, peer) = with_peer(|mut stream| {
            stream.write_all(b"short").unwrap();
        })
        .await;
        peer.await;
        let failed = stream.recv_exact(Vec::with_capacity(50)).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(failed.buffer, b"short");
        let failed = stream.recv_exact(vec![9; 3].into_boxed_slice()).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(*failed.buffer, [9; 3]);
        let (mut stream, peer) = with_peer(peer::reset).await;
        peer.await;
        let failed = stream.recv(Vec::from(*b"mine")).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(failed.buffer, b"mine");
        let failed = stream.send_all(Vec::from([1; 5000])).await.unwrap_err();
        assert_eq!(failed.buffer, [1; 5000]);
        let failed = stream.send([2; 9000].to_vec()).await.unwrap_err();
        assert_eq!((failed.error.kind(), failed.buffer), (ErrorKind::BrokenPipe, vec![2; 9000]));
        let failed = stream.send_vectored(vec![vec![3; 6000]; 2]).await.unwrap_err();
        assert_eq!(failed.buffer, [[3; 6000]; 2]);
        // What is copied is accepted; the next call has its error.
        stream.send("mine").await.unwrap();
        stream.flush().await.unwrap_err();
        assert_eq!(asks(&mut stream).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    async fn a_reset_in_the_middle_of_a_send_all_gives_the_buffer_back() {
        let (tell, told) = mpsc::channel::<()>();
        let (mut stream, peer) = with_peer(move |stream| {
            told.recv().unwrap();
            peer::reset(stream);
        })
        .await;
        let bytes = Keyed(4).bytes(0, BEYOND_SOCKETS);
        let address = bytes.as_ptr();
        let mut sending = Box::pin(stream.send_all(bytes));
        assert!(poll_once(sending.as_mut()).await.is_pending());
        settle().await;
        tell.send(()).unwrap();
        let failed = sending.await.unwrap_err();
        let expected = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(expected.contains(&failed.error.kind()), "{failed}");
        assert_eq!(failed.buffer.as_ptr(), address);
        Keyed(4).check(0, &failed.buffer);
        peer.await;
    }

    // The kernel tells a reset to one call only, and here that is the send. If the send has sent a
    // part, it tells nobody.
    async fn a_reset_that_a_send_all_has_met_is_no_end() {
        for (taken, dropped) in [(0, false), (0, true), (1 << 20, false), (1 << 20, true)] {
            let (mut stream, go, peer) = in_a_send_all(taken).await;
            let mut sending = Box::pin(stream.send_all(Keyed(4).bytes(0, BEYOND_SOCKETS)));
            assert!(poll_once(sending.as_mut()).await.is_pending());
            settle().await;
            go.send(false).unwrap();
            peer.await;
            settle().await;
            if !dropped {
                sending.as_mut().await.unwrap_err();
            }
            drop(sending);
            let read = stream.read(&mut [0; 8]).await;
            let text = format!("taken: {taken}, dropped: {dropped}");
            assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset, "{text}");
        }
    }

    // The send has ended, and is given up before anybody has looked at its answer.
    async fn a_reset_that_an_abandoned_send_all_has_met_is_no_end() {
        let (go, told) = mpsc::channel::<()>();
        let (mut stream, peer) = with_peer(move |mut stream| {
            told.recv().unwrap();
            stream.read_exact(&mut vec![0; 1 << 20]).unwrap();
            told.recv().unwrap();
            peer::reset(stream);
        })
        .await;
        let mut sending = Box::pin(stream.send_all(Keyed(4).bytes(0, BEYOND_SOCKETS)));
        assert!(poll_once(sending.as_mut()).await.is_pending());
        settle().await;
        go.send(()).unwrap();
        // A part is sent, and the rest waits.
        settle().await;
        go.send(()).unwrap();
        // Without a turn, so that the next one brings the answer, behind which this task is the
        // first to run.
        peer.join();
        annulus::task::yield_now().await;
        drop(sending);
        let read = stream.read(&mut [0; 8]).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    async fn an_end_before_a_send_all_broke_stays_one() {
        for taken in [0, 1 << 20] {
            let (mut stream, go, peer) = in_a_send_all(taken).await;
            let mut sending = Box::pin(stream.send_all(Keyed(4).bytes(0, BEYOND_SOCKETS)));
            assert!(poll_once(sending.as_mut()).await.is_pending());
            settle().await;
            go.send(true).unwrap();
            peer.await;
            let failed = sending.await.unwrap_err();
            assert_eq!(failed.error.kind(), ErrorKind::BrokenPipe, "{failed}");
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "taken: {taken}");
        }
    }

    async fn the_halves_have_the_owned_methods() {
        let (stream, peer) = with_peer(echo_until_end).await;
        let (mut read, mut write) = stream.into_split();
        let reading = annulus::spawn(async move {
            let (_, exact) = read.recv_exact(vec![0; 300_000]).await.unwrap();
            Keyed(5).check(0, &exact);
            let mut received = Keyed(5).cursor_at(300_000);
            let mut buffer = Vec::with_capacity(5000);
            loop {
                (_, buffer) = read.recv(buffer).await.unwrap();
                if buffer.is_empty() {
                    return received.offset;
                }
                received.check(&buffer);
                received.check(&read.recv_lease().await.unwrap());
            }
        });
        let mut sent = Keyed(5).cursor();
        for _ in 0..40 {
            write.send_all(sent.next(50_000)).await.unwrap();
            write.send_all(sent.next(20)).await.unwrap();
        }
        write.shutdown().await.unwrap();
        assert_eq!(reading.await.unwrap(), sent.offset);
        peer.await;
    }

    async fn halves_that_are_closed_go_on_the_other_way() {
        let (tell, told) = mpsc::channel::<()>();
        let (mut stream, peer) = with_peer(move |mut stream| {
            stream.write_all(b"before").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            peer::expect(&stream, &mut Keyed(6).cursor(), 200_000);
            told.recv().unwrap();
            peer::expect_end(&stream);
        })
        .await;
        assert_eq!(stream.recv_exact(vec![0; 6]).await.unwrap().1, b"before");
        for _ in 0..3 {
            assert_eq!(stream.recv(vec![0; 6]).await.unwrap(), (0, Vec::new()));
            assert_eq!(stream.recv(vec![0; 60_000]).await.unwrap(), (0, Vec::new()));
            assert!(stream.recv_lease().await.unwrap().is_empty());
        }
        stream.send_all(Keyed(6).bytes(0, 200_000)).await.unwrap();
        stream.flush().await.unwrap();
        tell.send(()).unwrap();
        stream.shutdown().await.unwrap();
        let failed = stream.send_all("too late").await.unwrap_err();
        assert_eq!((failed.error.kind(), failed.buffer), (ErrorKind::BrokenPipe, "too late"));
        let failed = stream.send_all(vec![0; 100_000]).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::BrokenPipe);
        peer.await;
    }

    async fn bytes_around_urgent_ones_all_arrive() {
        for round in 0..60 {
            let (mut stream, peer) = with_peer(move |stream| {
                let mut sent = Keyed(7).cursor();
                peer::send(&stream, &mut sent, [10, 5000, 40_000][round % 3]);
                socket2::SockRef::from(&stream).send_out_of_band(b"!").unwrap();
                peer::send(&stream, &mut sent, [1, 100, 30_000][round / 3 % 3]);
                // What is behind the mark must come without another byte, and without an end.
                let mut answer = [0; 3];
                (&stream).read_exact(&mut answer).unwrap();
            })
            .await;
            let total = ([10, 5000, 40_000][round % 3] + [1, 100, 30_000][round / 3 % 3]) as u64;
            let mut received = Keyed(7).cursor();
            let capacity = [8, 3000, 20_000, 70_000][round % 4];
            while received.offset < total {
                if round % 5 > 0 {
                    let receiving = stream.recv(Vec::with_capacity(capacity));
                    received.check(&within(receiving).await.unwrap().1);
                }
                if round % 5 < 4 && received.offset < total {
                    received.check(&within(stream.recv_lease()).await.unwrap());
                }
            }
            stream.send_all("all").await.unwrap();
            peer.await;
        }
    }
}

/// Dropped reads.
mod dropped_reads {
    use super::*;

    each_driver! {
        #[deadline_s(120)]
        async fn every_way_to_read_can_be_cut_short_without_loss() {
            let over = Arc::new(AtomicBool::new(false));
            let (mut stream, peer) = streaming_peer(Keyed(20), &over).await;
            let mut received = Keyed(20).cursor();
            let mut numbers = Numbers(20);
            let mut cut = [0; 6];
            for round in 0..12_000 {
                let patience = Duration::from_micros(round % 201);
                let capacity = match numbers.below(4) {
                    0 => 16 * 1024 + numbers.below(50_000) as usize,
                    1 => 1 + numbers.below(20) as usize,
                    _ => 1 + numbers.below(6000) as usize,
                };
                let way = numbers.below(6) as usize;
                if !read_one_way(&mut stream, &mut received, way, capacity, patience).await {
                    cut[way] += 1;
                }
            }
            over.store(true, Ordering::Relaxed);
            loop {
                let (_, buffer) = stream.recv(vec![0; 40_000]).await.unwrap();
                if buffer.is_empty() {
                    break;
                }
                received.check(&buffer);
            }
            println!("cut short: {cut:?} of 12000, {} bytes", received.offset);
            assert_eq!(received.offset, peer.await, "not every byte sent was received");
            assert!(!cut.contains(&0), "one way was never cut short: {cut:?}");
        }

        async fn a_forgotten_receive_writes_to_nobodys_memory() {
            for capacity in [4096, 100_000] {
                let (tell, told) = mpsc::channel::<()>();
                let (mut stream, peer) = with_peer(move |stream| {
                    told.recv().unwrap();
                    peer::send(&stream, &mut Keyed(21).cursor(), 50_000);
                })
                .await;
                let mut receiving = Box::pin(stream.recv(vec![0; capacity]));
                assert!(poll_once(receiving.as_mut()).await.is_pending());
                settle().await;
                std::mem::forget(receiving);
                let mut exact = Box::pin(stream.recv_exact(vec![0; capacity]));
                assert!(poll_once(exact.as_mut()).await.is_pending());
                settle().await;
                std::mem::forget(exact);
                let mut leasing = Box::pin(stream.recv_lease());
                assert!(poll_once(leasing.as_mut()).await.is_pending());
                std::mem::forget(leasing);
                tell.send(()).unwrap();
                settle().await;
                let (_, bytes) = within(stream.recv_exact(vec![0; 50_000])).await.unwrap();
                Keyed(21).check(0, &bytes);
                peer.await;
            }
        }

        async fn futures_that_hold_bytes_stay_on_their_thread() {
            let (mut stream, peer) = with_peer(drop).await;
            // Dropped elsewhere, each would do by mail what the next call must find done.
            stays_here(&stream.read_exact(&mut [0]));
            stays_here(&stream.recv_exact(vec![0]));
            stays_here(&stream.send_all(vec![0]));
            peer.await;
        }

        async fn a_receive_can_move_until_it_is_polled_and_its_box_at_any_time() {
            let (tell, told) = mpsc::channel::<()>();
            let (mut stream, peer) = with_peer(move |stream| {
                told.recv().unwrap();
                peer::send(&stream, &mut Keyed(22).cursor(), 30_000);
            })
            .await;
            let unpolled = stream.recv_exact(vec![0; 30_000]);
            let mut boxes = vec![Box::pin(unpolled)];
            assert!(poll_once(boxes[0].as_mut()).await.is_pending());
            // The box moves, what is pinned in it stays.
            let mut moved = boxes.pop().unwrap();
            tell.send(()).unwrap();
            let count = match poll_once(moved.as_mut()).await {
                Poll::Ready(received) => received.unwrap(),
                Poll::Pending => vec![moved].pop().unwrap().await.unwrap(),
            };
            Keyed(22).check(0, &count.1);
            peer.await;
        }
    }
}

/// Dropped writes.
mod dropped_writes {
    use super::*;

    each_driver! {
        #[deadline_s(120)]
        async fn a_dropped_send_all_sent_a_prefix_and_nothing_twice() {
            let ration = Arc::new(AtomicU64::new(0));
            let (mut stream, peer) = rationed_peer(&ration).await;
            let mut whole = Vec::new();
            for round in 0..600 {
                let patience = Duration::from_micros(round as u64 % 201);
                let bytes = attempt(round);
                let outcome = match round % 4 {
                    0 => timeout(patience, stream.write_all(&bytes)).await.map(Result::unwrap),
                    1 => {
                        let shared = Arc::<[u8]>::from(bytes);
                        timeout(patience, stream.send_all(shared)).await.map(|sent| {
                            sent.unwrap();
                        })
                    }
                    _ => timeout(patience, stream.send_all(bytes)).await.map(|sent| {
                        sent.unwrap();
                    }),
                };
                if outcome.is_err() {
                    ration.fetch_add(70_000, Ordering::Relaxed);
                }
                if round % 7 == 0 {
                    // Mostly cut short as well.
                    timeout(patience, stream.flush()).await.unwrap_or(Ok(())).unwrap();
                }
                whole.push(outcome.is_ok());
            }
            assert!(whole.contains(&false), "no send was ever cut short, so nothing was tested");
            assert!(whole.contains(&true), "every send was cut short");
            ration.store(u64::MAX, Ordering::Relaxed);
            stream.shutdown().await.unwrap();
            check_attempts(&peer.await, &whole);
        }

        #[deadline_s(60)]
        async fn a_dropped_send_took_nothing() {
            let ration = Arc::new(AtomicU64::new(0));
            let (mut stream, peer) = rationed_peer(&ration).await;
            let mut sent = Keyed(30).cursor();
            let (mut dropped, mut numbers) = (0, Numbers(30));
            for round in 0..3000 {
                let len = 1 + numbers.below(40_000) as usize;
                let bytes = Keyed(30).bytes(sent.offset, len);
                let patience = Duration::from_micros(round % 201);
                let outcome = if round % 2 == 0 {
                    timeout(patience, stream.send(bytes)).await.map(|sent| sent.unwrap().0)
                } else {
                    let parts = bytes.chunks(3000).map(<[u8]>::to_vec).collect();
                    timeout(patience, stream.send_vectored(parts)).await.map(|sent| sent.unwrap().0)
                };
                match outcome {
                    Ok(count) => sent.offset += count as u64,
                    Err(_) => {
                        dropped += 1;
                        ration.fetch_add(15_000, Ordering::Relaxed);
                    }
                }
            }
            assert!(dropped > 0, "no send was ever cut short, so nothing was tested");
            ration.store(u64::MAX, Ordering::Relaxed);
            stream.shutdown().await.unwrap();
            let wire = peer.await;
            Keyed(30).check(0, &wire);
            assert_eq!(wire.len() as u64, sent.offset, "the wire carries what the sends took");
        }

        async fn what_is_written_behind_a_dropped_send_all_follows_its_prefix() {
            let mut cut = 0;
            for how in 0..5 {
                let (tell, told) = mpsc::channel::<()>();
                let (mut stream, peer) = with_peer(move |mut stream| {
                    told.recv().unwrap();
                    let mut wire = Vec::new();
                    stream.read_to_end(&mut wire).unwrap();
                    wire
                })
                .await;
                let bytes = Keyed(31).bytes(0, BEYOND_SOCKETS);
                let mut sending = Box::pin(stream.send_all(bytes));
                assert!(poll_once(sending.as_mut()).await.is_pending());
                if how % 2 == 0 {
                    settle().await;
                }
                drop(sending);
                let tail = Keyed(32).bytes(0, 20_000);
                match how {
                    0 => stream.write_all(&tail[..500]).await.unwrap(),
                    1 => drop(stream.send_all(tail[..500].to_vec()).await.unwrap()),
                    2 => stream.write_all(&tail).await.unwrap(),
                    _ => {}
                }
                tell.send(()).unwrap();
                match how {
                    3 => drop(within(stream.send_all(tail.clone())).await.unwrap()),
                    4 => within(stream.flush()).await.unwrap(),
                    _ => {}
                }
                within(stream.shutdown()).await.unwrap();
                let written = [500, 500, 20_000, 20_000, 0][how];
                let wire = peer.await;
                let prefix = wire.len() - written;
                assert!(prefix > 0, "nothing in way {how}");
                cut += usize::from(prefix < BEYOND_SOCKETS);
                Keyed(31).check(0, &wire[..prefix]);
                Keyed(32).check(0, &wire[prefix..]);
            }
            // A cancel may come too late: on Linux 6.1 it does not find a send about to go on.
            assert!(cut > 0, "no send was cut short");
        }

        async fn a_stream_that_is_dropped_in_a_send_all_ends_behind_a_prefix() {
            let (tell, told) = mpsc::channel::<()>();
            let (mut stream, peer) = with_peer(move |stream| {
                told.recv().unwrap();
                peer::expect_until_end(&stream, &mut Keyed(33).cursor())
            })
            .await;
            let task = annulus::spawn(async move {
                stream.send_all(Keyed(33).bytes(0, BEYOND_SOCKETS)).await
            });
            settle().await;
            task.abort();
            task.await.unwrap_err();
            tell.send(()).unwrap();
            let sent = peer.await;
            assert!(sent > 0 && sent < BEYOND_SOCKETS as u64, "{sent} bytes came");
        }

        async fn a_forgotten_send_all_is_sent_whole_and_what_follows_comes_behind_it() {
            for follow in 0..3 {
                let (tell, told) = mpsc::channel::<()>();
                let (mut stream, peer) = with_peer(move |mut stream| {
                    told.recv().unwrap();
                    let mut wire = Vec::new();
                    stream.read_to_end(&mut wire).unwrap();
                    wire
                })
                .await;
                let mut sending = Box::pin(stream.send_all(Keyed(34).bytes(0, BEYOND_SOCKETS)));
                assert!(poll_once(sending.as_mut()).await.is_pending());
                settle().await;
                std::mem::forget(sending);
                tell.send(()).unwrap();
                let tail = Keyed(35).bytes(0, 100_000);
                match follow {
                    0 => stream.write_all(&tail).await.unwrap(),
                    1 => drop(within(stream.send_all(tail)).await.unwrap()),
                    _ => {
                        let mut again = Box::pin(stream.send_all(tail.clone()));
                        let _ = poll_once(again.as_mut()).await;
                        let (sent, _) = within(again).await.unwrap();
                        assert_eq!(sent, tail.len());
                    }
                }
                within(stream.shutdown()).await.unwrap();
                let wire = peer.await;
                assert_eq!(wire.len(), BEYOND_SOCKETS + 100_000);
                Keyed(34).check(0, &wire[..BEYOND_SOCKETS]);
                Keyed(35).check(0, &wire[BEYOND_SOCKETS..]);
            }
        }
    }
}

/// Buffers that poison their memory when they are dropped.
mod poisoned {
    use super::*;

    each_driver! {
        #[deadline_s(60)]
        async fn a_dropped_send_all_keeps_its_buffer_while_the_kernel_has_it() {
            for round in 0..24 {
                let dropped = Arc::new(Grave::default());
                let (mut stream, peer) = with_peer(|stream| {
                    peer::expect_until_end(&stream, &mut Keyed(40).cursor())
                })
                .await;
                let mut sending = Box::pin(stream.send_all(Poison::new(&dropped)));
                let mut pending = poll_once(sending.as_mut()).await.is_pending();
                for _ in 0..round % 4 {
                    annulus::task::yield_now().await;
                    pending = pending && poll_once(sending.as_mut()).await.is_pending();
                }
                drop(sending);
                if round % 2 == 0 {
                    // A send that goes on all the same would go on with poison.
                    settle().await;
                }
                within(stream.shutdown()).await.unwrap();
                eventually("it is dropped", || dropped.has_come()).await;
                let came = peer.await;
                assert!(came > 0 && (pending || came == BEYOND_SOCKETS as u64), "{came} bytes");
            }
        }

        #[deadline_s(60)]
        fn a_runtime_that_ends_in_a_send_all_keeps_the_buffer_while_the_kernel_has_it(
            driver: Driver
        ) {
            for round in 0..12 {
                let dropped = Arc::new(Grave::default());
                let runtime = common::runtime(driver);
                let buffer = Poison::new(&dropped);
                let (tell, told) = mpsc::channel::<()>();
                let (peer, held) = runtime.block_on(async {
                    let (mut stream, peer) = with_peer(move |stream| {
                        told.recv().unwrap();
                        let mut cursor = Keyed(40).cursor();
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                            peer::expect_until_end(&stream, &mut cursor)
                        }))
                        .map_err(|panic| *panic.downcast::<String>().unwrap())
                    })
                    .await;
                    let mut sending = Box::pin(async move { stream.send_all(buffer).await });
                    if round % 3 > 0 {
                        assert!(poll_once(sending.as_mut()).await.is_pending());
                    }
                    tell.send(()).unwrap();
                    match round % 3 {
                        0 => {
                            annulus::spawn(sending);
                            settle().await;
                            (peer, None)
                        }
                        1 => (peer, Some(sending)),
                        _ => {
                            std::mem::forget(sending);
                            (peer, None)
                        }
                    }
                });
                drop(runtime);
                drop(held);
                // A reset is a fine end, and so is FIN; bytes that nobody sent are not.
                let end = peer.join();
                assert!(!matches!(&end, Err(text) if text.contains("wrong byte")), "{end:?}");
                if round % 3 < 2 {
                    assert!(dropped.has_come(), "round {round} leaks the buffer");
                }
            }
        }

        async fn buffers_that_are_received_into_are_dropped_once_and_never_written_after() {
            let over = Arc::new(AtomicBool::new(false));
            let (mut stream, peer) = streaming_peer(Keyed(41), &over).await;
            let mut received = Keyed(41).cursor();
            for round in 0..2000 {
                let dropped = Arc::new(Grave::default());
                let buffer = Poison::with_length([300, 40_000][round % 2], &dropped);
                let patience = Duration::from_micros(round as u64 % 101);
                match timeout(patience, stream.recv(buffer)).await {
                    Ok(answer) => {
                        let (count, buffer) = answer.unwrap();
                        received.check(&buffer.as_slice()[..count]);
                        assert!(!dropped.has_come());
                    }
                    Err(_) => assert!(dropped.has_come()),
                }
                assert!(dropped.has_come());
            }
            over.store(true, Ordering::Relaxed);
            while let (1.., rest) = stream.recv(vec![0; 30_000]).await.unwrap() {
                received.check(&rest);
            }
            assert_eq!(received.offset, peer.await);
        }
    }

    /// Where poisoned memory stays until its round is over, so that the kernel could still read it.
    #[derive(Default)]
    struct Grave(Mutex<Option<Vec<u8>>>);

    impl Grave {
        fn has_come(&self) -> bool {
            self.0.lock().unwrap().is_some()
        }
    }

    /// Keyed bytes, which are overwritten when they are dropped.
    struct Poison {
        bytes: Vec<u8>,
        dropped: Arc<Grave>,
    }

    impl Poison {
        fn new(dropped: &Arc<Grave>) -> Self {
            Self { bytes: Keyed(40).bytes(0, BEYOND_SOCKETS), dropped: Arc::clone(dropped) }
        }

        fn with_length(length: usize, dropped: &Arc<Grave>) -> Self {
            Self { bytes: vec![0; length], dropped: Arc::clone(dropped) }
        }
    }

    impl Drop for Poison {
        fn drop(&mut self) {
            self.bytes.fill(0xdb);
            let earlier = self.dropped.0.lock().unwrap().replace(std::mem::take(&mut self.bytes));
            assert!(earlier.is_none(), "dropped twice");
        }
    }

    // SAFETY: the bytes are on the heap and stay there; nothing changes them but the drop.
    unsafe impl IoBuf for Poison {
        fn as_slice(&self) -> &[u8] {
            &self.bytes
        }
    }

    // SAFETY: as above; all of them are written.
    unsafe impl IoBufMut for Poison {
        unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
            // SAFETY: as the caller says.
            unsafe { self.bytes.as_uninit() }
        }

        unsafe fn set_init(&mut self, _count: usize) {}
    }
}

/// More than one call of the kernel moves.
mod large {
    use super::*;

    each_driver! {
        #[alone]
        #[deadline_s(300)]
        fn more_than_two_gibibytes_are_sent_and_received(driver: Driver) {
            if !asked::is_on(HEAVY) {
                let test = "more_than_two_gibibytes_are_sent_and_received";
                return common::leave_out(test, &format!("{HEAVY} is not set"));
            }
            let length = (2 << 30) + 12_345;
            let runtime = common::runtime(driver);
            runtime.block_on(async {
                let (mut stream, peer) = with_peer(move |mut stream| {
                    // Zeros, of which nobody needs to keep any; marked at both ends of the border.
                    let mut buffer = vec![0; 1 << 20];
                    let mut total = 0;
                    while total < length {
                        let count = stream.read(&mut buffer).unwrap();
                        assert!(count > 0, "an early end after {total}");
                        for (at, byte) in buffer[..count].iter().enumerate() {
                            let marked = (total + at) % STEP == 0;
                            assert!(*byte == u8::from(marked), "at {}", total + at);
                        }
                        total += count;
                    }
                    let mut total = 0;
                    while total < length {
                        let count = buffer.len().min(length - total);
                        for (at, byte) in buffer[..count].iter_mut().enumerate() {
                            *byte = u8::from((total + at) % STEP == 0);
                        }
                        stream.write_all(&buffer[..count]).unwrap();
                        total += count;
                    }
                })
                .await;
                // Mapped, and touched only where it is marked.
                let mut bytes = vec![0; length];
                (0..length).step_by(STEP).for_each(|at| bytes[at] = 1);
                let (count, bytes) = stream.send_all(bytes).await.unwrap();
                assert_eq!((count, bytes.len()), (length, length));
                let (count, mut bytes) = stream.recv_exact(bytes).await.unwrap();
                assert_eq!((count, bytes.len()), (length, length));
                (0..length).step_by(STEP).for_each(|at| {
                    assert_eq!(std::mem::replace(&mut bytes[at], 0), 1, "at {at}");
                });
                assert!(bytes.iter().all(|&byte| byte == 0), "a byte at the wrong place");
                peer.await;
            });
        }

        #[deadline_s(60)]
        async fn a_receive_takes_a_buffer_beyond_what_one_call_can_fill() {
            let (mut stream, peer) =
                with_peer(|stream| peer::send(&stream, &mut Keyed(50).cursor(), 1 << 20)).await;
            let mut received = Keyed(50).cursor();
            // Never touched but for what comes.
            let mut buffer = Vec::with_capacity((4 << 30) + 4096);
            while received.offset < 1 << 20 {
                (_, buffer) = stream.recv(buffer).await.unwrap();
                received.check(&buffer);
            }
            peer.await;
        }
    }

    const STEP: usize = 65_521;
    /// Set to 1, runs what takes much memory and time.
    const HEAVY: &str = "ANNULUS_TEST_HEAVY";
}

/// Sends back what comes, until its end.
fn echo_until_end(mut stream: std::net::TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return,
            count => stream.write_all(&buffer[..count]).unwrap(),
        }
    }
}

/// Receives once, of so many bytes.
async fn received<B: IoBufMut>(buffer: B, sent: usize) -> (usize, B) {
    let (mut stream, peer) = sending(sent).await;
    // All have come before the first receive.
    let stream = {
        peer.await;
        let mut shown = [0];
        stream.peek(&mut shown).await.unwrap();
        &mut stream
    };
    let (count, buffer) = stream.recv(buffer).await.unwrap();
    assert!(count > 0 && count <= sent);
    (count, buffer)
}

/// A peer that sends so many keyed bytes.
async fn sending(length: usize) -> (TcpStream, Peer<()>) {
    with_peer(move |stream| {
        let mut cursor = Keyed(1).cursor();
        let mut rest = length;
        while rest > 0 {
            let piece = rest.min(4096);
            // Its reader may need no more.
            if (&stream).write_all(&cursor.next(piece)).is_err() {
                return;
            }
            rest -= piece;
        }
    })
    .await
}

/// A peer that keeps all that comes.
async fn collecting() -> (TcpStream, Peer<Vec<u8>>) {
    with_peer(|mut stream| {
        let mut wire = Vec::new();
        stream.read_to_end(&mut wire).unwrap();
        wire
    })
    .await
}

/// Sends keyed bytes in buffers of one kind after another.
struct Giving {
    stream: TcpStream,
    sent: Cursor,
}

impl Giving {
    /// Sends a buffer of this kind by each of the methods, and looks at what comes back.
    async fn all<B: IoBuf>(&mut self, length: usize, make: impl Fn(Vec<u8>) -> B) {
        let at = self.sent.offset;
        let (count, buffer) = self.stream.send_all(make(self.sent.next(length))).await.unwrap();
        assert_eq!(count, length);
        KINDS.check(at, buffer.as_slice());
        let at = self.sent.offset;
        let (count, buffer) = self.stream.send(make(KINDS.bytes(at, length))).await.unwrap();
        KINDS.check(at, buffer.as_slice());
        self.sent.offset += count as u64;
        let at = self.sent.offset;
        let buffers = vec![
            make(KINDS.bytes(at, length)),
            make(KINDS.bytes(at + length as u64, 1.max(length))),
        ];
        let (count, buffers) = self.stream.send_vectored(buffers).await.unwrap();
        KINDS.check(at, buffers[0].as_slice());
        KINDS.check(at + length as u64, buffers[1].as_slice());
        self.sent.offset += count as u64;
    }
}

/// Reads in one of the ways, and says whether it came to an end.
async fn read_one_way(
    stream: &mut TcpStream,
    received: &mut Cursor,
    way: usize,
    capacity: usize,
    patience: Duration,
) -> bool {
    let mut buffer = vec![0; capacity];
    match way {
        0 => match timeout(patience, stream.read(&mut buffer)).await {
            Ok(count) => received.check(&buffer[..count.unwrap()]),
            Err(_) => return false,
        },
        1 => match timeout(patience, stream.read_exact(&mut buffer)).await {
            Ok(count) => received.check(&buffer[..count.unwrap()]),
            Err(_) => return false,
        },
        2 => match timeout(patience, stream.recv(buffer)).await {
            Ok(answer) => received.check(&answer.unwrap().1),
            Err(_) => return false,
        },
        3 => match timeout(patience, stream.recv_exact(buffer)).await {
            Ok(answer) => received.check(&answer.unwrap().1),
            Err(_) => return false,
        },
        4 => match timeout(patience, stream.recv_lease()).await {
            Ok(lease) => received.check(&lease.unwrap()),
            Err(_) => return false,
        },
        _ => match timeout(patience, stream.peek(&mut buffer)).await {
            Ok(count) => received.clone().check(&buffer[..count.unwrap()]),
            Err(_) => return false,
        },
    }
    true
}

/// Compiles for what is not `Send` only: otherwise two implementations fit.
fn stays_here<T: StaysHere<Marker>, Marker>(_future: &T) {}

trait StaysHere<Marker> {}

impl<T> StaysHere<()> for T {}

impl<T: Send> StaysHere<[(); 1]> for T {}

/// Uses `?` on an answer that has a buffer.
async fn asks(stream: &mut TcpStream) -> io::Result<usize> {
    let (count, _buffer) = stream.send(vec![0; 9000]).await?;
    Ok(count)
}

/// Polls an operation once, which must suffice.
async fn at_once<B>(operation: impl Future<Output = BufResult<usize, B>>) -> (usize, B) {
    match poll_once(pin!(operation).as_mut()).await {
        Poll::Ready(answer) => answer.unwrap_or_else(|failed| panic!("{failed}")),
        Poll::Pending => panic!("an operation on an empty buffer waits"),
    }
}

/// Fails rather than waits for ever.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(peer::patience(), future).await.expect("it hangs")
}

const KINDS: Keyed = Keyed(0x4b);
/// More than the sockets of both ends hold.
const BEYOND_SOCKETS: usize = 24 << 20;

/// Futures that are dropped while no runtime runs, or another one.
mod dropped_outside {
    use super::*;

    each_driver! {
        fn a_receive_gives_its_bytes_back(driver: Driver) {
            for within_another in [false, true] {
                let runtime = common::runtime(driver);
                let other = common::runtime(driver);
                let (tell, told) = mpsc::channel::<()>();
                let (mut stream, peer) = runtime.block_on(with_peer(move |stream| {
                    let mut sent = Keyed(60).cursor();
                    peer::send(&stream, &mut sent, 100);
                    told.recv().unwrap();
                    peer::send(&stream, &mut sent, 100);
                }));
                let mut receiving = Box::pin(stream.recv_exact(vec![0; 1000]));
                runtime.block_on(async {
                    for _ in 0..2 {
                        assert!(poll_once(receiving.as_mut()).await.is_pending());
                        settle().await;
                    }
                    assert!(poll_once(receiving.as_mut()).await.is_pending());
                    tell.send(()).unwrap();
                    peer.await;
                    settle().await;
                });
                if within_another {
                    other.block_on(async { drop(receiving) });
                } else {
                    drop(receiving);
                }
                runtime.block_on(async {
                    let mut received = Keyed(60).cursor();
                    while received.offset < 200 {
                        let (_, bytes) = within(stream.recv(vec![0; 200])).await.unwrap();
                        received.check(&bytes);
                    }
                });
            }
        }

        fn a_send_all_that_had_ended_does_not_end_the_next(driver: Driver) {
            let runtime = common::runtime(driver);
            let (tell, told) = mpsc::channel::<()>();
            let (mut stream, all_come) = runtime.block_on(with_peer(move |stream| {
                // One that reads while it is written to may take all of it from a single call.
                told.recv().unwrap();
                peer::expect(&stream, &mut Keyed(61).cursor(), BEYOND_SOCKETS);
                peer::peer(move || {
                    told.recv().unwrap();
                    let mut cursor = Keyed(61).cursor_at(BEYOND_SOCKETS as u64);
                    peer::expect_until_end(&stream, &mut cursor)
                })
            }));
            let mut sending = Box::pin(stream.send_all(Keyed(61).bytes(0, BEYOND_SOCKETS)));
            let mut peer = None;
            runtime.block_on(async {
                assert!(poll_once(sending.as_mut()).await.is_pending());
                tell.send(()).unwrap();
                // All of it is sent, and nobody fetches the buffer.
                peer = Some(all_come.await);
                settle().await;
            });
            drop(sending);
            runtime.block_on(async {
                let bytes = Keyed(61).bytes(BEYOND_SOCKETS as u64, BEYOND_SOCKETS);
                let mut sending = Box::pin(stream.send_all(bytes));
                assert!(poll_once(sending.as_mut()).await.is_pending());
                settle().await;
                tell.send(()).unwrap();
                let (sent, _) = within(sending).await.unwrap();
                assert_eq!(sent, BEYOND_SOCKETS);
                stream.shutdown().await.unwrap();
                assert_eq!(peer.unwrap().await, BEYOND_SOCKETS as u64);
            });
        }
    }
}

/// A stream whose peer, when told to go, takes so many bytes, finishes if that is what it is told,
/// and resets the connection.
async fn in_a_send_all(taken: usize) -> (TcpStream, mpsc::Sender<bool>, Peer<()>) {
    let (go, told) = mpsc::channel();
    let (stream, peer) = with_peer(move |mut stream| {
        let finishes = told.recv().unwrap();
        stream.read_exact(&mut vec![0; taken]).unwrap();
        if finishes {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        peer::reset(stream);
    })
    .await;
    (stream, go, peer)
}
