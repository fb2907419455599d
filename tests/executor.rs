//! Tasks: spawned, joined, aborted, woken from everywhere, polled and dropped at home.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use annulus::task::{self, spawn_blocking, yield_now};
use annulus::time::{sleep, timeout};
use annulus::{JoinHandle, Runtime};

use common::bytes::Keyed;
use common::each_driver;
use common::peer::{self, Peer, peer};
use common::steps::{poll_once, serve_echo, settle, with_peer};

mod common;

each_driver! {
    async fn living_tasks_have_numbers_of_their_own() {
        assert_eq!(task::try_id(), None, "the future of block_on is no task");
        let tasks: Vec<_> = (0..100)
            .map(|number| {
                task::Builder::new().name(format!("the {number}th")).spawn(async {
                    let id = task::id();
                    yield_now().await;
                    assert_eq!(task::id(), id, "a task keeps its number");
                    id
                })
            })
            .collect();
        let mut ids = Vec::new();
        for task in tasks {
            ids.push(task.await.unwrap());
        }
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 100);
        assert_eq!(task::try_id(), None);
    }

    async fn a_task_gives_its_result_to_who_awaits_it() {
        let shared = Rc::new(Cell::new(1));
        let inside = Rc::clone(&shared);
        let task = annulus::spawn(async move {
            yield_now().await;
            inside.set(2);
            "done"
        });
        assert_eq!(task.await.unwrap(), "done");
        assert_eq!(shared.get(), 2);
    }

    async fn spawning_only_queues() {
        let polled = Rc::new(Cell::new(false));
        let inside = Rc::clone(&polled);
        let task = annulus::spawn(async move { inside.set(true) });
        assert!(!polled.get(), "spawn ran the task on the spawner's stack");
        task.await.unwrap();
        assert!(polled.get());
    }

    async fn ten_thousand_tasks_all_run() {
        let sum = Rc::new(Cell::new(0_u64));
        let tasks: Vec<_> = (0..10_000)
            .map(|number| {
                let sum = Rc::clone(&sum);
                annulus::spawn(async move {
                    yield_now().await;
                    sum.set(sum.get() + number);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(sum.get(), 10_000 * 9_999 / 2);
    }

    async fn a_task_can_spawn_and_await_tasks() {
        fn depth(left: u32) -> Pin<Box<dyn Future<Output = u32>>> {
            Box::pin(async move {
                match left {
                    0 => 0,
                    _ => 1 + annulus::spawn(depth(left - 1)).await.unwrap(),
                }
            })
        }
        assert_eq!(annulus::spawn(depth(200)).await.unwrap(), 200);
    }

    async fn dropping_a_handle_detaches_its_task() {
        let done = Rc::new(Cell::new(false));
        let inside = Rc::clone(&done);
        drop(annulus::spawn(async move {
            sleep(Duration::from_millis(5)).await;
            inside.set(true);
        }));
        common::steps::eventually("the detached task ends", || done.get()).await;
    }

    async fn abort_drops_the_task_and_says_cancelled() {
        let log = Log::default();
        let task = annulus::spawn(log.guarded(pending::<()>()));
        settle().await;
        assert_eq!(log.drops(), 0);
        task.abort();
        let error = task.await.unwrap_err();
        assert!(error.is_cancelled());
        assert!(!error.is_panic());
        assert_eq!(log.drops(), 1);
    }

    async fn a_task_aborted_before_its_first_poll_never_runs() {
        let log = Log::default();
        let task = annulus::spawn(log.guarded(async { panic!("polled") }));
        task.abort();
        let result: Result<(), _> = task.await;
        assert!(result.unwrap_err().is_cancelled());
        assert_eq!((log.polls(), log.drops()), (0, 1));
    }

    async fn abort_after_the_end_changes_nothing() {
        let task = annulus::spawn(async { 7 });
        settle().await;
        task.abort();
        task.abort();
        assert_eq!(task.await.unwrap(), 7);
    }

    async fn a_task_that_aborts_itself_ends_at_its_next_wait() {
        let handle = Rc::new(RefCell::new(None::<JoinHandle<()>>));
        let inside = Rc::clone(&handle);
        let log = Log::default();
        let task = annulus::spawn(log.guarded(async move {
            inside.borrow().as_ref().expect("the handle is there").abort();
            pending::<()>().await;
        }));
        *handle.borrow_mut() = Some(task);
        common::steps::eventually("the task is dropped", || log.drops() == 1).await;
    }

    async fn a_panic_becomes_the_join_error_with_its_payload() {
        let task = annulus::spawn(async { panic!("the reason") });
        let result: Result<(), _> = task.await;
        let error = result.unwrap_err();
        assert!(error.is_panic());
        assert!(!error.is_cancelled());
        let payload = error.into_panic();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"the reason"));
    }

    async fn a_panicking_task_harms_no_other() {
        let addr = serve_echo().await;
        for _ in 0..20 {
            drop(annulus::spawn(async {
                yield_now().await;
                panic!("a task's own affair");
            }));
        }
        peer(move || peer::echo(&peer::connect(addr), Keyed(1), 50_000)).await;
    }

    async fn the_sockets_of_a_panicking_task_are_closed() {
        let (mut stream, peer) = with_peer(|stream| {
            peer::send(&stream, &mut Keyed(2).cursor(), 1);
            peer::expect_closed(&stream);
        })
        .await;
        let task = annulus::spawn(async move {
            stream.read_exact(&mut [0]).await.unwrap();
            panic!("with a stream in its hands");
        });
        let result: Result<(), _> = task.await;
        assert!(result.unwrap_err().is_panic());
        peer.await;
    }

    async fn a_panic_while_a_future_is_dropped_harms_no_other() {
        let task = annulus::spawn(async {
            let _loud = OnDrop(|| panic!("in drop"));
            pending::<()>().await;
        });
        settle().await;
        task.abort();
        assert!(task.await.is_err());
        assert_eq!(annulus::spawn(async { 1 }).await.unwrap(), 1);
        settle().await;
    }

    async fn a_panic_while_an_unwanted_result_is_dropped_harms_no_other() {
        drop(annulus::spawn(async { OnDrop(|| panic!("in drop")) }));
        settle().await;
        assert_eq!(annulus::spawn(async { 1 }).await.unwrap(), 1);
    }

    async fn a_waker_that_panics_harms_no_other() {
        let mut first = Box::pin(sleep(Duration::from_millis(3)));
        let loud = Waker::from(Arc::new(OnWake(|| panic!("in wake"))));
        assert!(first.as_mut().poll(&mut Context::from_waker(&loud)).is_pending());
        let others: Vec<_> =
            (0..10).map(|_| annulus::spawn(sleep(Duration::from_millis(3)))).collect();
        for other in others {
            timeout(Duration::from_secs(5), other).await.expect("its timer fires").unwrap();
        }
    }

    async fn a_waker_of_a_socket_that_panics_harms_no_other() {
        let addr = serve_echo().await;
        let (go, wait) = mpsc::channel();
        let (mut stream, peer) = with_peer(move |stream| {
            wait.recv().unwrap();
            peer::send(&stream, &mut Keyed(1).cursor(), 10);
            peer::expect_end(&stream);
        })
        .await;
        {
            let mut buf = [0; 10];
            let mut reading = pin!(stream.read(&mut buf));
            let loud = Waker::from(Arc::new(OnWake(|| panic!("in wake"))));
            assert!(reading.as_mut().poll(&mut Context::from_waker(&loud)).is_pending());
            settle().await;
            go.send(()).unwrap();
            settle().await;
        }
        peer::peer(move || peer::echo(&peer::connect(addr), Keyed(2), 10_000)).await;
        let mut buf = [0; 10];
        stream.read_exact(&mut buf).await.unwrap();
        Keyed(1).check(0, &buf);
        drop(stream);
        peer.await;
    }

    fn a_waker_of_a_writer_that_panics_harms_no_other_writer(driver: Driver) {
        let runtime = common::runtime(driver);
        let (go, wait) = mpsc::channel::<()>();
        let ((mut loud, deaf), (mut quiet, peer)) = runtime.block_on(async {
            let loud = with_peer(move |stream| {
                let _ = wait.recv();
                drop(stream);
            });
            let quiet = with_peer(|stream| {
                peer::expect(&stream, &mut Keyed(3).cursor(), 2000);
            });
            (loud.await, quiet.await)
        });
        // The panic may pass through block_on; the runtime goes on either way.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                for _ in 0..9 {
                    loud.write_all(&[0; 7000]).await.unwrap();
                }
                let bytes = [0; 6000];
                let waker = Waker::from(Arc::new(OnWake(|| panic!("in wake"))));
                {
                    let mut writing = pin!(loud.write_all(&bytes));
                    let _ = writing.as_mut().poll(&mut Context::from_waker(&waker));
                }
                quiet.write_all(&Keyed(3).bytes(0, 1000)).await.unwrap();
                settle().await;
            });
        }));
        runtime.block_on(async {
            quiet.write_all(&Keyed(3).bytes(1000, 1000)).await.unwrap();
            // Not dropped meanwhile, which would send by another way.
            peer.await;
        });
        drop((go, deaf, loud));
    }

    // A waker runs while the runtime hands out what the kernel brought.
    async fn a_waker_may_drop_streams_and_spawn_tasks() {
        let (mut stream, peer) = with_peer(|stream| {
            peer::expect(&stream, &mut Keyed(1).cursor(), 1);
            peer::send(&stream, &mut Keyed(2).cursor(), 10);
            stream
        })
        .await;
        let (mut victim, ended) = with_peer(|stream| peer::expect_end(&stream)).await;
        let _ = poll_once(pin!(victim.read(&mut [0; 8])).as_mut()).await;
        let (listener, _) = common::steps::listen().await;
        let _ = poll_once(pin!(listener.accept()).as_mut()).await;
        let mut sleeping = Box::pin(sleep(Duration::from_secs(60)));
        let _ = poll_once(sleeping.as_mut()).await;
        let victims = Mutex::new(Some((victim, listener, sleeping)));
        let spawned = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&spawned);
        let waker = Waker::from(Arc::new(OnWake(move || {
            drop(victims.lock().unwrap().take());
            let counter = Arc::clone(&counter);
            drop(annulus::spawn(async move {
                sleep(Duration::from_millis(1)).await;
                counter.fetch_add(1, Ordering::SeqCst);
            }));
        })));
        {
            let mut buf = [0; 10];
            let mut reading = pin!(stream.read(&mut buf));
            assert!(reading.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            settle().await;
        }
        stream.write_all(&Keyed(1).bytes(0, 1)).await.unwrap();
        common::steps::eventually("the spawned task runs", || spawned.load(Ordering::SeqCst) > 0)
            .await;
        ended.await;
        let mut buf = [0; 10];
        stream.read_exact(&mut buf).await.unwrap();
        Keyed(2).check(0, &buf);
        peer.await;
    }

    // On epoll a registration is forgotten at the next turn, with the waker that it still has.
    async fn a_waker_may_panic_or_own_a_stream_when_it_is_dropped() {
        let addr = serve_echo().await;
        for panics in [true, false] {
            let (mut stream, kept) = with_peer(|stream| stream).await;
            let (mut victim, ended) = with_peer(|stream| peer::expect_end(&stream)).await;
            let _ = poll_once(pin!(victim.read(&mut [0; 8])).as_mut()).await;
            let owns = OwnsAStream { _owned: Mutex::new(Some(victim)), panics };
            let waker = Waker::from(Arc::new(owns));
            {
                let mut buf = [0; 8];
                let mut reading = pin!(stream.read(&mut buf));
                assert!(reading.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            }
            settle().await;
            drop(waker);
            // On io_uring it goes here.
            drop(catch_unwind(AssertUnwindSafe(|| drop(stream))));
            settle().await;
            ended.await;
            drop(kept.await);
            peer(move || peer::echo(&peer::connect(addr), Keyed(2), 10_000)).await;
        }
    }

    // It goes when the shard has found nothing to do and is about to wait.
    async fn what_the_drop_of_a_waker_wakes_is_not_slept_over() {
        let woken = Arc::new(AtomicUsize::new(0));
        let waiting = Rc::new(RefCell::new(None));
        let task = annulus::spawn({
            let (woken, waiting) = (Arc::clone(&woken), Rc::clone(&waiting));
            poll_fn(move |cx| {
                *waiting.borrow_mut() = Some(cx.waker().clone());
                if woken.load(Ordering::SeqCst) > 0 { Poll::Ready(()) } else { Poll::Pending }
            })
        });
        let (mut stream, kept) = with_peer(|stream| stream).await;
        settle().await;
        let waker = Waker::from(Arc::new(WakesWhenDropped {
            woken,
            task: waiting.take().expect("the task has been polled"),
        }));
        {
            let mut buf = [0; 8];
            let mut reading = pin!(stream.read(&mut buf));
            assert!(reading.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        settle().await;
        drop((waker, stream));
        timeout(Duration::from_secs(10), task).await.expect("the shard has slept").unwrap();
        drop(kept.await);
    }

    fn a_nested_block_on_panics_with_a_clear_text_and_harms_nothing(driver: Driver) {
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let nested = catch_unwind(AssertUnwindSafe(|| {
                common::runtime(driver).block_on(async {});
            }));
            let payload = nested.expect_err("block_on inside block_on panics");
            let text = panic_text(&*payload);
            assert!(text.contains("block_on"), "the text does not name the call: {text:?}");
            settle().await;
            assert_eq!(annulus::spawn(async { 3 }).await.unwrap(), 3);
        });
        assert_eq!(runtime.block_on(async { annulus::spawn(async { 4 }).await.unwrap() }), 4);
    }

    fn a_block_on_of_itself_panics_and_harms_nothing(driver: Driver) {
        let runtime = common::runtime(driver);
        let nested = runtime.block_on(async {
            catch_unwind(AssertUnwindSafe(|| runtime.block_on(async {}))).is_err()
        });
        assert!(nested, "block_on inside its own block_on panics");
        runtime.block_on(settle());
    }

    // Nobody can end a runtime that is at work: a task that has the last reference keeps both.
    fn a_task_that_owns_its_runtime_keeps_it_and_harms_nothing(driver: Driver) {
        let runtime = Rc::new(common::runtime(driver));
        let (inside, again) = (Rc::clone(&runtime), Rc::clone(&runtime));
        runtime.block_on(async move {
            let dropping = annulus::spawn(async move {
                drop(inside);
                settle().await;
            });
            dropping.await.unwrap();
            let keeping = annulus::spawn(async move {
                pending::<()>().await;
                drop(again);
            });
            settle().await;
            drop(keeping);
        });
        assert_eq!(Rc::strong_count(&runtime), 2);
        runtime.block_on(settle());
        drop(runtime);
        common::runtime(driver).block_on(settle());
    }

    fn a_panic_of_the_root_future_leaves_the_runtime_usable(driver: Driver) {
        let runtime = common::runtime(driver);
        let counter = Rc::new(Cell::new(0));
        let inside = Rc::clone(&counter);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async move {
                drop(annulus::spawn(async move {
                    loop {
                        sleep(Duration::from_millis(1)).await;
                        inside.set(inside.get() + 1);
                    }
                }));
                settle().await;
                panic!("at the root");
            });
        }));
        assert_eq!(panic_text(&*outcome.unwrap_err()), "at the root");
        let before = counter.get();
        runtime.block_on(common::steps::eventually("the task goes on", || counter.get() > before));
    }

    fn tasks_go_on_from_one_block_on_to_the_next(driver: Driver) {
        let runtime = common::runtime(driver);
        let (addr, task) = runtime.block_on(async {
            let addr = serve_echo().await;
            (addr, annulus::spawn(sleep(Duration::from_millis(20))))
        });
        runtime.block_on(task).unwrap();
        runtime.block_on(peer(move || peer::echo(&peer::connect(addr), Keyed(3), 1000)));
    }

    fn spawning_outside_a_runtime_panics_with_a_clear_text(driver: Driver) {
        let runtime = common::runtime(driver);
        for call in [|| drop(annulus::spawn(async {})), || drop(annulus::driver_info())] {
            let payload = catch_unwind(call).unwrap_err();
            let text = panic_text(&*payload);
            assert!(text.contains("runtime"), "the text does not say what is missing: {text:?}");
        }
        runtime.block_on(settle());
    }

    #[deadline_s(180)]
    async fn no_wake_from_another_thread_is_lost() {
        const WAKES: u64 = 100_000;
        let shared = Arc::new(Mutex::new((0_u64, None::<Waker>)));
        let outside = Arc::clone(&shared);
        // Each wake is the only one under way: were it lost, both sides would wait for ever.
        let waking = peer(move || {
            // Of one wake: a slow machine is not one that loses them.
            let limit = Duration::from_secs(20);
            let mut deadline = Instant::now() + limit;
            let mut sent = 0;
            while sent < WAKES {
                let waker = {
                    let mut state = outside.lock().unwrap();
                    state.1.take().inspect(|_| state.0 += 1)
                };
                match waker {
                    Some(waker) => {
                        waker.wake();
                        sent += 1;
                        deadline = Instant::now() + limit;
                    }
                    None => thread::yield_now(),
                }
                assert!(Instant::now() < deadline, "wake {sent} was lost");
            }
        });
        let mut seen = 0;
        while seen < WAKES {
            seen = poll_fn(|cx| {
                let mut state = shared.lock().unwrap();
                if state.0 > seen {
                    return Poll::Ready(state.0);
                }
                state.1 = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
        }
        waking.await;
    }

    #[deadline_s(60)]
    async fn wakes_from_many_threads_reach_many_tasks() {
        const TASKS: usize = 50;
        const ROUNDS: usize = 200;
        let wakers: Arc<Vec<Mutex<Option<Waker>>>> =
            Arc::new((0..TASKS).map(|_| Mutex::new(None)).collect());
        let done = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (wakers, done) = (Arc::clone(&wakers), Arc::clone(&done));
                peer(move || {
                    while done.load(Ordering::SeqCst) < TASKS {
                        for waker in wakers.iter() {
                            if let Some(waker) = waker.lock().unwrap().take() {
                                waker.wake_by_ref();
                                drop(waker);
                            }
                        }
                        thread::yield_now();
                    }
                })
            })
            .collect();
        for index in 0..TASKS {
            let (wakers, done) = (Arc::clone(&wakers), Arc::clone(&done));
            drop(annulus::spawn(async move {
                for _ in 0..ROUNDS {
                    let mut first = true;
                    poll_fn(|cx| {
                        if !std::mem::take(&mut first) {
                            return Poll::Ready(());
                        }
                        *wakers[index].lock().unwrap() = Some(cx.waker().clone());
                        Poll::Pending
                    })
                    .await;
                }
                done.fetch_add(1, Ordering::SeqCst);
            }));
        }
        for thread in threads {
            thread.await;
        }
        assert_eq!(done.load(Ordering::SeqCst), TASKS);
    }

    async fn a_thousand_wakes_of_one_task_are_few_polls() {
        let polls = Rc::new(Cell::new(0_u32));
        let waker = Rc::new(RefCell::new(None::<Waker>));
        let (counting, storing) = (Rc::clone(&polls), Rc::clone(&waker));
        drop(annulus::spawn(poll_fn(move |cx| {
            counting.set(counting.get() + 1);
            *storing.borrow_mut() = Some(cx.waker().clone());
            Poll::<()>::Pending
        })));
        settle().await;
        let before = polls.get();
        let waker = waker.borrow_mut().take().expect("the task was polled");
        for _ in 0..1000 {
            waker.wake_by_ref();
        }
        settle().await;
        assert_eq!(polls.get() - before, 1);
    }

    async fn the_latest_waker_is_the_one_woken() {
        let (mut stream, peer) = with_peer(|mut stream| {
            use std::io::Read;
            stream.read_exact(&mut [0]).unwrap();
            peer::send(&stream, &mut Keyed(4).cursor(), 1);
        })
        .await;
        stream.write_all(b"x").await.unwrap();
        let mut buf = [0];
        let mut reading = Box::pin(async move { stream.read(&mut buf).await });
        let nobody = Waker::noop();
        assert!(reading.as_mut().poll(&mut Context::from_waker(nobody)).is_pending());
        assert_eq!(timeout(Duration::from_secs(10), reading).await.unwrap().unwrap(), 1);
        let mut sleeping = Box::pin(sleep(Duration::from_millis(5)));
        assert!(sleeping.as_mut().poll(&mut Context::from_waker(nobody)).is_pending());
        timeout(Duration::from_secs(10), sleeping).await.unwrap();
        peer.await;
    }

    fn wakers_outlive_their_runtime(driver: Driver) {
        let log = Log::default();
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let storing = Arc::clone(&waker);
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            drop(annulus::spawn(log.guarded(poll_fn(move |cx| {
                *storing.lock().unwrap() = Some(cx.waker().clone());
                Poll::<()>::Pending
            }))));
            settle().await;
        });
        drop(runtime);
        assert_eq!(log.drops(), 1);
        let waker = waker.lock().unwrap().take().expect("the task was polled");
        waker.wake_by_ref();
        peer(move || {
            waker.wake_by_ref();
            let clone = waker.clone();
            waker.wake();
            drop(clone);
        })
        .join();
        assert_eq!(log.polls(), 1);
    }

    fn wakes_may_race_with_the_end_of_the_runtime(driver: Driver) {
        for _ in 0..50 {
            let (sender, receiver) = mpsc::channel::<Waker>();
            let waking = peer(move || {
                let waker = receiver.recv().unwrap();
                while !matches!(receiver.try_recv(), Err(mpsc::TryRecvError::Disconnected)) {
                    waker.wake_by_ref();
                }
            });
            let runtime = common::runtime(driver);
            runtime.block_on(async {
                let shared = sender.clone();
                drop(annulus::spawn(poll_fn(move |cx| {
                    let _ = shared.send(cx.waker().clone());
                    Poll::<()>::Pending
                })));
                yield_now().await;
                yield_now().await;
            });
            drop(runtime);
            drop(sender);
            waking.join();
        }
    }

    // The last reference to a task may be gone on another thread; its future is dropped at home.
    fn a_task_is_polled_and_dropped_on_its_own_thread_once(driver: Driver) {
        let log = Log::default();
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            for _ in 0..20 {
                let storing = Arc::clone(&waker);
                let task = annulus::spawn(log.guarded(poll_fn(move |cx| {
                    *storing.lock().unwrap() = Some(cx.waker().clone());
                    Poll::<()>::Pending
                })));
                yield_now().await;
                yield_now().await;
                let waker = waker.lock().unwrap().take().expect("the task was polled");
                // Handle and waker go to another thread, which drops the last of both.
                peer(move || {
                    task.abort();
                    drop(task);
                    waker.wake_by_ref();
                    drop(waker);
                })
                .await;
                settle().await;
            }
        });
        drop(runtime);
        assert_eq!(log.drops(), 20);
        assert!(log.threads().iter().all(|&thread| thread == thread::current().id()));
    }

    fn a_handle_can_be_awaited_on_another_thread(driver: Driver) {
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let task = annulus::spawn(async {
                sleep(Duration::from_millis(10)).await;
                String::from("from afar")
            });
            let waiting = peer(move || common::runtime(driver).block_on(task).unwrap());
            assert_eq!(waiting.await, "from afar");
        });
    }

    async fn yielding_tasks_take_turns() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..3)
            .map(|number| {
                let order = Rc::clone(&order);
                annulus::spawn(async move {
                    for _ in 0..100 {
                        order.borrow_mut().push(number);
                        yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let order = order.borrow();
        for round in order.chunks(3) {
            let mut round = round.to_vec();
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2], "a task went twice in one round");
        }
    }

    async fn a_busy_yielding_task_starves_neither_timers_nor_sockets() {
        let addr = serve_echo().await;
        let busy = annulus::spawn(async {
            loop {
                yield_now().await;
            }
        });
        let waking = annulus::spawn(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        sleep(Duration::from_millis(20)).await;
        peer(move || {
            let stream = peer::connect(addr);
            for key in 0..50 {
                peer::echo(&stream, Keyed(key), 100);
            }
        })
        .await;
        sleep(Duration::from_millis(20)).await;
        busy.abort();
        waking.abort();
    }

    async fn an_always_ready_stream_starves_no_timer() {
        let (mut client, mut server) = common::steps::pair().await;
        let flood = annulus::spawn(async move {
            let noise = [0; 4096];
            loop {
                client.write_all(&noise).await.unwrap();
            }
        });
        let sink = annulus::spawn(async move {
            let mut buf = [0; 4096];
            loop {
                assert_ne!(server.read(&mut buf).await.unwrap(), 0);
            }
        });
        for _ in 0..20 {
            sleep(Duration::from_millis(2)).await;
        }
        flood.abort();
        sink.abort();
    }

    fn a_dropped_runtime_drops_its_pending_tasks_once(driver: Driver) {
        let log = Log::default();
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            for _ in 0..100 {
                drop(annulus::spawn(log.guarded(pending::<()>())));
                drop(annulus::spawn(log.guarded(sleep(Duration::from_secs(3600)))));
            }
            settle().await;
            // And some that were never polled.
            for _ in 0..100 {
                drop(annulus::spawn(log.guarded(pending::<()>())));
            }
        });
        assert_eq!(log.drops(), 0);
        drop(runtime);
        assert_eq!(log.drops(), 300);
    }

    // A task that owns its own handle, or its neighbour's, is no cycle that keeps it alive.
    fn tasks_that_hold_each_others_handles_are_dropped(driver: Driver) {
        let log = Log::default();
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let first = annulus::spawn(log.guarded(pending::<()>()));
            let log_of_second = log.guarded(async move {
                let _ = first.await;
            });
            drop(annulus::spawn(log_of_second));
            settle().await;
        });
        drop(runtime);
        assert_eq!(log.drops(), 2);
    }

    fn tasks_spawned_while_the_runtime_ends_are_dropped(driver: Driver) {
        let log = Log::default();
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let inner = log.clone();
            drop(annulus::spawn(async move {
                let _last_wish =
                    OnDrop(move || drop(annulus::spawn(inner.guarded(pending::<()>()))));
                pending::<()>().await;
            }));
            settle().await;
        });
        // Refusing the spawn with a panic would have to be caught by the runtime.
        drop(runtime);
        assert_eq!((log.polls(), log.drops()), (0, 1));
    }

    fn a_panic_in_a_drop_while_the_runtime_ends_spares_the_other_tasks(driver: Driver) {
        let log = Log::default();
        let runtime = common::runtime(driver);
        let peer = runtime.block_on(async {
            for number in 0..20 {
                drop(annulus::spawn(log.guarded(pending::<()>())));
                if number % 5 == 0 {
                    drop(annulus::spawn(async {
                        let _loud = OnDrop(|| panic!("in drop"));
                        pending::<()>().await;
                    }));
                }
            }
            let (stream, peer) = with_peer(|stream| peer::expect_closed(&stream)).await;
            drop(annulus::spawn(async move {
                let _stream = stream;
                pending::<()>().await;
            }));
            settle().await;
            // Not to be awaited here: it ends when the runtime has.
            Some(peer)
        });
        // Whether the panic is swallowed or passed on, no task is left behind.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(runtime)));
        assert_eq!(log.drops(), 20);
        peer.into_iter().for_each(Peer::join);
        common::runtime(driver).block_on(settle());
    }

    fn the_end_of_a_runtime_does_not_wait_for_blocking_work(driver: Driver) {
        let (release, wait) = mpsc::channel::<()>();
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            drop(spawn_blocking(move || wait.recv()));
            settle().await;
        });
        let start = Instant::now();
        drop(runtime);
        assert!(start.elapsed() < Duration::from_secs(5), "the end took {:?}", start.elapsed());
        // It still runs, or has been dropped.
        let _ = release.send(());
    }

    fn a_task_that_wakes_others_in_its_drop_harms_nothing(driver: Driver) {
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let wakers = Rc::new(RefCell::new(Vec::<Waker>::new()));
            for _ in 0..10 {
                let storing = Rc::clone(&wakers);
                let waking = Rc::clone(&wakers);
                drop(annulus::spawn(async move {
                    let _wake_all = OnDrop(move || {
                        waking.borrow().iter().for_each(Waker::wake_by_ref);
                    });
                    poll_fn(|cx| {
                        storing.borrow_mut().push(cx.waker().clone());
                        Poll::<()>::Pending
                    })
                    .await;
                }));
            }
            yield_now().await;
            yield_now().await;
        });
        drop(runtime);
    }

    async fn blocking_work_gives_its_result_and_blocks_nobody() {
        let (release, wait) = mpsc::channel::<()>();
        let here = thread::current().id();
        let work = spawn_blocking(move || {
            wait.recv().unwrap();
            thread::current().id()
        });
        sleep(Duration::from_millis(2)).await;
        release.send(()).unwrap();
        assert_ne!(work.await.unwrap(), here);
    }

    async fn a_panic_in_blocking_work_is_reported_and_the_pool_survives() {
        for _ in 0..3 {
            let work = spawn_blocking(|| -> u8 { panic!("off thread") });
            let error = work.await.unwrap_err();
            assert!(error.is_panic());
            assert_eq!(error.into_panic().downcast_ref::<&str>(), Some(&"off thread"));
        }
        assert_eq!(spawn_blocking(|| 5).await.unwrap(), 5);
    }

    async fn a_thousand_pieces_of_blocking_work_all_end() {
        let sum = Arc::new(AtomicU64::new(0));
        let work: Vec<_> = (0..1000)
            .map(|number| {
                let sum = Arc::clone(&sum);
                spawn_blocking(move || sum.fetch_add(number, Ordering::Relaxed))
            })
            .collect();
        for work in work {
            work.await.unwrap();
        }
        assert_eq!(sum.load(Ordering::Relaxed), 1000 * 999 / 2);
    }

    fn runtimes_on_many_threads_know_nothing_of_each_other(driver: Driver) {
        let threads: Vec<_> = (0..4)
            .map(|number| {
                peer(move || {
                    common::runtime(driver).block_on(async move {
                        let addr = serve_echo().await;
                        peer(move || peer::echo(&peer::connect(addr), Keyed(number), 50_000)).await;
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join();
        }
    }

    async fn a_runtime_can_be_made_and_dropped_within_another() {
        let task = annulus::spawn(async {
            let other = Runtime::new();
            drop(other);
        });
        timeout(Duration::from_secs(10), task).await.expect("no hang").ok();
    }
}

#[annulus::test]
async fn the_test_attribute_runs_a_test() {
    assert_eq!(annulus::spawn(async { 1 }).await.unwrap(), 1);
}

#[annulus::test]
async fn the_test_attribute_passes_results_on() -> Result<(), std::io::Error> {
    sleep(Duration::from_millis(1)).await;
    Ok(())
}

#[test]
fn handles_may_cross_threads_and_tasks_need_not() {
    fn assert_send<T: Send>() {}
    assert_send::<JoinHandle<u8>>();
    assert_send::<annulus::time::Sleep>();
    assert_send::<annulus::net::TcpStream>();
    assert_send::<annulus::net::TcpListener>();
}

/// What happened to futures, and on which threads.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Events>>);

#[derive(Default)]
struct Events {
    polls: usize,
    drops: usize,
    threads: Vec<ThreadId>,
}

impl Log {
    /// A future that logs its polls and its drop.
    fn guarded<F: Future + 'static>(&self, future: F) -> Logged<F> {
        Logged { future: Box::pin(future), log: self.clone() }
    }

    fn polls(&self) -> usize {
        self.0.lock().unwrap().polls
    }

    fn drops(&self) -> usize {
        self.0.lock().unwrap().drops
    }

    fn threads(&self) -> Vec<ThreadId> {
        self.0.lock().unwrap().threads.clone()
    }
}

struct Logged<F> {
    future: Pin<Box<F>>,
    log: Log,
}

impl<F: Future> Future for Logged<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut events = self.log.0.lock().unwrap();
            events.polls += 1;
            events.threads.push(thread::current().id());
        }
        self.future.as_mut().poll(cx)
    }
}

impl<F> Drop for Logged<F> {
    fn drop(&mut self) {
        let mut events = self.log.0.lock().unwrap();
        events.drops += 1;
        events.threads.push(thread::current().id());
    }
}

/// A waker that takes a stream with it when it goes.
struct OwnsAStream {
    _owned: Mutex<Option<annulus::net::TcpStream>>,
    panics: bool,
}

// SAFETY: the test makes, uses and drops it on one thread.
unsafe impl Send for OwnsAStream {}
// SAFETY: as above.
unsafe impl Sync for OwnsAStream {}

impl Wake for OwnsAStream {
    fn wake(self: Arc<Self>) {}
}

impl Drop for OwnsAStream {
    fn drop(&mut self) {
        assert!(!self.panics, "in the drop of a waker");
    }
}

/// A waker whose drop wakes a task.
struct WakesWhenDropped {
    woken: Arc<AtomicUsize>,
    task: Waker,
}

impl Wake for WakesWhenDropped {
    fn wake(self: Arc<Self>) {}
}

impl Drop for WakesWhenDropped {
    fn drop(&mut self) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        self.task.wake_by_ref();
    }
}

/// Runs a closure when woken.
struct OnWake<F: Fn() + Send + Sync + 'static>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for OnWake<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// Runs a closure when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "",
    }
}
