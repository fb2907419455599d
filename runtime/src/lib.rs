//! The runtime under the `annulus` crate: executor, drivers, timers and buffers of one thread.
//!
//! Programs depend on `annulus`, which re-exports what they need. This crate is for those who write
//! further operations or socket types: [`io`] holds the pieces.
//!
//! The layers, each of which uses only those before it: `sys`, `sync`, `cpus`, `contain`,
//! `notice`, `config`, `fork`, `ticks`, `board`, `trace`, `sim`; `executor`, `timers`, `buf`,
//! `fd`, `waiters`; `driver`, `stall`; `shard` (the loop) with `crew`, `meter` and `resident`;
//! `op`, `multishot`, `receive`, `datagrams`, `task`, `join_set`, `time`, `blocking`, `shards`,
//! `runtime`, `metrics`, `io`, `signal`, `shutdown`, `fs`, `simulation`; `doctor`.

#![cfg(target_os = "linux")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod blocking;
mod board;
#[cfg(any(test, fuzzing))]
mod choices;
mod config;
mod contain;
mod cpus;
mod crew;
mod datagrams;
mod driver;
mod error;
mod executor;
mod fd;
mod fork;
mod join_set;
mod meter;
mod multishot;
mod notice;
mod op;
mod receive;
mod resident;
mod resident_key;
mod ring;
mod runtime;
#[cfg(any(test, fuzzing))]
mod seen;
mod shard;
mod shards;
#[cfg(feature = "sim")]
mod sim;
#[cfg(not(feature = "sim"))]
#[path = "no_sim.rs"]
mod sim;
mod sync;
mod sys;
mod ticks;
mod timers;
mod trace;
mod waiters;

pub mod buf;
pub mod doctor;
pub mod fs;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod io;
pub mod metrics;
pub mod shutdown;
pub mod signal;
#[cfg(feature = "sim")]
pub mod simulation;
pub mod stall;
pub mod task;
pub mod time;
#[cfg(feature = "tokio-context")]
pub mod tokio_context;

pub use config::{ConfigError, Driver, LIMITS, Limits};
pub use doctor::doctor;
pub use driver::{Cause, DriverInfo, Refusal, Stage};
pub use error::BuildError;
pub use metrics::{Metrics, metrics};
pub use runtime::{Builder, Outlook, Runtime, driver_info};
pub use shards::{Shard, on_each_shard};
pub use task::{JoinError, JoinHandle, spawn};
