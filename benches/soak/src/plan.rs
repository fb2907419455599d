//! What becomes of a connection. Both sides make the same plan from its number.

use std::time::Duration;

use crate::keyed::{Keyed, Numbers};

pub(crate) struct Plan {
    pub(crate) number: u64,
    seed: u64,
    /// What the client sends, and what the server does.
    pub(crate) bytes: [u64; 2],
    pub(crate) ending: Ending,
    /// Who is slow, with reads and writes of few bytes and a pause behind each.
    pub(crate) slow: Option<Side>,
    /// What the client waits in the middle, with nothing under way.
    pub(crate) idles: Duration,
    /// The server takes the stream to another shard in the middle.
    pub(crate) moves: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Client,
    Server,
}

/// How it ends: both ways whole, or by this side, this way, somewhere on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    Clean,
    Drops(Side),
    Resets(Side),
    Aborts(Side),
    Panics(Side),
}

impl Plan {
    pub(crate) fn of(seed: u64, number: u64) -> Self {
        let mut numbers = Numbers::of(seed, number, 0);
        let slow = match numbers.below(16) {
            0 => Some(Side::Client),
            1 => Some(Side::Server),
            _ => None,
        };
        let most = match numbers.below(10) {
            // What is slow takes some seconds, and no minutes.
            _ if slow.is_some() => 10_000,
            0..6 => 2000,
            6..9 => 30_000,
            _ => 400_000,
        };
        let side = [Side::Client, Side::Server][numbers.below(2) as usize];
        Self {
            number,
            seed,
            bytes: [numbers.below(most), numbers.below(most)],
            ending: match numbers.below(16) {
                0 => Ending::Drops(side),
                1 => Ending::Resets(side),
                2 => Ending::Aborts(side),
                3 => Ending::Panics(side),
                _ => Ending::Clean,
            },
            slow,
            idles: match numbers.below(100) {
                0 => Duration::from_millis(numbers.below(20_000)),
                _ => Duration::ZERO,
            },
            moves: numbers.below(8) == 0,
        }
    }

    /// What this side sends.
    pub(crate) fn keyed(&self, side: Side) -> Keyed {
        Keyed(self.numbers(1 + side as u64).0)
    }

    pub(crate) fn bytes_of(&self, side: Side) -> u64 {
        self.bytes[side as usize]
    }

    /// What one part of this connection draws.
    pub(crate) fn numbers(&self, part: u64) -> Numbers {
        Numbers::of(self.seed, self.number, part)
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.ending == Ending::Clean
    }
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}
