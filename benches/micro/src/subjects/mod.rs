//! The runtimes under measurement, by name.

use std::fmt;

use crate::row::{self, Row};
use crate::rows::tasks;
use crate::subject::Subject;

mod annulus;
mod tokio;

/// A runtime that can be measured.
#[derive(Clone, Copy)]
pub struct Entry {
    /// As on the command line and in the table.
    pub name: &'static str,
    measure: fn(&Row, u64) -> Option<f64>,
    park: fn(u64, &mut dyn FnMut()),
}

/// In the order of the table.
pub static ALL: &[Entry] = &[
    Entry::of::<annulus::Uring>("annulus-uring"),
    Entry::of::<annulus::Epoll>("annulus-epoll"),
    Entry::of::<tokio::CurrentThread>("tokio"),
];

impl Entry {
    const fn of<R: Subject>(name: &'static str) -> Self {
        Self { name, measure: row::measure::<R>, park: tasks::park::<R> }
    }

    /// The runtime of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().find(|entry| entry.name == name).copied()
    }

    /// One measurement, in the row's unit; `None` where the runtime has no such operation.
    #[must_use]
    pub fn measure(self, row: &Row, operations: u64) -> Option<f64> {
        (self.measure)(row, operations)
    }

    /// Runs until so many tasks wait for nothing, and looks before and after.
    pub fn park(self, tasks: u64, look: &mut dyn FnMut()) {
        (self.park)(tasks, look);
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name)
    }
}
