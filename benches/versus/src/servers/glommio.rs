//! glommio: its rings tell when a socket is ready, system calls do the rest.
//!
//! Everything is left as it is by default. There is no setting for the flags of its rings, and no
//! use here for the memory that it registers for storage.

use std::io;

use bench_support::children::{Failure, announce};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutor, LocalExecutorBuilder};
use smol::io::{AsyncReadExt, AsyncWriteExt};

use super::desk::Desk;
use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

pub(crate) fn does(work: Work) -> bool {
    work != Work::Http
}

pub(crate) fn serve(work: Work) -> Result<(), Failure> {
    executor()?.run(async {
        let desk = matches!(work, Work::Relay).then(|| {
            Desk::open(|clerk| {
                executor()?.run(clerk.answer());
                Ok(())
            })
        });
        let listener = TcpListener::bind("127.0.0.1:0")?;
        announce(listener.local_addr()?);
        loop {
            let stream = listener.accept().await?;
            glommio::spawn_local(connection(stream, work, desk.clone())).detach();
        }
    })
}

fn executor() -> Result<LocalExecutor, Failure> {
    // Where it is refused a ring it ends the process, and says that memory may not be locked.
    drop(io_uring::IoUring::new(2)?);
    Ok(LocalExecutorBuilder::default().make()?)
}

async fn connection(stream: TcpStream, work: Work, desk: Option<Desk>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match (work, desk) {
        (Work::Echo { buffer_bytes }, _) => echo(stream, buffer_bytes).await,
        (Work::SmallWrites, _) => small_writes(stream).await,
        (Work::Source, _) => source(stream).await,
        (Work::Sink, _) => sink(stream).await,
        (Work::Relay, Some(desk)) => relay(stream, desk).await,
        (other, _) => Err(io::Error::other(format!("glommio has no server for {other}"))),
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

async fn relay(mut stream: TcpStream, desk: Desk) -> io::Result<()> {
    let mut request = Box::new([0; REQUEST_BYTES]);
    loop {
        stream.read_exact(&mut request[..]).await?;
        request = desk.ask(request).await?;
        stream.write_all(&request[..]).await?;
    }
}
