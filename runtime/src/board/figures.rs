//! What a board tells, in words and units for people.

use std::time::Duration;

use super::{WORDS, Word, parked_ticks};
use crate::ticks::Ticks;

/// What lies on a board.
pub(super) type Words = [u64; WORDS];

/// The figures of a shard since its beginning: see [`metrics`](crate::metrics()).
///
/// Keeping them costs plain stores, no locked instruction and no system call. Each is right by
/// itself; two may be of slightly different moments.
///
/// ```
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let before = annulus_runtime::metrics();
/// annulus_runtime::task::yield_now().await;
/// assert!(annulus_runtime::metrics().polls > before.polls);
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Rounds of the loop: tasks, mail, sends, the kernel, timers.
    pub turns: u64,
    /// Polls of tasks, and of the future of `block_on`.
    pub polls: u64,
    /// Calls of `io_uring_enter`, or of `epoll_wait`.
    pub enters: u64,
    /// Entries that the kernel took. On epoll 0, as all calls are made at once.
    pub submissions: u64,
    /// Answers that it gave: completions of the ring, or events of epoll. Those per enter tell how
    /// much each call of the kernel brought.
    pub completions: u64,
    /// Turns that found answers for which the ring had no room.
    pub overflows: u64,
    /// Answers that nobody waited for any more.
    pub stale_keys: u64,
    /// How often a receive found no free buffer in its pool and used other memory.
    pub pool_dry: u64,
    /// Wakes, calls and tasks that came from other threads.
    pub remote_wakes: u64,
    /// Tasks that are alive.
    pub tasks: u64,
    /// Connected streams that are open.
    pub connections: u64,
    /// How often a listener paused because the process had no descriptor or memory left.
    pub accept_pauses: u64,
    /// Time in which the shard waited: in the kernel, watching for news, or run by nobody.
    pub parked: Duration,
    /// Time in which it worked: all that it did not wait, and what the kernel did for it within the
    /// waits, which on a busy shard is most of it, as they send before they sleep. That part is
    /// looked at every 10 ms.
    pub busy: Duration,
    /// The longest poll so far. One that is under way counts. Polls of a few microseconds are
    /// timed together, four at most, and what they take counts as one; so does a longer one with
    /// the short ones that were timed with it.
    pub longest_poll: Duration,
    /// The longest of the last one to two seconds.
    pub longest_poll_lately: Duration,
}

impl Metrics {
    pub(super) fn from_words(words: &Words, now: u64, ticks: Ticks) -> Metrics {
        let word = |word: Word| words[word as usize];
        // A shard that has ended grows no older.
        let now = match word(Word::Ended) {
            0 => now,
            ended => ended,
        };
        let parked = parked_ticks(word(Word::Parked), now);
        let outside = now.saturating_sub(word(Word::Born)).saturating_sub(parked);
        let busy = outside.saturating_add(word(Word::WaitsAtWork));
        let under_way = match word(Word::PollBegan) {
            0 => 0,
            began => now.saturating_sub(began),
        };
        let lately = longest_lately(words, now, ticks.count(SECOND));
        Metrics {
            turns: word(Word::Turns),
            polls: word(Word::Polls),
            enters: word(Word::Enters),
            submissions: word(Word::Submissions),
            completions: word(Word::Completions),
            overflows: word(Word::Overflows),
            stale_keys: word(Word::StaleKeys),
            pool_dry: word(Word::PoolDry),
            remote_wakes: word(Word::RemoteWakes),
            tasks: word(Word::Tasks),
            connections: word(Word::Connections),
            accept_pauses: word(Word::AcceptPauses),
            parked: ticks.duration(parked),
            busy: ticks.duration(busy),
            longest_poll: ticks.duration(word(Word::LongestPoll).max(under_way)),
            longest_poll_lately: ticks.duration(lately.max(under_way)),
        }
    }
}

/// For so long a shard keeps its longest poll before it begins anew.
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A shard that works begins a new second when one is over. One that does not has polled nothing
/// since, so that its seconds grow old.
fn longest_lately(words: &Words, now: u64, second: u64) -> u64 {
    let word = |word: Word| words[word as usize];
    match now.saturating_sub(word(Word::SecondBegan)) / second.max(1) {
        0 => word(Word::LongestNow).max(word(Word::LongestBefore)),
        1 => word(Word::LongestNow),
        _ => 0,
    }
}
