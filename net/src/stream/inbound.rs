//! A connection's way in.
//!
//! On io_uring the kernel receives into the shard's pool as long as one multishot is armed, and
//! what it has received waits here: a read that is dropped loses nothing. A read receives straight
//! into the caller's memory instead, after waiting until there is something to receive:
//!
//! - on epoll, always;
//! - when the pool is dry: nobody waits for a neighbour's buffers;
//! - when it wants much, or when much comes without a pause: a second copy of every byte costs more
//!   than system calls then. The multishot is ended first, so that bytes keep their order.

use std::io;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use annulus_runtime::LIMITS;
use annulus_runtime::buf::Lease;
use annulus_runtime::io::{Fd, Multishot, PoolBuffer, ReceivePooled, receives_ahead};

use super::direct::Direct;
use crate::memory::copy;

/// While much comes, a read at least this large goes direct. At 8 KiB that costs a quarter less
/// than a second copy, at 4 KiB as much, at 2 KiB a third more (ARCHITECTURE.md, "What was
/// measured").
const BULK_READ_BYTES_MIN: usize = 8 * 1024;

/// Memory for leases while much comes. A proxy of one connection took 0.36 s of CPU per GiB with
/// 16 or 32 KiB, 0.6 with 64 KiB (its peers are woken for each); one of 64 connections took 0.74,
/// 0.71 and 0.67.
const BULK_LEASE_BYTES: usize = 32 * 1024;

/// Why a stream cannot leave its shard yet.
pub(super) const HELD: &str = "the kernel holds on to the stream: try again";

pub(crate) struct Inbound {
    /// Bytes that a read gave back, which come before all others.
    returned: Vec<u8>,
    /// What the reader has begun to take.
    front: Option<PoolBuffer>,
    /// The kernel's receive into the pool, on drivers that have it.
    pooled: Option<Multishot<ReceivePooled>>,
    /// That receive is not armed, and everything it has brought was taken.
    pool_quiet: bool,
    /// The pool had no buffer for this stream: the next receive goes to the caller's memory.
    dry: bool,
    /// Bytes taken since there was last nothing behind them.
    run: usize,
    /// So much comes without a pause that receives go to the caller's memory.
    bulk: bool,
    /// Receives into the caller's memory.
    direct: Direct,
    /// What the kernel's receive has failed with, behind the bytes that came before.
    failed: Option<io::Error>,
    ended: bool,
}

/// What a read does with the bytes it finds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Take {
    /// Takes some.
    Some,
    /// Will come back until its memory is full.
    All,
    /// Leaves them for the next read.
    Peek,
}

impl Inbound {
    pub(super) fn new(fd: Rc<Fd>, short_read_empties: bool) -> Inbound {
        let pooled = receives_ahead().then(|| Multishot::new(ReceivePooled::new(Rc::clone(&fd))));
        Inbound {
            returned: Vec::new(),
            front: None,
            pool_quiet: pooled.is_none(),
            pooled,
            dry: false,
            run: 0,
            bulk: false,
            direct: Direct::new(fd, short_read_empties),
            failed: None,
            ended: false,
        }
    }

    /// Fills the memory with what has been received; waits if that is nothing. 0 is the end. The
    /// bytes that are counted have been written.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        let answer = self.poll_fill(cx, memory, take);
        if answer.is_pending() {
            self.pauses();
        }
        answer
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        if memory.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            if self.front.is_some() || !self.returned.is_empty() {
                return Poll::Ready(Ok(self.copy_out(memory, take)));
            }
            if let Some(over) = self.over() {
                return Poll::Ready(over.map(|()| 0));
            }
            if self.goes_direct(memory.len(), take) {
                if ready!(self.poll_pool_quiet(cx)) {
                    return self.poll_direct(cx, memory, take);
                }
            } else {
                ready!(self.poll_pooled(cx));
            }
        }
    }

    /// Hands out the memory that something was received into; waits if there is none. Empty at the
    /// end.
    pub(super) fn poll_lease(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        let answer = self.poll_hand_out(cx);
        if answer.is_pending() {
            self.pauses();
        }
        answer
    }

    fn poll_hand_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        loop {
            if let Some(lease) = self.lease_out() {
                return Poll::Ready(Ok(lease));
            }
            if let Some(over) = self.over() {
                return Poll::Ready(over.map(|()| Lease::from(Vec::new())));
            }
            if self.pooled.is_none() || self.dry || self.bulk {
                if ready!(self.poll_pool_quiet(cx)) {
                    return self.poll_direct_lease(cx);
                }
            } else {
                ready!(self.poll_pooled(cx));
            }
        }
    }

    /// So much was taken; more was there if it has filled its memory.
    fn took(&mut self, count: usize, filled: bool) {
        self.run = self.run.saturating_add(count);
        self.bulk |= self.run >= LIMITS.recv_queue_bytes_max;
        if !filled {
            self.pauses();
        }
    }

    /// The reader has everything there is.
    fn pauses(&mut self) {
        if self.run > 0 {
            self.bulk = self.run >= LIMITS.direct_recv_bytes_min;
            self.run = 0;
        }
    }

    /// What is here, without asking the kernel.
    pub(super) fn lease_out(&mut self) -> Option<Lease> {
        if !self.returned.is_empty() {
            return Some(Lease::from(std::mem::take(&mut self.returned)));
        }
        if self.front.is_none() {
            self.take_next();
        }
        let front = self.front.take()?;
        self.took(front.len(), front.is_whole());
        Some(front.into_lease())
    }

    /// What comes next, if it is here and so small that it is better copied than leased.
    pub(super) fn small_front(&mut self) -> Option<&PoolBuffer> {
        if !self.returned.is_empty() {
            return None;
        }
        if self.front.is_none() {
            self.take_next();
        }
        self.front.as_ref().filter(|front| front.len() <= LIMITS.copied_send_bytes_max)
    }

    pub(super) fn advance_front(&mut self, count: usize) {
        if let Some(front) = &mut self.front {
            front.advance(count);
            if front.is_empty() {
                self.front = None;
            }
        }
    }

    /// Once all bytes are out: the end, or the error that follows them.
    fn over(&mut self) -> Option<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        self.ended.then_some(Ok(()))
    }

    fn goes_direct(&self, wanted: usize, take: Take) -> bool {
        let wants_much = take == Take::All && wanted >= LIMITS.direct_recv_bytes_min;
        let brings_much = self.bulk && wanted >= BULK_READ_BYTES_MIN;
        self.pooled.is_none() || self.dry || wants_much || brings_much
    }

    /// Copies out of what is here, without asking the kernel. Behind a buffer that was filled to
    /// its end there is more, mostly.
    fn copy_out(&mut self, memory: &mut [MaybeUninit<u8>], take: Take) -> usize {
        let mut filled = 0;
        loop {
            let whole = self.front.as_ref().is_some_and(PoolBuffer::is_whole);
            filled += self.copy_front(&mut memory[filled..], take);
            let done = filled == memory.len() || take == Take::Peek;
            if done || !whole || self.front.is_none() && !self.take_next() {
                if take != Take::Peek {
                    self.took(filled, whole || self.front.is_some());
                }
                return filled;
            }
        }
    }

    fn copy_front(&mut self, memory: &mut [MaybeUninit<u8>], take: Take) -> usize {
        if !self.returned.is_empty() {
            let count = copy(&self.returned, memory);
            if take != Take::Peek {
                self.returned.drain(..count);
            }
            return count;
        }
        let Some(front) = &self.front else { return 0 };
        let count = copy(front, memory);
        if take != Take::Peek {
            self.advance_front(count);
        }
        count
    }

    /// Takes the next answer of the pooled receive if it has come. True if it brought bytes.
    fn take_next(&mut self) -> bool {
        let Some(item) = self.pooled.as_mut().and_then(Multishot::pop) else { return false };
        self.note(item);
        self.front.is_some()
    }

    /// Takes the next received buffer, or notes the end, or that the pool is dry.
    #[inline]
    fn poll_pooled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pooled) = &mut self.pooled else { return Poll::Ready(()) };
        self.direct.set_aside();
        self.pool_quiet = false;
        let item = match ready!(pooled.poll_armed(cx)) {
            Some(item) => item,
            None if pooled.operation().has_buffers() => ready!(pooled.poll_next(cx)),
            None => {
                self.dry = true;
                return Poll::Ready(());
            }
        };
        self.note(item);
        Poll::Ready(())
    }

    /// Ends the pooled receive. True when it has ended, false when it brought something before.
    #[inline]
    fn poll_pool_quiet(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.pool_quiet { Poll::Ready(true) } else { self.poll_quieting(cx) }
    }

    fn poll_quieting(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(pooled) = &mut self.pooled else { return Poll::Ready(true) };
        pooled.stop();
        match ready!(pooled.poll_armed(cx)) {
            Some(item) => {
                self.note(item);
                Poll::Ready(false)
            }
            None => {
                self.pool_quiet = true;
                Poll::Ready(true)
            }
        }
    }

    #[inline]
    fn note(&mut self, item: io::Result<Option<PoolBuffer>>) {
        match item {
            Ok(Some(buffer)) => self.front = Some(buffer),
            end_or_error => self.note_end(end_or_error),
        }
    }

    #[cold]
    fn note_end(&mut self, item: io::Result<Option<PoolBuffer>>) {
        match item {
            Ok(_) => self.ended = true,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOBUFS) => self.dry = true,
                Some(libc::EINTR | libc::EAGAIN) => {}
                _ => self.failed = Some(error),
            },
        }
    }

    fn poll_direct(
        &mut self,
        cx: &mut Context<'_>,
        memory: &mut [MaybeUninit<u8>],
        take: Take,
    ) -> Poll<io::Result<usize>> {
        let count = if take == Take::Peek {
            ready!(self.direct.poll_peek(cx, memory))?
        } else {
            let count = ready!(self.direct.poll_receive(cx, memory))?;
            self.received_directly(count, count == memory.len());
            count
        };
        self.ended |= count == 0;
        Poll::Ready(Ok(count))
    }

    fn poll_direct_lease(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Lease>> {
        let wanted = if self.bulk { BULK_LEASE_BYTES } else { 0 };
        let (lease, filled) = ready!(self.direct.poll_lease(cx, wanted))?;
        self.received_directly(lease.len(), filled);
        self.ended |= lease.is_empty();
        Poll::Ready(Ok(lease))
    }

    fn received_directly(&mut self, count: usize, filled: bool) {
        // Back to the pool, if it has recovered; `poll_pooled` looks.
        self.dry = false;
        self.took(count, filled);
    }

    /// Gives back bytes that a read took and did not hand on.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.returned.splice(..0, bytes.iter().copied());
    }

    /// How often this holds the descriptor when nothing is under way.
    pub(super) fn descriptors(&self) -> usize {
        1 + usize::from(self.pooled.is_some())
    }

    /// Ends the kernel's receive. An error if the kernel has too much else to do to say so soon;
    /// reads go on then.
    pub(super) fn halt(&mut self) -> io::Result<()> {
        self.direct.halt();
        if let Some(pooled) = &mut self.pooled {
            pooled.stop_now();
            if pooled.is_armed() {
                return Err(io::Error::other(HELD));
            }
        }
        Ok(())
    }

    /// Ends the kernel's receive. True if bytes that it received wait here.
    pub(super) fn stop(&mut self) -> io::Result<bool> {
        self.halt()?;
        if self.front.is_none() {
            self.take_next();
        }
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok(self.front.is_some() || !self.returned.is_empty()),
        }
    }

    /// Takes everything that has been received, once [halted](Inbound::halt).
    pub(super) fn take_unread(&mut self) -> Unread {
        let mut bytes = std::mem::take(&mut self.returned);
        while self.front.is_some() || self.take_next() {
            bytes.extend_from_slice(&self.front.take().expect("looked for above"));
        }
        Unread { bytes, ended: self.ended, failed: self.failed.take() }
    }

    /// Goes on where another shard's connection has stopped.
    pub(super) fn resume(&mut self, unread: Unread) {
        let Unread { bytes, ended, failed } = unread;
        self.returned = bytes;
        self.ended = ended;
        self.failed = failed;
    }

    /// The stream is gone: lets go of everything.
    pub(super) fn release(&mut self) {
        self.pooled = None;
        self.direct.release();
        self.front = None;
        self.returned = Vec::new();
    }
}

/// What a connection has received and nobody has read.
#[derive(Debug, Default)]
pub(super) struct Unread {
    pub(super) bytes: Vec<u8>,
    ended: bool,
    failed: Option<io::Error>,
}
