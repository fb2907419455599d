//! The table of the medians: one row a server.

use std::fmt::Write;

use bench_support::figures::Sample;

use super::ratio::{Ratio, best_peer};
use super::{Results, Series};

/// A server that waits longer for its processor shares it.
const WAITED_MAX: f64 = 0.03;

/// The widest name of a server, and a gap.
const NAME: usize = 22;

/// The table of the medians over all rounds, and the warnings that belong to it.
pub(crate) fn table(results: &Results) -> String {
    let mut text = format!(
        "{:<NAME$}{:>9} {:>7} {:>16} {:>5} {:>8} {:>8} {:>8} {:>7} {:>6} {:>5}  {:>13}  \
         {:>13}  {:>13}\n",
        "",
        "requests",
        "server",
        "lowest to",
        "busy",
        "p50",
        "p99",
        "p99.9",
        "load",
        "memory",
        "calls",
        "to tokio",
        "to the floor",
        "to best other",
    );
    let _ = writeln!(
        text,
        "{:<NAME$}{:>9} {:>7} {:>16} {:>5} {:>8} {:>8} {:>8} {:>7} {:>6} {:>5}  {:>6} {:>6}  \
         {:>6} {:>6}  {:>6} {:>6}",
        "server",
        "/s",
        "µs/req",
        "highest",
        "%",
        "µs",
        "µs",
        "µs",
        "µs/req",
        "MiB",
        "/req",
        "CPU",
        "req/s",
        "CPU",
        "req/s",
        "CPU",
        "req/s",
    );
    results.measured().for_each(|series| row(&mut text, series, results));
    results.series.iter().filter_map(Series::fault_line).for_each(|line| text += &line);
    if let Some(best) = best_peer(results) {
        let _ = writeln!(text, "the best other peer: {}", best.server);
    }
    results.measured().for_each(|series| warn_of_load(&mut text, series));
    let waited = results.measured().map(|series| series.median(Sample::server_waited));
    warn_of_sharing(&mut text, waited.fold(0.0, f64::max));
    text
}

/// Says of which servers the load generator was the limit.
fn warn_of_load(text: &mut String, series: &Series) {
    if series.limited_by_load() {
        let _ = writeln!(
            text,
            "! WARNING: at {} the load generator is saturated and costs {:.2} µs per request, \
             the server {:.2}: requests/s and latencies are the generator's.",
            series.server,
            series.median(Sample::load_us),
            series.median(Sample::server_us),
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

fn row(text: &mut String, series: &Series, results: &Results) {
    let us = |figure: fn(&Sample) -> u64| series.median(|sample| figure(sample) as f64 / 1e3);
    let (lowest, highest) = series.range(Sample::server_us);
    let mark = if series.limited_by_load() { "!" } else { "" };
    let _ = writeln!(
        text,
        "{:<NAME$}{:>9.0} {:>7.2} {:>16} {:>5.0} {:>8.1} {:>8.1} {:>8.1} {:>7.2} {:>6.1} {:>5}  \
         {}  {}  {}",
        format!("{}{mark}", series.server),
        series.median(Sample::requests_per_second),
        series.median(Sample::server_us),
        format!("{lowest:.2} to {highest:.2}"),
        series.median(Sample::server_busy) * 100.0,
        us(|sample| sample.p50_ns),
        us(|sample| sample.p99_ns),
        us(|sample| sample.p999_ns),
        series.median(Sample::load_us),
        series.median(|sample| sample.memory.rss_bytes as f64) / f64::from(1 << 20),
        series.calls_per_request.map_or("-".to_owned(), |calls| format!("{calls:.2}")),
        cells(Ratio::to_tokio(series, results)),
        cells(Ratio::to_floor(series, results)),
        cells(Ratio::to_best_peer(series, results)),
    );
}

fn cells(ratio: Ratio) -> String {
    let cell = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    format!("{:>6} {:>6}", cell(ratio.cpu), cell(ratio.requests))
}
