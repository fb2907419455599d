//! HTTP by `wrk`, which has to be installed: what its users would measure with.

use std::io::{self, ErrorKind};
use std::process::Command;
use std::time::Instant;
use std::{env, fs, process};

use super::{Plan, Refused};
use crate::figures::Sample;
use crate::memory::Memory;
use crate::process::{CpuReading, children_cpu_ns};

/// Sends `DEPTH` requests together and tells the figures in one line: requests, microseconds, the
/// latencies, errors.
const SCRIPT: &str = r#"
local all
init = function(args)
  local one = {}
  for i = 1, DEPTH do one[i] = wrk.format("GET", "/") end
  all = table.concat(one)
end
request = function() return all end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("versus %d %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"#;

/// `wrk` counts whole seconds.
const SECONDS_MIN: u64 = 1;

pub(super) fn play(plan: &Plan, depth: usize) -> Result<Sample, Refused> {
    let [server] = &plan.servers[..] else {
        return Err(Refused::Failed(io::Error::other("wrk asks one server")));
    };
    let script = env::temp_dir().join(format!("versus-{}.lua", process::id()));
    fs::write(&script, SCRIPT.replace("DEPTH", &depth.to_string()))?;
    let seconds = plan.window.as_secs().max(SECONDS_MIN);
    let cpu_before = CpuReading::of(server.pid)?;
    let start = Instant::now();
    let output = Command::new("wrk")
        .args(["--threads", "1", "--connections", &plan.connections.to_string()])
        .args(["--duration", &format!("{seconds}s"), "--script"])
        .arg(&script)
        .arg(format!("http://{}/", server.address))
        .output();
    let window_ns = start.elapsed().as_nanos() as u64;
    fs::remove_file(&script)?;
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let text = "wrk is not installed (apt-get install wrk)";
            return Err(Refused::Here(io::Error::new(ErrorKind::NotFound, text)));
        }
        Err(error) => return Err(error.into()),
    };
    let cpu = CpuReading::of(server.pid)?.since(&cpu_before);
    let figures = Figures::parse(&String::from_utf8_lossy(&output.stdout))
        .map_err(|error| Refused::Failed(io::Error::other(error)))?;
    Ok(Sample {
        requests: figures.requests,
        window_ns: figures.duration_ns.max(1).min(window_ns),
        server_cpu_ns: cpu.ran_ns,
        server_waited_ns: cpu.waited_ns,
        server_switches: cpu.slices,
        load_cpu_ns: children_cpu_ns(),
        p50_ns: figures.p50_ns,
        p99_ns: figures.p99_ns,
        p999_ns: figures.p999_ns,
        memory: Memory::of_all(&[server.pid])?,
    })
}

/// What the script tells.
#[derive(Debug, PartialEq)]
struct Figures {
    requests: u64,
    duration_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
}

impl Figures {
    fn parse(output: &str) -> Result<Self, String> {
        let line = output.lines().find_map(|line| line.strip_prefix("versus "));
        let numbers: Option<Result<Vec<u64>, _>> =
            line.map(|line| line.split(' ').map(str::parse).collect());
        let Some(Ok(numbers)) = numbers else {
            return Err(format!("wrk said {output:?}"));
        };
        match numbers[..] {
            [requests, duration_us, p50_us, p99_us, p999_us, 0] => Ok(Self {
                requests,
                duration_ns: duration_us * 1000,
                p50_ns: p50_us * 1000,
                p99_ns: p99_us * 1000,
                p999_ns: p999_us * 1000,
            }),
            [.., errors] => Err(format!("wrk counted {errors} errors")),
            [] => Err(format!("wrk said {output:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_script_is_found_among_those_of_wrk() {
        let figures = Figures::parse("Running 1s test\nversus 500 1000000 10 20 30 0\n");
        let expected = Figures {
            requests: 500,
            duration_ns: 1_000_000_000,
            p50_ns: 10_000,
            p99_ns: 20_000,
            p999_ns: 30_000,
        };
        assert_eq!(figures, Ok(expected));
    }

    #[test]
    fn errors_of_wrk_are_no_figures() {
        assert!(
            Figures::parse("versus 500 1000000 10 20 30 7\n").unwrap_err().contains("7 errors")
        );
        assert!(Figures::parse("unable to connect\n").is_err());
    }
}
