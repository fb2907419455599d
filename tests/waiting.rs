//! Wake-ups: of the root future, while it spins and before a paused clock jumps; and of nobody by
//! what nobody waits for.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::task::Poll;
use std::time::{Duration, Instant};

use annulus::Runtime;
use annulus::task::yield_now;
use annulus::time::timeout;

use common::each_driver;
use common::steps::with_peer;

mod common;

each_driver! {
    fn a_root_future_is_woken_by_what_comes_while_spinning(driver: Driver) {
        let spin = Duration::from_millis(300);
        let runtime = Runtime::builder().driver(driver).spin(spin).build().unwrap();
        runtime.block_on(async {
            let (begins, begun) = channel();
            let (mut stream, peer) = with_peer(move |mut stream| {
                begun.recv().unwrap();
                // Time to begin to spin. With less the read is ready before it.
                std::thread::sleep(Duration::from_millis(50));
                stream.write_all(b"news").unwrap();
                stream
            })
            .await;
            let mut buf = [0; 4];
            let start = Instant::now();
            begins.send(()).unwrap();
            let read = timeout(Duration::from_secs(5), stream.read_exact(&mut buf)).await;
            read.expect("woken by the bytes, not by the timer").unwrap();
            assert_eq!(&buf, b"news");
            let took = start.elapsed();
            assert!(took < Duration::from_secs(3), "the root future slept for {took:?}");
            drop(peer.await);
        });
    }

    fn bytes_in_the_socket_come_before_a_jump_of_a_paused_clock(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (go, wait) = channel();
            let (done, written) = channel();
            let (mut stream, peer) = with_peer(move |mut stream| {
                for byte in wait {
                    stream.write_all(&[byte]).unwrap();
                    done.send(()).unwrap();
                }
            })
            .await;
            let mut buf = [0; 8];
            for byte in 0..20 {
                let before = timeout(Duration::from_millis(1), stream.read(&mut buf)).await;
                before.expect_err("nothing is there yet");
                go.send(byte).unwrap();
                // Blocks the shard, so that the bytes come while it looks at nothing.
                written.recv_timeout(Duration::from_secs(10)).expect("the peer writes");
                let start = annulus::time::Instant::now();
                let read = timeout(Duration::from_secs(3600), stream.read(&mut buf)).await;
                assert_eq!(read.expect("the bytes came first").unwrap(), 1);
                assert_eq!(buf[0], byte);
                assert_eq!(start.elapsed(), Duration::ZERO, "the clock jumped past the bytes");
            }
            drop(go);
            peer.join();
        });
    }

    async fn bytes_that_nobody_waits_for_wake_a_task_once() {
        let (go, wait) = channel();
        let (done, written) = channel();
        let (mut stream, peer) = with_peer(move |mut stream| {
            for byte in wait {
                stream.write_all(&[byte]).unwrap();
                done.send(()).unwrap();
            }
        })
        .await;
        let polls = Rc::new(Cell::new(0));
        let task = annulus::spawn({
            let polls = Rc::clone(&polls);
            async move {
                // Begins to wait for the bytes, and gives up.
                let mut buf = [0];
                let given_up = poll_fn(|cx| Poll::Ready(pin!(stream.read(&mut buf)).poll(cx)));
                assert!(given_up.await.is_pending(), "nothing is there yet");
                poll_fn(|_| {
                    polls.set(polls.get() + 1);
                    Poll::<()>::Pending
                })
                .await;
                drop(stream);
            }
        });
        yield_now().await;
        for byte in 0..5 {
            go.send(byte).unwrap();
            written.recv_timeout(Duration::from_secs(10)).expect("the peer writes");
            // Turns, in which the bytes are found.
            for _ in 0..5 {
                yield_now().await;
            }
        }
        assert!((1..=2).contains(&polls.get()), "polled {} times", polls.get());
        drop(go);
        peer.await;
        task.abort();
    }
}
