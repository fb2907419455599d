//! What a server does with a connection, by the traits of `futures-io` that several runtimes share.

use std::io;

use smol::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use smol_hyper::rt::FuturesIo;

use super::desk::Desk;
use super::http;
use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

pub(super) async fn serve(stream: impl Stream, work: Work, desk: Option<Desk>) -> io::Result<()> {
    match (work, desk) {
        (Work::Echo { buffer_bytes }, _) => echo(stream, buffer_bytes).await,
        (Work::SmallWrites, _) => small_writes(stream).await,
        (Work::Source, _) => source(stream).await,
        (Work::Sink, _) => sink(stream).await,
        (Work::Relay, Some(desk)) => relay(stream, desk).await,
        (Work::Http, _) => http::serve(FuturesIo::new(stream)).await,
        (other, _) => Err(io::Error::other(format!("no server by these traits for {other}"))),
    }
}

async fn echo(mut stream: impl Stream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            received => stream.write_all(&buffer[..received]).await?,
        }
    }
}

async fn small_writes(mut stream: impl Stream) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    loop {
        stream.read_exact(&mut request).await?;
        for _ in 0..SMALL_WRITES {
            stream.write_all(&request).await?;
        }
    }
}

async fn source(mut stream: impl Stream) -> io::Result<()> {
    let block = vec![0; BLOCK_BYTES];
    loop {
        stream.write_all(&block).await?;
    }
}

async fn sink(mut stream: impl Stream) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    while stream.read(&mut block).await? > 0 {}
    Ok(())
}

async fn relay(mut stream: impl Stream, desk: Desk) -> io::Result<()> {
    let mut request = Box::new([0; REQUEST_BYTES]);
    loop {
        stream.read_exact(&mut request[..]).await?;
        request = desk.ask(request).await?;
        stream.write_all(&request[..]).await?;
    }
}
