//! Answers that a healthy kernel does not give, put in by `strace -e inject` into a child process.

use std::fs;
use std::process::Command;

use annulus::Driver;

use super::process::{self, Scratch};

/// The role under strace, which puts faults in by these rules, on this driver.
pub(crate) fn with_faults(
    driver: Driver,
    mut role: Command,
    scratch: &Scratch,
    rules: &[&str],
) -> Command {
    role.env("ANNULUS_DRIVER", driver.to_string());
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(scratch.path(LOG));
    for rule in rules {
        strace.args(["-e", &format!("inject={rule}")]);
    }
    strace.arg("--");
    process::behind(strace, &role)
}

/// How many calls strace has answered in the kernel's place.
pub(crate) fn faults(scratch: &Scratch) -> usize {
    let log = fs::read_to_string(scratch.path(LOG)).expect("read the log of strace");
    log.lines().filter(|line| line.contains("(INJECTED)")).count()
}

/// The log of strace in its folder.
pub(crate) const LOG: &str = "strace.log";
