//! annulus, on each of its drivers.

use std::io;

use annulus::net::{TcpListener, TcpStream};
use annulus::{Driver, Shard};
use bench_support::children::{Failure, announce};

use super::http;
use crate::work::{REQUEST_BYTES, Work};

pub(crate) fn does(work: Work) -> bool {
    matches!(work, Work::Echo { .. } | Work::Relay | Work::Http)
}

pub(crate) fn uring(work: Work) -> Result<(), Failure> {
    serve(Driver::Uring, work)
}

pub(crate) fn epoll(work: Work) -> Result<(), Failure> {
    serve(Driver::Epoll, work)
}

fn serve(driver: Driver, work: Work) -> Result<(), Failure> {
    // Only a relay has use for a second one.
    let shards = if work == Work::Relay { 2 } else { 1 };
    let runtime = annulus::Runtime::builder().driver(driver).shards(shards).build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            match work {
                Work::Echo { buffer_bytes } => annulus::spawn(echo(stream, buffer_bytes)),
                Work::Relay => annulus::spawn(relay(stream, runtime.shards()[1].clone())),
                Work::Http => annulus::spawn(http::serve(stream)),
                other => return Err(format!("annulus has no server for {other}").into()),
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

/// A task on another shard is asked by being spawned there, and answers through its handle.
async fn relay(mut stream: TcpStream, other: Shard) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    loop {
        stream.read_exact(&mut request).await?;
        let answer = other.spawn_with(move || async move { request }).await;
        stream.write_all(&answer.map_err(io::Error::other)?).await?;
    }
}
