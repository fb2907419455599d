//! Zero-copy sends: the buffer is the kernel's until it says so, and the bytes are as of any send.

use std::future::pending;
use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::task::Poll;

use annulus::buf::IoBuf;
use annulus::net::{Stream, TcpStream, Unix, ZeroCopy};
use annulus::{Driver, driver_info};

use common::bytes::{Keyed, Numbers};
use common::peer;
use common::steps::{eventually, poll_once, settle, with_peer};
use common::{Test, each_driver, process, runtime};

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
            cut += usize::from(!prefix.is_empty() && prefix.len() < len);
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
        assert_eq!(error.error.kind(), BrokenPipe);
        assert_eq!(error.buffer.len(), MIB);
        peer.await;
    }

    async fn what_is_under_way_goes_first() {
        let (start, told) = channel();
        let (mut stream, peer) = with_peer(|peer| read_when_told(peer, told)).await;
        // More than the socket takes, and then what the stream keeps.
        let mut sent = Keyed(13).cursor();
        loop {
            let bytes = Keyed(13).bytes(sent.offset, 60_000);
            match poll_once(pin!(stream.write(&bytes)).as_mut()).await {
                Poll::Ready(count) => drop(sent.next(count.unwrap())),
                Poll::Pending => break,
            }
            settle().await;
        }
        let mut sending = Box::pin(stream.send_zc(sent.next(MIB)));
        assert!(poll_once(sending.as_mut()).await.is_pending());
        start.send(()).unwrap();
        assert_eq!(sending.as_mut().await.unwrap().0, MIB);
        drop(sending);
        stream.shutdown().await.unwrap();
        let wire = peer.await;
        Keyed(13).check(0, &wire);
        assert_eq!(wire.len() as u64, sent.offset);
    }

    async fn a_dropped_send_that_is_under_way_goes_first() {
        let (start, told) = channel();
        let (mut stream, peer) = with_peer(|peer| read_when_told(peer, told)).await;
        let queue = Queue::of(&stream);
        {
            let mut sending = pin!(stream.send_zc(Keyed(14).bytes(0, 16 * MIB)));
            assert!(poll_once(sending.as_mut()).await.is_pending());
            eventually("the socket is full", || queue.is_filled()).await;
        }
        start.send(()).unwrap();
        let (_, next) = stream.send_zc(Keyed(15).bytes(0, MIB)).await.unwrap();
        stream.shutdown().await.unwrap();
        let wire = peer.await;
        let (prefix, rest) = wire.split_at(wire.len() - MIB);
        assert!(prefix.len() < 16 * MIB, "the rest was not given up");
        Keyed(14).check(0, prefix);
        assert!(rest == next);
    }

    async fn a_stream_dropped_under_way_frees_nothing_early() {
        for len in [QUEUED, 16 * MIB] {
            let (start, told) = channel();
            let (mut stream, peer) = with_peer(|peer| read_when_told(peer, told)).await;
            let (buffer, dropped) = Watched::new(Keyed(6), len);
            let queue = Queue::of(&stream);
            {
                let mut sending = pin!(stream.send_zc(buffer));
                let answer = poll_once(sending.as_mut()).await;
                eventually("the socket is full", || queue.is_filled()).await;
                settle().await;
                if answer.is_pending() {
                    drop(poll_once(sending.as_mut()).await);
                }
            }
            drop(stream);
            settle().await;
            let early = dropped.load(Ordering::Relaxed);
            assert!(!(early && on_uring()), "{len}: freed what the kernel reads");
            start.send(()).unwrap();
            let wire = peer.await;
            Keyed(6).check(0, &wire);
            assert!(len > QUEUED || wire.len() == len, "the kernel had all of it");
            eventually("the buffer is let go of", || dropped.load(Ordering::Relaxed)).await;
        }
    }

    async fn a_stream_moves_while_the_kernel_reads_its_buffer() {
        for len in [QUEUED, 16 * MIB] {
            let (start, told) = channel();
            let (mut stream, peer) = with_peer(|peer| read_when_told(peer, told)).await;
            let (buffer, dropped) = Watched::new(Keyed(16), len);
            let queue = Queue::of(&stream);
            {
                let mut sending = pin!(stream.send_zc(buffer));
                let answer = poll_once(sending.as_mut()).await;
                eventually("the socket is full", || queue.is_filled()).await;
                settle().await;
                if answer.is_pending() {
                    drop(poll_once(sending.as_mut()).await);
                }
            }
            let detached = stream.detach().expect("detach");
            let early = dropped.load(Ordering::Relaxed);
            assert!(!(early && on_uring()), "{len}: freed what the kernel reads");
            let mut stream = TcpStream::attach(detached).expect("attach");
            start.send(()).unwrap();
            let (_, later) = stream.send_zc(Keyed(17).bytes(0, MIB)).await.unwrap();
            stream.shutdown().await.unwrap();
            let wire = peer.await;
            let (prefix, rest) = wire.split_at(wire.len() - MIB);
            Keyed(16).check(0, prefix);
            assert!(len > QUEUED || prefix.len() == len, "the kernel had all of it");
            assert!(rest == later);
            eventually("the buffer is let go of", || dropped.load(Ordering::Relaxed)).await;
        }
    }

    async fn a_forgotten_send_disturbs_no_other() {
        let (start, told) = channel();
        let (mut stream, peer) = with_peer(|peer| read_when_told(peer, told)).await;
        let (buffer, dropped) = Watched::new(Keyed(8), QUEUED);
        let queue = Queue::of(&stream);
        let mut sending = Box::pin(stream.send_zc(buffer));
        drop(poll_once(sending.as_mut()).await);
        eventually("the socket is full", || queue.is_filled()).await;
        settle().await;
        std::mem::forget(sending);
        start.send(()).unwrap();
        let (count, bytes) = stream.send_zc(Keyed(8).bytes(QUEUED as u64, MIB)).await.unwrap();
        assert_eq!((count, bytes.len()), (MIB, MIB));
        stream.shutdown().await.unwrap();
        let wire = peer.await;
        Keyed(8).check(0, &wire);
        assert_eq!(wire.len(), QUEUED + MIB);
        if on_uring() {
            eventually("the buffer is let go of", || dropped.load(Ordering::Relaxed)).await;
        }
    }

    fn the_end_of_a_runtime_frees_nothing_early(driver: Driver) {
        for len in [QUEUED, 16 * MIB] {
            let (start, told) = channel();
            let runtime = runtime(driver);
            let (buffer, dropped) = Watched::new(Keyed(9), len);
            let mut reading = None;
            runtime.block_on(async {
                let (mut stream, peer) = with_peer(|peer| read_when_told(peer, told)).await;
                let queue = Queue::of(&stream);
                let _detached = annulus::spawn(async move {
                    let sent = stream.send_zc(buffer).await;
                    pending::<()>().await;
                    drop(sent);
                });
                eventually("the socket is full", || queue.is_filled()).await;
                settle().await;
                reading = Some(peer);
            });
            drop(runtime);
            let early = driver == Driver::Uring && dropped.load(Ordering::Relaxed);
            assert!(!early, "{len}: freed what the kernel reads");
            start.send(()).unwrap();
            // To its end: the connection is closed, though the buffer is held.
            let wire = reading.expect("a peer").join();
            Keyed(9).check(0, &wire);
            assert!(len > QUEUED || wire.len() == len, "the kernel had all of it");
        }
    }

    async fn a_reset_gives_the_buffer_back() {
        for len in [QUEUED, 16 * MIB] {
            let (start, told) = channel();
            let (mut stream, peer) = with_peer(move |peer| {
                told.recv().expect("to be told to reset");
                peer::reset(peer);
            })
            .await;
            let (buffer, dropped) = Watched::new(Keyed(10), len);
            let queue = Queue::of(&stream);
            {
                let mut sending = pin!(stream.send_zc(buffer));
                let mut answer = poll_once(sending.as_mut()).await;
                eventually("the socket is full", || queue.is_filled()).await;
                start.send(()).unwrap();
                if answer.is_pending() {
                    answer = Poll::Ready(sending.await);
                }
                let Poll::Ready(answer) = answer else { unreachable!("awaited") };
                match answer {
                    Ok((count, buffer)) => {
                        assert_eq!((count, len), (QUEUED, QUEUED), "the kernel had all of it");
                        assert!(!dropped.load(Ordering::Relaxed), "it is here");
                        drop(buffer);
                    }
                    Err(error) => {
                        assert_eq!(len, 16 * MIB, "{error:?}");
                        let kind = error.error.kind();
                        assert!(matches!(kind, ConnectionReset | BrokenPipe), "{kind:?}");
                        drop(error.buffer);
                    }
                }
                assert!(dropped.load(Ordering::Relaxed));
            }
            peer.await;
            let error = loop {
                if let Err(error) = stream.send_zc(vec![0; MIB]).await {
                    break error;
                }
            };
            assert_eq!(error.buffer.len(), MIB);
        }
    }

    async fn a_family_without_such_sends_has_plain_ones() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = peer::peer(move || {
            let mut wire = Vec::new();
            theirs.read_to_end(&mut wire).expect("a peer's reads");
            wire
        });
        let mut stream = Stream::<Unix>::from_std(ours).unwrap();
        for part in 0..2 {
            let (count, _) =
                stream.send_zc(Keyed(11).bytes(part * MIB as u64, MIB)).await.unwrap();
            assert_eq!(count, MIB);
            assert_eq!(stream.zero_copy().unwrap(), ZeroCopy::Unavailable);
        }
        drop(stream);
        let wire = peer.await;
        Keyed(11).check(0, &wire);
        assert_eq!(wire.len(), 2 * MIB);
    }
}

#[test]
fn beyond_the_memory_that_may_be_locked_the_rest_is_copied() {
    const LOCKED_BYTES_MAX: usize = 2 * MIB;
    const NAME: &str = "beyond_the_memory_that_may_be_locked_the_rest_is_copied";
    if !process::in_role() {
        return Test::named(NAME).with_uring(|| {
            let done = process::role(NAME).status().expect("run the child");
            assert!(done.success(), "see above");
        });
    }
    process::lock_no_more_than(LOCKED_BYTES_MAX as u64);
    runtime(Driver::Uring).block_on(async {
        let len = 2 * LOCKED_BYTES_MAX;
        let (mut stream, peer) = with_peer(move |peer| {
            let mut received = Keyed(12).cursor();
            peer::expect(&peer, &mut received, len + MIB);
        })
        .await;
        let mut sent = Keyed(12).cursor();
        assert_eq!(stream.send_zc(sent.next(len)).await.unwrap().0, len);
        assert_eq!(stream.zero_copy().unwrap(), ZeroCopy::Untried, "another time it may do");
        assert_eq!(stream.send_zc(sent.next(MIB)).await.unwrap().0, MIB);
        assert_eq!(stream.zero_copy().unwrap(), ZeroCopy::Copied);
        peer.await;
    });
}

/// Reads to the end when it is told to.
fn read_when_told(mut peer: std::net::TcpStream, told: Receiver<()>) -> Vec<u8> {
    told.recv().expect("to be told to read");
    let mut wire = Vec::new();
    peer.read_to_end(&mut wire).expect("a peer's reads");
    wire
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
