//! The uncompleted tasks of an executor, each at a number that it keeps.
//!
//! A word a task: a free place holds the number of the next one, marked by a bit that the addresses
//! of tasks do not have.

use super::task::{Header, TaskPtr, UNLISTED};
use std::ptr::NonNull;

#[derive(Debug)]
pub(super) struct List {
    places: Vec<Place>,
    /// The first free place, or [`NONE`].
    free: u32,
    len: u32,
}

/// A task, or a number shifted by one and with [`FREE`].
#[derive(Clone, Copy, Debug)]
struct Place(*mut Header);

/// Set in what is no address.
const FREE: usize = 1;

/// No place is free. Also what no task has for its number.
const NONE: u32 = UNLISTED;

const _: () = assert!(align_of::<Header>() > FREE && size_of::<usize>() > size_of::<u32>());

impl Place {
    fn free(next: u32) -> Place {
        Place(std::ptr::without_provenance_mut((next as usize) << 1 | FREE))
    }

    #[inline]
    fn task(self) -> Option<TaskPtr> {
        if self.0.addr() & FREE != 0 {
            return None;
        }
        NonNull::new(self.0).map(TaskPtr::from_header)
    }

    fn next(self) -> u32 {
        (self.0.addr() >> 1) as u32
    }
}

impl List {
    pub(super) fn new() -> List {
        List { places: Vec::new(), free: NONE, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// All numbers are below this one.
    pub(super) fn end(&self) -> u32 {
        self.places.len() as u32
    }

    #[inline]
    pub(super) fn insert(&mut self, task: TaskPtr) -> u32 {
        if self.free == NONE {
            self.grow();
        }
        let number = self.free;
        let place = &mut self.places[number as usize];
        self.free = place.next();
        *place = Place(task.header_ptr().as_ptr());
        self.len += 1;
        number
    }

    #[cold]
    fn grow(&mut self) {
        let number = self.end();
        assert!(number < NONE, "fewer than 2^32 tasks on a shard");
        self.places.push(Place::free(NONE));
        self.free = number;
    }

    /// Takes a listed task off.
    #[inline]
    pub(super) fn remove(&mut self, number: u32) {
        let place = &mut self.places[number as usize];
        debug_assert!(place.task().is_some());
        *place = Place::free(self.free);
        self.free = number;
        self.len -= 1;
    }

    pub(super) fn get(&self, number: u32) -> Option<TaskPtr> {
        self.places.get(number as usize)?.task()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = TaskPtr> {
        self.places.iter().filter_map(|place| place.task())
    }
}
