//! The servers under measurement. Each runtime's are what its users would write, in one shape.
//!
//! Names say what a server is: `annulus-..` is ours, `floor-..` has no runtime, all others are
//! peers. What stands behind the second hyphen is a variant, measured where it matters.

use std::fmt;

use bench_support::children::Failure;

use crate::work::Work;

mod annulus;
mod by_futures_io;
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
    Server { name: "annulus-uring-owned", does: annulus::echoes, serve: annulus::uring_owned },
    Server { name: "annulus-uring-leased", does: annulus::echoes, serve: annulus::uring_leased },
    Server { name: "annulus-uring-spin", does: annulus::does, serve: annulus::uring_spin },
    Server { name: "annulus-epoll", does: annulus::does, serve: annulus::epoll },
    Server { name: "annulus-epoll-owned", does: annulus::echoes, serve: annulus::epoll_owned },
    Server { name: "annulus-epoll-leased", does: annulus::echoes, serve: annulus::epoll_leased },
    Server { name: "annulus-epoll-spin", does: annulus::does, serve: annulus::epoll_spin },
    Server { name: "tokio", does: tokio::does, serve: tokio::current_thread },
    Server { name: "tokio-multi", does: tokio::multi_thread_does, serve: tokio::multi_thread },
    Server { name: "monoio", does: monoio::does, serve: monoio::serve },
    Server { name: "compio", does: compio::does, serve: compio::serve },
    Server { name: "glommio", does: glommio::does, serve: glommio::serve },
    Server { name: "tokio-uring", does: tokio_uring::does, serve: tokio_uring::serve },
    Server { name: "smol", does: smol::does, serve: smol::serve },
    Server { name: "libuv", does: libuv::does, serve: libuv::serve },
    Server { name: "floor-ring", does: floor_ring::does, serve: floor_ring::serve },
    Server { name: "floor-ring-spin", does: floor_ring::does, serve: floor_ring::spin },
    Server { name: "floor-epoll", does: floor_epoll::does, serve: floor_epoll::serve },
];

/// What a server is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    Peer,
    Floor,
}

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

    pub(crate) fn side(self) -> Side {
        match self.name.split('-').next() {
            Some("annulus") => Side::Ours,
            Some("floor") => Side::Floor,
            _ => Side::Peer,
        }
    }

    /// What stands behind the second hyphen, if anything.
    pub(crate) fn variant(self) -> &'static str {
        self.name.splitn(3, '-').nth(2).unwrap_or("")
    }

    /// Whether this server has a variant that spins.
    pub(crate) fn spins_elsewhere(self) -> bool {
        ALL.iter().any(|other| other.name.strip_suffix("-spin") == Some(self.name))
    }
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_a_server_is() {
        let side = |name| Server::named(name).map(Server::side);
        assert_eq!(side("annulus-epoll-owned"), Some(Side::Ours));
        assert_eq!(side("tokio-multi"), Some(Side::Peer));
        assert_eq!(side("floor-ring"), Some(Side::Floor));
        assert_eq!(Server::named("annulus-uring-spin").map(Server::variant), Some("spin"));
        assert_eq!(Server::named("tokio-multi").map(Server::variant), Some(""));
    }

    #[test]
    fn each_server_has_a_name_of_its_own() {
        for server in ALL {
            assert_eq!(ALL.iter().filter(|other| other.name == server.name).count(), 1);
        }
    }
}
