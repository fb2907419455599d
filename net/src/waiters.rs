//! Tasks that wait for a listener, or for one direction of a socket. What the driver wakes wakes
//! all of them: one that has gone keeps none of the others from what has come.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// The waker that the driver is given. Woken on the socket's own shard only, so that the lock is
/// never waited for; it is there because wakers may travel.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<List>);

#[derive(Default)]
struct List {
    wakers: VecDeque<(u64, Waker)>,
    next_id: u64,
}

impl Waiters {
    /// A place for one future, which joins when it has to wait.
    pub(crate) fn place(&self) -> Place<'_> {
        Place { waiters: self, id: None }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop(&self) -> Option<Waker> {
        self.list().wakers.pop_front().map(|(_, waker)| waker)
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Those who wait again meanwhile have seen what there is. No lock is held while user code
        // runs.
        let count = self.list().wakers.len();
        for _ in 0..count {
            let Some(waker) = self.pop() else { return };
            waker.wake();
        }
    }
}

/// Where a future waits; dropped with it.
pub(crate) struct Place<'a> {
    waiters: &'a Waiters,
    /// Set once the future has waited.
    id: Option<u64>,
}

impl Place<'_> {
    /// Polls, and waits for the next wake if the answer is not there.
    pub(crate) fn poll<T>(
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

    fn wait(&mut self, waker: &Waker) {
        let mut list = self.waiters.list();
        let known =
            list.wakers.iter().any(|(id, old)| Some(*id) == self.id && old.will_wake(waker));
        if known {
            return;
        }
        drop(list);
        // Cloning and dropping a waker may run user code, so neither happens under the lock.
        let waker = waker.clone();
        self.leave();
        list = self.waiters.list();
        let id = list.next_id;
        list.next_id += 1;
        list.wakers.push_back((id, waker));
        self.id = Some(id);
    }

    fn leave(&mut self) {
        let Some(own) = self.id.take() else { return };
        let mut list = self.waiters.list();
        let place = list.wakers.iter().position(|(id, _)| *id == own);
        let left = place.and_then(|place| list.wakers.remove(place));
        drop(list);
        drop(left);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counted() -> (Arc<Count>, Waker) {
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
}
