//! A request in flight, and how far it has come.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::buffers::Group;
use super::entry::{CANCEL_ANY, CANCEL_FD, COPIED, NOTICE, POLL_FIRST, REPORT_USAGE, Request};
use super::kind::Kind;
use super::nature::Nature;
use super::sockets::{self, Edges};
use crate::sim::World;
use crate::sim::dice::mix;

pub(super) struct Flight {
    pub(super) request: Request,
    pub(super) kind: Kind,
    serial: u64,
    /// As with the kernel, the file stays open though the program closes its descriptor.
    file: Option<OwnedFd>,
    /// When it goes on. `None` while it cannot.
    pub(super) due: Option<Duration>,
    /// Bytes that were sent or received so far.
    pub(super) done: u32,
    /// Bytes that a bounded receive has brought, each answer with its own.
    pub(super) brought: u32,
    /// A connect is under way.
    pub(super) begun: bool,
    /// What a poll of many answers watches.
    pub(super) edges: Option<Edges>,
    phase: Phase,
}

enum Phase {
    Armed,
    /// Cannot be found any more, and ends by itself.
    Hidden,
    Ending(Ending),
    /// A zero-copy send whose memory is still being read.
    Lent {
        digest: u64,
    },
}

/// How a request ends that was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) errno: i32,
    /// How often it is still carried on as if nothing had happened.
    pub(super) goes_on: u32,
}

/// What carrying a flight on has come to.
pub(super) enum Step {
    /// Nothing: it must wait.
    Wait,
    /// It has come further and has nothing to say yet.
    Part,
    /// An answer; more may follow.
    More(i32, u32),
    /// A zero-copy send has sent, and its notice will follow.
    Sent(i32),
    /// The last answer.
    Last(i32, u32),
}

/// What a step may look at.
pub(super) struct Around<'a> {
    pub(super) world: &'a World,
    pub(super) nature: &'a Nature,
    pub(super) groups: &'a mut BTreeMap<u16, Group>,
}

impl Flight {
    /// # Errors
    ///
    /// EBADF, or what watching the file is refused with.
    pub(super) fn new(request: Request, kind: Kind, serial: u64) -> Result<Flight, i32> {
        let file = if kind.has_file() { Some(sockets::hold(request.fd)?) } else { None };
        let edges = match (&file, kind) {
            (Some(file), Kind::PollMany) => Some(Edges::of(file.as_fd(), request.poll_events())?),
            _ => None,
        };
        let phase = Phase::Armed;
        let (due, done, brought, begun) = (None, 0, 0, false);
        Ok(Flight { request, kind, serial, file, due, done, brought, begun, edges, phase })
    }

    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    pub(super) fn user_data(&self) -> u64 {
        self.request.user_data
    }

    /// The file, of an operation that [has one](Kind::has_file).
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_ref().expect("an operation on a file holds it").as_fd()
    }

    /// A message that is not to wait is over with the enter that takes it.
    pub(super) fn may_not_wait(&self) -> bool {
        let message = matches!(self.kind, Kind::Send | Kind::SendZeroCopy | Kind::Receive);
        message && self.request.message_flags() & libc::MSG_DONTWAIT != 0
    }

    /// It was told to look before it tries.
    pub(super) fn waits_first(&self) -> bool {
        let message = matches!(self.kind, Kind::Send | Kind::SendZeroCopy | Kind::Receive);
        message && self.request.has(POLL_FIRST)
    }

    pub(super) fn is_single(&self) -> bool {
        self.kind.is_single()
    }

    /// A quiet request has succeeded. A message that was to be whole and is not has failed.
    pub(super) fn succeeds_silently(&self, result: i32) -> bool {
        let whole = self.request.message_flags() & libc::MSG_WAITALL != 0;
        let short = self.kind == Kind::Send && whole && (result as u32) < self.request.length;
        self.request.is_quiet() && result >= 0 && !short
    }

    /// True if a cancel means this one.
    pub(super) fn is_named_by(&self, cancel: &Request) -> bool {
        if !matches!(self.phase, Phase::Armed) {
            return false;
        }
        if cancel.op_flags & CANCEL_ANY != 0 {
            return true;
        }
        if cancel.op_flags & CANCEL_FD != 0 {
            return self.kind.has_file() && self.request.fd == cancel.fd;
        }
        self.request.user_data == cancel.address
    }

    /// It has been told to end.
    pub(super) fn end(&mut self, ending: Ending) {
        self.phase = Phase::Ending(ending);
    }

    /// It was about to end when it was looked for.
    pub(super) fn hide(&mut self) {
        self.phase = Phase::Hidden;
    }

    /// True if its next step would be its last.
    pub(super) fn is_about_to_end(&self, nature: &Nature, groups: &BTreeMap<u16, Group>) -> bool {
        let in_parts = matches!(self.kind, Kind::Send | Kind::SendZeroCopy | Kind::Connect);
        self.is_single() && !in_parts && self.can_go_on(nature, groups)
    }

    /// True if a step would find something to do.
    pub(super) fn can_go_on(&self, nature: &Nature, groups: &BTreeMap<u16, Group>) -> bool {
        if !matches!(self.phase, Phase::Armed | Phase::Hidden) {
            return true;
        }
        if let Some(edges) = &self.edges {
            return edges.look() != 0;
        }
        let lacks_buffer = || groups.get(&self.request.group).is_none_or(|g| g.next().is_none());
        if self.request.selects_buffer() && nature.traits.dry_at_once && lacks_buffer() {
            return true;
        }
        match self.kind.awaited(&self.request) {
            Some(_) if self.kind == Kind::Connect && !self.begun => true,
            Some(events) => sockets::ready(self.file(), events) != 0,
            None => true,
        }
    }

    /// Carries it on by one step.
    pub(super) fn step(&mut self, around: &mut Around<'_>) -> Step {
        match self.phase {
            Phase::Armed | Phase::Hidden => {}
            Phase::Ending(Ending { errno, goes_on: 0 }) => return self.ended(errno),
            Phase::Ending(Ending { errno, goes_on }) => {
                self.end(Ending { errno, goes_on: goes_on - 1 });
                return match self.attempt(around) {
                    Step::Wait => self.ended(errno),
                    step => step,
                };
            }
            Phase::Lent { digest } => return self.notice(digest, around),
        }
        let step = self.attempt(around);
        if matches!(step, Step::Wait) && self.may_not_wait() {
            return self.ended(libc::EAGAIN);
        }
        self.lend_if_sent(step)
    }

    /// What was done so far, or why nothing was.
    fn ended(&mut self, errno: i32) -> Step {
        let result = if self.done > 0 { self.done as i32 } else { -errno };
        self.lend_if_sent(Step::Last(result, 0))
    }

    /// A zero-copy send is followed by its notice, also when it has failed.
    fn lend_if_sent(&mut self, step: Step) -> Step {
        let Step::Last(result, _) = step else { return step };
        if self.kind != Kind::SendZeroCopy {
            return step;
        }
        self.phase = Phase::Lent { digest: self.digest() };
        Step::Sent(result)
    }

    /// The kernel has read the memory of a zero-copy send for the last time.
    fn notice(&mut self, digest: u64, around: &Around<'_>) -> Step {
        assert_eq!(
            self.digest(),
            digest,
            "the memory of a zero-copy send was changed before its notice"
        );
        let tells = self.request.has(REPORT_USAGE);
        let copied = tells && around.nature.copies(around.world);
        Step::Last(if copied { COPIED } else { 0 }, NOTICE)
    }

    /// Reads what was sent once more, as a device would.
    fn digest(&self) -> u64 {
        sockets::bytes_of(&self.request, 0, self.done as usize)
            .iter()
            .fold(u64::from(self.done), |digest, byte| mix(digest ^ u64::from(*byte)))
    }

    /// What a multishot answers last that has no room for more than one answer.
    pub(super) fn without_room(&self, result: i32, nature: &Nature) -> i32 {
        let gives_up = self.kind == Kind::PollMany && nature.traits.polls_give_up;
        if gives_up { -libc::ECANCELED } else { result }
    }
}
