//! What has happened in a simulation.

use std::time::Duration;

use super::world::World;

/// What has happened in a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// A number that everything has gone into that the world has decided and the program has done:
    /// the same for each run of a seed.
    pub fingerprint: u64,
    /// How long it has taken, by the clock of the simulation.
    pub elapsed: Duration,
    /// How often a shard had its turn.
    pub turns: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Connections that were refused.
    pub refusals: u64,
    /// Ends of connections that were told of a reset.
    pub resets: u64,
    /// Bytes that were sent.
    pub bytes: u64,
    /// Sockets that nobody has closed.
    pub left_open: u64,
}

impl World {
    pub(crate) fn report(&self) -> Report {
        let mut state = self.lock();
        state.take_closed();
        let figures = state.network.figures;
        Report {
            fingerprint: state.trace.fingerprint,
            elapsed: state.now,
            turns: state.turns,
            connections: figures.connections,
            refusals: figures.refusals,
            resets: figures.resets,
            bytes: figures.bytes,
            left_open: state.handles.len() as u64,
        }
    }
}
