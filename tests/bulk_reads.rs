//! Streams that bring much, message by message: what comes is received past the pool, and a poll
//! that stays armed tells when. It tells of each arrival once, so nothing may be overlooked.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::mpsc;

use annulus::net::{Family, Stream, UnixStream};
use annulus::task::yield_now;
use socket2::SockRef;

use common::bytes::Keyed;
use common::each_driver;
use common::peer;
use common::steps::{Either, race, settle, with_peer};

mod common;

each_driver! {
    async fn the_end_that_comes_together_with_the_last_bytes_is_seen() {
        let (go, wait) = mpsc::channel();
        let (done, ended) = mpsc::channel();
        let (mut stream, peer) = with_peer(move |mut stream| {
            send_messages(&mut stream, &wait);
            wait.recv().unwrap();
            stream.write_all(&[2; MESSAGE_BYTES]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            done.send(()).unwrap();
            stream
        })
        .await;
        receive_messages(&mut stream, &go).await;
        await_then(&mut stream, &go).await;
        // The shard's thread stands still meanwhile, so that both come as one piece of news.
        ended.recv().unwrap();
        let mut buf = vec![0; MESSAGE_BYTES];
        fill(&mut stream, &mut buf).await;
        assert!(buf.iter().all(|byte| *byte == 2));
        assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
        peer.await;
    }

    async fn the_end_of_a_unix_stream_is_seen() {
        let (go, wait) = mpsc::channel();
        let (done, ended) = mpsc::channel();
        let (stream, mut peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        let peer = peer::peer(move || {
            send_messages(&mut peer, &wait);
            wait.recv().unwrap();
            peer.write_all(&[2; MESSAGE_BYTES]).unwrap();
            drop(peer);
            done.send(()).unwrap();
        });
        receive_messages(&mut stream, &go).await;
        await_then(&mut stream, &go).await;
        ended.recv().unwrap();
        let mut buf = vec![0; MESSAGE_BYTES];
        fill(&mut stream, &mut buf).await;
        assert_eq!(stream.read(&mut buf).await.unwrap(), 0);
        peer.await;
    }

    async fn a_reset_that_comes_together_with_the_last_bytes_is_seen() {
        let (go, wait) = mpsc::channel();
        let (done, ended) = mpsc::channel();
        let (mut stream, peer) = with_peer(move |mut stream| {
            send_messages(&mut stream, &wait);
            wait.recv().unwrap();
            stream.write_all(&[2; MESSAGE_BYTES]).unwrap();
            peer::reset(stream);
            done.send(()).unwrap();
        })
        .await;
        receive_messages(&mut stream, &go).await;
        await_then(&mut stream, &go).await;
        ended.recv().unwrap();
        let mut buf = vec![0; MESSAGE_BYTES];
        let error = loop {
            match stream.read(&mut buf).await {
                Ok(0) => panic!("a reset is no end"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        peer.await;
    }

    async fn bytes_behind_a_mark_of_urgent_data_are_read() {
        let (go, wait) = mpsc::channel();
        let (done, sent) = mpsc::channel();
        let (mut stream, peer) = with_peer(move |mut stream| {
            send_messages(&mut stream, &wait);
            wait.recv().unwrap();
            stream.write_all(&[2; MESSAGE_BYTES]).unwrap();
            SockRef::from(&stream).send_out_of_band(b"!").unwrap();
            stream.write_all(&[3; MESSAGE_BYTES]).unwrap();
            done.send(()).unwrap();
            stream
        })
        .await;
        receive_messages(&mut stream, &go).await;
        await_then(&mut stream, &go).await;
        sent.recv().unwrap();
        // There is room for everything, and the read ends at the mark.
        let mut buf = vec![0; 4 * MESSAGE_BYTES];
        let mut got = Vec::new();
        while got.len() < 2 * MESSAGE_BYTES {
            let count = stream.read(&mut buf).await.unwrap();
            assert!(count > 0);
            got.extend_from_slice(&buf[..count]);
        }
        assert!(got[..MESSAGE_BYTES].iter().all(|byte| *byte == 2));
        assert!(got[MESSAGE_BYTES..].iter().all(|byte| *byte == 3));
        peer.await;
    }

    async fn what_arrives_while_nobody_reads_is_read_later() {
        let (go, wait) = mpsc::channel();
        let (sent, was_sent) = mpsc::channel();
        let (mut stream, peer) = with_peer(move |mut stream| {
            send_messages(&mut stream, &wait);
            let mut cursor = Keyed(7).cursor();
            for () in wait {
                peer::send(&stream, &mut cursor, 1000);
                sent.send(()).unwrap();
            }
            stream
        })
        .await;
        receive_messages(&mut stream, &go).await;
        let mut buf = vec![0; MESSAGE_BYTES];
        let mut offset = 0;
        // More pieces of news than are kept, each from a turn of its own; then once more, so that
        // what was told too late is seen to do no harm.
        for _ in 0..3 {
            for _ in 0..PIECES {
                go.send(()).unwrap();
                was_sent.recv().unwrap();
                yield_now().await;
                settle().await;
            }
            let end = offset + PIECES * 1000;
            while offset < end {
                let count = stream.read(&mut buf).await.unwrap();
                assert!(count > 0);
                Keyed(7).check(offset, &buf[..count]);
                offset += count as u64;
            }
        }
        drop(go);
        peer.await;
    }

    async fn a_dropped_wait_for_a_message_loses_none() {
        let (go, wait) = mpsc::channel();
        let (mut stream, peer) = with_peer(move |mut stream| {
            send_messages(&mut stream, &wait);
            let mut cursor = Keyed(8).cursor();
            for () in wait {
                peer::send(&stream, &mut cursor, MESSAGE_BYTES);
            }
            stream
        })
        .await;
        receive_messages(&mut stream, &go).await;
        let mut buf = vec![0; MESSAGE_BYTES];
        for round in 0..30 {
            await_then(&mut stream, &go).await;
            // Turns in which the message arrives, or does not.
            for _ in 0..round % 5 {
                yield_now().await;
            }
            fill(&mut stream, &mut buf).await;
            Keyed(8).check(round * MESSAGE_BYTES as u64, &buf);
        }
        drop(go);
        peer.await;
    }

    async fn small_and_large_reads_in_turns_keep_the_order() {
        const ROUNDS: u64 = 40;
        let (go, wait) = mpsc::channel();
        let (mut stream, peer) = with_peer(move |mut stream| {
            send_messages(&mut stream, &wait);
            let mut cursor = Keyed(9).cursor();
            for _ in 0..ROUNDS {
                peer::send(&stream, &mut cursor, 8 + MESSAGE_BYTES);
                stream.read_exact(&mut [0]).unwrap();
            }
            stream
        })
        .await;
        receive_messages(&mut stream, &go).await;
        let mut offset = 0;
        let mut buf = vec![0; MESSAGE_BYTES];
        for _ in 0..ROUNDS {
            for length in [8, MESSAGE_BYTES] {
                stream.read_exact(&mut buf[..length]).await.unwrap();
                Keyed(9).check(offset, &buf[..length]);
                offset += length as u64;
            }
            stream.write_all(&[0]).await.unwrap();
        }
        peer.await;
    }

    async fn a_socket_given_back_is_as_it_was() {
        let (go, wait) = mpsc::channel();
        let (mut stream, peer) = with_peer(move |mut stream| {
            send_messages(&mut stream, &wait);
            wait.recv().unwrap();
            stream.write_all(&[5; MESSAGE_BYTES]).unwrap();
            stream
        })
        .await;
        receive_messages(&mut stream, &go).await;
        let mut stream = stream.into_std().unwrap();
        assert_eq!(told_rest(&stream), 0);
        go.send(()).unwrap();
        let mut buf = vec![0; MESSAGE_BYTES];
        stream.read_exact(&mut buf).unwrap();
        assert!(buf.iter().all(|byte| *byte == 5));
        peer.await;
    }
}

/// The peer's side of [`receive_messages`].
fn send_messages(stream: &mut impl Write, wait: &mpsc::Receiver<()>) {
    for _ in 0..MESSAGES {
        wait.recv().unwrap();
        stream.write_all(&[1; MESSAGE_BYTES]).unwrap();
    }
}

/// So many that the stream is known to bring much; each is sent when a read waits for it.
async fn receive_messages<F: Family>(stream: &mut Stream<F>, go: &mpsc::Sender<()>) {
    let mut buf = vec![0; MESSAGE_BYTES];
    for _ in 0..MESSAGES {
        await_then(stream, go).await;
        fill(stream, &mut buf).await;
    }
}

/// Lets the peer go on when a read has begun to wait, which is dropped.
async fn await_then<F: Family>(stream: &mut Stream<F>, go: &mpsc::Sender<()>) {
    match race(stream.read(&mut vec![0; MESSAGE_BYTES]), async {}).await {
        Either::Left(_) => panic!("nothing was sent"),
        Either::Right(()) => go.send(()).unwrap(),
    }
}

/// By reads that do not say that they will come back.
async fn fill<F: Family>(stream: &mut Stream<F>, buf: &mut [u8]) {
    let mut filled = 0;
    while filled < buf.len() {
        let count = stream.read(&mut buf[filled..]).await.unwrap();
        assert!(count > 0, "the stream ends after {filled} bytes");
        filled += count;
    }
}

/// The option `TCP_INQ` of a socket.
fn told_rest(stream: &std::net::TcpStream) -> i32 {
    let mut value: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value and its length are valid for writing and agree with each other.
    let answer = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INQ,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    value
}

const MESSAGES: usize = 12;
const MESSAGE_BYTES: usize = 16 * 1024;

/// More than the driver keeps pieces of news.
const PIECES: u64 = 20;
