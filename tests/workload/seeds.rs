//! Seeds: a fixed set and one of the clock, or the one that is to be replayed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use annulus::Driver;

use crate::common::bytes::Numbers;
use crate::common::{asked, say};

/// Runs the body with each seed. A failure is followed by the command that replays it.
pub(crate) fn each_seed(test: &str, driver: Driver, body: impl Fn(u64)) {
    let driver = if driver == Driver::Uring { "uring" } else { "epoll" };
    for seed in seeds() {
        println!("seed {seed}");
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(seed))) else { continue };
        let file = test.split_once("::").map_or(test, |(file, _)| file);
        let name = test.split_once("::").map_or("", |(_, name)| name);
        say(&format!(
            "{test} on {driver} fails with the seed {seed}; to replay it:\n    \
             ANNULUS_SEED={seed} cargo test --test {file} {name}::{driver} -- --nocapture"
        ));
        resume_unwind(panic);
    }
}

fn seeds() -> Vec<u64> {
    if let Some(seed) = asked::number("ANNULUS_SEED", 0) {
        return vec![seed];
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    let of_the_clock = since.as_millis() as u64;
    (0..FIXED).chain([of_the_clock]).collect()
}

/// The numbers that one part of the run with this seed draws; those of others are unrelated.
pub(crate) fn draws(seed: u64, part: u64) -> Numbers {
    let of_seed = Numbers(seed).below(u64::MAX);
    Numbers(Numbers(of_seed.wrapping_add(part)).below(u64::MAX))
}

/// One for each of the settings.
const FIXED: u64 = 4;
