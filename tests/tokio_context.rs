//! tokio's runtime beside the shards: futures that insist on it, within tasks of annulus.

use std::future::{pending, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use annulus::time::{Instant, sleep, timeout};
use annulus::tokio_context::TokioContext;
use annulus::{Driver, Runtime, Shard, on_each_shard};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;

use common::bytes::Keyed;
use common::each_driver;
use common::process::{
    descriptor_limit, fork_for, in_own_process, leave_descriptors, set_descriptor_limit, threads,
};
use common::steps::poll_once;

mod common;

each_driver! {
    fn timers_of_tokio_elapse_on_every_shard(driver: Driver) {
        runtime(driver).block_on(async {
            let tokio = TokioContext::start().unwrap();
            let results = on_each_shard(async move |_| {
                // Not `Send`, and still there after the wait.
                let kept = Rc::new(7);
                let begun = Instant::now();
                tokio.enter(async { tokio::time::sleep(SHORT).await }).await;
                assert!(begun.elapsed() >= SHORT);
                let late = async { tokio::time::timeout(SHORT, pending::<()>()).await };
                assert!(tokio.enter(late).await.is_err(), "tokio's timeout never came");
                *kept
            });
            for result in results.await {
                assert_eq!(result.unwrap(), 7);
            }
        });
    }

    fn sockets_of_tokio_talk_to_each_other_and_to_ours(driver: Driver) {
        runtime(driver).block_on(async {
            let tokio = TokioContext::start().unwrap();
            let echo = tokio.enter(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
                let addr = listener.local_addr()?;
                // Each connection on tokio's thread; the listener's task is spawned there too.
                tokio::spawn(async move {
                    while let Ok((mut stream, _)) = listener.accept().await {
                        tokio::spawn(async move {
                            let (mut read, mut write) = stream.split();
                            tokio::io::copy(&mut read, &mut write).await
                        });
                    }
                });
                Ok::<_, io::Error>(addr)
            });
            let addr = echo.await.unwrap();
            let results = on_each_shard(async move |shard| {
                let key = Keyed(shard.index() as u64);
                let sent = key.bytes(0, LEN);
                let talk = async {
                    let stream = tokio::net::TcpStream::connect(addr).await?;
                    let (mut read, mut write) = stream.into_split();
                    let bytes = sent.clone();
                    let sending = tokio::spawn(async move { write.write_all(&bytes).await });
                    let mut received = vec![0; LEN];
                    read.read_exact(&mut received).await?;
                    sending.await??;
                    Ok::<_, io::Error>(received)
                };
                let received = tokio.enter(talk).await.unwrap();
                assert!(received == sent, "something else came back");
                // A stream of ours to the same server, beside it.
                let mut ours = annulus::net::TcpStream::connect(addr).await.unwrap();
                ours.write_all(b"ours").await.unwrap();
                let mut back = [0; 4];
                ours.read_exact(&mut back).await.unwrap();
                assert_eq!(&back, b"ours");
            });
            for result in results.await {
                result.unwrap();
            }
        });
    }

    async fn the_context_is_there_while_the_future_is_polled_and_not_between() {
        let tokio = TokioContext::start().unwrap();
        let mut entered = pin!(tokio.enter(async {
            assert!(Handle::try_current().is_ok());
            let mut polls = 0;
            poll_fn(|cx| {
                polls += 1;
                cx.waker().wake_by_ref();
                if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            Handle::try_current().is_ok()
        }));
        while poll_once(entered.as_mut()).await.is_pending() {
            assert!(Handle::try_current().is_err(), "the context has leaked out");
            assert!(annulus::spawn(async { Handle::try_current().is_err() }).await.unwrap());
        }
        assert!(Handle::try_current().is_err(), "the context has leaked out");
    }

    async fn a_future_is_dropped_within_the_context_wherever_that_is() {
        struct Asks(mpsc::Sender<bool>);
        impl Drop for Asks {
            fn drop(&mut self) {
                self.0.send(Handle::try_current().is_ok()).unwrap();
            }
        }
        let tokio = TokioContext::start().unwrap();
        let (sender, receiver) = mpsc::channel();
        let asks = || Asks(sender.clone());

        // Ready; never polled; timed out; with its task.
        let held = asks();
        let mut done = Box::pin(tokio.enter(async move { let _held = held; }));
        done.as_mut().await;
        assert_eq!(receiver.try_recv(), Ok(true));
        let held = asks();
        drop(tokio.enter(async move { drop(held) }));
        assert_eq!(receiver.try_recv(), Ok(true));
        let held = asks();
        let waits = async move {
            let _held = held;
            tokio::time::sleep(Duration::from_secs(3600)).await;
        };
        assert!(timeout(SHORT, tokio.enter(waits)).await.is_err());
        assert_eq!(receiver.try_recv(), Ok(true));
        let (held, context) = (asks(), tokio.clone());
        let task = annulus::spawn(async move {
            let waits = async move {
                let _held = held;
                pending::<()>().await;
            };
            context.enter(waits).await;
        });
        sleep(SHORT).await;
        task.abort();
        assert!(task.await.is_err());
        assert_eq!(receiver.try_recv(), Ok(true));
        // On a thread that no runtime of annulus has.
        let held = asks();
        let entered = tokio.enter(async move { drop(held) });
        thread::spawn(move || drop(entered)).join().unwrap();
        assert_eq!(receiver.try_recv(), Ok(true));
    }

    async fn a_panic_is_that_of_its_task_and_leaves_nothing_behind() {
        let tokio = TokioContext::start().unwrap();
        let context = tokio.clone();
        let task = annulus::spawn(async move {
            context
                .enter(async {
                    tokio::time::sleep(SHORT).await;
                    panic!("out of tokio");
                })
                .await;
        });
        assert!(task.await.unwrap_err().is_panic());
        assert!(Handle::try_current().is_err(), "the context has leaked out");
        let spawned = tokio.handle().spawn(async { panic!("on tokio's thread") });
        assert!(spawned.await.unwrap_err().is_panic());
        // Both threads are well.
        tokio.enter(async { tokio::time::sleep(SHORT).await }).await;
    }

    fn one_thread_serves_all_runtimes_and_outlives_them(driver: Driver) {
        let mut kept = None;
        for _ in 0..3 {
            runtime(driver).block_on(async {
                let results = on_each_shard(async |_| {
                    let tokio = TokioContext::start().unwrap();
                    tokio.enter(async { tokio::time::sleep(SHORT).await }).await;
                    tokio
                });
                let contexts = results.await;
                kept = contexts.into_iter().next().map(Result::unwrap);
                let ours = threads().into_iter().filter(|name| name == "annulus-tokio").count();
                assert_eq!(ours, 1);
            });
        }
        let tokio = kept.unwrap();
        let thread = tokio.handle().spawn(async { thread::current().name().map(str::to_owned) });
        let name = runtime(driver).block_on(thread).unwrap();
        assert_eq!(name.as_deref(), Some("annulus-tokio"));
    }

    fn what_tokio_has_no_descriptors_for_is_an_error_and_tried_again(driver: Driver) {
        let name = "what_tokio_has_no_descriptors_for_is_an_error_and_tried_again";
        in_own_process(name, driver, || {
            runtime(driver).block_on(async {
                let before = descriptor_limit();
                leave_descriptors(1);
                let error = TokioContext::start().unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
                set_descriptor_limit(before).unwrap();
                let tokio = TokioContext::start().unwrap();
                tokio.enter(async { tokio::time::sleep(SHORT).await }).await;
            });
        });
    }

    fn its_threads_are_bound_to_no_processor_of_a_shard(driver: Driver) {
        let name = "its_threads_are_bound_to_no_processor_of_a_shard";
        in_own_process(name, driver, || {
            let before = allowed_processors();
            let runtime = Runtime::builder().driver(driver).shards(2).pin(true).build().unwrap();
            runtime.block_on(async {
                let second = Shard::all()[1].spawn_with(async || {
                    let tokio = TokioContext::start().unwrap();
                    let spawned = tokio.handle().spawn(async { allowed_processors() });
                    let blocking = async { tokio::task::spawn_blocking(allowed_processors).await };
                    (spawned.await.unwrap(), tokio.enter(blocking).await.unwrap())
                });
                assert_eq!(second.await.unwrap(), (before.clone(), before));
            });
        });
    }

    #[alone]
    fn a_child_of_who_had_no_runtime_yet_starts_its_own(driver: Driver) {
        let name = "a_child_of_who_had_no_runtime_yet_starts_its_own";
        in_own_process(name, driver, || {
            let parent = TokioContext::start().unwrap();
            let child = fork_for(|| {
                runtime(driver).block_on(async {
                    let own = TokioContext::start().unwrap();
                    own.enter(async { tokio::time::sleep(SHORT).await }).await;
                });
            });
            child.join();
            drop(parent);
        });
    }

    #[alone]
    fn a_forked_child_starts_its_own(driver: Driver) {
        runtime(driver).block_on(async {
            let parent = TokioContext::start().unwrap();
            let mut entered = Box::pin(parent.enter(pending::<()>()));
            assert!(poll_once(entered.as_mut()).await.is_pending());
            let child = fork_for(|| {
                let mut cx = Context::from_waker(Waker::noop());
                let poll = AssertUnwindSafe(|| entered.as_mut().poll(&mut cx));
                let payload = catch_unwind(poll).expect_err("it is polled in the child");
                let text = payload.downcast_ref::<String>().expect("a text");
                assert!(text.contains("no runtime survives fork(2)"), "{text}");
                runtime(driver).block_on(async {
                    let own = TokioContext::start().unwrap();
                    own.enter(async { tokio::time::sleep(SHORT).await }).await;
                });
            });
            child.join();
            parent.enter(async { tokio::time::sleep(SHORT).await }).await;
        });
    }
}

/// Where the calling thread may run.
fn allowed_processors() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("read the status");
    let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:"));
    line.expect("a line of processors").to_owned()
}

fn runtime(driver: Driver) -> Runtime {
    Runtime::builder().driver(driver).shards(3).build().expect("a runtime")
}

const SHORT: Duration = Duration::from_millis(5);
/// Far more than the sockets hold.
const LEN: usize = 2 << 20;
