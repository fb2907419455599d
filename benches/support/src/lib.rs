//! What several benchmarks are made of: processes, the load generator, figures.

pub mod children;
pub mod figures;
pub mod histogram;
pub mod load;
pub mod memory;
pub mod options;
pub mod process;
pub mod ring;
pub mod traffic;

/// What every server reads into, per connection or per piece.
pub const BUFFER_BYTES: usize = 4096;
