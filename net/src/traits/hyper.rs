//! What hyper asks of a runtime: streams that it reads and writes, an executor, a timer.
//!
//! Streams are hyper's [`Read`] and [`Write`] as they are, without an adapter and a buffer between.
//! With the feature `tower`, `serve` does what a server needs besides, for routers of axum's and
//! other services; this is how to do it by hand:
//!
//! ```
//! use std::convert::Infallible;
//!
//! use annulus_net::TcpStream;
//! use annulus_net::hyper::ShardTimer;
//! use http_body_util::Full;
//! use hyper::body::{Bytes, Incoming};
//! use hyper::server::conn::http1;
//! use hyper::service::service_fn;
//! use hyper::{Request, Response};
//!
//! async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
//!     Ok(Response::new(Full::from("hello\n")))
//! }
//!
//! async fn serve(stream: TcpStream) -> hyper::Result<()> {
//!     let mut http = http1::Builder::new();
//!     http.timer(ShardTimer).pipeline_flush(true);
//!     http.serve_connection(stream, service_fn(hello)).await
//! }
//! ```
//!
//! `pipeline_flush` lets the answers to several requests leave together. It is for bodies that are
//! there as a whole: with it hyper (1.12) takes a streamed body without a bound, as fast as the
//! program makes it, whether or not the peer reads.
//!
//! # What a flush means here
//!
//! hyper flushes after each answer, and goes on with the connection only when that is done. What is
//! written leaves at the end of the shard's turn anyway, the answers to several requests by one
//! send. So a flush through [`Write`] does not send by itself: it is ready when everything written
//! is on its way, to leave with this turn whether or not somebody polls again, and pending while
//! the socket has no room for what was written before. An error of that send is reported by the
//! next write, flush or shutdown. [`Stream::flush`] and a shutdown wait until the kernel has
//! everything.

use std::future::Future;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use annulus_runtime::{spawn, time};
use hyper::rt::{Executor, Read, ReadBufCursor, Sleep, Timer, Write};

use crate::family::Family;
use crate::stream::{Stream, Take};

#[cfg(feature = "tower")]
mod serve;

#[cfg(feature = "tower")]
pub use self::serve::{serve, serve_connection};

impl<F: Family> Read for Stream<F> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: receives write bytes, and nothing that has been written is unwritten.
        let memory = unsafe { buffer.as_mut() };
        let count = ready!(self.connection()?.poll_read(cx, memory, Take::Some))?;
        // SAFETY: the bytes that a read counts have been written.
        unsafe { buffer.advance(count) };
        Poll::Ready(Ok(()))
    }
}

/// A flush is ready when everything is on its way: see [this module](self).
impl<F: Family> Write for Stream<F> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.connection()?.poll_write(cx, &[IoSlice::new(buffer)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection()?.poll_on_its_way(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection()?.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection()?.poll_write(cx, buffers)
    }
}

/// Runs what hyper spawns on the current shard: the streams of an HTTP/2 connection, and the
/// connections of a client. Futures need not be `Send`.
///
/// ```
/// use annulus_net::hyper::LocalExecutor;
/// use hyper::rt::Executor;
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let not_send = std::rc::Rc::new(5);
/// LocalExecutor.execute(async move { assert_eq!(*not_send, 5) });
/// # });
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// `execute` panics outside of a runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalExecutor;

impl<T> Executor<T> for LocalExecutor
where
    T: Future + 'static,
    T::Output: 'static,
{
    fn execute(&self, future: T) {
        // Detached: hyper hears of its end by other ways.
        drop(spawn(future));
    }
}

/// The shards' timers as hyper asks for them. Follows a clock that a test has stopped.
///
/// ```
/// use annulus_net::hyper::ShardTimer;
/// use hyper::rt::Timer;
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let before = ShardTimer.now();
/// ShardTimer.sleep(Duration::from_millis(1)).await;
/// assert!(ShardTimer.now() >= before + Duration::from_millis(1));
/// # });
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardTimer;

impl Timer for ShardTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Sleeping(time::sleep(duration)))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Sleeping(time::sleep_until(deadline.into())))
    }

    fn now(&self) -> Instant {
        time::Instant::now().into()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, new_deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Sleeping>() {
            Some(own) => Pin::new(&mut own.get_mut().0).reset(new_deadline.into()),
            None => *sleep = self.sleep_until(new_deadline),
        }
    }
}

/// A sleep that hyper holds.
struct Sleeping(time::Sleep);

impl Future for Sleeping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl Sleep for Sleeping {}
