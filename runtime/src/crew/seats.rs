//! Who sits where in a crew, whether more may come, and how many are still there.
//!
//! A seat is locked for as long as its shard is being started, so that one that fails at once finds
//! itself there when it leaves. The door is locked meanwhile too: whoever shuts it finds in the
//! seats all that were begun, and none is begun behind it.

use std::sync::PoisonError;
use std::time::Instant;

use crate::executor::{Mailbox, SharedMailbox};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The seats of all shards that have threads of their own. `T` is such a thread.
pub(super) struct Seats<T>(Box<[Mutex<Option<Taken<T>>>]>);

/// A seat that is taken.
pub(super) struct Taken<T> {
    pub(super) mailbox: SharedMailbox,
    pub(super) thread: T,
}

impl<T> Seats<T> {
    pub(super) fn new(count: usize) -> Seats<T> {
        Seats((0..count).map(|_| Mutex::new(None)).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The mailbox of who sits there. In an empty seat somebody is started; who cannot be closes
    /// the mailbox. It is closed as well where nobody may come any more.
    pub(super) fn mailbox(
        &self,
        place: usize,
        door: &Door,
        start: impl FnOnce(&SharedMailbox) -> Option<T>,
    ) -> SharedMailbox {
        let mut seat = lock(&self.0[place]);
        if let Some(taken) = &*seat {
            return SharedMailbox::clone(&taken.mailbox);
        }
        let mailbox = Mailbox::new();
        // Held until the thread is in its seat, so that the end finds all that were begun.
        let shut = lock(&door.shut);
        if *shut {
            mailbox.close();
            return mailbox;
        }
        let thread = start(&mailbox);
        *seat = thread.map(|thread| Taken { mailbox: SharedMailbox::clone(&mailbox), thread });
        mailbox
    }

    /// Who has this mailbox leaves its seat, unless it was asked to already.
    pub(super) fn vacate(&self, place: usize, of: &SharedMailbox) {
        let mut seat = lock(&self.0[place]);
        if seat.as_ref().is_some_and(|taken| taken.mailbox.shard() == of.shard()) {
            *seat = None;
        }
    }

    /// Takes all out of their seats.
    pub(super) fn clear(&self) -> impl Iterator<Item = (usize, Taken<T>)> {
        self.0.iter().enumerate().filter_map(|(place, seat)| Some((place, lock(seat).take()?)))
    }
}

/// By which threads come and go.
pub(super) struct Door {
    shut: Mutex<bool>,
    /// Threads that were started and have not ended.
    within: Mutex<usize>,
    left: Condvar,
}

impl Door {
    pub(super) fn new() -> Door {
        Door { shut: Mutex::new(false), within: Mutex::new(0), left: Condvar::new() }
    }

    /// Nobody comes any more.
    pub(super) fn shut(&self) {
        *lock(&self.shut) = true;
    }

    /// A thread is about to be made.
    pub(super) fn enter(&self) {
        *lock(&self.within) += 1;
    }

    /// It has ended, or could not be made.
    pub(super) fn leave(&self) {
        *lock(&self.within) -= 1;
        self.left.notify_all();
    }

    /// Waits until all have left. False if they have not by that time.
    #[must_use]
    pub(super) fn wait(&self, deadline: Instant) -> bool {
        let mut within = lock(&self.within);
        while *within > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (within, _) =
                self.left.wait_timeout(within, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

/// A seat is left half changed by nobody.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, loom))]
mod models;
