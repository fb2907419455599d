//! Programs in a simulated world, which a seed gives.

pub use crate::sim::Faults;
