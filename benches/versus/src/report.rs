//! The table of the medians: one sample per server and round.

use std::fmt::Write;

use bench_support::figures::{Sample, median};

use crate::servers::Server;

/// From this share of a processor on, the load generator may be what limits a server.
const SATURATED: f64 = 0.9;

/// A server that waits longer for its processor shares it.
const WAITED_MAX: f64 = 0.03;

/// Two measurements differ by this much without a cause.
const LOAD_TOLERANCE: f64 = 1.03;

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
        ratios(series, "tokio", all),
        ratios(series, "floor-ring", all),
    );
}

/// CPU and requests/s by those of another server: the median of the ratios of each round, whose
/// measurements lie side by side, so that what drifts between rounds cancels out.
fn ratios(series: &Series, other: &str, all: &[Series]) -> String {
    let other = all.iter().find(|candidate| candidate.server.name == other);
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
