//! A connection's way out.
//!
//! Small writes are copied into a buffer, and the buffer is sent once, at the end of the turn: many
//! writes, one send. Large writes go out at once from the caller's memory when nothing is ahead of
//! them. One send is in flight at a time, so that bytes keep their order; what is written meanwhile
//! waits in a second buffer. An error that comes late is the next call's.

use std::io;
use std::io::IoSlice;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use annulus_runtime::io::{
    Fd, Interest, Op, ResidentKey, is_known_blocked, limits, mark_dirty, not_ready, send,
};
use socket2::SockRef;

use super::operations::{Send, SendMode, Sent};

/// The most slices of one system call (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

pub(super) struct Outbound {
    fd: Rc<Fd>,
    key: ResidentKey,
    /// Accepted, and not yet handed to the kernel.
    unsent: Vec<u8>,
    /// Kept for its capacity.
    spare: Vec<u8>,
    sending: Option<Op<Send>>,
    sending_bytes: usize,
    /// What a send that nobody waited for has failed with.
    error: Option<io::Error>,
    /// The task that waits for room or for everything to be sent.
    waiter: Option<Waker>,
    /// Marks the connection dirty when a send has ended.
    notice: Option<Waker>,
    mode: SendMode,
    closing: Closing,
    /// The stream is gone; only what is unsent keeps the connection.
    released: bool,
}

/// How far the write side has been closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    Open,
    /// FIN follows when everything is sent.
    WhenSent,
    Closed,
}

impl Outbound {
    pub(super) fn new(fd: Rc<Fd>, key: ResidentKey) -> Outbound {
        Outbound {
            fd,
            key,
            unsent: Vec::new(),
            spare: Vec::new(),
            sending: None,
            sending_bytes: 0,
            error: None,
            waiter: None,
            notice: None,
            mode: SendMode::AtOnce,
            closing: Closing::Open,
            released: false,
        }
    }

    /// Accepts bytes of the slices, in order; answers how many.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.collect_sent();
        if let Some(error) = self.error.take() {
            return Poll::Ready(Err(error));
        }
        let total = slices.iter().fold(0usize, |sum, slice| sum.saturating_add(slice.len()));
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        if self.closing != Closing::Open {
            let text = "the write side of this stream has been shut down";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, text)));
        }
        let limits = limits();
        if total > limits.small_write_bytes_max && self.is_idle() {
            match self.send_directly(slices) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                answer => return Poll::Ready(answer),
            }
        }
        let room = limits.unsent_bytes_max.saturating_sub(self.unsent_bytes());
        if room == 0 {
            self.wait(cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(self.keep(slices, room)))
    }

    /// Waits until everything accepted was handed to the kernel.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.collect_sent();
        self.send_unsent_directly();
        if let Some(error) = self.error.take() {
            return Poll::Ready(Err(error));
        }
        if self.is_idle() {
            return Poll::Ready(Ok(()));
        }
        self.wait(cx);
        Poll::Pending
    }

    /// Sends what is unsent, then FIN.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(self.finish()),
            other => other,
        }
    }

    /// FIN follows as soon as everything is sent, though nobody waits for it.
    pub(super) fn shutdown_when_sent(&mut self) {
        if self.closing == Closing::Open {
            self.closing = Closing::WhenSent;
            mark_dirty(self.key);
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.closing == Closing::Closed {
            return Ok(());
        }
        SockRef::from(&*self.fd).shutdown(Shutdown::Write)?;
        self.closing = Closing::Closed;
        Ok(())
    }

    /// True if every accepted byte was handed to the kernel, or never will be.
    pub(super) fn is_idle(&self) -> bool {
        self.unsent.is_empty() && self.sending.is_none()
    }

    fn unsent_bytes(&self) -> usize {
        self.unsent.len() + self.sending_bytes
    }

    /// Hands the kernel what is unsent. Answers whom to wake, when the borrow has ended.
    #[must_use = "the waker must be woken, or its task waits for ever"]
    pub(super) fn write_out(&mut self) -> Option<Waker> {
        self.collect_sent();
        while self.sending.is_none() && !self.unsent.is_empty() {
            let buffer = std::mem::replace(&mut self.unsent, std::mem::take(&mut self.spare));
            self.start(buffer, 0, SendMode::AtOnce);
        }
        if self.closing == Closing::WhenSent && self.is_idle() {
            // An error says that the peer is gone, and then FIN has no meaning.
            let _gone = self.finish();
        }
        self.hurry();
        let room = self.sending.is_none() || self.unsent_bytes() < limits().unsent_bytes_max;
        if room { self.waiter.take() } else { None }
    }

    /// A quiet send is known to have ended when its turn has. Somebody for whom that matters must
    /// not have to wait until the turn brings something else: dirty, the shard does not sleep.
    fn hurry(&self) {
        let awaited = self.waiter.is_some() || !self.unsent.is_empty();
        if self.mode == SendMode::AtOnce
            && self.sending.is_some()
            && (awaited || self.closing == Closing::WhenSent || self.released)
        {
            mark_dirty(self.key);
        }
    }

    /// Takes the result of the send in flight, if there is one, and goes on with what it left.
    fn collect_sent(&mut self) {
        let Some(sending) = &mut self.sending else { return };
        let notice = self.notice.get_or_insert_with(|| Waker::from(Arc::new(Notice(self.key))));
        let mut cx = Context::from_waker(notice);
        let Poll::Ready(sent) = Pin::new(sending).poll(&mut cx) else { return };
        self.sending = None;
        self.sending_bytes = 0;
        self.weigh(sent);
    }

    /// Sends without a ring entry what somebody waits for to be sent.
    fn send_unsent_directly(&mut self) {
        if self.sending.is_some() || self.unsent.is_empty() {
            return;
        }
        let buffer = std::mem::take(&mut self.unsent);
        let result = match self.send_directly(&[IoSlice::new(&buffer)]) {
            // The ring, or an edge, tells when there is room.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        };
        self.weigh(Sent { buffer, start: 0, result });
    }

    /// The stream is gone. True if nothing is left to be sent.
    pub(super) fn release(&mut self) -> bool {
        self.released = true;
        self.collect_sent();
        self.send_unsent_directly();
        mark_dirty(self.key);
        self.is_idle()
    }

    fn weigh(&mut self, sent: Sent) {
        let Sent { mut buffer, start, result } = sent;
        let count = match result {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.error = Some(error);
                self.unsent = Vec::new();
                return;
            }
        };
        if start + count < buffer.len() {
            // The socket is full: the rest waits in the kernel.
            self.start(buffer, start + count, SendMode::Waiting);
            return;
        }
        buffer.clear();
        if self.unsent.capacity() == 0 {
            self.unsent = buffer;
        } else {
            self.spare = buffer;
        }
    }

    fn start(&mut self, buffer: Vec<u8>, start: usize, mode: SendMode) {
        self.sending_bytes = buffer.len() - start;
        self.mode = mode;
        self.sending = Some(Op::new(Send::new(Rc::clone(&self.fd), buffer, start, mode)));
        self.collect_sent();
    }

    /// Tries the kernel at once with the caller's memory.
    fn send_directly(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if is_known_blocked(&self.fd, Interest::Write) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let filled = slices.iter().find(|slice| !slice.is_empty());
        let answer = match filled {
            Some(only) if only.len() == slices.iter().map(|s| s.len()).sum() => {
                send(self.fd.raw(), only)
            }
            _ => {
                let slices = &slices[..slices.len().min(SLICES_MAX)];
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                SockRef::from(&*self.fd).send_vectored_with_flags(slices, flags)
            }
        };
        match answer {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                not_ready(&self.fd, Interest::Write)?;
                Err(e)
            }
            // The first 1024 slices may all be empty; what follows them is copied.
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            answer => answer,
        }
    }

    fn keep(&mut self, slices: &[IoSlice<'_>], room: usize) -> usize {
        let mut left = room;
        for slice in slices {
            let count = slice.len().min(left);
            self.unsent.extend_from_slice(&slice[..count]);
            left -= count;
            if left == 0 {
                break;
            }
        }
        mark_dirty(self.key);
        room - left
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.waiter.as_ref().is_some_and(|waiter| waiter.will_wake(cx.waker())) {
            self.waiter = Some(cx.waker().clone());
        }
        // At the end of the turn `write_out` starts a send, or hurries the one in flight.
        mark_dirty(self.key);
    }
}

/// Wakes a connection, on its shard, to go on after a send.
struct Notice(ResidentKey);

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        mark_dirty(self.0);
    }
}
