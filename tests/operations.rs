//! Operations that other crates write: what they own, whom they answer, and when they let go.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use annulus::buf::IoBufMut;
use annulus::runtime::{
    Completion, Entry, Fd, Interest, Multishot, MultishotOperation, Op, Operation, accept, carry,
    recv,
};
use annulus::task::yield_now;
use annulus::{Driver, driver_info};
use io_uring::{opcode, types};

use common::peer::{self, peer};
use common::process::{Scratch, example, open_descriptors};
use common::steps::{eventually, eventually_blocking, poll_once, settle};
use common::{each_driver, runtime};

mod common;

each_driver! {
    async fn a_dropped_operation_keeps_what_it_owns_until_its_last_answer() {
        let in_flight = driver_info().driver() == Driver::Uring;
        for submitted in [false, true] {
            let (fd, _other) = socket();
            let watch = Rc::<Watch>::default();
            let mut receiving = Op::new(Receive::new(fd, &watch));
            assert!(poll_once(Pin::new(&mut receiving)).await.is_pending());
            if submitted {
                settle().await;
            }
            drop(receiving);
            // On epoll the kernel holds nothing, so that nothing has to be kept.
            assert_eq!(watch.freed.get(), !in_flight, "the drop waited, or freed too early");
            eventually("the memory is given back", || watch.freed.get()).await;
            assert_eq!(watch.answered.get(), in_flight, "freed before the last answer");
        }
    }

    fn what_a_forgotten_operation_owns_is_never_freed(driver: Driver) {
        let watch = Rc::<Watch>::default();
        let runtime = runtime(driver);
        let (fd, mut other) = socket();
        runtime.block_on(async {
            let mut receiving = Op::new(Receive::new(fd, &watch));
            assert!(poll_once(Pin::new(&mut receiving)).await.is_pending());
            settle().await;
            std::mem::forget(receiving);
            other.write_all(b"into the forgotten memory").unwrap();
            settle().await;
        });
        drop(runtime);
        assert!(!watch.freed.get(), "freed what nobody had given back");
    }

    async fn what_a_busy_shard_gives_up_does_not_pile_up() {
        const EACH_TURN: usize = 100;
        let (fd, _other) = socket();
        let watch = Rc::<Watch>::default();
        for turn in 0..100 {
            for _ in 0..EACH_TURN {
                let mut receiving = Op::new(Receive::new(Rc::clone(&fd), &watch));
                assert!(poll_once(Pin::new(&mut receiving)).await.is_pending());
            }
            yield_now().await;
            let kept = Rc::strong_count(&watch);
            assert!(kept < 10 * EACH_TURN, "turn {turn}: {kept} operations are not given back");
        }
        eventually("all is given back", || Rc::strong_count(&watch) == 1).await;
    }

    async fn the_answer_of_a_dropped_operation_reaches_no_other() {
        for round in 0..300 {
            let ((old, mut old_other), (new, mut new_other)) = (socket(), socket());
            let watch = Rc::<Watch>::default();
            let mut receiving = Op::new(Receive::new(old, &watch));
            assert!(poll_once(Pin::new(&mut receiving)).await.is_pending());
            if round % 2 == 0 {
                yield_now().await;
            }
            old_other.write_all(b"old").unwrap();
            if round % 3 == 0 {
                yield_now().await;
            }
            drop(receiving);
            if round % 5 == 0 {
                yield_now().await;
            }
            let mut receiving = Op::new(Receive::new(new, &watch));
            assert!(poll_once(Pin::new(&mut receiving)).await.is_pending());
            new_other.write_all(b"new one").unwrap();
            assert_eq!(receiving.await.unwrap(), b"new one");
        }
    }

    // The entry waits in the queue and names a number. By the time the kernel takes it, the number
    // must not stand for another socket.
    async fn an_operation_dropped_before_it_was_submitted_touches_no_later_descriptor() {
        for _ in 0..50 {
            let (fd, _other) = socket();
            let watch = Rc::<Watch>::default();
            let mut receiving = Op::new(Receive::new(fd, &watch));
            assert!(poll_once(Pin::new(&mut receiving)).await.is_pending());
            drop(receiving);
            // One of these takes the number, as soon as it is free.
            let later: Vec<_> = (0..4)
                .map(|_| {
                    let (fd, mut other) = socket();
                    other.write_all(b"mine").unwrap();
                    (fd, other)
                })
                .collect();
            settle().await;
            for (fd, _other) in &later {
                let mut bytes = [MaybeUninit::uninit(); 8];
                assert_eq!(recv(fd.as_fd(), &mut bytes, 0).unwrap(), 4, "bytes were taken");
            }
        }
    }

    fn the_example_has_an_operation_of_its_own(driver: Driver) {
        let scratch = Scratch::new();
        let paths = ["empty", "sized", "missing"].map(|name| scratch.path(name));
        std::fs::write(&paths[0], b"").unwrap();
        std::fs::write(&paths[1], vec![0; 12_345]).unwrap();
        let mut command = Command::new(example("custom_operation"));
        let output = command.args(&paths).env("ANNULUS_DRIVER", driver.to_string()).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let [empty, sized, missing] = paths.each_ref().map(|path| path.display());
        let wanted = format!(
            "0 {empty}\n12345 {sized}\n{missing}: No such file or directory (os error 2)\n"
        );
        assert_eq!(text.split_once('\n').unwrap().1, wanted);
    }

    // A file has nothing that could be waited for: its call is made on the pool, or in the poll.
    async fn an_operation_without_a_descriptor_is_answered_wherever_it_is_carried() {
        let reading = || ReadZero { bytes: vec![7; 64], watch: Arc::new(AtomicBool::new(false)) };
        assert_eq!(carry(reading()).await.unwrap(), vec![0; 64]);
        assert_eq!(Op::new(reading()).await.unwrap(), vec![0; 64]);
        for _ in 0..200 {
            let operation = reading();
            let freed = Arc::clone(&operation.watch);
            let mut carried = Box::pin(carry(operation));
            let _early = poll_once(carried.as_mut()).await;
            drop(carried);
            eventually("the operation is disposed of", || freed.load(Ordering::Acquire)).await;
        }
    }

    #[alone]
    async fn an_accept_that_completed_unpolled_leaves_no_connection_behind() {
        let before = open_descriptors();
        for _ in 0..10 {
            let (listener, addr) = listener();
            let mut accepting = Op::new(AcceptOne(Rc::clone(&listener)));
            assert!(poll_once(Pin::new(&mut accepting)).await.is_pending());
            let client = peer(move || peer::connect(addr)).await;
            settle().await;
            drop(accepting);
            // On epoll the connection waits in the listener as before, and ends with it.
            drop(listener);
            peer(move || peer::expect_closed(&client)).await;
        }
        eventually("all descriptors are closed", || open_descriptors() <= before).await;
    }

    // All three have the same keys.
    #[alone]
    fn what_a_future_was_answered_is_disposed_of_though_it_outlives_its_runtime(driver: Driver) {
        let before = baseline(driver);
        let items = Rc::<Cell<usize>>::default();
        let outlive = || {
            runtime(driver).block_on(async {
                let ((first, addr), (second, other_addr)) = (listener(), listener());
                let mut one = Op::new(AcceptOne(first));
                assert!(poll_once(Pin::new(&mut one)).await.is_pending());
                let mut many = Multishot::new(AcceptMany(second, Rc::clone(&items), true));
                assert!(poll_fn(|cx| Poll::Ready(many.poll_next(cx))).await.is_pending());
                settle().await;
                let mut clients = connect(addr, 1).await;
                clients.extend(connect(other_addr, 3).await);
                settle().await;
                (one, many, clients)
            })
        };
        let outlived = [outlive(), outlive(), outlive()];
        for (one, many, clients) in outlived {
            drop((one, many));
            clients.iter().for_each(peer::expect_closed);
        }
        // Three connections each, and the end.
        assert_eq!(items.get(), if driver == Driver::Uring { 12 } else { 0 });
        eventually_blocking("all descriptors are closed", || open_descriptors() <= before);
    }

    #[alone]
    fn answers_nobody_took_are_disposed_of_once_at_the_end(driver: Driver) {
        let before = baseline(driver);
        for arrived in [false, true] {
            let runtime = runtime(driver);
            let clients = runtime.block_on(async {
                let (listener, addr) = listener();
                let items = Rc::<Cell<usize>>::default();
                let mut accepting = Multishot::new(AcceptMany(listener, Rc::clone(&items), false));
                let first = poll_fn(|cx| Poll::Ready(accepting.poll_next(cx))).await;
                assert!(first.is_pending());
                settle().await;
                let clients = connect(addr, 10).await;
                if arrived {
                    settle().await;
                    drop(poll_fn(|cx| accepting.poll_next(cx)).await.unwrap());
                    assert_eq!(items.get(), 1);
                }
                // Held by a task: the end of the runtime is what drops it.
                drop(annulus::spawn(async move {
                    let _accepting = accepting;
                    std::future::pending::<()>().await;
                }));
                yield_now().await;
                clients
            });
            drop(runtime);
            for client in &clients {
                peer::expect_closed(client);
            }
        }
        let closed = "every accepted descriptor is closed";
        eventually_blocking(closed, || open_descriptors() <= before);
    }
}

// The ring belongs to the thread that made it, and the kernel refuses all others.
#[test]
fn what_belongs_to_a_thread_cannot_leave_it() {
    // The inherent constant exists for what is `Send` only, and then hides the trait's.
    trait Bound {
        const STAYS: bool = true;
    }
    struct Of<T>(std::marker::PhantomData<T>);
    impl<T> Bound for Of<T> {}
    impl<T: Send> Of<T> {
        const STAYS: bool = false;
    }
    const {
        assert!(Of::<annulus::Runtime>::STAYS);
        assert!(Of::<Op<Receive>>::STAYS);
        assert!(Of::<Multishot<AcceptMany>>::STAYS);
        assert!(!Of::<annulus::net::TcpStream>::STAYS, "this takes everything for bound");
    }
}

fn socket() -> (Rc<Fd>, UnixStream) {
    let (ours, other) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Fd::new(OwnedFd::from(ours)), other)
}

fn listener() -> (Rc<Fd>, SocketAddr) {
    let (listener, addr) = peer::listen();
    listener.set_nonblocking(true).unwrap();
    (Fd::new(OwnedFd::from(listener)), addr)
}

async fn connect(addr: SocketAddr, count: usize) -> Vec<std::net::TcpStream> {
    peer(move || (0..count).map(|_| peer::connect(addr)).collect()).await
}

/// The descriptors that are open when a runtime has come and gone.
fn baseline(driver: Driver) -> usize {
    runtime(driver).block_on(peer(|| ()));
    open_descriptors()
}

/// What has become of an operation's memory.
#[derive(Default)]
struct Watch {
    answered: Cell<bool>,
    freed: Cell<bool>,
}

/// One receive into memory of its own.
struct Receive {
    fd: Rc<Fd>,
    bytes: Vec<u8>,
    watch: Rc<Watch>,
}

impl Receive {
    fn new(fd: Rc<Fd>, watch: &Rc<Watch>) -> Self {
        Self { fd, bytes: vec![0; 64], watch: Rc::clone(watch) }
    }
}

// SAFETY: the entry refers to the vector's memory on the heap, which nothing moves or frees before
// the operation goes.
unsafe impl Operation for Receive {
    type Output = io::Result<Vec<u8>>;

    fn entry(&mut self) -> Entry {
        let fd = types::Fd(self.fd.raw());
        opcode::Recv::new(fd, self.bytes.as_mut_ptr(), self.bytes.len() as u32).build()
    }

    fn call(&mut self) -> io::Result<u32> {
        // SAFETY: receiving writes bytes.
        let memory = unsafe { self.bytes.as_uninit() };
        recv(self.fd.as_fd(), memory, 0).map(|count| count as u32)
    }

    fn descriptor(&self) -> Option<&Rc<Fd>> {
        Some(&self.fd)
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn complete(mut self, result: io::Result<u32>) -> Self::Output {
        self.watch.answered.set(true);
        let bytes = std::mem::take(&mut self.bytes);
        result.map(|count| bytes[..count as usize].to_vec())
    }
}

impl Drop for Receive {
    fn drop(&mut self) {
        self.watch.freed.set(true);
    }
}

/// Reads zeros, of which there are enough.
struct ReadZero {
    bytes: Vec<u8>,
    watch: Arc<AtomicBool>,
}

fn zeros() -> i32 {
    static ZEROS: OnceLock<std::fs::File> = OnceLock::new();
    ZEROS.get_or_init(|| std::fs::File::open("/dev/zero").unwrap()).as_raw_fd()
}

// SAFETY: the entry refers to the vector's memory on the heap.
unsafe impl Operation for ReadZero {
    type Output = io::Result<Vec<u8>>;

    fn entry(&mut self) -> Entry {
        let (memory, length) = (self.bytes.as_mut_ptr(), self.bytes.len() as u32);
        opcode::Read::new(types::Fd(zeros()), memory, length).build()
    }

    fn call(&mut self) -> io::Result<u32> {
        let (memory, length) = (self.bytes.as_mut_ptr().cast(), self.bytes.len());
        // SAFETY: pointer and length describe the vector's memory.
        let count = unsafe { libc::read(zeros(), memory, length) };
        u32::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    unsafe fn complete(mut self, result: io::Result<u32>) -> Self::Output {
        result.map(|count| self.bytes.drain(..count as usize).collect())
    }
}

impl Drop for ReadZero {
    fn drop(&mut self) {
        self.bytes.fill(1);
        self.watch.store(true, Ordering::Release);
    }
}

/// Accepts one connection.
struct AcceptOne(Rc<Fd>);

// SAFETY: the entry refers to no memory.
unsafe impl Operation for AcceptOne {
    type Output = io::Result<OwnedFd>;

    fn entry(&mut self) -> Entry {
        let null = std::ptr::null_mut();
        opcode::Accept::new(types::Fd(self.0.raw()), null, std::ptr::null_mut()).build()
    }

    fn call(&mut self) -> io::Result<u32> {
        accept(self.0.as_fd()).map(|fd| fd.into_raw_fd() as u32)
    }

    fn descriptor(&self) -> Option<&Rc<Fd>> {
        Some(&self.0)
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn complete(self, result: io::Result<u32>) -> Self::Output {
        // SAFETY: the result is a descriptor made for us, handed over once.
        result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

/// Accepts connections, and counts those it was handed; the first item may panic.
struct AcceptMany(Rc<Fd>, Rc<Cell<usize>>, bool);

// SAFETY: the entry refers to no memory.
unsafe impl MultishotOperation for AcceptMany {
    type Item = io::Result<OwnedFd>;

    fn queued_max(&self) -> usize {
        1000
    }

    fn entry(&mut self) -> Entry {
        opcode::AcceptMulti::new(types::Fd(self.0.raw())).build()
    }

    fn call(&mut self) -> io::Result<Completion> {
        accept(self.0.as_fd()).map(|fd| Completion::from_call(fd.into_raw_fd() as u32))
    }

    fn descriptor(&self) -> &Rc<Fd> {
        &self.0
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn item(&mut self, completion: Completion) -> Self::Item {
        self.1.set(self.1.get() + 1);
        // SAFETY: the result is a descriptor made for us, handed over once.
        let item = completion.result().map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) });
        assert!(!std::mem::take(&mut self.2), "an item that panics");
        item
    }
}
