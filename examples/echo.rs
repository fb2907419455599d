//! Sends back what it receives: `echo [ADDR] [--shards N]`.
//!
//! With `--shards N` it runs on N threads, each with a runtime and a listener of its own; the
//! kernel spreads connections over them.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use annulus::Runtime;
use annulus::net::{ListenOptions, TcpListener, TcpStream};
use annulus::time::sleep;

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run() -> io::Result<()> {
    let Arguments { address, shards } = Arguments::read()?;
    let options = ListenOptions::new().reuse_port(shards > 1);
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let listener = TcpListener::bind_with(&address, options).await?;
        let bound = listener.local_addr()?;
        for shard in 1..shards {
            thread::Builder::new()
                .name(format!("echo-{shard}"))
                .spawn(move || serve_elsewhere(bound, options))?;
        }
        println!("listening on {bound} with {shards} shard(s)");
        println!("driver: {}", annulus::driver_info());
        serve(listener).await
    })
}

fn serve_elsewhere(address: SocketAddr, options: ListenOptions) {
    let served = Runtime::new().map_err(io::Error::from).and_then(|runtime| {
        runtime.block_on(async { serve(TcpListener::bind_with(address, options).await?).await })
    });
    if let Err(error) = served {
        eprintln!("error: {error}");
    }
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => drop(annulus::spawn(echo(stream))),
            // Without descriptors left the listener pauses by itself; clients wait until there are.
            Err(error) => {
                eprintln!("accept: {error}");
                sleep(Duration::from_millis(1)).await;
            }
        }
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

struct Arguments {
    address: String,
    shards: usize,
}

impl Arguments {
    fn read() -> io::Result<Arguments> {
        let mut found = Arguments { address: "127.0.0.1:7000".to_owned(), shards: 1 };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--shards" => {
                    let number = words.next().and_then(|text| text.parse().ok());
                    found.shards = number.filter(|&n| n > 0).ok_or_else(usage)?;
                }
                word if word.starts_with('-') => return Err(usage()),
                _ => found.address = word,
            }
        }
        Ok(found)
    }
}

fn usage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "usage: echo [ADDR] [--shards N]")
}
