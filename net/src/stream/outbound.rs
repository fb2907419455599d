//! A connection's way out.
//!
//! Small writes are copied into a buffer, and the buffer is sent once, at the end of the turn: many
//! writes, one send. Large writes go out at once from the caller's memory when nothing is under
//! way. One send is under way at a time, so that bytes keep their order; what is written meanwhile
//! waits in a second buffer. An error that comes late is the next call's.
//!
//! A send is tried without waiting first: on the ring by a quiet send, which costs no completion,
//! on epoll by the system call. What does not fit the socket waits in an operation, which owns the
//! buffer: ours, or one that the caller has handed over and gets back when it is sent.

mod handed;
mod lost;
mod pause;

use std::future::Future;
use std::io;
use std::io::IoSlice;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use annulus_runtime::LIMITS;
use annulus_runtime::io::{
    Batch, Fd, Interest, Op, ResidentKey, give_back, is_known_blocked, is_settled, mark_dirty,
    not_ready, send, send_quietly, send_vectored, shutdown, spare_buffer,
};

pub(super) use self::handed::By;
use self::handed::Handed;
use self::lost::Lost;
use self::pause::Pause;
use super::send::{Send, Sent};
use super::zero_copy::{Waiting, ZeroCopy};
use crate::notice::Notice;
use crate::shortage::passes;

/// The most slices of one system call (`IOV_MAX`).
const SLICES_MAX: usize = 1024;

pub(super) struct Outbound {
    fd: Rc<Fd>,
    key: ResidentKey,
    /// Accepted, and not yet handed to the kernel.
    unsent: Vec<u8>,
    /// A send that is over when its turn is.
    quiet: Option<Batch>,
    /// A send that waits in the kernel for room, and how long the buffer is if it is our own: its
    /// memory is held until all of it is sent.
    waiting: Option<Waiting>,
    waiting_bytes: usize,
    /// What has become of a buffer that a caller has handed over.
    handed: Handed,
    zero_copy: ZeroCopy,
    /// The kernel has been asked to stop, because the connection moves: what it has not sent stays.
    moving: bool,
    /// What a send that nobody waited for has failed with.
    error: Option<io::Error>,
    /// Behind a send that has failed for a shortage.
    pause: Pause,
    /// How the connection was lost, if a send has heard of it: the kernel tells that only once.
    lost: Lost,
    /// The task that waits for room or for everything to be sent.
    waiter: Option<Waiter>,
    closing: Closing,
    /// The stream is gone; only what is unsent keeps the connection.
    released: bool,
}

/// A task, and what it waits for.
struct Waiter {
    waker: Waker,
    until: Until,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// More can be accepted.
    Room,
    /// Nothing is under way.
    Sent,
    /// The buffer that was handed over is back.
    Back,
}

/// How far the write side has been closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    Open,
    /// FIN follows when everything is sent.
    WhenSent,
    Closed,
}

/// What an attempt to send from the caller's memory has come to.
pub(super) enum Attempt {
    /// So many bytes are accepted.
    Accepted(usize),
    /// The socket is full: [hand the buffer over](Outbound::hand_over).
    Full,
}

impl Outbound {
    pub(super) fn new(fd: Rc<Fd>, key: ResidentKey) -> Outbound {
        Outbound {
            fd,
            key,
            unsent: Vec::new(),
            quiet: None,
            waiting: None,
            waiting_bytes: 0,
            handed: Handed::Nothing,
            zero_copy: ZeroCopy::at_first(),
            moving: false,
            error: None,
            pause: Pause::default(),
            lost: Lost::default(),
            waiter: None,
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
        self.check()?;
        let total = slices.iter().fold(0usize, |sum, slice| sum.saturating_add(slice.len()));
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        self.check_open()?;
        if total > LIMITS.small_write_bytes_max && !self.is_sending() {
            match self.send_behind_unsent(slices) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                answer => return Poll::Ready(answer),
            }
        }
        let room = LIMITS.unsent_bytes_max.saturating_sub(self.unsent_bytes());
        if room == 0 {
            self.wait(cx, Until::Room);
            return Poll::Pending;
        }
        Poll::Ready(Ok(self.keep(slices, room)))
    }

    /// Accepts bytes of a buffer that can be handed over, without copying more than a little.
    pub(super) fn poll_attempt(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<Attempt>> {
        self.check()?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(Attempt::Accepted(0)));
        }
        self.check_open()?;
        let room = LIMITS.unsent_bytes_max.saturating_sub(self.unsent_bytes());
        let slices = [IoSlice::new(bytes)];
        if bytes.len() <= LIMITS.copied_send_bytes_max.min(room) {
            return Poll::Ready(Ok(Attempt::Accepted(self.keep(&slices, room))));
        }
        if self.is_sending() {
            self.wait(cx, Until::Sent);
            return Poll::Pending;
        }
        match self.send_behind_unsent(&slices) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Poll::Ready(Err(e)),
            Ok(count) => Poll::Ready(Ok(Attempt::Accepted(count))),
            Err(_) if self.unsent.is_empty() => Poll::Ready(Ok(Attempt::Full)),
            Err(_) => {
                self.send_unsent_now();
                self.wait(cx, Until::Sent);
                Poll::Pending
            }
        }
    }

    /// Waits until everything accepted was handed to the kernel.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.collect();
        self.send_unsent_now();
        self.check()?;
        if self.is_idle() {
            return Poll::Ready(Ok(()));
        }
        self.wait(cx, Until::Sent);
        Poll::Pending
    }

    /// Waits while a send waits for room. What is unsent otherwise leaves with this turn.
    #[cfg(feature = "hyper")]
    pub(super) fn poll_on_its_way(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        if self.waiting.is_none() {
            return Poll::Ready(Ok(()));
        }
        self.wait(cx, Until::Sent);
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

    /// The stream is gone. True if nothing is left to be sent.
    pub(super) fn release(&mut self) -> bool {
        self.released = true;
        self.collect();
        self.abandon();
        self.send_unsent_now();
        mark_dirty(self.key);
        self.is_idle()
    }

    /// What a send has failed with that nobody has been told.
    pub(super) fn take_error(&mut self) -> Option<io::Error> {
        self.collect();
        if self.error.is_some() && self.quiet.take_if(|batch| is_settled(*batch)).is_some() {
            // It came behind the error, and nothing was heard of it: it has sent all.
            self.note_success();
        }
        self.error.take()
    }

    /// Asks the kernel to give back what it has not sent: the connection is about to move.
    pub(super) fn start_moving(&mut self) {
        self.collect();
        self.abandon();
        if let Some(waiting) = &mut self.waiting {
            if !waiting.cancel() {
                // On epoll nothing is with the kernel: the bytes are still here.
                let rest = self.waiting.take().map(Waiting::into_rest);
                self.waiting_bytes = 0;
                self.unsent.splice(..0, rest.into_iter().flatten());
            }
        }
        self.moving = self.is_sending();
    }

    /// True when the kernel holds nothing more of what was written.
    pub(super) fn has_stopped(&mut self) -> bool {
        self.collect();
        !self.is_sending()
    }

    /// Takes everything that was accepted and not sent, once [it has stopped](Self::has_stopped).
    pub(super) fn take_unsent(&mut self) -> Unsent {
        let error = self.take_error();
        Unsent {
            bytes: std::mem::take(&mut self.unsent),
            error,
            lost: self.lost,
            closing: self.closing,
        }
    }

    /// Goes on where another shard's connection has stopped.
    pub(super) fn resume(&mut self, unsent: Unsent) {
        let Unsent { bytes, error, lost, closing } = unsent;
        self.unsent = bytes;
        self.error = error;
        self.lost = lost;
        self.closing = closing;
        mark_dirty(self.key);
    }

    /// True if every accepted byte was handed to the kernel, or never will be.
    pub(super) fn is_idle(&self) -> bool {
        self.unsent.is_empty() && !self.is_sending()
    }

    /// True if bytes were accepted that the kernel has not taken.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent_bytes() > 0
    }

    fn is_sending(&self) -> bool {
        self.waiting.is_some() || self.quiet.is_some_and(|batch| !is_settled(batch))
    }

    /// What a quiet send holds is not counted: it is gone when the turn is.
    fn unsent_bytes(&self) -> usize {
        self.unsent.len() + self.waiting_bytes
    }

    /// What a reader finds behind the last byte: the end, or how the connection was lost, also if a
    /// send was told that and nobody has taken its answer yet.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.collect();
        if self.waiting.is_some() {
            // What it follows on may have hidden why it will fail.
            self.lost.suspect();
        }
        self.lost.end(&self.fd)
    }

    /// Reports what went wrong before. Who is told has what was kept back tried again.
    fn check(&mut self) -> io::Result<()> {
        let Some(error) = self.take_error() else { return Ok(()) };
        self.pause.end(self.key);
        Err(error)
    }

    fn check_open(&self) -> io::Result<()> {
        if self.closing == Closing::Open {
            return Ok(());
        }
        let text = "the write side of this stream has been shut down";
        Err(io::Error::new(io::ErrorKind::BrokenPipe, text))
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.closing == Closing::Closed {
            return Ok(());
        }
        shutdown(self.fd.as_fd(), Shutdown::Write)?;
        self.closing = Closing::Closed;
        Ok(())
    }

    /// Hands the kernel what is unsent. Answers whom to wake, when the borrow has ended.
    #[must_use = "the waker must be woken, or its task waits for ever"]
    pub(super) fn write_out(&mut self) -> Option<Waker> {
        self.collect();
        if !self.pause.is_on() && !self.unsent.is_empty() && !self.is_sending() {
            self.start();
        }
        if self.closing == Closing::WhenSent && self.is_idle() {
            // An error says that the peer is gone, and then FIN has no meaning.
            let _gone = self.finish();
        }
        if self.is_awaited() && self.waiting.is_none() && self.is_sending() {
            mark_dirty(self.key);
        }
        let met = self.waiter.as_ref().is_some_and(|waiter| self.is_met(waiter.until));
        if met { self.waiter.take().map(|waiter| waiter.waker) } else { None }
    }

    fn is_met(&self, until: Until) -> bool {
        self.error.is_some()
            || match until {
                Until::Room => self.unsent_bytes() < LIMITS.unsent_bytes_max,
                Until::Sent => self.is_idle(),
                Until::Back => matches!(&self.handed, Handed::Sent(.., lent) if lent.is_empty()),
            }
    }

    /// Sends the buffer: quietly, or by a system call where there are no quiet sends.
    fn start(&mut self) {
        let buffer = std::mem::take(&mut self.unsent);
        match send_quietly(&self.fd, buffer, self.key) {
            Ok(batch) => self.quiet = Some(batch),
            Err(buffer) => {
                self.unsent = buffer;
                self.send_unsent_now();
            }
        }
    }

    /// A quiet send is known to have ended when its turn has. Somebody for whom that matters must
    /// not have to wait until the turn brings something else: dirty, the shard does not sleep.
    fn is_awaited(&self) -> bool {
        let awaited = self.waiter.is_some() || !self.unsent.is_empty();
        awaited || self.closing == Closing::WhenSent || self.released
    }

    /// A quiet send has sent a part only, or failed.
    pub(super) fn send_fell_short(&mut self, buffer: Vec<u8>, result: io::Result<usize>) {
        self.quiet = None;
        self.weigh_own(buffer, 0, result);
    }

    /// Takes what the kernel has answered since.
    #[inline]
    fn collect(&mut self) {
        // Nearly always there is nothing: quiet sends answer in another way.
        if self.waiting.is_some() || !matches!(self.handed, Handed::Nothing | Handed::Abandoned) {
            self.collect_answers();
        }
    }

    fn collect_answers(&mut self) {
        let lent = match &mut self.handed {
            Handed::UnderWay(lent) | Handed::Sent(_, _, lent) => Some(lent),
            Handed::Nothing | Handed::Abandoned => None,
        };
        let lent = lent.filter(|lent| !lent.is_empty());
        if self.waiting.is_none() && lent.is_none() {
            return;
        }
        let notice = Waker::from(Arc::new(Notice(self.key)));
        let cx = &mut Context::from_waker(&notice);
        if let Some(lent) = lent {
            lent.collect(cx, &mut self.zero_copy);
        }
        self.collect_sent(cx);
    }

    /// Takes the result of the send that waits in the kernel, if there is one and it has come.
    fn collect_sent(&mut self, cx: &mut Context<'_>) {
        match self.waiting.take() {
            Some(Waiting::Plain(mut op)) => match Pin::new(&mut op).poll(cx) {
                Poll::Ready(Sent::Own { buffer, start, result }) => {
                    self.waiting_bytes = 0;
                    self.weigh_own(buffer, start, result);
                }
                Poll::Ready(Sent::OfCaller { buffer, start, result }) => {
                    self.weigh_handed(buffer, start, result, By::Copy);
                }
                Poll::Pending => self.waiting = Some(Waiting::Plain(op)),
            },
            Some(Waiting::ZeroCopy(mut part)) => match part.poll_sent(cx) {
                Poll::Ready(result) => self.weigh_part(part, result),
                Poll::Pending => self.waiting = Some(Waiting::ZeroCopy(part)),
            },
            None => {}
        }
    }

    /// A part of our own buffer was sent: what about the rest?
    fn weigh_own(&mut self, buffer: Vec<u8>, start: usize, result: io::Result<usize>) {
        let moving = std::mem::take(&mut self.moving);
        let count = match result {
            Ok(count) => {
                self.note_success();
                count
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) if moving && e.raw_os_error() == Some(libc::ECANCELED) => 0,
            Err(error) if passes(&error) => {
                // Accepted is accepted: the next call is told, and tries again, or else a pause
                // does when it ends.
                self.error = Some(error);
                self.quiet = None;
                self.put_back(buffer, start);
                return self.pause.begin(self.key);
            }
            Err(error) => {
                self.lost.note(&error);
                self.pause.end(self.key);
                self.error = Some(error);
                self.unsent = Vec::new();
                return;
            }
        };
        self.pause.end(self.key);
        let start = start + count;
        if start == buffer.len() {
            give_back(buffer);
        } else if moving {
            if start > 0 {
                // The cancel may have come behind an error that the kernel hides behind a part.
                self.lost.suspect();
            }
            self.put_back(buffer, start);
        } else {
            self.waiting_bytes = buffer.len();
            let send = Send::own(Rc::clone(&self.fd), buffer, start);
            self.waiting = Some(Waiting::Plain(Op::new(send)));
            self.collect();
        }
    }

    /// A shortage is over that nobody has been told of: then there is nothing to tell.
    fn note_success(&mut self) {
        self.pause.end(self.key);
        self.error.take_if(|error| passes(error));
    }

    /// What was not sent from `start` on comes before all that is unsent.
    fn put_back(&mut self, mut buffer: Vec<u8>, start: usize) {
        buffer.drain(..start);
        buffer.append(&mut self.unsent);
        self.unsent = buffer;
    }

    /// Sends by a system call what somebody waits for to be sent.
    fn send_unsent_now(&mut self) {
        if self.unsent.is_empty() || self.is_sending() {
            return;
        }
        let buffer = std::mem::take(&mut self.unsent);
        let result = self.send_now(&[IoSlice::new(&buffer)]);
        self.weigh_own(buffer, 0, result);
    }

    /// Sends what is unsent and the slices by one system call. Answers how much of the slices was
    /// sent; `WouldBlock` if that is nothing.
    fn send_behind_unsent(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.unsent.is_empty() {
            return self.send_now(slices);
        }
        let unsent = std::mem::take(&mut self.unsent);
        let mut all = Vec::with_capacity(1 + slices.len().min(SLICES_MAX));
        all.push(IoSlice::new(&unsent));
        all.extend(slices.iter().take(SLICES_MAX).map(|slice| IoSlice::new(slice)));
        let answer = self.send_now(&all);
        drop(all);
        self.unsent = unsent;
        let count = match answer {
            Err(e) if !passes(&e) => {
                self.pause.end(self.key);
                self.unsent = Vec::new();
                return Err(e);
            }
            answer => answer?,
        };
        self.note_success();
        let own = count.min(self.unsent.len());
        self.unsent.drain(..own);
        if self.unsent.is_empty() {
            give_back(std::mem::take(&mut self.unsent));
        }
        if count > own { Ok(count - own) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// Sends by a system call, as much as the socket takes. What it is told of the connection is
    /// kept for the reader, whoever asked.
    fn send_now(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if is_known_blocked(&self.fd, Interest::Write) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let answer = match slices {
            [only] => send(self.fd.as_fd(), only),
            _ => {
                let slices = &slices[..slices.len().min(SLICES_MAX)];
                send_vectored(self.fd.as_fd(), slices)
            }
        };
        match answer {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                not_ready(&self.fd, Interest::Write)?;
                Err(e)
            }
            // The first 1024 slices may all be empty; what follows them is copied.
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            answer => answer.inspect_err(|e| self.lost.note(e)),
        }
    }

    fn keep(&mut self, slices: &[IoSlice<'_>], room: usize) -> usize {
        if self.unsent.capacity() == 0 {
            self.unsent = spare_buffer();
        }
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

    fn wait(&mut self, cx: &Context<'_>, until: Until) {
        match &mut self.waiter {
            Some(waiter) if waiter.waker.will_wake(cx.waker()) => waiter.until = until,
            waiter => *waiter = Some(Waiter { waker: cx.waker().clone(), until }),
        }
        // At the end of the turn `write_out` starts a send, or hurries the one under way.
        mark_dirty(self.key);
    }
}

/// What a connection has accepted and not sent.
#[derive(Debug)]
pub(super) struct Unsent {
    pub(super) bytes: Vec<u8>,
    error: Option<io::Error>,
    lost: Lost,
    closing: Closing,
}
