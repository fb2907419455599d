//! Waiting costs no processor time, whatever is waited for.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use annulus::net::TcpStream;
use annulus::time::{sleep, timeout};

use common::each_driver;
use common::peer;
use common::process::cpu_ms;
use common::steps::{listen, pair, settle, with_peer};

mod common;

each_driver! {
    #[alone]
    async fn a_runtime_with_nothing_to_do_costs_nothing() {
        let _listener = listen().await;
        let _streams = pair().await;
        settle().await;
        assert_idle("nothing", sleep(LONG_ENOUGH)).await;
    }

    #[alone]
    async fn pending_reads_and_accepts_cost_nothing() {
        let (mut one, mut other) = pair().await;
        let (listener, _) = listen().await;
        settle().await;
        assert_idle("a read", timeout(LONG_ENOUGH, one.read(&mut [0; 8]))).await;
        assert_idle("a read", timeout(LONG_ENOUGH, other.read_exact(&mut [0; 8]))).await;
        assert_idle("an accept", timeout(LONG_ENOUGH, listener.accept())).await;
    }

    #[alone]
    async fn a_pending_write_costs_nothing() {
        let (mut stream, _peer) = stuck(Unsent::Much).await;
        assert_idle("a write", timeout(LONG_ENOUGH, stream.write(&[1]))).await;
        assert_idle("a large write", timeout(LONG_ENOUGH, stream.write_all(&[1; 100_000]))).await;
    }

    #[alone]
    async fn a_pending_flush_costs_nothing() {
        for unsent in [Unsent::Little, Unsent::Much] {
            let (mut stream, _peer) = stuck(unsent).await;
            assert_idle("a flush", timeout(LONG_ENOUGH, stream.flush())).await;
            assert_idle("another flush", timeout(LONG_ENOUGH, stream.flush())).await;
        }
    }

    #[alone]
    async fn a_pending_shutdown_costs_nothing() {
        for unsent in [Unsent::Little, Unsent::Much] {
            let (mut stream, _peer) = stuck(unsent).await;
            assert_idle("a shutdown", timeout(LONG_ENOUGH, stream.shutdown())).await;
        }
    }

    #[alone]
    async fn a_dropped_stream_with_unsent_bytes_costs_nothing() {
        for unsent in [Unsent::Little, Unsent::Much] {
            let (stream, _peer) = stuck(unsent).await;
            drop(stream);
            settle().await;
            assert_idle("a dropped stream", sleep(LONG_ENOUGH)).await;
        }
    }

    #[alone]
    async fn unread_bytes_cost_nothing() {
        let (mut stream, peer) = with_peer(|stream| {
            peer::send(&stream, &mut common::bytes::Keyed(1).cursor(), 200_000);
            stream
        })
        .await;
        let _peer = peer.await;
        stream.peek(&mut [0; 8]).await.unwrap();
        settle().await;
        assert_idle("a stream that nobody reads", sleep(LONG_ENOUGH)).await;
    }

    #[alone]
    async fn a_peers_end_that_nobody_reads_costs_nothing() {
        let (stream, peer) = with_peer(drop).await;
        peer.await;
        settle().await;
        assert_idle("an end that nobody reads", sleep(LONG_ENOUGH)).await;
        drop(stream);
    }

    #[alone]
    async fn a_reset_connection_nobody_reads_costs_nothing() {
        let (mut stream, peer) = with_peer(peer::reset).await;
        peer.await;
        settle().await;
        assert_idle("a reset that nobody reads", sleep(LONG_ENOUGH)).await;
        stream.read(&mut [0; 8]).await.unwrap_err();
    }

    #[alone]
    async fn urgent_bytes_that_nobody_reads_cost_nothing() {
        let (mut stream, peer) = with_peer(|stream| {
            socket2::SockRef::from(&stream).send_out_of_band(b"!").unwrap();
            stream
        })
        .await;
        let _peer = peer.await;
        assert_idle("urgent bytes", timeout(LONG_ENOUGH, stream.read(&mut [0; 8]))).await;
    }

    // Their events come in all at once, to a descriptor on which something else is awaited.
    #[alone]
    async fn an_end_beside_a_pending_write_costs_nothing() {
        let (mut stream, peer) = stuck(Unsent::Much).await;
        timeout(Duration::from_millis(5), stream.read(&mut [0; 8])).await.unwrap_err();
        peer.shutdown(Shutdown::Write).unwrap();
        settle().await;
        assert_idle("a write after the peer's end", timeout(LONG_ENOUGH, stream.write(&[1]))).await;
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert_idle("a write after the end", timeout(LONG_ENOUGH, stream.write(&[1]))).await;
    }

    #[alone]
    async fn a_half_closed_connection_costs_nothing() {
        let (mut stream, peer) = with_peer(|stream| stream).await;
        let peer = peer.await;
        stream.shutdown().await.unwrap();
        assert_idle("a read", timeout(LONG_ENOUGH, stream.read(&mut [0; 8]))).await;
        peer.shutdown(Shutdown::Write).unwrap();
        settle().await;
        assert_idle("nothing, on both sides", sleep(LONG_ENOUGH)).await;
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        drop(peer);
        settle().await;
        assert_idle("nothing", sleep(LONG_ENOUGH)).await;
    }

    #[alone]
    async fn a_reset_after_a_dropped_read_costs_nothing() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (mut stream, peer) = with_peer(move |stream| {
            wait.recv().unwrap();
            peer::reset(stream);
        })
        .await;
        timeout(Duration::from_millis(5), stream.read(&mut [0; 8])).await.unwrap_err();
        go.send(()).unwrap();
        peer.await;
        settle().await;
        assert_idle("a reset that nobody reads", sleep(LONG_ENOUGH)).await;
        stream.read(&mut [0; 8]).await.unwrap_err();
    }

    // Urgent bytes lie in front of the others until somebody reads these.
    #[alone]
    async fn urgent_bytes_between_unread_ones_cost_nothing() {
        let (mut stream, peer) = with_peer(|mut stream| {
            for _ in 0..10 {
                stream.write_all(b"before").unwrap();
                socket2::SockRef::from(&stream).send_out_of_band(b"!").unwrap();
            }
            stream
        })
        .await;
        timeout(Duration::from_millis(5), stream.peek(&mut [0; 8])).await.unwrap().unwrap();
        let _peer = peer.await;
        settle().await;
        assert_idle("urgent bytes", sleep(LONG_ENOUGH)).await;
        drop(stream);
    }

    #[alone]
    async fn an_endless_sleep_costs_nothing() {
        let endless = annulus::spawn(sleep(Duration::MAX));
        settle().await;
        assert_idle("an endless sleep", sleep(LONG_ENOUGH)).await;
        endless.abort();
    }
}

/// How much the runtime holds that the kernel does not take.
#[derive(Clone, Copy)]
enum Unsent {
    /// There is room for more writes, which is no reason to look again and again.
    Little,
    /// As much as a stream may hold.
    Much,
}

/// A stream whose peer reads nothing.
async fn stuck(unsent: Unsent) -> (TcpStream, std::net::TcpStream) {
    let (mut stream, peer) = with_peer(|stream| stream).await;
    let bytes = vec![0; 8 << 20];
    match unsent {
        Unsent::Little => {
            // Straight from here, as much as the kernel takes; the rest of the test is behind it.
            stream.write(&bytes).await.unwrap();
            stream.write_all(&bytes[..1000]).await.unwrap();
            settle().await;
        }
        Unsent::Much => {
            while timeout(Duration::from_millis(50), stream.write(&bytes)).await.is_ok() {}
        }
    }
    (stream, peer.await)
}

async fn assert_idle<T>(what: &str, waiting: impl Future<Output = T>) {
    let before = cpu_ms();
    drop(waiting.await);
    let spent = cpu_ms() - before;
    assert!(spent < 150, "{spent} ms of processor time in {LONG_ENOUGH:?} of waiting for {what}");
}

// A spinning thread takes most of it, an idle one nothing; the bound lies between.
const LONG_ENOUGH: Duration = Duration::from_millis(500);
