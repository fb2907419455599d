//! Peers: blocking standard-library sockets on threads of their own, with their own timeouts.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use super::bytes::{Cursor, Keyed, Numbers};
use super::storm;

/// Runs blocking work on its own thread. Await the peer inside a runtime, `join` it outside.
pub(crate) fn peer<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Peer<T> {
    let outcome = Arc::new(Mutex::new(Outcome { result: None, waker: None }));
    let shared = Arc::clone(&outcome);
    let thread = thread::Builder::new()
        .name("peer".into())
        .spawn(move || {
            storm::keep_out();
            let result = catch_unwind(AssertUnwindSafe(work));
            let waker = {
                let mut outcome = shared.lock().expect("no panic under this lock");
                outcome.result = Some(result);
                outcome.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        })
        .expect("spawn a peer");
    Peer { outcome, thread }
}

/// Work on another thread; gives its result, or goes on with its panic.
pub(crate) struct Peer<T> {
    outcome: Arc<Mutex<Outcome<T>>>,
    thread: thread::JoinHandle<()>,
}

struct Outcome<T> {
    result: Option<thread::Result<T>>,
    waker: Option<Waker>,
}

impl<T> Peer<T> {
    /// Waits, blocking this thread.
    pub(crate) fn join(self) -> T {
        self.thread.join().expect("the peer's panic was caught");
        let result = self.outcome.lock().expect("no panic under this lock").result.take();
        result.expect("the peer left a result").unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Whether the work is over.
    pub(crate) fn is_over(&self) -> bool {
        self.outcome.lock().expect("no panic under this lock").result.is_some()
    }
}

impl<T> Future for Peer<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut outcome = self.outcome.lock().expect("no panic under this lock");
        match outcome.result.take() {
            Some(result) => {
                drop(outcome);
                Poll::Ready(result.unwrap_or_else(|panic| resume_unwind(panic)))
            }
            None => {
                outcome.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A blocking connection whose every call ends in time.
#[track_caller]
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    // A signal says nothing of the server.
    let connected = uninterrupted(|| TcpStream::connect_timeout(&addr, patience()));
    with_timeouts(connected.expect("connect to the server"))
}

/// A listener of the standard library on a port of its own.
pub(crate) fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a peer's listener");
    let addr = listener.local_addr().expect("address of a peer's listener");
    (listener, addr)
}

/// A listener whose backlog is full: further connects neither succeed nor fail.
pub(crate) fn full_listener() -> (TcpListener, Vec<TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("make a socket");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    socket.bind(&any.into()).expect("bind a peer's listener");
    socket.listen(1).expect("listen at a peer");
    let listener: TcpListener = socket.into();
    let addr = listener.local_addr().expect("address of a peer's listener");
    let patience = Duration::from_millis(50);
    let connect = || TcpStream::connect_timeout(&addr, patience).ok();
    let queued = std::iter::from_fn(connect).collect();
    (listener, queued)
}

/// Accepts one connection, whose every call ends in time.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    with_timeouts(listener.accept().expect("accept at a peer").0)
}

/// Makes the drop of this connection a reset.
pub(crate) fn reset(stream: TcpStream) {
    let option = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    option.expect("set the peer's linger time");
}

/// Sends the next `len` bytes of the stream, in pieces.
#[track_caller]
pub(crate) fn send(mut stream: &TcpStream, cursor: &mut Cursor, len: usize) {
    let mut rest = len;
    while rest > 0 {
        let piece = rest.min(PIECE);
        stream.write_all(&cursor.next(piece)).expect("a peer's write");
        rest -= piece;
    }
}

/// Receives the next `len` bytes and checks each.
#[track_caller]
pub(crate) fn expect(mut stream: &TcpStream, cursor: &mut Cursor, len: usize) {
    let mut buf = vec![0; PIECE.min(len)];
    let mut rest = len;
    while rest > 0 {
        let piece = rest.min(buf.len());
        stream.read_exact(&mut buf[..piece]).expect("a peer's read");
        cursor.check(&buf[..piece]);
        rest -= piece;
    }
}

/// Receives until the end of the stream, checks each byte, and returns how many there were.
#[track_caller]
pub(crate) fn expect_until_end(stream: &TcpStream, cursor: &mut Cursor) -> u64 {
    let start = cursor.offset;
    let mut buf = vec![0; PIECE];
    loop {
        match read(stream, &mut buf).expect("a peer's read") {
            0 => return cursor.offset - start,
            n => cursor.check(&buf[..n]),
        }
    }
}

/// Fails unless the stream is at its end: a FIN, not a reset, not a byte.
#[track_caller]
pub(crate) fn expect_end(stream: &TcpStream) {
    let mut byte = [0];
    assert_eq!(read(stream, &mut byte).expect("a peer's read at the end"), 0, "more bytes came");
}

/// Fails unless the connection is over, by a FIN or by a reset.
#[track_caller]
pub(crate) fn expect_closed(stream: &TcpStream) {
    let mut byte = [0];
    match read(stream, &mut byte) {
        Ok(0) => {}
        Ok(_) => panic!("more bytes came on a connection that should be over"),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection is not over: {error}"),
    }
}

fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    uninterrupted(|| stream.read(buffer))
}

/// One call, made again when a signal ends it: also a test's own thread may stand in a storm.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            answer => return answer,
        }
    }
}

/// Sends `len` bytes of the stream to an echo server and checks that they come back.
#[track_caller]
pub(crate) fn echo(stream: &TcpStream, key: Keyed, len: usize) {
    let mut sent = key.cursor();
    let mut received = key.cursor();
    if len <= PIECE {
        send(stream, &mut sent, len);
        expect(stream, &mut received, len);
        return;
    }
    // More than the sockets hold: send and receive at the same time.
    let other = stream.try_clone().expect("a second handle of the connection");
    let sender = peer(move || send(&other, &mut sent, len));
    expect(stream, &mut received, len);
    sender.join();
}

/// Echoes over 50 connections to a server in turn, so that many have bytes under way at once.
#[track_caller]
pub(crate) fn echo_interleaved(addr: SocketAddr, key: u64) {
    let mut connections: Vec<_> = (0..50)
        .map(|index| {
            let key = Keyed(1000 * key + index);
            (connect(addr), key.cursor(), key.cursor())
        })
        .collect();
    let mut sizes = Numbers(key);
    for _ in 0..20 {
        let lens: Vec<usize> = connections.iter().map(|_| 1 + sizes.below(6000) as usize).collect();
        for ((stream, sent, _), &len) in connections.iter_mut().zip(&lens) {
            send(stream, sent, len);
        }
        for ((stream, _, received), &len) in connections.iter_mut().zip(&lens) {
            expect(stream, received, len);
        }
    }
}

fn with_timeouts(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(patience())).expect("set the peer's read timeout");
    stream.set_write_timeout(Some(patience())).expect("set the peer's write timeout");
    stream.set_nodelay(true).expect("set the peer's nodelay");
    stream
}

/// How long a peer waits for anything; below the watchdog's deadline, so that the peer reports it.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(10) * super::slower()
}

const PIECE: usize = 16 * 1024;
