//! What a simulation draws from.

/// A source of numbers that are all given by the seed (splitmix64, by Steele, Lea and Flood).
///
/// Our own, because a seed must mean the same run with every version of every dependency.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below this bound, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: for the bounds that occur here all but even.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True once in so many times; never for zero.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        times != 0 && self.below(times) == 0
    }

    /// Brings the things into an order of their own.
    pub(crate) fn shuffle<T>(&mut self, things: &mut [T]) {
        for at in (1..things.len()).rev() {
            things.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

/// Spreads a word over all bits, so that words that differ in one bit differ in half of them.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_numbers_that_splitmix64_is_known_for() {
        let mut dice = Dice::new(1_234_567);
        let first: Vec<_> = std::iter::repeat_with(|| dice.next()).take(3).collect();
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn every_number_below_a_bound_is_drawn_and_none_beyond() {
        let mut dice = Dice::new(0);
        let mut drawn = [0; 6];
        for _ in 0..6000 {
            drawn[dice.below(6) as usize] += 1;
        }
        assert!(drawn.iter().all(|count| (800..1200).contains(count)), "{drawn:?}");
        assert_eq!(dice.below(1), 0);
        assert!(!dice.one_in(0) && dice.one_in(1));
    }

    #[test]
    fn a_shuffle_loses_nothing() {
        let mut things: Vec<_> = (0..100).collect();
        Dice::new(7).shuffle(&mut things);
        assert_ne!(things, (0..100).collect::<Vec<_>>());
        things.sort_unstable();
        assert_eq!(things, (0..100).collect::<Vec<_>>());
    }
}
