//! compio, on io_uring.

use std::io;

use bench_support::children::{Failure, announce};
use compio::BufResult;
use compio::driver::ProactorBuilder;
use compio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::Runtime;
use cyper_core::HyperStream;

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
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            compio::runtime::spawn(connection(stream, work, desk.clone())).detach();
        }
    })
}

/// The flags are those that its documentation names as an optimization for most programs, and as
/// belonging together. Against none, and against deferred task work, they measured the same within
/// the noise, and had the shorter tail of the two settings with a flag for pending task work.
fn runtime() -> io::Result<Runtime> {
    let mut ring = ProactorBuilder::new();
    ring.single_issuer(true).coop_taskrun(true).taskrun_flag(true);
    Runtime::builder().with_proactor(ring).build()
}

async fn connection(stream: TcpStream, work: Work, desk: Option<Desk>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match (work, desk) {
        (Work::Echo { buffer_bytes }, _) => echo(stream, buffer_bytes).await,
        (Work::SmallWrites, _) => small_writes(stream).await,
        (Work::Source, _) => source(stream).await,
        (Work::Sink, _) => sink(stream).await,
        (Work::Relay, Some(desk)) => relay(stream, desk).await,
        (Work::Http, _) => http::serve(HyperStream::new_plain(stream)).await,
        (other, _) => Err(io::Error::other(format!("compio has no server for {other}"))),
    }
}

async fn echo(mut stream: TcpStream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(buffer_bytes);
    let (mut received, mut sent);
    loop {
        BufResult(received, buffer) = stream.read(buffer).await;
        if received? == 0 {
            return Ok(());
        }
        BufResult(sent, buffer) = stream.write_all(buffer).await;
        sent?;
        buffer.clear();
    }
}

async fn small_writes(mut stream: TcpStream) -> io::Result<()> {
    let mut request = Box::new([0; REQUEST_BYTES]);
    let mut result;
    loop {
        BufResult(result, request) = stream.read_exact(request).await;
        result?;
        for _ in 0..SMALL_WRITES {
            BufResult(result, request) = stream.write_all(request).await;
            result?;
        }
    }
}

async fn source(mut stream: TcpStream) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut result;
    loop {
        BufResult(result, block) = stream.write_all(block).await;
        result?;
    }
}

async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let mut received;
    loop {
        BufResult(received, block) = stream.read(block).await;
        if received? == 0 {
            return Ok(());
        }
        block.clear();
    }
}

async fn relay(mut stream: TcpStream, desk: Desk) -> io::Result<()> {
    let mut request = Box::new([0; REQUEST_BYTES]);
    let mut result;
    loop {
        BufResult(result, request) = stream.read_exact(request).await;
        result?;
        request = desk.ask(request).await?;
        BufResult(result, request) = stream.write_all(request).await;
        result?;
    }
}
