//! What a runtime must have to be measured.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A runtime, spoken to as its users do, on the thread that calls.
#[expect(async_fn_in_trait, reason = "nothing here leaves its thread")]
pub trait Subject: 'static {
    /// What awaiting a handle gives.
    type Joined<T: Send + 'static>;

    /// What `spawn` returns.
    type Handle<T: Send + 'static>: Future<Output = Self::Joined<T>> + 'static;

    /// One end of a pair of connected Unix sockets.
    type Stream: 'static;

    /// An eventfd, ready to be read as the runtime does.
    type Counter: 'static;

    /// Builds a runtime, runs the future on it and drops it.
    fn run<F: Future>(future: F) -> F::Output;

    /// Starts a task on this thread.
    fn spawn<F>(future: F) -> Self::Handle<F::Output>
    where
        F: Future + 'static,
        F::Output: Send + 'static;

    /// The output of a task.
    fn value<T: Send + 'static>(joined: Self::Joined<T>) -> T;

    /// Lets a task go on without its handle.
    fn detach<T: Send + 'static>(handle: Self::Handle<T>);

    /// Lets all other tasks run first.
    fn yield_now() -> impl Future<Output = ()>;

    /// Is ready when the time has passed.
    fn sleep(duration: Duration) -> impl Future + 'static;

    /// Two connected sockets.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn pair() -> io::Result<(Self::Stream, Self::Stream)>;

    /// Sends all of the buffer and returns it.
    async fn send(stream: &mut Self::Stream, buffer: Vec<u8>) -> io::Result<Vec<u8>>;

    /// Fills the buffer and returns it.
    async fn receive(stream: &mut Self::Stream, buffer: Vec<u8>) -> io::Result<Vec<u8>>;

    /// Takes an eventfd over; `None` where the runtime has no way to read one.
    ///
    /// # Errors
    ///
    /// Those of the system.
    fn counter(eventfd: OwnedFd) -> io::Result<Option<Self::Counter>>;

    /// One read of the eventfd.
    async fn take(counter: &Self::Counter) -> io::Result<()>;
}

/// Runs a future as a task, which is where servers spend their time.
pub fn on_task<R: Subject, F>(future: F) -> F::Output
where
    F: Future + 'static,
    F::Output: Send + 'static,
{
    R::run(async { R::value(R::spawn(future).await) })
}
