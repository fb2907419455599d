//! The send that the kernel makes from the caller's memory, without a copy of its own.
//!
//! It has two answers. The first says how much was taken, as that of any send, and ends it: what
//! is written next may follow. The second, the notice, says that the kernel reads the memory no
//! more: with TCP, when the peer has acknowledged the bytes. Until then the buffer is kept, here or
//! by the driver. A buffer that needs several sends has several notices.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use annulus_runtime::LIMITS;
use annulus_runtime::io::{
    Completion, Entry, Fd, Interest, Multishot, MultishotOperation, Op, TRANSFER_BYTES_MAX, send,
    sends_zero_copy,
};
use io_uring::{opcode, types};

use super::send::{Held, Send};

/// What a stream knows of zero-copy sends over its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Nothing yet: no notice of the kernel has come.
    Untried,
    /// The kernel has sent from the caller's memory.
    Works,
    /// The kernel has copied what it was to send from the caller's memory, as it does on loopback.
    /// The stream asks no more for it.
    Copied,
    /// The driver, the kernel or the socket's family has no such sends.
    Unavailable,
}

impl ZeroCopy {
    /// What is known before the first try.
    pub(super) fn at_first() -> ZeroCopy {
        if sends_zero_copy() { ZeroCopy::Untried } else { ZeroCopy::Unavailable }
    }

    /// True if so many bytes are to be sent without a copy.
    pub(super) fn suits(self, bytes: usize) -> bool {
        let open = matches!(self, ZeroCopy::Untried | ZeroCopy::Works);
        open && bytes >= LIMITS.zero_copy_bytes_min
    }

    fn note(&mut self, notice: Notice) {
        *self = match (*self, notice) {
            (ZeroCopy::Untried | ZeroCopy::Works, Notice::Sent) => ZeroCopy::Works,
            (ZeroCopy::Untried | ZeroCopy::Works, Notice::Copied) => ZeroCopy::Copied,
            (known, _) => known,
        };
    }

    /// True if this error is about the copy, not about the connection: a plain send may do.
    pub(super) fn refused_by(&mut self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            // The memory that may be locked is in use: another time.
            Some(libc::ENOMEM | libc::ENOBUFS) => true,
            // Before 6.2 the kernel does not report copies; some families have no such sends.
            Some(libc::EINVAL | libc::EOPNOTSUPP) => {
                *self = ZeroCopy::Unavailable;
                true
            }
            _ => false,
        }
    }
}

/// The send that is under way.
pub(super) enum Waiting {
    Plain(Op<Send>),
    ZeroCopy(Part),
}

impl Waiting {
    /// Asks the kernel to stop. False if the request is not with the kernel.
    pub(super) fn cancel(&mut self) -> bool {
        match self {
            Waiting::Plain(op) => op.cancel(),
            Waiting::ZeroCopy(part) => {
                part.request.stop();
                true
            }
        }
    }

    /// The caller's buffer, where nothing is with the kernel.
    pub(super) fn into_held(self) -> Option<Rc<dyn Held>> {
        match self {
            Waiting::Plain(op) => op.into_operation().and_then(Send::into_held),
            Waiting::ZeroCopy(_) => None,
        }
    }

    /// What is left of the stream's own bytes, where nothing is with the kernel.
    pub(super) fn into_rest(self) -> Vec<u8> {
        match self {
            Waiting::Plain(op) => op.into_operation().map_or_else(Vec::new, Send::into_rest),
            Waiting::ZeroCopy(_) => Vec::new(),
        }
    }
}

/// One zero-copy send: all of a buffer, or what an earlier one has left.
pub(super) struct Part {
    request: Multishot<SendZeroCopy>,
    /// It has sent something: a notice of one that has not says nothing.
    sent: bool,
}

impl Part {
    /// Sends the buffer from `start` on.
    pub(super) fn start(
        cx: &mut Context<'_>,
        fd: Rc<Fd>,
        buffer: Rc<dyn Held>,
        start: usize,
    ) -> Part {
        let mut request = Multishot::new(SendZeroCopy { fd: Some(fd), buffer, start });
        // Arms it, this once: its answers are asked for by `poll_armed`.
        let armed = request.poll_next(cx);
        debug_assert!(armed.is_pending(), "the ring answers no sooner than it is entered");
        Part { request, sent: false }
    }

    /// How much was sent. Afterwards the kernel may still read the buffer.
    pub(super) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            match ready!(self.request.poll_armed(cx)) {
                Some(Answer::Sent(result)) => {
                    self.sent = matches!(result, Ok(1..));
                    return Poll::Ready(result);
                }
                Some(Answer::Notice(_)) => {}
                // The end that was asked for, before anything was sent.
                None => return Poll::Ready(Err(io::Error::from_raw_os_error(libc::ECANCELED))),
            }
        }
    }

    /// The buffer, and where in it this send has begun.
    pub(super) fn buffer(&self) -> (Rc<dyn Held>, usize) {
        let operation = self.request.operation();
        (Rc::clone(&operation.buffer), operation.start)
    }

    /// Waits until the kernel reads the buffer no more; its notice, if it tells anything.
    fn poll_let_go(&mut self, cx: &mut Context<'_>) -> Poll<Option<Notice>> {
        loop {
            match ready!(self.request.poll_armed(cx)) {
                Some(Answer::Notice(notice)) => return Poll::Ready(self.sent.then_some(notice)),
                Some(Answer::Sent(_)) => {}
                None => return Poll::Ready(None),
            }
        }
    }
}

/// The parts of one buffer that are sent and that the kernel may still read. Dropped, it leaves
/// them, and the buffer with them, to the driver.
#[derive(Default)]
pub(super) struct Lent(Vec<Part>);

impl Lent {
    pub(super) fn push(&mut self, part: Part) {
        self.0.push(part);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets go of what the kernel has let go of.
    pub(super) fn collect(&mut self, cx: &mut Context<'_>, known: &mut ZeroCopy) {
        self.0.retain_mut(|part| match part.poll_let_go(cx) {
            Poll::Ready(notice) => {
                notice.into_iter().for_each(|notice| known.note(notice));
                false
            }
            Poll::Pending => true,
        });
    }
}

pub(super) struct SendZeroCopy {
    /// Until it is sent: a connection may be closed, or move, while the kernel reads the buffer.
    pub(super) fd: Option<Rc<Fd>>,
    /// Shared with the other parts.
    pub(super) buffer: Rc<dyn Held>,
    pub(super) start: usize,
}

pub(super) enum Answer {
    Sent(io::Result<usize>),
    Notice(Notice),
}

#[derive(Clone, Copy)]
pub(super) enum Notice {
    Sent,
    Copied,
}

/// `IORING_SEND_ZC_REPORT_USAGE`, which the crate keeps private. Since 6.2.
const REPORT_USAGE: u16 = 8;

/// One says how much was sent, one is the notice.
const ANSWERS_MAX: usize = 2;

impl SendZeroCopy {
    fn fd(&self) -> &Rc<Fd> {
        self.fd.as_ref().expect("a send has its descriptor until it has been answered")
    }

    fn bytes(&self) -> &[u8] {
        let bytes = &self.buffer.bytes()[self.start..];
        &bytes[..bytes.len().min(TRANSFER_BYTES_MAX)]
    }
}

// SAFETY: the entry refers to the memory of an `IoBuf`, which stays where it is though the
// operation is moved, and which nobody changes or frees while the operation shares it: until its
// last answer, which is the notice where there is one.
unsafe impl MultishotOperation for SendZeroCopy {
    type Item = Answer;

    fn queued_max(&self) -> usize {
        ANSWERS_MAX
    }

    fn entry(&mut self) -> Entry {
        let bytes = self.bytes();
        // WAITALL: the kernel goes on after a part, so that one notice is for the whole.
        opcode::SendZc::new(types::Fd(self.fd().raw()), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .zc_flags(REPORT_USAGE)
            .build()
    }

    fn call(&mut self) -> io::Result<Completion> {
        send(self.fd().as_fd(), self.bytes()).map(|count| Completion::from_call(count as u32))
    }

    fn descriptor(&self) -> &Rc<Fd> {
        self.fd()
    }

    fn interest(&self) -> Interest {
        Interest::Write
    }

    unsafe fn item(&mut self, completion: Completion) -> Answer {
        if completion.is_notice() {
            let copied = completion.was_copied();
            return Answer::Notice(if copied { Notice::Copied } else { Notice::Sent });
        }
        self.fd = None;
        Answer::Sent(completion.result().map(|count| count as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reported_copy_ends_the_tries() {
        let mut known = ZeroCopy::Untried;
        known.note(Notice::Sent);
        assert_eq!(known, ZeroCopy::Works);
        known.note(Notice::Copied);
        assert_eq!(known, ZeroCopy::Copied);
        known.note(Notice::Sent);
        assert_eq!(known, ZeroCopy::Copied, "its notice was on the way already");
    }

    #[test]
    fn only_what_is_about_the_copy_is_tried_again_with_one() {
        let refused = |errno| {
            let mut known = ZeroCopy::Works;
            (known.refused_by(&io::Error::from_raw_os_error(errno)), known)
        };
        assert_eq!(refused(libc::ENOBUFS), (true, ZeroCopy::Works));
        assert_eq!(refused(libc::EINVAL), (true, ZeroCopy::Unavailable));
        assert_eq!(refused(libc::ECONNRESET), (false, ZeroCopy::Works));
        assert_eq!(refused(libc::ECANCELED), (false, ZeroCopy::Works));
    }
}
