//! HTTP/2 for clients that begin with it.

use std::io;
use std::pin::pin;

use annulus_runtime::shutdown::Waiting;
use annulus_runtime::time::timeout;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http2;
use hyper::{Request, Response};
use tower_service::Service;

use super::{BoxError, HEAD_TIMEOUT, Tower, run};
use crate::family::Family;
use crate::hyper::{LocalExecutor, ShardTimer};
use crate::stream::Stream;

/// How a client begins that speaks HTTP/2 (RFC 9113, 3.4). All of it is waited for here, as hyper
/// would wait for the rest without an end.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves the connection if its client speaks HTTP/2. Gives it back, with all of its bytes, if it
/// speaks something else. Ends it if the client says nothing in time or until the end is asked for.
pub(super) async fn serve_if_spoken<F, S, B>(
    mut stream: Stream<F>,
    service: &Tower<S>,
    asked: &mut Waiting,
) -> io::Result<Option<Stream<F>>>
where
    F: Family,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    match asked.unless(timeout(HEAD_TIMEOUT, begins_with_preface(&mut stream))).await {
        Some(Ok(Ok(false))) => Ok(Some(stream)),
        Some(Ok(Ok(true))) => {
            serve(stream, service.clone(), asked).await.map_err(io::Error::other)?;
            Ok(None)
        }
        Some(Ok(Err(error))) => Err(error),
        Some(Err(late)) => Err(late.into()),
        None => Ok(None),
    }
}

/// Looks at the first bytes, which stay where they are.
async fn begins_with_preface<F: Family>(stream: &mut Stream<F>) -> io::Result<bool> {
    let mut start = [0; PREFACE.len()];
    let count = stream.peek(&mut start).await?;
    if count == 0 || count == start.len() || !PREFACE.starts_with(&start[..count]) {
        return Ok(start == *PREFACE);
    }
    // A second look would not wait for more than the first has seen: so they are taken.
    let mut count = 0;
    while count < start.len() && PREFACE.starts_with(&start[..count]) {
        match stream.read(&mut start[count..]).await? {
            0 => break,
            more => count += more,
        }
    }
    stream.connection()?.put_back(&start[..count]);
    Ok(start == *PREFACE)
}

async fn serve<F, S, B>(
    stream: Stream<F>,
    service: Tower<S>,
    asked: &mut Waiting,
) -> hyper::Result<()>
where
    F: Family,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    let mut http = http2::Builder::new(LocalExecutor);
    // A peer that has gone without a word does not answer, and is let go.
    http.timer(ShardTimer).keep_alive_interval(HEAD_TIMEOUT);
    let connection = pin!(http.serve_connection(stream, service));
    run(connection, asked, |connection| connection.graceful_shutdown()).await
}
