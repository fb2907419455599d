//! The simulated kernel and network: what shards ask instead of the real ones while they run in a
//! [simulation](crate::simulation).
//!
//! One [`World`] is shared by the shards of a simulation. It has the clock, the dice, and the baton
//! that lets one shard run at a time; all that happens in it is given by its seed.
//!
//! What is simulated is the network of TCP, in memory (`network`, `line`), and the waiting of the
//! drivers. A simulated socket has a descriptor that is good for being closed and for generic
//! options, and no more (`handles`): bytes, connections, resets and latencies are the world's. So
//! who has a descriptor in hand, a driver too, calls `sys::{recv, receive, recv_message, send,
//! send_vectored, accept, shutdown, take_socket_error}` and never the C library; for a connect and
//! for poll(2) it asks [`calls::connect`] and [`calls::poll`] first. They answer for simulated
//! sockets, and the system call is made on every other descriptor. None of them waits. What is on
//! its way arrives while shards are parked: whoever returns from [`World::park`] looks again, and
//! whoever has waited or worked calls [`World::pause`] once a turn, so that others have theirs.

pub(crate) mod calls;
mod dice;
pub(crate) mod epoll;
mod faults;
mod gate;
mod handles;
mod line;
mod moment;
mod names;
mod network;
mod report;
pub(crate) mod ring;
#[cfg(test)]
mod same;
mod trace;
mod watches;
mod world;

use std::time::Instant;

pub(crate) use dice::Dice;
pub use faults::Faults;
pub use report::Report;
pub(crate) use world::{Aside, Place, World};

/// The time, on a thread that lives in a simulation.
#[inline]
pub(crate) fn instant() -> Option<Instant> {
    Some(World::current()?.instant())
}

/// As [`instant`], in nanoseconds, of which there is never none.
pub(crate) fn nanoseconds() -> Option<u64> {
    Some(World::current()?.now().as_nanos() as u64 + 1)
}

/// Whether this thread lives in a simulation.
#[inline]
pub fn is_here() -> bool {
    World::current().is_some()
}

/// Lets other shards run here, where a real machine might.
#[inline]
pub(crate) fn pause() {
    if let Some(world) = World::current() {
        world.pause();
    }
}

/// Keeps a seat for the thread of a shard that is about to be made.
pub(crate) fn expect(shard: usize) -> Option<Place> {
    Some(World::current()?.expect(shard))
}

/// While the guard lives this thread may wait for others, which take their turns without it.
pub(crate) fn stand_aside() -> Option<Aside> {
    World::stand_aside()
}
