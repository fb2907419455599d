//! The arithmetic of what was measured: medians with their quartiles, over interleaved rounds.

/// The middle half of the measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// `None` where nothing was measured.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            low: quantile(&sorted, 0.25)?,
            median: quantile(&sorted, 0.5)?,
            high: quantile(&sorted, 0.75)?,
        })
    }
}

/// Between two neighbours the value lies on the line that joins them.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = part * last as f64;
    let below = sorted[place.floor() as usize];
    let above = sorted[place.ceil() as usize];
    Some(below + (above - below) * place.fract())
}

/// What was measured, by series, place on the x axis and round.
pub(crate) struct Grid {
    cells: Vec<Vec<Vec<f64>>>,
}

impl Grid {
    pub(crate) fn new(series: usize, places: usize) -> Self {
        Self { cells: vec![vec![vec![]; places]; series] }
    }

    pub(crate) fn push(&mut self, series: usize, place: usize, value: f64) {
        self.cells[series][place].push(value);
    }

    pub(crate) fn spread(&self, series: usize, place: usize) -> Option<Spread> {
        Spread::of(&self.cells[series][place])
    }
}

/// The numbers below `count`, each once, in an order that no prefetcher foresees and every run
/// repeats.
pub(crate) fn shuffled(count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..count).rev() {
        // Knuth's MMIX generator; its upper half is the random one.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (state >> 33) as usize % (last + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::{Grid, Spread, shuffled};

    #[test]
    fn quartiles_lie_between_neighbours() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(spread, Some(Spread { low: 1.75, median: 2.5, high: 3.25 }));
    }

    #[test]
    fn one_measurement_is_its_own_spread() {
        assert_eq!(Spread::of(&[7.0]), Some(Spread { low: 7.0, median: 7.0, high: 7.0 }));
    }

    #[test]
    fn nothing_measured_has_no_spread() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Grid::new(1, 1).spread(0, 0), None);
    }

    #[test]
    fn a_cell_holds_what_was_put_there() {
        let mut grid = Grid::new(2, 2);
        [1.0, 9.0, 2.0].iter().for_each(|&value| grid.push(1, 0, value));
        assert_eq!(grid.spread(1, 0).map(|spread| spread.median), Some(2.0));
        assert_eq!(grid.spread(0, 1), None);
    }

    #[test]
    fn a_shuffle_has_each_number_once() {
        let mut order = shuffled(1000);
        assert_ne!(order, (0..1000).collect::<Vec<u32>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<u32>>());
    }
}
