//! What holds for a stream by whatever traits it is used. Each binary says how its own are called.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::io::{ErrorKind, IoSlice, Read};
use std::net::TcpStream as StdStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use annulus::net::TcpStream;

use super::bytes::{Keyed, Numbers};
use super::peer;
use super::steps::{eventually, listen, settle, with_peer};

/// A stream that is read and written through some traits.
pub(crate) trait Traits: Send + 'static {
    fn of(stream: TcpStream) -> Self;
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

pub(crate) async fn every_byte_passes<T: Traits>() {
    let (stream, peer) = with_peer(|stream| {
        peer::echo(&stream, Keyed(1), 2_000_000);
        stream.shutdown(std::net::Shutdown::Write).expect("the peer's end");
        peer::expect_end(&stream);
    })
    .await;
    let mut io = T::of(stream);
    let mut buffer = vec![0; 10_000];
    loop {
        let count = read(&mut io, &mut buffer).await.expect("a read");
        if count == 0 {
            break;
        }
        write_all(&mut io, &buffer[..count]).await;
    }
    poll_fn(|cx| io.poll_shutdown(cx)).await.expect("a shutdown");
    peer.await;
}

pub(crate) async fn slices_are_taken_in_their_order<T: Traits>() {
    let (stream, peer) =
        with_peer(|stream| peer::expect_until_end(&stream, &mut Keyed(2).cursor())).await;
    let mut io = T::of(stream);
    let mut sent = 0;
    for lengths in [[0, 3, 0, 70], [1, 2, 3, 4], [5000, 0, 5000, 1], [40_000, 40_000, 0, 0]] {
        let bytes = Keyed(2).bytes(sent, lengths.iter().sum());
        let mut rest = &bytes[..];
        let slices = lengths.map(|length| {
            let (slice, behind) = rest.split_at(length);
            rest = behind;
            IoSlice::new(slice)
        });
        let count = poll_fn(|cx| io.poll_write(cx, &slices)).await.expect("a write");
        assert!(count > lengths[0].min(1), "only {count} of {lengths:?}");
        sent += count as u64;
    }
    poll_fn(|cx| io.poll_shutdown(cx)).await.expect("a shutdown");
    assert_eq!(peer.await, sent);
}

pub(crate) async fn a_reset_is_an_error_and_no_end<T: Traits>() {
    let (stream, peer) = with_peer(peer::reset).await;
    peer.await;
    let error = read(&mut T::of(stream), &mut [0; 8]).await.expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// The kernel tells of a reset once: to a send that nobody waits for, here.
pub(crate) async fn a_reset_that_a_send_has_met_is_no_end<T: Traits>() {
    let (stream, peer) = with_peer(peer::reset).await;
    peer.await;
    let mut io = T::of(stream);
    write_all(&mut io, b"too late").await;
    settle().await;
    for _ in 0..2 {
        let error = read(&mut io, &mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

/// Whatever is offered while writes wait, on the wire is what was accepted, once and in order.
pub(crate) async fn a_write_that_waits_has_taken_nothing<T: Traits>() {
    let (go, wait) = channel::<usize>();
    let (stream, peer) = with_peer(move |mut stream| {
        let mut wire = vec![];
        while let Ok(count) = wait.recv() {
            let mut piece = vec![0; count];
            stream.read_exact(&mut piece).expect("a peer's read");
            wire.extend(piece);
        }
        stream.read_to_end(&mut wire).expect("a peer's read to the end");
        wire
    })
    .await;
    let mut io = T::of(stream);
    let (mut accepted, mut waits, mut asked) = (vec![], 0, 0);
    let mut sizes = Numbers(5);
    for attempt in 0..4000 {
        let bytes = Keyed(attempt).bytes(0, 1 + sizes.below(20_000) as usize);
        match once(|cx| io.poll_write(cx, &[IoSlice::new(&bytes)])) {
            Poll::Ready(count) => accepted.extend(&bytes[..count.expect("a write")]),
            Poll::Pending => waits += 1,
        }
        if accepted.len() > asked + 8_000_000 {
            go.send(100_000).expect("the peer reads");
            asked += 100_000;
        }
        if attempt % 50 == 49 {
            settle().await;
        }
        if waits % 20 == 19 && asked + 200_000 < accepted.len() {
            go.send(200_000).expect("the peer reads");
            asked += 200_000;
        }
    }
    assert!(waits > 0, "no write had to wait, so nothing was tested");
    drop(go);
    poll_fn(|cx| io.poll_shutdown(cx)).await.expect("a shutdown");
    let wire = peer.await;
    assert_eq!(wire.len(), accepted.len());
    assert!(wire == accepted, "other bytes than were accepted");
}

pub(crate) async fn what_waits_wakes_the_latest_waker_only<T: Traits>() {
    let (go, wait) = channel::<()>();
    let (stream, peer) = with_peer(move |stream| {
        wait.recv().expect("the word to send");
        peer::send(&stream, &mut Keyed(1).cursor(), 10);
        wait.recv().expect("the word to read");
        peer::expect_until_end(&stream, &mut Keyed(2).cursor())
    })
    .await;
    let mut io = T::of(stream);
    let [early, late] = [Wakes::new(), Wakes::new()];
    for wakes in [&early, &late] {
        assert!(io.poll_read(&mut wakes.context(), &mut [0; 10]).is_pending());
    }
    go.send(()).expect("the peer sends");
    eventually("bytes", || late.count() > 0).await;
    assert_eq!(early.count(), 0, "the waker of a poll before was woken");
    let mut buffer = [0; 10];
    assert_eq!(read(&mut io, &mut buffer).await.expect("a read"), 10);

    let [early, late] = [Wakes::new(), Wakes::new()];
    let mut sent = 0;
    loop {
        let bytes = Keyed(2).bytes(sent, 100_000);
        match io.poll_write(&mut early.context(), &[IoSlice::new(&bytes)]) {
            Poll::Ready(count) => sent += count.expect("a write") as u64,
            Poll::Pending => {
                let slices = [IoSlice::new(&bytes)];
                match io.poll_write(&mut late.context(), &slices) {
                    Poll::Ready(count) => sent += count.expect("a write") as u64,
                    Poll::Pending => break,
                }
            }
        }
    }
    let before = early.count();
    go.send(()).expect("the peer reads");
    eventually("room", || late.count() > 0).await;
    assert_eq!(early.count(), before, "the waker of a poll before was woken");
    poll_fn(|cx| io.poll_shutdown(cx)).await.expect("a shutdown");
    assert_eq!(peer.await, sent);
}

/// The peer is on the shard's own thread: nothing goes on meanwhile.
pub(crate) async fn after_a_flush_the_kernel_has_everything<T: Traits>() {
    let (mut io, peer) = beside::<T>().await;
    let (mut sent, mut received) = (Keyed(3).cursor(), Keyed(3).cursor());
    for length in [1, 100, 5000, 30_000] {
        write_all(&mut io, &sent.next(length)).await;
        poll_fn(|cx| io.poll_flush(cx)).await.expect("a flush");
        peer::expect(&peer, &mut received, length);
    }
}

pub(crate) async fn a_shutdown_sends_everything_and_then_the_end<T: Traits>() {
    let (mut io, peer) = beside::<T>().await;
    write_all(&mut io, &Keyed(4).bytes(0, 20_000)).await;
    poll_fn(|cx| io.poll_shutdown(cx)).await.expect("a shutdown");
    assert_eq!(peer::expect_until_end(&peer, &mut Keyed(4).cursor()), 20_000);
    let late = poll_fn(|cx| io.poll_write(cx, &[IoSlice::new(b"late")])).await;
    assert_eq!(late.expect_err("a write after the end").kind(), ErrorKind::BrokenPipe);
    // Reads go on.
    peer::send(&peer, &mut Keyed(5).cursor(), 10);
    assert_eq!(read(&mut io, &mut [0; 64]).await.expect("a read"), 10);
}

pub(crate) async fn what_a_send_failed_with_is_told_by_the_next_call<T: Traits>() {
    for way in 0..3 {
        let (go, wait) = channel::<()>();
        let (stream, peer) = with_peer(move |stream| {
            wait.recv().expect("the word to go");
            peer::reset(stream);
        })
        .await;
        let mut io = T::of(stream);
        while once(|cx| io.poll_write(cx, &[IoSlice::new(&[1; 100_000])])).is_ready() {}
        go.send(()).expect("the peer goes");
        peer.await;
        settle().await;
        let error = poll_fn(|cx| match way {
            0 => io.poll_write(cx, &[IoSlice::new(b"more")]).map_ok(drop),
            1 => io.poll_flush(cx),
            _ => io.poll_shutdown(cx),
        })
        .await
        .expect_err("the connection is broken");
        let broken = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        assert!(broken.contains(&error.kind()), "way {way}: {error}");
    }
}

pub(crate) async fn elsewhere_it_is_an_error_that_says_so<T: Traits>() {
    let (mut io, _peer) = beside::<T>().await;
    let elsewhere = thread::spawn(move || {
        [
            once(|cx| io.poll_read(cx, &mut [0; 8]).map_ok(drop)),
            once(|cx| io.poll_write(cx, &[IoSlice::new(b"away")]).map_ok(drop)),
            once(|cx| io.poll_flush(cx)),
            once(|cx| io.poll_shutdown(cx)),
        ]
    });
    for answer in elsewhere.join().expect("no panic elsewhere") {
        let Poll::Ready(Err(error)) = answer else { panic!("no error but {answer:?}") };
        assert!(error.to_string().contains("another shard"), "{error}");
    }
}

pub(crate) async fn a_round_allocates_nothing<T: Traits>() {
    let rounds = |count| (0..count).map(|_| 64);
    let (stream, peer) = with_peer(move |stream| {
        let (mut sent, mut received) = (Keyed(6).cursor(), Keyed(6).cursor());
        for length in rounds(1100) {
            peer::send(&stream, &mut sent, length);
            peer::expect(&stream, &mut received, length);
        }
    })
    .await;
    let mut io = T::of(stream);
    let mut buffer = [0; 64];
    let mut before = 0;
    for round in 0..1100 {
        if round == 100 {
            before = allocations();
        }
        assert_eq!(read(&mut io, &mut buffer).await.expect("a read"), 64);
        let (head, tail) = buffer.split_at(20);
        let slices = [IoSlice::new(head), IoSlice::new(tail)];
        assert_eq!(poll_fn(|cx| io.poll_write(cx, &slices)).await.expect("a write"), 64);
        poll_fn(|cx| io.poll_flush(cx)).await.expect("a flush");
    }
    let allocated = allocations() - before;
    // The shard's own lists may still grow, which does not happen again and again.
    assert!(allocated < 20, "{allocated} allocations in 1000 rounds");
    peer.await;
}

/// A connection whose peer is on this thread.
pub(crate) async fn beside<T: Traits>() -> (T, StdStream) {
    let (listener, addr) = listen().await;
    let peer = peer::connect(addr);
    let (stream, _) = listener.accept().await.expect("accept");
    (T::of(stream), peer)
}

pub(crate) async fn read<T: Traits>(io: &mut T, buffer: &mut [u8]) -> io::Result<usize> {
    poll_fn(|cx| io.poll_read(cx, buffer)).await
}

pub(crate) async fn write_all<T: Traits>(io: &mut T, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| io.poll_write(cx, &[IoSlice::new(bytes)])).await;
        bytes = &bytes[written.expect("a write")..];
    }
}

/// Polls one time, for nobody.
pub(crate) fn once<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(Waker::noop()))
}

/// Counts how often it is woken.
pub(crate) struct Wakes {
    waker: Waker,
    count: Arc<Count>,
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wakes {
    pub(crate) fn new() -> Wakes {
        let count = Arc::<Count>::default();
        Wakes { waker: Waker::from(Arc::clone(&count)), count }
    }

    pub(crate) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }

    pub(crate) fn count(&self) -> usize {
        self.count.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The system's allocator, which counts what each thread asks it for.
pub(crate) struct CountingAllocator;

// SAFETY: every call is the system allocator's.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends may allocate when its counter is gone.
        let _gone = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How often this thread has allocated.
fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}
