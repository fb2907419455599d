//! Reading the boards of another process.
//!
//! What is read belongs to somebody else: it may be of another version, of another program, wrong
//! on purpose, or change at any time. So it is copied by bounded reads and never mapped, a file
//! that is cut short is an error, and every value may be anything.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::figures::{Metrics, Words};
use super::file::{
    BLOCK_BYTES, HEADER_BYTES, HEADER_WORDS, HeaderWord, LAYOUT, MAGIC, NAME, SLOTS,
};
use super::{WORDS, Word, driver_of};
use crate::config::Driver;
use crate::ticks::Ticks;

/// Another process, or this one, whose shards can be looked at.
///
/// The process notices nothing of it. Who looks must be allowed to: be its user, or root.
///
/// # Examples
///
/// ```
/// use annulus_runtime::metrics::ProcessMetrics;
///
/// let runtime = annulus_runtime::Runtime::new()?;
/// let process = ProcessMetrics::attach(std::process::id())?;
/// for shard in process.shards()? {
///     println!("shard {} on {}: {:?}", shard.shard, shard.driver, shard.metrics);
/// }
/// # drop(runtime);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct ProcessMetrics {
    pid: u32,
    /// Its directory in `/proc`, which tells whether it lives, also when its number is used again.
    process: File,
    boards: File,
    ticks: Ticks,
}

/// The figures of one shard of a process.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ShardMetrics {
    /// The shard's place in its runtime. A process of several runtimes has several of the same.
    pub shard: usize,
    /// What the shard runs on.
    pub driver: Driver,
    /// What it has done.
    pub metrics: Metrics,
}

impl ProcessMetrics {
    /// Looks for the boards of a process.
    ///
    /// # Errors
    ///
    /// Each with a text that says which it is: no such process, or no runtime in it (`NotFound`),
    /// not permitted (`PermissionDenied`), a version of this crate that keeps other figures
    /// (`InvalidData`).
    pub fn attach(pid: u32) -> io::Result<ProcessMetrics> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let process = File::open(&directory).map_err(|error| explain(pid, &error))?;
        let own_number = number_within(&directory).unwrap_or(pid);
        let mut other_layout = None;
        for entry in fs::read_dir(directory.join("fd")).map_err(|error| explain(pid, &error))? {
            let Ok(entry) = entry else { break };
            let Some(boards) = open_boards(&entry.path()) else { continue };
            let Ok(header) = words_at::<HEADER_WORDS>(&boards, 0) else { continue };
            let word = |word: HeaderWord| header[word as usize];
            // A forked child has its parent's file, too.
            let is_its_own = word(HeaderWord::Process) == u64::from(own_number);
            if word(HeaderWord::Magic) != MAGIC || !is_its_own {
                continue;
            }
            let known = word(HeaderWord::Layout) == LAYOUT
                && word(HeaderWord::BlockBytes) == BLOCK_BYTES as u64;
            match (known, Ticks::numbered(word(HeaderWord::Ticks))) {
                (true, Some(ticks)) => return Ok(ProcessMetrics { pid, process, boards, ticks }),
                _ => other_layout = Some(word(HeaderWord::Layout)),
            }
        }
        Err(match other_layout {
            Some(layout) => io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "process {pid} has another version of annulus: layout {layout} of its \
                     figures, where this program reads layout {LAYOUT}"
                ),
            ),
            None => io::Error::new(
                io::ErrorKind::NotFound,
                format!("process {pid} has no annulus runtime, or none whose figures can be seen"),
            ),
        })
    }

    /// The figures of its living shards.
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub fn shards(&self) -> io::Result<Vec<ShardMetrics>> {
        self.check_alive()?;
        let header = words_at::<HEADER_WORDS>(&self.boards, 0)?;
        let used = header[HeaderWord::SlotsUsed as usize].min(SLOTS as u64) as usize;
        let mut shards = Vec::new();
        for slot in 0..used {
            let offset = HEADER_BYTES + slot * BLOCK_BYTES;
            let words: Words = words_at::<WORDS>(&self.boards, offset)?;
            // Before another look at the holder, so that nothing on the board is of the future.
            let now = self.ticks.now_in_order();
            let [holder] = words_at::<1>(&self.boards, offset)?;
            let word = |word: Word| words[word as usize];
            let held = holder != 0 && holder == word(Word::Holder) && word(Word::Ended) == 0;
            if let (true, Some(driver)) = (held, driver_of(word(Word::Driver))) {
                let shard = word(Word::Shard) as usize;
                let metrics = Metrics::from_words(&words, now, self.ticks);
                shards.push(ShardMetrics { shard, driver, metrics });
            }
        }
        Ok(shards)
    }

    fn check_alive(&self) -> io::Result<()> {
        let stat = format!("/proc/self/fd/{}/stat", self.process.as_raw_fd());
        let stat = fs::read_to_string(stat).unwrap_or_default();
        if is_alive(&stat) {
            return Ok(());
        }
        let text = format!("process {} has ended", self.pid);
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }
}

/// Whether this `/proc/PID/stat` is of a process that runs.
fn is_alive(stat: &str) -> bool {
    // Behind the name, which may hold anything. One that nobody has waited for is a Z.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

fn explain(pid: u32, error: &io::Error) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::NotFound => format!("there is no process {pid}"),
        io::ErrorKind::PermissionDenied => format!(
            "process {pid} cannot be looked at: that is for its user, who may trace it, and root"
        ),
        _ => format!("process {pid} cannot be looked at: {error}"),
    };
    io::Error::new(error.kind(), text)
}

/// The file behind a link of `/proc/PID/fd`, if it may be one of boards.
fn open_boards(link: &Path) -> Option<File> {
    let target = fs::read_link(link).ok()?;
    let name = format!("/memfd:{}", NAME.to_str().ok()?);
    // Behind it stands that the file has no path.
    if target.to_str()?.split(' ').next() != Some(&name) || !fs::metadata(link).ok()?.is_file() {
        return None;
    }
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(link).ok()
}

/// The number that the process has for itself, which in a container is another than ours.
fn number_within(directory: &Path) -> Option<u32> {
    innermost_number(&fs::read_to_string(directory.join("status")).ok()?)
}

fn innermost_number(status: &str) -> Option<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().last()?.parse().ok()
}

/// So many words of the file. Aligned words are copied whole, on the processors that Linux runs on.
fn words_at<const COUNT: usize>(file: &File, offset: usize) -> io::Result<[u64; COUNT]> {
    let mut bytes = [0; BLOCK_BYTES];
    file.read_exact_at(&mut bytes[..COUNT * 8], offset as u64)?;
    let word = |index: usize| bytes[index * 8..][..8].try_into().expect("eight bytes");
    Ok(std::array::from_fn(|index| u64::from_ne_bytes(word(index))))
}
