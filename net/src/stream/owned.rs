//! Reading and writing with buffers that are given and come back.

use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::rc::Rc;

use annulus_runtime::buf::{BufError, BufResult, IoBuf, IoBufMut, Lease};

use super::inbound::Take;
use super::outbound::{Attempt, By};
use super::{Connection, Stream, ZeroCopy};
use crate::family::Family;
use crate::memory::memory_of;

impl<F: Family> Stream<F> {
    /// Receives into the buffer, from its beginning and up to its capacity, and gives it back with
    /// the number of bytes. A `Vec` then has that length. Waits if there is nothing.
    ///
    /// 0 means that the peer has finished, or that the buffer has no room.
    ///
    /// ```
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (mut stream, _peer) = listener.accept().await?;
    /// client.send_all("hello").await?;
    /// let (count, buffer) = stream.recv(Vec::with_capacity(1024)).await?;
    /// assert_eq!(buffer, b"hello");
    /// assert_eq!(count, 5);
    /// stream.send_all(buffer).await?;
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`read`](Stream::read). The error has the buffer.
    ///
    /// # Cancel safety
    ///
    /// A dropped receive has received nothing: bytes that arrive meanwhile are the next read's.
    /// The buffer is dropped with it.
    pub async fn recv<B: IoBufMut>(&mut self, buffer: B) -> BufResult<usize, B> {
        self.receive(buffer).await
    }

    /// Receives until the buffer is full to its capacity; a [`slice`](IoBuf::slice) of it says
    /// otherwise. Answers how much that is.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// use annulus_runtime::buf::IoBuf;
    ///
    /// one.write_all(b"head, then body").await?;
    /// let (_, head) = other.recv_exact(Vec::with_capacity(64).slice(..4)).await?;
    /// assert_eq!(head.into_inner(), b"head");
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the peer finishes before that; otherwise the connection's. The error's
    /// buffer has what was received: a `Vec` or a slice is as long as that, and empty if nothing
    /// was. What was in it before does not count.
    ///
    /// # Cancel safety
    ///
    /// A dropped `recv_exact` gives the bytes it took back to the stream: the next read gets them.
    pub async fn recv_exact<B: IoBufMut>(&mut self, buffer: B) -> BufResult<usize, B> {
        self.receive_exact(buffer).await
    }

    /// What has been received, in the memory that the kernel received it into: a buffer of the
    /// shard's pool, which the drop of the lease returns. Waits if there is nothing, and holds no
    /// memory while it does. Empty when the peer has finished.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// one.write_all(b"hello").await?;
    /// one.shutdown().await?;
    /// let lease = other.recv_lease().await?;
    /// assert_eq!(&lease[..], b"hello");
    /// assert!(other.recv_lease().await?.is_empty());
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`read`](Stream::read).
    ///
    /// # Cancel safety
    ///
    /// A dropped `recv_lease` has received nothing: bytes that arrive meanwhile are the next
    /// read's.
    pub async fn recv_lease(&mut self) -> io::Result<Lease> {
        poll_fn(|cx| self.poll_lease(cx)).await
    }

    /// Sends bytes of the buffer, and gives it back with the number of those that were accepted.
    /// Waits while 64 KiB are unsent.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// // Nobody reads, so that a part of it is accepted.
    /// let (count, buffer) = one.send(vec![0; 64 << 20]).await?;
    /// assert!(0 < count && count < buffer.len());
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`write`](Stream::write). The error has the buffer.
    ///
    /// # Cancel safety
    ///
    /// A dropped send has sent nothing. The buffer is dropped with it.
    pub async fn send<B: IoBuf>(&mut self, buffer: B) -> BufResult<usize, B> {
        self.transmit(buffer).await
    }

    /// Sends the whole buffer from where it lies, and gives it back. Up to 1 KiB is copied instead,
    /// behind what the stream is about to send: that costs less than a system call.
    ///
    /// What the socket has no room for is left with the kernel, and so is the buffer, until all of
    /// it is sent.
    ///
    /// One buffer, sent again and again:
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// let mut buffer = vec![7; 4096];
    /// for _ in 0..3 {
    ///     (_, buffer) = one.send_all(buffer).await?;
    /// }
    /// let (count, _) = other.recv_exact(Vec::with_capacity(3 * 4096)).await?;
    /// assert_eq!(count, 3 * 4096);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`write`](Stream::write). The error has the buffer; some first part of it may be sent.
    ///
    /// # Panics
    ///
    /// If it is polled within another runtime while the kernel has the buffer.
    ///
    /// # Cancel safety
    ///
    /// A dropped `send_all` has sent some first part of the buffer; nobody can tell how much. The
    /// kernel is asked to stop, and the buffer is dropped when it has; what is written next comes
    /// behind that first part.
    pub async fn send_all<B: IoBuf>(&mut self, buffer: B) -> BufResult<usize, B> {
        self.transmit_all(buffer).await
    }

    /// Sends the whole buffer without a copy: the network reads it where it lies (`SEND_ZC`). Gives
    /// it back when the kernel reads it no more, which over TCP is when the peer's kernel has
    /// acknowledged all of it: after a round trip at the earliest, and for as long as a peer does
    /// not read and its window is full, not at all. What is written next does not wait for that.
    ///
    /// It pays for large buffers on a link whose device can gather them: there the copy is most of
    /// what a send costs. The notice has a price of its own, so that below 16 KiB
    /// ([`LIMITS`](annulus_runtime::LIMITS)) this is [`send_all`](Stream::send_all). So it is where
    /// there are no such sends: on epoll, over Unix sockets; and on a stream over which the kernel
    /// has reported that it copied all the same, as it does on loopback.
    /// [`zero_copy`](Stream::zero_copy) says how it stands. When the memory that the process may
    /// lock is in use (`RLIMIT_MEMLOCK`, `net.core.optmem_max`), what is left is copied.
    ///
    /// To keep a link busy, send several streams' buffers at a time, or one of some MiB: a stream
    /// that waits for each small buffer to come back waits a round trip for each.
    ///
    /// ```
    /// # use annulus_net::{TcpListener, TcpStream};
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let mut client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (mut stream, _peer) = listener.accept().await?;
    /// # let reading = annulus_runtime::spawn(async move {
    /// #     client.recv_exact(Vec::with_capacity(1 << 20)).await.map(|(count, _)| count)
    /// # });
    /// let file = vec![7; 1 << 20];
    /// let (sent, file) = stream.send_zc(file).await?;
    /// assert_eq!(sent, file.len());
    /// println!("zero-copy sends here: {:?}", stream.zero_copy()?);
    /// # assert_eq!(reading.await.unwrap().unwrap(), sent);
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`write`](Stream::write). The error has the buffer; some first part of it may be sent.
    ///
    /// # Panics
    ///
    /// If it is polled within another runtime while the kernel has the buffer.
    ///
    /// # Cancel safety
    ///
    /// A dropped `send_zc` has sent some first part of the buffer; nobody can tell how much. The
    /// kernel is asked to stop, and the buffer is dropped when the kernel reads it no more; what is
    /// written next comes behind that first part. A runtime that ends before that waits for a
    /// second, then leaks the buffer.
    pub async fn send_zc<B: IoBuf>(&mut self, buffer: B) -> BufResult<usize, B> {
        self.transmit_zero_copy(buffer).await
    }

    /// What this stream knows of [zero-copy sends](Stream::send_zc) over its connection. A stream
    /// that was moved to another shard knows nothing yet.
    ///
    /// ```
    /// # use annulus_net::ZeroCopy;
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// one.send_zc(vec![7; 32 * 1024]).await?;
    /// // Unix sockets have no such sends, which the first one finds out.
    /// assert_eq!(one.zero_copy()?, ZeroCopy::Unavailable);
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// On another shard than the stream's.
    pub fn zero_copy(&self) -> io::Result<ZeroCopy> {
        Ok(self.connection()?.zero_copy())
    }

    /// Sends bytes of the buffers, in order, and gives them back with the number of those that
    /// were accepted. One call takes 1024 buffers at most.
    ///
    /// ```
    /// # annulus_runtime::Runtime::new().unwrap().block_on(async {
    /// # let (mut one, mut other) = annulus_net::UnixStream::pair()?;
    /// let (count, buffers) = one.send_vectored(vec!["hello, ", "world"]).await?;
    /// assert_eq!(count, 12);
    /// assert_eq!(buffers.concat(), "hello, world");
    /// # Ok::<_, std::io::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`write`](Stream::write). The error has the buffers.
    ///
    /// # Cancel safety
    ///
    /// A dropped send has sent nothing. The buffers are dropped with it.
    pub async fn send_vectored<B: IoBuf>(&mut self, buffers: Vec<B>) -> BufResult<usize, Vec<B>> {
        self.transmit_vectored(buffers).await
    }

    pub(super) async fn receive<B: IoBufMut>(&self, mut buffer: B) -> BufResult<usize, B> {
        let answer = poll_fn(|cx| {
            // SAFETY: receiving writes bytes.
            let memory = unsafe { buffer.as_uninit() };
            self.poll_fill(cx, memory, Take::Some)
        })
        .await;
        match answer {
            Ok(count) => {
                // SAFETY: so many bytes have been written from the beginning on.
                unsafe { buffer.set_received(count) };
                Ok((count, buffer))
            }
            Err(error) => Err(BufError { error, buffer }),
        }
    }

    pub(super) async fn receive_exact<B: IoBufMut>(&self, buffer: B) -> BufResult<usize, B> {
        let mut given = Given(buffer);
        let (filled, result) = fill(self, &mut given).await;
        let mut buffer = given.0;
        // SAFETY: so many bytes have been written from the beginning on.
        unsafe { buffer.set_received(filled) };
        match result {
            Ok(()) => Ok((filled, buffer)),
            Err(error) => Err(BufError { error, buffer }),
        }
    }

    pub(super) async fn transmit<B: IoBuf>(&self, buffer: B) -> BufResult<usize, B> {
        let slices = [IoSlice::new(buffer.as_slice())];
        match poll_fn(|cx| self.poll_write(cx, &slices)).await {
            Ok(count) => Ok((count, buffer)),
            Err(error) => Err(BufError { error, buffer }),
        }
    }

    pub(super) async fn transmit_vectored<B: IoBuf>(
        &self,
        buffers: Vec<B>,
    ) -> BufResult<usize, Vec<B>> {
        let slices: Vec<_> = buffers.iter().map(|buffer| IoSlice::new(buffer.as_slice())).collect();
        match poll_fn(|cx| self.poll_write(cx, &slices)).await {
            Ok(count) => Ok((count, buffers)),
            Err(error) => Err(BufError { error, buffer: buffers }),
        }
    }

    pub(super) async fn transmit_all<B: IoBuf>(&self, buffer: B) -> BufResult<usize, B> {
        let length = buffer.as_slice().len();
        let mut sent = 0;
        loop {
            let rest = &buffer.as_slice()[sent..];
            let attempt = poll_fn(|cx| self.connection()?.poll_attempt(cx, rest)).await;
            match attempt {
                Ok(Attempt::Accepted(count)) => sent += count,
                Ok(Attempt::Full) => return self.transmit_rest(buffer, sent, By::Copy).await,
                Err(error) => return Err(BufError { error, buffer }),
            }
            if sent == length {
                return Ok((sent, buffer));
            }
        }
    }

    pub(super) async fn transmit_zero_copy<B: IoBuf>(&self, buffer: B) -> BufResult<usize, B> {
        let length = buffer.as_slice().len();
        match poll_fn(|cx| self.connection()?.poll_zero_copy(cx, length)).await {
            Ok(By::ZeroCopy) => self.transmit_rest(buffer, 0, By::ZeroCopy).await,
            Ok(By::Copy) => self.transmit_all(buffer).await,
            Err(error) => Err(BufError { error, buffer }),
        }
    }

    /// Leaves the buffer with the kernel until all of it is sent and nothing of it is in use.
    async fn transmit_rest<B: IoBuf>(&self, buffer: B, sent: usize, by: By) -> BufResult<usize, B> {
        match self.connection() {
            Ok(connection) => connection.hand_over(Rc::new(buffer), sent, by),
            Err(error) => return Err(BufError { error, buffer }),
        }
        let mut handed = HandedOver { stream: self, back: false, _stays: PhantomData };
        let (held, result) = poll_fn(|cx| handed.connection().poll_handed(cx)).await;
        handed.back = true;
        let buffer = held.into_any().downcast().expect("the buffer that was handed over");
        let buffer = Rc::into_inner(buffer).expect("nobody sends from a buffer that is back");
        match result {
            Ok(sent) => Ok((sent, buffer)),
            Err(error) => Err(BufError { error, buffer }),
        }
    }
}

/// The kernel has the buffer. Dropped before it is back, asks for it to be let go.
struct HandedOver<'a, F: Family> {
    stream: &'a Stream<F>,
    back: bool,
    _stays: PhantomData<*const ()>,
}

impl<F: Family> HandedOver<'_, F> {
    fn connection(&self) -> Rc<Connection> {
        self.stream.connection().expect(
            "a send that the kernel works on was polled within another runtime than where it began",
        )
    }
}

impl<F: Family> Drop for HandedOver<'_, F> {
    fn drop(&mut self) {
        if !self.back {
            self.stream.state.visit(|connection| connection.abandon());
        }
    }
}

/// Memory to be filled.
pub(super) trait Memory {
    /// Bytes only are written to it.
    fn memory(&mut self) -> &mut [MaybeUninit<u8>];
}

impl Memory for &mut [u8] {
    fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        memory_of(self)
    }
}

struct Given<B>(B);

impl<B: IoBufMut> Memory for Given<B> {
    fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: whoever fills a `Memory` writes bytes only.
        unsafe { self.0.as_uninit() }
    }
}

/// Reads until the memory is full. Answers how much it has been filled, and why it is not full.
pub(super) async fn fill<F: Family, M: Memory>(
    stream: &Stream<F>,
    memory: &mut M,
) -> (usize, io::Result<()>) {
    let mut filling = Filling { stream, memory, filled: 0, _stays: PhantomData };
    let result = loop {
        let answer = poll_fn(|cx| {
            let Filling { stream, memory, filled, .. } = &mut filling;
            stream.poll_fill(cx, &mut memory.memory()[*filled..], Take::All)
        })
        .await;
        let full = filling.memory.memory().len();
        match answer {
            Ok(count) => filling.filled += count,
            Err(error) => break Err(error),
        }
        if filling.filled == full {
            break Ok(());
        }
        if matches!(answer, Ok(0)) {
            let text = "the peer finished before the buffer was full";
            break Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
    };
    (std::mem::take(&mut filling.filled), result)
}

/// Dropped before its end, gives back what it took. On its own thread: from another, the bytes
/// would come by mail, and a read could be there first.
struct Filling<'a, F: Family, M: Memory> {
    stream: &'a Stream<F>,
    memory: &'a mut M,
    filled: usize,
    _stays: PhantomData<*const ()>,
}

impl<F: Family, M: Memory> Drop for Filling<'_, F, M> {
    fn drop(&mut self) {
        if self.filled > 0 {
            let taken = &self.memory.memory()[..self.filled];
            // SAFETY: `filled` bytes have been written.
            let taken = unsafe { std::slice::from_raw_parts(taken.as_ptr().cast(), taken.len()) };
            self.stream.put_back(<[u8]>::to_vec(taken));
        }
    }
}
