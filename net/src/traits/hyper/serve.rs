//! Serving HTTP: connections of hyper's, services of tower's, the end of a `ShutdownToken`.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use annulus_runtime::shutdown::{ShutdownToken, Waiting};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::ShardTimer;
use crate::family::Family;
use crate::group::ListenerGroup;
use crate::stream::Stream;

#[cfg(feature = "http2")]
mod http2;
#[cfg(not(feature = "http2"))]
#[path = "serve/http2_left_out.rs"]
mod http2;

/// How long a connection waits for the whole head of a request, from the answer before on. hyper's
/// own default: peers that are slow are served, those that only hold a connection are not.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

type BoxError = Box<dyn Error + Send + Sync>;

/// Serves HTTP on every shard: a router of axum's, or any other service of tower's.
///
/// Each request is given to a clone of the service, on the shard of its connection. What the
/// service does there need not be `Send`, nor do its futures, bodies and errors.
///
/// HTTP/1.1 with kept connections, pipelining and upgrades, and with the feature `http2` HTTP/2 for
/// clients that begin with it ("prior knowledge"; there is no TLS here). A connection of HTTP/1.1
/// that sends no request for 30 s, or takes longer for its head, is closed. One of HTTP/2 is closed
/// if its beginning takes so long, or if it says nothing for 30 s and then does not answer a ping
/// for 20 s. An error or a panic of the service, or a peer that breaks off or does not speak HTTP,
/// end one connection.
///
/// # The end
///
/// With [`ListenerGroup::with_shutdown`] it ends when the token asks for it. Connections that wait
/// for a request end at once; requests that have come are answered, within the grace time, and
/// their connections end with that. One that has been upgraded is the program's, and is not waited
/// for.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
///
/// use annulus_net::{ListenerGroup, hyper};
/// use annulus_runtime::shutdown::ShutdownToken;
/// # use std::convert::Infallible;
/// # use std::future::{Ready, ready};
/// # use std::task::{Context, Poll};
/// # #[derive(Clone)]
/// # struct Router;
/// # impl tower_service::Service<::hyper::Request<::hyper::body::Incoming>> for Router {
/// #     type Response = ::hyper::Response<String>;
/// #     type Error = Infallible;
/// #     type Future = Ready<Result<Self::Response, Infallible>>;
/// #     fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
/// #         Poll::Ready(Ok(()))
/// #     }
/// #     fn call(&mut self, _: ::hyper::Request<::hyper::body::Incoming>) -> Self::Future {
/// #         ready(Ok(::hyper::Response::new(String::new())))
/// #     }
/// # }
/// # impl Router {
/// #     fn new() -> Router { Router }
/// #     fn route(self, _: &str, _: ()) -> Router { self }
/// # }
/// # fn get(_: impl AsyncFn() -> &'static str) {}
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let app = Router::new().route("/", get(async || "hello")); // axum's
/// let group = ListenerGroup::bind("0.0.0.0:8080")?
///     .with_shutdown(ShutdownToken::on_signals()?, Duration::from_secs(10));
/// hyper::serve(group, app).await
/// # })
/// # }
/// ```
///
/// # Errors
///
/// Those of [`ListenerGroup::serve`]. None of a connection's.
///
/// # Panics
///
/// As [`ListenerGroup::serve`].
///
/// # Cancel safety
///
/// As [`ListenerGroup::serve`].
pub async fn serve<S, B>(group: ListenerGroup, service: S) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    // Without a shutdown nobody ever asks.
    let token = group.shutdown_token().unwrap_or_default();
    let serve = async move |stream, _peer| {
        // The error is one connection's, whose peer is told by its end.
        drop(serve_connection(stream, service.clone(), &token).await);
    };
    group.serve(serve).await
}

/// Serves one connection, as [`serve`] does, until its end or until the token asks for it.
///
/// For streams of other listeners, such as Unix sockets, and for services that are made for their
/// shard or their connection: with the peer's address, for instance.
///
/// # Examples
///
/// ```
/// use annulus_net::UnixStream;
/// use annulus_net::hyper::serve_connection;
/// use annulus_runtime::shutdown::ShutdownToken;
/// # use std::convert::Infallible;
/// # use std::future::{Ready, ready};
/// # use std::task::{Context, Poll};
/// # #[derive(Clone)]
/// # struct Hello;
/// # impl tower_service::Service<hyper::Request<hyper::body::Incoming>> for Hello {
/// #     type Response = hyper::Response<String>;
/// #     type Error = Infallible;
/// #     type Future = Ready<Result<Self::Response, Infallible>>;
/// #     fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
/// #         Poll::Ready(Ok(()))
/// #     }
/// #     fn call(&mut self, _: hyper::Request<hyper::body::Incoming>) -> Self::Future {
/// #         ready(Ok(hyper::Response::new("hello".to_owned())))
/// #     }
/// # }
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let (mut client, server) = UnixStream::pair()?;
/// client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
/// serve_connection(server, Hello, &ShutdownToken::new()).await?;
/// let mut status = [0; 15];
/// client.read_exact(&mut status).await?;
/// assert_eq!(&status, b"HTTP/1.1 200 OK");
/// # Ok(())
/// # })
/// # }
/// ```
///
/// # Errors
///
/// The connection's, or the service's, within which a `hyper::Error` says more.
///
/// # Cancel safety
///
/// Dropped, it closes the connection, and drops the service's futures. Those of HTTP/2 are tasks of
/// their own and are dropped in the next turn.
pub async fn serve_connection<F, S, B>(
    stream: Stream<F>,
    service: S,
    token: &ShutdownToken,
) -> io::Result<()>
where
    F: Family,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + 'static,
    S::Future: 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    let service = Tower(service);
    let mut asked = token.requested();
    match http2::serve_if_spoken(stream, &service, &mut asked).await? {
        Some(stream) => serve_http1(stream, service, &mut asked).await.map_err(io::Error::other),
        None => Ok(()),
    }
}

async fn serve_http1<F, S, B>(
    stream: Stream<F>,
    service: Tower<S>,
    asked: &mut Waiting,
) -> hyper::Result<()>
where
    F: Family,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + 'static,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    let mut http = http1::Builder::new();
    // Not `pipeline_flush`: it loses the answer to an upgrade behind whose request more bytes have
    // come (hyper 1.12), and what is written leaves with the turn anyway.
    http.timer(ShardTimer).header_read_timeout(HEAD_TIMEOUT);
    let connection = pin!(http.serve_connection(stream, service).with_upgrades());
    run(connection, asked, |connection| connection.graceful_shutdown()).await
}

/// Runs a connection to its end, which it is told to come to when that is asked for.
async fn run<C: Future>(
    mut connection: Pin<&mut C>,
    asked: &mut Waiting,
    end: impl FnOnce(Pin<&mut C>),
) -> C::Output {
    match asked.unless(connection.as_mut()).await {
        Some(ended) => ended,
        None => {
            end(connection.as_mut());
            connection.await
        }
    }
}

/// A service of tower's as one of hyper's: each request gets a clone, which is waited for.
#[derive(Clone)]
struct Tower<S>(S);

impl<S> hyper::service::Service<Request<Incoming>> for Tower<S>
where
    S: Service<Request<Incoming>> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answering<S, S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Answering::Waiting { service: self.0.clone(), request: Some(request) }
    }
}

pin_project! {
    /// One request, on its way through a service.
    #[project = Stage]
    enum Answering<S, F> {
        /// The service takes no request yet.
        Waiting { service: S, request: Option<Request<Incoming>> },
        Called { #[pin] answer: F },
    }
}

impl<S: Service<Request<Incoming>>> Future for Answering<S, S::Future> {
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                Stage::Called { answer } => return answer.poll(cx),
                Stage::Waiting { service, request } => {
                    ready!(service.poll_ready(cx))?;
                    let request = request.take().expect("the stage ends with its request");
                    let answer = service.call(request);
                    self.set(Answering::Called { answer });
                }
            }
        }
    }
}
