//! What a shard runs at the moment, written by its thread and read by the watchdog.
//!
//! The number is even while the shard rests or the rest is being written, and odd, another one each
//! time, while something runs. A reader that finds the same odd number before and after has read
//! what belongs together. All fields are atomic, as both touch them at once; on the usual
//! processors these are plain stores.

use std::panic::Location;
use std::ptr;
use std::time::Duration;

use super::OnStall;
use super::report::{Holder, StalledTask};
use crate::executor::{ShardId, TaskId, TaskInfo};
use crate::sync::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[derive(Debug)]
pub(super) struct Record {
    pub(super) index: usize,
    pub(super) limit: Duration,
    pub(super) on_stall: Option<OnStall>,
    /// By which the kernel knows the shard's thread.
    pub(super) thread: libc::pid_t,
    shard: ShardId,
    number: AtomicU64,
    kind: AtomicU8,
    task: AtomicU32,
    type_name: Text,
    place: AtomicPtr<Location<'static>>,
    /// Belongs to the task, so that only the thread that polls it may follow it.
    name: Text,
}

/// The address and the length of a text. No address: no text.
#[derive(Debug)]
struct Text {
    start: AtomicPtr<u8>,
    length: AtomicUsize,
}

const UPKEEP: u8 = 0;
const TASK: u8 = 1;
const ROOT: u8 = 2;

impl Record {
    pub(super) fn of_this_thread(
        index: usize,
        shard: ShardId,
        limit: Duration,
        on_stall: Option<OnStall>,
    ) -> Record {
        // SAFETY: gettid takes nothing and cannot fail.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) };
        Record {
            index,
            limit,
            on_stall,
            thread: thread as libc::pid_t,
            shard,
            number: AtomicU64::new(0),
            kind: AtomicU8::new(UPKEEP),
            task: AtomicU32::new(0),
            type_name: Text::none(),
            place: AtomicPtr::new(ptr::null_mut()),
            name: Text::none(),
        }
    }

    pub(super) fn begin_task(&self, task: TaskInfo<'_>) {
        self.begin(TASK, || {
            self.task.store(task.id().index(), Ordering::Relaxed);
            self.type_name.set(Some(task.type_name()));
            self.set_place(task.location());
            self.name.set(task.name());
        });
    }

    pub(super) fn begin_root(&self, type_name: &'static str, place: &'static Location<'static>) {
        self.begin(ROOT, || {
            self.type_name.set(Some(type_name));
            self.set_place(place);
            self.name.set(None);
        });
    }

    pub(super) fn begin_upkeep(&self) {
        self.begin(UPKEEP, || self.name.set(None));
    }

    pub(super) fn rest(&self) {
        let even = (self.number.load(Ordering::Relaxed) + 1) & !1;
        self.number.store(even, Ordering::Release);
    }

    fn begin(&self, kind: u8, write: impl FnOnce()) {
        let even = (self.number.load(Ordering::Relaxed) + 1) & !1;
        self.number.store(even, Ordering::Relaxed);
        // Pairs with the fence in `holder`: who reads what follows finds the number changed.
        fence(Ordering::Release);
        self.kind.store(kind, Ordering::Relaxed);
        write();
        // Pairs with the load in `number`: who finds the odd number reads all of the above.
        self.number.store(even + 1, Ordering::Release);
    }

    fn set_place(&self, place: &'static Location<'static>) {
        self.place.store(ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
    }

    /// Odd while something runs.
    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// What runs under this odd number that was just read, without its name. None if it ended.
    pub(super) fn holder(&self, number: u64) -> Option<Holder> {
        let kind = self.kind.load(Ordering::Relaxed);
        let task = self.task.load(Ordering::Relaxed);
        let type_name = self.type_name.get();
        let place = self.place.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if self.number.load(Ordering::Relaxed) != number {
            return None;
        }
        if kind == UPKEEP {
            return Some(Holder::Upkeep);
        }
        let (start, length) = type_name?;
        // SAFETY: both were written under this number, from a static text.
        let bytes = unsafe { std::slice::from_raw_parts(start, length) };
        let type_name = String::from_utf8_lossy(bytes).into_owned();
        // SAFETY: written under this number, from a reference to a static.
        let place = unsafe { place.as_ref() }?;
        if kind == ROOT {
            return Some(Holder::BlockOn { type_name, place });
        }
        let id = TaskId::new(self.shard, task);
        Some(Holder::Task(StalledTask { id, name: None, type_name, place }))
    }

    /// The bytes of the name of what runs under this number.
    ///
    /// # Safety
    /// Only for the shard's own thread, in a signal handler that keeps no reference: a task lives
    /// for the time of its poll.
    pub(super) unsafe fn name_on_its_thread(&self, number: u64) -> Option<&[u8]> {
        if self.number() != number {
            return None;
        }
        let (start, length) = self.name.get()?;
        // SAFETY: the poll whose number this is has been interrupted, so that the task is alive.
        Some(unsafe { std::slice::from_raw_parts(start, length) })
    }
}

impl Text {
    fn none() -> Text {
        Text { start: AtomicPtr::new(ptr::null_mut()), length: AtomicUsize::new(0) }
    }

    fn set(&self, text: Option<&str>) {
        let start = text.map_or(ptr::null(), str::as_ptr);
        self.start.store(start.cast_mut(), Ordering::Relaxed);
        self.length.store(text.map_or(0, str::len), Ordering::Relaxed);
    }

    fn get(&self) -> Option<(*const u8, usize)> {
        let start = self.start.load(Ordering::Relaxed);
        let length = self.length.load(Ordering::Relaxed);
        if start.is_null() { None } else { Some((start, length)) }
    }
}

#[cfg(all(test, loom))]
mod models;
