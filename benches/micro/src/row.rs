//! What is measured: names, units, targets.

use crate::rows::{channels, runtimes, sockets, tasks, timers, wakes};
use crate::subject::Subject;

/// One line of the table.
pub struct Row {
    /// As on the command line.
    pub name: &'static str,
    pub text: &'static str,
    pub unit: &'static str,
    /// So many operations take some tens of milliseconds.
    pub operations: u64,
    /// What the best runtime that we know needs, in the unit, on two cores of a Sapphire Rapids
    /// under KVM.
    pub target: Option<f64>,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    SpawnJoin,
    SpawnOne,
    Yield,
    LocalWake,
    BusyWake,
    BusyDelay,
    SleepingWake,
    Arm { standing: usize },
    Lateness,
    FiredCpu,
    ChannelPingPong,
    ChannelStream,
    ChannelCalls,
    Build,
    CounterRead,
    PairRoundTrip { pairs: u64 },
}

/// In the order of the table.
pub static ALL: &[Row] = &[
    row("spawn-join", "spawn and join, batches of 1000", "ns", 400_000, 31.0, What::SpawnJoin),
    row("spawn-one", "spawn one task and await it", "ns", 400_000, 31.0, What::SpawnOne),
    row("yield", "yield among 100 tasks", "ns", 1_000_000, 26.0, What::Yield),
    row("local-wake", "wake round trip of two tasks", "ns", 400_000, 57.0, What::LocalWake),
    row("busy-wake", "wake from another thread, shard busy", "ns", 200_000, 143.0, What::BusyWake),
    row(
        "busy-delay",
        "the same: polls until served, 99.9 %",
        "polls",
        200_000,
        64.0,
        What::BusyDelay,
    ),
    row("sleeping-wake", "the same, shard asleep", "µs", 2_000, 22.0, What::SleepingWake),
    row("channel", "mpsc ping-pong, a message", "ns", 400_000, 30.0, What::ChannelPingPong),
    untargeted("channel-stream", "mpsc one way, a message", "ns", 400_000, What::ChannelStream),
    untargeted("channel-call", "mpsc and oneshot, a call", "ns", 200_000, What::ChannelCalls),
    row("arm", "arm and cancel a timer", "ns", 400_000, 63.0, What::Arm { standing: 0 }),
    row("arm-10000", "the same, 10000 standing", "ns", 400_000, 106.0, STANDING),
    row("lateness", "a fired timer comes late, mean", "µs", 20_000, 150.0, What::Lateness),
    row("fired-cpu", "CPU of a fired timer", "µs", 20_000, 1.5, What::FiredCpu),
    untargeted("counter", "read of an eventfd", "ns", 50_000, What::CounterRead),
    row("pair", "round trip over a socket pair", "µs", 5_000, 6.7, PAIR),
    row("pair-64", "the same, 64 pairs at once", "µs", 10_000, 3.9, PAIRS),
    row("build", "runtime built, used and dropped", "µs", 200, 60.0, What::Build),
];

const STANDING: What = What::Arm { standing: 10_000 };
const PAIR: What = What::PairRoundTrip { pairs: 1 };
const PAIRS: What = What::PairRoundTrip { pairs: 64 };

const fn row(
    name: &'static str,
    text: &'static str,
    unit: &'static str,
    operations: u64,
    target: f64,
    what: What,
) -> Row {
    Row { name, text, unit, operations, target: Some(target), what }
}

const fn untargeted(
    name: &'static str,
    text: &'static str,
    unit: &'static str,
    operations: u64,
    what: What,
) -> Row {
    Row { name, text, unit, operations, target: None, what }
}

impl Row {
    /// The row of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Row> {
        ALL.iter().find(|row| row.name == name)
    }
}

/// One measurement, in the row's unit; `None` where the runtime has no such operation.
pub(crate) fn measure<R: Subject>(row: &Row, operations: u64) -> Option<f64> {
    let ns = match row.what {
        What::SpawnJoin => tasks::spawn_join::<R>(operations),
        What::SpawnOne => tasks::spawn_one::<R>(operations),
        What::Yield => tasks::yields::<R>(operations),
        What::LocalWake => wakes::local::<R>(operations),
        What::BusyWake => wakes::busy::<R>(operations).ns,
        What::BusyDelay => return Some(wakes::busy::<R>(operations).late_polls as f64),
        What::SleepingWake => wakes::sleeping::<R>(operations),
        What::Arm { standing } => timers::arm_and_cancel::<R>(operations, standing),
        What::Lateness => timers::fired::<R>(operations).late_ns,
        What::FiredCpu => timers::fired::<R>(operations).cpu_ns,
        What::ChannelPingPong => channels::ping_pong::<R>(operations),
        What::ChannelStream => channels::one_way::<R>(operations),
        What::ChannelCalls => channels::calls::<R>(operations),
        What::Build => runtimes::build::<R>(operations),
        What::CounterRead => sockets::counter::<R>(operations)?,
        What::PairRoundTrip { pairs } => sockets::round_trips::<R>(operations, pairs),
    };
    Some(if row.unit == "µs" { ns / 1e3 } else { ns })
}
