//! How a shard measures itself: stamps around polls and waits, kept on its board.
//!
//! The end of one poll is the beginning of the next, and so is the end of a wait for the first poll
//! behind it (what wakers and timers do in between is taken for its). Two stamps are taken for each
//! wait, and one for a run of polls without a wait before it.
//!
//! A stamp takes longer than a poll that has little to do, so that not each poll has its own. A run
//! is divided into **stretches**, each with a stamp at its end: one poll at first, then twice as
//! many as in the one before, up to [`STRETCH_POLLS_MAX`], while stretches are short
//! ([`SHORT_STRETCH`]); behind one that is not the next is one poll again. So polls that take long
//! have a stamp each, but for those that follow upon short ones, and only for these few
//! the end of a run comes late, or several polls pass for one.
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

/// Polls that share a stamp at most: with four, stamps are a quarter of what they would cost, and a
/// run that turns slow is noticed three polls late.
const STRETCH_POLLS_MAX: u32 = 4;

/// Below this a stretch is short. Where polls take as long as this, a stamp for each is nothing.
const SHORT_STRETCH: Duration = Duration::from_micros(4);

pub(crate) struct Meter {
    board: Arc<Board>,
    ticks: Ticks,
    /// The latest stamp of a run: when the last stretch ended.
    stamp: Cell<u64>,
    /// How many polls the present stretch has, and how many of them have not begun.
    stretch: Cell<u32>,
    left: Cell<u32>,
    /// All polls of the stretches before.
    polls: Cell<u64>,
    run_began: Cell<u64>,
    /// The end of the wait before the next run of polls, or 0.
    woke: Cell<u64>,
    sample: Cell<Sample>,
    process: Process,
    run_ticks_max: u64,
    short_ticks: u64,
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
            stretch: Cell::new(0),
            left: Cell::new(0),
            polls: Cell::new(0),
            run_began: Cell::new(0),
            woke: Cell::new(0),
            sample: Cell::default(),
            process: Process::current(),
            run_ticks_max: ticks.count(RUN_TIME_MAX),
            short_ticks: ticks.count(SHORT_STRETCH),
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

    /// The latest stamp of a run: another one after each few polls, and for each run.
    #[inline]
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp.get()
    }

    /// Polls follow.
    #[inline]
    pub(crate) fn begin_run(&self) {
        let now = match self.woke.replace(0) {
            0 => self.ticks.now(),
            woke => woke,
        };
        self.run_began.set(now);
        self.begin_stretch(1, now);
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

    #[inline]
    fn begin_stretch(&self, polls: u32, now: u64) {
        self.stamp.set(now);
        self.stretch.set(polls);
        self.left.set(polls);
        self.board.set(Word::PollBegan, now);
    }

    #[inline(always)]
    pub(crate) fn begin_poll(&self) {
        self.left.set(self.left.get() - 1);
    }

    /// Answers whether the run has time left, as far as that is known.
    #[inline(always)]
    pub(crate) fn end_poll(&self) -> Pace {
        if self.left.get() > 0 { Pace::GoOn } else { self.end_stretch() }
    }

    fn end_stretch(&self) -> Pace {
        if !self.process.is_current() {
            // A poll that its task has left in a forked child: the board is the parent's.
            return Pace::Stop;
        }
        let now = self.ticks.now();
        let (took, polls) = (self.take_stretch(now), self.stretch.get());
        let short = took < self.short_ticks;
        let polls = if short { (2 * polls).min(STRETCH_POLLS_MAX) } else { 1 };
        self.begin_stretch(polls, now);
        if now.wrapping_sub(self.run_began.get()) < self.run_ticks_max {
            Pace::GoOn
        } else {
            Pace::Stop
        }
    }

    /// The stretch ends with the polls that have begun. Answers how long it took.
    #[inline]
    fn take_stretch(&self, now: u64) -> u64 {
        self.polls.set(self.polls_so_far());
        self.left.set(self.stretch.get());
        let took = now.saturating_sub(self.stamp.get());
        if took > self.board.get(Word::LongestNow) {
            self.note_longest(took);
        }
        took
    }

    /// The poll under way among them.
    fn polls_so_far(&self) -> u64 {
        self.polls.get() + u64::from(self.stretch.get() - self.left.get())
    }

    #[cold]
    fn note_longest(&self, took: u64) {
        self.board.set(Word::LongestNow, took);
        if took > self.board.get(Word::LongestPoll) {
            self.board.set(Word::LongestPoll, took);
        }
    }

    #[inline]
    pub(crate) fn end_run(&self) {
        if !self.process.is_current() {
            return;
        }
        if self.left.get() < self.stretch.get() {
            self.take_stretch(self.ticks.now());
        }
        self.board.set(Word::Polls, self.polls.get());
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
        self.board.set(Word::Polls, self.polls_so_far());
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

    /// A poll of this length, at least.
    fn poll(meter: &Meter, length: Duration) -> Pace {
        meter.begin_poll();
        let start = std::time::Instant::now();
        while start.elapsed() < length {}
        meter.end_poll()
    }

    #[test]
    fn polls_that_take_long_have_a_stamp_each_and_others_share_one() {
        let meter = Meter::new(0, Driver::Epoll);
        meter.begin_run();
        let mut polls = 0;
        for _ in 0..3 {
            // Another thread may hold this one up, and so make a poll of nothing long.
            while meter.stretch.get() < STRETCH_POLLS_MAX {
                let _pace = poll(&meter, Duration::ZERO);
                polls += 1;
            }
            for _ in 0..meter.left.get() {
                let _pace = poll(&meter, SHORT_STRETCH);
                polls += 1;
                assert_eq!(meter.polls_so_far(), polls);
            }
            for _ in 0..3 {
                assert_eq!((meter.stretch.get(), meter.left.get()), (1, 1));
                let stamp = meter.stamp.get();
                let _pace = poll(&meter, SHORT_STRETCH);
                polls += 1;
                assert!(meter.stamp.get() > stamp);
            }
        }
        assert_eq!(meter.polls_so_far(), polls);
    }

    #[test]
    fn a_run_that_turns_slow_ends_within_a_few_polls() {
        let meter = Meter::new(0, Driver::Epoll);
        meter.begin_run();
        while meter.stretch.get() < STRETCH_POLLS_MAX {
            let _pace = poll(&meter, Duration::ZERO);
        }
        let slow = (1..).find(|_| poll(&meter, RUN_TIME_MAX) == Pace::Stop);
        assert!(slow <= Some(STRETCH_POLLS_MAX), "{slow:?}");
        meter.begin_run();
        assert_eq!(poll(&meter, RUN_TIME_MAX), Pace::Stop, "a new run looks at once");
    }

    #[test]
    fn the_end_of_a_run_ends_its_last_poll() {
        let meter = Meter::new(0, Driver::Epoll);
        meter.begin_run();
        while meter.stretch.get() < STRETCH_POLLS_MAX {
            let _pace = poll(&meter, Duration::ZERO);
        }
        let _pace = poll(&meter, RUN_TIME_MAX);
        meter.end_run();
        let longest = meter.ticks.duration(meter.board.get(Word::LongestNow));
        // The clocks differ by a thousandth.
        assert!(longest > RUN_TIME_MAX - RUN_TIME_MAX / 100, "{longest:?}");
        assert_eq!(meter.board.get(Word::Polls), meter.polls_so_far());
        assert_eq!(meter.board.get(Word::PollBegan), 0);
    }

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
