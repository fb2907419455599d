//! Ends well: `graceful_shutdown [ADDR] [SECONDS]`, then `nc`, then Ctrl-C or `kill`.
//!
//! A line comes back; `sleep N` comes back after N milliseconds, as a request does that takes long.
//! At the first signal nobody is accepted any more, connections that wait for a next request end
//! at once, and requests that have begun have so many seconds to finish. A second signal ends all.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use annulus::ShutdownToken;
use annulus::net::{ListenerGroup, TcpStream};
use annulus::time::sleep;

/// What a client may send without a line's end, before it is shown out.
const LINE_BYTES_MAX: usize = 1024;

#[annulus::main]
async fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    let grace = Duration::from_secs_f64(seconds);

    let token = ShutdownToken::on_signals()?;
    let group = ListenerGroup::bind(address)?.with_shutdown(token.clone(), grace);
    println!("listening on {}", group.local_addr());
    println!("driver: {}", annulus::driver_info());
    annulus::spawn(say_when_asked(token.clone(), grace));
    let served = token.clone();
    group
        .serve(async move |stream, peer| {
            let mut ending = Ending { peer, how: "cut off" };
            ending.how = match attend(stream, &served).await {
                Ok(how) => how,
                Err(_error) => "broken",
            };
        })
        .await?;
    let told = if token.is_forced() { "told to end at once" } else { "all connections have ended" };
    println!("{told}");
    Ok(())
}

async fn say_when_asked(token: ShutdownToken, grace: Duration) {
    token.requested().await;
    println!("asked to end: {grace:?} for what has begun");
}

/// Answers line by line, until there are no more or the program is to end.
async fn attend(mut stream: TcpStream, token: &ShutdownToken) -> io::Result<&'static str> {
    // Made once: each one joins a list that all shards share.
    let mut asked = token.requested();
    let mut received = Vec::new();
    loop {
        let line = match asked.unless(next_line(&mut stream, &mut received)).await {
            Some(Ok(Some(line))) => line,
            Some(Ok(None)) => return Ok("has finished"),
            Some(Err(error)) => return Err(error),
            None => return Ok("was idle"),
        };
        // The token is not looked at here: what has begun is finished.
        let millis = line.strip_prefix("sleep ").and_then(|number| number.parse().ok());
        sleep(Duration::from_millis(millis.unwrap_or(0))).await;
        stream.write_all(format!("{line}\n").as_bytes()).await?;
    }
}

/// Says how a connection has ended, also when its handler was dropped.
struct Ending {
    peer: SocketAddr,
    how: &'static str,
}

impl Drop for Ending {
    fn drop(&mut self) {
        println!("{}: {}", self.peer, self.how);
    }
}

/// The next line without its end; `None` when there are no more.
async fn next_line(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = received.drain(..=end).collect();
            return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
        }
        if received.len() > LINE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
        }
        let mut buffer = [0; LINE_BYTES_MAX];
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            count => received.extend_from_slice(&buffer[..count]),
        }
    }
}
