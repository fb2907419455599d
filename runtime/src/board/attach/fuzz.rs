//! Boards of another process, which may be anything.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::file::{BLOCK_BYTES, HEADER_BYTES, HEADER_WORDS, HeaderWord, SLOTS};
use super::super::{Word, driver_of};
use super::{ProcessMetrics, innermost_number, is_alive};
use crate::choices::Choices;
use crate::sys;
use crate::ticks::Ticks;

/// As many blocks as a test reads.
const BLOCKS: usize = 3;

/// A file of boards with these words in it, and texts of `/proc` with these bytes.
pub(crate) fn boards(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut contents = vec![0; HEADER_BYTES + BLOCKS * BLOCK_BYTES];
    let mut put = |at: usize, word: u64| contents[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    let used = choices.magnitude();
    put(HeaderWord::SlotsUsed as usize * 8, used);
    let ticks = Ticks::numbered(u64::from(choices.byte() % 2) + 1).unwrap_or_else(Ticks::chosen);
    for block in 0..BLOCKS {
        let holder = choices.magnitude();
        for word in 0..BLOCK_BYTES / 8 {
            let value = match choices.byte() % 4 {
                0 => 0,
                1 => holder,
                2 => u64::from(choices.byte() % 4),
                _ => choices.number(),
            };
            put(HEADER_BYTES + block * BLOCK_BYTES + word * 8, value);
        }
    }
    if choices.is_heads() {
        contents.truncate(choices.below(contents.len()));
    }
    compare(&contents, ticks);
    let text = String::from_utf8_lossy(choices.rest());
    let number = innermost_number(&text);
    assert!(number.is_none_or(|number| text.contains(&number.to_string()) || text.contains('0')));
    let _either = is_alive(&text);
}

fn compare(contents: &[u8], ticks: Ticks) {
    let boards = File::from(sys::memfd(c"annulus-fuzz").expect("a file in memory"));
    boards.write_all_at(contents, 0).expect("a file in memory takes it");
    let process = File::open("/proc/self").expect("this process lives");
    let metrics = ProcessMetrics { pid: std::process::id(), process, boards, ticks };
    let word = |at: usize| {
        let word = contents.get(at..at + 8)?;
        Some(u64::from_ne_bytes(word.try_into().expect("eight bytes")))
    };
    let used = word(HeaderWord::SlotsUsed as usize * 8).map(|used| used.min(SLOTS as u64) as usize);
    let end = match used {
        None => usize::MAX,
        // Then no block is looked for.
        Some(0) => 0,
        Some(used) => HEADER_BYTES + used * BLOCK_BYTES,
    };
    let shards = metrics.shards();
    let whole = contents.len() >= (HEADER_WORDS * 8).max(end);
    assert_eq!(shards.is_ok(), whole, "a file that is cut short is an error");
    let Ok(shards) = shards else { return };
    let at = |slot: usize, of: Word| {
        word(HEADER_BYTES + slot * BLOCK_BYTES + of as usize * 8).expect("within the file")
    };
    let held: Vec<_> = (0..used.expect("there is a header"))
        .filter(|&slot| at(slot, Word::Holder) != 0 && at(slot, Word::Ended) == 0)
        .filter_map(|slot| {
            Some((at(slot, Word::Shard) as usize, driver_of(at(slot, Word::Driver))?))
        })
        .collect();
    let told: Vec<_> = shards.iter().map(|shard| (shard.shard, shard.driver)).collect();
    assert_eq!(told, held);
}

#[cfg(test)]
mod tests {
    use super::boards;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn boards_of_others_may_hold_anything() {
        with_kept("boards", boards);
        with_seeds(1000, boards);
    }
}
