//! A WebSocket on every core that sends back what it is told, by tungstenite: `websocket [ADDR]`,
//! then, in the console of a browser, `s = new WebSocket("ws://127.0.0.1:8080")`,
//! `s.onmessage = console.log` and `s.send("hello")`.
//!
//! Ctrl-C or SIGTERM stops it: connections have a second to finish. A second one ends it at once.

use std::error::Error;
use std::io;
use std::time::Duration;

use annulus::ShutdownToken;
use annulus::net::{ListenerGroup, TcpStream};
use annulus::time::timeout;
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// For a handshake, after which a client that says nothing is shown out.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Of a message, which is in memory as a whole, however many frames it comes in.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

#[annulus::main]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let group = ListenerGroup::bind(&*address)?
        .with_shutdown(ShutdownToken::on_signals()?, Duration::from_secs(1));
    println!("listening on {}", group.local_addr());
    println!("driver: {}", annulus::driver_info());
    // An error is one connection's: its peer has broken off, or does not keep to the protocol.
    group.serve(async |stream, _peer| attend(stream).await).await
}

async fn attend(stream: TcpStream) -> Result<(), Box<dyn Error>> {
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let accepting = accept_async_with_config(stream, Some(limits));
    let mut socket = timeout(HANDSHAKE_TIME, accepting).await??;
    // Pings and the close are answered by the socket itself, whenever it is asked for a message.
    while let Some(message) = socket.next().await {
        if let message @ (Message::Text(_) | Message::Binary(_)) = message? {
            socket.send(message).await?;
        }
    }
    Ok(())
}
