//! The ways to wake a thread. A bell is made by who is to be woken, and rung by another thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use io_uring::types::Fd;
use io_uring::{cqueue, opcode};

use crate::ring::Ring;
use crate::sys::{self, Epoll, Mode};

/// Rings of the bell that may come together.
pub(super) const TOGETHER: usize = 256;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Way {
    Futex,
    Pipe,
    EventFd,
    EventFdEpoll,
    EventFdRing,
    MsgRing,
}

impl Way {
    pub(super) const ALL: [(&'static str, Self); 6] = [
        ("futex", Self::Futex),
        ("pipe", Self::Pipe),
        ("eventfd", Self::EventFd),
        ("eventfd, epoll", Self::EventFdEpoll),
        ("eventfd, ring", Self::EventFdRing),
        ("MSG_RING", Self::MsgRing),
    ];
}

/// The side of who is woken. It stays on the thread that has made it.
pub(super) enum Bell {
    Futex(Arc<AtomicU32>),
    Pipe { read: OwnedFd, write: OwnedFd },
    EventFd(OwnedFd),
    EventFdEpoll { eventfd: OwnedFd, epoll: Epoll },
    EventFdRing { eventfd: OwnedFd, ring: Ring },
    Ring(Ring),
}

/// What the other thread has to know. The descriptors stay the bell's, which outlives all rings.
#[derive(Clone)]
pub(super) enum Rope {
    Futex(Arc<AtomicU32>),
    Pipe(RawFd),
    EventFd(RawFd),
    Ring(RawFd),
}

impl Bell {
    pub(super) fn new(way: Way) -> io::Result<Self> {
        Ok(match way {
            Way::Futex => Self::Futex(Arc::default()),
            Way::Pipe => {
                let (read, write) = sys::pipe()?;
                Self::Pipe { read, write }
            }
            Way::EventFd => Self::EventFd(sys::eventfd(Mode::Blocking)?),
            Way::EventFdEpoll => {
                let (eventfd, epoll) = (sys::eventfd(Mode::Nonblocking)?, Epoll::new()?);
                epoll.add(eventfd.as_raw_fd(), libc::EPOLLIN as u32, 0)?;
                Self::EventFdEpoll { eventfd, epoll }
            }
            Way::EventFdRing => {
                let (eventfd, ring) = (sys::eventfd(Mode::Nonblocking)?, ring()?);
                let mut bell = Self::EventFdRing { eventfd, ring };
                bell.arm()?;
                bell
            }
            Way::MsgRing => Self::Ring(ring()?),
        })
    }

    pub(super) fn rope(&self) -> Rope {
        match self {
            Self::Futex(word) => Rope::Futex(word.clone()),
            Self::Pipe { write, .. } => Rope::Pipe(write.as_raw_fd()),
            Self::EventFd(eventfd)
            | Self::EventFdEpoll { eventfd, .. }
            | Self::EventFdRing { eventfd, .. } => Rope::EventFd(eventfd.as_raw_fd()),
            Self::Ring(ring) => Rope::Ring(ring.as_raw_fd()),
        }
    }

    fn arm(&mut self) -> io::Result<()> {
        let Self::EventFdRing { eventfd, ring } = self else { return Ok(()) };
        let entry = opcode::PollAdd::new(Fd(eventfd.as_raw_fd()), libc::POLLIN as u32);
        // SAFETY: the entry names no memory.
        unsafe { ring.push(&entry.multi(true).build()) }?;
        ring.enter(0)
    }

    /// Sleeps until the bell has been rung, and returns how often.
    pub(super) fn wait(&mut self) -> io::Result<u64> {
        match self {
            Self::Futex(word) => loop {
                let count = word.swap(0, Ordering::Acquire); // Pairs with the ringer's release.
                if count > 0 {
                    return Ok(u64::from(count));
                }
                sys::futex_wait(word, 0);
            },
            Self::EventFdEpoll { epoll, eventfd } => {
                epoll.wait(&mut sys::no_events(1), -1)?;
                sys::take(eventfd.as_raw_fd())
            }
            Self::EventFdRing { ring, .. } => {
                ring.enter(1)?;
                self.take()
            }
            Self::Ring(ring) => {
                ring.enter(1)?;
                Ok(ring.completions().count() as u64)
            }
            Self::Pipe { .. } | Self::EventFd(_) => self.take(),
        }
    }

    /// Takes what there is, by a thread that is awake, as its loop's turn would.
    pub(super) fn take(&mut self) -> io::Result<u64> {
        match self {
            Self::Futex(word) => Ok(u64::from(word.swap(0, Ordering::Acquire))),
            Self::Pipe { read, .. } => {
                sys::read(read.as_raw_fd(), &mut [0; 2 * TOGETHER]).map(|count| count as u64)
            }
            Self::EventFd(eventfd) => sys::take(eventfd.as_raw_fd()),
            Self::EventFdEpoll { epoll, eventfd } => {
                epoll.wait(&mut sys::no_events(1), 0)?;
                sys::take(eventfd.as_raw_fd())
            }
            Self::EventFdRing { ring, eventfd } => {
                ring.look()?;
                let mut is_armed = true;
                ring.completions().for_each(|it| is_armed &= cqueue::more(it.flags()));
                // Nobody need read it, but then nobody counts.
                let count = sys::take(eventfd.as_raw_fd())?;
                if !is_armed {
                    self.arm()?;
                }
                Ok(count)
            }
            Self::Ring(ring) => {
                ring.look()?;
                Ok(ring.completions().count() as u64)
            }
        }
    }

    pub(super) fn end(self) -> io::Result<()> {
        match self {
            Self::Ring(ring) | Self::EventFdRing { ring, .. } => ring.end(),
            _ => Ok(()),
        }
    }
}

fn ring() -> io::Result<Ring> {
    Ring::new(8, 2 * TOGETHER)
}

/// The side of who wakes.
pub(super) struct Ringer {
    rope: Rope,
    /// Messages to another ring leave from one of one's own.
    ring: Option<Ring>,
}

impl Ringer {
    pub(super) fn new(rope: Rope) -> io::Result<Self> {
        let ring = if matches!(rope, Rope::Ring(_)) { Some(ring()?) } else { None };
        Ok(Self { rope, ring })
    }

    pub(super) fn ring(&mut self) -> io::Result<()> {
        match (&self.rope, &mut self.ring) {
            (Rope::Futex(word), _) => {
                word.fetch_add(1, Ordering::Release); // Pairs with the acquire of wait and take.
                sys::futex_wake(word);
                Ok(())
            }
            (Rope::Pipe(write), _) => sys::write(*write, &[1]).map(drop),
            (Rope::EventFd(eventfd), _) => sys::signal(*eventfd),
            (Rope::Ring(target), Some(own)) => {
                // An answer would only be asked for if the message failed.
                let entry = opcode::MsgRingData::new(Fd(*target), 0, 1, None).build();
                let entry = entry.flags(io_uring::squeue::Flags::SKIP_SUCCESS);
                // SAFETY: the entry names no memory.
                unsafe { own.push(&entry) }?;
                own.enter(0)
            }
            (Rope::Ring(_), None) => Err(io::Error::other("a message needs a ring of its own")),
        }
    }

    pub(super) fn end(self) -> io::Result<()> {
        self.ring.map_or(Ok(()), Ring::end)
    }
}

#[cfg(test)]
mod tests {
    use super::{Bell, Ringer, TOGETHER, Way};

    #[test]
    fn every_bell_counts_what_was_rung() {
        for (name, way) in Way::ALL {
            let mut bell = Bell::new(way).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut ringer = Ringer::new(bell.rope()).expect("a ringer");
            for count in [1, 3, TOGETHER] {
                (0..count).for_each(|_| ringer.ring().expect("a ring of the bell"));
                let taken = bell.take().unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(taken, count as u64, "{name}");
            }
            ringer.ring().expect("one more");
            assert_eq!(bell.wait().expect("no sleep"), 1, "{name}");
            ringer.end().expect("an end");
            bell.end().expect("an end");
        }
    }
}
