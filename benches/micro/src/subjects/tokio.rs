//! tokio's runtime of one thread.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::task::{JoinError, JoinHandle};

use crate::subject::Subject;

/// tokio on the thread that calls.
pub(crate) struct CurrentThread;

impl Subject for CurrentThread {
    type Joined<T: Send + 'static> = Result<T, JoinError>;
    type Handle<T: Send + 'static> = JoinHandle<T>;
    type Stream = UnixStream;
    type Counter = AsyncFd<OwnedFd>;

    fn run<F: Future>(future: F) -> F::Output {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.expect("build a runtime").block_on(future)
    }

    fn spawn<F>(future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        // Plain `spawn`, which is cheaper than a `LocalSet`, the only other way.
        tokio::spawn(OnThisThread(future))
    }

    fn value<T: Send + 'static>(joined: Result<T, JoinError>) -> T {
        joined.expect("a task that does not panic")
    }

    fn detach<T: Send + 'static>(handle: JoinHandle<T>) {
        drop(handle);
    }

    fn yield_now() -> impl Future<Output = ()> {
        tokio::task::yield_now()
    }

    fn sleep(duration: Duration) -> impl Future + 'static {
        tokio::time::sleep(duration)
    }

    fn pair() -> io::Result<(UnixStream, UnixStream)> {
        UnixStream::pair()
    }

    async fn send(stream: &mut UnixStream, buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        stream.write_all(&buffer).await?;
        Ok(buffer)
    }

    async fn receive(stream: &mut UnixStream, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        stream.read_exact(&mut buffer).await?;
        Ok(buffer)
    }

    fn counter(eventfd: OwnedFd) -> io::Result<Option<AsyncFd<OwnedFd>>> {
        // SAFETY: an owned descriptor is open, and the same, until the `AsyncFd` drops it.
        let registered = unsafe { AsyncFd::register_with_interest(eventfd, Interest::READABLE) };
        Ok(Some(registered?))
    }

    async fn take(counter: &AsyncFd<OwnedFd>) -> io::Result<()> {
        let read = |eventfd: &OwnedFd| {
            let mut count = 0_u64;
            let at = (&raw mut count).cast();
            // SAFETY: the pointer and the length describe `count`.
            let read = unsafe { libc::read(eventfd.as_raw_fd(), at, size_of::<u64>()) };
            if read < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        };
        counter.async_io(Interest::READABLE, read).await
    }
}

/// A future that tokio may not ask to be `Send`.
struct OnThisThread<F>(F);

// SAFETY: only `CurrentThread::spawn` makes one, within `CurrentThread::run`, whose runtime polls
// and drops its tasks on the thread that built it, and stays there itself.
unsafe impl<F> Send for OnThisThread<F> {}

impl<F: Future> Future for OnThisThread<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: the future is moved no more than what it lies in.
        unsafe { self.map_unchecked_mut(|this| &mut this.0) }.poll(cx)
    }
}
