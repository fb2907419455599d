//! The moment at which something happens in a simulated network.

use std::time::Duration;

use super::dice::Dice;
use super::faults::Faults;

/// Now, and what is drawn from.
pub(super) struct Moment<'a> {
    pub(super) now: Duration,
    pub(super) dice: &'a mut Dice,
    pub(super) faults: &'a Faults,
}

impl Moment<'_> {
    /// How long something is on its way.
    pub(super) fn latency(&mut self) -> Duration {
        let Faults { latency_min, latency_max, .. } = *self.faults;
        let range = (latency_max - latency_min).as_nanos() as u64;
        latency_min + Duration::from_nanos(self.dice.below(range.saturating_add(1)))
    }
}
