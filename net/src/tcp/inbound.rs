//! A connection's way in.
//!
//! On io_uring the kernel receives into the shard's pool as long as one multishot is armed, and
//! what it has received waits here: a read that is dropped loses nothing. When the pool is dry, and
//! on epoll always, a read receives straight into the caller's memory instead, after waiting until
//! there is something to receive.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use annulus_runtime::io::{
    Fd, Interest, Multishot, Op, PoolBuffer, Ready, ReceivePooled, is_known_blocked, not_ready,
    receives_ahead, recv, short_read,
};

pub(super) struct Inbound {
    fd: Rc<Fd>,
    /// Bytes that a read gave back, which come before all others.
    returned: Vec<u8>,
    /// What the reader has begun to take.
    front: Option<PoolBuffer>,
    /// The kernel's receive into the pool, on drivers that have it.
    pooled: Option<Multishot<ReceivePooled>>,
    /// The pool had no buffer for this stream: the next receive goes to the caller's memory.
    dry: bool,
    /// Waits until a direct receive can succeed.
    readable: Option<Op<Ready>>,
    ended: bool,
}

/// What a read does with the bytes it finds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    Away,
    /// Leaves them for the next read.
    Peek,
}

impl Inbound {
    pub(super) fn new(fd: Rc<Fd>) -> Inbound {
        let pooled = receives_ahead().then(|| Multishot::new(ReceivePooled::new(Rc::clone(&fd))));
        Inbound {
            fd,
            returned: Vec::new(),
            front: None,
            pooled,
            dry: false,
            readable: None,
            ended: false,
        }
    }

    /// Fills the buffer with what has been received; waits if that is nothing. 0 is the end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            if self.front.is_some() || !self.returned.is_empty() {
                return Poll::Ready(Ok(self.copy_out(buffer, take)));
            }
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            if self.dry || self.pooled.is_none() {
                return self.poll_direct(cx, buffer, take);
            }
            ready!(self.poll_pooled(cx))?;
        }
    }

    /// Copies out of what is here, without asking the kernel.
    fn copy_out(&mut self, buffer: &mut [u8], take: Take) -> usize {
        if !self.returned.is_empty() {
            let count = self.returned.len().min(buffer.len());
            buffer[..count].copy_from_slice(&self.returned[..count]);
            if take == Take::Away {
                self.returned.drain(..count);
            }
            return count;
        }
        let Some(front) = &mut self.front else { return 0 };
        let count = front.len().min(buffer.len());
        buffer[..count].copy_from_slice(&front[..count]);
        if take == Take::Away {
            front.advance(count);
            if front.is_empty() {
                self.front = None;
            }
        }
        count
    }

    /// Takes the next received buffer, or notes the end, or that the pool is dry.
    fn poll_pooled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(pooled) = &mut self.pooled else { return Poll::Ready(Ok(())) };
        let item = match ready!(pooled.poll_armed(cx)) {
            Some(item) => item,
            None if pooled.operation().has_buffers() => ready!(pooled.poll_next(cx)),
            None => {
                self.dry = true;
                return Poll::Ready(Ok(()));
            }
        };
        Poll::Ready(self.note(item))
    }

    fn note(&mut self, item: io::Result<Option<PoolBuffer>>) -> io::Result<()> {
        match item {
            Ok(Some(buffer)) => self.front = Some(buffer),
            Ok(None) => self.ended = true,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOBUFS) => self.dry = true,
                Some(libc::EINTR | libc::EAGAIN) => {}
                _ => return Err(error),
            },
        }
        Ok(())
    }

    fn poll_direct(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        let flags = if take == Take::Peek { libc::MSG_PEEK } else { 0 };
        loop {
            if let Some(readable) = &mut self.readable {
                let answer = ready!(Pin::new(readable).poll(cx));
                self.readable = None;
                answer?;
            } else if is_known_blocked(&self.fd, Interest::Read) {
                self.await_readable();
                continue;
            }
            match recv(self.fd.as_fd(), buffer, flags) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    not_ready(&self.fd, Interest::Read)?;
                    self.await_readable();
                }
                Ok(count) => {
                    self.received_directly(count, buffer.len(), take);
                    return Poll::Ready(Ok(count));
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn await_readable(&mut self) {
        self.readable = Some(Op::new(Ready::new(Rc::clone(&self.fd), Interest::Read)));
    }

    fn received_directly(&mut self, count: usize, asked: usize, take: Take) {
        // Back to the pool, if it has recovered; `poll_pooled` looks.
        self.dry = false;
        if count == 0 {
            self.ended = true;
        } else if count < asked && take == Take::Away {
            short_read(&self.fd);
        }
    }

    /// Gives back bytes that a read took and did not hand on.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.returned.splice(..0, bytes.iter().copied());
    }

    /// Ends the kernel's receive. True if bytes that it received wait here.
    pub(super) fn stop(&mut self) -> io::Result<bool> {
        self.readable = None;
        if let Some(pooled) = &mut self.pooled {
            pooled.stop_now();
            if self.front.is_none() {
                if let Some(item) = pooled.pop() {
                    self.note(item)?;
                }
            }
        }
        Ok(self.front.is_some() || !self.returned.is_empty())
    }

    /// The stream is gone: lets go of everything.
    pub(super) fn release(&mut self) {
        self.pooled = None;
        self.readable = None;
        self.front = None;
        self.returned = Vec::new();
    }
}
