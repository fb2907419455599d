//! The common workload on the real kernel: both ends on annulus, and clients of the standard
//! library. `ANNULUS_SEED` replays one seed; the threads of a real kernel do not come in the same
//! order, but the same things happen.

use std::time::Duration;

use annulus::Driver;

use common::process::open_descriptors;
use common::steps::eventually_blocking;
use common::{each_driver, slower};
use workload::ledger::{Allowed, Tally};
use workload::seeds::each_seed;
use workload::{Workload, settings};

mod common;
mod workload;

each_driver! {
    #[deadline_s(600)]
    #[alone]
    fn random_operations_lose_and_mix_no_byte(driver: Driver) {
        each_seed("torture::random_operations_lose_and_mix_no_byte", driver, |seed| {
            let workload = Workload {
                seed,
                connections: 400,
                at_once: 24,
                bytes_max: 300_000,
                allowed: Allowed { refused: seed % 3 != 0, reset: false },
                time_max: TIME_MAX * slower(),
            };
            leaves_nothing(driver, seed, async || workload.run().await).check();
        });
    }

    #[deadline_s(600)]
    #[alone]
    fn random_operations_beside_plain_clients_lose_and_mix_no_byte(driver: Driver) {
        let test = "torture::random_operations_beside_plain_clients_lose_and_mix_no_byte";
        each_seed(test, driver, |seed| {
            let workload = Workload {
                seed,
                connections: 800,
                at_once: 16,
                bytes_max: 80_000,
                allowed: Allowed::default(),
                time_max: TIME_MAX * slower(),
            };
            let run = async || {
                let clients = async |address, ledger: &_| {
                    workload.plain_clients(address, ledger).await;
                };
                workload.run_with(clients).await
            };
            leaves_nothing(driver, seed, run).check();
        });
    }
}

/// Runs the work on a runtime of its own, which leaves no descriptor.
fn leaves_nothing(driver: Driver, seed: u64, work: impl AsyncFnOnce() -> Tally) -> Tally {
    // What belongs to the process, and not to the runtime, is there from the first on.
    drop(common::runtime(driver));
    let before = open_descriptors();
    let runtime = settings(seed).driver(driver).build().expect("build a runtime");
    let tally = runtime.block_on(work());
    drop(runtime);
    println!("{tally}");
    eventually_blocking("all descriptors are closed", || open_descriptors() <= before);
    tally
}

/// Past this a run of one seed hangs.
const TIME_MAX: Duration = Duration::from_secs(100);
