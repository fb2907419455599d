//! The world of a simulation: the clock, the dice, and the baton that goes from shard to shard.
//!
//! Each shard has a thread of its own, as always, but only one of them runs: the one that has the
//! baton. It gives it up when it waits ([`World::park`]), and sometimes in between
//! ([`World::pause`]). Who is next is drawn from the dice, among those for whom something may have
//! changed. If nothing has changed for anybody, the clock moves to the next moment at which
//! something is due. If nothing is due either, the program stands still for ever, and is told so by
//! a panic: a hang is found the moment it happens.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::dice::Dice;
use super::faults::Faults;
use super::handles::Handles;
use super::network::Network;
use super::trace::{Event, Trace};
use crate::sys::EpollEvent;

/// After so many turns in which the clock stood still it moves all the same, so that a task that
/// polls a deadline in a loop meets it.
const TURNS_AT_ONE_TIME_MAX: u32 = 1000;

/// How far it then moves.
const BUSY_STEP: Duration = Duration::from_millis(1);

/// One simulation; shared by its shards.
pub(crate) struct World {
    seed: u64,
    faults: Faults,
    /// What the clock's zero is called.
    origin: Instant,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) faults: Faults,
    pub(super) dice: Dice,
    pub(super) now: Duration,
    pub(super) network: Network,
    pub(super) handles: Handles,
    /// What a shard is told later.
    pub(super) held: BTreeMap<SeatId, Vec<EpollEvent>>,
    /// How many watches there have been that are no epoll instance's.
    pub(super) lone_watches: u64,
    seats: BTreeMap<SeatId, Seat>,
    next_seat: SeatId,
    /// Who has the baton.
    running: Option<SeatId>,
    turns_at_this_time: u32,
    /// How many turns there were, and how many there may be.
    pub(super) turns: u64,
    turns_max: u64,
    pub(super) trace: Trace,
    /// What everybody waited for when nothing could happen any more.
    standstill: Option<Arc<str>>,
}

/// The first is that of the thread which has made the world. They are never another thread's, as a
/// shard that has failed may be started anew while its thread ends.
pub(super) type SeatId = u64;

struct Seat {
    /// Which shard it is, for people.
    shard: usize,
    mood: Mood,
    /// Rung when it has the baton.
    turn: Arc<Condvar>,
}

enum Mood {
    /// Something may have changed for it, or it is only about to arrive.
    Ready,
    /// Has found nothing to do before this time.
    Parked { due: Option<Duration> },
    /// Is to panic: nothing can happen any more.
    Stuck,
}

thread_local! {
    static CURRENT: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// The seat of this thread, also while the thread ends and its locals are gone.
fn here<R>(look: impl FnOnce(&Place) -> R) -> Option<R> {
    CURRENT.try_with(|place| place.borrow().as_ref().map(look)).ok().flatten()
}

/// A seat that somebody is going to take, or has taken.
#[derive(Clone)]
pub(crate) struct Place {
    world: Arc<World>,
    seat: SeatId,
}

impl World {
    /// A world that ends after so many turns.
    pub(crate) fn new(seed: u64, faults: Faults, turns_max: u64) -> Arc<World> {
        Arc::new(World {
            seed,
            faults,
            origin: Instant::now(),
            state: Mutex::new(State {
                faults,
                dice: Dice::new(seed),
                now: Duration::ZERO,
                network: Network::default(),
                handles: Handles::default(),
                held: BTreeMap::new(),
                lone_watches: 0,
                seats: BTreeMap::new(),
                next_seat: 0,
                running: None,
                turns_at_this_time: 0,
                turns: 0,
                turns_max,
                trace: Trace::new(seed),
                standstill: None,
            }),
        })
    }

    /// The world that this thread lives in.
    pub(crate) fn current() -> Option<Arc<World>> {
        here(|place| Arc::clone(&place.world))
    }

    /// Keeps a seat for a thread that is about to be made. It counts as runnable from now on: when
    /// it is chosen the others wait for it to arrive.
    pub(crate) fn expect(self: &Arc<World>, shard: usize) -> Place {
        let mut state = self.lock();
        let seat = state.next_seat;
        state.next_seat += 1;
        state.seat_at(seat, shard);
        Place { world: Arc::clone(self), seat }
    }

    /// Draws. Nothing else may decide what happens in a simulation.
    pub(crate) fn roll<R>(&self, draw: impl FnOnce(&mut Dice) -> R) -> R {
        draw(&mut self.lock().dice)
    }

    /// Time since the beginning of the simulation.
    pub(crate) fn now(&self) -> Duration {
        self.lock().now
    }

    /// The same time, as others name it.
    pub(crate) fn instant(&self) -> Instant {
        self.origin + self.now()
    }

    /// What may go wrong and how often.
    pub(crate) fn faults(&self) -> Faults {
        self.faults
    }

    /// Has something go into the fingerprint that only this seed makes happen.
    pub(crate) fn observe(&self, what: u64) {
        self.lock().note(Event::Observed, what, 0);
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// What stood still, if it did.
    pub(crate) fn standstill(&self) -> Option<Arc<str>> {
        self.lock().standstill.clone()
    }

    /// Something happened that others might see: those who are parked look again.
    pub(crate) fn progressed(&self) {
        self.lock().wake_all();
    }

    /// Hands the baton on. Returns when it is this shard's turn again: because `due` has come, or
    /// because others have progressed and it must look again.
    ///
    /// # Panics
    ///
    /// If nothing can happen any more, for anybody.
    #[track_caller]
    pub(crate) fn park(&self, due: Option<Duration>) {
        self.hand_on(Mood::Parked { due });
    }

    /// Something happened that others might see, and they run first if the dice choose them.
    pub(crate) fn pause(&self) {
        self.hand_on(Mood::Ready);
    }

    /// The seat of this thread.
    pub(super) fn seat() -> SeatId {
        here(|place| place.seat).expect("only who lives in a world is asked")
    }

    #[track_caller]
    fn hand_on(&self, mood: Mood) {
        let seat = World::seat();
        let mut state = self.lock();
        if matches!(mood, Mood::Ready) {
            // It has done something, and the others have not seen it.
            state.wake_all();
        }
        state.seat(seat).mood = mood;
        state.choose_next();
        let state = self.wait_for_turn(state, seat);
        if let Some(text) = state.standstill_of(seat) {
            drop(state);
            panic!("{text}");
        }
    }

    fn wait_for_turn<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        seat: SeatId,
    ) -> MutexGuard<'a, State> {
        let turn = Arc::clone(&state.seat(seat).turn);
        while state.running != Some(seat) {
            state = turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Takes the seat, and waits until it has the baton. Until the guard goes, this thread lives in
    /// the world.
    pub(crate) fn take(self) -> Taken {
        self.sit_down();
        Taken(())
    }

    fn sit_down(self) {
        assert!(World::current().is_none(), "a simulation was run within another");
        CURRENT.set(Some(self.clone()));
        let mut state = self.world.lock();
        if state.running.is_none() {
            state.choose_next();
        }
        drop(self.world.wait_for_turn(state, self.seat));
    }

    fn leave(&self) {
        let mut state = self.stand_up();
        state.held.remove(&self.seat);
    }

    fn stand_up(&self) -> MutexGuard<'_, State> {
        CURRENT.set(None);
        let mut state = self.world.lock();
        state.note(Event::Leave, self.seat, 0);
        state.seats.remove(&self.seat);
        // What it has done last may concern the others.
        state.wake_all();
        state.choose_next();
        state
    }

    /// Nobody is going to take it.
    pub(crate) fn give_up(self) {
        self.world.lock().seats.remove(&self.seat);
    }
}

/// This thread has a seat in a world, the one that it took or that it [went back
/// to](World::stand_aside), until this goes.
pub(crate) struct Taken(());

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(place) = here(Place::clone) {
            place.leave();
        }
    }
}

impl World {
    /// Gives up the seat of this thread, until the guard goes.
    pub(crate) fn stand_aside() -> Option<Aside> {
        let place = here(Place::clone)?;
        let shard = place.world.lock().seat(place.seat).shard;
        drop(place.stand_up());
        Some(Aside { place, shard })
    }
}

/// Has given up its seat for a while. It is kept for it: sockets that are watched know who watches
/// by the seat.
pub(crate) struct Aside {
    place: Place,
    shard: usize,
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.place.world.lock().seat_at(self.place.seat, self.shard);
        self.place.clone().sit_down();
    }
}

impl State {
    /// There is somebody with this seat, who is only about to arrive.
    fn seat_at(&mut self, seat: SeatId, shard: usize) {
        let turn = Arc::new(Condvar::new());
        self.seats.insert(seat, Seat { shard, mood: Mood::Ready, turn });
        self.note(Event::Expect, seat, shard as u64);
    }

    fn seat(&mut self, seat: SeatId) -> &mut Seat {
        self.seats.get_mut(&seat).expect("a seat that is taken is there")
    }

    pub(super) fn note(&mut self, event: Event, what: u64, how_much: u64) {
        self.trace.note(self.now, event, what, how_much);
    }

    pub(super) fn wake_all(&mut self) {
        for seat in self.seats.values_mut() {
            if matches!(seat.mood, Mood::Parked { .. }) {
                seat.mood = Mood::Ready;
            }
        }
    }

    /// Gives the baton to one of those who are ready.
    fn choose_next(&mut self) {
        self.running = None;
        if self.seats.is_empty() {
            return;
        }
        self.take_closed();
        while !self.anybody_is_ready() {
            if !self.move_on() {
                self.stand_still();
            }
        }
        let ready = |seat: &Seat| !matches!(seat.mood, Mood::Parked { .. });
        let count = self.seats.values().filter(|seat| ready(seat)).count();
        let chosen = self.dice.below(count as u64) as usize;
        let mut candidates = self.seats.iter().filter(|(_, seat)| ready(seat));
        let (&id, seat) = candidates.nth(chosen).expect("fewer were drawn from");
        seat.turn.notify_one();
        self.running = Some(id);
        self.note(Event::Turn, id, count as u64);
        self.keep_time_moving();
        self.turns += 1;
        if self.turns % self.turns_max == 0 {
            self.end_with(format!("the simulated program did not end within {} turns", self.turns));
        }
    }

    fn anybody_is_ready(&self) -> bool {
        self.seats.values().any(|seat| !matches!(seat.mood, Mood::Parked { .. }))
    }

    /// Moves the clock to where something is due. False if nothing is.
    fn move_on(&mut self) -> bool {
        let due = |seat: &Seat| match seat.mood {
            Mood::Parked { due } => due,
            Mood::Ready | Mood::Stuck => None,
        };
        let dues = self.seats.values().filter_map(due).chain(self.network.next_due());
        let Some(next) = dues.min() else { return false };
        self.set_clock(self.now.max(next));
        true
    }

    fn set_clock(&mut self, now: Duration) {
        self.now = now;
        self.turns_at_this_time = 0;
        self.note(Event::Clock, now.as_nanos() as u64, 0);
        if self.on_network(|network, moment| network.deliver(moment)) > 0 {
            self.wake_all();
        }
        for seat in self.seats.values_mut() {
            if matches!(seat.mood, Mood::Parked { due: Some(due) } if due <= now) {
                seat.mood = Mood::Ready;
            }
        }
    }

    fn keep_time_moving(&mut self) {
        self.turns_at_this_time += 1;
        if self.turns_at_this_time >= TURNS_AT_ONE_TIME_MAX {
            self.set_clock(self.now + BUSY_STEP);
        }
    }

    /// Nothing can happen any more: the shard that was there first is told.
    fn stand_still(&mut self) {
        let mut text = String::from(
            "the simulated program stands still: no shard has anything to do, nothing is on its \
             way, no timer runs, and the future of `run` is not ready",
        );
        for seat in self.seats.values() {
            // Writing to a string cannot fail.
            let _infallible = write!(text, "\n  shard {} waits for ever", seat.shard);
        }
        self.end_with(text);
    }

    /// Has the shard that was there first panic when it has the baton.
    fn end_with(&mut self, mut text: String) {
        for socket in self.network.describe() {
            // Writing to a string cannot fail.
            let _infallible = write!(text, "\n  {socket}");
        }
        self.standstill.get_or_insert(text.into());
        if let Some(seat) = self.seats.values_mut().next() {
            seat.mood = Mood::Stuck;
        }
    }

    fn standstill_of(&self, seat: SeatId) -> Option<Arc<str>> {
        let stuck = matches!(self.seats.get(&seat), Some(Seat { mood: Mood::Stuck, .. }));
        if stuck { self.standstill.clone() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;

    const MS: Duration = Duration::from_millis(1);

    fn alone(seed: u64) -> (Arc<World>, Taken) {
        let world = World::new(seed, Faults::none(), 1_000_000);
        let taken = world.expect(0).take();
        (world, taken)
    }

    #[test]
    fn the_clock_moves_to_what_is_due_and_no_further() {
        let (world, _taken) = alone(1);
        assert_eq!(world.now(), Duration::ZERO);
        world.park(Some(5 * MS));
        assert_eq!(world.now(), 5 * MS);
        world.park(Some(2 * MS));
        assert_eq!(world.now(), 5 * MS);
    }

    #[test]
    fn nothing_due_for_anybody_is_a_panic_that_names_the_shard() {
        let (world, _taken) = alone(1);
        let stuck = catch_unwind(AssertUnwindSafe(|| world.park(None))).unwrap_err();
        let text = stuck.downcast_ref::<String>().unwrap();
        assert!(text.contains("stands still") && text.contains("shard 0"), "{text}");
        assert!(world.standstill().is_some());
    }

    #[test]
    fn a_loop_that_waits_for_the_clock_meets_its_deadline() {
        let (world, _taken) = alone(1);
        while world.now() < 3 * MS {
            world.pause();
        }
    }

    /// Three threads that take turns, and write down who had them when.
    fn turns_of(seed: u64) -> (Vec<(usize, Duration)>, u64) {
        let (world, taken) = alone(seed);
        let log = Arc::new(Mutex::new(Vec::new()));
        let work = |shard: usize, world: &Arc<World>, log: &Mutex<Vec<_>>| {
            for round in 1..20u32 {
                log.lock().unwrap().push((shard, world.now()));
                match world.roll(|dice| dice.below(3)) {
                    0 => world.pause(),
                    1 => world.progressed(),
                    _ => world.park(Some(world.now() + round * MS)),
                }
            }
        };
        let threads: Vec<_> = (1..3)
            .map(|shard| {
                let (place, log) = (world.expect(shard), Arc::clone(&log));
                thread::spawn(move || {
                    let world = Arc::clone(&place.world);
                    let _taken = place.take();
                    work(shard, &world, &log);
                })
            })
            .collect();
        work(0, &world, &log);
        drop(taken);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        (Arc::into_inner(log).unwrap().into_inner().unwrap(), world.lock().trace.fingerprint)
    }

    #[test]
    fn one_seed_is_one_order_of_turns_and_others_are_others() {
        let mut prints = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let (turns, print) = turns_of(seed);
            assert_eq!((turns, print), turns_of(seed), "seed {seed}");
            prints.insert(print);
        }
        assert_eq!(prints.len(), 20);
    }

    #[test]
    fn who_cannot_come_is_not_waited_for() {
        let (world, _taken) = alone(3);
        world.expect(1).give_up();
        world.park(Some(MS));
        assert_eq!(world.now(), MS);
    }

    #[test]
    fn a_standstill_is_told_to_one_after_the_other() {
        let (world, taken) = alone(4);
        let place = world.expect(1);
        let other = thread::spawn(move || {
            let world = Arc::clone(&place.world);
            let _taken = place.take();
            // The end of the other is something to look at, once.
            world.park(None);
            catch_unwind(AssertUnwindSafe(|| world.park(None))).is_err()
        });
        let own = catch_unwind(AssertUnwindSafe(|| world.park(None)));
        assert!(own.is_err());
        drop(taken);
        assert!(other.join().unwrap());
    }
}
