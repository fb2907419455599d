//! Copying from one connection to another.
//!
//! What has come leaves from where the kernel has put it: [leases](annulus_runtime::buf::Lease) go
//! from the reader to the writer, many by one system call. Only little is copied, to leave with the
//! writer's other small writes, and what the writer's socket has no room for.
//!
//! A direction holds no more than `recv_queue_bytes_max` (64 KiB), and takes nothing from its
//! reader while it holds something: so a slow writer holds back its reader's peer. While it waits
//! for bytes it holds none.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::task::{Context, Poll, ready};

use annulus_runtime::LIMITS;
use annulus_runtime::buf::Lease;
use annulus_runtime::io::Homed;

use crate::family::Family;
use crate::stream::{Connection, OwnedReadHalf, OwnedWriteHalf, ReadHalf, Stream, WriteHalf};

/// Copies everything that the reader's peer sends, until it finishes, and answers how much that
/// was. Waits at the end until the kernel has all of it; does not shut the writer down.
///
/// Reader and writer are streams or halves of streams, of whatever families.
///
/// ```
/// use annulus_net::io::copy;
/// # use annulus_net::{TcpListener, TcpStream};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// # let listener = TcpListener::bind("127.0.0.1:0").await?;
/// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
/// # let (mut stream, _peer) = listener.accept().await?;
/// // What `client` sends comes back.
/// # client.write_all(b"hello").await?;
/// # client.shutdown().await?;
/// let (mut read, mut write) = stream.split();
/// assert_eq!(copy(&mut read, &mut write).await?, 5);
/// # Ok(())
/// # })
/// # }
/// ```
///
/// # Errors
///
/// Those of reading and of writing. What was read and not accepted by the writer is the next
/// read's.
///
/// # Cancel safety
///
/// A dropped copy loses no byte: what the writer has accepted is sent, and what it has not is the
/// reader's next. How much was copied is not told.
pub async fn copy<R, W>(reader: &mut R, writer: &mut W) -> io::Result<u64>
where
    R: Source + ?Sized,
    W: Sink + ?Sized,
{
    let mut direction = Direction::new(reader.side().0, writer.side().0, End::Flush);
    poll_fn(|cx| {
        loop {
            match direction.step(cx)? {
                Step::Moved => {}
                Step::Waits => return Poll::Pending,
                Step::Over => return Poll::Ready(Ok(direction.copied)),
            }
        }
    })
    .await
}

/// Copies in both directions at once, until both peers have finished. Answers how much went from
/// `a` to `b`, and from `b` to `a`.
///
/// When one peer finishes, that is passed on: the other stream's write side is
/// [shut down](Stream::shutdown) once everything is sent, and the other direction goes on.
///
/// ```no_run
/// use annulus_net::TcpStream;
/// use annulus_net::io::copy_bidirectional;
///
/// # async fn serve(mut client: TcpStream) -> std::io::Result<()> {
/// let mut server = TcpStream::connect("192.0.2.1:80").await?;
/// let (sent, received) = copy_bidirectional(&mut client, &mut server).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// The first that reading or writing gives, on either side; it ends both directions. What was read
/// and not accepted by the other side is the next read's.
///
/// # Cancel safety
///
/// As [`copy`], in both directions. A side that has been shut down stays so.
pub async fn copy_bidirectional<A, B>(a: &mut A, b: &mut B) -> io::Result<(u64, u64)>
where
    A: Source + Sink + ?Sized,
    B: Source + Sink + ?Sized,
{
    let (a, b) = (a.side().0, b.side().0);
    let mut there = Direction::new(a, b, End::Shutdown);
    let mut back = Direction::new(b, a, End::Shutdown);
    poll_fn(|cx| {
        // In turns, so that neither takes all of the task's budget.
        let mut steps = [Step::Moved; 2];
        while steps.contains(&Step::Moved) {
            for (step, direction) in steps.iter_mut().zip([&mut there, &mut back]) {
                if *step == Step::Moved {
                    *step = direction.step(cx)?;
                }
            }
        }
        if steps == [Step::Over; 2] {
            return Poll::Ready(Ok((there.copied, back.copied)));
        }
        Poll::Pending
    })
    .await
}

/// What can be copied from: a stream, or a reading half of one.
///
/// A function for whatever can be copied from:
///
/// ```
/// # annulus_runtime::Runtime::new().unwrap().block_on(async {
/// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
/// use annulus_net::io::{Sink, Source, copy};
///
/// async fn echo(from: &mut impl Source, to: &mut impl Sink) -> std::io::Result<u64> {
///     copy(from, to).await
/// }
///
/// one.write_all(b"hello").await?;
/// one.shutdown().await?;
/// let (mut read, mut write) = other.split();
/// assert_eq!(echo(&mut read, &mut write).await?, 5);
/// # Ok::<_, std::io::Error>(())
/// # }).unwrap();
/// ```
pub trait Source: sealed::Side {}

/// What can be copied to: a stream, or a writing half of one. See [`Source`].
pub trait Sink: sealed::Side {}

mod sealed {
    use super::{Connection, Homed};

    /// The connection of a stream or of a half.
    pub struct Of<'a>(pub(super) &'a Homed<Connection>);

    pub trait Side {
        fn side(&self) -> Of<'_>;
    }
}

impl<F: Family> Source for Stream<F> {}
impl<F: Family> Source for ReadHalf<'_, F> {}
impl<F: Family> Source for OwnedReadHalf<F> {}

impl<F: Family> Sink for Stream<F> {}
impl<F: Family> Sink for WriteHalf<'_, F> {}
impl<F: Family> Sink for OwnedWriteHalf<F> {}

macro_rules! side {
    ($type:ty) => {
        impl<F: Family> sealed::Side for $type {
            fn side(&self) -> sealed::Of<'_> {
                sealed::Of(self.home())
            }
        }
    };
}

side!(Stream<F>);
side!(ReadHalf<'_, F>);
side!(OwnedReadHalf<F>);
side!(WriteHalf<'_, F>);
side!(OwnedWriteHalf<F>);

/// One direction of a copy.
struct Direction<'a> {
    from: &'a Homed<Connection>,
    to: &'a Homed<Connection>,
    held: Held,
    copied: u64,
    end: End,
    progress: Progress,
    /// Dropped on another thread, it would give back what it holds by mail, and a read at home
    /// could overtake that.
    _stays: PhantomData<*const ()>,
}

/// What becomes of the writer when the reader has ended.
#[derive(Clone, Copy)]
enum End {
    Flush,
    Shutdown,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Copying,
    Ending,
    Over,
}

/// What a direction has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Moved,
    Waits,
    Over,
}

impl<'a> Direction<'a> {
    fn new(from: &'a Homed<Connection>, to: &'a Homed<Connection>, end: End) -> Direction<'a> {
        let (held, progress) = (Held::default(), Progress::Copying);
        Direction { from, to, held, copied: 0, end, progress, _stays: PhantomData }
    }

    /// Moves what has come, if there is room for it.
    fn step(&mut self, cx: &mut Context<'_>) -> io::Result<Step> {
        match self.poll_move(cx) {
            Poll::Ready(Ok(())) if self.progress == Progress::Over => Ok(Step::Over),
            Poll::Ready(Ok(())) => Ok(Step::Moved),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(Step::Waits),
        }
    }

    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.progress == Progress::Copying && self.held.is_empty() {
            let count = ready!(self.from.get()?.poll_pass_on(cx, &*self.to.get()?))?;
            if count > 0 {
                self.copied += count as u64;
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_take(cx))?;
        }
        match self.progress {
            Progress::Copying => self.poll_give(cx),
            Progress::Ending => self.poll_end(cx),
            Progress::Over => Poll::Ready(Ok(())),
        }
    }

    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let from = self.from.get()?;
        let mut next = Some(ready!(from.poll_lease(cx))?);
        while let Some(lease) = next {
            self.held.push(lease);
            next = if self.held.has_room() { from.lease_out() } else { None };
        }
        if self.held.is_empty() {
            self.progress = Progress::Ending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_give(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let to = self.to.get()?;
        let count = ready!(self.held.poll_write(cx, &to))?;
        self.held.advance(count);
        self.copied += count as u64;
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let to = self.to.get()?;
        ready!(match self.end {
            End::Flush => to.poll_flush(cx),
            End::Shutdown => to.poll_shutdown(cx),
        })?;
        self.progress = Progress::Over;
        Poll::Ready(Ok(()))
    }
}

/// Dropped before its end, it gives back what the writer has not accepted.
impl Drop for Direction<'_> {
    fn drop(&mut self) {
        if let Some(bytes) = self.held.take_bytes() {
            self.from.visit(move |connection| connection.put_back(&bytes));
        }
    }
}

/// What was taken from the reader and is not yet the writer's, in order. No lease is empty.
#[derive(Default)]
struct Held {
    leases: VecDeque<Lease>,
    bytes: usize,
}

/// The most leases of one send: 64 KiB in buffers of 4 KiB.
const LEASES_MAX: usize = 16;

impl Held {
    fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    fn has_room(&self) -> bool {
        self.leases.len() < LEASES_MAX && self.bytes < LIMITS.recv_queue_bytes_max
    }

    fn push(&mut self, lease: Lease) {
        if !lease.is_empty() {
            self.bytes += lease.len();
            self.leases.push_back(lease);
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, to: &Connection) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); LEASES_MAX];
        for (slice, lease) in slices.iter_mut().zip(&self.leases) {
            *slice = IoSlice::new(lease);
        }
        to.poll_write(cx, &slices[..self.leases.len()])
    }

    /// Lets go of the first `count` bytes.
    fn advance(&mut self, count: usize) {
        self.bytes -= count;
        let mut left = count;
        while let Some(first) = self.leases.front_mut() {
            if left < first.len() {
                first.advance(left);
                break;
            }
            left -= first.len();
            self.leases.pop_front();
        }
    }

    /// All bytes, if there are any.
    fn take_bytes(&mut self) -> Option<Vec<u8>> {
        let leases = std::mem::take(&mut self.leases);
        (!leases.is_empty())
            .then(|| leases.iter().flat_map(|lease| lease.iter().copied()).collect())
    }
}
