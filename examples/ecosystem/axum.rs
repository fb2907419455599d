//! A router of axum's on every core: `axum [ADDR]`, then `curl http://ADDR/ada`, or in the console
//! of a browser `s = new WebSocket("ws://127.0.0.1:8080/socket")`.
//!
//! Speaks HTTP/1.1, and HTTP/2 with clients that begin with it (`curl --http2-prior-knowledge`).
//! Ctrl-C or SIGTERM stops it: requests that have come have ten seconds to be answered.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use annulus::ShutdownToken;
use annulus::net::{ListenerGroup, TcpStream};
use annulus::time::{sleep, timeout};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::SERVER;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::Role;
use tower_http::set_header::SetResponseHeaderLayer;

/// For an answer, after which the client is told that there is none.
const ANSWER_TIME: Duration = Duration::from_secs(5);

#[annulus::main]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let group = ListenerGroup::bind(&*address)?
        .with_shutdown(ShutdownToken::on_signals()?, Duration::from_secs(10));
    println!("listening on {}", group.local_addr());
    println!("driver: {}", annulus::driver_info());

    let name = HeaderValue::from_static("annulus");
    let app = Router::new()
        .route("/", get(async || "hello, world\n"))
        .route("/{name}", get(greet))
        .route("/echo", post(async |body: Bytes| body))
        .route("/sleep/{milliseconds}", get(slowly))
        .route("/socket", any(socket))
        .layer(from_fn(in_time))
        .layer(SetResponseHeaderLayer::overriding(SERVER, name))
        .with_state(Arc::default());
    annulus::hyper::serve(group, app).await
}

/// What all shards share must be `Send`, as anywhere.
type Greeted = Arc<AtomicU64>;

async fn greet(State(greeted): State<Greeted>, Path(name): Path<String>) -> String {
    let number = greeted.fetch_add(1, Ordering::Relaxed) + 1;
    format!("hello, {name}, number {number}\n")
}

async fn slowly(Path(milliseconds): Path<u64>) -> &'static str {
    sleep(Duration::from_millis(milliseconds)).await;
    "awake\n"
}

/// A layer: tower's own for this sleeps by tokio's timers, which are not there.
async fn in_time(request: Request, next: Next) -> Response {
    match timeout(ANSWER_TIME, next.run(request)).await {
        Ok(answer) => answer,
        Err(_late) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

/// The handshake, and then the conversation on a task of its own. axum's `WebSocketUpgrade` would
/// spawn that on tokio.
async fn socket(mut request: Request) -> Result<Response, StatusCode> {
    let answer = create_response_with_body(&request, Body::empty);
    let answer = answer.map_err(|_no_handshake| StatusCode::BAD_REQUEST)?;
    let upgrading = hyper::upgrade::on(&mut request);
    annulus::spawn(async move { converse(upgrading.await?).await });
    Ok(answer)
}

async fn converse(upgraded: Upgraded) -> Result<(), Box<dyn Error>> {
    // What was upgraded is the stream that was accepted, and what came behind the handshake.
    let parts = upgraded.downcast::<TcpStream>().map_err(|_| "not served by annulus")?;
    let early = parts.read_buf.into();
    let mut socket =
        WebSocketStream::from_partially_read(parts.io, early, Role::Server, None).await;
    while let Some(message) = socket.next().await {
        if let message @ (Message::Text(_) | Message::Binary(_)) = message? {
            socket.send(message).await?;
        }
    }
    Ok(())
}
