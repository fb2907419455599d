//! A figure as SVG: medians joined by lines, the middle half of the rounds as bars.

use std::path::Path;

use bench_support::children::Failure;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::figure::{Across, Curve, Figure, Scale, number};

const SIZE: (u32, u32) = (920, 440);

/// To the right of the chart, for the names of the curves.
const NAMES_WIDTH: u32 = 210;
const NAME_HEIGHT: i32 = 22;

/// Okabe and Ito's colours, which people who see colours differently tell apart.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(140, 140, 140),
];

const GREY: RGBColor = RGBColor(120, 120, 120);

/// Room above the highest and below the lowest point of a logarithmic scale, and above the highest
/// of a linear one.
const MARGIN: f64 = 1.15;

pub(crate) fn write(figure: &Figure, path: &Path) -> Result<(), Failure> {
    let Some(bounds) = Bounds::of(figure) else { return Ok(()) };
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (chart, names) = area.split_horizontally(SIZE.0 - NAMES_WIDTH);
    name_curves(figure, &names)?;
    let area = chart;
    match (&figure.across, figure.scale) {
        (Across::Numbers { .. }, Scale::Logarithmic) => {
            let (x, y) = (bounds.x.0..bounds.x.1, bounds.y.0..bounds.y.1);
            draw(figure, &bounds, &area, x.log_scale(), y.log_scale())?;
        }
        (Across::Numbers { .. }, Scale::Linear) => {
            let (x, y) = (bounds.x.0..bounds.x.1, bounds.y.0..bounds.y.1);
            draw(figure, &bounds, &area, x.log_scale(), y)?;
        }
        (Across::Names(_), Scale::Logarithmic) => {
            let (x, y) = (bounds.x.0..bounds.x.1, bounds.y.0..bounds.y.1);
            draw(figure, &bounds, &area, x, y.log_scale())?;
        }
        (Across::Names(_), Scale::Linear) => {
            let (x, y): (RangedCoordf64, _) =
                ((bounds.x.0..bounds.x.1).into(), bounds.y.0..bounds.y.1);
            draw(figure, &bounds, &area, x, y)?;
        }
    }
    area.present()?;
    Ok(())
}

/// Least and most of both axes.
struct Bounds {
    x: (f64, f64),
    y: (f64, f64),
}

impl Bounds {
    /// `None` where nothing was measured.
    fn of(figure: &Figure) -> Option<Self> {
        let spreads = || figure.curves.iter().flat_map(|curve| curve.points.iter().flatten());
        let high = spreads().map(|spread| spread.high).reduce(f64::max)?;
        let positive = spreads().map(|spread| spread.low).filter(|&low| low > 0.0);
        let low = positive.reduce(f64::min).unwrap_or(1.0);
        let y = match figure.scale {
            Scale::Linear => (0.0, high * MARGIN),
            Scale::Logarithmic => (low / MARGIN, high.max(low) * MARGIN),
        };
        let x = match &figure.across {
            Across::Numbers { values, .. } => (values.first()? / MARGIN, values.last()? * MARGIN),
            Across::Names(names) => (-0.5, names.len() as f64 - 0.5),
        };
        Some(Self { x, y })
    }
}

fn draw<X, Y>(
    figure: &Figure,
    bounds: &Bounds,
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    x: X,
    y: Y,
) -> Result<(), Failure>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .caption(&figure.title, ("sans-serif", 17))
        .margin(10)
        .x_label_area_size(42)
        .y_label_area_size(66)
        .build_cartesian_2d(x, y)?;
    let (label, ticks) = match &figure.across {
        Across::Numbers { label, .. } => (*label, 10),
        Across::Names(names) => ("", names.len() * 2 + 1),
    };
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_labels(ticks)
        .x_desc(label)
        .y_desc(figure.unit)
        .label_style(("sans-serif", 13))
        .x_label_formatter(&|&value| tick(&figure.across, value))
        .y_label_formatter(&|&value| number(value))
        .draw()?;
    if let Some((at, _)) = figure.end {
        let line = vec![(at, bounds.y.0), (at, bounds.y.1)];
        let style = GREY.stroke_width(1);
        chart.draw_series(DashedLineSeries::new(line, 5, 4, style))?;
    }
    for (index, curve) in figure.curves.iter().enumerate() {
        let color = COLORS[index % COLORS.len()];
        let style = color.stroke_width(2);
        let points = placed(figure, curve, index);
        if matches!(figure.across, Across::Numbers { .. }) {
            let line = points.iter().map(|&(x, spread)| (x, spread.1));
            chart.draw_series(LineSeries::new(line, style))?;
        }
        let floor = bounds.y.0;
        chart.draw_series(points.iter().map(|&(x, (low, _, high))| {
            PathElement::new(vec![(x, low.max(floor)), (x, high.max(floor))], style)
        }))?;
        let dots = points.iter();
        chart.draw_series(
            dots.map(|&(x, (_, y, _))| Circle::new((x, y.max(floor)), 3, color.filled())),
        )?;
    }
    Ok(())
}

/// The names of the curves in their colours, and what ends where the dashed line stands.
fn name_curves(
    figure: &Figure,
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
) -> Result<(), Failure> {
    let curves = figure.curves.iter().zip(COLORS.iter().cycle());
    let mut rows: Vec<(&str, RGBColor)> =
        curves.map(|(curve, &color)| (curve.name.as_str(), color)).collect();
    rows.extend(figure.end.map(|(_, what)| (what, GREY)));
    for (row, (name, color)) in (2..).zip(rows) {
        let y = row * NAME_HEIGHT;
        area.draw(&PathElement::new(vec![(8, y), (26, y)], color.stroke_width(2)))?;
        area.draw(&Circle::new((17, y), 3, color.filled()))?;
        area.draw(&Text::new(name.to_owned(), (34, y - 7), ("sans-serif", 13)))?;
    }
    Ok(())
}

/// The points of a curve; over names those of different curves lie side by side.
fn placed(figure: &Figure, curve: &Curve, index: usize) -> Vec<(f64, (f64, f64, f64))> {
    let shift = match figure.across {
        Across::Numbers { .. } => 0.0,
        Across::Names(_) => (index as f64 + 0.5) / figure.curves.len() as f64 * 0.6 - 0.3,
    };
    let points = curve.points.iter().enumerate();
    points
        .filter_map(|(place, spread)| {
            let spread = (*spread)?;
            Some((figure.across.position(place) + shift, (spread.low, spread.median, spread.high)))
        })
        .collect()
}

/// What stands at a tick: names only where something lies.
fn tick(across: &Across, value: f64) -> String {
    match across {
        Across::Numbers { .. } => number(value),
        Across::Names(names) => {
            let place = value.round();
            let is_place = (value - place).abs() < 0.01 && place >= 0.0;
            let name = is_place.then(|| names.get(place as usize)).flatten();
            name.cloned().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Bounds, tick};
    use crate::figure::{Across, Figure, Scale};
    use crate::stats::Grid;

    #[test]
    fn a_logarithmic_scale_starts_above_nothing() {
        let mut grid = Grid::new(1, 2);
        grid.push(0, 0, 0.0);
        grid.push(0, 1, 8.0);
        let figure = Figure::new("x", "x", Across::numbers("n", &[1, 10]))
            .in_unit("ns", Scale::Logarithmic)
            .with(&["a"], &grid);
        let bounds = Bounds::of(&figure).expect("two points");
        assert!(bounds.y.0 > 0.0 && bounds.y.0 < 8.0 && bounds.y.1 > 8.0);
    }

    #[test]
    fn names_stand_where_something_lies() {
        let across = Across::names(&["a", "b"]);
        let ticks = [-0.5, 0.0, 0.5, 1.0, 1.5].map(|value| tick(&across, value));
        assert_eq!(ticks, ["", "a", "", "b", ""].map(str::to_owned));
    }
}
