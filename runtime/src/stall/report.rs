//! What is told of a stall.

use std::fmt;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::executor::TaskId;

/// A shard that does not get on: see [`Builder::stall`](crate::Builder::stall).
///
/// Its `Display` is what is printed where nobody asks for the reports: some lines, the last of
/// them without an end.
///
/// # Examples
///
/// ```
/// use std::sync::{Arc, mpsc};
/// use std::time::Duration;
/// use annulus_runtime::{Runtime, stall::Holder, task};
///
/// # fn main() -> std::io::Result<()> {
/// let (sender, reports) = mpsc::channel();
/// let runtime = Runtime::builder()
///     .stall(Duration::from_millis(20))
///     .on_stall(Arc::new(move |stall| drop(sender.send(stall.clone()))))
///     .build()?;
/// let stall = runtime.block_on(async {
///     // Blocks its thread until it is found to do so.
///     let task = task::Builder::new().name("indexer").spawn(async move { reports.recv() });
///     task.await.unwrap().unwrap()
/// });
/// let Holder::Task(task) = &stall.holder else { panic!("{stall}") };
/// assert_eq!(task.name.as_deref(), Some("indexer"));
/// assert!(stall.held >= Duration::from_millis(20));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stall {
    /// The shard, by its index in its runtime.
    pub shard: usize,
    /// For how long it has been held, at least, when its thread was asked.
    pub held: Duration,
    /// What holds it.
    pub holder: Holder,
    /// Where its thread stands, the innermost call first.
    pub frames: Vec<Frame>,
    /// Why there are no frames.
    pub frames_missing: Option<String>,
    /// Reports of this shard that were left out since the last one, as there were too many.
    pub left_out: u64,
}

/// What holds a shard.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Holder {
    /// A task that is being polled.
    Task(StalledTask),
    /// The future that `block_on` runs.
    #[non_exhaustive]
    BlockOn {
        /// Its type.
        type_name: String,
        /// Where `block_on` was called.
        place: &'static Location<'static>,
    },
    /// What the shard does besides polling: it drops a task that was cancelled, or takes in what
    /// other threads have sent.
    Upkeep,
}

/// A task that does not yield.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StalledTask {
    /// Its number.
    pub id: TaskId,
    /// The name that it was given, its first 128 bytes. Not known if its thread did not answer.
    pub name: Option<String>,
    /// The type of its future.
    pub type_name: String,
    /// Where it was spawned.
    pub place: &'static Location<'static>,
}

/// A call that has not returned.
#[derive(Clone, Debug)]
pub struct Frame {
    pub(super) address: usize,
    pub(super) module: Option<(Arc<Path>, usize)>,
    pub(super) functions: Vec<Function>,
}

impl Frame {
    /// Where in memory, within the instruction that calls on.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// The program or library that it belongs to, and the address there, as `addr2line` and
    /// debuggers take it.
    #[must_use]
    pub fn module(&self) -> Option<(&Path, usize)> {
        self.module.as_ref().map(|(path, offset)| (&**path, *offset))
    }

    /// The function, behind those that were inlined into it. Empty without the feature
    /// `backtrace`, and where the program has no symbols.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }
}

/// A function by its name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Function {
    /// Its path, such as `program::index::insert`.
    pub name: String,
    /// The source file, if the program knows it.
    pub file: Option<PathBuf>,
    /// The line there.
    pub line: Option<u32>,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.held.as_millis();
        write!(f, "annulus: shard {} has been stalled for {ms} ms by {}", self.shard, self.holder)?;
        if self.left_out > 0 {
            write!(f, "\n  {} more reports of this shard were left out", self.left_out)?;
        }
        if let Some(why) = &self.frames_missing {
            return write!(f, "\n  no backtrace: {why}");
        }
        for (index, frame) in self.frames.iter().enumerate() {
            write!(f, "\n  {index:>3}: {frame}")?;
        }
        self.write_commands(f)
    }
}

impl Stall {
    /// For each module the command that names the functions, where they have no names here.
    fn write_commands(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unnamed = self.frames.iter().filter(|frame| frame.functions.is_empty());
        let mut modules: Vec<(&Path, Vec<usize>)> = Vec::new();
        for (path, offset) in unnamed.filter_map(Frame::module) {
            match modules.iter_mut().find(|(known, _)| *known == path) {
                Some((_, offsets)) => offsets.push(offset),
                None => modules.push((path, vec![offset])),
            }
        }
        for (path, offsets) in modules {
            write!(f, "\n  addr2line -Cfpie {}", Quoted(path))?;
            for offset in offsets {
                write!(f, " {offset:#x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Task(task) => task.fmt(f),
            Holder::BlockOn { type_name, place } => {
                write!(f, "the future of block_on ({type_name}), called at {place}")
            }
            Holder::Upkeep => f.write_str("what it does between two tasks"),
        }
    }
}

impl fmt::Display for StalledTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}", self.id)?;
        if let Some(name) = &self.name {
            write!(f, " {name:?}")?;
        }
        write!(f, " ({}), spawned at {}", self.type_name, self.place)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.functions.is_empty() {
            return match &self.module {
                Some((path, offset)) => write!(f, "{}+{offset:#x}", path.display()),
                None => write!(f, "{:#x}", self.address),
            };
        }
        for (depth, function) in self.functions.iter().enumerate() {
            let called_by = if depth == 0 { "" } else { "\n       within " };
            write!(f, "{called_by}{function}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(file) = &self.file {
            write!(f, " at {}", file.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
        }
        Ok(())
    }
}

/// A path as a shell takes it.
struct Quoted<'a>(&'a Path);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.display().to_string();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
        if path.chars().all(plain) {
            return f.write_str(&path);
        }
        write!(f, "'{}'", path.replace('\'', r"'\''"))
    }
}
