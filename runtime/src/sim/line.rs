//! One end of a simulated connection.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::time::Duration;

use super::moment::Moment;
use super::network::{SocketId, errno};

/// What may be sent and not yet read, where nothing is made difficult.
const WINDOW_BYTES: usize = 256 * 1024;

/// Where it is: a power of two from here, so that small windows are as frequent as large ones.
const WINDOW_BITS_MIN: u64 = 9;
const WINDOW_BITS_MAX: u64 = 18;

pub(super) struct Line {
    pub(super) peer: SocketId,
    pub(super) remote: SocketAddr,
    /// Arrived and not read.
    unread: VecDeque<u8>,
    /// The peer has finished.
    ended: bool,
    /// Has said that it receives no more: what comes all the same can be received.
    deaf: bool,
    /// Reset: nothing arrives any more, and nothing can be sent.
    dead: bool,
    pub(super) error: Option<i32>,
    /// Has finished itself.
    pub(super) shut: bool,
    window: usize,
    /// Sent, and not yet known to be read.
    under_way: usize,
    /// A send has found no room: the next room is an event.
    pub(super) lacks_room: bool,
    /// When the latest of what was sent arrives: the next comes behind it.
    latest_due: Duration,
}

/// What an epoll instance wants to know of a socket.
pub(super) struct Watch {
    /// Whose it is: a seat of the world.
    pub(super) instance: u64,
    pub(super) token: u64,
    pub(super) events: u32,
    /// Something has happened since it was told last.
    pub(super) pending: bool,
}

impl Line {
    pub(super) fn new(peer: SocketId, remote: SocketAddr, window: usize, from: Duration) -> Line {
        Line {
            peer,
            remote,
            unread: VecDeque::new(),
            ended: false,
            deaf: false,
            dead: false,
            error: None,
            shut: false,
            window,
            under_way: 0,
            lacks_room: false,
            latest_due: from,
        }
    }

    /// How much one end of a new connection may have under way.
    pub(super) fn window(moment: &mut Moment<'_>) -> usize {
        if moment.faults.short_io == 0 {
            return WINDOW_BYTES;
        }
        let bits = WINDOW_BITS_MIN + moment.dice.below(WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1);
        1 << bits
    }

    /// How much of a send there is room for.
    pub(super) fn take_room(&mut self, wanted: usize) -> io::Result<usize> {
        if let Some(error) = self.error.take() {
            return Err(errno(error));
        }
        if self.shut || self.dead {
            return Err(errno(libc::EPIPE));
        }
        let room = self.window.saturating_sub(self.under_way);
        if wanted > 0 && (room == 0 || self.lacks_room) {
            self.lacks_room = true;
            return Err(errno(libc::EAGAIN));
        }
        self.lacks_room = wanted > room;
        Ok(wanted.min(room))
    }

    pub(super) fn note_sent(&mut self, bytes: usize) {
        self.under_way += bytes;
    }

    /// The peer has read so much. True if that is what somebody waits for.
    pub(super) fn make_room(&mut self, bytes: usize) -> bool {
        self.under_way = self.under_way.saturating_sub(bytes);
        let is_event = self.lacks_room && self.under_way < self.window;
        if is_event {
            self.lacks_room = false;
        }
        is_event
    }

    /// When something arrives that is sent now and would like to arrive then.
    pub(super) fn due_after(&mut self, due: Duration) -> Duration {
        self.latest_due = self.latest_due.max(due);
        self.latest_due
    }

    pub(super) fn arrive(&mut self, bytes: Vec<u8>) {
        self.unread.extend(bytes);
    }

    pub(super) fn receive(
        &mut self,
        buffer: &mut [MaybeUninit<u8>],
        keep: bool,
    ) -> io::Result<usize> {
        if self.unread.is_empty() && !buffer.is_empty() {
            // Behind the peer's end an error is only told to who sends (SOCK_DONE of Linux).
            let error = if self.ended { None } else { self.error.take() };
            return match error {
                Some(error) => Err(errno(error)),
                None if self.ended || self.deaf || self.dead => Ok(0),
                None => Err(errno(libc::EAGAIN)),
            };
        }
        let count = buffer.len().min(self.unread.len());
        for (to, from) in buffer.iter_mut().zip(self.unread.iter()) {
            to.write(*from);
        }
        if !keep {
            self.unread.drain(..count);
        }
        Ok(count)
    }

    /// What is behind that which was received: the end counts as one byte, unless there are others.
    pub(super) fn rest(&self) -> usize {
        if self.unread.is_empty() && self.ended { 1 } else { self.unread.len() }
    }

    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn turn_deaf(&mut self) {
        self.deaf = true;
    }

    /// Bytes that come are answered by a reset, as nobody can want them (FIN_WAIT of Linux).
    pub(super) fn repels(&self) -> bool {
        self.dead || (self.deaf && self.shut)
    }

    /// True unless it is over already.
    pub(super) fn reset(&mut self) -> bool {
        if self.is_over() {
            return false;
        }
        // Behind the peer's end there is nothing to be reset but our sends (tcp_reset of Linux).
        self.error = Some(if self.ended { libc::EPIPE } else { libc::ECONNRESET });
        self.dead = true;
        true
    }

    /// There is no connection any more: reset, or finished by both.
    pub(super) fn is_over(&self) -> bool {
        self.dead || (self.ended && self.shut)
    }

    /// As tcp_poll of Linux.
    pub(super) fn events(&self) -> i32 {
        let mut events = 0;
        if self.is_over() || (self.deaf && self.shut) {
            events |= libc::EPOLLHUP;
        }
        if self.dead || self.ended || self.deaf {
            events |= libc::EPOLLIN | libc::EPOLLRDHUP;
        }
        if !self.unread.is_empty() {
            events |= libc::EPOLLIN;
        }
        if self.dead || self.shut || (self.under_way < self.window && !self.lacks_room) {
            events |= libc::EPOLLOUT;
        }
        if self.error.is_some() {
            events |= libc::EPOLLERR;
        }
        events
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} bytes unread, {} under way",
            self.remote,
            self.unread.len(),
            self.under_way
        )?;
        let told = [
            (self.ended, "; its peer has finished"),
            (self.shut, "; it has finished"),
            (self.deaf, "; it receives no more"),
            (self.lacks_room, "; it waits for room"),
            (self.dead, "; it was reset"),
        ];
        told.iter().filter(|(holds, _)| *holds).try_for_each(|(_, text)| f.write_str(text))
    }
}
