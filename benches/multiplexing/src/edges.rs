//! Edge-triggered against level-triggered: what a burst costs, and what can go wrong.
//!
//! A burst of pieces lies ready in a socket; it is read by several habits, and the calls are
//! counted. Then the pitfall of edges: who reads until there is nothing more may never come to the
//! next descriptor, if the peer writes as fast as he reads.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bench_support::children::Failure;

use crate::figure::{Across, Figure, Scale};
use crate::options::Effort;
use crate::stats::Grid;
use crate::sys::{self, Epoll, ready};

/// A burst is so many pieces, each as large as what a read takes, and half a one.
const PIECES: usize = 16;
const READ_BYTES: usize = 1024;
const BURST_BYTES: usize = PIECES * READ_BYTES + READ_BYTES / 2;

/// How often a peer that does not tire is read before it does.
const PEER_PIECES: usize = 1000;

/// Reads of one descriptor before the others have their turn, for who has such a budget.
const BUDGET: usize = 16;

const READABLE: u32 = libc::EPOLLIN as u32;
const EDGE: u32 = libc::EPOLLIN as u32 | libc::EPOLLET as u32;

/// When a reader leaves off.
#[derive(Clone, Copy, PartialEq)]
enum Until {
    /// After one read.
    Once,
    /// When a read says that there is nothing more: EAGAIN.
    Empty,
    /// When a read brings less than there was room for.
    Short,
    /// As `Empty`, after `BUDGET` reads at the latest; then the program remembers what is left.
    Budget,
}

const HABITS: [(&str, u32, Until); 6] = [
    ("level, one read", READABLE, Until::Once),
    ("level, to EAGAIN", READABLE, Until::Empty),
    ("level, to short", READABLE, Until::Short),
    ("edge, one read", EDGE, Until::Once),
    ("edge, to EAGAIN", EDGE, Until::Empty),
    ("edge, to short", EDGE, Until::Short),
];

/// What one burst took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Calls {
    /// Calls of `epoll_wait` that brought the descriptor.
    returns: usize,
    reads: usize,
    /// Never read, as nothing more was announced.
    left_bytes: usize,
}

pub(crate) fn measure(effort: Effort) -> Result<Vec<Figure>, Failure> {
    let names = HABITS.map(|(name, ..)| name);
    let mut calls_grid = Grid::new(2, HABITS.len());
    let mut left_grid = Grid::new(1, HABITS.len());
    let mut time_grid = Grid::new(1, HABITS.len());
    let window = Duration::from_millis(effort.choose(2, 20));
    for _ in 0..effort.choose(2, 11) {
        for (place, &(_, events, until)) in HABITS.iter().enumerate() {
            let mut reader = Reader::new(events, until)?;
            let calls = reader.burst()?;
            calls_grid.push(0, place, calls.returns as f64);
            calls_grid.push(1, place, calls.reads as f64);
            left_grid.push(0, place, calls.left_bytes as f64);
            if calls.left_bytes == 0 {
                time_grid.push(0, place, reader.time(window)? / 1e3);
            }
        }
    }
    let burst = format!("A burst of {BURST_BYTES} bytes, read by {READ_BYTES}");
    let series = ["epoll_wait returns", "reads"];
    let across = || Across::names(&names);
    Ok(vec![
        Figure::new("edges-calls", format!("{burst}: calls"), across())
            .in_unit("calls", Scale::Linear)
            .with(&series, &calls_grid),
        Figure::new("edges-left", format!("{burst}: bytes never announced"), across())
            .in_unit("bytes", Scale::Linear)
            .with(&["left unread"], &left_grid),
        Figure::new("edges-time", format!("{burst}: time from its write to its end"), across())
            .in_unit("µs a burst", Scale::Linear)
            .with(&["written and read"], &time_grid),
        starvation()?,
    ])
}

struct Reader {
    epoll: Epoll,
    ours: OwnedFd,
    peer: OwnedFd,
    until: Until,
}

impl Reader {
    fn new(events: u32, until: Until) -> io::Result<Self> {
        let (ours, peer) = sys::socket_pair()?;
        let epoll = Epoll::new()?;
        epoll.add(ours.as_raw_fd(), events, 0)?;
        Ok(Self { epoll, ours, peer, until })
    }

    fn burst(&mut self) -> io::Result<Calls> {
        let burst = [7; BURST_BYTES];
        assert_eq!(sys::write(self.peer.as_raw_fd(), &burst)?, BURST_BYTES, "a burst fits");
        let mut calls = Calls { left_bytes: BURST_BYTES, ..Calls::default() };
        let mut events = sys::no_events(1);
        // The last call finds nothing, as a loop's next turn would; it is not counted.
        while self.epoll.wait(&mut events, 0)? > 0 {
            calls.returns += 1;
            let (reads, bytes) = drain(&self.ours, self.until)?;
            calls.reads += reads;
            calls.left_bytes -= bytes;
        }
        Ok(calls)
    }

    /// Nanoseconds a burst.
    fn time(&mut self, window: Duration) -> io::Result<f64> {
        let start = Instant::now();
        let mut bursts = 0;
        loop {
            assert_eq!(self.burst()?.left_bytes, 0, "all of the burst was read");
            bursts += 1;
            let elapsed = start.elapsed();
            if elapsed >= window {
                return Ok(elapsed.as_nanos() as f64 / f64::from(bursts));
            }
        }
    }
}

/// Reads and bytes, until the habit says that it is enough.
fn drain(ours: &OwnedFd, until: Until) -> io::Result<(usize, usize)> {
    let (mut reads, mut bytes) = (0, 0);
    loop {
        let read = ready(sys::read(ours.as_raw_fd(), &mut [0; READ_BYTES]))?;
        reads += 1;
        bytes += read.unwrap_or(0);
        let is_over = match until {
            Until::Once => true,
            Until::Empty => read.is_none(),
            Until::Short => read.is_none_or(|length| length < READ_BYTES),
            Until::Budget => read.is_none() || reads >= BUDGET,
        };
        if is_over {
            return Ok((reads, bytes));
        }
    }
}

/// How often a descriptor whose peer writes as fast as we read is read before its neighbour, which
/// has had one byte all the while, is looked at.
fn starvation() -> io::Result<Figure> {
    let habits = [
        ("level, one read", READABLE, Until::Once),
        ("edge, to EAGAIN", EDGE, Until::Empty),
        ("edge, 16 reads", EDGE, Until::Budget),
    ];
    let mut grid = Grid::new(1, habits.len());
    for (place, &(_, events, until)) in habits.iter().enumerate() {
        grid.push(0, place, reads_before_the_neighbour(events, until)? as f64);
    }
    let title = format!(
        "Reads of a descriptor that never runs dry before its neighbour's turn (its peer stops \
         after {PEER_PIECES})"
    );
    let names = habits.map(|(name, ..)| name);
    Ok(Figure::new("edges-starvation", title, Across::names(&names))
        .in_unit("reads", Scale::Linear)
        .with(&["reads before the neighbour's"], &grid))
}

fn reads_before_the_neighbour(events: u32, until: Until) -> io::Result<usize> {
    let (busy, busy_peer) = sys::socket_pair()?;
    let (calm, calm_peer) = sys::socket_pair()?;
    let epoll = Epoll::new()?;
    epoll.add(busy.as_raw_fd(), events, 0)?;
    epoll.add(calm.as_raw_fd(), events, 1)?;
    // The busy one comes first. Its peer, who is always ahead, is played by us.
    let mut pieces = 0;
    let mut refill = || -> io::Result<()> {
        if pieces < PEER_PIECES {
            pieces += 1;
            assert_eq!(sys::write(busy_peer.as_raw_fd(), &[7; READ_BYTES])?, READ_BYTES);
        }
        Ok(())
    };
    refill()?;
    sys::write(calm_peer.as_raw_fd(), &[7])?;

    let mut reads = 0;
    let mut found = sys::no_events(2);
    loop {
        let count = epoll.wait(&mut found, 0)?;
        assert!(count > 0, "the neighbour's byte was announced");
        for event in &found[..count] {
            if event.u64 == 1 {
                assert_eq!(sys::read(calm.as_raw_fd(), &mut [0])?, 1, "the neighbour's byte");
                return Ok(reads);
            }
            let mut turn = 0;
            loop {
                let read = ready(sys::read(busy.as_raw_fd(), &mut [0; READ_BYTES]))?;
                (reads, turn) = (reads + 1, turn + 1);
                refill()?;
                let is_over = match until {
                    Until::Once => true,
                    Until::Budget => turn >= BUDGET || read.is_none(),
                    Until::Empty | Until::Short => read.is_none(),
                };
                if is_over {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        BUDGET, BURST_BYTES, Calls, EDGE, PEER_PIECES, PIECES, READ_BYTES, READABLE, Reader,
    };
    use super::{Until, reads_before_the_neighbour};

    fn calls(events: u32, until: Until) -> Calls {
        let mut reader = Reader::new(events, until).expect("a reader");
        reader.burst().expect("a burst")
    }

    #[test]
    fn a_level_is_told_until_all_is_read() {
        let expected = Calls { returns: PIECES + 1, reads: PIECES + 1, left_bytes: 0 };
        assert_eq!(calls(READABLE, Until::Once), expected);
    }

    #[test]
    fn an_edge_is_told_once_and_the_confirming_read_is_one_more() {
        let confirmed = Calls { returns: 1, reads: PIECES + 2, left_bytes: 0 };
        assert_eq!(calls(EDGE, Until::Empty), confirmed);
        assert_eq!(calls(EDGE, Until::Short), Calls { reads: PIECES + 1, ..confirmed });
    }

    #[test]
    fn who_reads_once_for_an_edge_leaves_the_rest() {
        let left_bytes = BURST_BYTES - READ_BYTES;
        assert_eq!(calls(EDGE, Until::Once), Calls { returns: 1, reads: 1, left_bytes });
    }

    #[test]
    fn a_budget_lets_the_neighbour_have_its_turn() {
        let reads = |events, until| reads_before_the_neighbour(events, until).expect("reads");
        assert_eq!(reads(READABLE, Until::Once), 1);
        assert_eq!(reads(EDGE, Until::Budget), BUDGET);
        assert_eq!(reads(EDGE, Until::Empty), PEER_PIECES + 1);
    }
}
