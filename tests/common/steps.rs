//! Small steps that async tests are made of.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use annulus::net::{TcpListener, TcpStream};
use annulus::time::sleep;
use annulus::{BuildError, Runtime};

use super::bytes::Keyed;
use super::peer::{self, Peer, peer};
use super::process::READY;

/// A listener on a free port, and its address.
pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a listener");
    let addr = listener.local_addr().expect("address of the listener");
    (listener, addr)
}

/// A connection to a blocking peer, which does this work with its end.
pub(crate) async fn with_peer<T: Send + 'static>(
    work: impl FnOnce(std::net::TcpStream) -> T + Send + 'static,
) -> (TcpStream, Peer<T>) {
    let (listener, addr) = listen().await;
    // The kernel's backlog answers, so this waits for nobody. Both ends stand before any work: a
    // connection that is reset at once may fail to connect or never be handed out.
    let connected = peer::connect(addr);
    let (stream, _) = listener.accept().await.expect("accept the peer");
    (stream, peer(move || work(connected)))
}

/// Two ends of one connection, both on this runtime.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let (listener, addr) = listen().await;
    let connecting = annulus::spawn(TcpStream::connect(addr));
    let (accepted, _) = listener.accept().await.expect("accept");
    let connected = connecting.await.expect("the connecting task").expect("connect");
    (connected, accepted)
}

/// An echo server on a task of its own; it lives as long as the runtime.
pub(crate) async fn serve_echo() -> SocketAddr {
    let (listener, addr) = listen().await;
    annulus::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            // A reset peer ends its own connection and nothing else.
            annulus::spawn(async move { drop(echo(stream).await) });
        }
    });
    addr
}

/// Sends back what comes until the end of the stream.
pub(crate) async fn echo(stream: TcpStream) -> std::io::Result<()> {
    echo_by(stream, 16 * 1024).await
}

/// As [`echo`], so many bytes at a time.
pub(crate) async fn echo_by(mut stream: TcpStream, bytes: usize) -> std::io::Result<()> {
    let mut buf = vec![0; bytes];
    loop {
        match stream.read(&mut buf).await? {
            0 => return Ok(()),
            n => stream.write_all(&buf[..n]).await?,
        }
    }
}

/// Polls a future one time.
pub(crate) async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// The first of two results; the other future is dropped, as `select!` does.
pub(crate) async fn race<A, B>(
    left: impl Future<Output = A>,
    right: impl Future<Output = B>,
) -> Either<A, B> {
    let mut left = pin!(left);
    let mut right = pin!(right);
    poll_fn(|cx| {
        if let Poll::Ready(output) = left.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(output));
        }
        right.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

/// Which of two futures was first.
pub(crate) enum Either<A, B> {
    Left(A),
    Right(B),
}

/// Gives what is in flight the time to reach the kernel and come back. No test relies on it:
/// with less time it only tests an easier case.
pub(crate) async fn settle() {
    for _ in 0..3 {
        sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until the condition holds; fails when it does not in time.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + peer::patience();
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// `eventually` outside a runtime.
#[track_caller]
pub(crate) fn eventually_blocking(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + peer::patience();
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Ends a runtime of two shards while a task of the second one holds its thread.
pub(crate) fn end_beside_a_task_that_does_not_yield(runtime: Runtime) {
    let (started, is_running) = mpsc::channel();
    drop(runtime.shards()[1].spawn_with(move || async move {
        started.send(()).expect("the other end is there");
        loop {
            thread::park();
        }
    }));
    is_running.recv().expect("the task runs");
    drop(runtime);
}

/// Serves a peer that knows what must come back.
pub(crate) async fn serve_somebody() {
    let addr = serve_echo().await;
    peer(move || peer::echo(&peer::connect(addr), Keyed(1), 20_000)).await;
}

/// What a role does that is to tell on which driver it runs, or why on none: builds a runtime, and
/// serves somebody there.
pub(crate) fn build_and_tell() {
    match Runtime::new() {
        Ok(runtime) => {
            runtime.block_on(serve_somebody());
            println!("{READY}{}", runtime.driver());
        }
        Err(error @ BuildError::Refused(_)) => println!("{READY}error: refused: {error}"),
        Err(error) => println!("{READY}error: {error}"),
    }
}
