//! The servers under measurement. Each runtime's are what its users would write, in one shape.

use std::fmt;

use bench_support::children::Failure;

use crate::work::Work;

mod annulus;
mod compio;
mod desk;
mod floor_epoll;
mod floor_ring;
mod glommio;
mod http;
#[cfg(libuv)]
mod libuv;
#[cfg(not(libuv))]
#[path = "libuv_missing.rs"]
mod libuv;
mod monoio;
mod smol;
mod tokio;
mod tokio_desk;
mod tokio_uring;

/// A server by name.
#[derive(Clone, Copy)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    does: fn(Work) -> bool,
    serve: fn(Work) -> Result<(), Failure>,
}

/// In the order of the table.
pub(crate) static ALL: &[Server] = &[
    Server { name: "annulus-uring", does: annulus::does, serve: annulus::uring },
    Server { name: "annulus-epoll", does: annulus::does, serve: annulus::epoll },
    Server { name: "tokio", does: tokio::does, serve: tokio::current_thread },
    Server { name: "tokio-multi", does: tokio::multi_thread_does, serve: tokio::multi_thread },
    Server { name: "monoio", does: monoio::does, serve: monoio::serve },
    Server { name: "compio", does: compio::does, serve: compio::serve },
    Server { name: "glommio", does: glommio::does, serve: glommio::serve },
    Server { name: "tokio-uring", does: tokio_uring::does, serve: tokio_uring::serve },
    Server { name: "smol", does: smol::does, serve: smol::serve },
    Server { name: "libuv", does: libuv::does, serve: libuv::serve },
    Server { name: "floor-ring", does: floor_ring::does, serve: floor_ring::serve },
    Server { name: "floor-epoll", does: floor_epoll::does, serve: floor_epoll::serve },
];

impl Server {
    pub(crate) fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|server| server.name == name)
    }

    pub(crate) fn does(self, work: Work) -> bool {
        (self.does)(work)
    }

    /// Serves on a free port of 127.0.0.1, which it prints, until the process is killed.
    pub(crate) fn serve(self, work: Work) -> Result<(), Failure> {
        (self.serve)(work)
    }
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name)
    }
}
