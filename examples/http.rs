//! Answers HTTP/1.1 on every core, by hyper: `http [ADDR]`, then `curl http://ADDR/ada`.
//!
//! Ctrl-C or SIGTERM stops it: connections have a second to finish. A second one ends it at once.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use annulus::ShutdownToken;
use annulus::hyper::ShardTimer;
use annulus::net::ListenerGroup;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};

#[annulus::main]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let group = ListenerGroup::bind(&*address)?
        .with_shutdown(ShutdownToken::on_signals()?, Duration::from_secs(1));
    println!("listening on {}", group.local_addr());
    println!("driver: {}", annulus::driver_info());

    let mut http = http1::Builder::new();
    // The timer is for peers that never finish their request's head.
    http.timer(ShardTimer).pipeline_flush(true);
    let serve = async move |stream, _peer| {
        // An error is one connection's: its peer has broken off, or does not speak HTTP.
        http.serve_connection(stream, service_fn(greet)).await
    };
    group.serve(serve).await
}

async fn greet(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let name = request.uri().path().trim_start_matches('/');
    let greeting = format!("hello, {}\n", if name.is_empty() { "world" } else { name });
    Ok(Response::new(Full::from(greeting)))
}
