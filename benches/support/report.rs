//! What was measured: one sample per server and round, and the table of their medians.

use std::fmt::{self, Write};
use std::str::FromStr;

use super::servers::Server;

/// From this share of a processor on, the load generator may be what limits a server.
const SATURATED: f64 = 0.9;

/// A server that waits longer for its processor shares it.
const WAITED_MAX: f64 = 0.03;

/// Two measurements differ by this much without a cause.
const LOAD_TOLERANCE: f64 = 1.03;

/// One measurement of one server.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) requests: u64,
    pub(crate) window_ns: u64,
    pub(crate) server_cpu_ns: u64,
    pub(crate) server_waited_ns: u64,
    pub(crate) load_cpu_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
}

impl Sample {
    pub(crate) fn requests_per_second(&self) -> f64 {
        self.requests as f64 * 1e9 / self.window_ns as f64
    }

    fn server_us(&self) -> f64 {
        self.server_cpu_ns as f64 / 1e3 / self.requests as f64
    }

    fn load_us(&self) -> f64 {
        self.load_cpu_ns as f64 / 1e3 / self.requests as f64
    }

    /// The share of the window in which the load generator worked.
    pub(crate) fn load_busy(&self) -> f64 {
        self.load_cpu_ns as f64 / self.window_ns as f64
    }

    /// The share of the window in which the server was ready to run and something else ran.
    fn server_waited(&self) -> f64 {
        self.server_waited_ns as f64 / self.window_ns as f64
    }

    /// The share of the window in which the server ran.
    pub(crate) fn server_busy(&self) -> f64 {
        self.server_cpu_ns as f64 / self.window_ns as f64
    }
}

/// One line, by which the load generator hands the sample to its parent.
impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, window_ns, server_cpu_ns, server_waited_ns, .. } = self;
        let Self { load_cpu_ns, p50_ns, p99_ns, p999_ns, .. } = self;
        write!(formatter, "{requests} {window_ns} {server_cpu_ns} {server_waited_ns} ")?;
        write!(formatter, "{load_cpu_ns} {p50_ns} {p99_ns} {p999_ns}")
    }
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
        let Ok(&[requests, window_ns, server_cpu_ns, server_waited_ns, ref rest @ ..]) =
            numbers.as_deref()
        else {
            return Err(format!("the load generator said {line:?}"));
        };
        let &[load_cpu_ns, p50_ns, p99_ns, p999_ns] = rest else {
            return Err(format!("the load generator said {line:?}"));
        };
        if requests == 0 {
            return Err("not one request was answered".to_owned());
        }
        Ok(Self {
            requests,
            window_ns,
            server_cpu_ns,
            server_waited_ns,
            load_cpu_ns,
            p50_ns,
            p99_ns,
            p999_ns,
        })
    }
}

/// What a measurement comes to when several took part in it: rates, and processors in use.
#[derive(Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    pub(crate) server_busy: f64,
    pub(crate) load_busy: f64,
}

impl Figures {
    pub(crate) fn server_us(&self) -> f64 {
        self.server_busy * 1e6 / self.per_second
    }
}

/// One line, by which a load hands the figures to its parent.
impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.per_second, self.server_busy, self.load_busy)
    }
}

impl FromStr for Figures {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let numbers: Result<Vec<f64>, _> = line.split(' ').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[per_second, server_busy, load_busy]) => {
                Ok(Self { per_second, server_busy, load_busy })
            }
            _ => Err(format!("the load said {line:?}")),
        }
    }
}

/// The samples of one server, by round. A server that could not start has none.
pub(crate) struct Series {
    pub(crate) server: Server,
    pub(crate) samples: Vec<Sample>,
}

/// The table of the medians over all rounds, and the warnings that belong to it.
pub(crate) fn table(all: &[Series]) -> String {
    let mut text = format!(
        "{:<14}{:>9} {:>7} {:>13} {:>5} {:>7} {:>7} {:>7} {:>6}  {:>13}  {:>13}\n",
        "",
        "requests",
        "server",
        "lowest to",
        "busy",
        "p50",
        "p99",
        "p99.9",
        "load",
        "to tokio",
        "to floor-ring",
    );
    let _ = writeln!(
        text,
        "{:<14}{:>9} {:>7} {:>13} {:>5} {:>7} {:>7} {:>7} {:>6}  {:>6} {:>6}  {:>6} {:>6}",
        "server",
        "/s",
        "µs/req",
        "highest",
        "%",
        "µs",
        "µs",
        "µs",
        "µs/req",
        "CPU",
        "req/s",
        "CPU",
        "req/s",
    );
    let measured = || all.iter().filter(|series| !series.samples.is_empty());
    measured().for_each(|series| row(&mut text, series, all));
    measured().for_each(|series| warn_of_load(&mut text, series));
    let waited = measured().map(|series| series.median(Sample::server_waited));
    warn_of_sharing(&mut text, waited.fold(0.0, f64::max));
    text
}

/// Says of which servers the load generator was the limit.
fn warn_of_load(text: &mut String, series: &Series) {
    let (load, server) = (series.median(Sample::load_us), series.median(Sample::server_us));
    if series.median(Sample::load_busy) > SATURATED && load > server * LOAD_TOLERANCE {
        let _ = writeln!(
            text,
            "warning: at {} the load generator is saturated and costs {load:.2} µs per request, \
             the server {server:.2}: requests/s are the generator's.",
            series.server,
        );
    }
}

/// Says that the processors were not the benchmark's alone.
fn warn_of_sharing(text: &mut String, waited: f64) {
    if waited > WAITED_MAX {
        let _ = writeln!(
            text,
            "warning: other work ran on these processors (a server waited for its own {:.0} % of \
             the time): requests/s and latencies say little, CPU is dearer than in quiet.",
            waited * 100.0,
        );
    }
}

fn row(text: &mut String, series: &Series, all: &[Series]) {
    let us = |measure: fn(&Sample) -> u64| series.median(|sample| measure(sample) as f64 / 1e3);
    let (lowest, highest) = series.range(Sample::server_us);
    let _ = writeln!(
        text,
        "{:<14}{:>9.0} {:>7.2} {:>13} {:>5.0} {:>7.1} {:>7.1} {:>7.1} {:>6.2}  {}  {}",
        series.server,
        series.median(Sample::requests_per_second),
        series.median(Sample::server_us),
        format!("{lowest:.2} to {highest:.2}"),
        series.median(Sample::server_busy) * 100.0,
        us(|sample| sample.p50_ns),
        us(|sample| sample.p99_ns),
        us(|sample| sample.p999_ns),
        series.median(Sample::load_us),
        ratios(series, Server::Tokio, all),
        ratios(series, Server::FloorRing, all),
    );
}

/// CPU and requests/s by those of another server: the median of the ratios of each round, whose
/// measurements lie side by side, so that what drifts between rounds cancels out.
fn ratios(series: &Series, other: Server, all: &[Series]) -> String {
    let other = all.iter().find(|candidate| candidate.server == other);
    let ratio = |measure: fn(&Sample) -> f64| -> Option<f64> {
        let pairs = series.samples.iter().zip(&other?.samples);
        median(pairs.map(|(mine, theirs)| measure(mine) / measure(theirs)))
    };
    let cell = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    let (cpu, requests) = (ratio(Sample::server_us), ratio(Sample::requests_per_second));
    format!("{:>6} {:>6}", cell(cpu), cell(requests))
}

impl Series {
    fn median(&self, measure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(measure)).expect("a series that was measured")
    }

    fn range(&self, measure: impl Fn(&Sample) -> f64) -> (f64, f64) {
        let values = self.samples.iter().map(measure);
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}
