//! The ways to wait for many descriptors at once. Each finds which of them are ready; none reads.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::{mem, ptr};

use io_uring::types::Fd;
use io_uring::{cqueue, opcode};

use crate::ring::Ring;
use crate::sys::{self, Epoll, interrupted};

/// Events that one call of epoll may bring.
const EVENTS: usize = 1024;

/// Entries that wait for one enter; past that they are submitted in pieces.
const SUBMISSIONS: usize = 4096;

/// Marks the completion of a removal; the lower half of the user data is the descriptor's number.
const REMOVAL: u64 = 1 << 32;

pub(crate) trait Watch {
    /// Waits until at least one descriptor is ready, and adds the numbers of those found.
    fn wait(&mut self, found: &mut Vec<u32>) -> io::Result<()>;

    /// Takes back everything from the kernel.
    fn end(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}

/// One way to wait.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Way {
    Select,
    Poll,
    EpollLevel,
    EpollEdge,
    RingOnce,
    RingMultishot,
}

impl Way {
    pub(crate) const ALL: [(&'static str, Self); 6] = [
        ("select", Self::Select),
        ("poll", Self::Poll),
        ("epoll, level", Self::EpollLevel),
        ("epoll, edge", Self::EpollEdge),
        ("ring poll, re-armed", Self::RingOnce),
        ("ring poll, multishot", Self::RingMultishot),
    ];

    /// Begins to watch; `None` where these descriptors are past what select can name.
    pub(crate) fn watch(self, descriptors: &[OwnedFd]) -> io::Result<Option<Box<dyn Watch>>> {
        Ok(Some(match self {
            Self::Select => match Select::new(descriptors) {
                Some(select) => Box::new(select),
                None => return Ok(None),
            },
            Self::Poll => Box::new(Poll::new(descriptors)),
            Self::EpollLevel => Box::new(Events::new(descriptors, 0)?),
            Self::EpollEdge => Box::new(Events::new(descriptors, libc::EPOLLET as u32)?),
            Self::RingOnce => Box::new(Polls::new(descriptors, Arming::Once)?),
            Self::RingMultishot => Box::new(Polls::new(descriptors, Arming::Multishot)?),
        }))
    }
}

struct Select {
    set: libc::fd_set,
    /// The number of each descriptor among those watched, by descriptor.
    numbers: Vec<u32>,
}

impl Select {
    fn new(descriptors: &[OwnedFd]) -> Option<Self> {
        // SAFETY: a set is a bit mask, for which all zeros is a value.
        let mut set: libc::fd_set = unsafe { mem::zeroed() };
        let mut numbers = vec![];
        for (number, descriptor) in (0..).zip(descriptors) {
            let descriptor = descriptor.as_raw_fd() as usize;
            if descriptor >= libc::FD_SETSIZE {
                return None;
            }
            // SAFETY: the descriptor was just found to lie within the set.
            unsafe { libc::FD_SET(descriptor as i32, &raw mut set) };
            numbers.resize(numbers.len().max(descriptor + 1), u32::MAX);
            numbers[descriptor] = number;
        }
        Some(Self { set, numbers })
    }
}

impl Watch for Select {
    fn wait(&mut self, found: &mut Vec<u32>) -> io::Result<()> {
        // The kernel writes its answer over the question.
        let mut set = self.set;
        let (none, count) = (ptr::null_mut(), self.numbers.len() as i32);
        // SAFETY: `set` is ours to write, and the other pointers may be null.
        let ready = unsafe { libc::select(count, &raw mut set, none, none, ptr::null_mut()) };
        let Ok(mut left) = usize::try_from(ready) else {
            return interrupted(io::Error::last_os_error());
        };
        for (descriptor, &number) in self.numbers.iter().enumerate() {
            if left == 0 {
                break;
            }
            // SAFETY: all descriptors lie within the set, as was looked at when it was made.
            if unsafe { libc::FD_ISSET(descriptor as i32, &raw const set) } {
                found.push(number);
                left -= 1;
            }
        }
        Ok(())
    }
}

struct Poll(Vec<libc::pollfd>);

impl Poll {
    fn new(descriptors: &[OwnedFd]) -> Self {
        let entry = |descriptor: &OwnedFd| libc::pollfd {
            fd: descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        Self(descriptors.iter().map(entry).collect())
    }
}

impl Watch for Poll {
    fn wait(&mut self, found: &mut Vec<u32>) -> io::Result<()> {
        // SAFETY: the pointer and the length describe entries that are ours to write.
        let ready = unsafe { libc::poll(self.0.as_mut_ptr(), self.0.len() as libc::nfds_t, -1) };
        let Ok(mut left) = usize::try_from(ready) else {
            return interrupted(io::Error::last_os_error());
        };
        for (number, entry) in (0..).zip(&self.0) {
            if left == 0 {
                break;
            }
            if entry.revents != 0 {
                found.push(number);
                left -= 1;
            }
        }
        Ok(())
    }
}

struct Events {
    epoll: Epoll,
    events: Vec<libc::epoll_event>,
}

impl Events {
    fn new(descriptors: &[OwnedFd], flags: u32) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for (number, descriptor) in (0..).zip(descriptors) {
            epoll.add(descriptor.as_raw_fd(), libc::EPOLLIN as u32 | flags, number)?;
        }
        Ok(Self { epoll, events: sys::no_events(EVENTS) })
    }
}

impl Watch for Events {
    fn wait(&mut self, found: &mut Vec<u32>) -> io::Result<()> {
        let count = self.epoll.wait(&mut self.events, -1)?;
        found.extend(self.events[..count].iter().map(|event| event.u64 as u32));
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Arming {
    Once,
    Multishot,
}

struct Polls {
    ring: Ring,
    descriptors: Vec<i32>,
    arming: Arming,
    /// Those whose poll has ended and is to be armed again by the next enter.
    ended: Vec<u32>,
}

impl Polls {
    fn new(descriptors: &[OwnedFd], arming: Arming) -> io::Result<Self> {
        // Where all end at once, by being removed, the answers to both find room.
        let ring = Ring::new(SUBMISSIONS, (descriptors.len() * 2).max(EVENTS))?;
        let descriptors = descriptors.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>();
        let ended = (0..descriptors.len() as u32).collect();
        let mut polls = Self { ring, descriptors, arming, ended };
        polls.arm()?;
        polls.ring.enter(0)?;
        Ok(polls)
    }

    fn arm(&mut self) -> io::Result<()> {
        for &number in &self.ended {
            let descriptor = Fd(self.descriptors[number as usize]);
            let entry = opcode::PollAdd::new(descriptor, libc::POLLIN as u32)
                .multi(self.arming == Arming::Multishot)
                .build()
                .user_data(u64::from(number));
            // SAFETY: the entry names no memory.
            unsafe { self.ring.push(&entry) }?;
        }
        self.ended.clear();
        Ok(())
    }
}

impl Watch for Polls {
    /// Arms again, by the enter that also waits, what has ended since the last one and was read.
    fn wait(&mut self, found: &mut Vec<u32>) -> io::Result<()> {
        self.arm()?;
        self.ring.enter(1)?;
        for completion in self.ring.completions() {
            let number = completion.user_data() as u32;
            if completion.result() < 0 {
                return Err(io::Error::from_raw_os_error(-completion.result()));
            }
            found.push(number);
            if !cqueue::more(completion.flags()) {
                self.ended.push(number);
            }
        }
        Ok(())
    }

    /// One by one, by their names. A cancellation of everything, as the ring's own end has it,
    /// walks past all that it has cancelled to find the next one: seconds, for twenty thousand.
    fn end(mut self: Box<Self>) -> io::Result<()> {
        let count = self.descriptors.len();
        for number in 0..count as u64 {
            let entry = opcode::PollRemove::new(number).build().user_data(REMOVAL | number);
            // SAFETY: the entry names no memory.
            unsafe { self.ring.push(&entry) }?;
        }
        let (mut answers, mut removed, mut ended) = (0, 0, 0);
        while answers < count || ended < removed {
            self.ring.enter(1)?;
            for completion in self.ring.completions() {
                match (completion.user_data() & REMOVAL, completion.result()) {
                    (0, result) => ended += usize::from(result == -libc::ECANCELED),
                    // ENOENT: it had ended by itself and was not armed again.
                    (_, result) => {
                        answers += 1;
                        removed += usize::from(result == 0);
                    }
                }
            }
        }
        self.ring.end()
    }
}
