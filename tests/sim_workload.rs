//! The common workload in simulated worlds: many seeds, each a run that comes back byte for byte.
//!
//! `ANNULUS_SIM_SEED` runs one seed only.

use std::time::Duration;

use annulus::Driver;
use annulus::sim::{self, Faults, Report, Simulation};

use workload::Workload;
use workload::ledger::{Allowed, Tally};

#[allow(unused_imports, unused_macros, reason = "each simulation is of one driver")]
mod common;
mod workload;

/// What a world of this seed has: one to three shards, and a workload that fits it.
fn workload(simulation: Simulation, faults: Faults, allowed: Allowed) -> (Tally, Report) {
    let seed = simulation.seed();
    let workload = Workload {
        seed,
        connections: 12 + (seed % 5) as usize * 6,
        at_once: 1 + (seed % 7) as usize,
        bytes_max: [300, 20_000, 100_000][(seed % 3) as usize],
        allowed,
        time_max: TIME_MAX,
    };
    let simulation = simulation.shards(1 + (seed % 3) as u32).faults(faults);
    let (tally, report) = simulation.run_and_report(|| workload.run());
    tally.check();
    assert_eq!(report.left_open, 0, "sockets are left: {report:?}");
    (tally, report)
}

fn ordinary(driver: Driver) {
    sim::each_seed(0..SEEDS, |simulation| {
        let allowed = Allowed { refused: simulation.seed() % 2 == 0, reset: false };
        workload(simulation.driver(driver), Faults::ordinary(), allowed);
    });
}

fn harsh(driver: Driver) {
    sim::each_seed(0..SEEDS, |simulation| {
        let allowed = Allowed { refused: true, reset: true };
        workload(simulation.driver(driver), Faults::harsh(), allowed);
    });
}

#[test]
fn on_epoll_an_ordinary_network_costs_no_byte() {
    ordinary(Driver::Epoll);
}

#[test]
fn on_uring_an_ordinary_network_costs_no_byte() {
    ordinary(Driver::Uring);
}

#[test]
fn on_epoll_a_harsh_network_costs_no_byte_before_its_error() {
    harsh(Driver::Epoll);
}

#[test]
fn on_uring_a_harsh_network_costs_no_byte_before_its_error() {
    harsh(Driver::Uring);
}

#[test]
fn one_seed_is_one_run() {
    for seed in 0..6 {
        let (driver, faults, reset) = match seed % 2 {
            0 => (Driver::Epoll, Faults::harsh(), true),
            _ => (Driver::Uring, Faults::ordinary(), false),
        };
        let run = || {
            let allowed = Allowed { refused: true, reset };
            workload(Simulation::new(seed).driver(driver), faults, allowed)
        };
        let ((first, first_report), (second, second_report)) = (run(), run());
        assert_eq!(first.counts, second.counts);
        assert_eq!(first.bytes, second.bytes);
        assert_eq!(first_report.fingerprint, second_report.fingerprint);
    }
}

const SEEDS: u64 = 15;
/// Of simulated time: past this a run hangs.
const TIME_MAX: Duration = Duration::from_secs(60);
