//! The table of connections that say nothing.

use std::fmt::Write;

use bench_support::figures::Sample;

use super::{Results, Series};

pub(crate) fn table(results: &Results) -> String {
    let mut text = format!(
        "{:<22}{:>12} {:>18} {:>14} {:>12} {:>10} {:>10}\n",
        "server",
        "bytes each",
        "lowest to highest",
        "private dirty",
        "resident",
        "to tokio",
        "CPU µs/s"
    );
    let tokio = results.measured().find(|series| series.server.name == "tokio");
    let tokio = tokio.map(|series| series.median(pss));
    for series in results.measured() {
        let (lowest, highest) = series.range(pss);
        let ratio = tokio.map(|tokio| format!("{:.2}", series.median(pss) / tokio));
        let _ = writeln!(
            text,
            "{:<22}{:>12.0} {:>18} {:>14.0} {:>12.0} {:>10} {:>10.0}",
            series.server,
            series.median(pss),
            format!("{lowest:.0} to {highest:.0}"),
            series.median(|sample| sample.memory.private_dirty_bytes as f64),
            series.median(|sample| sample.memory.rss_bytes as f64),
            ratio.unwrap_or_else(|| "-".to_owned()),
            series.median(Sample::server_busy) * 1e6,
        );
    }
    results.series.iter().filter_map(Series::fault_line).for_each(|line| text += &line);
    text + "Memory of the process for each connection (Pss), without what the kernel keeps.\n"
}

pub(super) fn pss(sample: &Sample) -> f64 {
    sample.memory.pss_bytes as f64
}
