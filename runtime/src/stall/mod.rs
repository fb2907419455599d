//! What is told of a task that holds its shard, computing or blocking instead of yielding: see
//! [`Builder::stall`](crate::Builder::stall).

// A shard that is watched writes down what it is about to run, in a `Record` that it shares with
// one thread of the process, the watchdog. The watchdog looks at all records a few times per limit.
// What it finds unchanged for as long as the limit is a stall: it sends a signal to the thread of
// that shard, whose handler writes down where the thread stands, and then reports.
//
// A shard that waits in the kernel has said before that it rests, and is no stall. Where nobody
// asks for this there is no watchdog, no handler, and no record.

mod modules;
mod record;
mod report;
mod sample;
mod watchdog;

// With the crate `backtrace`, or without names.
#[cfg(feature = "backtrace")]
#[path = "symbols.rs"]
mod symbols;
#[cfg(not(feature = "backtrace"))]
#[path = "no_symbols.rs"]
mod symbols;

pub use report::{Frame, Function, Holder, Stall, StalledTask};

use std::any::type_name;
use std::fmt;
use std::io;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::executor::{Observer, Pace, ShardId, TaskInfo};
#[cfg(fuzzing)]
pub(crate) use modules::fuzz::maps;
use record::Record;

/// Whom to tell of a stall.
#[derive(Clone)]
pub(crate) struct OnStall(pub(crate) Arc<dyn Fn(&Stall) + Send + Sync>);

impl fmt::Debug for OnStall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnStall(..)")
    }
}

/// A shard's side of being watched. Made, used and dropped on its thread.
#[derive(Debug)]
pub(crate) struct Watch {
    record: Arc<Record>,
}

impl Watch {
    /// Has this thread watched, which runs the shard `index` of its runtime. Not with a limit of
    /// zero.
    pub(crate) fn this_thread(
        index: usize,
        shard: ShardId,
        limit: Duration,
        on_stall: Option<OnStall>,
    ) -> io::Result<Option<Watch>> {
        if limit.is_zero() {
            return Ok(None);
        }
        let record = Arc::new(Record::of_this_thread(index, shard, limit, on_stall));
        watchdog::add(&record)?;
        Ok(Some(Watch { record }))
    }

    /// The task is about to be polled.
    pub(crate) fn task(&self, task: TaskInfo<'_>) {
        self.record.begin_task(task);
    }

    /// The future of `block_on` is about to be polled.
    pub(crate) fn root<F>(&self, place: &'static Location<'static>) {
        self.record.begin_root(type_name::<F>(), place);
    }

    /// The shard is about to do something of its own, or for all.
    pub(crate) fn upkeep(&self) {
        self.record.begin_upkeep();
    }

    /// The shard is about to wait, or to stand still.
    pub(crate) fn rest(&self) {
        self.record.rest();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The number of the thread is soon another's, who must not answer for this one.
        self.record.rest();
        watchdog::remove(&self.record);
    }
}

/// Who watches the polls of a shard whose stalls are looked for.
pub(crate) struct Watched<'a, O> {
    pub(crate) observer: &'a O,
    pub(crate) watch: &'a Watch,
}

impl<O: Observer> Observer for Watched<'_, O> {
    fn before_poll(&self, task: TaskInfo<'_>) {
        self.observer.before_poll(task);
        self.watch.task(task);
    }

    fn after_poll(&self, task: TaskInfo<'_>) -> Pace {
        self.watch.upkeep();
        self.observer.after_poll(task)
    }
}

/// Says at the end of a scope, however it ends, that the shard rests.
pub(crate) struct RestAtEnd<'a>(pub(crate) Option<&'a Watch>);

impl Drop for RestAtEnd<'_> {
    fn drop(&mut self) {
        if let Some(watch) = self.0 {
            watch.rest();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_ends_leaves_nothing_to_ask_about() {
        let shard = ShardId::next();
        let watch = Watch::this_thread(0, shard, Duration::from_secs(60), None).unwrap().unwrap();
        let record = Arc::clone(&watch.record);
        watch.upkeep();
        assert_eq!(record.number() % 2, 1);
        drop(watch);
        assert_eq!(record.number() % 2, 0);
        assert_eq!(Arc::strong_count(&record), 1, "the watchdog has forgotten it");
    }
}
