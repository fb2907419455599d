//! A figure: curves over one axis, as a table for people and as JSON for programs.

use std::fmt::Write;

use crate::stats::{Grid, Spread};

/// What stands along the bottom.
pub(crate) enum Across {
    /// Numbers, on a logarithmic scale.
    Numbers { label: &'static str, values: Vec<f64> },
    /// Things without an order.
    Names(Vec<String>),
}

impl Across {
    pub(crate) fn numbers(label: &'static str, values: &[usize]) -> Self {
        Self::Numbers { label, values: values.iter().map(|&value| value as f64).collect() }
    }

    pub(crate) fn names(names: &[&str]) -> Self {
        Self::Names(names.iter().map(|&name| name.to_owned()).collect())
    }

    /// Where a place lies on the axis.
    pub(crate) fn position(&self, place: usize) -> f64 {
        match self {
            Self::Numbers { values, .. } => values[place],
            Self::Names(_) => place as f64,
        }
    }

    fn name(&self, place: usize) -> String {
        match self {
            Self::Numbers { values, .. } => values[place].to_string(),
            Self::Names(names) => names[place].clone(),
        }
    }

    fn places(&self) -> usize {
        match self {
            Self::Numbers { values, .. } => values.len(),
            Self::Names(names) => names.len(),
        }
    }

    fn label(&self) -> &str {
        match self {
            Self::Numbers { label, .. } => label,
            Self::Names(_) => "",
        }
    }
}

/// How the values are spaced.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    Linear,
    Logarithmic,
}

pub(crate) struct Curve {
    pub(crate) name: String,
    /// For each place; `None` where it could not be measured.
    pub(crate) points: Vec<Option<Spread>>,
}

pub(crate) struct Figure {
    /// Names the files.
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) across: Across,
    pub(crate) unit: &'static str,
    pub(crate) scale: Scale,
    pub(crate) curves: Vec<Curve>,
    /// A place on the axis past which something ends, and what.
    pub(crate) end: Option<(f64, &'static str)>,
}

impl Figure {
    pub(crate) fn new(name: &'static str, title: impl Into<String>, across: Across) -> Self {
        let title = title.into();
        let (unit, scale) = ("", Scale::Linear);
        Self { name, title, across, unit, scale, curves: vec![], end: None }
    }

    pub(crate) fn in_unit(self, unit: &'static str, scale: Scale) -> Self {
        Self { unit, scale, ..self }
    }

    pub(crate) fn ending(self, at: f64, what: &'static str) -> Self {
        Self { end: Some((at, what)), ..self }
    }

    /// A curve for each name, from the grid's series of the same number.
    pub(crate) fn with(mut self, names: &[&str], grid: &Grid) -> Self {
        for (series, name) in names.iter().enumerate() {
            let spread = |place| grid.spread(series, place);
            let points = (0..self.across.places()).map(spread).collect();
            self.curves.push(Curve { name: (*name).to_owned(), points });
        }
        self
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!("\n{}", self.title);
        if !self.unit.is_empty() {
            let _ = write!(text, "; {}", self.unit);
        }
        let _ = write!(text, "\n{:<24}", self.across.label());
        let width = |curve: &Curve| curve.name.chars().count().max(20);
        for curve in &self.curves {
            let _ = write!(text, "  {:>1$}", curve.name, width(curve));
        }
        for place in 0..self.across.places() {
            let _ = write!(text, "\n{:<24}", self.across.name(place));
            for curve in &self.curves {
                let cell = curve.points[place].map_or("-".to_owned(), cell);
                let _ = write!(text, "  {cell:>0$}", width(curve));
            }
        }
        if let Some((at, what)) = self.end {
            let _ = write!(text, "\nat {at}: {what}");
        }
        text
    }

    pub(crate) fn json(&self, machine: &str) -> String {
        let curves: Vec<String> = self.curves.iter().map(|curve| self.curve_json(curve)).collect();
        format!(
            "{{\"figure\": {}, \"title\": {}, \"machine\": {}, \"x\": {}, \"unit\": {}, \
             \"curves\": [\n{}\n]}}\n",
            quoted(self.name),
            quoted(&self.title),
            quoted(machine),
            quoted(self.across.label()),
            quoted(self.unit),
            curves.join(",\n"),
        )
    }

    fn curve_json(&self, curve: &Curve) -> String {
        let points = curve.points.iter().enumerate().filter_map(|(place, point)| {
            let Spread { low, median, high } = (*point)?;
            let x = match &self.across {
                Across::Numbers { values, .. } => values[place].to_string(),
                Across::Names(names) => quoted(&names[place]),
            };
            Some(format!(
                "{{\"x\": {x}, \"low\": {low:.3}, \"median\": {median:.3}, \"high\": {high:.3}}}"
            ))
        });
        let points: Vec<String> = points.collect();
        format!("  {{\"name\": {}, \"points\": [{}]}}", quoted(&curve.name), points.join(", "))
    }
}

fn cell(Spread { low, median, high }: Spread) -> String {
    format!("{} ({}..{})", number(median), number(low), number(high))
}

/// Three digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A string of JSON. What is said here holds no control characters but line ends.
fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::{Across, Figure, Scale, number, quoted};
    use crate::stats::Grid;

    fn figure() -> Figure {
        let mut grid = Grid::new(2, 2);
        [1.0, 2.0, 3.0].iter().for_each(|&value| grid.push(0, 1, value));
        Figure::new("one", "A \"title\"", Across::numbers("n", &[10, 30]))
            .in_unit("ns", Scale::Linear)
            .with(&["first", "second"], &grid)
    }

    #[test]
    fn a_table_has_a_row_for_each_place_and_a_dash_for_what_is_missing() {
        let table = figure().table();
        let rows: Vec<&str> = table.lines().skip(3).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].split_whitespace().collect::<Vec<_>>(), ["10", "-", "-"]);
        assert!(rows[1].contains("2 (1.50..2.50)"), "{table}");
    }

    #[test]
    fn json_leaves_out_what_is_missing_and_escapes() {
        let json = figure().json("a machine");
        assert!(json.contains(r#""title": "A \"title\"""#), "{json}");
        assert!(json.contains(r#"{"x": 30, "low": 1.500, "median": 2.000, "high": 2.500}"#));
        assert!(json.contains(r#"{"name": "second", "points": []}"#));
    }

    #[test]
    fn numbers_have_three_digits() {
        let texts = [0.5, 12.345, 1234.5, 7.0].map(number);
        assert_eq!(texts, ["0.50", "12.3", "1234", "7"].map(str::to_owned));
    }

    #[test]
    fn a_backslash_is_doubled_before_quotes_get_theirs() {
        assert_eq!(quoted(r#"\""#), r#""\\\"""#);
    }
}
