//! What a simulated ring may do to its driver, and how often.
//!
//! Everything that is drawn here is what some kernel from 6.1 on may do; the comments say which.

use std::time::Duration;

use super::cancel::Verdict;
use super::flight::Ending;
use crate::ring::Trial;
use crate::sim::{Dice, Faults, World};

/// What kernels differ in. Drawn once per world, so that all its shards agree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub(super) trial: Trial,
    /// Waits can be told not to count as waits for a disk (since 6.15).
    pub(super) no_iowait: bool,
    /// A receive without a buffer fails before there is anything to receive (6.18, and not 6.2 to
    /// 6.8).
    pub(super) dry_at_once: bool,
    /// A multishot poll that has no room for an answer says ECANCELED (6.1).
    pub(super) polls_give_up: bool,
}

impl Traits {
    /// Those of a recent kernel.
    pub(super) const RECENT: Traits = Traits {
        trial: Trial { quiet_sends: true, zero_copy_sends: true, bounded_receives: true },
        no_iowait: true,
        dry_at_once: true,
        polls_give_up: false,
    };

    /// Those of the kernel that a world has.
    pub(super) fn of(world: &World) -> Traits {
        if world.faults().ring_failures == 0 {
            return Traits::RECENT;
        }
        let mut dice = Dice::new(world.seed() ^ 0x6b65_726e_656c);
        Traits {
            trial: Trial {
                quiet_sends: !dice.one_in(4),
                zero_copy_sends: !dice.one_in(4),
                bounded_receives: dice.one_in(2),
            },
            no_iowait: dice.one_in(2),
            dry_at_once: dice.one_in(2),
            polls_give_up: dice.one_in(2),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Nature {
    pub(super) traits: Traits,
    faults: Faults,
    /// The order in which things are done is that in which they came.
    orderly: bool,
}

/// How long something is held back that could be done: what a busy machine needs.
const DELAY_MAX: Duration = Duration::from_millis(1);

/// How often a multishot goes on in one visit (`MULTISHOT_MAX_RETRY`, since 6.3).
const ANSWERS_MAX: u64 = 32;

/// How many looks a wait that a signal ends has at most: some have looked in vain and waited.
const LOOKS_MAX: u64 = 3;

/// How often what was told to end still does what it was asked for.
const GOES_ON_MAX: u64 = 3;

impl Nature {
    pub(super) fn of(world: &World) -> Nature {
        Nature { traits: Traits::of(world), faults: world.faults(), orderly: false }
    }

    /// A recent kernel that does everything at once and in order.
    #[cfg(test)]
    pub(super) fn plain() -> Nature {
        Nature { traits: Traits::RECENT, faults: Faults::none(), orderly: true }
    }

    /// How many completions a ring of so many entries has room for: at least as many, as the kernel
    /// has it, and at most what was asked for.
    pub(super) fn completions_of(&self, world: &World, entries: u32, asked: u32) -> u32 {
        let choices = u64::from((asked / entries).max(1).ilog2()) + 1;
        if self.fails(world) { asked >> world.roll(|dice| dice.below(choices)) } else { asked }
    }

    /// Why an enter fails before it has done anything. EAGAIN: no memory for a request, so that the
    /// first entry cannot be taken. EBUSY: completions wait aside and the queue is full, as the
    /// manual says. ENOMEM: as EAGAIN, of older kernels.
    pub(super) fn refusal(&self, world: &World, submits: bool, choked: bool) -> Option<i32> {
        if !self.fails(world) {
            return None;
        }
        match world.roll(|dice| dice.below(3)) {
            0 if submits => Some(libc::EAGAIN),
            1 if choked => Some(libc::EBUSY),
            2 => Some(libc::ENOMEM),
            _ => None,
        }
    }

    /// How many of the entries are taken. Fewer than all: no memory for the next request.
    pub(super) fn taken_of(&self, world: &World, asked: u32) -> u32 {
        if asked > 1 && self.fails(world) {
            return 1 + world.roll(|dice| dice.below(u64::from(asked) - 1)) as u32;
        }
        asked
    }

    /// After how many looks a wait ends by a signal, if it does.
    pub(super) fn interrupts_wait(&self, world: &World) -> Option<u64> {
        self.interrupts(world).then(|| 1 + world.roll(|dice| dice.below(LOOKS_MAX)))
    }

    /// A multishot ends with an answer behind which others were to follow.
    pub(super) fn ends_early(&self, world: &World) -> bool {
        self.fails(world)
    }

    /// A request is not tried while it is taken, as if it had been given to a worker.
    pub(super) fn defers(&self, world: &World) -> bool {
        world.roll(|dice| dice.one_in(self.faults.late_events))
    }

    /// How long something is held back that could be done.
    pub(super) fn delay(&self, world: &World) -> Duration {
        if !world.roll(|dice| dice.one_in(self.faults.late_events)) {
            return Duration::ZERO;
        }
        let nanos = DELAY_MAX.as_nanos() as u64;
        Duration::from_nanos(world.roll(|dice| dice.below(nanos)))
    }

    /// How many answers a multishot gives in one visit.
    pub(super) fn answers_of(&self, world: &World) -> u64 {
        if self.defers(world) {
            1 + world.roll(|dice| dice.below(ANSWERS_MAX))
        } else {
            ANSWERS_MAX
        }
    }

    /// Brings what could be done now into an order, and leaves some of it for the next look.
    pub(super) fn choose_from(&self, world: &World, due: &mut Vec<u64>) {
        if self.orderly || due.is_empty() {
            return;
        }
        world.roll(|dice| dice.shuffle(due));
        if self.defers(world) {
            let kept = 1 + world.roll(|dice| dice.below(due.len() as u64)) as usize;
            due.truncate(kept);
        }
    }

    /// How much of this length a call is given. `None`: as if it had found nothing, or no room.
    pub(super) fn piece_of(&self, world: &World, length: usize) -> Option<usize> {
        if length == 0 || !world.roll(|dice| dice.one_in(self.faults.short_io)) {
            return Some(length);
        }
        let nothing = world.roll(|dice| dice.one_in(4));
        (!nothing).then(|| 1 + world.roll(|dice| dice.below(length as u64)) as usize)
    }

    /// A signal ends a send before it has sent anything.
    pub(super) fn interrupts_send(&self, world: &World) -> Option<i32> {
        self.interrupts(world).then_some(libc::EINTR)
    }

    fn interrupts(&self, world: &World) -> bool {
        world.roll(|dice| dice.one_in(self.faults.interruptions))
    }

    /// No memory for a notice.
    pub(super) fn refuses_zero_copy(&self, world: &World) -> Option<i32> {
        self.fails(world).then_some(libc::ENOBUFS)
    }

    /// A zero-copy send has copied all the same.
    pub(super) fn copies(&self, world: &World) -> bool {
        self.fails(world)
    }

    /// The answer of what was cancelled comes before that of the cancel.
    pub(super) fn hurries(&self, world: &World) -> bool {
        !self.orderly && world.roll(|dice| dice.one_in(4))
    }

    /// What a cancel finds. `about_to_end`: the next step of the request is its last.
    pub(super) fn verdict(&self, world: &World, single: bool, about_to_end: bool) -> Verdict {
        if self.orderly {
            return Verdict::Found(Ending { errno: libc::ECANCELED, goes_on: 0 });
        }
        let goes_on = world.roll(|dice| dice.below(GOES_ON_MAX)) as u32;
        let found = Verdict::Found(Ending { errno: libc::ECANCELED, goes_on });
        match world.roll(|dice| dice.below(8)) {
            0 if about_to_end => Verdict::Gone,
            // Only what a worker does can be interrupted, and multishots are never given to one.
            1 if single => Verdict::TooLate(Ending { errno: libc::EINTR, goes_on }),
            2 if single => Verdict::TooLate(Ending { errno: libc::ECANCELED, goes_on }),
            _ => found,
        }
    }

    fn fails(&self, world: &World) -> bool {
        world.roll(|dice| dice.one_in(self.faults.ring_failures))
    }
}
