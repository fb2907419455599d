//! monoio, on io_uring.
//!
//! The driver is named, as its documentation advises for speed: the one that chooses at run time
//! brings a `match` into every operation.

use std::io;

use bench_support::children::{Failure, announce};
use hyper_util::rt::TokioIo;
use monoio::io::{AsyncReadRent, AsyncReadRentExt, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, Runtime, RuntimeBuilder};
use monoio_compat::TcpStreamCompat;
use monoio_ring::IoUring;

use super::desk::Desk;
use super::http;
use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

pub(crate) fn does(_work: Work) -> bool {
    true
}

pub(crate) fn serve(work: Work) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let desk = matches!(work, Work::Relay).then(|| {
            Desk::open(|clerk| {
                runtime()?.block_on(clerk.answer());
                Ok(())
            })
        });
        let listener = TcpListener::bind("127.0.0.1:0")?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            monoio::spawn(connection(stream, work, desk.clone()));
        }
    })
}

/// Of the flags that a user can give its ring these made one connection 6 % cheaper, and did as
/// well as any other or none at 64 (medians of 20 and 50 rounds).
fn runtime() -> io::Result<Runtime<IoUringDriver>> {
    let mut ring = IoUring::builder();
    ring.setup_single_issuer().setup_defer_taskrun();
    RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring).build()
}

async fn connection(stream: TcpStream, work: Work, desk: Option<Desk>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match (work, desk) {
        (Work::Echo { buffer_bytes }, _) => echo(stream, buffer_bytes).await,
        (Work::SmallWrites, _) => small_writes(stream).await,
        (Work::Source, _) => source(stream).await,
        (Work::Sink, _) => sink(stream).await,
        (Work::Relay, Some(desk)) => relay(stream, desk).await,
        // Its other way, by readiness, is a feature that puts an epoll instance into every ring.
        (Work::Http, _) => http::serve(TokioIo::new(TcpStreamCompat::new(stream))).await,
        (other, _) => Err(io::Error::other(format!("monoio has no server for {other}"))),
    }
}

async fn echo(mut stream: TcpStream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(buffer_bytes);
    let mut result;
    loop {
        (result, buffer) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        (result, buffer) = stream.write_all(buffer).await;
        result?;
        buffer.clear();
    }
}

async fn small_writes(mut stream: TcpStream) -> io::Result<()> {
    let mut request = Box::new([0; REQUEST_BYTES]);
    let mut result;
    loop {
        (result, request) = stream.read_exact(request).await;
        result?;
        for _ in 0..SMALL_WRITES {
            (result, request) = stream.write_all(request).await;
            result?;
        }
    }
}

async fn source(mut stream: TcpStream) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut result;
    loop {
        (result, block) = stream.write_all(block).await;
        result?;
    }
}

async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut result;
    loop {
        (result, block) = stream.read(block).await;
        if result? == 0 {
            return Ok(());
        }
        block.clear();
    }
}

async fn relay(mut stream: TcpStream, desk: Desk) -> io::Result<()> {
    let mut request = Box::new([0; REQUEST_BYTES]);
    let mut result;
    loop {
        (result, request) = stream.read_exact(request).await;
        result?;
        request = desk.ask(request).await?;
        (result, request) = stream.write_all(request).await;
        result?;
    }
}
