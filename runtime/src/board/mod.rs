//! A board: the figures of one shard, in memory that everybody may look at.
//!
//! Only the shard's thread writes, each figure by a plain store; others read at any time, each
//! figure for itself. What takes two figures to understand is written as one word: see
//! [`Board::park`].

mod attach;
mod figures;
mod file;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Driver;
use crate::ticks::Ticks;
#[cfg(fuzzing)]
pub(crate) use attach::fuzz::boards;
pub use attach::{ProcessMetrics, ShardMetrics};
pub use figures::Metrics;
pub(crate) use figures::SECOND;
use file::Place;

/// How many figures a board has room for.
const WORDS: usize = 64;

/// What lies where on a board. Another process reads it: where one of these changes its place or
/// its meaning, the layout's number in `file` goes up.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub(crate) enum Word {
    /// 0 while nobody has the board, else who has it: no two have the same number.
    Holder,
    /// The shard's place in its runtime.
    Shard,
    /// 1 on io_uring, 2 on epoll.
    Driver,
    /// Stamps: when the shard was made, and when it ended (0 before).
    Born,
    Ended,
    /// How long the shard was parked: see [`Board::park`].
    Parked,
    /// How much of that time its thread did work in the kernel: see `meter`.
    WaitsAtWork,
    Turns,
    Polls,
    Enters,
    Submissions,
    Completions,
    Overflows,
    StaleKeys,
    PoolDry,
    RemoteWakes,
    Tasks,
    Connections,
    AcceptPauses,
    /// In ticks: the longest poll so far, of the present second of work, and of the one before.
    LongestPoll,
    LongestNow,
    LongestBefore,
    /// The stamp at which the present second began.
    SecondBegan,
    /// The stamp at which the poll under way began, or 0.
    PollBegan,
}

#[repr(C, align(64))]
struct Block([AtomicU64; WORDS]);

impl Block {
    fn empty() -> Block {
        Block([const { AtomicU64::new(0) }; WORDS])
    }

    fn clear_but_holder(&self) {
        for (index, word) in self.0.iter().enumerate() {
            if index != Word::Holder as usize {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        &self.0[word as usize]
    }
}

/// The figures of one shard, to be read on any thread at any time, also after the shard's end.
///
/// [`metrics::board`](crate::metrics::board) gives it. Its place is used for another shard when the
/// last who looks at it is gone.
pub struct Board {
    place: Place,
    ticks: Ticks,
}

impl Board {
    /// A board for a shard that is made now, and parked as long as it does not run.
    pub(crate) fn new(shard: usize, driver: Driver) -> Arc<Board> {
        let ticks = Ticks::chosen();
        let (place, now) = (file::take(), ticks.now());
        let board = Board { place, ticks };
        board.set(Word::Shard, shard as u64);
        board.set(Word::Driver, driver_number(driver));
        board.set(Word::Born, now);
        board.set(Word::Parked, parked_since(now, 0));
        board.set(Word::SecondBegan, now);
        Arc::new(board)
    }

    pub(crate) fn ticks(&self) -> Ticks {
        self.ticks
    }

    #[inline(always)]
    fn word(&self, word: Word) -> &AtomicU64 {
        self.place.block().word(word)
    }

    // Relaxed, here and below: a figure orders nothing. On the usual processors this is a move.
    #[inline(always)]
    pub(crate) fn get(&self, word: Word) -> u64 {
        self.word(word).load(Ordering::Relaxed)
    }

    /// Only on the shard's thread, as all that writes.
    #[inline(always)]
    pub(crate) fn set(&self, word: Word, value: u64) {
        self.word(word).store(value, Ordering::Relaxed);
    }

    /// No locked instruction, since nobody else writes.
    #[inline(always)]
    pub(crate) fn add(&self, word: Word, more: u64) {
        self.set(word, self.get(word).wrapping_add(more));
    }

    #[inline(always)]
    pub(crate) fn subtract(&self, word: Word, less: u64) {
        self.set(word, self.get(word).wrapping_sub(less));
    }

    /// The shard stops working. Does nothing if it has.
    ///
    /// A reader must not see the shard work while it sleeps, nor miss a sleep that just ended. So
    /// one word tells both: a shard at work leaves the sum so far there, one that is parked the
    /// stamp at which it would have had to begin, to be parked for the whole sum by now.
    #[inline(always)]
    pub(crate) fn park(&self, now: u64) {
        let word = self.get(Word::Parked);
        if word & PARKED == 0 {
            self.set(Word::Parked, parked_since(now, word >> 1));
        }
    }

    /// The shard goes on working. Does nothing if it does already.
    #[inline(always)]
    pub(crate) fn unpark(&self, now: u64) {
        let word = self.get(Word::Parked);
        self.set(Word::Parked, parked_ticks(word, now) << 1);
    }

    /// How long the shard has been parked.
    pub(crate) fn parked_ticks(&self, now: u64) -> u64 {
        parked_ticks(self.get(Word::Parked), now)
    }

    /// The shard ends. What it did stays to be read. Does nothing the second time.
    pub(crate) fn end(&self) {
        if self.get(Word::Ended) != 0 {
            return;
        }
        let now = self.ticks.now();
        self.unpark(now);
        self.set(Word::PollBegan, 0);
        self.set(Word::Ended, now);
    }

    /// The figures of this moment. What a shard counts within a turn appears at the turn's end.
    #[must_use]
    pub fn read(&self) -> Metrics {
        let block = self.place.block();
        let (parked, now) = self.parked_at();
        let mut words = std::array::from_fn(|index| block.0[index].load(Ordering::Relaxed));
        words[Word::Parked as usize] = parked;
        Metrics::from_words(&words, now, self.ticks)
    }

    /// What [`Word::Parked`] was at that stamp: a shard that fell asleep in between would seem to
    /// have worked until the stamp, and less at the next look.
    fn parked_at(&self) -> (u64, u64) {
        let word = self.word(Word::Parked);
        let mut tries = 0;
        loop {
            // Acquire: what is read behind is no older. Nothing is written that this pairs with.
            let parked = word.load(Ordering::Acquire);
            let now = self.ticks.now_in_order();
            tries += 1;
            if word.load(Ordering::Acquire) == parked || tries == READS_MAX {
                return (parked, now);
            }
        }
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Board").field(&self.read()).finish()
    }
}

fn driver_number(driver: Driver) -> u64 {
    match driver {
        Driver::Auto => 0,
        Driver::Uring => 1,
        Driver::Epoll => 2,
    }
}

/// How often one word is read anew. A shard sleeps and wakes once in a microsecond at most, and a
/// look takes a tenth of that.
const READS_MAX: u32 = 100;

/// The other way.
fn driver_of(number: u64) -> Option<Driver> {
    [Driver::Uring, Driver::Epoll].into_iter().find(|&driver| driver_number(driver) == number)
}

/// Set in [`Word::Parked`] while the shard is.
const PARKED: u64 = 1;

fn parked_since(now: u64, sum: u64) -> u64 {
    now.wrapping_sub(sum) << 1 | PARKED
}

/// How many ticks the shard was parked, as told by [`Word::Parked`].
#[inline(always)]
fn parked_ticks(word: u64, now: u64) -> u64 {
    if word & PARKED == 0 {
        return word >> 1;
    }
    // The flag has taken the highest bit, in which a counter may begin: the difference is right
    // without. Counters of two processors may be a few ticks apart, which is no time.
    let passed = now.wrapping_sub(word >> 1) << 1;
    (passed as i64 >> 1).max(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(board: &Board, now: u64) -> u64 {
        board.parked_ticks(now)
    }

    #[test]
    fn one_word_tells_how_long_a_shard_was_parked() {
        let board = Board::new(0, Driver::Epoll);
        let born = board.get(Word::Born);
        assert_eq!(parked(&board, born + 10), 10, "a shard that nobody runs yet");
        board.unpark(born + 10);
        assert_eq!(parked(&board, born + 50), 10);
        board.unpark(born + 50);
        board.park(born + 60);
        board.park(born + 70);
        assert_eq!((parked(&board, born + 60), parked(&board, born + 160)), (10, 110));
        board.unpark(born + 160);
        assert_eq!(parked(&board, born + 1000), 110);
        // Stamps of two processors may be out of order by a little.
        board.park(born + 1000);
        assert_eq!(parked(&board, born + 900), 10);
        assert_eq!(parked(&board, 0), 0);
    }

    #[test]
    fn a_counter_may_begin_anywhere() {
        for born in [0, 1 << 62, 1 << 63, u64::MAX - 50] {
            let word = parked_since(born, 0);
            assert_eq!(parked_ticks(word, born.wrapping_add(100)), 100, "{born:#x}");
            let word = parked_since(born.wrapping_add(200), parked_ticks(word, born) + 100);
            assert_eq!(parked_ticks(word, born.wrapping_add(300)), 200, "{born:#x}");
            assert_eq!(parked_ticks(word, born.wrapping_add(40)), 0, "{born:#x}");
        }
    }

    #[test]
    fn the_end_of_a_board_is_final() {
        let board = Board::new(3, Driver::Uring);
        board.set(Word::PollBegan, 1);
        board.end();
        let ended = board.get(Word::Ended);
        board.end();
        assert_eq!((board.get(Word::Ended), board.get(Word::PollBegan)), (ended, 0));
        assert_eq!(board.read(), board.read());
    }

    #[test]
    fn boards_in_hand_have_places_of_their_own_and_come_empty() {
        for _ in 0..3 {
            let boards: Vec<_> = (0..100).map(|shard| Board::new(shard, Driver::Epoll)).collect();
            for (board, number) in boards.iter().zip(1..) {
                assert_eq!(board.read().turns, 0);
                board.add(Word::Turns, number);
            }
            assert!(boards.iter().zip(1..).all(|(board, number)| board.read().turns == number));
        }
    }
}
