//! How a shard measures itself: stamps around polls and waits, kept on its board.
//!
//! The end of one poll is the beginning of the next, and so is the end of a wait for the first poll
//! behind it (what wakers and timers do in between is taken for its): a stamp is taken for each
//! poll, two for each wait, and one for a run of polls without a wait before it.
//!
//! # What is work
//!
//! All time is, but that of the waits. Yet a wait is also the call by which everything is
//! submitted, and sends what is to be sent before it sleeps: on a busy shard that is most of the
//! work. No call tells how much of it was sleep. So once in a while the thread's own processor time
//! is asked for, and what it has more than the time outside of waits was work within them.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use crate::board::{Board, SECOND, Word};
use crate::config::{Driver, RUN_TIME_MAX};
use crate::driver::Counts;
use crate::executor::Pace;
use crate::fork::Process;
use crate::sys::thread_cpu_ns;
use crate::ticks::Ticks;

/// How often the processor time is asked for: a system call of some 0.2 µs.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);

pub(crate) struct Meter {
    board: Arc<Board>,
    ticks: Ticks,
    /// The latest stamp of a run: when the last poll ended.
    stamp: Cell<u64>,
    run_began: Cell<u64>,
    /// The end of the wait before the next run of polls, or 0.
    woke: Cell<u64>,
    sample: Cell<Sample>,
    process: Process,
    run_ticks_max: u64,
    second_ticks: u64,
    sample_ticks: u64,
}

/// Three clocks at one moment.
#[derive(Clone, Copy, Default)]
struct Sample {
    now: u64,
    parked: u64,
    cpu_ns: u64,
}

impl Meter {
    /// For the shard with this place in its runtime.
    pub(crate) fn new(shard: usize, driver: Driver) -> Meter {
        let board = Board::new(shard, driver);
        let ticks = board.ticks();
        Meter {
            ticks,
            stamp: Cell::new(0),
            run_began: Cell::new(0),
            woke: Cell::new(0),
            sample: Cell::default(),
            process: Process::current(),
            run_ticks_max: ticks.count(RUN_TIME_MAX),
            second_ticks: ticks.count(SECOND),
            sample_ticks: ticks.count(SAMPLE_INTERVAL),
            board,
        }
    }

    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// The shard is run from now on, until the answer is dropped.
    pub(crate) fn begin_work(&self) -> AtWork<'_> {
        let now = self.ticks.now();
        self.board.unpark(now);
        self.sample.set(self.take_sample(now));
        AtWork(self)
    }

    /// Polls follow.
    #[inline]
    pub(crate) fn begin_run(&self) {
        let now = match self.woke.replace(0) {
            0 => self.ticks.now(),
            woke => woke,
        };
        self.stamp.set(now);
        self.run_began.set(now);
        if now.wrapping_sub(self.board.get(Word::SecondBegan)) >= self.second_ticks {
            self.begin_second(now);
        }
    }

    #[cold]
    fn begin_second(&self, now: u64) {
        let age = now.wrapping_sub(self.board.get(Word::SecondBegan));
        let recent = age / 2 < self.second_ticks;
        let before = if recent { self.board.get(Word::LongestNow) } else { 0 };
        self.board.set(Word::LongestBefore, before);
        self.board.set(Word::LongestNow, 0);
        self.board.set(Word::SecondBegan, now);
    }

    #[inline(always)]
    pub(crate) fn begin_poll(&self) {
        self.board.set(Word::PollBegan, self.stamp.get());
        self.board.add(Word::Polls, 1);
    }

    /// Answers whether the run has time left.
    #[inline(always)]
    pub(crate) fn end_poll(&self) -> Pace {
        let now = self.ticks.now();
        let took = now.saturating_sub(self.stamp.replace(now));
        if took > self.board.get(Word::LongestNow) {
            self.note_longest(took);
        }
        if now.wrapping_sub(self.run_began.get()) < self.run_ticks_max {
            Pace::GoOn
        } else {
            Pace::Stop
        }
    }

    #[cold]
    fn note_longest(&self, took: u64) {
        if !self.process.is_current() {
            // A poll that its task has left in a forked child: the board is the parent's.
            return;
        }
        self.board.set(Word::LongestNow, took);
        if took > self.board.get(Word::LongestPoll) {
            self.board.set(Word::LongestPoll, took);
        }
    }

    #[inline]
    pub(crate) fn end_run(&self) {
        self.board.set(Word::PollBegan, 0);
        // A poll may have waited, too.
        self.woke.set(0);
    }

    /// The shard has nothing to do and waits.
    #[inline]
    pub(crate) fn park(&self) {
        self.board.park(self.ticks.now());
    }

    #[inline]
    pub(crate) fn unpark(&self) {
        let now = self.ticks.now();
        self.woke.set(now);
        self.board.unpark(now);
        if now.wrapping_sub(self.sample.get().now) >= self.sample_ticks {
            self.weigh(now);
        }
    }

    /// Finds out how much of the waits since the last sample was work.
    #[cold]
    fn weigh(&self, now: u64) {
        let sample = self.take_sample(now);
        let last = self.sample.replace(sample);
        let waited = sample.parked.saturating_sub(last.parked);
        let outside = sample.now.saturating_sub(last.now).saturating_sub(waited);
        let cpu = Duration::from_nanos(sample.cpu_ns.saturating_sub(last.cpu_ns));
        let within = self.ticks.count(cpu).saturating_sub(outside).min(waited);
        self.board.add(Word::WaitsAtWork, within);
    }

    fn take_sample(&self, now: u64) -> Sample {
        Sample { now, parked: self.board.parked_ticks(now), cpu_ns: thread_cpu_ns() }
    }

    /// A turn of the loop is over but for its wait.
    #[inline]
    pub(crate) fn count_turn(&self, mail: u32) {
        self.board.add(Word::Turns, 1);
        self.board.add(Word::RemoteWakes, u64::from(mail));
    }

    pub(crate) fn connection_began(&self) {
        self.board.add(Word::Connections, 1);
    }

    pub(crate) fn connection_ended(&self) {
        self.board.subtract(Word::Connections, 1);
    }

    pub(crate) fn accept_paused(&self) {
        self.board.add(Word::AcceptPauses, 1);
    }

    /// The shard is no more. What it did stays to be read.
    pub(crate) fn end(&self) {
        self.board.end();
    }

    /// Copies what others count.
    #[inline]
    pub(crate) fn publish(&self, counts: Counts, tasks: usize) {
        let Counts { enters, submissions, completions, overflows, stale_keys, pool_dry } = counts;
        self.board.set(Word::Enters, enters);
        self.board.set(Word::Submissions, submissions);
        self.board.set(Word::Completions, completions);
        self.board.set(Word::Overflows, overflows);
        self.board.set(Word::StaleKeys, stale_keys);
        self.board.set(Word::PoolDry, pool_dry);
        self.board.set(Word::Tasks, tasks as u64);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end();
    }
}

/// A shard that is run by somebody.
#[must_use]
pub(crate) struct AtWork<'a>(&'a Meter);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        if !self.0.process.is_current() {
            // A forked child leaves its parent's board alone.
            return;
        }
        let now = self.0.ticks.now();
        self.0.weigh(now);
        // A future that panicked has ended its poll, too.
        self.0.end_run();
        self.0.board.park(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Runtime;
    use crate::executor::TaskInfo;
    use crate::fork::tests::in_child;
    use crate::metrics::board;

    #[test]
    fn a_forked_child_leaves_its_parents_board_alone() {
        let runtime = Runtime::new().unwrap();
        let theirs = runtime.block_on(async { board() });
        let before = theirs.read();
        let (runtime, copy) = (Cell::new(Some(runtime)), Cell::new(Some(Arc::clone(&theirs))));
        in_child(|| {
            drop(runtime.take());
            drop(copy.take());
            let own = Runtime::new().unwrap();
            let ours = own.block_on(async { board() });
            assert_eq!(ours.read().turns, 0);
            drop(own);
        });
        let (runtime, after) = (runtime.take().unwrap(), theirs.read());
        assert_eq!((theirs.get(Word::Ended), after.busy), (0, before.busy));
        assert_eq!((after.turns, after.polls), (before.turns, before.polls));
        runtime.block_on(async {});
        assert_eq!(theirs.read().polls, before.polls + 1);
    }

    #[test]
    fn a_child_that_leaves_the_loop_does_not_park_its_parent() {
        let runtime = Runtime::new().unwrap();
        let pid = runtime.block_on(async {
            // SAFETY: the child leaves `block_on` and ends.
            let pid = unsafe { libc::fork() };
            let mut status = 0;
            if pid != 0 {
                // SAFETY: the pointer is to an integer, which the call fills.
                unsafe { libc::waitpid(pid, &raw mut status, 0) };
                assert_eq!(board().get(Word::Parked) & 1, 0, "the parent is at work");
            }
            assert_eq!(status, 0);
            pid
        });
        if pid == 0 {
            // SAFETY: the call ends the process, and runs nothing of it.
            unsafe { libc::_exit(0) };
        }
    }

    #[test]
    fn a_poll_that_ends_in_a_child_is_not_its_parents() {
        const LONG: Duration = Duration::from_millis(300);
        let parent = std::process::id();
        let end_child = move |_: &TaskInfo<'_>| {
            if std::process::id() != parent {
                // SAFETY: the call ends the process, and runs nothing of it.
                unsafe { libc::_exit(0) };
            }
        };
        // Called when the poll has been measured.
        let runtime = Runtime::builder().on_after_task_poll(end_child).build().unwrap();
        let (pid, theirs) = runtime.block_on(async {
            let forks = crate::spawn(async {
                // SAFETY: the child leaves the task and ends.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    std::thread::sleep(LONG);
                }
                pid
            });
            (forks.await.unwrap(), board())
        });
        let mut status = 0;
        // SAFETY: the pointer is to an integer, which the call fills.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!(status, 0, "the wait status of the child");
        assert!(theirs.read().longest_poll < LONG, "{theirs:?}");
    }
}
