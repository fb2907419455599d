//! Two runtimes on one thread: annulus echoes within a program of tokio's: `embed_in_tokio [ADDR]`.
//!
//! tokio's loop waits for annulus's descriptor as for any socket, and has annulus take a turn when
//! it is readable or a timer is due. Tasks of either runtime await those of the other.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use annulus::Runtime;
use annulus::net::{TcpListener, TcpStream};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let runtime = Rc::new(Runtime::new()?);
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(tokio::task::LocalSet::new().run_until(async {
        let driving = tokio::task::spawn_local(drive(Rc::clone(&runtime)));
        let (listener, address) = runtime.spawn(listen(address)).await.expect("no panic")?;
        println!("listening on {address}");
        println!("driver: {}", runtime.driver());
        drop(runtime.spawn(serve(listener)));
        println!("tokio asked and annulus answered: {}", ask(address).await?);
        // Other tasks of tokio's would run beside it.
        driving.await.expect("no panic").map(|never| match never {})
    }))
}

/// Has annulus run on this thread, between the tasks of tokio's.
async fn drive(runtime: Rc<Runtime>) -> io::Result<Infallible> {
    let descriptor = runtime.descriptor()?;
    // SAFETY: the runtime, which this future owns, keeps the descriptor open.
    let fd = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
    loop {
        let next = runtime.turn();
        if next.is_due() {
            tokio::task::yield_now().await;
            continue;
        }
        // Tokio remembers the edge until it is cleared: before the turn, so that none is missed.
        match next.deadline() {
            None => fd.readable().await?.clear_ready(),
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), fd.readable()).await {
                Ok(ready) => ready?.clear_ready(),
                Err(_due) => {}
            },
        }
    }
}

async fn listen(address: String) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn serve(listener: TcpListener) -> io::Result<Infallible> {
    loop {
        let (stream, _peer) = listener.accept().await?;
        // An error is one connection's.
        drop(annulus::spawn(echo(stream)));
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}

async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"hello").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
