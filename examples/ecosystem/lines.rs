//! Sends lines back in capitals, by a codec of tokio-util: `lines [ADDR]`, then `nc`.
//!
//! A codec turns bytes into what a protocol is about, here lines. Each half of a connection has
//! its own: one is a `Stream` of lines, the other a `Sink`, and `forward` leads one into the other.
//! Ctrl-C or SIGTERM stops it: connections have a second to finish. A second one ends it at once.

use std::io;
use std::time::Duration;

use annulus::ShutdownToken;
use annulus::net::{ListenerGroup, TcpStream};
use futures_util::{StreamExt, TryStreamExt};
use tokio_util::codec::{FramedRead, FramedWrite, LinesCodec, LinesCodecError};

/// What a client may send without a line's end, before it is shown out.
const LINE_BYTES_MAX: usize = 1024;

#[annulus::main]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let group = ListenerGroup::bind(&*address)?
        .with_shutdown(ShutdownToken::on_signals()?, Duration::from_secs(1));
    println!("listening on {}", group.local_addr());
    println!("driver: {}", annulus::driver_info());
    // An error is one connection's: its peer has broken off, or sends no lines of text.
    group.serve(async |stream, _peer| attend(stream).await).await
}

async fn attend(stream: TcpStream) -> Result<(), LinesCodecError> {
    let (read, write) = stream.into_split();
    let lines = FramedRead::new(read, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
    let answers = FramedWrite::new(write, LinesCodec::new());
    lines.map_ok(|line| line.to_uppercase()).forward(answers).await
}
