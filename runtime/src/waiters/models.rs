//! Those who wait, leave and wait again while another thread wakes them.

use super::*;
use crate::sync::{AtomicU32, Ordering};
use loom::thread;

/// As [`Waiters`] are used for what another thread brings: a word, and those who wait for it.
struct News {
    come: AtomicU32,
    waiters: Waiters,
}

impl News {
    fn new() -> Arc<News> {
        Arc::new(News { come: AtomicU32::new(0), waiters: Waiters::default() })
    }

    fn bring(&self) {
        self.come.store(1, Ordering::Release);
        self.waiters.wake_all();
    }

    fn has_come(&self) -> bool {
        self.come.load(Ordering::Acquire) == 1
    }
}

#[derive(Default)]
struct Count(std::sync::atomic::AtomicU32);

impl Count {
    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn counted() -> (Arc<Count>, Waker) {
    let count = Arc::<Count>::default();
    (Arc::clone(&count), Waker::from(count))
}

#[test]
fn one_who_leaves_while_all_are_woken_keeps_no_other_asleep() {
    loom::model(|| {
        let news = News::new();
        let ((_, goes), (stays_count, stays)) = (counted(), counted());
        let (mut goes_key, mut stays_key) = (None, None);
        news.waiters.wait(&mut goes_key, &goes);
        news.waiters.wait(&mut stays_key, &stays);
        let (leaving, bringing) = (Arc::clone(&news), Arc::clone(&news));
        let leaver = thread::spawn(move || leaving.waiters.leave(goes_key.unwrap()));
        let bringer = thread::spawn(move || bringing.bring());
        leaver.join().unwrap();
        bringer.join().unwrap();
        assert_eq!(stays_count.get(), 1, "it sleeps for ever");
        assert!(news.waiters.pop().is_none(), "a waker was kept");
    });
}

#[test]
fn one_who_leaves_late_takes_nobody_with_it_who_has_its_place_since() {
    loom::model(|| {
        let news = News::new();
        let ((_, goes), (count, comes)) = (counted(), counted());
        let mut goes_key = None;
        news.waiters.wait(&mut goes_key, &goes);
        let leaving = Arc::clone(&news);
        let leaver = thread::spawn(move || leaving.waiters.leave(goes_key.unwrap()));
        news.waiters.wake_all();
        let mut key = None;
        news.waiters.wait(&mut key, &comes);
        leaver.join().unwrap();
        news.waiters.wake_all();
        assert_eq!(count.get(), 1, "it sleeps for ever");
    });
}

#[test]
fn one_who_was_woken_for_something_else_waits_again() {
    loom::model(|| {
        let news = News::new();
        let bringing = Arc::clone(&news);
        let bringer = thread::spawn(move || {
            bringing.waiters.wake_all();
            bringing.bring();
        });
        let (count, waker) = counted();
        let mut place = news.waiters.place();
        place.wait(&waker);
        // As a task does that was polled for another reason.
        place.wait(&waker);
        let woken = count.get();
        let is_there = news.has_come();
        if woken > 0 && !is_there {
            place.wait(&waker);
        }
        let is_there = news.has_come();
        bringer.join().unwrap();
        assert!(is_there || count.get() > woken, "it sleeps for ever");
    });
}

#[test]
fn one_who_waits_again_with_another_waker_is_woken_by_the_latest() {
    loom::model(|| {
        let news = News::new();
        let ((_, old), (count, new)) = (counted(), counted());
        let mut key = None;
        news.waiters.wait(&mut key, &old);
        let bringing = Arc::clone(&news);
        let bringer = thread::spawn(move || bringing.bring());
        news.waiters.wait(&mut key, &new);
        let is_there = news.has_come();
        bringer.join().unwrap();
        assert!(is_there || count.get() == 1, "it sleeps for ever");
        news.waiters.leave(key.unwrap());
        drop(new);
        assert_eq!(Arc::strong_count(&count), 1, "a waker was kept");
    });
}
