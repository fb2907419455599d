//! What is measured: a work for the server, and a traffic that asks for it.

use std::fmt;

use bench_support::BUFFER_BYTES;
use bench_support::traffic::Traffic;

use crate::servers::Server;
use crate::work::{REQUEST_BYTES, SMALL_WRITES, Work};

/// Reads of long messages are this long.
const LONG_BUFFER_BYTES: usize = 64 * 1024;

/// Requests under way on a connection that pipelines.
const DEPTH: usize = 16;

/// Connections that churn are replaced by new ones, so many in a hundred each second.
const REPLACED_PERCENT: u32 = 10;

/// A measurement by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// For people: what happens on the wire.
    pub(crate) about: &'static str,
    pub(crate) work: Work,
    pub(crate) traffic: Traffic,
    pub(crate) connections: u32,
    /// Which variants of a runtime take part, besides the plain ones.
    variants: Variants,
    /// Whether it is measured when none is named.
    pub(crate) main: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variants {
    None,
    /// Other ways to read.
    Reads,
    /// Servers that look for work without sleeping, in the place of those that would sleep.
    Spinning,
}

/// In the order of the tables.
pub(crate) static ALL: &[Scenario] = &[
    pingpong("pingpong-1", "64 bytes and back, on 1 connection", 1).main(),
    pingpong("spin", "64 bytes and back, on 1 connection; servers may spin", 1)
        .with(Variants::Spinning)
        .main(),
    pingpong("pingpong-8", "64 bytes and back, on 8 connections", 8),
    pingpong("pingpong-64", "64 bytes and back, on 64 connections", 64)
        .with(Variants::Reads)
        .main(),
    pingpong("pingpong-1000", "64 bytes and back, on 1,000 connections", 1000).main(),
    pingpong("pingpong-5000", "64 bytes and back, on 5,000 connections", 5000),
    message("message-1k", "1 KiB and back, on 32 connections", 1024, BUFFER_BYTES),
    message("message-16k", "16 KiB and back, on 32 connections", 16 * 1024, 16 * 1024).main(),
    message("message-256k", "256 KiB and back, on 32 connections", 256 * 1024, LONG_BUFFER_BYTES),
    Scenario {
        traffic: Traffic::pipeline(REQUEST_BYTES, DEPTH),
        ..pingpong("pipeline-16", "16 messages of 64 bytes at a time, on 64 connections", 64)
    }
    .main(),
    Scenario {
        work: Work::SmallWrites,
        traffic: Traffic::repeated(REQUEST_BYTES, SMALL_WRITES),
        ..pingpong("small-writes", "64 bytes, answered by 16 writes of 64, on 64 connections", 64)
    }
    .main(),
    Scenario {
        work: Work::Sink,
        traffic: Traffic::Up,
        variants: Variants::Reads,
        ..pingpong("bulk-up", "bytes to the server on 8 connections; a request is 64 KiB", 8)
    },
    Scenario {
        work: Work::Source,
        traffic: Traffic::Down,
        ..pingpong("bulk-down", "bytes from the server on 8 connections; a request is 64 KiB", 8)
    },
    Scenario {
        traffic: Traffic::Short,
        ..pingpong("short", "connect, 64 bytes and back, reset; 64 connections at a time", 64)
    }
    .main(),
    Scenario {
        traffic: Traffic::churn(REQUEST_BYTES, REPLACED_PERCENT),
        ..pingpong("churn", "64 bytes and back; 100 of 1,000 connections a second are new", 1000)
    },
    Scenario {
        work: Work::Http,
        traffic: Traffic::Http { depth: 1 },
        ..pingpong("http", "GET and 13 bytes, keep-alive, on 64 connections, by wrk", 64)
    }
    .main(),
    Scenario {
        work: Work::Http,
        traffic: Traffic::Http { depth: DEPTH },
        ..pingpong("http-pipelined", "16 such GETs at a time, on 64 connections, by wrk", 64)
    }
    .main(),
    Scenario {
        traffic: Traffic::Idle,
        ..pingpong("idle", "connections that have had 64 bytes and back and say nothing", 10_000)
    }
    .main(),
    Scenario {
        work: Work::Relay,
        ..pingpong("relay", "64 bytes and back by way of another thread, on 64 connections", 64)
    },
];

const fn pingpong(name: &'static str, about: &'static str, connections: u32) -> Scenario {
    Scenario {
        name,
        about,
        work: Work::Echo { buffer_bytes: BUFFER_BYTES },
        traffic: Traffic::echo(REQUEST_BYTES),
        connections,
        variants: Variants::None,
        main: false,
    }
}

const fn message(
    name: &'static str,
    about: &'static str,
    bytes: usize,
    buffer_bytes: usize,
) -> Scenario {
    Scenario {
        work: Work::Echo { buffer_bytes },
        traffic: Traffic::echo(bytes),
        variants: Variants::Reads,
        ..pingpong(name, about, 32)
    }
}

impl Scenario {
    const fn main(self) -> Self {
        Self { main: true, ..self }
    }

    const fn with(self, variants: Variants) -> Self {
        Self { variants, ..self }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|scenario| scenario.name == name)
    }

    /// Whether requests/s are to be judged by: a processor that spins is always busy.
    pub(crate) fn is_about_speed(self) -> bool {
        self.variants == Variants::Spinning
    }

    /// Whether memory is what it is about.
    pub(crate) fn is_about_memory(self) -> bool {
        self.traffic == Traffic::Idle
    }

    /// Whether the server is measured, if nobody has named it.
    pub(crate) fn asks(self, server: Server) -> bool {
        let spinning = self.variants == Variants::Spinning;
        server.does(self.work)
            && match server.variant() {
                "spin" => spinning,
                "owned" | "leased" => self.variants == Variants::Reads,
                // Its place is taken by the one that spins.
                _ => !(spinning && server.spins_elsewhere()),
            }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name)
    }
}
