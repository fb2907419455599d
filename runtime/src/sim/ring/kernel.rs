//! The simulated kernel's side of a ring: what `io_uring_enter` does.
//!
//! 1. It takes entries out of the queue and begins each. What is not over at once becomes a
//!    [`Flight`], which keeps its file open as the kernel does.
//! 2. It looks which flights can go on, and the dice say when and in which order they do. Memory
//!    that an entry points to is touched in that moment, not before and not afterwards.
//! 3. It posts completions; those that find no room are kept aside until they are asked for.
//! 4. If fewer are there than were asked for, it hands the baton on until something is due.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::buffers::Group;
use super::entry::{MORE, Posted, Request};
use super::flight::{Around, Flight, Step};
use super::kind::Kind;
use super::memory::{OVERFLOWN, Queues, TASKRUN};
use super::nature::Nature;
use crate::sim::World;

pub(crate) struct Kernel {
    pub(super) world: Arc<World>,
    pub(super) nature: Nature,
    queues: Queues,
    groups: BTreeMap<u16, Group>,
    /// What has been begun and has not ended, in that order.
    pub(super) flights: Vec<Flight>,
    /// How many have been begun.
    begun: u64,
    /// Completions that found no room.
    overflown: VecDeque<Posted>,
    /// Entries that this kernel does not understand.
    unknown: u64,
}

/// What an enter with `IORING_ENTER_GETEVENTS` waits for.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) completions: u32,
    pub(super) timeout: Option<Duration>,
}

impl Kernel {
    pub(super) fn new(world: Arc<World>, nature: Nature, queues: Queues) -> Kernel {
        Kernel {
            world,
            nature,
            queues,
            groups: BTreeMap::new(),
            flights: Vec::new(),
            begun: 0,
            overflown: VecDeque::new(),
            unknown: 0,
        }
    }

    /// # Errors
    ///
    /// EEXIST if there is such a group.
    ///
    /// # Safety
    ///
    /// As [`Group::new`], until the kernel is dropped.
    pub(super) unsafe fn register_buffers(
        &mut self,
        address: u64,
        count: u16,
        group: u16,
    ) -> io::Result<()> {
        if self.groups.contains_key(&group) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        // SAFETY: as the caller says.
        self.groups.insert(group, unsafe { Group::new(address, count) });
        Ok(())
    }

    pub(super) fn groups(&self) -> &BTreeMap<u16, Group> {
        &self.groups
    }

    /// How many entries were not understood.
    #[cfg(test)]
    pub(super) fn unknown(&self) -> u64 {
        self.unknown
    }

    /// `io_uring_enter(2)`. Answers how many entries were taken.
    ///
    /// # Errors
    ///
    /// EAGAIN, EBUSY and ENOMEM, as the dice fall; EINTR and ETIME if nothing was taken.
    #[track_caller]
    pub(super) fn enter(&mut self, asked: u32, wanted: Option<Wanted>) -> io::Result<usize> {
        let asked = asked.min(self.queues.queued());
        let choked = !self.overflown.is_empty() && self.queues.is_full();
        if let Some(errno) = self.nature.refusal(&self.world, asked > 0, choked) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let taken = self.nature.taken_of(&self.world, asked);
        for _ in 0..taken {
            if let Some(request) = self.queues.take() {
                self.begin(request);
            }
        }
        // A batch that is taken in part does not go on to wait (`io_uring_enter`, "goto out").
        let waited = match wanted {
            Some(wanted) if taken == asked => self.get_events(wanted),
            _ => Ok(()),
        };
        // Whatever is in flight may have news before the next enter, and nobody but an enter looks.
        self.queues.show(TASKRUN, !self.flights.is_empty());
        // What was taken hides why the wait has ended.
        if taken > 0 { Ok(taken as usize) } else { waited.map(|()| 0) }
    }

    #[track_caller]
    fn get_events(&mut self, wanted: Wanted) -> io::Result<()> {
        let until = wanted.timeout.map(|timeout| self.world.now() + timeout);
        self.world.pause();
        // Drawn once a wait and not once a look: the end of a wait has all others look, and would
        // end so many of their waits that many shards kept each other awake for ever.
        let mut looks_left = self.nature.interrupts_wait(&self.world);
        loop {
            self.flush_overflown();
            self.look();
            if self.queues.ready() >= wanted.completions {
                return Ok(());
            }
            looks_left = looks_left.map(|looks| looks.saturating_sub(1));
            if looks_left == Some(0) {
                return Err(io::Error::from_raw_os_error(libc::EINTR));
            }
            if until.is_some_and(|until| until <= self.world.now()) {
                return Err(io::Error::from_raw_os_error(libc::ETIME));
            }
            let due = self.flights.iter().filter_map(|flight| flight.due).chain(until).min();
            self.world.park(due);
        }
    }

    /// Begins what an entry asks for, as the kernel does while it takes it.
    fn begin(&mut self, request: Request) {
        let kind = match Kind::of(&request, &self.nature) {
            Ok(Kind::Cancel) => return self.cancel(&request),
            Ok(kind) => kind,
            Err(errno) => {
                self.unknown += 1;
                return self.post(request.user_data, -errno, 0);
            }
        };
        self.begun += 1;
        let mut flight = match Flight::new(request, kind, self.begun) {
            Ok(flight) => flight,
            Err(errno) => return self.post(request.user_data, -errno, 0),
        };
        // What may not wait is over before the enter goes on: quiet sends build on that. Whether
        // the first try of anything else is made at once, nobody has promised.
        let now =
            flight.may_not_wait() || !flight.waits_first() && !self.nature.defers(&self.world);
        if now && self.carry_on(&mut flight) {
            return;
        }
        self.flights.push(flight);
    }

    /// Carries on flights that can go on.
    fn look(&mut self) {
        self.world.take_closed();
        self.find_due();
        let now = self.world.now();
        let is_due = |flight: &&Flight| flight.due.is_some_and(|due| due <= now);
        let mut due: Vec<u64> = self.flights.iter().filter(is_due).map(|f| f.serial()).collect();
        self.nature.choose_from(&self.world, &mut due);
        for serial in due {
            self.carry_on_one(serial);
        }
        self.find_due();
    }

    /// Carries on a flight, and forgets it if it has ended.
    pub(super) fn carry_on_one(&mut self, serial: u64) {
        let Some(at) = self.flights.iter().position(|flight| flight.serial() == serial) else {
            return;
        };
        let mut flight = self.flights.remove(at);
        flight.due = None;
        if !self.carry_on(&mut flight) {
            self.flights.insert(at, flight);
        }
    }

    /// Finds out which flights can go on, and lets the dice say when they do.
    fn find_due(&mut self) {
        let now = self.world.now();
        for flight in &mut self.flights {
            if flight.due.is_none() && flight.can_go_on(&self.nature, &self.groups) {
                flight.due = Some(now + self.nature.delay(&self.world));
            }
        }
    }

    /// Carries a flight on, as far as it goes or the dice let it. True if it has ended.
    fn carry_on(&mut self, flight: &mut Flight) -> bool {
        let mut answers = self.nature.answers_of(&self.world);
        loop {
            let room = self.overflown.is_empty() && !self.queues.is_full();
            let mut around =
                Around { world: &self.world, nature: &self.nature, groups: &mut self.groups };
            let user_data = flight.user_data();
            match flight.step(&mut around) {
                Step::Wait => return false,
                Step::Part => {}
                // Without room for an answer behind which others follow, it is the last one.
                Step::More(result, flags) if room && !self.nature.ends_early(&self.world) => {
                    self.post(user_data, result, flags | MORE);
                    answers -= 1;
                    if answers == 0 {
                        return false;
                    }
                }
                Step::More(result, flags) => {
                    let result =
                        if room { result } else { flight.without_room(result, &self.nature) };
                    self.post(user_data, result, flags);
                    return true;
                }
                Step::Sent(result) => {
                    self.post(user_data, result, MORE);
                    return false;
                }
                Step::Last(result, flags) => {
                    if !flight.succeeds_silently(result) {
                        self.post(user_data, result, flags);
                    }
                    self.world.progressed();
                    return true;
                }
            }
            self.world.progressed();
        }
    }

    pub(super) fn post(&mut self, user_data: u64, result: i32, flags: u32) {
        let posted = Posted { user_data, result, flags };
        // The result may be a descriptor, whose number no seed gives.
        self.world.observe(user_data ^ u64::from(flags & MORE) << 62);
        // Behind what waits, nothing overtakes.
        if !self.overflown.is_empty() || !self.queues.post(posted) {
            self.overflown.push_back(posted);
            self.queues.show(OVERFLOWN, true);
        }
    }

    fn flush_overflown(&mut self) {
        while let Some(&posted) = self.overflown.front() {
            if !self.queues.post(posted) {
                return;
            }
            self.overflown.pop_front();
        }
        self.queues.show(OVERFLOWN, false);
    }
}
