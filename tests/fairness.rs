//! What one task or one peer may take from the others: a task that works long, one that never
//! waits, and a connection that never pauses leave timers, mail and quiet connections their turns.

use std::future::{pending, poll_fn};
use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use annulus::net::TcpListener;
use annulus::runtime::{Fd, Interest, Op, Ready, not_ready};
use annulus::task::yield_now;
use annulus::time::{interval, sleep};
use annulus::{JoinHandle, Runtime, Shard, on_each_shard, spawn};

use common::each_driver;
use common::peer::{self, peer};
use common::process::{need_descriptors, open_descriptors};
use common::steps::serve_echo;

mod common;

/// Turns of the others that must come while a nuisance goes on.
const BEATS: u32 = 10;

/// Reads of one task that wait, more than its share of ready futures (128).
const QUIET: usize = 150;

/// Sees timers fire, mail arrive and a quiet connection answered, again and again.
async fn everybody_has_turns() {
    let address = serve_echo().await;
    let quiet = peer(move || {
        let stream = peer::connect(address);
        for key in 0..u64::from(BEATS) {
            peer::echo(&stream, common::bytes::Keyed(key), 100);
        }
    });
    let here = Shard::current();
    let mail = thread::spawn(move || {
        let mut sent = 0;
        while sent < BEATS {
            let arrived = Arc::new(AtomicBool::new(false));
            let there = Arc::clone(&arrived);
            drop(here.spawn_with(move || async move { there.store(true, Ordering::Relaxed) }));
            while !arrived.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            sent += 1;
        }
    });
    let mut ticks = interval(Duration::from_millis(1));
    for _ in 0..BEATS {
        ticks.tick().await;
    }
    quiet.await;
    while !mail.is_finished() {
        sleep(Duration::from_millis(1)).await;
    }
    mail.join().unwrap();
}

each_driver! {
    #[deadline_s(120)]
    async fn tasks_that_work_long_leave_turns_to_others() {
        let work = || async {
            loop {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_millis(5) {
                    std::hint::spin_loop();
                }
                yield_now().await;
            }
        };
        let hogs: Vec<_> = (0..8).map(|_| spawn(work())).collect();
        everybody_has_turns().await;
        hogs.iter().for_each(JoinHandle::abort);
    }

    #[deadline_s(120)]
    async fn what_waits_takes_no_turns_from_what_is_ready_beside_it() {
        // More than the futures that may be ready in one poll of a task.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mut quiet, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..QUIET {
            peers.push(peer::connect(address));
            quiet.push(listener.accept().await.unwrap().0);
        }
        let mut buffers = vec![[0; 1]; QUIET];
        let mut reads: Vec<_> = quiet
            .iter_mut()
            .zip(&mut buffers)
            .map(|(stream, buffer)| Box::pin(stream.read(buffer)))
            .collect();
        let mut timer = Box::pin(sleep(Duration::from_millis(1)));
        peers[QUIET - 1].write_all(b"x").unwrap();
        let (mut fired, mut read, mut polls) = (false, false, 0);
        // As a join does it: all of them, in the same order each time.
        poll_fn(|cx| {
            polls += 1;
            for reading in &mut reads[..QUIET - 1] {
                assert!(reading.as_mut().poll(cx).is_pending(), "nothing was sent there");
            }
            read = read || reads[QUIET - 1].as_mut().poll(cx).is_ready();
            fired = fired || timer.as_mut().poll(cx).is_ready();
            if fired && read || polls > 1000 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert!(fired && read, "not in {polls} polls: timer {fired}, read {read}");
        assert!(polls < 100, "{polls} polls for two events");
    }

    async fn tasks_that_never_wait_leave_turns_to_others() {
        let yields = spawn(async {
            loop {
                yield_now().await;
            }
        });
        let wakes_itself = spawn(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        // Each spawns the next: the queue is never the same and never empty.
        fn chain() {
            drop(spawn(async { chain() }));
        }
        chain();
        let is_always_ready = spawn(async {
            let (mut one, mut other) = common::steps::pair().await;
            loop {
                one.write_all(&[1]).await.unwrap();
                one.flush().await.unwrap();
                other.read_exact(&mut [0]).await.unwrap();
            }
        });
        everybody_has_turns().await;
        [yields, is_always_ready].iter().for_each(JoinHandle::abort);
        wakes_itself.abort();
    }

    #[deadline_s(120)]
    async fn connections_that_never_pause_leave_turns_to_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let passed = Arc::new(AtomicU64::new(0));
        let hoses: Vec<_> = (0..2)
            .map(|_| {
                let (over, passed) = (Arc::clone(&over), Arc::clone(&passed));
                peer(move || {
                    let mut stream = peer::connect(address);
                    let mut bytes = vec![7; 256 << 10];
                    while !over.load(Ordering::Relaxed) {
                        stream.write_all(&bytes).unwrap();
                        let read = stream.read(&mut bytes).unwrap();
                        passed.fetch_add(read as u64, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..hoses.len() {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut reads, mut writes) = stream.into_split();
            let more = |read: std::io::Result<usize>| read.is_ok_and(|count| count > 0);
            drop(spawn(async move { while more(reads.read(&mut [0; 4096]).await) {} }));
            drop(spawn(async move { while writes.write_all(&[1; 4096]).await.is_ok() {} }));
        }
        everybody_has_turns().await;
        over.store(true, Ordering::Relaxed);
        for hose in hoses {
            hose.await;
        }
        assert!(passed.load(Ordering::Relaxed) > 1 << 20, "that was no hose");
    }

    #[alone]
    fn ten_thousand_operations_in_flight_do_not_hold_up_the_end(driver: Driver) {
        const PAIRS: usize = 1000;
        const EACH: usize = 5;
        need_descriptors(5000);
        drop(Runtime::builder().driver(driver).shards(2).build().unwrap());
        let before = open_descriptors();
        let runtime = Runtime::builder().driver(driver).shards(2).build().unwrap();
        let started = runtime.block_on(on_each_shard(async |_| {
            for _ in 0..PAIRS {
                let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
                let fd = Fd::new(one.into());
                not_ready(&fd, Interest::Read).unwrap();
                for _ in 0..EACH {
                    let operation = Op::new(Ready::new(Rc::clone(&fd), Interest::Read));
                    drop(spawn(operation));
                }
                drop(spawn(async move {
                    let _open = other;
                    pending::<()>().await;
                }));
            }
            // Behind all that were spawned.
            for _ in 0..2 * PAIRS {
                yield_now().await;
            }
        }));
        assert!(started.into_iter().all(|shard| shard.is_ok()));
        assert!(open_descriptors() >= before + 4 * PAIRS);
        let begun = Instant::now();
        drop(runtime);
        let took = begun.elapsed();
        println!("ended in {took:?}");
        assert!(took < Duration::from_secs(10), "the end took {took:?}");
        assert_eq!(open_descriptors(), before);
    }
}
