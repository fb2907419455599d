//! Which shard serves a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Which shard serves a connection that one of them has accepted. It moves before its first read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Placement {
    /// The one that accepted it. The kernel chooses among the sockets by a hash of the addresses,
    /// which evens out with many connections and is uneven with few. Nothing moves: the cheapest
    /// for connections that last for a request or two.
    ReusePort,
    /// The one that serves the fewest connections of this group now; of several the one that
    /// accepted it. For connections that stay.
    #[default]
    LeastConnections,
    /// One after the other.
    RoundRobin,
}

/// How many connections each shard serves.
pub(super) struct Loads {
    placement: Placement,
    shards: Box<[Load]>,
    next: AtomicUsize,
}

/// On a cache line of its own: each shard writes its own most of the time.
#[derive(Default)]
#[repr(align(64))]
struct Load(AtomicUsize);

/// What a shard that has ended seems to serve.
const GONE: usize = usize::MAX / 2;

impl Loads {
    pub(super) fn new(placement: Placement, shards: usize) -> Arc<Loads> {
        let shards = (0..shards).map(|_| Load::default()).collect();
        Arc::new(Loads { placement, shards, next: AtomicUsize::new(0) })
    }

    /// Chooses a shard for a connection that was accepted by this one, and counts it there.
    pub(super) fn place(self: &Arc<Self>, here: usize) -> Counted {
        let shard = match self.placement {
            Placement::ReusePort => here,
            Placement::RoundRobin => self.following(),
            Placement::LeastConnections => self.least(here),
        };
        // Relaxed here and below: numbers to choose by, which order nothing.
        self.shards[shard].0.fetch_add(1, Ordering::Relaxed);
        Counted { loads: Arc::clone(self), shard }
    }

    fn following(&self) -> usize {
        let shards = self.shards.len();
        let turn = |_| self.next.fetch_add(1, Ordering::Relaxed) % shards;
        (0..shards).map(turn).find(|&shard| self.load(shard) < GONE).unwrap_or(0)
    }

    /// Looks at the others from the next one on, so that shards that accept at the same time do not
    /// all choose the first.
    fn least(&self, here: usize) -> usize {
        let shards = self.shards.len();
        let from_here = (0..shards).map(|step| (here + step) % shards);
        from_here.min_by_key(|&shard| self.load(shard)).unwrap_or(here)
    }

    fn load(&self, shard: usize) -> usize {
        self.shards[shard].0.load(Ordering::Relaxed)
    }

    /// The shard has ended, and takes no more.
    pub(super) fn retire(&self, shard: usize) {
        self.shards[shard].0.fetch_add(GONE, Ordering::Relaxed);
    }
}

/// Counts a connection on a shard until it is dropped.
pub(super) struct Counted {
    loads: Arc<Loads>,
    shard: usize,
}

impl Counted {
    pub(super) fn shard(&self) -> usize {
        self.shard
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.loads.shards[self.shard].0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(loads: &Arc<Loads>, here: usize) -> (usize, Counted) {
        let counted = loads.place(here);
        (counted.shard(), counted)
    }

    #[test]
    fn the_least_loaded_shard_is_chosen_and_one_that_accepted_among_equals() {
        let loads = Loads::new(Placement::LeastConnections, 3);
        let (first, one) = placed(&loads, 1);
        let (second, _two) = placed(&loads, 1);
        let (third, _three) = placed(&loads, 1);
        let (fourth, _four) = placed(&loads, 2);
        assert_eq!([first, second, third, fourth], [1, 2, 0, 2]);
        drop(one);
        assert_eq!(placed(&loads, 0).0, 1);
    }

    #[test]
    fn turns_are_taken_whoever_accepts() {
        let loads = Loads::new(Placement::RoundRobin, 3);
        let turns: Vec<_> = [2, 2, 0, 1].map(|here| placed(&loads, here).0).into();
        assert_eq!(turns, [0, 1, 2, 0]);
    }

    #[test]
    fn a_shard_that_has_ended_gets_nothing() {
        for placement in [Placement::LeastConnections, Placement::RoundRobin] {
            let loads = Loads::new(placement, 3);
            loads.retire(1);
            let shards: Vec<_> = (0..4).map(|_| placed(&loads, 1)).collect();
            assert!(shards.iter().all(|(shard, _)| *shard != 1));
        }
    }
}
