//! The thread that looks whether shards get on. One for the process, from the first shard that is
//! watched; it sleeps while there is none.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::modules::Modules;
use super::record::Record;
use super::report::{Frame, Holder, Stall};
use super::sample::{Asker, why_no_frames};
use super::symbols;
use crate::contain::contain;
use crate::cpus;
use crate::fork::PerProcess;

/// Looks at each shard in the time of its limit: a stall is found when it has lasted for one and a
/// quarter to one and a half of it.
const LOOKS_PER_LIMIT: u32 = 4;
/// The shortest and the longest between two looks: more often costs a processor; more rarely, and
/// a stop of the whole process counts for too much.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(1);
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(250);
/// A look that comes later than after this many intervals was held up itself: by SIGSTOP, a
/// debugger, or a machine that has no processor to give. What is beyond is nobody's stall.
const LATE_INTERVALS: u32 = 2;
/// Reports of one shard in a window: enough to see a pattern, too few to fill a log.
const REPORTS_MAX: u32 = 5;
const REPORT_WINDOW: Duration = Duration::from_secs(10);

/// A forked child has no thread that looks, until it has a shard that is watched.
static WATCHDOG: PerProcess<Watchdog> = PerProcess::new(Watchdog::new);

struct Watchdog {
    state: Mutex<State>,
    /// A shard has come.
    news: Condvar,
}

struct State {
    is_running: bool,
    watched: Vec<Watched>,
}

/// What the watchdog knows of a shard.
struct Watched {
    record: Arc<Record>,
    /// What it last found, and for how long it has found it unchanged.
    number: u64,
    held: Duration,
    /// At which time to report next: the limit, then twice, four times the limit.
    report_at: Duration,
    budget: Budget,
}

/// What is to be reported.
struct Due {
    record: Arc<Record>,
    number: u64,
    held: Duration,
    holder: Holder,
    left_out: u64,
}

/// Has the shard of this record watched.
pub(super) fn add(record: &Arc<Record>) -> io::Result<()> {
    let watchdog = WATCHDOG.get();
    let mut state = watchdog.lock();
    if !state.is_running {
        let asker = Asker::install()?;
        thread::Builder::new().name("annulus-stall".into()).spawn(move || watchdog.run(asker))?;
        state.is_running = true;
    }
    state.watched.push(Watched::new(Arc::clone(record)));
    watchdog.news.notify_all();
    Ok(())
}

pub(super) fn remove(record: &Arc<Record>) {
    WATCHDOG.get().lock().watched.retain(|it| !Arc::ptr_eq(&it.record, record));
}

impl Watchdog {
    fn new() -> Watchdog {
        let state = State { is_running: false, watched: Vec::new() };
        Watchdog { state: Mutex::new(state), news: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut asker: Asker) {
        // A bound thread may have made this one.
        cpus::unbind();
        let mut state = self.lock();
        let mut looked = Instant::now();
        loop {
            let Some(interval) = state.interval() else {
                state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
                looked = Instant::now();
                continue;
            };
            let waited = self.news.wait_timeout(state, interval);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let passed = looked.elapsed().min(LATE_INTERVALS * interval);
            looked = Instant::now();
            let due = state.look(passed, looked);
            drop(state);
            for due in due {
                tell(due, &mut asker);
            }
            state = self.lock();
        }
    }
}

impl State {
    /// How long to wait between two looks. None: nobody is watched.
    fn interval(&self) -> Option<Duration> {
        let limit = self.watched.iter().map(|it| it.record.limit).min()?;
        Some((limit / LOOKS_PER_LIMIT).clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX))
    }

    fn look(&mut self, passed: Duration, now: Instant) -> Vec<Due> {
        self.watched.iter_mut().filter_map(|it| it.look(passed, now)).collect()
    }
}

impl Watched {
    fn new(record: Arc<Record>) -> Watched {
        let report_at = record.limit;
        let held = Duration::ZERO;
        Watched { record, number: 0, held, report_at, budget: Budget::default() }
    }

    /// Looks at the shard, this long after the last time.
    fn look(&mut self, passed: Duration, now: Instant) -> Option<Due> {
        let number = self.record.number();
        if number != self.number {
            (self.number, self.held) = (number, Duration::ZERO);
            self.report_at = self.record.limit;
            return None;
        }
        if number % 2 == 0 {
            return None;
        }
        self.held += passed;
        if self.held < self.report_at {
            return None;
        }
        self.report_at = 2 * self.held;
        let holder = self.record.holder(number)?;
        let left_out = self.budget.take(now)?;
        let record = Arc::clone(&self.record);
        Some(Due { record, number, held: self.held, holder, left_out })
    }
}

/// How many reports a shard still has in this window.
#[derive(Debug, Default)]
struct Budget {
    window: Option<Instant>,
    used: u32,
    left_out: u64,
}

impl Budget {
    /// Takes one report: how many were left out before it, or none if this one is.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let is_open = self.window.is_some_and(|began| now.duration_since(began) < REPORT_WINDOW);
        if !is_open {
            self.window = Some(now);
            self.used = 0;
        }
        if self.used == REPORTS_MAX {
            self.left_out += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Asks the thread where it stands, and reports.
fn tell(due: Due, asker: &mut Asker) {
    let Due { record, number, held, mut holder, left_out } = due;
    let mut frames = Vec::new();
    let mut frames_missing = None;
    match asker.ask(&record, number) {
        Ok(sample) => {
            if let Holder::Task(task) = &mut holder {
                task.name = sample.name;
            }
            frames = frames_at(&sample.frames);
            if frames.is_empty() {
                frames_missing = Some(why_no_frames().to_owned());
            }
        }
        Err(why) => frames_missing = Some(why),
    }
    let shard = record.index;
    let stall = Stall { shard, held, holder, frames, frames_missing, left_out };
    match &record.on_stall {
        Some(on_stall) => contain(|| (on_stall.0)(&stall)),
        // A closed stderr is no reason to end the watch.
        None => drop(writeln!(io::stderr(), "{stall}")),
    }
}

fn frames_at(addresses: &[usize]) -> Vec<Frame> {
    let modules = Modules::of_this_process();
    let frame = |&address| Frame {
        address,
        module: modules.find(address),
        functions: symbols::functions_at(address),
    };
    addresses.iter().map(frame).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_so_many_reports_and_the_next_one_says_what_was_left_out() {
        let mut budget = Budget::default();
        let start = Instant::now();
        for _ in 0..REPORTS_MAX {
            assert_eq!(budget.take(start), Some(0));
        }
        assert_eq!(budget.take(start), None);
        assert_eq!(budget.take(start + REPORT_WINDOW / 2), None);
        assert_eq!(budget.take(start + REPORT_WINDOW), Some(2));
        assert_eq!(budget.take(start + REPORT_WINDOW), Some(0));
    }
}
