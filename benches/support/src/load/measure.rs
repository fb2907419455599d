//! One measurement, whatever the load: warm up, then count for a while.

use std::io;
use std::time::Duration;

use super::Plan;
use crate::figures::Sample;
use crate::histogram::Histogram;
use crate::memory::Memory;
use crate::process::{Clock, CpuReading, own_cpu_ns};

/// What a load counts.
pub(super) struct Tally {
    pub(super) clock: Clock,
    /// The clock, as read at the start of this turn.
    pub(super) now_ns: u64,
    /// Time spent on spinning, which is no cost of any request.
    pub(super) spun_ns: u64,
    pub(super) requests: u64,
    /// How long requests took.
    pub(super) histogram: Histogram,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            clock: Clock::start(),
            now_ns: 0,
            spun_ns: 0,
            requests: 0,
            histogram: Histogram::default(),
        }
    }
}

/// A load that is connected.
pub(super) trait Generator {
    fn tally(&mut self) -> &mut Tally;

    /// Sends what is to be sent, waits for answers, takes them, and reads the clock.
    fn turn(&mut self) -> io::Result<()>;
}

pub(super) fn measure(plan: &Plan, generator: &mut impl Generator) -> io::Result<Sample> {
    generator.tally().clock = Clock::start();
    run_until(generator, plan.warm_up)?;

    let pids: Vec<u32> = plan.servers.iter().map(|server| server.pid).collect();
    let tally = generator.tally();
    tally.histogram.clear();
    let requests_before = tally.requests;
    let server_before = CpuReading::of_all(&pids)?;
    let load_before_ns = own_cpu_ns().saturating_sub(tally.spun_ns);
    let start_ns = tally.clock.now_ns();
    run_until(generator, Duration::from_nanos(start_ns) + plan.window)?;
    let tally = generator.tally();
    let window_ns = tally.clock.now_ns() - start_ns;
    let load_after_ns = own_cpu_ns().saturating_sub(tally.spun_ns);
    let server = CpuReading::of_all(&pids)?.since(&server_before);

    Ok(Sample {
        requests: tally.requests - requests_before,
        window_ns,
        server_cpu_ns: server.ran_ns,
        server_waited_ns: server.waited_ns,
        server_switches: server.slices,
        load_cpu_ns: load_after_ns.saturating_sub(load_before_ns),
        p50_ns: tally.histogram.quantile(0.5),
        p99_ns: tally.histogram.quantile(0.99),
        p999_ns: tally.histogram.quantile(0.999),
        memory: Memory::of_all(&pids)?,
    })
}

fn run_until(generator: &mut impl Generator, end: Duration) -> io::Result<()> {
    let end_ns = end.as_nanos() as u64;
    while generator.tally().now_ns < end_ns {
        generator.turn()?;
    }
    Ok(())
}
