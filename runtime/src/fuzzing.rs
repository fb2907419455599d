//! What a fuzzer drives, one function for each target of `fuzz/`. Only in builds with
//! `--cfg fuzzing`, which `cargo fuzz` sets. The same models run with seeds as unit tests.

use crate::{board, buf, config, datagrams, doctor, driver, fs, stall, timers};

/// A model, steered by bytes. It panics where something is not as it should be.
pub type Model = fn(&[u8]);

/// Boards of another process, and what `/proc` says of it.
pub const BOARDS: Model = board::boards;
/// What the kernel writes in front of datagrams.
pub const DATAGRAMS: Model = datagrams::fuzz::datagrams;
/// Entries of operations.
pub const ENTRIES: Model = fs::entries;
/// Maps of a process.
pub const MAPS: Model = stall::maps;
/// Processors and control groups.
pub const PROCESSORS: Model = doctor::processors;
/// What may refuse a ring.
pub const REFUSALS: Model = driver::refusals;
/// The environment.
pub const SETTINGS: Model = config::fuzz::settings;
/// Slices of buffers.
pub const SLICES: Model = buf::fuzz::slices;
/// Operations in flight.
pub const SLOTS: Model = driver::slots;
/// The timer wheel.
pub const WHEEL: Model = timers::fuzz::wheel;
