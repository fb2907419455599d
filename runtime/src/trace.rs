//! Tasks as spans of the crate `tracing`, with the names and fields that tokio gives its own: tools
//! that were made for tokio's tasks, tokio-console first among them, then understand these.
//!
//! Futures and closures are wrapped where they are spawned; the executor knows nothing of it.
//! Without the feature `tracing` what goes in comes out.

#[cfg(not(feature = "tracing"))]
mod off;
#[cfg(feature = "tracing")]
mod on;
#[cfg(feature = "tracing")]
mod waker;

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{TaskSpan, traced_job, untraced_name};
#[cfg(feature = "tracing")]
pub(crate) use on::{TaskSpan, traced_job, untraced_name};
