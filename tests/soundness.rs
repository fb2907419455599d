//! Operations on the wrong runtime, an end that unwinds, and bytes under the smallest limits.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use annulus::buf::IoBufMut;
use annulus::runtime::{
    Completion, Entry, Fd, Homed, Interest, Multishot, MultishotOperation, Op, Operation, Ready,
    ReceivePooled, Release, Resident, not_ready, recv,
};
use annulus::time::timeout;
use annulus::{Driver, Runtime};

use common::bytes::{Keyed, Numbers};
use common::peer;
use common::steps::{poll_once, settle, with_peer};
use common::{each_driver, runtime, slower};

mod common;

each_driver! {
    fn an_end_that_unwinds_frees_nothing_in_flight(driver: Driver) {
        for in_drop in [false, true] {
            let freed_early = Arc::new(AtomicBool::new(false));
            let runtime = runtime(driver);
            let (fd, _other) = socket();
            runtime.block_on(async {
                let operation = Receive { fd, payload: Payload::new(&freed_early) };
                let panics = Homed::new(|_| Panics { in_drop }).unwrap();
                let holds = Homed::new(|_| Holds(RefCell::new(Op::new(operation)))).unwrap();
                let held = holds.get().unwrap();
                poll_fn(|cx| {
                    assert!(Pin::new(&mut *held.0.borrow_mut()).poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
                settle().await;
                // Residents until the runtime ends.
                std::mem::forget((panics, holds));
            });
            // Whether the panic comes out is not what is asked here.
            drop(catch_unwind(AssertUnwindSafe(move || drop(runtime))));
            // On epoll the kernel holds no memory.
            let early = driver == Driver::Uring && freed_early.load(Ordering::Relaxed);
            assert!(!early, "in_drop {in_drop}: freed what the kernel may still write to");
        }
    }

    fn a_waker_that_panics_when_it_is_dropped_frees_nothing_in_flight(driver: Driver) {
        let freed_early = Arc::new(AtomicBool::new(false));
        let runtime = runtime(driver);
        let (fd, _other) = socket();
        runtime.block_on(async {
            let payload = Payload::new(&freed_early);
            let mut receives = Multishot::new(Receives(Receive { fd, payload }));
            let waker = Waker::from(Arc::new(PanicsAtLast));
            assert!(receives.poll_next(&mut Context::from_waker(&waker)).is_pending());
            drop(waker);
            settle().await;
            assert!(!freed_early.load(Ordering::Relaxed));
            drop(catch_unwind(AssertUnwindSafe(|| drop(receives))));
            let early = driver == Driver::Uring && freed_early.load(Ordering::Relaxed);
            assert!(!early, "freed what the kernel may still write to");
        });
        let start = Instant::now();
        drop(runtime);
        // Otherwise it waits for an answer that has come.
        assert!(start.elapsed() < Duration::from_millis(500) * slower(), "{:?}", start.elapsed());
    }

    fn an_operation_in_flight_never_waits_within_another_runtime(driver: Driver) {
        let (home, away) = (runtime(driver), runtime(driver));
        let (fd, _other) = socket();
        let mut operation = Op::new(Ready::new(Rc::clone(&fd), Interest::Read));
        home.block_on(async {
            not_ready(&fd, Interest::Read).unwrap();
            assert!(poll_once(Pin::new(&mut operation)).await.is_pending());
        });
        assert_says_so(|| {
            away.block_on(poll_once(Pin::new(&mut operation))).map(|answer| answer.map(drop))
        });
    }

    fn a_multishot_in_flight_is_never_taken_for_one_of_another_runtime(driver: Driver) {
        let (home, away) = (runtime(driver), runtime(driver));
        let (fd, _other) = socket();
        let mut receives = home.block_on(async {
            let mut receives = Multishot::new(ReceivePooled::new(fd));
            poll_fn(|cx| Poll::Ready(receives.poll_next(cx).is_pending())).await;
            receives
        });
        let (fd, _other_away) = socket();
        away.block_on(async {
            // What has the same place there as the multishot has at home.
            let mut there = Op::new(Ready::new(fd, Interest::Read));
            not_ready(there.operation().unwrap().descriptor().unwrap(), Interest::Read).unwrap();
            assert!(poll_once(Pin::new(&mut there)).await.is_pending());
            if driver == Driver::Uring {
                assert_names_another_runtime(|| {
                    let _armed = receives.is_armed();
                });
                assert_names_another_runtime(|| receives.stop());
                assert_names_another_runtime(|| receives.stop_now());
                assert_names_another_runtime(|| drop(receives.pop()));
            } else {
                assert!(receives.pop().is_none());
            }
            assert!(poll_once(Pin::new(&mut there)).await.is_pending());
        });
        assert_says_so(|| {
            let next = poll_fn(|cx| Poll::Ready(receives.poll_next(cx)));
            away.block_on(next).map(|answer| answer.map(drop))
        });
    }

    fn a_pooled_receive_never_fills_buffers_of_another_runtime(driver: Driver) {
        let (home, away) = (runtime(driver), runtime(driver));
        let (fd, mut other) = socket();
        let mut receives = home.block_on(async { Multishot::new(ReceivePooled::new(fd)) });
        other.write_all(b"hello").unwrap();
        let received = catch_unwind(AssertUnwindSafe(|| {
            let next = timeout(Duration::from_secs(5), poll_fn(|cx| receives.poll_next(cx)));
            away.block_on(next).expect("it does not wait").map(|bytes| bytes.unwrap().to_vec())
        }));
        match received {
            // By a system call, into its own pool.
            Ok(Ok(bytes)) => assert_eq!((driver, &bytes[..]), (Driver::Epoll, &b"hello"[..])),
            Ok(Err(error)) => panic!("refused without a clear text: {error}"),
            Err(panic) => {
                let text = text_of(&*panic);
                assert!(text.contains("shard where it was made"), "unclear: {text}");
            }
        }
    }

    #[deadline_s(120)]
    fn forty_streams_on_four_small_buffers_keep_every_byte(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).recv_pool(4, 256).build().unwrap();
        runtime.block_on(async {
            let mut readers = Vec::new();
            for index in 0..40 {
                let key = Keyed(7000 + index);
                let (mut stream, peer) = with_peer(move |stream| {
                    let (mut sent, mut sizes) = (key.cursor(), Numbers(index));
                    while sent.offset < TINY_POOL_BYTES {
                        let rest = TINY_POOL_BYTES - sent.offset;
                        peer::send(&stream, &mut sent, (1 + sizes.below(3000)).min(rest) as usize);
                    }
                })
                .await;
                readers.push(annulus::spawn(async move {
                    let mut received = key.cursor();
                    let mut buf = vec![0; 300 + 37 * (index as usize % 19)];
                    for turn in 0.. {
                        if turn % 5 == 0 {
                            let mut shown = [0; 16];
                            let peek = stream.peek(&mut shown);
                            if let Ok(Ok(n)) = timeout(Duration::from_micros(10), peek).await {
                                key.check(received.offset, &shown[..n]);
                            }
                        }
                        match timeout(Duration::from_millis(3), stream.read(&mut buf)).await {
                            Err(_) => {}
                            Ok(Ok(0)) => break,
                            Ok(read) => received.check(&buf[..read.unwrap()]),
                        }
                    }
                    assert_eq!(received.offset, TINY_POOL_BYTES);
                    peer.await;
                }));
            }
            for reader in readers {
                timeout(STALLED * slower(), reader).await.expect("it stalls").unwrap();
            }
        });
    }

    #[deadline_s(120)]
    async fn interrupted_flushes_between_small_and_large_writes_lose_no_byte() {
        let mut writers = Vec::new();
        for index in 0..20 {
            let key = Keyed(8000 + index);
            let (mut stream, peer) = with_peer(move |stream| {
                peer::expect_until_end(&stream, &mut key.cursor())
            })
            .await;
            writers.push(annulus::spawn(async move {
                let (mut sent, mut sizes) = (key.cursor(), Numbers(index));
                for turn in 0..300 {
                    let len = if turn % 50 == 0 { 100_000 } else { 1 + sizes.below(9000) };
                    stream.write_all(&sent.next(len as usize)).await.unwrap();
                    if turn % 11 == 0 {
                        // In time or not: the bytes stay.
                        drop(timeout(Duration::from_micros(50), stream.flush()).await);
                    }
                }
                if index % 2 == 0 {
                    stream.shutdown().await.unwrap();
                }
                drop(stream);
                assert_eq!(peer.await, sent.offset);
            }));
        }
        for writer in writers {
            timeout(STALLED * slower(), writer).await.expect("it stalls").unwrap();
        }
    }
}

/// Fails where the first poll elsewhere waits, or fails without saying why.
fn assert_says_so(poll: impl FnOnce() -> Poll<io::Result<()>>) {
    match catch_unwind(AssertUnwindSafe(poll)) {
        Ok(Poll::Ready(Err(error))) => assert!(
            error.to_string().contains("another runtime"),
            "it fails, and does not say why: {error}"
        ),
        Ok(answer) => panic!("it goes on within another runtime: {answer:?}"),
        Err(panic) => {
            let text = text_of(&*panic);
            assert!(text.contains("another runtime"), "it panics with: {text}");
        }
    }
}

fn assert_names_another_runtime(call: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(call)).expect_err("it goes on");
    let text = text_of(&*panic);
    assert!(text.contains("another runtime"), "it panics with: {text}");
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn socket() -> (Rc<Fd>, UnixStream) {
    let (ours, other) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Fd::new(OwnedFd::from(ours)), other)
}

/// A receive into memory that knows whether the kernel is done with it.
struct Receive {
    fd: Rc<Fd>,
    payload: Payload,
}

// SAFETY: the entry refers to the payload's heap memory, which nothing moves or frees before.
unsafe impl Operation for Receive {
    type Output = ();

    fn entry(&mut self) -> Entry {
        let bytes = &mut self.payload.bytes;
        let fd = io_uring::types::Fd(self.fd.raw());
        io_uring::opcode::Recv::new(fd, bytes.as_mut_ptr(), bytes.len() as u32).build()
    }

    fn call(&mut self) -> io::Result<u32> {
        // SAFETY: receiving writes bytes.
        let memory = unsafe { self.payload.bytes.as_uninit() };
        recv(self.fd.as_fd(), memory, 0).map(|count| count as u32)
    }

    fn descriptor(&self) -> Option<&Rc<Fd>> {
        Some(&self.fd)
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn complete(mut self, _result: io::Result<u32>) {
        self.payload.answered = true;
    }
}

struct Payload {
    bytes: Vec<u8>,
    answered: bool,
    freed_early: Arc<AtomicBool>,
}

impl Payload {
    fn new(freed_early: &Arc<AtomicBool>) -> Self {
        Self { bytes: vec![0; 64], answered: false, freed_early: Arc::clone(freed_early) }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if !self.answered {
            self.freed_early.store(true, Ordering::Relaxed);
        }
    }
}

/// The same as a request of many answers, which is armed again behind each.
struct Receives(Receive);

// SAFETY: as above.
unsafe impl MultishotOperation for Receives {
    type Item = ();

    fn queued_max(&self) -> usize {
        1
    }

    fn entry(&mut self) -> Entry {
        Operation::entry(&mut self.0)
    }

    fn call(&mut self) -> io::Result<Completion> {
        Operation::call(&mut self.0).map(Completion::from_call)
    }

    fn descriptor(&self) -> &Rc<Fd> {
        &self.0.fd
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn item(&mut self, _completion: Completion) {
        self.0.payload.answered = true;
    }
}

struct PanicsAtLast;

impl Wake for PanicsAtLast {
    fn wake(self: Arc<Self>) {}
}

impl Drop for PanicsAtLast {
    fn drop(&mut self) {
        panic!("a waker that panics when it is dropped");
    }
}

struct Holds(RefCell<Op<Receive>>);

impl Resident for Holds {}

struct Panics {
    in_drop: bool,
}

impl Resident for Panics {
    fn release(self: Rc<Self>) -> Release {
        assert!(self.in_drop, "a resident that panics when it is released");
        Release::Depart
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        assert!(!self.in_drop, "a resident that panics when it is dropped");
    }
}

/// What takes as long goes on no more.
const STALLED: Duration = Duration::from_secs(60);
const TINY_POOL_BYTES: u64 = 60_000;
