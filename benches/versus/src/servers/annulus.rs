//! annulus, on each of its drivers.

use std::io;

use annulus::Driver;
use annulus::net::{TcpListener, TcpStream};
use bench_support::children::{Failure, announce};

use super::http;
use crate::work::Work;

pub(crate) fn does(work: Work) -> bool {
    matches!(work, Work::Echo { .. } | Work::Http)
}

pub(crate) fn uring(work: Work) -> Result<(), Failure> {
    serve(Driver::Uring, work)
}

pub(crate) fn epoll(work: Work) -> Result<(), Failure> {
    serve(Driver::Epoll, work)
}

fn serve(driver: Driver, work: Work) -> Result<(), Failure> {
    let runtime = annulus::Runtime::builder().driver(driver).build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            match work {
                Work::Echo { buffer_bytes } => annulus::spawn(echo(stream, buffer_bytes)),
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
