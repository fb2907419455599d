//! What single operations cost, on annulus and on other runtimes.
//!
//! A row is written once, generic over the runtime; `benches/micro.rs` makes a table of all rows
//! by time, and `bin/counted.rs` runs one row so often that callgrind can count its instructions.

pub mod place;
pub mod row;
pub mod rows;
pub mod subject;
pub mod subjects;

pub use crate::row::Row;
pub use crate::subject::Subject;
