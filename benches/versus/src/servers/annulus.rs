//! annulus, on each of its drivers, with each of its ways to read.

use std::io;
use std::time::Duration;

use annulus::net::{TcpListener, TcpStream};
use annulus::{Driver, Shard};
use bench_support::children::{Failure, announce};

use super::http;
use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

/// How long a server that spins looks for work before it sleeps: as good as for ever.
const SPIN: Duration = Duration::from_millis(100);

pub(crate) fn does(_any: Work) -> bool {
    true
}

/// The ways to read differ only here.
pub(crate) fn echoes(work: Work) -> bool {
    matches!(work, Work::Echo { .. })
}

/// How an echo reads and writes.
#[derive(Clone, Copy)]
enum Buffers {
    /// `read` and `write_all`, as everywhere.
    Borrowed,
    /// `recv` and `send_all`, with a buffer that goes along.
    Owned,
    /// `recv_lease` and `send_all`: from where the kernel has put it.
    Leased,
}

pub(crate) fn uring(work: Work) -> Result<(), Failure> {
    serve(Driver::Uring, Buffers::Borrowed, Duration::ZERO, work)
}

pub(crate) fn uring_owned(work: Work) -> Result<(), Failure> {
    serve(Driver::Uring, Buffers::Owned, Duration::ZERO, work)
}

pub(crate) fn uring_leased(work: Work) -> Result<(), Failure> {
    serve(Driver::Uring, Buffers::Leased, Duration::ZERO, work)
}

pub(crate) fn uring_spin(work: Work) -> Result<(), Failure> {
    serve(Driver::Uring, Buffers::Borrowed, SPIN, work)
}

pub(crate) fn epoll(work: Work) -> Result<(), Failure> {
    serve(Driver::Epoll, Buffers::Borrowed, Duration::ZERO, work)
}

pub(crate) fn epoll_owned(work: Work) -> Result<(), Failure> {
    serve(Driver::Epoll, Buffers::Owned, Duration::ZERO, work)
}

pub(crate) fn epoll_leased(work: Work) -> Result<(), Failure> {
    serve(Driver::Epoll, Buffers::Leased, Duration::ZERO, work)
}

pub(crate) fn epoll_spin(work: Work) -> Result<(), Failure> {
    serve(Driver::Epoll, Buffers::Borrowed, SPIN, work)
}

fn serve(driver: Driver, buffers: Buffers, spin: Duration, work: Work) -> Result<(), Failure> {
    // Two shards where one is to ask the other; they share the processor.
    let shards = if work == Work::Relay { 2 } else { 1 };
    let runtime = annulus::Runtime::builder().driver(driver).shards(shards).spin(spin).build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            match (work, buffers) {
                (Work::Echo { buffer_bytes }, Buffers::Borrowed) => {
                    annulus::spawn(echo(stream, buffer_bytes))
                }
                (Work::Echo { buffer_bytes }, Buffers::Owned) => {
                    annulus::spawn(echo_owned(stream, buffer_bytes))
                }
                (Work::Echo { .. }, Buffers::Leased) => annulus::spawn(echo_leased(stream)),
                (Work::SmallWrites, _) => annulus::spawn(small_writes(stream)),
                (Work::Source, _) => annulus::spawn(source(stream)),
                (Work::Sink, _) => annulus::spawn(sink(stream)),
                (Work::Relay, _) => annulus::spawn(relay(stream, runtime.shards()[1].clone())),
                (Work::Http, _) => annulus::spawn(http::serve(stream)),
            };
        }
    })
}

async fn echo(mut stream: TcpStream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            received => stream.write_all(&buffer[..received]).await?,
        }
    }
}

async fn echo_owned(mut stream: TcpStream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(buffer_bytes);
    loop {
        let (received, bytes) = stream.recv(buffer).await?;
        if received == 0 {
            return Ok(());
        }
        (_, buffer) = stream.send_all(bytes).await?;
    }
}

async fn echo_leased(mut stream: TcpStream) -> io::Result<()> {
    loop {
        let lease = stream.recv_lease().await?;
        if lease.is_empty() {
            return Ok(());
        }
        let (_sent, _returned_by_its_drop) = stream.send_all(lease).await?;
    }
}

async fn small_writes(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    loop {
        stream.read_exact(&mut request).await?;
        for _ in 0..SMALL_WRITES {
            stream.write_all(&request).await?;
        }
    }
}

async fn source(mut stream: TcpStream) -> io::Result<()> {
    let block = vec![0; BLOCK_BYTES];
    loop {
        stream.write_all(&block).await?;
    }
}

async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    while stream.read(&mut block).await? > 0 {}
    Ok(())
}

/// A task on another shard is asked by being spawned there, and answers through its handle.
async fn relay(mut stream: TcpStream, other: Shard) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    loop {
        stream.read_exact(&mut request).await?;
        let answer = other.spawn_with(move || async move { request }).await;
        stream.write_all(&answer.map_err(io::Error::other)?).await?;
    }
}
