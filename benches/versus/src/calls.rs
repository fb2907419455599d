//! System calls of a server, counted from outside while it works.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bench_support::children::Failure;

/// A counter that runs for a while, beside the load.
pub(crate) struct Counter {
    perf: Child,
    length: Duration,
}

impl Counter {
    /// Counts all threads of the process. Needs `perf` and the right to see tracepoints.
    pub(crate) fn start(pid: u32, length: Duration) -> Result<Self, Failure> {
        let perf = Command::new("perf")
            .args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &pid.to_string()])
            .args(["--", "sleep", &length.as_secs_f64().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("perf cannot be started: {error}"))?;
        Ok(Self { perf, length })
    }

    /// Calls per second.
    pub(crate) fn finish(self) -> Result<f64, Failure> {
        let output = self.perf.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let calls = parse(&text).ok_or(format!("perf says {:?}", text.trim()))?;
        Ok(calls / self.length.as_secs_f64())
    }
}

/// The count in a line of `perf stat -x,`.
fn parse(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_first_field() {
        let text = "1234,,raw_syscalls:sys_enter,1000,100.00,,\n";
        assert_eq!(parse(text), Some(1234.0));
        assert_eq!(parse("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
        assert_eq!(parse("event syntax error"), None);
    }
}
