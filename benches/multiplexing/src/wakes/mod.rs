//! What it takes to wake a thread, and to tell one that is awake.
//!
//! Two threads on a processor each. Asleep: the ringer waits until the other has certainly gone to
//! sleep; what counts is the time from just before the call to the sleeper's first instruction
//! after his own, and how long the call took the ringer. Busy: the other runs, in user space, and
//! looks at the bell when the ringer has done.

mod bell;

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::{io, thread};

use bench_support::children::Failure;
use bench_support::figures::median;
use bench_support::process::{Clock, allowed_cpus, pin};

use crate::figure::{Across, Figure, Scale};
use crate::options::Effort;
use crate::stats::Grid;
use crate::sys::Usage;
use bell::{Bell, Ringer, Rope, TOGETHER, Way};

/// How long the sleeper has slept when it is woken: some have just gone to sleep, while their
/// processor may still look out for work; after 2 ms it has idled for long.
const NAP_NS: u64 = 100_000;
const SLEEP_NS: u64 = 2_000_000;

/// Of the waits of a measurement so many must have been sleeps.
const SLEEPS_MIN: f64 = 0.9;

/// A step of the other side takes microseconds; past this its thread has ended.
const STEP_LIMIT_NS: u64 = 10_000_000_000;

pub(crate) fn measure(effort: Effort) -> Result<Vec<Figure>, Failure> {
    let cpus = allowed_cpus()?;
    let &[ringer, sleeper, ..] = &cpus[..] else {
        println!("notice: wakes are left out: they need two processors");
        return Ok(vec![]);
    };
    let wakes = effort.choose(50, 200);
    let names = Way::ALL.map(|(name, _)| name);
    let (mut latency, mut costs) = (Grid::new(2, names.len()), Grid::new(5, names.len()));
    pin(&[ringer])?;
    for _ in 0..effort.choose(2, 15) {
        for (place, &(name, way)) in Way::ALL.iter().enumerate() {
            for (series, (sleep_ns, wakes)) in
                [(NAP_NS, wakes), (SLEEP_NS, wakes / 4)].into_iter().enumerate()
            {
                let asleep = Meeting::hold(way, sleeper, |meeting, ringer| {
                    asleep(meeting, ringer, sleep_ns, wakes)
                })?;
                match asleep {
                    Some(Asleep { latency_ns, call_ns }) => {
                        latency.push(series, place, latency_ns / 1e3);
                        costs.push(series, place, call_ns);
                    }
                    None => println!("notice: {name}: a round without sleep is left out"),
                }
            }
            for (series, together) in [(2, 1), (4, TOGETHER)] {
                let rounds = wakes * 4 / together + 1;
                let (ring_ns, take_ns) = Meeting::hold(way, sleeper, |meeting, ringer| {
                    busy(meeting, ringer, rounds, together)
                })?;
                if together == 1 {
                    costs.push(series, place, ring_ns);
                    costs.push(series + 1, place, take_ns);
                } else {
                    costs.push(series, place, take_ns);
                }
            }
        }
    }
    pin(&cpus)?;
    let series = [
        "call, other naps",
        "call, other sleeps",
        "call, other is busy",
        "busy one takes a wake",
        "busy one takes 256, each",
    ];
    let across = || Across::names(&names);
    Ok(vec![
        Figure::new(
            "wakes-latency",
            "From the call to the woken thread's first instruction",
            across(),
        )
        .in_unit("µs", Scale::Linear)
        .with(&["asleep for 0.1 ms", "asleep for 2 ms"], &latency),
        Figure::new("wakes-cost", "What a wake costs the two threads", across())
            .in_unit("ns a wake", Scale::Logarithmic)
            .with(&series, &costs),
    ])
}

/// What the two threads tell each other, by spinning: none of it is measured.
#[derive(Default)]
struct Shared {
    /// The step that the ringer allows, and the one that the other has reached.
    allowed: AtomicU64,
    reached: AtomicU64,
    /// Of the other side, at its last step.
    woken_ns: AtomicU64,
    took_ns: AtomicU64,
    taken: AtomicU64,
    sleeps: AtomicU64,
}

struct Meeting<'a> {
    shared: &'a Shared,
    clock: Clock,
    step: u64,
}

/// What the other side is told to do.
const WAIT: u64 = 1;
const TAKE: u64 = 2;
const END: u64 = 3;
/// A step is its number, and what to do in its lowest bits.
const DOING_BITS: u32 = 2;

impl Meeting<'_> {
    /// Brings the two threads together for one measurement.
    fn hold<T>(
        way: Way,
        cpu: usize,
        work: impl FnOnce(&mut Meeting<'_>, &mut Ringer) -> io::Result<T>,
    ) -> io::Result<T> {
        let (shared, clock) = (Shared::default(), Clock::start());
        thread::scope(|scope| {
            let (sender, made) = mpsc::channel();
            let shared = &shared;
            let other = scope.spawn(move || other_side(way, cpu, shared, clock, &sender));
            let mut meeting = Meeting { shared, clock, step: 0 };
            let result = match made.recv() {
                Ok(rope) => Ringer::new(rope).and_then(|mut ringer| {
                    let result = work(&mut meeting, &mut ringer);
                    result.and_then(|value| ringer.end().map(|()| value))
                }),
                Err(_) => Err(io::Error::other("the other thread could not start")),
            };
            meeting.allow(END);
            other.join().expect("the other thread panicked").and(result)
        })
    }

    /// Lets the other side go on; returns at once.
    fn allow(&mut self, doing: u64) {
        self.step += 1;
        let step = self.step << DOING_BITS | doing;
        self.shared.allowed.store(step, Ordering::Release); // Pairs with `next_step`.
    }

    /// Spins until the other side has done its step.
    fn join(&self) -> io::Result<()> {
        let start_ns = self.clock.now_ns();
        // Acquire: pairs with the release at the end of a step.
        while self.shared.reached.load(Ordering::Acquire) < self.step {
            if self.clock.now_ns() - start_ns > STEP_LIMIT_NS {
                return Err(io::Error::other("the other thread does not answer"));
            }
            spin_loop();
        }
        Ok(())
    }

    /// Whether the last step took what was rung. No assertion: the other thread would hang.
    fn was_taken(&self, rung: u64) -> io::Result<()> {
        match self.shared.taken.load(Ordering::Relaxed) {
            taken if taken == rung => Ok(()),
            taken => Err(io::Error::other(format!("of {rung} wakes {taken} were taken"))),
        }
    }
}

fn other_side(
    way: Way,
    cpu: usize,
    shared: &Shared,
    clock: Clock,
    sender: &mpsc::Sender<Rope>,
) -> io::Result<()> {
    pin(&[cpu])?;
    let mut bell = Bell::new(way)?;
    if sender.send(bell.rope()).is_err() {
        return bell.end();
    }
    let mut step = 0;
    loop {
        step += 1;
        match next_step(shared, step) {
            WAIT => {
                let before = Usage::of_this_thread()?.sleeps;
                let mut taken = bell.wait()?;
                shared.woken_ns.store(clock.now_ns(), Ordering::Relaxed);
                // What is found without a sleep is not what was meant; it is told by the count.
                while taken == 0 {
                    taken = bell.wait()?;
                }
                shared.taken.store(taken, Ordering::Relaxed);
                let sleeps = Usage::of_this_thread()?.sleeps - before;
                shared.sleeps.store(sleeps, Ordering::Relaxed);
            }
            TAKE => {
                let start_ns = clock.now_ns();
                let taken = bell.take()?;
                shared.took_ns.store(clock.now_ns() - start_ns, Ordering::Relaxed);
                shared.taken.store(taken, Ordering::Relaxed);
            }
            _ => return bell.end(),
        }
        shared.reached.store(step, Ordering::Release); // Pairs with the acquire in `join`.
    }
}

/// Spins until this step is allowed; returns what is to be done.
fn next_step(shared: &Shared, step: u64) -> u64 {
    loop {
        let allowed = shared.allowed.load(Ordering::Acquire); // Pairs with the release in `allow`.
        if allowed >> DOING_BITS >= step {
            return allowed & ((1 << DOING_BITS) - 1);
        }
        spin_loop();
    }
}

struct Asleep {
    latency_ns: f64,
    call_ns: f64,
}

/// Medians over so many wakes; `None` where the other did not sleep often enough.
fn asleep(
    meeting: &mut Meeting<'_>,
    ringer: &mut Ringer,
    sleep_ns: u64,
    wakes: usize,
) -> io::Result<Option<Asleep>> {
    let (mut latencies, mut calls, mut sleeps) = (vec![], vec![], 0);
    for _ in 0..wakes {
        meeting.allow(WAIT);
        let clock = meeting.clock;
        let begun_ns = clock.now_ns();
        while clock.now_ns() - begun_ns < sleep_ns {
            spin_loop();
        }
        let before_ns = clock.now_ns();
        ringer.ring()?;
        let after_ns = clock.now_ns();
        meeting.join()?;
        let shared = meeting.shared;
        meeting.was_taken(1)?;
        if shared.sleeps.load(Ordering::Relaxed) > 0 {
            sleeps += 1;
            let woken_ns = shared.woken_ns.load(Ordering::Relaxed);
            latencies.push(woken_ns.saturating_sub(before_ns) as f64);
            calls.push((after_ns - before_ns) as f64);
        }
    }
    if f64::from(sleeps) < SLEEPS_MIN * wakes as f64 {
        return Ok(None);
    }
    let medians = median(latencies.into_iter()).zip(median(calls.into_iter()));
    Ok(medians.map(|(latency_ns, call_ns)| Asleep { latency_ns, call_ns }))
}

/// Nanoseconds to ring, and to take, each by wake; so many are taken together.
fn busy(
    meeting: &mut Meeting<'_>,
    ringer: &mut Ringer,
    rounds: usize,
    together: usize,
) -> io::Result<(f64, f64)> {
    let (mut rings, mut takes) = (vec![], vec![]);
    for _ in 0..rounds {
        let before_ns = meeting.clock.now_ns();
        for _ in 0..together {
            ringer.ring()?;
        }
        let ring_ns = meeting.clock.now_ns() - before_ns;
        meeting.allow(TAKE);
        meeting.join()?;
        meeting.was_taken(together as u64)?;
        rings.push(ring_ns as f64 / together as f64);
        takes.push(meeting.shared.took_ns.load(Ordering::Relaxed) as f64 / together as f64);
    }
    let medians = median(rings.into_iter()).zip(median(takes.into_iter()));
    medians.ok_or_else(|| io::Error::other("no round was measured"))
}
