//! A plot of a scenario: a bar for each server, from the median, and a line from lowest to highest.

use std::fmt::Write;

use bench_support::figures::Sample;

use super::idle::pss;
use super::{Results, Series};
use crate::servers::Side;

const LABEL_WIDTH: f64 = 170.0;
const BARS_WIDTH: f64 = 420.0;
const VALUE_WIDTH: f64 = 90.0;
const ROW_HEIGHT: f64 = 22.0;
const HEAD_HEIGHT: f64 = 48.0;

/// The scenario's figure as an SVG document.
pub(crate) fn svg(results: &Results) -> String {
    let (title, figure): (_, fn(&Sample) -> f64) = if results.scenario.is_about_memory() {
        ("bytes per idle connection (less is better)", pss)
    } else if results.scenario.is_about_speed() {
        ("requests/s (more is better)", Sample::requests_per_second)
    } else {
        ("server CPU, µs per request (less is better)", Sample::server_us)
    };
    let series: Vec<&Series> = results.measured().collect();
    let highest = series.iter().map(|series| series.range(figure).1).fold(0.0, f64::max);
    let width = LABEL_WIDTH + BARS_WIDTH + VALUE_WIDTH;
    let height = HEAD_HEIGHT + ROW_HEIGHT * series.len() as f64 + 10.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"18\" font-weight=\"bold\">{}: {}</text>\n\
         <text x=\"8\" y=\"36\">{title}; lines are the lowest and the highest round</text>\n",
        escaped(results.scenario.name),
        escaped(results.scenario.about),
    );
    for (row, series) in series.into_iter().enumerate() {
        let top = HEAD_HEIGHT + ROW_HEIGHT * row as f64;
        bar(&mut text, series, figure, top, BARS_WIDTH / highest.max(f64::MIN_POSITIVE));
    }
    text + "</svg>\n"
}

fn bar(text: &mut String, series: &Series, figure: fn(&Sample) -> f64, top: f64, scale: f64) {
    let colour = match series.server.side() {
        Side::Ours => "#2b6cb0",
        Side::Peer => "#a0aec0",
        Side::Floor => "#d69e2e",
    };
    let (median, (lowest, highest)) = (series.median(figure), series.range(figure));
    let (middle, base) = (top + ROW_HEIGHT / 2.0, top + ROW_HEIGHT / 2.0 + 4.0);
    let x = |value: f64| LABEL_WIDTH + value * scale;
    let _ = write!(
        text,
        "<text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>\n\
         <rect x=\"{LABEL_WIDTH}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
         fill=\"{colour}\"/>\n\
         <path d=\"M{:.1} {middle:.1}H{:.1}M{:.1} {:.1}v8M{:.1} {:.1}v8\" stroke=\"black\"/>\n\
         <text x=\"{:.1}\" y=\"{base:.1}\">{}</text>\n",
        LABEL_WIDTH - 6.0,
        escaped(series.server.name),
        top + 3.0,
        median * scale,
        ROW_HEIGHT - 6.0,
        x(lowest),
        x(highest),
        x(lowest),
        middle - 4.0,
        x(highest),
        middle - 4.0,
        x(highest) + 6.0,
        short(median),
    );
}

/// Three digits, or all before the point.
fn short(value: f64) -> String {
    let digits = match value {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_digits_that_matter() {
        assert_eq!([0.183, 4.0, 41.53, 120_345.2].map(short), ["0.18", "4.00", "41.5", "120345"]);
    }

    #[test]
    fn text_cannot_break_the_document() {
        assert_eq!(escaped("a < b & c"), "a &lt; b &amp; c");
    }
}
