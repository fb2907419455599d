//! Zero-copy sends: the buffer is the kernel's until it says so, and the bytes are as of any send.

use std::io::Read;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use annulus::buf::IoBuf;
use annulus::net::{TcpStream, ZeroCopy};
use annulus::{Driver, driver_info};

use common::bytes::{Keyed, Numbers};
use common::each_driver;
use common::peer;
use common::steps::{eventually, poll_once, settle, with_peer};

mod common;

each_driver! {
    async fn whole_buffers_reach_a_slow_reader() {
        let (mut stream, peer) = with_peer(|mut peer| {
            let mut received = Keyed(1).cursor();
            let mut piece = vec![0; 5000];
            loop {
                match peer.read(&mut piece).expect("a peer's read") {
                    0 => return received.offset,
                    n => received.check(&piece[..n]),
                }
                std::thread::yield_now();
            }
        })
        .await;
        let mut sent = Keyed(1).cursor();
        for len in [4 * MIB, 16 * 1024, MIB, 100_000, 16 * 1024 - 1, 1, 0, 3 * MIB] {
            let bytes = sent.next(len);
            let at = bytes.as_ptr();
            let (count, back) = stream.send_zc(bytes).await.unwrap();
            assert_eq!(count, len);
            assert_eq!(back.as_ptr(), at, "the same buffer comes back");
        }
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await, sent.offset);
    }

    async fn a_buffer_is_back_when_the_kernel_reads_it_no_more() {
        let (start, told) = channel();
        let (mut stream, peer) = with_peer(move |peer| {
            told.recv().expect("to be told to read");
            peer::expect(&peer, &mut Keyed(2).cursor(), QUEUED);
        })
        .await;
        let (buffer, dropped) = Watched::new(Keyed(2), QUEUED);
        let queue = Queue::of(&stream);
        {
            let mut sending = pin!(stream.send_zc(buffer));
            let mut answer = poll_once(sending.as_mut()).await;
            // The kernel has all of it, and nobody reads: the rest waits in the socket.
            eventually("the socket has everything", || queue.is_filled()).await;
            settle().await;
            if answer.is_pending() {
                answer = poll_once(sending.as_mut()).await;
            }
            assert_eq!(answer.is_pending(), on_uring(), "the kernel reads the buffer, or a copy");
            start.send(()).unwrap();
            if answer.is_pending() {
                assert_eq!(sending.await.unwrap().0, QUEUED);
            }
        }
        peer.await;
        assert!(dropped.load(Ordering::Relaxed), "the buffer that came back was dropped");
    }

    async fn a_stream_over_which_the_kernel_copies_asks_no_more() {
        let (start, told) = channel();
        let (mut stream, peer) = with_peer(move |peer| {
            let mut received = Keyed(3).cursor();
            peer::expect(&peer, &mut received, QUEUED);
            told.recv().expect("to be told to read");
            peer::expect(&peer, &mut received, QUEUED);
        })
        .await;
        let untried = if on_uring() { ZeroCopy::Untried } else { ZeroCopy::Unavailable };
        let copied = if on_uring() { ZeroCopy::Copied } else { ZeroCopy::Unavailable };
        assert_eq!(stream.zero_copy().unwrap(), untried);
        let mut sent = Keyed(3).cursor();
        stream.send_zc(sent.next(100)).await.unwrap();
        assert_eq!(stream.zero_copy().unwrap(), untried, "a small buffer tells nothing");
        stream.send_zc(sent.next(QUEUED - 100)).await.unwrap();
        assert_eq!(stream.zero_copy().unwrap(), copied);
        // Copied: the buffer is back though nobody reads.
        stream.send_zc(sent.next(QUEUED)).await.unwrap();
        start.send(()).unwrap();
        peer.await;
        let (_read, write) = stream.into_split();
        assert_eq!(write.zero_copy().unwrap(), copied);
    }

    #[deadline_s(60)]
    async fn a_dropped_send_leaves_a_prefix_and_later_writes_follow() {
        let mut numbers = Numbers(4);
        let mut cut = 0;
        for round in 0..30 {
            let (start, told) = channel();
            let (mut stream, peer) = with_peer(move |mut peer| {
                told.recv().expect("to be told to read");
                let mut wire = Vec::new();
                peer.read_to_end(&mut wire).expect("a peer's reads");
                wire
            })
            .await;
            let (key, len) = (Keyed(100 + round), 20_000 + numbers.below(8 << 20) as usize);
            stream.write_all(&Keyed(7).bytes(0, 10)).await.unwrap();
            let (buffer, dropped) = Watched::new(key, len);
            {
                let mut sending = pin!(stream.send_zc(buffer));
                for _ in 0..numbers.below(3) {
                    if poll_once(sending.as_mut()).await.is_ready() {
                        break;
                    }
                    settle().await;
                }
            }
            stream.send_all(MARK).await.unwrap();
            start.send(()).unwrap();
            stream.shutdown().await.unwrap();
            let wire = peer.await;
            Keyed(7).check(0, &wire[..10]);
            let wire = &wire[10..];
            assert!(wire.ends_with(MARK), "what is written later comes last");
            let prefix = &wire[..wire.len() - MARK.len()];
            assert!(prefix.len() <= len);
            key.check(0, prefix);
            cut += usize::from(prefix.len() < len);
            drop(stream);
            eventually("the buffer is let go of", || dropped.load(Ordering::Relaxed)).await;
        }
        assert!(cut > 0, "no send was ever cut short");
    }

    async fn zero_copy_sends_mix_with_other_writes() {
        let total = 3 * (10 + 200_000 + 3000 + 50_000 + 70_000 + MIB);
        let (mut stream, peer) = with_peer(move |peer| {
            let mut received = Keyed(5).cursor();
            peer::expect(&peer, &mut received, total);
            peer::expect_end(&peer);
        })
        .await;
        let mut sent = Keyed(5).cursor();
        for _ in 0..3 {
            stream.write_all(&sent.next(10)).await.unwrap();
            stream.send_zc(sent.next(200_000)).await.unwrap();
            stream.write_all(&sent.next(3000)).await.unwrap();
            stream.flush().await.unwrap();
            stream.send_all(sent.next(50_000)).await.unwrap();
            stream.send_zc(sent.next(70_000)).await.unwrap();
            let (_read, mut write) = stream.split();
            write.send_zc(sent.next(MIB)).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        let error = stream.send_zc(vec![0; MIB]).await.unwrap_err();
        assert_eq!(error.error.kind(), std::io::ErrorKind::BrokenPipe);
        assert_eq!(error.buffer.len(), MIB);
        peer.await;
    }
}

/// A buffer that can be read no more when it has been dropped.
struct Watched {
    bytes: Vec<u8>,
    dropped: Arc<AtomicBool>,
}

impl Watched {
    fn new(key: Keyed, len: usize) -> (Watched, Arc<AtomicBool>) {
        let dropped = Arc::default();
        (Watched { bytes: key.bytes(0, len), dropped: Arc::clone(&dropped) }, dropped)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.bytes.fill(0xdd);
        self.dropped.store(true, Ordering::Relaxed);
    }
}

// SAFETY: a vector that is not changed before it is dropped.
unsafe impl IoBuf for Watched {
    fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
}

/// The bytes that a socket has not yet had acknowledged, seen from beside the stream.
struct Queue(i32);

impl Queue {
    fn of(stream: &TcpStream) -> Queue {
        let text = format!("{stream:?}");
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        Queue(digits.parse().expect("the descriptor in the debug form"))
    }

    fn bytes(&self) -> usize {
        let mut count: libc::c_int = 0;
        // SAFETY: SIOCOUTQ fills one int.
        let result = unsafe { libc::ioctl(self.0, libc::TIOCOUTQ, &raw mut count) };
        assert_eq!(result, 0, "SIOCOUTQ");
        count as usize
    }

    /// True when all is in that the peer's window leaves here.
    fn is_filled(&self) -> bool {
        self.bytes() > QUEUED / 2
    }
}

fn on_uring() -> bool {
    driver_info().driver() == Driver::Uring
}

/// More than a window takes of a peer that does not read, less than a socket holds.
const QUEUED: usize = 512 * 1024;
const MIB: usize = 1 << 20;
const MARK: &[u8] = b"and so what came later came later";
