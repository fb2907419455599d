//! The parts of the echo benchmark: options, processes, servers, the load generator, the report.

pub(crate) mod floor_epoll;
pub(crate) mod floor_ring;
pub(crate) mod histogram;
pub(crate) mod load;
pub(crate) mod options;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod ring;
pub(crate) mod servers;
