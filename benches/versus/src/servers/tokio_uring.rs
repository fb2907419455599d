//! tokio-uring: a ring as a guest of tokio's runtime of one thread.
//!
//! Its channels are tokio's, as everything is that it does not do by the ring.

use std::io;

use bench_support::children::{Failure, announce};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

use super::tokio_desk::Desk;
use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

pub(crate) fn does(work: Work) -> bool {
    work != Work::Http
}

pub(crate) fn serve(work: Work) -> Result<(), Failure> {
    start(async move {
        let desk = matches!(work, Work::Relay).then(|| {
            Desk::open(|clerk| {
                start(clerk.answer())?;
                Ok(())
            })
        });
        let listener = TcpListener::bind(([127, 0, 0, 1], 0).into())?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            tokio_uring::spawn(connection(stream, work, desk.clone()));
        }
    })?
}

/// Runs the future on a runtime of this thread.
///
/// Cooperative task work measured the same as no flag, a single issuer made it 5 % dearer, and with
/// deferred task work nothing is ever answered: the driver reads completions without entering.
fn start<F: Future>(future: F) -> io::Result<F::Output> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun();
    // The runtime itself panics where it is refused a ring.
    drop(ring.build(2)?);
    Ok(tokio_uring::builder().uring_builder(&ring).start(future))
}

async fn connection(stream: TcpStream, work: Work, desk: Option<Desk>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match (work, desk) {
        (Work::Echo { buffer_bytes }, _) => echo(&stream, buffer_bytes).await,
        (Work::SmallWrites, _) => small_writes(&stream).await,
        (Work::Source, _) => source(&stream).await,
        (Work::Sink, _) => sink(&stream).await,
        (Work::Relay, Some(desk)) => relay(&stream, desk).await,
        (other, _) => Err(io::Error::other(format!("tokio-uring has no server for {other}"))),
    }
}

async fn echo(stream: &TcpStream, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        let (received, filled) = stream.read(buffer).await;
        let received = received?;
        if received == 0 {
            return Ok(());
        }
        let (sent, filled) = stream.write_all(filled.slice(..received)).await;
        sent?;
        buffer = filled.into_inner();
    }
}

async fn small_writes(stream: &TcpStream) -> io::Result<()> {
    let mut request = vec![0; REQUEST_BYTES];
    let mut sent;
    loop {
        request = read_exact(stream, request).await?;
        for _ in 0..SMALL_WRITES {
            (sent, request) = stream.write_all(request).await;
            sent?;
        }
    }
}

async fn source(stream: &TcpStream) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut sent;
    loop {
        (sent, block) = stream.write_all(block).await;
        sent?;
    }
}

async fn sink(stream: &TcpStream) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut received;
    loop {
        (received, block) = stream.read(block).await;
        if received? == 0 {
            return Ok(());
        }
    }
}

async fn relay(stream: &TcpStream, desk: Desk) -> io::Result<()> {
    let mut request = vec![0; REQUEST_BYTES];
    let mut sent;
    loop {
        request = read_exact(stream, request).await?;
        request = desk.ask(request).await?;
        (sent, request) = stream.write_all(request).await;
        sent?;
    }
}

/// Fills the buffer, which has the length of a request. The crate has no such call.
async fn read_exact(stream: &TcpStream, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut filled = 0;
    while filled < buffer.len() {
        let (received, rest) = stream.read(buffer.slice(filled..)).await;
        buffer = rest.into_inner();
        match received? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => filled += received,
        }
    }
    Ok(buffer)
}
