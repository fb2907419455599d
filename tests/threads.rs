//! Threads that end with a runtime on them.

use std::any::Any;
use std::cell::RefCell;
use std::future::{pending, poll_fn};
use std::io::Read;
use std::mem::forget;
use std::net::TcpStream as StdStream;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use annulus::Runtime;
use annulus::net::{TcpListener, TcpStream};
use annulus::task::spawn_blocking;
use annulus::time::sleep;

use common::each_driver;
use common::peer;
use common::process::open_descriptors;
use common::steps::{eventually_blocking, pair, poll_once, serve_echo, settle};

mod common;

each_driver! {
    #[alone]
    fn a_runtime_in_a_thread_local_ends_with_its_thread(driver: Driver) {
        drop(common::runtime(driver));
        let before = open_descriptors();
        for order in 0..4 {
            let thread = thread::spawn(move || {
                // Before the runtime, after it, or both: thread-locals end in some order.
                if order & 1 == 0 {
                    HELD.with_borrow_mut(|_| {});
                }
                RUNTIME.with_borrow_mut(|runtime| *runtime = Some(common::runtime(driver)));
                RUNTIME.with_borrow(|runtime| {
                    let runtime = runtime.as_ref().unwrap();
                    let (held, client) = runtime.block_on(busy());
                    if order & 2 == 0 {
                        runtime.block_on(settle());
                    }
                    HELD.with_borrow_mut(|all| all.push(Box::new(held)));
                    client
                })
            });
            let mut client = thread.join().unwrap();
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, b"unsent");
        }
        // The pool's thread may still be at its job.
        eventually_blocking("all descriptors closed", || open_descriptors() == before);
    }

    #[alone]
    fn a_runtime_that_is_forgotten_on_a_thread_that_ends_harms_nobody(driver: Driver) {
        drop(common::runtime(driver));
        for _ in 0..3 {
            let before = open_descriptors();
            let thread = thread::spawn(move || {
                let runtime = common::runtime(driver);
                let (held, client) = runtime.block_on(busy());
                runtime.block_on(settle());
                forget(runtime);
                let Held { stream, listener, lease, handle, waker, .. } = held;
                (stream, listener, lease, handle, waker, client)
            });
            let (mut stream, listener, lease, handle, waker, client) = thread.join().unwrap();
            // The loop is gone for good: nothing is done any more, and nothing breaks.
            waker.wake_by_ref();
            thread::spawn(move || waker.wake()).join().unwrap();
            handle.abort();
            assert!(!handle.is_finished());
            let mut handle = handle;
            let mut cx = Context::from_waker(Waker::noop());
            assert!(pin!(&mut handle).poll(&mut cx).is_pending());
            common::runtime(driver).block_on(async {
                let error = stream.write(b"x").await.unwrap_err();
                assert!(error.to_string().contains("another shard"), "{error}");
                let error = listener.accept().await.unwrap_err();
                assert!(error.to_string().contains("another shard"), "{error}");
                let addr = serve_echo().await;
                let echo = peer::peer(move || {
                    peer::echo(&peer::connect(addr), common::bytes::Keyed(5), 50_000);
                });
                echo.await;
            });
            assert_eq!(&*lease, b"lent");
            drop((stream, listener, lease, handle));
            drop(client);
            // Open as long as the process, since nobody is left to close them. A waker that is at
            // work still has the eventfd of the runtime that has ended.
            eventually_blocking("no descriptor but the forgotten ones is left", || {
                open_descriptors() == before + FORGOTTEN
            });
        }
    }
}

/// The driver's descriptor, the eventfd, the listener and three streams.
const FORGOTTEN: usize = 6;

thread_local! {
    static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
    static HELD: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// What a runtime's user may still have when the thread ends.
struct Held {
    stream: TcpStream,
    listener: TcpListener,
    lease: annulus::buf::Lease,
    handle: annulus::JoinHandle<()>,
    waker: Waker,
    _timer: annulus::time::Sleep,
}

/// Spawns and wakes when it is dropped.
struct Busy(Waker);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.wake_by_ref();
        // While the thread ends there may be no runtime any more to spawn on.
        if annulus::runtime::check_runtime().is_ok() {
            drop(annulus::spawn(pending::<()>()));
        }
    }
}

/// Leaves something of every kind under way. Also gives the other end of a connection.
async fn busy() -> (Held, StdStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let client = peer::connect(addr);
    let (mut stream, _) = listener.accept().await.unwrap();
    std::io::Write::write_all(&mut &client, b"lent").unwrap();
    let lease = stream.recv_lease().await.unwrap();
    assert!(poll_once(pin!(stream.read(&mut [0; 8])).as_mut()).await.is_pending());
    assert!(poll_once(pin!(listener.accept()).as_mut()).await.is_pending());
    stream.write_all(b"unsent").await.unwrap();
    let mut timer = sleep(Duration::from_secs(60));
    assert!(poll_once(pin!(&mut timer)).await.is_pending());
    let both_ends = pair().await;
    let handle = annulus::spawn(async {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let _busy = (Busy(waker), both_ends);
        pending::<()>().await;
    });
    drop(spawn_blocking(|| thread::sleep(Duration::from_millis(20))));
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    (Held { stream, listener, lease, handle, waker, _timer: timer }, client)
}
