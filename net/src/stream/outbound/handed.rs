//! The buffers that callers hand over to be sent, and get back.
//!
//! One is under way at a time. The kernel has it until it is sent; without a copy, until it has
//! been read for the last time. Several operations may share it then, and the last of them to end
//! gives it free.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use annulus_runtime::io::{Op, mark_dirty};
use annulus_runtime::spawn;

use super::{Notice, Outbound, Until};
use crate::shortage::passes;
use crate::stream::send::{Held, Send};
use crate::stream::zero_copy::{Lent, Part, Waiting, ZeroCopy};

/// A buffer that a caller has handed over to be sent.
pub(super) enum Handed {
    Nothing,
    /// And parts of it that are sent, which the kernel may still read.
    UnderWay(Lent),
    /// Its owner has gone: what is not sent yet is not wanted.
    Abandoned,
    /// To be fetched, with how much of it was sent, when nothing of it is lent any more.
    Sent(Rc<dyn Held>, io::Result<usize>, Lent),
}

/// How a buffer is sent that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::stream) enum By {
    Copy,
    ZeroCopy,
}

impl Outbound {
    /// Waits until a buffer of so many bytes can be handed over to be sent without a copy. Answers
    /// how it is to be sent instead, if that makes no sense.
    pub(in crate::stream) fn poll_zero_copy(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
    ) -> Poll<io::Result<By>> {
        self.check()?;
        if !self.zero_copy.suits(bytes) {
            return Poll::Ready(Ok(By::Copy));
        }
        self.check_open()?;
        self.send_unsent_now();
        self.check()?;
        if self.is_idle() {
            return Poll::Ready(Ok(By::ZeroCopy));
        }
        self.wait(cx, Until::Sent);
        Poll::Pending
    }

    pub(in crate::stream) fn zero_copy(&mut self) -> ZeroCopy {
        self.collect();
        self.zero_copy
    }

    /// Takes a buffer over, to send it from `start` on: after [`Attempt::Full`], or
    /// [`By::ZeroCopy`].
    pub(in crate::stream) fn hand_over(&mut self, buffer: Rc<dyn Held>, start: usize, by: By) {
        debug_assert!(self.is_idle(), "one send is under way at a time");
        let before = std::mem::replace(&mut self.handed, Handed::UnderWay(Lent::default()));
        // One that nobody fetched: its future was forgotten.
        before.discard();
        self.send_handed(buffer, start, by);
    }

    fn send_handed(&mut self, buffer: Rc<dyn Held>, start: usize, by: By) {
        let fd = Rc::clone(&self.fd);
        self.waiting = Some(match by {
            By::Copy => Waiting::Plain(Op::new(Send::of_caller(fd, buffer, start))),
            By::ZeroCopy => {
                let notice = Waker::from(Arc::new(Notice(self.key)));
                let cx = &mut Context::from_waker(&notice);
                Waiting::ZeroCopy(Part::start(cx, fd, buffer, start))
            }
        });
        self.collect();
    }

    /// Waits for the buffer that was handed over, and how much of it was sent.
    pub(in crate::stream) fn poll_handed(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<(Rc<dyn Held>, io::Result<usize>)> {
        self.collect();
        match std::mem::replace(&mut self.handed, Handed::Nothing) {
            Handed::Sent(buffer, result, lent) if lent.is_empty() => Poll::Ready((buffer, result)),
            other => {
                self.handed = other;
                self.wait(cx, Until::Back);
                Poll::Pending
            }
        }
    }

    /// Whoever handed a buffer over has gone. What the kernel has not yet sent of it is not sent.
    pub(in crate::stream) fn abandon(&mut self) {
        match std::mem::replace(&mut self.handed, Handed::Nothing) {
            Handed::UnderWay(_) => {
                if self.waiting.as_mut().is_some_and(Waiting::cancel) {
                    self.handed = Handed::Abandoned;
                } else {
                    // On epoll nothing is with the kernel.
                    let held = self.waiting.take().and_then(Waiting::into_held);
                    held.into_iter().for_each(discard);
                }
                mark_dirty(self.key);
            }
            Handed::Abandoned => self.handed = Handed::Abandoned,
            other => other.discard(),
        }
    }

    /// The first answer to a send without a copy. The notice is still to come, as a rule.
    pub(super) fn weigh_part(&mut self, part: Part, result: io::Result<usize>) {
        let (buffer, start) = part.buffer();
        if let Handed::UnderWay(lent) = &mut self.handed {
            lent.push(part);
        }
        match result {
            Err(e) if self.zero_copy.refused_by(&e) => {
                self.weigh_handed(buffer, start, Ok(0), By::Copy);
            }
            result => self.weigh_handed(buffer, start, result, By::ZeroCopy),
        }
        self.collect();
    }

    /// A part of a buffer that was handed over was sent: what about the rest?
    pub(super) fn weigh_handed(
        &mut self,
        buffer: Rc<dyn Held>,
        start: usize,
        result: io::Result<usize>,
        by: By,
    ) {
        use io::ErrorKind::{Interrupted, WouldBlock};
        let abandoned = matches!(self.handed, Handed::Abandoned);
        let length = buffer.bytes().len();
        let total = match result {
            Ok(count) => Ok(start + count),
            Err(e) if matches!(e.kind(), WouldBlock | Interrupted) => Ok(start),
            Err(e) => {
                self.lost.note(&e);
                Err(e)
            }
        };
        if abandoned {
            self.handed = Handed::Nothing;
            discard(buffer);
            match total {
                // No send follows that would meet an error which the kernel hides behind a part.
                Ok(total) if start < total && total < length => self.lost.suspect(),
                Err(e) if !passes(&e) => {
                    self.error = Some(e);
                    self.unsent = Vec::new();
                }
                _ => {}
            }
            return;
        }
        match total {
            Ok(total) if total < length => {
                let by = if self.zero_copy.suits(length - total) { by } else { By::Copy };
                self.send_handed(buffer, total, by);
            }
            _ => {
                let lent = match std::mem::replace(&mut self.handed, Handed::Nothing) {
                    Handed::UnderWay(lent) => lent,
                    _ => Lent::default(),
                };
                self.handed = Handed::Sent(buffer, total, lent);
            }
        }
    }
}

impl Handed {
    /// Lets go of a buffer that nobody fetches.
    fn discard(self) {
        if let Handed::Sent(buffer, _, lent) = self {
            drop(lent);
            discard(buffer);
        }
    }
}

/// Drops a caller's buffer in a task of its own: what its drop does, a panic for one, happens when
/// no borrow of a connection is held.
fn discard(buffer: Rc<dyn Held>) {
    drop(spawn(async move { drop(buffer) }));
}
