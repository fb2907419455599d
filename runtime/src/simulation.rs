//! Programs in a simulated world, which a seed gives.
//!
//! A [`Simulation`] runs a program, with all of its shards, on this crate's own executor, timers,
//! drivers and sockets, but with a network in memory, a clock that costs no time, and an order of
//! things that is drawn from a seed: which shard runs, when bytes arrive and in which pieces, which
//! connection is refused or reset, what the kernel tells first. One seed is one run, on every
//! machine: a failure can be looked at as often as it takes. [`each_seed`] tries many.
//!
//! ```
//! use annulus_runtime::simulation;
//! use annulus_runtime::time::{Duration, Instant, sleep};
//!
//! simulation::each_seed(0..10, |simulation| {
//!     let passed = simulation.shards(2).run(|| async {
//!         let start = Instant::now();
//!         sleep(Duration::from_secs(3600)).await;
//!         start.elapsed()
//!     });
//!     assert_eq!(passed, Duration::from_secs(3600)); // at once
//! });
//! ```
//!
//! # What is simulated
//!
//! - **TCP**: listeners, listener groups and streams, with everything they can do. Any address can
//!   be bound, such as those of several hosts; who may have a port beside whom is as on Linux. Two
//!   things that look alike are told apart as TCP does: a peer that has finished, one that is gone,
//!   one that was reset.
//! - **Time**: [`time`](crate::time) runs by one clock for all shards, which moves only when
//!   nothing can happen before the next moment at which something is due.
//! - **Shards** take turns, one at a time. **Blocking work** is done where it is asked for.
//! - **Waiting**: when nothing can ever happen again, though the program has not ended, it hangs:
//!   the run panics, and says how things stand.
//!
//! Not simulated: UDP sockets, which cannot be bound here; Unix sockets, pipes and files, which are
//! real and answer at once; the names of hosts, which the real resolver looks up; signals; threads
//! that the program starts itself, and everything else that waits outside of the runtime. What is
//! read from the system's clock, and the order of a `HashMap`, differ from run to run: use
//! [`time::Instant`](crate::time::Instant), a `BTreeMap`, and [`random`].
//!
//! With `ANNULUS_SIM_TRACE` in the environment each thing that happens is a line on standard error.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::{env, thread};

use crate::config::{Config, Driver};
use crate::crew::Crew;
use crate::executor::Hooks;
use crate::notice::notify;
use crate::runtime::Runtime;
use crate::sim::{Dice, World};
pub use crate::sim::{Faults, Report};

/// A run of a program in a world of its own, given by a seed.
///
/// # Examples
///
/// ```
/// use annulus_runtime::simulation::{Faults, Simulation};
/// use annulus_runtime::{Shard, on_each_shard};
///
/// let run = || {
///     let simulation = Simulation::new(7).shards(3).faults(Faults::harsh());
///     simulation.run_and_report(|| async {
///         let squares = on_each_shard(async |shard: Shard| shard.index().pow(2)).await;
///         squares.into_iter().map(Result::unwrap).sum::<usize>()
///     })
/// };
/// let (sum, report) = run();
/// assert_eq!(sum, 5);
/// assert_eq!(run().1, report); // the same in every way
/// ```
#[derive(Clone, Debug)]
#[must_use = "a simulation does nothing until `run` is called"]
pub struct Simulation {
    seed: u64,
    shards: u32,
    driver: Driver,
    faults: Faults,
    turns_max: u64,
}

/// Some minutes of a real clock.
const TURNS_MAX: u64 = 10_000_000;

impl Simulation {
    /// The world of this seed, with one shard and [ordinary faults](Faults::ordinary).
    pub fn new(seed: u64) -> Simulation {
        let (driver, faults) = (Driver::Auto, Faults::ordinary());
        Simulation { seed, shards: 1, driver, faults, turns_max: TURNS_MAX }
    }

    /// How many shards the program has. Default 1.
    pub fn shards(mut self, shards: u32) -> Simulation {
        self.shards = shards;
        self
    }

    /// The driver: its own code, on a kernel that is simulated, whatever the machine has. The
    /// environment changes nothing. Default: drawn from the seed.
    pub fn driver(mut self, driver: Driver) -> Simulation {
        self.driver = driver;
        self
    }

    /// What may go wrong, and how often.
    pub fn faults(mut self, faults: Faults) -> Simulation {
        self.faults = faults;
        self
    }

    /// How many turns of shards a run may have: one that takes more does not end, and is a failure.
    /// Default ten million, which are minutes.
    ///
    /// # Panics
    ///
    /// If that is zero.
    pub fn turns_max(mut self, turns: u64) -> Simulation {
        assert!(turns > 0, "a run has a turn at least");
        self.turns_max = turns;
        self
    }

    /// Runs the program until its future is ready, and ends its runtime.
    ///
    /// ```
    /// use annulus_runtime::simulation::{self, Simulation};
    ///
    /// let drawn = Simulation::new(1).run(|| async { simulation::random(6) });
    /// assert!(drawn < 6);
    /// ```
    ///
    /// # Panics
    ///
    /// With the program, behind a line that says which seed it was; if the program hangs, or has
    /// more turns than it [may have](Simulation::turns_max); within a runtime or a simulation.
    #[track_caller]
    pub fn run<F, Fut>(self, program: F) -> Fut::Output
    where
        F: FnOnce() -> Fut,
        Fut: Future,
    {
        self.run_and_report(program).0
    }

    /// As [`run`](Simulation::run), and tells what has happened.
    ///
    /// # Panics
    ///
    /// As [`run`](Simulation::run).
    #[track_caller]
    pub fn run_and_report<F, Fut>(self, program: F) -> (Fut::Output, Report)
    where
        F: FnOnce() -> Fut,
        Fut: Future,
    {
        let world = World::new(self.seed, self.faults, self.turns_max);
        let config = self.config(&world);
        let taken = world.expect(0).take();
        let outcome = live(config, program);
        drop(taken);
        match (outcome, world.standstill()) {
            (Ok(output), None) => (output, world.report()),
            (Err(payload), _) => {
                self.tell();
                resume_unwind(payload);
            }
            (Ok(_), Some(text)) => {
                self.tell();
                panic!("{text}");
            }
        }
    }

    fn config(&self, world: &World) -> Config {
        let driver = match self.driver {
            Driver::Auto if world.roll(|dice| dice.one_in(2)) => Driver::Epoll,
            Driver::Auto => Driver::Uring,
            chosen => chosen,
        };
        let config =
            Config { shards: Some(self.shards), driver, pin: Some(false), ..Config::default() };
        let tight = world.faults().tight_limits;
        world.roll(|dice| if dice.one_in(tight) { tightened(config, dice) } else { config })
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Says how to see this run again, once.
    fn tell(&self) {
        if WITHIN_LOOP.get() {
            // The loop over seeds says it, of whatever went wrong.
            return;
        }
        tell(self.seed);
    }
}

/// The variable of the environment that has [`each_seed`] run one seed only.
const SEED_VARIABLE: &str = "ANNULUS_SIM_SEED";

thread_local! {
    /// This thread is within [`each_seed`].
    static WITHIN_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// Has each seed try the program, or whatever the closure does with the simulation it is given.
///
/// With `ANNULUS_SIM_SEED` in the environment it is that seed only.
///
/// ```
/// use annulus_runtime::{simulation, spawn};
///
/// simulation::each_seed(0..20, |simulation| {
///     let sum = simulation.run(|| async { spawn(async { 1 + 1 }).await.unwrap() });
///     assert_eq!(sum, 2);
/// });
/// ```
///
/// # Panics
///
/// With the closure, behind a line that says which seed it was and how to run it again. If
/// `ANNULUS_SIM_SEED` is no number. If there is no seed to try.
#[track_caller]
pub fn each_seed(seeds: Range<u64>, mut try_one: impl FnMut(Simulation)) {
    let only = env::var_os(SEED_VARIABLE).map(|text| {
        text.to_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            panic!("{SEED_VARIABLE}={text:?} cannot be used: expected a whole number")
        })
    });
    let mut try_seed = |seed| {
        let before = WITHIN_LOOP.replace(true);
        let tried = catch_unwind(AssertUnwindSafe(|| try_one(Simulation::new(seed))));
        WITHIN_LOOP.set(before);
        if let Err(payload) = tried {
            tell(seed);
            resume_unwind(payload);
        }
    };
    if let Some(seed) = only {
        return try_seed(seed);
    }
    assert!(!seeds.is_empty(), "of the seeds {seeds:?} there is none: nothing would be tried");
    seeds.for_each(try_seed);
}

fn tell(seed: u64) {
    let thread = thread::current();
    // The test harness calls the thread of a test by the name of the test.
    let again = match thread.name() {
        Some(test) if test != "main" => {
            format!("{SEED_VARIABLE}={seed} cargo test --all-features {test} -- --exact")
        }
        _ => format!("{SEED_VARIABLE}={seed} {}", env::args().collect::<Vec<_>>().join(" ")),
    };
    notify(format_args!("seed {seed} has failed; to see it again: {again}"));
}

/// The seed of the simulation that this code runs in.
///
/// ```
/// use annulus_runtime::simulation::{Simulation, seed};
///
/// assert_eq!(seed(), None);
/// assert_eq!(Simulation::new(9).run(|| async { seed() }), Some(9));
/// ```
#[must_use]
pub fn seed() -> Option<u64> {
    Some(World::current()?.seed())
}

/// A number below this bound, drawn from the seed: the same in each run of it.
///
/// ```
/// use annulus_runtime::simulation::{Simulation, random};
///
/// let draw = || Simulation::new(3).run(|| async { [random(1000), random(1000)] });
/// assert_eq!(draw(), draw());
/// ```
///
/// # Panics
///
/// Outside of a simulation, and if the bound is zero.
#[must_use]
#[track_caller]
pub fn random(bound: u64) -> u64 {
    assert!(bound > 0, "no number is below zero");
    let world = World::current().expect("random was called outside of a simulation");
    world.roll(|dice| dice.below(bound))
}

/// Has something go into the [fingerprint](Report::fingerprint) of the simulation that this code
/// runs in. Outside of one it does nothing.
///
/// ```
/// use annulus_runtime::simulation::{Simulation, observe};
///
/// let run = |answer| Simulation::new(3).run_and_report(|| async { observe(answer) }).1;
/// let print = |answer| run(answer).fingerprint;
/// assert_eq!(print(1), print(1));
/// assert_ne!(print(1), print(2));
/// ```
pub fn observe(what: u64) {
    if let Some(world) = World::current() {
        world.observe(what);
    }
}

/// What makes for other ways through the runtime than its defaults do.
fn tightened(config: Config, dice: &mut Dice) -> Config {
    let mut pick = |choices: &[u32]| choices[dice.below(choices.len() as u64) as usize];
    let ring_entries = pick(&[1, 2, 8, 256]);
    Config {
        event_interval: pick(&[1, 2, 7, 64]),
        task_budget: pick(&[1, 2, 16, 128]),
        recv_pool_buffers: pick(&[1, 2, 16, 1024]),
        recv_pool_buffer_bytes: pick(&[256, 1024, 4096]),
        ring_entries,
        ring_completions: ring_entries * pick(&[2, 4, 16]),
        ..config
    }
}

/// Runs the program and ends its runtime, whatever becomes of it.
fn live<F, Fut>(config: Config, program: F) -> Result<Fut::Output, Box<dyn Any + Send>>
where
    F: FnOnce() -> Fut,
    Fut: Future,
{
    let runtime = catch_unwind(|| Runtime::with(Crew::new(config, Hooks::default(), None)))?;
    let runtime = runtime.unwrap_or_else(|error| panic!("the simulation cannot begin: {error}"));
    let run = AssertUnwindSafe(|| runtime.block_on(async { program().await }));
    let outcome = catch_unwind(run);
    let ended = catch_unwind(AssertUnwindSafe(|| drop(runtime)));
    let output = outcome?;
    ended?;
    Ok(output)
}
