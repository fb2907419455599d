//! annulus, on each of its drivers.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use annulus::net::UnixStream;
use annulus::runtime::{Entry, Fd, Interest, Op, Operation};
use annulus::{Driver, JoinError, JoinHandle, Runtime};
use io_uring::{opcode, types};

use crate::subject::Subject;

/// annulus on io_uring.
pub struct Uring;

/// annulus on epoll.
pub struct Epoll;

/// What differs between the two.
trait OnDriver: 'static {
    const DRIVER: Driver;
}

impl OnDriver for Uring {
    const DRIVER: Driver = Driver::Uring;
}

impl OnDriver for Epoll {
    const DRIVER: Driver = Driver::Epoll;
}

impl<D: OnDriver> Subject for D {
    type Joined<T: Send + 'static> = Result<T, JoinError>;
    type Handle<T: Send + 'static> = JoinHandle<T>;
    type Stream = UnixStream;
    type Counter = Counter;

    fn run<F: Future>(future: F) -> F::Output {
        let runtime = Runtime::builder().driver(D::DRIVER).shards(1).build();
        runtime.expect("build a runtime").block_on(future)
    }

    fn spawn<F>(future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        annulus::spawn(future)
    }

    fn value<T: Send + 'static>(joined: Result<T, JoinError>) -> T {
        joined.expect("a task that does not panic")
    }

    fn detach<T: Send + 'static>(handle: JoinHandle<T>) {
        drop(handle);
    }

    fn yield_now() -> impl Future<Output = ()> {
        annulus::task::yield_now()
    }

    fn sleep(duration: Duration) -> impl Future + 'static {
        annulus::time::sleep(duration)
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

    fn counter(eventfd: OwnedFd) -> io::Result<Option<Counter>> {
        Ok(Some(Counter { fd: Fd::new(eventfd), count: Rc::default() }))
    }

    async fn take(counter: &Counter) -> io::Result<()> {
        Op::new(ReadCounter(counter.clone())).await
    }
}

/// An eventfd, and where its count goes. The kernel may still write it when the future is gone.
#[derive(Clone)]
pub struct Counter {
    fd: Rc<Fd>,
    count: Rc<Cell<u64>>,
}

/// A read of an eventfd: the least that the kernel can be asked for and answer with something.
struct ReadCounter(Counter);

// SAFETY: the entry refers to the shared number, which stays where it is and lives at least as long
// as the operation; a read has one completion.
unsafe impl Operation for ReadCounter {
    type Output = io::Result<()>;

    fn entry(&mut self) -> Entry {
        let count = self.0.count.as_ptr().cast();
        opcode::Read::new(types::Fd(self.0.fd.raw()), count, size_of::<u64>() as u32).build()
    }

    fn call(&mut self) -> io::Result<u32> {
        let count = self.0.count.as_ptr().cast();
        // SAFETY: the pointer and the length describe the shared number.
        let read = unsafe { libc::read(self.0.fd.raw(), count, size_of::<u64>()) };
        u32::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    fn descriptor(&self) -> Option<&Rc<Fd>> {
        Some(&self.0.fd)
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn complete(self, result: io::Result<u32>) -> io::Result<()> {
        result.map(drop)
    }
}
