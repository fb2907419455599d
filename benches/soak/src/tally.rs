//! What a child has done and found wrong, and how it tells its parent.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of this process. All are sums, which no order between threads changes.
static DONE: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static ERRORS: AtomicU64 = AtomicU64::new(0);
static OPEN: AtomicU64 = AtomicU64::new(0);
static SKIPPED: AtomicU64 = AtomicU64::new(0);

/// Of more than so many errors only the number is told.
const ERRORS_TOLD_MAX: u64 = 20;

/// What a child says once a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Connections that have ended.
    pub(crate) done: u64,
    pub(crate) open: u64,
    /// Connections that were due and not begun, as too many were open.
    pub(crate) skipped: u64,
    /// Bytes that have come and are right.
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) tasks: u64,
}

/// A connection that is open as long as this lives.
pub(crate) struct Open(());

impl Open {
    pub(crate) fn begin() -> Self {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
        DONE.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn open() -> u64 {
    OPEN.load(Ordering::Relaxed)
}

pub(crate) fn checked(bytes: usize) {
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

pub(crate) fn skipped() {
    SKIPPED.fetch_add(1, Ordering::Relaxed);
}

/// Something that must not happen.
pub(crate) fn error(text: &str) {
    if ERRORS.fetch_add(1, Ordering::Relaxed) < ERRORS_TOLD_MAX {
        say(&format!("{ERROR}{}", text.lines().collect::<Vec<_>>().join(" ")));
    }
}

/// Tells the parent how it stands.
pub(crate) fn tell(tasks: u64) {
    let load = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
    let tally = Tally {
        done: load(&DONE),
        open: load(&OPEN),
        skipped: load(&SKIPPED),
        bytes: load(&BYTES),
        errors: load(&ERRORS),
        tasks,
    };
    say(&tally.line());
}

pub(crate) fn say(line: &str) {
    // A parent that is gone takes this process with it.
    let _gone = writeln!(std::io::stdout(), "{line}");
}

impl Tally {
    fn line(self) -> String {
        let Self { done, open, skipped, bytes, errors, tasks } = self;
        format!("{TALLY}{done} {open} {skipped} {bytes} {errors} {tasks}")
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let numbers: Option<Vec<u64>> =
            line.strip_prefix(TALLY)?.split(' ').map(|number| number.parse().ok()).collect();
        let &[done, open, skipped, bytes, errors, tasks] = &numbers?[..] else { return None };
        Some(Self { done, open, skipped, bytes, errors, tasks })
    }
}

const TALLY: &str = "tally ";
pub(crate) const ERROR: &str = "error ";
pub(crate) const OVER: &str = "over";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_read_as_it_is_written() {
        let tally = Tally { done: 1, open: 2, skipped: 3, bytes: 4, errors: 5, tasks: 6 };
        assert_eq!(Tally::parse(&tally.line()), Some(tally));
        assert_eq!(Tally::parse("tally 1 2"), None);
        assert_eq!(Tally::parse("error x"), None);
    }
}
