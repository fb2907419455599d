//! HTTP/1.1 by hyper, with the same settings for every runtime that drives it.

use std::convert::Infallible;
use std::io;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};

use crate::work::HELLO;

/// Serves one connection until its peer ends it.
pub(super) async fn serve(connection: impl Read + Write + Unpin) -> io::Result<()> {
    let mut http = http1::Builder::new();
    // The answers to requests that have come together leave together.
    http.pipeline_flush(true);
    http.serve_connection(connection, service_fn(hello)).await.map_err(io::Error::other)
}

async fn hello(_request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(HELLO.as_bytes()))))
}
