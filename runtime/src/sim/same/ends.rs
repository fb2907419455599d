//! What the two ends of a connection are told when it ends, in whatever order things happen.

use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::in_world;
use super::real::{self, bind, errno_of, listen, socket};
use crate::sim::World;
use crate::sim::calls::Binding;
use crate::sys;

/// What one end may do.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Send,
    Receive,
    FinishSending,
    FinishReceiving,
    Finish,
    Close,
    Abort,
}

const DEEDS: [Deed; 7] = [
    Deed::Send,
    Deed::Receive,
    Deed::FinishSending,
    Deed::FinishReceiving,
    Deed::Finish,
    Deed::Close,
    Deed::Abort,
];

/// How long the kernel may take for what is done between two ends of its own.
const ARRIVES: Duration = Duration::from_secs(5);

/// A call, and what it has answered: a count or a port's presence, or an errno.
type Told = (&'static str, Result<usize, i32>);

/// The ends of a connection; whose is closed is gone.
struct Pair([Option<OwnedFd>; 2]);

impl Pair {
    fn new() -> Pair {
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = socket(anywhere).unwrap();
        bind(&listener, anywhere, Binding::default()).unwrap();
        listen(&listener).unwrap();
        let client = socket(anywhere).unwrap();
        real::connect(&client, real::local_address(&listener).unwrap());
        let begun = Instant::now();
        let server = loop {
            match sys::accept(listener.as_fd()) {
                Ok(server) => break server,
                Err(error) => assert!(begun.elapsed() < ARRIVES, "no connection: {error}"),
            }
        };
        Pair([Some(client), Some(server)])
    }

    fn act(&mut self, who: usize, deed: Deed) -> Option<Told> {
        let end = self.0[who].as_ref()?;
        let shutdown = |how| errno_of(sys::shutdown(end.as_fd(), how)).map(|()| 0);
        Some(match deed {
            Deed::Send => ("send", send(end)),
            Deed::Receive => ("receive", receive(end)),
            Deed::FinishSending => ("shutdown", shutdown(Shutdown::Write)),
            Deed::FinishReceiving => ("shutdown", shutdown(Shutdown::Read)),
            Deed::Finish => ("shutdown", shutdown(Shutdown::Both)),
            Deed::Abort | Deed::Close => {
                if matches!(deed, Deed::Abort) {
                    real::abort_on_close(end);
                }
                self.0[who] = None;
                ("close", Ok(0))
            }
        })
    }

    /// What poll(2) tells of each end, once everything has arrived: as the simulation has told.
    fn events(&self, expected: Option<[u32; 2]>) -> [u32; 2] {
        let look = || [0, 1].map(|who| self.0[who].as_ref().map_or(0, real::poll));
        let begun = Instant::now();
        loop {
            if let Some(world) = World::current() {
                world.park(Some(world.now() + Duration::from_millis(1)));
            }
            let found = look();
            if expected.is_none_or(|events| events == found) || begun.elapsed() > ARRIVES {
                return found;
            }
        }
    }
}

fn send(end: &OwnedFd) -> Result<usize, i32> {
    errno_of(sys::send(end.as_fd(), b"byte"))
}

fn receive(end: &OwnedFd) -> Result<usize, i32> {
    errno_of(sys::recv(end.as_fd(), &mut [MaybeUninit::uninit(); 64], 0))
}

/// Everything that the ends are told, with what poll(2) tells after each step.
fn lived(deeds: &[(usize, Deed)], expected: &[[u32; 2]]) -> (Vec<Told>, Vec<[u32; 2]>) {
    let mut pair = Pair::new();
    let (mut told, mut events) = (Vec::new(), Vec::new());
    let mut look = |pair: &Pair| {
        let next = expected.get(events.len()).copied();
        events.push(pair.events(next));
    };
    look(&pair);
    for (who, deed) in deeds {
        told.extend(pair.act(*who, *deed));
        look(&pair);
    }
    for who in [0, 1] {
        let peer = |pair: &Pair| {
            let end = pair.0[who].as_ref()?;
            Some(("peer's address", real::peer_address(end)))
        };
        told.extend(peer(&pair));
        for deed in [Deed::Receive, Deed::Receive, Deed::Send, Deed::Send] {
            told.extend(pair.act(who, deed));
            look(&pair);
        }
        let error = |end: &OwnedFd| errno_of(sys::take_socket_error(end.as_fd())).map(|()| 0);
        told.extend(pair.0[who].as_ref().map(|end| ("error", error(end))));
        told.extend(pair.act(who, Deed::Finish));
        look(&pair);
        told.extend(peer(&pair));
    }
    (told, events)
}

fn compare(deeds: &[(usize, Deed)]) {
    let simulated = in_world(|_| lived(deeds, &[]));
    let real = lived(deeds, &simulated.1);
    assert_eq!(simulated, real, "the simulation (left) and Linux (right): {deeds:?}");
}

#[test]
fn the_ends_of_a_connection_are_told_what_they_are_told_on_linux() {
    let all: Vec<_> = [0, 1].into_iter().flat_map(|who| DEEDS.map(|deed| (who, deed))).collect();
    for first in &all {
        compare(&[*first]);
        for second in &all {
            compare(&[*first, *second]);
        }
    }
    // Nothing is left of it to be reset.
    let finished = [(0, Deed::Send), (0, Deed::FinishSending), (1, Deed::FinishSending)];
    for last in [Deed::Close, Deed::Abort] {
        compare(&[&finished[..], &[(1, last)]].concat());
    }
}
