//! smol, on one thread.

use std::io;
use std::net::{TcpListener, TcpStream};

use bench_support::children::{Failure, announce};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::{Async, LocalExecutor};

use super::desk::Desk;
use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

type Stream = Async<TcpStream>;

pub(crate) fn does(work: Work) -> bool {
    work != Work::Http
}

pub(crate) fn serve(work: Work) -> Result<(), Failure> {
    let executor = LocalExecutor::new();
    smol::block_on(executor.run(async {
        let desk = matches!(work, Work::Relay).then(|| {
            Desk::open(|clerk| {
                smol::block_on(clerk.answer());
                Ok(())
            })
        });
        let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0))?;
        announce(listener.get_ref().local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            executor.spawn(connection(stream, work, desk.clone())).detach();
        }
    }))
}

async fn connection(stream: Stream, work: Work, desk: Option<Desk>) -> io::Result<()> {
    stream.get_ref().set_nodelay(true)?;
    match (work, desk) {
        (Work::Echo { buffer_bytes }, _) => echo(stream, buffer_bytes).await,
        (Work::SmallWrites, _) => small_writes(stream).await,
        (Work::Source, _) => source(stream).await,
        (Work::Sink, _) => sink(stream).await,
        (Work::Relay, Some(desk)) => relay(stream, desk).await,
        (other, _) => Err(io::Error::other(format!("smol has no server for {other}"))),
    }
}
async fn echo(mut stream: Stream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            received => stream.write_all(&buffer[..received]).await?,
        }
    }
}

async fn small_writes(mut stream: Stream) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    loop {
        stream.read_exact(&mut request).await?;
        for _ in 0..SMALL_WRITES {
            stream.write_all(&request).await?;
        }
    }
}

async fn source(mut stream: Stream) -> io::Result<()> {
    let block = vec![0; BLOCK_BYTES];
    loop {
        stream.write_all(&block).await?;
    }
}

async fn sink(mut stream: Stream) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    while stream.read(&mut block).await? > 0 {}
    Ok(())
}

async fn relay(mut stream: Stream, desk: Desk) -> io::Result<()> {
    let mut request = Box::new([0; REQUEST_BYTES]);
    loop {
        stream.read_exact(&mut request[..]).await?;
        request = desk.ask(request).await?;
        stream.write_all(&request[..]).await?;
    }
}
