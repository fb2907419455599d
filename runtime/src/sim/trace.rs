//! What has happened, in one number, or line by line.

use std::time::Duration;

use super::dice::mix;

/// With this in the environment, each thing that happens is a line on standard error.
const VARIABLE: &str = "ANNULUS_SIM_TRACE";

/// All that the world decides and that is asked of it goes in here, and nothing else: no number
/// that another run of the same seed would not have.
pub(super) struct Trace {
    pub(super) fingerprint: u64,
    printed: bool,
}

impl Trace {
    pub(super) fn new(seed: u64) -> Trace {
        Trace { fingerprint: mix(seed), printed: std::env::var_os(VARIABLE).is_some() }
    }

    pub(super) fn note(&mut self, now: Duration, event: Event, what: u64, how_much: u64) {
        for word in [event.number(), what, how_much] {
            self.fingerprint = mix(self.fingerprint ^ word).wrapping_add(word);
        }
        if self.printed {
            eprintln!("{now:>12?} {event:?} {what} {how_much:#x}");
        }
    }
}

/// What has happened. The two numbers beside it are, in this order:
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A thread is to come: its seat, its shard.
    Expect,
    /// A thread has gone: its seat.
    Leave,
    /// Somebody has the baton: a seat, and among how many it was drawn.
    Turn,
    /// The clock has moved: nanoseconds.
    Clock,
    /// The program has [said so](crate::simulation::observe).
    Observed,
    /// The last descriptor of a socket is closed: the socket.
    Closed,
    /// An epoll instance was told: the token, the events.
    Told,
    /// The socket, and what was answered.
    Called(Call),
}

/// A call that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Bind,
    Listen,
    Connect,
    Accept,
    Address,
    Receive,
    Send,
    Shutdown,
    TakeError,
    Options,
    Poll,
}

impl Event {
    fn number(self) -> u64 {
        match self {
            Event::Expect => 1,
            Event::Leave => 2,
            Event::Turn => 3,
            Event::Clock => 4,
            Event::Observed => 5,
            Event::Closed => 6,
            Event::Told => 7,
            Event::Called(call) => 32 + call as u64,
        }
    }
}
