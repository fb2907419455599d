//! A runtime within a loop that is not its own: what comes shows at its descriptor, nothing else
//! does, and nothing is lost between two turns.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use annulus::net::UnixStream;
use annulus::task::{JoinSet, spawn_blocking, yield_now};
use annulus::time::{self, sleep};
use annulus::{JoinHandle, Outlook, Runtime, Shard};

use common::bytes::Keyed;
use common::each_driver;
use common::peer::{self, peer};
use common::process::{Running, cpu_ms, example};
use common::steps::{echo, listen, pair, poll_once};

mod common;

each_driver! {
    fn wakes_from_other_threads_show_at_the_descriptor(driver: Driver) {
        for outer in [Outer::level(), Outer::edge()] {
            let runtime = common::runtime(driver);
            let _outlook = runtime.turn();
            let handle = runtime.handle();
            // Each is answered before the next: none can be hidden by another's wake.
            let sender = peer(move || {
                for number in 0..2_000 {
                    let (tell, told) = mpsc::channel();
                    let answer = handle.spawn_with(move || async move {
                        spawn_blocking(move || number).await.unwrap()
                    });
                    thread::spawn(move || {
                        tell.send(block_on_foreign(answer).unwrap()).expect("somebody waits");
                    });
                    assert_eq!(told.recv_timeout(peer::patience()), Ok(number));
                }
            });
            outer.finish(&runtime, runtime.spawn(sender));
        }
    }

    fn sockets_are_served(driver: Driver) {
        for outer in [Outer::level(), Outer::edge()] {
            let runtime = common::runtime(driver);
            let serving = runtime.spawn(async {
                let (listener, addr) = listen().await;
                annulus::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        drop(annulus::spawn(echo(stream)));
                    }
                });
                addr
            });
            let addr = outer.finish(&runtime, serving);
            let peers: Vec<_> = (0..8)
                .map(|key| {
                    peer(move || {
                        for round in 0..20 {
                            let stream = peer::connect(addr);
                            peer::echo(&stream, Keyed(key * 100 + round), 20_000);
                        }
                    })
                })
                .collect();
            for peer in peers {
                outer.finish(&runtime, runtime.spawn(peer));
            }
        }
    }

    fn timers_fire_when_they_are_due(driver: Driver) {
        for outer in [Outer::level(), Outer::edge()] {
            let runtime = common::runtime(driver);
            let timers = runtime.spawn(async {
                let began = Instant::now();
                let sleeps: Vec<_> = (1..=50_u32)
                    .map(|number| {
                        annulus::spawn(async move {
                            let wanted = Duration::from_micros(700) * number;
                            sleep(wanted).await;
                            began.elapsed().checked_sub(wanted).expect("a timer was early")
                        })
                    })
                    .collect();
                let mut latest = Duration::ZERO;
                for sleep in sleeps {
                    latest = latest.max(sleep.await.unwrap());
                }
                latest
            });
            let latest = outer.finish(&runtime, timers);
            assert!(latest < Duration::from_secs(1), "a timer was {latest:?} late");
            assert!(settled(&runtime).deadline().is_none(), "a deadline without a timer");
        }
    }

    fn what_came_before_the_descriptor_was_asked_for_shows(driver: Driver) {
        for outer in [Outer::level(), Outer::edge()] {
            let runtime = common::runtime(driver);
            let (ours, mut theirs) = StdUnixStream::pair().unwrap();
            let reading = runtime.spawn(async move {
                UnixStream::from_std(ours).unwrap().read_exact(&mut [0]).await.unwrap();
            });
            for _ in 0..10 {
                let _outlook = settled(&runtime);
            }
            theirs.write_all(&[1]).unwrap();
            assert!(outer.is_ready(&runtime, None));
            outer.finish(&runtime, reading);
        }
    }

    // A loop that comes by once in a frame would hold it back for a frame.
    fn what_a_turn_writes_leaves_with_it(driver: Driver) {
        let runtime = common::runtime(driver);
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        let writing = runtime.spawn(async move {
            let mut stream = UnixStream::from_std(ours).unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream
        });
        let _outlook = runtime.turn();
        theirs.set_read_timeout(Some(peer::patience())).unwrap();
        theirs.read_exact(&mut [0; 5]).unwrap();
        drop(Outer::level().finish(&runtime, writing));
    }

    // More than the waits of a turn bring on epoll, all but the last for nobody: no task that is
    // ready would have another turn taken.
    fn what_one_turn_does_not_take_makes_another_due(driver: Driver) {
        for outer in [Outer::level(), Outer::edge()] {
            let runtime = common::runtime(driver);
            let mut pairs: Vec<_> = (0..1400).map(|_| StdUnixStream::pair().unwrap()).collect();
            let (last, mut of_last) = pairs.pop().unwrap();
            let (near, far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let given_up = runtime.spawn(async {
                let mut tasks = JoinSet::new();
                for stream in near {
                    tasks.spawn(async move {
                        let mut stream = UnixStream::from_std(stream).unwrap();
                        let waited = poll_once(pin!(stream.read(&mut [0])).as_mut()).await;
                        assert!(waited.is_pending());
                        stream
                    });
                }
                let mut streams = Vec::new();
                while let Some(stream) = tasks.join_next().await {
                    streams.push(stream.unwrap());
                }
                streams
            });
            let _kept = outer.finish(&runtime, given_up);
            let reading = runtime.spawn(async move {
                UnixStream::from_std(last).unwrap().read_exact(&mut [0]).await.unwrap();
            });
            while settled(&runtime).is_due() || outer.is_ready(&runtime, Some(SHORT)) {}
            far.iter().for_each(|mut theirs| theirs.write_all(&[1]).unwrap());
            of_last.write_all(&[1]).unwrap();
            // The one edge that all of this makes.
            assert!(outer.is_ready(&runtime, None));
            outer.finish(&runtime, reading);
        }
    }

    // The outer loop has other things to do, and takes its time.
    fn a_slow_loop_loses_nothing(driver: Driver) {
        for outer in [Outer::level(), Outer::edge()] {
            let runtime = common::runtime(driver);
            let addr = outer.finish(&runtime, runtime.spawn(async {
                let (listener, addr) = listen().await;
                annulus::spawn(async move {
                    let (stream, _) = listener.accept().await.unwrap();
                    echo(stream).await
                });
                addr
            }));
            let seen = Arc::new(AtomicUsize::new(0));
            let (counter, handle) = (Arc::clone(&seen), runtime.handle());
            let other = peer(move || {
                peer::echo(&peer::connect(addr), Keyed(1), 200_000);
                for _ in 0..500 {
                    let counter = Arc::clone(&counter);
                    drop(handle.spawn_with(move || async move {
                        sleep(Duration::from_micros(50)).await;
                        counter.fetch_add(1, Ordering::Relaxed);
                    }));
                }
            });
            let other = runtime.spawn(async move {
                other.await;
                while seen.load(Ordering::Relaxed) < 500 {
                    yield_now().await;
                }
            });
            outer.finish_slowly(&runtime, other);
        }
    }

    // Everything waits: a listener, a stream, a timer, a task that somebody else would wake.
    #[alone]
    fn who_waits_wakes_nobody(driver: Driver) {
        let outer = Outer::level();
        let runtime = common::runtime(driver);
        let polls = Rc::<Cell<u32>>::default();
        let counted = Rc::clone(&polls);
        let waiting = runtime.spawn(async move {
            let (listener, _addr) = listen().await;
            let (mut stream, _other) = pair().await;
            let mut accepting = pin!(listener.accept());
            let mut buffer = [0; 8];
            let mut reading = pin!(stream.read(&mut buffer));
            let mut sleeping = pin!(sleep(Duration::from_secs(3600)));
            poll_fn(|cx| {
                counted.set(counted.get() + 1);
                let _pending = (accepting.as_mut().poll(cx).is_pending(),
                    reading.as_mut().poll(cx).is_pending());
                sleeping.as_mut().poll(cx)
            })
            .await;
        });
        let outlook = loop {
            let outlook = settled(&runtime);
            if polls.get() > 0 && !outer.is_ready(&runtime, Some(Duration::from_millis(50))) {
                break outlook;
            }
        };
        let before = (polls.get(), cpu_ms());
        let left = outlook.wait_at_most().unwrap();
        assert!(left > Duration::from_secs(3000), "woken in {left:?} for a timer of an hour");
        assert!(!outer.is_ready(&runtime, Some(Duration::from_millis(500))), "nothing has come");
        assert_eq!(polls.get(), before.0);
        assert!(cpu_ms() - before.1 < 100);
        assert!(!waiting.is_finished());
    }

    fn a_task_that_is_always_ready_leaves_the_loop_its_turns(driver: Driver) {
        let runtime = common::runtime(driver);
        let over = Rc::<Cell<bool>>::default();
        let told = Rc::clone(&over);
        let task = runtime.spawn(async move {
            while !told.get() {
                yield_now().await;
            }
        });
        for _ in 0..100 {
            let outlook = runtime.turn();
            assert!(outlook.is_due());
            assert_eq!(outlook.wait_at_most(), Some(Duration::ZERO));
        }
        over.set(true);
        Outer::level().finish(&runtime, task);
    }

    fn what_comes_from_outside_shows_at_the_descriptor(driver: Driver) {
        let outer = Outer::level();
        let runtime = common::runtime(driver);
        let quiet = || !settled(&runtime).is_due() && !outer.is_ready(&runtime, Some(SHORT));
        while !quiet() {}
        let task = runtime.spawn(async { 7 });
        assert!(outer.is_ready(&runtime, None), "a task that was spawned");
        assert_eq!(outer.finish(&runtime, task), 7);
        let (_ours, mut theirs) = outer.finish(&runtime, runtime.spawn(pair()));
        while !quiet() {}
        drop(_ours);
        assert!(outer.is_ready(&runtime, None), "a stream that was dropped");
        let end = runtime.spawn(async move { theirs.read(&mut [0; 8]).await.unwrap() });
        assert_eq!(outer.finish(&runtime, end), 0);
        while !quiet() {}
        let handle = runtime.spawn(std::future::pending::<()>());
        while !quiet() {}
        handle.abort();
        assert!(outer.is_ready(&runtime, None), "a task that was aborted");
        let ended = runtime.spawn(async move { handle.await.unwrap_err().is_cancelled() });
        assert!(outer.finish(&runtime, ended));
    }

    fn turns_and_block_on_take_turns(driver: Driver) {
        let runtime = common::runtime(driver);
        let outer = Outer::edge();
        let (listener, addr) = outer.finish(&runtime, runtime.spawn(listen()));
        for round in 0..10 {
            let client = peer(move || peer::echo(&peer::connect(addr), Keyed(round), 1000));
            let (stream, _) = runtime.block_on(listener.accept()).unwrap();
            // Not by the root future this time.
            let echoing = runtime.spawn(echo(stream));
            outer.finish(&runtime, echoing).unwrap();
            client.join();
        }
    }

    // A loop may wait then, as the turn before has told it to.
    fn what_comes_behind_a_block_on_shows_at_the_descriptor(driver: Driver) {
        let runtime = common::runtime(driver);
        for outer in [Outer::level(), Outer::edge()] {
            let _nothing_due = settled(&runtime);
            outer.is_ready(&runtime, Some(Duration::ZERO));
            runtime.block_on(yield_now());
            let shard = runtime.handle();
            let sending = thread::spawn(move || shard.spawn_with(|| async { 5 }));
            let sent = sending.join().unwrap();
            assert!(outer.is_ready(&runtime, Some(Duration::from_secs(5))), "nobody is told");
            assert_eq!(outer.finish(&runtime, sent), 5);
        }
    }

    fn other_shards_answer(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).shards(3).build().unwrap();
        let sums = runtime.spawn(async {
            let mut sum = 0;
            for (number, shard) in Shard::all().into_iter().enumerate() {
                sum += shard.spawn_with(move || async move { number }).await.unwrap();
            }
            sum
        });
        assert_eq!(Outer::edge().finish(&runtime, sums), 3);
    }

    fn a_paused_clock_moves_on_with_the_turns(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).start_paused(true).build().unwrap();
        let task = runtime.spawn(async {
            let before = time::Instant::now();
            sleep(Duration::from_secs(86_400)).await;
            before.elapsed()
        });
        let slept = Outer::level().finish(&runtime, task);
        assert_eq!(slept, Duration::from_secs(86_400));
    }

    fn a_turn_within_a_runtime_is_refused(driver: Driver) {
        let (inner, outer) = (common::runtime(driver), common::runtime(driver));
        let text = outer.block_on(async {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| inner.turn()));
            *caught.unwrap_err().downcast::<&str>().unwrap()
        });
        assert!(text.starts_with("turn was called within a runtime"), "{text}");
        assert!(!settled(&inner).is_due());
    }

    // Two loops on one thread, each of which answers the other.
    fn the_example_serves_within_tokio(driver: Driver) {
        let mut command = Command::new(example("embed_in_tokio"));
        command.arg("127.0.0.1:0").env("ANNULUS_DRIVER", driver.to_string());
        let mut server = Running::start(command);
        let addr = server.line_after("listening on ").parse().expect("an address");
        assert_eq!(server.line_after("annulus answered: "), "hello");
        let peers: Vec<_> = (0..8)
            .map(|key| peer(move || peer::echo(&peer::connect(addr), Keyed(key), 200_000)))
            .collect();
        peers.into_iter().for_each(|peer| peer.join());
        // Nobody spins.
        let before = cpu_ticks(&server);
        thread::sleep(Duration::from_millis(500));
        assert!(cpu_ticks(&server) - before < 10, "busy for nothing");
    }

    // What a library does that has sockets of its own and is called by who knows what.
    fn a_library_has_a_runtime_on_a_thread_that_it_owns(driver: Driver) {
        struct Library {
            shard: Shard,
            end: Option<(annulus::ShutdownToken, thread::JoinHandle<()>)>,
        }

        impl Library {
            fn start(driver: annulus::Driver) -> std::io::Result<Library> {
                let token = annulus::ShutdownToken::new();
                let (tell, told) = mpsc::channel::<std::io::Result<Shard>>();
                let ended = token.clone();
                let thread = thread::spawn(move || {
                    let runtime = match Runtime::builder().driver(driver).shards(1).build() {
                        Ok(runtime) => runtime,
                        Err(error) => return drop(tell.send(Err(error.into()))),
                    };
                    let _heard = tell.send(Ok(runtime.handle()));
                    runtime.block_on(ended.requested());
                });
                let shard = told.recv().expect("the thread tells how it went")?;
                Ok(Library { shard, end: Some((token, thread)) })
            }

            async fn length_of_echo(&self, text: &'static str) -> usize {
                let work = move || async move {
                    let (mut near, far) = pair().await;
                    drop(annulus::spawn(echo(far)));
                    near.write_all(text.as_bytes()).await.unwrap();
                    let mut back = vec![0; text.len()];
                    near.read_exact(&mut back).await.unwrap();
                    back.len()
                };
                self.shard.spawn_with(work).await.expect("the library is there")
            }
        }

        impl Drop for Library {
            fn drop(&mut self) {
                if let Some((token, thread)) = self.end.take() {
                    token.shutdown();
                    thread.join().expect("the library's thread ends well");
                }
            }
        }

        let library = Library::start(driver).unwrap();
        // From a runtime that knows nothing of it, and from one of this crate.
        let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(tokio.block_on(library.length_of_echo("hello")), 5);
        assert_eq!(common::runtime(driver).block_on(library.length_of_echo("you")), 3);
        drop(library);
    }
}

const SHORT: Duration = Duration::from_millis(20);

/// A loop that is not the runtime's.
enum Outer {
    /// Looks at the descriptor anew each time: `poll(2)`.
    Level,
    /// Is told of changes only: `epoll(7)` with EPOLLET.
    Edge { epoll: OwnedFd, watched: Cell<bool> },
}

impl Outer {
    fn level() -> Outer {
        Outer::Level
    }

    fn edge() -> Outer {
        // SAFETY: the call takes an integer and touches no memory.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(epoll >= 0);
        // SAFETY: the kernel has just made this descriptor and nobody else knows it.
        Outer::Edge { epoll: unsafe { OwnedFd::from_raw_fd(epoll) }, watched: Cell::new(false) }
    }

    /// Turns the runtime until this task is over. A wait ends by the descriptor or by a timer, or
    /// not at all.
    fn finish<T: 'static>(&self, runtime: &Runtime, task: JoinHandle<T>) -> T {
        self.finish_with(runtime, task, || {})
    }

    /// As `finish`, with other things to do between any two calls.
    fn finish_slowly<T: 'static>(&self, runtime: &Runtime, task: JoinHandle<T>) -> T {
        self.finish_with(runtime, task, || thread::sleep(Duration::from_millis(3)))
    }

    fn finish_with<T: 'static>(
        &self,
        runtime: &Runtime,
        mut task: JoinHandle<T>,
        other_work: impl Fn(),
    ) -> T {
        loop {
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(output) = pin!(&mut task).poll(&mut cx) {
                return output.expect("the task does not panic");
            }
            let outlook = runtime.turn();
            if !outlook.is_due() && !task.is_finished() {
                other_work();
                self.is_ready(runtime, outlook.wait_at_most());
            }
            other_work();
        }
    }

    /// Waits until the descriptor is readable.
    fn is_ready(&self, runtime: &Runtime, limit: Option<Duration>) -> bool {
        let timeout = limit.map_or(-1, |limit| limit.as_micros().div_ceil(1000) as i32);
        let fd = runtime.descriptor().unwrap().as_raw_fd();
        match self {
            Outer::Level => {
                let mut wanted = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
                // SAFETY: the pointer is to one pollfd.
                (unsafe { libc::poll(&raw mut wanted, 1, timeout) }) == 1
            }
            Outer::Edge { epoll, watched } => {
                let mut event =
                    libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
                if !watched.replace(true) {
                    let (epoll, add) = (epoll.as_raw_fd(), libc::EPOLL_CTL_ADD);
                    // SAFETY: the event is valid for the length of the call.
                    assert_eq!(unsafe { libc::epoll_ctl(epoll, add, fd, &raw mut event) }, 0);
                }
                // SAFETY: the pointer is to one event.
                (unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, timeout) }) == 1
            }
        }
    }
}

/// Turns until no turn is due.
fn settled(runtime: &Runtime) -> Outlook {
    loop {
        let outlook = runtime.turn();
        if !outlook.is_due() {
            return outlook;
        }
    }
}

/// The processor time of a child, in hundredths of a second.
fn cpu_ticks(child: &Running) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("read stat");
    let fields = text.rsplit(')').next().expect("a name in parentheses").split(' ');
    fields.skip(12).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// Waits for a task on a thread without a runtime.
fn block_on_foreign<T: Send + 'static>(mut task: JoinHandle<T>) -> Result<T, annulus::JoinError> {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match pin!(&mut task).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
