//! Slots hold operations in flight. Only the ring driver touches them; keys go to the kernel.
//!
//! A key is an index and a generation. What the kernel sends back is looked up, never trusted: a
//! key that is unknown or stale finds nothing.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::collections::VecDeque;
use std::task::Waker;

use slab::Slab;

use super::operation::{Completion, Orphan};
use crate::executor::wake_own;

/// Marks the keys of quiet sends.
const QUIET: u64 = 1 << 63;

/// Generations and batches have 31 bits.
const GENERATION_MAX: u32 = u32::MAX >> 1;

/// Names one operation in flight. It is the `user_data` of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    fn new(index: usize, generation: u32) -> Key {
        Key(u64::from(generation) << 32 | index as u64)
    }

    /// Names a send of a batch. The top bit tells such keys from those of slots.
    pub(super) fn of_quiet_send(batch: u32, index: usize) -> Key {
        Key(QUIET | u64::from(batch & GENERATION_MAX) << 32 | index as u64)
    }

    /// Where the send stands in the batch, if it belongs to this one.
    pub(super) fn quiet_send_of(self, batch: u32) -> Option<usize> {
        let own = Key::of_quiet_send(batch, 0).0;
        (self.0 & !u64::from(u32::MAX) == own).then(|| self.index())
    }

    pub(super) fn is_quiet_send(self) -> bool {
        self.0 & QUIET != 0
    }

    pub(crate) fn from_user_data(user_data: u64) -> Key {
        Key(user_data)
    }

    pub(crate) fn user_data(self) -> u64 {
        self.0
    }

    fn index(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Where an operation in flight stands.
pub(crate) enum State {
    /// The future waits for the one answer.
    Waiting(Option<Waker>),
    /// The answer has come and the future has not yet taken it.
    Done(Completion),
    /// Many answers: those that came and were not yet taken, in order.
    Multishot(Multishot),
    /// The future is gone; the operation waits here for its last answer.
    Orphaned(Box<dyn Orphan>),
    /// The orphan is being handed answers outside of the driver's borrow; these have come since.
    Lent(VecDeque<Completion>),
}

#[derive(Default)]
pub(crate) struct Multishot {
    pub(crate) waker: Option<Waker>,
    /// The owner has found nothing: it is to be woken, once.
    awaited: bool,
    pub(crate) queue: VecDeque<Completion>,
    pub(crate) armed: bool,
    pub(crate) stopping: bool,
    pub(crate) queued_max: usize,
}

struct Slot {
    generation: u32,
    state: State,
}

/// What a completion asks of the driver, to be done when no borrow is held.
pub(crate) enum Arrival {
    /// Nobody knows the key.
    Stale,
    /// Known, and nobody is waiting.
    Quiet,
    Wake(Waker),
    /// The multishot has queued enough: wake its owner, if one waits, and stop it.
    Stop(Option<Waker>),
    /// An orphan must be handed the answer.
    Orphaned,
}

#[derive(Default)]
pub(crate) struct Slots {
    slots: Slab<Slot>,
    generation: u32,
}

impl Slots {
    pub(crate) fn insert(&mut self, state: State) -> Key {
        self.generation = self.generation.wrapping_add(1) & GENERATION_MAX;
        let generation = self.generation;
        let index = self.slots.insert(Slot { generation, state });
        assert!(index < RESERVED_INDEX, "fewer operations in flight than a key can name");
        Key::new(index, generation)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut State> {
        let slot = self.slots.get_mut(key.index())?;
        (slot.generation == key.generation()).then_some(&mut slot.state)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<State> {
        self.get_mut(key)?;
        Some(self.slots.remove(key.index()).state)
    }

    /// True while the kernel owes an answer. What was answered and not yet taken does not count.
    pub(crate) fn any_in_flight(&self) -> bool {
        self.slots.iter().any(|(_, slot)| match &slot.state {
            State::Waiting(_) | State::Orphaned(_) | State::Lent(_) => true,
            State::Multishot(multishot) => multishot.armed,
            State::Done(_) => false,
        })
    }

    /// The answers that came and were not taken.
    pub(crate) fn take_untaken(&mut self) -> impl Iterator<Item = (Key, VecDeque<Completion>)> {
        self.slots.iter_mut().filter_map(|(index, slot)| {
            let answers = match &mut slot.state {
                State::Done(completion) => VecDeque::from([*completion]),
                State::Multishot(multishot) => std::mem::take(&mut multishot.queue),
                State::Waiting(_) | State::Orphaned(_) | State::Lent(_) => return None,
            };
            (!answers.is_empty()).then(|| (Key::new(index, slot.generation), answers))
        })
    }

    /// Notes an answer of the kernel.
    #[must_use]
    pub(crate) fn arrive(&mut self, key: Key, completion: Completion) -> Arrival {
        let Some(state) = self.get_mut(key) else { return Arrival::Stale };
        match state {
            State::Waiting(waker) => {
                let waker = waker.take().filter(|waker| !wake_own(waker));
                *state = State::Done(completion);
                waker.map_or(Arrival::Quiet, Arrival::Wake)
            }
            State::Multishot(multishot) => multishot.arrive(completion),
            State::Orphaned(_) | State::Lent(_) => Arrival::Orphaned,
            // A second answer to an operation that has one. The kernel does not do that; if it
            // did, the first would stand.
            State::Done(_) => Arrival::Stale,
        }
    }
}

/// Indices from here on never occur: the driver's own keys use them.
const RESERVED_INDEX: usize = u32::MAX as usize - 7;

/// The key of the wake-up poll.
pub(crate) const WAKE_KEY: Key = Key(u64::MAX);

/// The key of entries whose answer nobody needs: cancels.
pub(crate) const IGNORED_KEY: Key = Key(u64::MAX - 1);

impl Multishot {
    pub(crate) fn new(waker: Waker, queued_max: usize) -> Multishot {
        Multishot {
            waker: Some(waker),
            awaited: true,
            armed: true,
            queued_max,
            ..Multishot::default()
        }
    }

    /// The owner waits, and is to be woken by this waker. False if that is not the one which is
    /// here: [replace](Multishot::replace_waker) it.
    pub(crate) fn await_by(&mut self, waker: &Waker) -> bool {
        self.awaited = self.waker.as_ref().is_some_and(|known| known.will_wake(waker));
        self.awaited
    }

    /// The owner waits. Answers the waker of before.
    pub(crate) fn replace_waker(&mut self, waker: Waker) -> Option<Waker> {
        self.awaited = true;
        self.waker.replace(waker)
    }

    /// Wakes the owner if it waits and is a task of this shard, whose waker stays for the next
    /// time. Anybody else's is handed out.
    fn wake(&mut self) -> Option<Waker> {
        if !std::mem::take(&mut self.awaited) || self.waker.as_ref().is_some_and(wake_own) {
            return None;
        }
        self.waker.take()
    }

    fn arrive(&mut self, completion: Completion) -> Arrival {
        // F_MORE alone decides: a positive result can be the last one (after an overflow), and an
        // error always is.
        self.armed = completion.more();
        let stopped = self.stopping && !self.armed;
        if !self.armed {
            self.stopping = false;
        }
        if !(stopped && completion.is_errno(libc::ECANCELED)) {
            self.queue.push_back(completion);
        }
        let waker = self.wake();
        if self.armed && !self.stopping && self.queue.len() >= self.queued_max {
            self.stopping = true;
            return Arrival::Stop(waker);
        }
        waker.map_or(Arrival::Quiet, Arrival::Wake)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer without F_MORE.
    fn last(result: i32) -> Completion {
        Completion::from_error(&std::io::Error::from_raw_os_error(-result))
    }

    #[test]
    fn a_key_of_a_reused_slot_finds_nothing() {
        let mut slots = Slots::default();
        let waiting = || State::Waiting(None);
        let old = slots.insert(waiting());
        slots.remove(old);
        let new = slots.insert(waiting());
        assert_eq!(old.index(), new.index());
        assert!(slots.get_mut(old).is_none());
        assert!(slots.remove(old).is_none());
        assert!(matches!(slots.arrive(old, last(1)), Arrival::Stale));
        assert!(matches!(slots.get_mut(new), Some(State::Waiting(_))));
    }

    #[test]
    fn a_multishot_ends_by_its_flag_not_by_its_result() {
        let mut slots = Slots::default();
        let key = slots.insert(State::Multishot(Multishot::new(Waker::noop().clone(), 8)));
        assert!(matches!(slots.arrive(key, last(5)), Arrival::Wake(_)));
        let Some(State::Multishot(multishot)) = slots.get_mut(key) else { panic!("kept") };
        assert!(!multishot.armed);
        assert_eq!(multishot.queue.len(), 1);
    }

    #[test]
    fn a_full_queue_stops_the_multishot_once() {
        let mut slots = Slots::default();
        let key = slots.insert(State::Multishot(Multishot::new(Waker::noop().clone(), 2)));
        let more = Completion::from_call(1);
        assert!(matches!(slots.arrive(key, more), Arrival::Wake(_)));
        assert!(matches!(slots.arrive(key, more), Arrival::Stop(None)));
        assert!(matches!(slots.arrive(key, more), Arrival::Quiet));
        let cancelled = Completion::from_error(&std::io::Error::from_raw_os_error(libc::ECANCELED));
        assert!(matches!(slots.arrive(key, cancelled), Arrival::Quiet));
        let Some(State::Multishot(multishot)) = slots.get_mut(key) else { panic!("kept") };
        assert_eq!(multishot.queue.len(), 3, "the end that was asked for is not an answer");
    }
}
