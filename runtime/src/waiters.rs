//! Tasks that wait for one thing: for a listener, one direction of a socket, a shutdown. A wake
//! wakes all of them, in the order in which they came: one that has gone keeps none of the others
//! from what has come. Coming and going cost the same however many wait.

use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

use crate::contain::contain;
use crate::sync::{Mutex, MutexGuard};

/// A list of wakers. It is itself what a driver can be given to wake.
///
/// No waker is woken, cloned or dropped while the list is locked: that may run anybody's code.
pub struct Waiters(Mutex<List>);

/// Where one who waits stands in the list.
#[derive(Clone, Copy, Debug)]
pub struct WaiterKey {
    index: usize,
    /// Tells who stands there now from those who stood there before.
    generation: u64,
}

/// A list that is linked through a slab: the first came first.
struct List {
    waiters: Slab<Waiter>,
    first: Option<usize>,
    last: Option<usize>,
    next_generation: u64,
}

struct Waiter {
    waker: Waker,
    generation: u64,
    previous: Option<usize>,
    next: Option<usize>,
}

impl Waiters {
    /// A place for one future, which joins when it has to wait.
    pub fn place(&self) -> Place<'_> {
        Place { waiters: self, key: None }
    }

    /// Has `waker` woken by the next wake: at the place of `key`, or behind all others if it has
    /// none. Who waits for what another thread brings looks for it once more after this.
    pub fn wait(&self, key: &mut Option<WaiterKey>, waker: &Waker) {
        if key.is_some_and(|key| self.list().holds(key, waker)) {
            return;
        }
        let mut left = Some(waker.clone());
        let mut list = self.list();
        match key.and_then(|key| list.get_mut(key)) {
            Some(waiter) => left = left.map(|waker| std::mem::replace(&mut waiter.waker, waker)),
            None => *key = left.take().map(|waker| list.push(waker)),
        }
        drop(list);
        drop(left);
    }

    /// Leaves the list. Nothing happens if a wake has taken the key's waker meanwhile.
    pub fn leave(&self, key: WaiterKey) {
        let left = self.list().remove(key);
        drop(left);
    }

    /// Wakes all who wait. Those who wait again meanwhile have seen what there is.
    pub fn wake_all(&self) {
        let count = self.list().waiters.len();
        for _ in 0..count {
            let Some(waker) = self.pop() else { return };
            contain(|| waker.wake());
        }
    }

    fn pop(&self) -> Option<Waker> {
        self.list().pop()
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Waiters {
    fn default() -> Self {
        let list = List { waiters: Slab::new(), first: None, last: None, next_generation: 0 };
        Self(Mutex::new(list))
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

impl List {
    fn push(&mut self, waker: Waker) -> WaiterKey {
        let generation = self.next_generation;
        self.next_generation += 1;
        let previous = self.last;
        let index = self.waiters.insert(Waiter { waker, generation, previous, next: None });
        self.set_next(previous, Some(index));
        self.last = Some(index);
        WaiterKey { index, generation }
    }

    fn pop(&mut self) -> Option<Waker> {
        self.first.map(|first| self.take(first))
    }

    fn remove(&mut self, key: WaiterKey) -> Option<Waker> {
        self.get_mut(key)?;
        Some(self.take(key.index))
    }

    /// Takes the waiter there out of the chain.
    fn take(&mut self, index: usize) -> Waker {
        let Waiter { waker, previous, next, .. } = self.waiters.remove(index);
        self.set_next(previous, next);
        match next {
            Some(next) => self.waiters[next].previous = previous,
            None => self.last = previous,
        }
        waker
    }

    fn set_next(&mut self, index: Option<usize>, next: Option<usize>) {
        match index {
            Some(index) => self.waiters[index].next = next,
            None => self.first = next,
        }
    }

    fn holds(&mut self, key: WaiterKey, waker: &Waker) -> bool {
        self.get_mut(key).is_some_and(|waiter| waiter.waker.will_wake(waker))
    }

    fn get_mut(&mut self, key: WaiterKey) -> Option<&mut Waiter> {
        self.waiters.get_mut(key.index).filter(|waiter| waiter.generation == key.generation)
    }
}

/// Where a future waits; dropped with it.
pub struct Place<'a> {
    waiters: &'a Waiters,
    /// Set once the future has waited.
    key: Option<WaiterKey>,
}

impl Place<'_> {
    /// Polls, and waits for the next wake if the answer is not there. Only for answers that come
    /// on this thread: one that another brings in between would wake nobody.
    pub fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        answer: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let answer = answer(cx);
        if answer.is_pending() {
            self.wait(cx.waker());
        }
        answer
    }

    /// Has `waker` woken by the next wake. Who waits for what another thread brings looks for it
    /// once more after this.
    pub fn wait(&mut self, waker: &Waker) {
        self.waiters.wait(&mut self.key, waker);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.waiters.leave(key);
        }
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(all(test, not(loom)))]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Counts its wakes.
    #[derive(Default)]
    pub(crate) struct Count(pub(crate) AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn counted() -> (Arc<Count>, Waker) {
        let count = Arc::<Count>::default();
        (Arc::clone(&count), Waker::from(count))
    }

    fn wait(place: &mut Place<'_>, waker: &Waker) {
        let answer = place.poll(&mut Context::from_waker(waker), |_| Poll::<()>::Pending);
        assert!(answer.is_pending());
    }

    #[test]
    fn a_wake_reaches_all_who_wait_once() {
        let waiters = Arc::<Waiters>::default();
        let ((first, first_waker), (second, second_waker)) = (counted(), counted());
        let (mut first_place, mut second_place) = (waiters.place(), waiters.place());
        wait(&mut first_place, &first_waker);
        wait(&mut second_place, &second_waker);
        wait(&mut first_place, &first_waker);
        let driver = Waker::from(Arc::clone(&waiters));
        driver.wake_by_ref();
        driver.wake_by_ref();
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn one_who_has_gone_is_forgotten_and_keeps_nobody() {
        let waiters = Arc::<Waiters>::default();
        let ((gone, gone_waker), (stays, stays_waker)) = (counted(), counted());
        let (mut gone_place, mut stays_place) = (waiters.place(), waiters.place());
        wait(&mut gone_place, &gone_waker);
        wait(&mut stays_place, &stays_waker);
        drop(gone_place);
        drop(gone_waker);
        assert_eq!(Arc::strong_count(&gone), 1, "a waker was kept");
        Waker::from(Arc::clone(&waiters)).wake();
        assert_eq!((gone.0.load(Ordering::Relaxed), stays.0.load(Ordering::Relaxed)), (0, 1));
    }

    #[test]
    fn a_task_that_has_changed_is_woken_by_its_latest_waker() {
        let waiters = Arc::<Waiters>::default();
        let ((old, old_waker), (new, new_waker)) = (counted(), counted());
        let mut place = waiters.place();
        wait(&mut place, &old_waker);
        wait(&mut place, &new_waker);
        Waker::from(Arc::clone(&waiters)).wake();
        assert_eq!((old.0.load(Ordering::Relaxed), new.0.load(Ordering::Relaxed)), (0, 1));
    }

    #[test]
    fn wakes_come_in_the_order_of_the_waits_whoever_has_gone() {
        struct Note(usize, Arc<Mutex<Vec<usize>>>);
        impl Wake for Note {
            fn wake(self: Arc<Self>) {
                self.1.lock().unwrap().push(self.0);
            }
        }
        let waiters = Waiters::default();
        let woken = Arc::<Mutex<Vec<usize>>>::default();
        let mut keys: Vec<Option<WaiterKey>> = vec![None; 6];
        let wait = |number: usize, key: &mut Option<WaiterKey>| {
            waiters.wait(key, &Waker::from(Arc::new(Note(number, Arc::clone(&woken)))));
        };
        for (number, key) in keys.iter_mut().enumerate().take(5) {
            wait(number, key);
        }
        for gone in [0, 2, 4] {
            waiters.leave(keys[gone].unwrap());
        }
        // It takes the slot of one that has gone, behind all the same.
        wait(5, &mut keys[5]);
        // A waker that has changed keeps its turn.
        wait(1, &mut keys[1]);
        // The key of one that has gone finds nobody, whoever stands there now.
        waiters.leave(keys[4].unwrap());
        waiters.wake_all();
        assert_eq!(*woken.lock().unwrap(), [1, 3, 5]);
        assert!(waiters.list().waiters.is_empty());
    }

    #[test]
    fn a_waker_that_panics_or_waits_again_keeps_none_of_the_others() {
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("a waker of the test");
            }
        }
        struct Again(Arc<Waiters>, AtomicU32);
        impl Wake for Again {
            fn wake(self: Arc<Self>) {
                self.1.fetch_add(1, Ordering::Relaxed);
                self.0.wait(&mut None, &Waker::from(Arc::clone(&self)));
            }
        }
        let waiters = Arc::<Waiters>::default();
        let again = Arc::new(Again(Arc::clone(&waiters), AtomicU32::new(0)));
        let (last, last_waker) = counted();
        waiters.wait(&mut None, &Waker::from(Arc::new(Panics)));
        waiters.wait(&mut None, &Waker::from(Arc::clone(&again)));
        waiters.wait(&mut None, &last_waker);
        waiters.wake_all();
        assert_eq!(again.1.load(Ordering::Relaxed), 1);
        assert_eq!(last.0.load(Ordering::Relaxed), 1);
        // Else the list and the waker in it would own each other.
        drop(waiters.pop());
    }
}
