//! What a fuzzer drives, one function for each target of `fuzz/`. Only in builds with
//! `--cfg fuzzing`, which `cargo fuzz` sets. The same models run with seeds as unit tests.

use crate::{addr, stream, udp};

/// A model, steered by bytes. It panics where something is not as it should be.
pub type Model = fn(&[u8]);

/// Texts that may name a socket address.
pub const ADDRESSES: Model = addr::fuzz::addresses;
/// What the kernel writes beside datagrams.
pub const CONTROLS: Model = udp::fuzz::controls;
/// Entries of sends, accepts and connects.
pub const REQUESTS: Model = stream::fuzz::requests;
