//! The simulated kernel and network: what shards ask instead of the real ones while they run in a
//! [simulation](crate::simulation).
//!
//! One [`World`] is shared by the shards of a simulation. It has the clock, the dice, and the baton
//! that lets one shard run at a time; all that happens in it is given by its seed.
//!
//! What is simulated is the network of TCP, in memory (`network`, to come), and the waiting of the
//! drivers. A simulated socket has a descriptor that is good for being closed and for generic
//! options, and no more: bytes, connections, resets and their latencies are the world's. So who has
//! a descriptor in hand, a driver too, calls `sys::{recv, receive, recv_message, send,
//! send_vectored, accept, connect, shutdown, take_socket_error, poll_now}` and never the C library:
//! they ask here first, and make the system call on every other descriptor. None of them waits.
//! What is on its way arrives while the shards are parked: whoever returns from [`World::park`]
//! looks again.

mod dice;
mod faults;
mod world;

pub(crate) use dice::{Dice, mix};
pub use faults::Faults;
pub(crate) use world::{Place, World};
