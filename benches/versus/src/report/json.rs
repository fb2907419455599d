//! The results for programs: everything that was measured, and on what.

use std::fmt::Write;

use bench_support::figures::Sample;

use super::machine::Machine;
use super::ratio::Ratio;
use super::{Results, Series};
use crate::options::Options;

/// Names and values on one line for each sample.
pub(crate) fn results(all: &[Results], machine: &Machine, options: &Options) -> String {
    let facts = machine
        .facts
        .iter()
        .map(|(name, value)| format!("    {}: {}", quoted(name), quoted(value)));
    let facts = facts.collect::<Vec<_>>().join(",\n");
    let scenarios = all.iter().map(scenario).collect::<Vec<_>>().join(",\n");
    format!(
        "{{\n  \"machine\": {{\n{facts}\n  }},\n  \"rounds\": {},\n  \"window_s\": {},\n  \
         \"scenarios\": [\n{scenarios}\n  ]\n}}\n",
        options.rounds,
        options.window.as_secs_f64(),
    )
}

fn scenario(results: &Results) -> String {
    let series = results.series.iter().map(|series| one_series(series, results));
    format!(
        "    {{\n      \"name\": {}, \"about\": {}, \"connections\": {},\n      \"servers\": \
         [\n{}\n      ]\n    }}",
        quoted(results.scenario.name),
        quoted(results.scenario.about),
        results.connections,
        series.collect::<Vec<_>>().join(",\n"),
    )
}

fn one_series(series: &Series, results: &Results) -> String {
    let mut text = format!("        {{\n          \"name\": {}", quoted(series.server.name));
    if let Some(fault) = &series.fault {
        let _ = write!(text, ", \"fault\": {}", quoted(fault.text()));
    }
    if !series.samples.is_empty() {
        for (name, median) in [
            ("requests_per_s", series.median(Sample::requests_per_second)),
            ("server_us_per_request", series.median(Sample::server_us)),
            ("load_us_per_request", series.median(Sample::load_us)),
        ] {
            let _ = write!(text, ", \"{name}\": {}", number(median));
        }
        let _ = write!(text, ", \"limited_by_load\": {}", series.limited_by_load());
        if let Some(calls) = series.calls_per_request {
            let _ = write!(text, ", \"system_calls_per_request\": {}", number(calls));
        }
        for (name, ratio) in [
            ("tokio", Ratio::to_tokio(series, results)),
            ("floor", Ratio::to_floor(series, results)),
            ("best_other_peer", Ratio::to_best_peer(series, results)),
        ] {
            if let (Some(cpu), Some(requests)) = (ratio.cpu, ratio.requests) {
                let (cpu, requests) = (number(cpu), number(requests));
                let _ =
                    write!(text, ", \"to_{name}\": {{\"cpu\": {cpu}, \"requests\": {requests}}}");
            }
        }
    }
    let samples = series.samples.iter().map(sample).collect::<Vec<_>>().join(",\n");
    text + &format!(",\n          \"samples\": [\n{samples}\n          ]\n        }}")
}

fn sample(sample: &Sample) -> String {
    let numbers = [
        ("requests", sample.requests),
        ("window_ns", sample.window_ns),
        ("server_cpu_ns", sample.server_cpu_ns),
        ("server_waited_ns", sample.server_waited_ns),
        ("load_cpu_ns", sample.load_cpu_ns),
        ("p50_ns", sample.p50_ns),
        ("p99_ns", sample.p99_ns),
        ("p999_ns", sample.p999_ns),
        ("rss_bytes", sample.memory.rss_bytes),
        ("pss_bytes", sample.memory.pss_bytes),
        ("private_dirty_bytes", sample.memory.private_dirty_bytes),
    ];
    let members = numbers.map(|(name, value)| format!("\"{name}\": {value}"));
    format!("            {{{}}}", members.join(", "))
}

/// What JSON has no word for is null.
fn number(value: f64) -> String {
    if value.is_finite() { format!("{value:.4}") } else { "null".to_owned() }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            control if control < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", control as u32);
            }
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_json_wants_it() {
        assert_eq!(quoted("a \"b\" \\ c\nd\u{1}µ"), r#""a \"b\" \\ c\nd\u0001µ""#);
    }

    #[test]
    fn what_is_no_number_is_null() {
        assert_eq!(number(1.25), "1.2500");
        assert_eq!(number(f64::NAN), "null");
    }
}
