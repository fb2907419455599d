//! Passes connections on, in both directions: `proxy [LISTEN [TARGET]]`.

use std::io;
use std::time::Duration;

use annulus::io::copy_bidirectional;
use annulus::net::{TcpListener, TcpStream};
use annulus::time::sleep;

#[annulus::main]
async fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let target = arguments.next().unwrap_or_else(|| "127.0.0.1:8000".to_owned());

    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    println!("driver: {}", annulus::driver_info());
    loop {
        let (client, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                eprintln!("accept: {error}");
                sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let target = target.clone();
        annulus::spawn(async move {
            if let Err(error) = pass_on(client, &target).await {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

/// Until both sides have finished. An end is passed on, so that each may finish before the other.
async fn pass_on(mut client: TcpStream, target: &str) -> io::Result<(u64, u64)> {
    let mut server = TcpStream::connect(target).await?;
    copy_bidirectional(&mut client, &mut server).await
}
