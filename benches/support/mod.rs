//! The parts of the benchmarks: options, processes, servers, the load generator, the report.

#![allow(dead_code, reason = "each benchmark uses its own part of what is here")]

pub(crate) mod children;
pub(crate) mod floor_epoll;
pub(crate) mod floor_ring;
pub(crate) mod group;
pub(crate) mod histogram;
pub(crate) mod load;
pub(crate) mod options;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod ring;
pub(crate) mod servers;
pub(crate) mod short;
