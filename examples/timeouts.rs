//! Echoes lines, and closes a connection that stays silent: `timeouts [ADDR] [SECONDS]`.
//!
//! The deadline is put around the read. When it passes, the read is dropped, and nothing that the
//! peer has sent can be lost by that: the connection could as well be read again.

use std::io;
use std::time::Duration;

use annulus::net::{TcpListener, TcpStream};
use annulus::time::timeout;

#[annulus::main]
async fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5.0);
    let idle = Duration::from_secs_f64(seconds);

    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    println!("driver: {}", annulus::driver_info());
    loop {
        let (stream, peer) = listener.accept().await?;
        annulus::spawn(async move {
            match echo(stream, idle).await {
                Ok(reason) => println!("{peer}: {reason}"),
                Err(error) => println!("{peer}: {error}"),
            }
        });
    }
}

async fn echo(mut stream: TcpStream, idle: Duration) -> io::Result<&'static str> {
    let mut buffer = [0; 4096];
    loop {
        match timeout(idle, stream.read(&mut buffer)).await {
            Ok(Ok(0)) => return Ok("the peer has finished"),
            Ok(Ok(count)) => stream.write_all(&buffer[..count]).await?,
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => {
                stream.write_all(b"too slow, goodbye\n").await?;
                return Ok("closed after silence");
            }
        }
    }
}
