//! tokio, on one thread and on its pool.

use std::io;

use bench_support::children::{Failure, announce};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use super::http;
use super::tokio_desk::Desk;
use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

pub(crate) fn does(_work: Work) -> bool {
    true
}

/// Which of its threads a task of the pool runs on is the pool's choice.
pub(crate) fn multi_thread_does(work: Work) -> bool {
    work != Work::Relay
}

pub(crate) fn current_thread(work: Work) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    if work == Work::Relay { serve_relay(&runtime) } else { serve(&runtime, work) }
}

/// As many threads as the process has processors, which is what a program gets that does not ask.
pub(crate) fn multi_thread(work: Work) -> Result<(), Failure> {
    serve(&Builder::new_multi_thread().enable_all().build()?, work)
}

fn serve(runtime: &Runtime, work: Work) -> Result<(), Failure> {
    let accepting = async move {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            stream.set_nodelay(true)?; // annulus does so by default.
            match work {
                Work::Echo { buffer_bytes } => tokio::spawn(echo(stream, buffer_bytes)),
                Work::SmallWrites => tokio::spawn(small_writes(stream)),
                Work::Source => tokio::spawn(source(stream)),
                Work::Sink => tokio::spawn(sink(stream)),
                Work::Http => tokio::spawn(http::serve(TokioIo::new(stream))),
                other => return Err(io::Error::other(format!("tokio has no server for {other}"))),
            };
        }
    };
    // On the pool only what is spawned runs there.
    Ok(runtime.block_on(async { tokio::spawn(accepting).await })??)
}

/// With a second runtime, on a thread of its own, which answers.
fn serve_relay(runtime: &Runtime) -> Result<(), Failure> {
    let desk = Desk::open(|clerk| {
        Builder::new_current_thread().enable_all().build()?.block_on(clerk.answer());
        Ok(())
    });
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(relay(stream, desk.clone()));
        }
    })
}

async fn relay(mut stream: TcpStream, desk: Desk) -> io::Result<()> {
    let mut request = vec![0; REQUEST_BYTES];
    loop {
        stream.read_exact(&mut request).await?;
        request = desk.ask(request).await?;
        stream.write_all(&request).await?;
    }
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
