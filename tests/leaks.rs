//! Whatever becomes of an operation, its descriptor is closed and its memory comes back.

use std::future::pending;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use annulus::net::TcpStream;
use annulus::time::{sleep, timeout};

use common::each_driver;
use common::peer::{self, peer};
use common::process::{open_descriptors, resident_bytes};
use common::steps::{eventually, listen, pair, poll_once, settle, with_peer};

mod common;

each_driver! {
    #[alone]
    async fn dropped_connects_leave_no_descriptor() {
        let (full, queued) = peer::full_listener();
        let addr = full.local_addr().unwrap();
        let before = open_descriptors();
        for _ in 0..20 {
            let _ = timeout(Duration::from_millis(3), TcpStream::connect(addr)).await;
            let mut connecting = Box::pin(TcpStream::connect(addr));
            let _ = poll_once(connecting.as_mut()).await;
        }
        assert_descriptors(before).await;
        drop((full, queued));
    }

    #[alone]
    async fn refused_connects_leave_no_descriptor() {
        let (closed, addr) = peer::listen();
        drop(closed);
        let before = open_descriptors();
        for _ in 0..50 {
            let error = TcpStream::connect(addr).await.map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        assert_descriptors(before).await;
    }

    #[alone]
    async fn connections_queued_on_a_dropped_listener_leave_no_descriptor() {
        let before = open_descriptors();
        for _ in 0..10 {
            let (listener, addr) = listen().await;
            let _ = poll_once(pin!(listener.accept()).as_mut()).await;
            let clients =
                peer(move || (0..10).map(|_| peer::connect(addr)).collect::<Vec<_>>()).await;
            settle().await;
            drop(listener);
            drop(clients);
        }
        assert_descriptors(before).await;
    }

    #[alone]
    async fn streams_dropped_in_every_state_leave_no_descriptor() {
        let before = open_descriptors();
        for round in 0..70 {
            let (mut one, mut other) = pair().await;
            match round % 7 {
                0 => drop(poll_once(pin!(one.read(&mut [0; 8])).as_mut()).await),
                1 => one.write_all(b"unread").await.unwrap(),
                2 => {
                    one.set_linger(Some(Duration::ZERO)).unwrap();
                    drop(one);
                    other.read(&mut [0; 8]).await.unwrap_err();
                }
                3 => {
                    let (mut read, write) = one.into_split();
                    let task = annulus::spawn(async move { read.read(&mut [0; 8]).await });
                    drop(poll_once(pin!(other.peek(&mut [0; 8])).as_mut()).await);
                    drop(write);
                    settle().await;
                    task.abort();
                }
                4 => {
                    let (read, write) = one.into_split();
                    drop(read.reunite(write).unwrap());
                }
                5 => drop(one.into_std().expect("an idle stream")),
                _ => {
                    let bytes = vec![0; 8 << 20];
                    let writing = pin!(one.write_all(&bytes));
                    timeout(Duration::from_millis(5), writing).await.unwrap_err();
                }
            }
        }
        assert_descriptors(before).await;
    }

    #[alone]
    async fn tasks_that_panic_or_are_aborted_leave_no_descriptor() {
        let before = open_descriptors();
        for round in 0..20 {
            let (mut stream, peer) = with_peer(|stream| peer::expect_closed(&stream)).await;
            let task = annulus::spawn(async move {
                let _ = poll_once(pin!(stream.read(&mut [0; 8])).as_mut()).await;
                assert_eq!(round % 2, 0, "every second task panics");
                pending::<()>().await;
            });
            settle().await;
            task.abort();
            task.await.unwrap_err();
            peer.await;
        }
        assert_descriptors(before).await;
    }

    #[alone]
    #[deadline_s(60)]
    async fn dropped_operations_leave_no_memory() {
        let (mut stream, _other) = pair().await;
        let (listener, _) = listen().await;
        let mut grown = Vec::new();
        for _ in 0..4 {
            let before = resident_bytes();
            for _ in 0..20_000 {
                let _ = poll_once(pin!(stream.read(&mut [0; 64])).as_mut()).await;
                let _ = poll_once(pin!(listener.accept()).as_mut()).await;
                let _ = poll_once(pin!(sleep(Duration::from_secs(60))).as_mut()).await;
                annulus::task::yield_now().await;
            }
            settle().await;
            grown.push(resident_bytes().saturating_sub(before));
        }
        // The first round fills caches; after it, a leak of 32 bytes an operation would show.
        assert!(grown[3] < 2 << 20, "memory grew in the four rounds by {grown:?} bytes");
    }

    async fn a_dropped_accept_lets_go_of_its_task() {
        struct Idle;
        impl std::task::Wake for Idle {
            fn wake(self: Arc<Self>) {}
        }
        let (listener, _) = listen().await;
        let idle = Arc::new(Idle);
        let waker = std::task::Waker::from(Arc::clone(&idle));
        let mut accepting = Box::pin(listener.accept());
        let waiting = accepting.as_mut().poll(&mut std::task::Context::from_waker(&waker));
        assert!(waiting.is_pending());
        drop((accepting, waker));
        assert_eq!(Arc::strong_count(&idle), 1, "the listener keeps a task that has gone");
    }

    #[alone]
    #[deadline_s(60)]
    async fn finished_tasks_leave_no_memory() {
        let mut grown = Vec::new();
        for _ in 0..4 {
            let before = resident_bytes();
            for _ in 0..500 {
                let tasks: Vec<_> = (0..100).map(|n| annulus::spawn(async move { n })).collect();
                for task in tasks {
                    task.await.unwrap();
                }
            }
            grown.push(resident_bytes().saturating_sub(before));
        }
        assert!(grown[3] < 2 << 20, "memory grew in the four rounds by {grown:?} bytes");
    }

    #[alone]
    #[deadline_s(120)]
    async fn dropped_timers_give_their_memory_back() {
        let mut grown = Vec::new();
        for _ in 0..4 {
            let before = resident_bytes();
            let mut sleeps = Vec::new();
            for number in 0..200_000_u64 {
                let mut sleeping = Box::pin(sleep(Duration::from_millis(60_000 + number)));
                assert!(poll_once(sleeping.as_mut()).await.is_pending());
                sleeps.push(sleeping);
            }
            drop(sleeps);
            settle().await;
            grown.push(resident_bytes().saturating_sub(before));
        }
        assert!(grown[3] < 4 << 20, "memory grew in the four rounds by {grown:?} bytes");
    }
}

async fn assert_descriptors(before: usize) {
    let what = format!("{before} open descriptors again, now {}", open_descriptors());
    eventually(&what, || open_descriptors() <= before).await;
}
