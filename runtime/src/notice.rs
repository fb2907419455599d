//! What the operator of a program is told on standard error.

use std::fmt;
use std::io::{self, Write};

/// Writes a line. `eprintln!` panics where nobody can read it, as on a pipe whose reader has gone;
/// but no shard, and no listener, is to end for that.
///
/// # Examples
///
/// ```
/// annulus_runtime::io::notify(format_args!("port {} is taken by another program", 80));
/// ```
pub fn notify(text: fmt::Arguments<'_>) {
    // As a whole, so that lines of several threads are not mixed.
    let line = format!("annulus: {text}\n");
    let _unread = io::stderr().write_all(line.as_bytes());
}
