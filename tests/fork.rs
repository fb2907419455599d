//! Forked children: they harm nobody, and can start anew.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use annulus::buf::IoBuf;
use annulus::net::{TcpListener, TcpStream};
use annulus::runtime::{Fd, Interest, Op, Ready, not_ready};
use annulus::task::{spawn_blocking, yield_now};
use annulus::time::{sleep, timeout};
use annulus::{Driver, Runtime, Shard};

use common::bytes::{Cursor, Keyed};
use common::peer::{self, peer};
use common::process::{Forked, end_child, fork, fork_for, is_well};
use common::steps::{echo, listen, pair, poll_once, race, serve_echo, settle, with_peer};
use common::{each_driver, slower};

mod common;

each_driver! {
    #[alone]
    async fn a_child_that_ends_at_once_harms_no_connection() {
        let mut clients = Clients::connect(serve_echo().await);
        for _ in 0..5 {
            clients = clients.echo_around(|| fork_for(|| {})).await;
        }
        life_goes_on().await;
    }

    // The child says to all it has that it wants to use it, and drops it.
    #[alone]
    async fn what_a_child_does_with_its_copies_harms_no_connection() {
        let addr = serve_echo().await;
        let mut clients = Clients::connect(addr);
        let (mut ours, mut theirs) = pair().await;
        theirs.write_all(b"both").await.unwrap();
        let lease = ours.recv_lease().await.unwrap();
        let unread = poll_once(pin!(ours.read(&mut [0; 8])).as_mut()).await;
        assert!(unread.is_pending());
        let (listener, _) = listen().await;
        let mut timer = sleep(Duration::from_secs(60));
        assert!(poll_once(Pin::new(&mut timer)).await.is_pending());
        let handle = annulus::spawn(pending::<()>());
        let waker = std::future::poll_fn(|cx| std::task::Poll::Ready(cx.waker().clone())).await;
        // Into the child goes what it is to drop.
        let copies = RefCell::new(Some((ours, theirs, listener, timer, handle, lease, waker)));
        clients = clients
            .echo_around(|| {
                fork_for(|| {
                    let copies = copies.take().unwrap();
                    let (mut ours, theirs, listener, timer, mut handle, lease, waker) = copies;
                    refused(|| drop(annulus::spawn(async {})));
                    refused(|| drop(spawn_blocking(|| {})));
                    refused(|| drop(annulus::driver_info()));
                    refused(|| poll_now(sleep(Duration::ZERO)));
                    says_why(&poll_now(ours.read(&mut [0; 8])).unwrap_err());
                    says_why(&poll_now(ours.write(b"child")).unwrap_err());
                    says_why(&poll_now(listener.accept()).unwrap_err());
                    refused(|| drop(poll_now(TcpStream::connect(addr))));
                    assert!(poll_now(&mut handle).unwrap_err().is_cancelled());
                    handle.abort();
                    waker.wake();
                    drop((ours, theirs, listener, timer, handle, lease));
                })
            })
            .await;
        let (mut ours, mut theirs, listener, _timer, handle, lease, _waker) =
            copies.take().unwrap();
        assert_eq!(&*lease, b"both");
        drop(lease);
        assert!(!handle.is_finished());
        theirs.write_all(b"later").await.unwrap();
        let mut bytes = [0; 5];
        ours.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"later");
        let connected = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        drop((listener.accept().await.unwrap(), connected));
        clients.echo_around(|| fork_for(|| {})).await;
        life_goes_on().await;
    }

    #[alone]
    fn a_handle_to_a_task_that_had_not_arrived_tells_the_child_that_it_never_will(driver: Driver) {
        let runtime = common::runtime(driver);
        // The first shard stands still: nobody takes its mail.
        let mut handle = runtime.handle().spawn_with(|| async { 7 });
        let child = fork_for(|| {
            assert!(poll_now(&mut handle).unwrap_err().is_cancelled());
        });
        child.join();
        assert_eq!(runtime.block_on(handle).unwrap(), 7);
    }

    #[alone]
    fn a_child_that_returns_into_the_loop_is_told_why_it_ends(driver: Driver) {
        let runtime = common::runtime(driver);
        let this = std::process::id();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                let clients = Clients::connect(serve_echo().await);
                // It is ready and would be polled next.
                let next = annulus::spawn(async move {
                    yield_now().await;
                    if std::process::id() != this {
                        end_child(|| panic!("another task is polled in the child"));
                    }
                });
                let forking = annulus::spawn(async { fork() });
                let clients = clients.echo_around(|| fork_for(|| {})).await;
                forking.await.unwrap().expect("the child does not come here").join();
                next.await.unwrap();
                drop(clients);
                life_goes_on().await;
            });
        }));
        if std::process::id() == this {
            return ended.unwrap();
        }
        end_child(|| {
            says(ended.unwrap_err().downcast_ref::<String>().unwrap());
            refused(|| runtime.block_on(async {}));
            drop(runtime);
            works(driver);
        });
    }

    #[alone]
    fn a_child_forked_by_the_root_future_goes_on_with_its_output(driver: Driver) {
        let runtime = common::runtime(driver);
        let (client, mut served) = runtime.block_on(pair());
        let this = std::process::id();
        let forked = catch_unwind(AssertUnwindSafe(|| runtime.block_on(async { fork() })));
        if std::process::id() != this {
            end_child(|| {
                assert!(forked.unwrap().is_none());
                refused(|| runtime.block_on(async {}));
                drop((runtime, client, served));
                works(driver);
            });
        }
        forked.unwrap().expect("the child does not come here").join();
        runtime.block_on(async move {
            let echoing = annulus::spawn(echo(client));
            served.write_all(b"still there").await.unwrap();
            let mut bytes = [0; 11];
            served.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"still there");
            drop(served);
            echoing.await.unwrap().unwrap();
            life_goes_on().await;
        });
    }

    #[alone]
    fn a_child_has_runtimes_of_its_own(driver: Driver) {
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let mut clients = Clients::connect(serve_echo().await);
            // The parent's pool has a thread, which the child does not have.
            spawn_blocking(|| {}).await.unwrap();
            for _ in 0..3 {
                clients = clients
                    .echo_around(|| {
                        fork_for(|| {
                            works(driver);
                            works(driver);
                            // And so has the child's child.
                            fork_for(|| works(driver)).join();
                            works(driver);
                        })
                    })
                    .await;
            }
            life_goes_on().await;
        });
    }

    #[alone]
    fn a_fork_beside_a_sleeping_shard_leaves_it_alone(driver: Driver) {
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let addr = serve_echo().await;
            let clients = Clients::connect(addr);
            let (mut ours, mut theirs) = pair().await;
            let handle = annulus::spawn(async { pending::<()>().await });
            let abort = handle.abort_handle();
            let (tell, told) = channel();
            let waiting = peer(move || told.recv().unwrap());
            let forking = peer(move || {
                // The shard has nothing to do meanwhile but to wait for this thread.
                let copies = RefCell::new(Some((ours, tell)));
                let child = fork_for(|| {
                    let (mut ours, tell) = copies.take().unwrap();
                    says_why(&poll_now(ours.write(b"child")).unwrap_err());
                    abort.abort();
                    drop(ours);
                    works(driver);
                    // The thread that waits for it is not here.
                    tell.send(()).unwrap();
                });
                child.join();
                let (stream, tell) = copies.take().unwrap();
                ours = stream;
                tell.send(()).unwrap();
                ours
            });
            ours = forking.await;
            waiting.await;
            theirs.write_all(b"x").await.unwrap();
            assert_eq!(ours.read(&mut [0; 8]).await.unwrap(), 1);
            assert!(!handle.is_finished());
            clients.echo_around(|| fork_for(|| {})).await;
            life_goes_on().await;
        });
    }

    #[alone]
    async fn operations_dropped_in_a_child_stay_the_parents() {
        let (stream, mut other) = std::os::unix::net::UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let fd = Fd::new(stream.into());
        not_ready(&fd, Interest::Read).unwrap();
        let mut waiting = Op::new(Ready::new(Rc::clone(&fd), Interest::Read));
        assert!(poll_once(Pin::new(&mut waiting)).await.is_pending());
        settle().await;
        let copies = RefCell::new(Some((waiting, fd)));
        fork_for(|| {
            let (mut waiting, fd) = copies.take().unwrap();
            refused(|| drop(poll_now(&mut waiting)));
            drop(waiting);
            assert_eq!(Rc::strong_count(&fd), 1, "the operation is dropped, not kept");
            drop(fd);
        })
        .join();
        let (waiting, _fd) = copies.take().unwrap();
        io::Write::write_all(&mut other, b"x").unwrap();
        waiting.await.unwrap();
        life_goes_on().await;
    }

    // The child's copy has the bytes that are not sent, too, and shares the socket.
    #[alone]
    async fn a_stream_between_shards_that_a_child_drops_stays_its_parents() {
        for (full, attaches) in [(false, false), (false, true), (true, false), (true, true)] {
            let (tell, told) = channel::<()>();
            let (mut stream, peer) = with_peer(move |stream| {
                told.recv().unwrap();
                peer::expect_until_end(&stream, &mut Keyed(4).cursor())
            })
            .await;
            let mut written = 0;
            loop {
                let bytes = Keyed(4).bytes(written, 4096);
                match timeout(Duration::from_millis(20), stream.write(&bytes)).await {
                    Ok(count) => written += count.unwrap() as u64,
                    Err(_elapsed) => break,
                }
                if !full {
                    break;
                }
            }
            let copies = RefCell::new(Some(stream.detach().unwrap()));
            fork_for(|| {
                let copy = copies.take().unwrap();
                if attaches {
                    let runtime = common::runtime(Driver::Epoll);
                    runtime.block_on(async { TcpStream::attach(copy).map(drop).unwrap() });
                }
            })
            .join();
            let stream = TcpStream::attach(copies.take().unwrap()).unwrap();
            assert_eq!(stream.linger().unwrap(), None, "the child has set what a close does");
            drop(stream);
            tell.send(()).unwrap();
            assert_eq!(peer.await, written, "full: {full}, attaches: {attaches}");
        }
    }

    // It comes out of a drop, deep within the end, with copies of all that is still to be ended.
    #[alone]
    fn a_child_forked_at_the_end_of_a_runtime_leaves_the_rest_to_its_parent(driver: Driver) {
        for forking in [Forking::Task, Forking::Buffer, Forking::BufferLeft] {
            ends_with_a_fork(driver, forking);
        }
    }

    #[alone]
    async fn a_close_that_may_block_is_a_plain_one_in_a_child() {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = Fd::new(stream.into());
        fd.close_with(Some(|_closed| CLOSES.with(|closes| closes.set(closes.get() + 1))));
        let copies = RefCell::new(Some(fd));
        fork_for(|| {
            drop(copies.take());
            assert_eq!(CLOSES.get(), 0, "the child does what is its parent's to do");
        })
        .join();
        drop(copies);
        assert_eq!(CLOSES.take(), 1);
    }

    #[alone]
    async fn a_job_that_forks_ends_well_in_the_parent_and_at_once_in_the_child() {
        let this = std::process::id();
        let child = spawn_blocking(move || {
            let child = fork();
            if std::process::id() != this {
                // What it prints when it ends is not this test's failure.
                std::panic::set_hook(Box::new(|_| {}));
            }
            child
        });
        let child = child.await.unwrap().expect("the child does not come here");
        // As a process does whose last thread ends.
        assert_eq!(peer(move || child.wait()).await, 0);
        life_goes_on().await;
    }

    #[alone]
    fn a_fork_on_one_of_several_shards_leaves_all_of_them_alone(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).shards(3).build().unwrap();
        let shards = runtime.shards();
        runtime.block_on(async {
            let clients = Clients::connect(serve_echo().await);
            let there = shards[1].spawn_with(serve_echo).await.unwrap();
            let on_two = Clients::connect(there);
            let child = shards[1].spawn_with(|| async { fork() }).await.unwrap();
            // It returns into the loop of that shard, which is its only thread.
            let child = child.expect("the child does not come here");
            assert_eq!(peer(move || child.wait()).await, 0);
            let copies = shards.clone();
            let addressed = || {
                fork_for(|| {
                    for shard in &copies {
                        // Also the one that has not been started.
                        let ended = poll_now(shard.spawn_with(|| async {})).unwrap_err();
                        assert!(ended.is_cancelled());
                        says(&ended.to_string());
                    }
                    let own = Runtime::builder().driver(driver).shards(2).build().unwrap();
                    let far = own.shards()[1].spawn_with(|| async { 5 });
                    assert_eq!(own.block_on(far).unwrap(), 5);
                })
            };
            clients.echo_around(addressed).await;
            on_two.echo_around(|| fork_for(|| {})).await;
            assert_eq!(shards[2].spawn_with(|| async { 6 }).await.unwrap(), 6);
            life_goes_on().await;
        });
    }

    // The kernel reads which buffers are free from memory that a fork shares with the child, page
    // by page, until one of the two writes there. (On epoll there is nothing to read.)
    #[alone]
    fn the_pool_is_where_the_kernel_looks_for_it_after_a_fork(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).recv_pool(4, 4096).build().unwrap();
        runtime.block_on(async {
            let addr = serve_echo().await;
            peer(move || peer::echo(&peer::connect(addr), Keyed(1), 100)).await;
            let child = fork_for(pause);
            let dry = annulus::metrics().pool_dry;
            peer(move || {
                let client = peer::connect(addr);
                (0..100).for_each(|key| peer::echo(&client, Keyed(key), 100));
            })
            .await;
            assert_eq!(annulus::metrics().pool_dry, dry, "buffers given back are not found");
            child.kill();
        });
    }

    #[alone]
    fn programs_started_within_a_runtime_have_nothing_of_it(driver: Driver) {
        let without = program_sees(false);
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let clients = Clients::connect(serve_echo().await);
            let (_ours, _theirs) = pair().await;
            // Forked and spawned, as the standard library does either.
            for forked in [false, true] {
                assert_eq!(program_sees(forked), without, "from a task, forked: {forked}");
                let seen = spawn_blocking(move || program_sees(forked)).await.unwrap();
                assert_eq!(seen, without, "from the pool, forked: {forked}");
            }
            let status = spawn_blocking(|| Command::new("false").status()).await.unwrap();
            assert_eq!(status.unwrap().code(), Some(1));
            clients.echo_around(|| fork_for(|| {})).await;
            life_goes_on().await;
        });
    }

    // What a child holds is held: see the documentation of `Runtime`.
    #[alone]
    fn the_end_of_a_runtime_is_quick_though_a_child_lives(driver: Driver) {
        let runtime = common::runtime(driver);
        let (addr, clients) = runtime.block_on(async {
            let addr = serve_echo().await;
            let clients = Clients::connect(addr).echo_around(|| fork_for(|| {})).await;
            (addr, clients)
        });
        let child = fork_for(pause);
        let start = Instant::now();
        drop(runtime);
        let spent = start.elapsed();
        assert!(spent < Duration::from_secs(1), "the end took {spent:?}");
        let held = std::net::TcpListener::bind(addr).unwrap_err();
        assert_eq!(held.kind(), io::ErrorKind::AddrInUse, "{held}");
        for client in &clients.0 {
            client.stream.set_nonblocking(true).unwrap();
            let waits = io::Read::read(&mut &client.stream, &mut [0; 8]).unwrap_err();
            assert_eq!(waits.kind(), io::ErrorKind::WouldBlock, "{waits}");
            client.stream.set_nonblocking(false).unwrap();
        }
        child.kill();
        for client in &clients.0 {
            peer::expect_closed(&client.stream);
        }
        drop(std::net::TcpListener::bind(addr).unwrap());
    }
}

thread_local! {
    /// How often a descriptor was closed in the way that it was to be.
    static CLOSES: Cell<u32> = const { Cell::new(0) };
}

/// What forks when it is dropped.
#[derive(Clone, Copy, PartialEq)]
enum Forking {
    Task,
    /// That a task sends.
    Buffer,
    /// Of a send that outlives the runtime.
    BufferLeft,
}

/// Ends a runtime whose task forks when it is dropped, or the buffer that a task was sending, while
/// a stream has bytes that were not sent and another shard takes its time.
fn ends_with_a_fork(driver: Driver, forking: Forking) {
    let runtime = Runtime::builder().driver(driver).shards(2).build().unwrap();
    let this = std::process::id();
    let (tell, told) = channel();
    let (stays, is_over) = channel::<()>();
    let mut left: Option<Pin<Box<dyn Future<Output = ()>>>> = None;
    let (stream, peer, deaf, written) = runtime.block_on(async {
        let (mut ours, deaf) = pair().await;
        let elsewhere = Shard::all()[1].spawn_with(move || async move {
            let late = OnDrop(move || is_over.recv().unwrap_or_default());
            annulus::spawn(async move {
                let _late = late;
                pending::<()>().await;
            });
        });
        elsewhere.await.unwrap();
        let (mut stream, peer) = with_peer(move |stream| {
            let status: i32 = told.recv().unwrap();
            (status, peer::expect_until_end(&stream, &mut Keyed(5).cursor()))
        })
        .await;
        let mut written = 0;
        let sending = async {
            loop {
                let bytes = Keyed(5).bytes(written, 4096);
                written += stream.write(&bytes).await.unwrap() as u64;
            }
        };
        timeout(Duration::from_millis(50), sending).await.unwrap_err();
        let mut stays = Some(stays);
        // Only then does the peer read, and the other shard end.
        let forks = OnDrop(move || {
            if let Some(child) = fork() {
                tell.send(child.wait()).expect("the peer waits for it");
                drop(stays.take());
            }
        });
        let mut end = Box::pin(async move {
            if forking == Forking::Task {
                let _forks = forks;
                pending::<()>().await;
            } else {
                let buffer = Buffer { bytes: vec![7; 16 << 20], _dropped: forks };
                drop(ours.send_all(buffer).await);
            }
        });
        if forking == Forking::BufferLeft {
            assert!(poll_once(end.as_mut()).await.is_pending());
            left = Some(end);
        } else {
            annulus::spawn(end);
        }
        settle().await;
        (stream, peer, deaf, written)
    });
    let start = Instant::now();
    let ended = catch_unwind(AssertUnwindSafe(|| drop(runtime)));
    if std::process::id() != this {
        end_child(|| {
            ended.unwrap();
            let took = start.elapsed();
            assert!(took < Duration::from_secs(2) * slower(), "it waits for threads: {took:?}");
            drop((stream, deaf, left));
            if forking == Forking::Task {
                // Else the parent waits for this child within the second that its end may take.
                works(driver);
            }
        });
    }
    ended.unwrap();
    let (status, received) = peer.join();
    assert!(is_well(status), "the child ended with the wait status {status:#x}");
    assert_eq!(received, written);
    drop((stream, deaf, left));
}

/// A buffer whose drop does something.
struct Buffer<F: FnMut() + 'static> {
    bytes: Vec<u8>,
    _dropped: OnDrop<F>,
}

// SAFETY: the bytes are on the heap and never change.
unsafe impl<F: FnMut() + 'static> IoBuf for Buffer<F> {
    fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Connections to an echo server, with bytes under way.
struct Clients(Vec<Client>);

struct Client {
    stream: StdStream,
    sent: Cursor,
    received: Cursor,
}

impl Clients {
    fn connect(addr: SocketAddr) -> Clients {
        let client = |key| Client {
            stream: peer::connect(addr),
            sent: Keyed(key).cursor(),
            received: Keyed(key).cursor(),
        };
        Clients((0..CLIENTS).map(client).collect())
    }

    /// Sends on every connection, forks, and checks that every byte comes back, those sent before
    /// and those sent after; then waits for the child.
    async fn echo_around(self, fork: impl FnOnce() -> Forked) -> Clients {
        let mut clients = self.0;
        let (clients, sent) = {
            let sending = peer(move || {
                for client in &mut clients {
                    peer::send(&client.stream, &mut client.sent, BYTES);
                }
                clients
            });
            (sending.await, BYTES)
        };
        // Some of it is received, echoed and sent by now, some is not.
        yield_now().await;
        let child = fork();
        let mut clients = clients;
        peer(move || {
            for client in &mut clients {
                peer::send(&client.stream, &mut client.sent, BYTES);
                peer::expect(&client.stream, &mut client.received, sent + BYTES);
            }
            child.join();
            for client in &mut clients {
                peer::send(&client.stream, &mut client.sent, BYTES);
                peer::expect(&client.stream, &mut client.received, BYTES);
            }
            Clients(clients)
        })
        .await
    }
}

const CLIENTS: u64 = 100;
/// More than one buffer, and less than a socket holds.
const BYTES: usize = 6000;

/// Timers, wakes from other threads, blocking jobs and new connections work on this shard.
async fn life_goes_on() {
    let start = Instant::now();
    sleep(Duration::from_millis(5)).await;
    assert!(start.elapsed() >= Duration::from_millis(5));
    peer(|| {}).await;
    assert_eq!(spawn_blocking(|| 42).await.unwrap(), 42);
    let (mut stream, client) = with_peer(|stream| peer::echo(&stream, Keyed(7), 10_000)).await;
    let mut buf = [0; 4096];
    let echoing = async {
        loop {
            match stream.read(&mut buf).await.unwrap() {
                0 => break,
                n => stream.write_all(&buf[..n]).await.unwrap(),
            }
        }
    };
    race(echoing, client).await;
}

/// A runtime that is made here works.
fn works(driver: Driver) {
    let runtime = Runtime::builder().driver(driver).build().unwrap();
    runtime.block_on(async {
        assert_eq!(annulus::driver_info().driver(), driver);
        let addr = serve_echo().await;
        peer(move || peer::echo(&peer::connect(addr), Keyed(3), 200_000)).await;
        // Resolved by the blocking pool.
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        drop(listener);
        life_goes_on().await;
    });
}

/// The descriptors of a program that is started here, its pipes to us left out.
fn program_sees(forked: bool) -> Vec<String> {
    // The shell expands the pattern itself: nothing but its own descriptors is open.
    let list = "for fd in /proc/$$/fd/*; do readlink $fd; done";
    let mut shell = Command::new("sh");
    shell.args(["-c", list]);
    if forked {
        // With something to do in between there is a fork, where there is a posix_spawn otherwise.
        // SAFETY: the closure does nothing.
        unsafe { shell.pre_exec(|| Ok(())) };
    }
    let output = shell.output().expect("run a shell");
    let text = String::from_utf8(output.stdout).expect("paths are text here");
    text.lines().filter(|line| !line.starts_with("pipe:")).map(str::to_owned).collect()
}

/// Lives until it is killed.
fn pause() {
    loop {
        // SAFETY: no pointers.
        unsafe { libc::pause() };
    }
}

/// Polls a future that must not wait.
fn poll_now<F: Future>(future: F) -> F::Output {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("a future of the parent waits in the child"),
    }
}

/// The call panics, and says that a fork is the reason.
#[track_caller]
fn refused(call: impl FnOnce()) {
    let payload = catch_unwind(AssertUnwindSafe(call)).expect_err("it works in the child");
    says(payload.downcast_ref::<String>().expect("a text"));
}

#[track_caller]
fn says_why(error: &io::Error) {
    says(&error.to_string());
}

#[track_caller]
fn says(text: &str) {
    assert!(text.contains("no runtime survives fork(2)"), "{text}");
}
