//! Sends back what it receives, on every core: `echo [ADDR] [--shards N]`.
//!
//! Ctrl-C or SIGTERM stops it: connections have a second to finish. A second one ends it at once.

use std::io;
use std::time::Duration;

use annulus::net::{ListenerGroup, TcpStream};
use annulus::{Runtime, Shard, ShutdownToken};

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run() -> io::Result<()> {
    let Arguments { address, shards } = Arguments::read()?;
    let mut builder = Runtime::builder();
    if let Some(shards) = shards {
        builder = builder.shards(shards);
    }
    builder.build()?.block_on(async {
        let group = ListenerGroup::bind(&*address)?
            .with_shutdown(ShutdownToken::on_signals()?, Duration::from_secs(1));
        println!("listening on {} with {} shard(s)", group.local_addr(), Shard::all().len());
        println!("driver: {}", annulus::driver_info());
        group.serve(async |stream, _peer| echo(stream).await).await
    })
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
    shards: Option<u32>,
}

impl Arguments {
    fn read() -> io::Result<Arguments> {
        let mut found = Arguments { address: "127.0.0.1:7000".to_owned(), shards: None };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--shards" => {
                    let number = words.next().and_then(|text| text.parse().ok());
                    found.shards = Some(number.ok_or_else(usage)?);
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
