//! A hierarchical timer wheel: insert and remove touch one slot, a jump of any length touches
//! only the slots that hold something.
//!
//! Time is counted in ticks. Seen from the current tick, a timer belongs to the level of the
//! highest six-bit digit in which its own tick differs, and there to the slot of that digit.
//! Three things follow, and the code below leans on them:
//!
//! 1. On a level every occupied slot lies ahead of the current digit (on the lowest level, at or
//!    ahead), so a level never wraps around and its first set bit is its earliest slot.
//! 2. Everything on a level is earlier than everything on the levels above it.
//! 3. A timer's place depends on the current tick only through the slot that contains that tick.
//!    When time moves, the timers of that one slot are placed anew, and nothing else moves.
//!
//! A slot is as fine as its level, but a timer keeps its exact deadline and fires by that alone.
//! Each slot knows the earliest deadline it was given, so the shard sleeps until a deadline and
//! not until a cascade. A removal leaves that minimum as it is. It may then be too early; whoever
//! wakes for it finds nothing due, the slot is placed anew with true minima, and the next answer
//! is later.

use std::mem;
use std::task::Waker;

use super::arena::{Arena, NIL, TimerKey};

/// A deadline that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

/// A tick is 2^16 ns, about 65.5 µs: the finest slot, not the resolution, which is exact.
const TICK_BITS: u32 = 16;

const TICK_NS: u64 = 1 << TICK_BITS;

/// Bits of one level's digit: a level's occupied slots fit one word.
const LEVEL_BITS: u32 = 6;

/// Slots of a level.
const LEVEL_SLOTS: usize = 1 << LEVEL_BITS;

/// As many levels as the ticks of a `u64` need, so that no deadline is out of range.
const LEVELS: usize = (u64::BITS - TICK_BITS).div_ceil(LEVEL_BITS) as usize;

/// The slot of a timer that never fires: none.
const UNLINKED: u16 = u16::MAX;

/// Fired timers that the scratch space stays large enough for.
const DUE_KEPT_MAX: usize = 1024;

/// The timers of one shard.
pub(crate) struct Timers {
    arena: Arena,
    /// Level by level, the digits in order.
    slots: Box<[Slot]>,
    /// Which slots of a level hold a timer.
    occupied: [u64; LEVELS],
    /// The tick of the last `expire`.
    tick: u64,
    /// What one `expire` has found due. Empty in between; kept for its memory.
    due: Vec<Due>,
}

/// What a timer's key and the waker of the moment have to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Registration {
    /// The timer waits and will wake this waker's task.
    Current,
    /// The timer waits, but for another waker.
    Other,
    /// The timer has fired, or was removed.
    Gone,
}

#[derive(Clone, Copy)]
struct Slot {
    head: u32,
    tail: u32,
    /// No timer in the slot is earlier. Says nothing while the slot is empty.
    min_ns: u64,
}

/// Sorts by deadline, then by the order in which timers were found, which is that of their
/// insertion.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    deadline_ns: u64,
    order: u32,
    index: u32,
}

impl Timers {
    pub(crate) fn new() -> Self {
        let empty = Slot { head: NIL, tail: NIL, min_ns: NEVER };
        Self {
            arena: Arena::new(),
            slots: vec![empty; LEVELS * LEVEL_SLOTS].into(),
            occupied: [0; LEVELS],
            tick: 0,
            due: Vec::new(),
        }
    }

    /// Timers that wait, those that never fire among them.
    pub(crate) fn len(&self) -> usize {
        self.arena.len()
    }

    /// Adds a timer. A deadline in the past is due at the next [`expire`](Self::expire).
    pub(crate) fn insert(&mut self, deadline_ns: u64, waker: Waker) -> TimerKey {
        let key = self.arena.insert(deadline_ns, waker);
        self.link(key.index);
        key
    }

    /// Moves a timer to another deadline; it keeps key and waker. False if it has fired already.
    #[must_use]
    pub(crate) fn reset(&mut self, key: TimerKey, deadline_ns: u64) -> bool {
        if self.arena.get(key).is_none() {
            return false;
        }
        self.unlink(key.index);
        self.arena.at_mut(key.index).deadline_ns = deadline_ns;
        self.link(key.index);
        true
    }

    /// Whether the timer still waits, and for this waker.
    pub(crate) fn registration(&self, key: TimerKey, waker: &Waker) -> Registration {
        match self.arena.get(key).and_then(|entry| entry.waker.as_ref()) {
            Some(current) if current.will_wake(waker) => Registration::Current,
            Some(_) => Registration::Other,
            None => Registration::Gone,
        }
    }

    /// Gives a waiting timer another waker and returns the one before it; gives `waker` back as
    /// the error if the timer has fired. Either is the caller's to drop, when nothing is
    /// borrowed.
    pub(crate) fn replace_waker(&mut self, key: TimerKey, waker: Waker) -> Result<Waker, Waker> {
        if self.arena.get(key).is_none() {
            return Err(waker);
        }
        match &mut self.arena.at_mut(key.index).waker {
            Some(current) => Ok(mem::replace(current, waker)),
            None => Err(waker),
        }
    }

    /// Takes a timer out. `None` if it has fired already. The caller drops the waker, when
    /// nothing is borrowed.
    #[must_use]
    pub(crate) fn remove(&mut self, key: TimerKey) -> Option<Waker> {
        self.arena.get(key)?;
        self.unlink(key.index);
        Some(self.arena.remove(key.index))
    }

    /// Takes all wakers out, for a shard that ends. Every key becomes unknown.
    pub(crate) fn drain(&mut self, wakers: &mut Vec<Waker>) {
        self.arena.drain(wakers);
        self.occupied = [0; LEVELS];
        for slot in &mut self.slots {
            (slot.head, slot.tail) = (NIL, NIL);
        }
    }

    /// When the shard has to look again. No timer is due before it; it may be too early after a
    /// removal. Later than `now_ns` of the last [`expire`](Self::expire), unless a past deadline
    /// was inserted since.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        Some(self.slots[slot_number(level, self.occupied[level].trailing_zeros())].min_ns)
    }

    /// When a shard that sleeps is to wake: at the next deadline, or, where several lie in its
    /// tick, at the end of that, for all of them. It may be too early as
    /// [`next_deadline`](Self::next_deadline) may, and is never a whole tick later.
    pub(crate) fn next_wake(&self) -> Option<u64> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        let slot = &self.slots[slot_number(level, self.occupied[level].trailing_zeros())];
        let shared = level == 0 && slot.head != slot.tail;
        Some(if shared { (slot.min_ns | (TICK_NS - 1)).saturating_add(1) } else { slot.min_ns })
    }

    /// Takes out what is due at `now_ns`, in the order of the deadlines, and among equal ones in
    /// the order of insertion. The caller wakes, when nothing is borrowed.
    pub(crate) fn expire(&mut self, now_ns: u64, woken: &mut Vec<Waker>) {
        // A clock that goes back finds the wheel where it was.
        let tick = (now_ns >> TICK_BITS).max(self.tick);
        let top = level_of(self.tick ^ tick);
        self.tick = tick;
        for level in 0..top {
            let bits = mem::take(&mut self.occupied[level]);
            self.take_slots(level, bits, now_ns);
        }
        let passed = u64::MAX >> (LEVEL_SLOTS as u32 - 1 - digit_of(tick, top));
        let bits = self.occupied[top] & passed;
        self.occupied[top] &= !passed;
        self.take_slots(top, bits, now_ns);
        self.take_due(woken);
    }

    /// Bytes held, but for those of `self`.
    #[cfg(test)]
    pub(super) fn allocated_bytes(&self) -> usize {
        self.arena.allocated_bytes()
            + size_of_val::<[Slot]>(&self.slots)
            + self.due.capacity() * size_of::<Due>()
    }

    /// Empties slots that begin at or before the current tick. Only the one that contains the
    /// current tick can hold timers that are not due; they are placed anew, on lower levels or in
    /// the same slot of the lowest.
    fn take_slots(&mut self, level: usize, mut bits: u64, now_ns: u64) {
        while bits != 0 {
            let slot = &mut self.slots[slot_number(level, bits.trailing_zeros())];
            bits &= bits - 1;
            let mut index = mem::replace(&mut slot.head, NIL);
            slot.tail = NIL;
            while index != NIL {
                let entry = self.arena.at(index);
                let (deadline_ns, next) = (entry.deadline_ns, entry.next);
                if deadline_ns <= now_ns {
                    let order = self.due.len() as u32;
                    self.due.push(Due { deadline_ns, order, index });
                } else {
                    self.link(index);
                }
                index = next;
            }
        }
    }

    fn take_due(&mut self, woken: &mut Vec<Waker>) {
        if self.due.len() > 1 {
            self.due.sort_unstable();
        }
        for due in self.due.drain(..) {
            woken.push(self.arena.remove(due.index));
        }
        if self.due.capacity() > DUE_KEPT_MAX {
            self.due = Vec::new();
        }
    }

    /// Puts an entry at the end of the slot where its deadline belongs.
    fn link(&mut self, index: u32) {
        let deadline_ns = self.arena.at(index).deadline_ns;
        if deadline_ns == NEVER {
            self.arena.at_mut(index).slot = UNLINKED;
            return;
        }
        let tick = (deadline_ns >> TICK_BITS).max(self.tick);
        let level = level_of(self.tick ^ tick);
        let digit = digit_of(tick, level);
        let number = slot_number(level, digit);
        self.occupied[level] |= 1 << digit;

        let slot = &mut self.slots[number];
        let prev = mem::replace(&mut slot.tail, index);
        if prev == NIL {
            slot.head = index;
            slot.min_ns = deadline_ns;
        } else {
            slot.min_ns = slot.min_ns.min(deadline_ns);
            self.arena.at_mut(prev).next = index;
        }
        let entry = self.arena.at_mut(index);
        entry.prev = prev;
        entry.next = NIL;
        entry.slot = number as u16;
    }

    fn unlink(&mut self, index: u32) {
        let entry = self.arena.at(index);
        let (prev, next, number) = (entry.prev, entry.next, entry.slot);
        if number == UNLINKED {
            return;
        }
        let number = usize::from(number);
        match prev {
            NIL => self.slots[number].head = next,
            prev => self.arena.at_mut(prev).next = next,
        }
        match next {
            NIL => self.slots[number].tail = prev,
            next => self.arena.at_mut(next).prev = prev,
        }
        if prev == NIL && next == NIL {
            self.occupied[number / LEVEL_SLOTS] &= !(1 << (number % LEVEL_SLOTS));
        }
    }
}

/// The level of the highest digit in which two ticks differ, given their exclusive or.
fn level_of(difference: u64) -> usize {
    ((difference | 1).ilog2() / LEVEL_BITS) as usize
}

fn digit_of(tick: u64, level: usize) -> u32 {
    (tick >> (LEVEL_BITS * level as u32)) as u32 % LEVEL_SLOTS as u32
}

fn slot_number(level: usize, digit: u32) -> usize {
    level * LEVEL_SLOTS + digit as usize
}
