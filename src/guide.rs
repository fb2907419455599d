//! Compiles and runs the code of the README and the guide, as documentation tests. Nothing of this
//! is in the crate.

#[doc = include_str!("../README.md")]
struct Readme;

#[doc = include_str!("../docs/guide/quickstart.md")]
struct Quickstart;

#[doc = include_str!("../docs/guide/buffers.md")]
struct Buffers;

#[doc = include_str!("../docs/guide/cancellation.md")]
struct Cancellation;

#[doc = include_str!("../docs/guide/every-core.md")]
struct EveryCore;

#[doc = include_str!("../docs/guide/observability.md")]
struct Observability;

#[doc = include_str!("../docs/guide/operations.md")]
struct Operations;

#[doc = include_str!("../docs/guide/other-crates.md")]
struct OtherCrates;

#[doc = include_str!("../docs/guide/simulation.md")]
struct Simulation;
