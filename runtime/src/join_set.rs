//! Many tasks with outputs of one type, awaited as they end.
//!
//! Each member's handle is awaited with a waker of its own, which writes the member's key down and
//! wakes whoever waits for the set: so a wake costs the same however many members there are.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

use crate::executor::{JoinError, JoinHandle};
use crate::sync::{Mutex, MutexGuard};
use crate::task::spawn;

/// A set of tasks, which gives their outputs as they end.
///
/// Dropping the set aborts all that have not ended. It may travel to another thread, and be awaited
/// in any runtime, if the outputs may.
///
/// # Examples
///
/// ```
/// use annulus_runtime::task::JoinSet;
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let mut set = JoinSet::new();
///     for number in 1..=10 {
///         set.spawn(async move { number * number });
///     }
///     let mut sum = 0;
///     while let Some(square) = set.join_next().await {
///         sum += square.expect("the task ends well");
///     }
///     assert_eq!(sum, 385);
/// });
/// # Ok(())
/// # }
/// ```
pub struct JoinSet<T> {
    members: Slab<Member<T>>,
    news: Arc<News>,
}

struct Member<T> {
    handle: JoinHandle<T>,
    /// A [`Bell`] with this member's key.
    waker: Waker,
}

/// What members' wakers tell the set, from whatever thread.
struct News(Mutex<Told>);

#[derive(Default)]
struct Told {
    /// Keys of members that may have ended. A key may stand here twice, or be another's by now:
    /// then one is looked at in vain.
    keys: VecDeque<usize>,
    /// Who waits for the set.
    waiting: Option<Waker>,
}

struct Bell {
    key: usize,
    news: Arc<News>,
}

impl<T> JoinSet<T> {
    /// A set without tasks.
    #[must_use]
    pub fn new() -> JoinSet<T> {
        JoinSet { members: Slab::new(), news: Arc::new(News(Mutex::new(Told::default()))) }
    }

    /// Spawns a task on this shard, as [`spawn`](crate::spawn) does, into the set.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[track_caller]
    pub fn spawn<F>(&mut self, future: F)
    where
        F: Future<Output = T> + 'static,
        T: 'static,
    {
        self.push(spawn(future));
    }

    /// Takes a task into the set that was spawned otherwise: with a name, on another shard, or as
    /// work that blocks.
    ///
    /// ```
    /// use annulus_runtime::task::{JoinSet, spawn_blocking};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// annulus_runtime::Runtime::new()?.block_on(async {
    ///     let mut set = JoinSet::new();
    ///     set.push(spawn_blocking(|| std::fs::read("/proc/version").map(|text| text.len())));
    ///     set.spawn(async { Ok(5) });
    ///     assert_eq!(set.len(), 2);
    ///     assert_eq!(set.join_all().await.len(), 2);
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub fn push(&mut self, handle: JoinHandle<T>) {
        let place = self.members.vacant_entry();
        let key = place.key();
        let waker = Waker::from(Arc::new(Bell { key, news: self.news.clone() }));
        place.insert(Member { handle, waker });
        // Its first poll gives the handle its waker, and finds out whether it has ended already.
        self.news.tell(key);
    }

    /// How many tasks are in the set: those that run, and those whose outputs were not taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True if no task is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The output of the next task that ends, or of one that has ended already; `None` if no task
    /// is in the set.
    ///
    /// # Errors
    ///
    /// That of the task: it panicked or was aborted. The others are not touched.
    ///
    /// # Cancel safety
    ///
    /// A dropped `join_next` loses no output.
    pub async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
        poll_fn(|cx| self.poll_join_next(cx)).await
    }

    /// As [`join_next`](JoinSet::join_next), if one has ended already.
    pub fn try_join_next(&mut self) -> Option<Result<T, JoinError>> {
        self.take_ended()
    }

    /// As [`join_next`](JoinSet::join_next), for futures that are written by hand.
    pub fn poll_join_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, JoinError>>> {
        if self.members.is_empty() {
            return Poll::Ready(None);
        }
        // Before the look at what was told: who tells something later finds this waker.
        self.news.wait(cx.waker());
        match self.take_ended() {
            Some(ended) => Poll::Ready(Some(ended)),
            None => Poll::Pending,
        }
    }

    /// Waits for all tasks and gives their outputs as they ended.
    ///
    /// # Panics
    ///
    /// With the first task that panicked or was aborted; the others are aborted then.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it aborts what has not ended and loses the outputs: it has taken the set. To stop
    /// and go on, use [`join_next`](JoinSet::join_next).
    pub async fn join_all(mut self) -> Vec<T> {
        let mut outputs = Vec::with_capacity(self.len());
        while let Some(ended) = self.join_next().await {
            match ended {
                Ok(output) => outputs.push(output),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(error) => panic!("{error}"),
            }
        }
        outputs
    }

    /// Aborts all tasks. They stay in the set until they are joined: those that had ended with
    /// their outputs, the others with an error.
    pub fn abort_all(&mut self) {
        for (_, member) in &self.members {
            member.handle.abort();
        }
    }

    /// Aborts all tasks and waits until their futures are dropped. Outputs are dropped, too.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has aborted all tasks; those that have not ended are still in the set.
    pub async fn shutdown(&mut self) {
        self.abort_all();
        while self.join_next().await.is_some() {}
    }

    /// Lets all tasks run on by themselves, and empties the set.
    pub fn detach_all(&mut self) {
        drop(mem::take(&mut self.members));
        self.news.told().keys.clear();
    }

    /// The first of those that were told of and have indeed ended.
    fn take_ended(&mut self) -> Option<Result<T, JoinError>> {
        while let Some(key) = self.news.next() {
            let Some(member) = self.members.get_mut(key) else { continue };
            let mut context = Context::from_waker(&member.waker);
            if let Poll::Ready(ended) = Pin::new(&mut member.handle).poll(&mut context) {
                self.members.remove(key);
                return Some(ended);
            }
        }
        None
    }
}

impl<T> Drop for JoinSet<T> {
    fn drop(&mut self) {
        self.abort_all();
    }
}

impl<T> Default for JoinSet<T> {
    fn default() -> JoinSet<T> {
        JoinSet::new()
    }
}

impl<T> Extend<JoinHandle<T>> for JoinSet<T> {
    fn extend<I: IntoIterator<Item = JoinHandle<T>>>(&mut self, handles: I) {
        handles.into_iter().for_each(|handle| self.push(handle));
    }
}

impl<T> FromIterator<JoinHandle<T>> for JoinSet<T> {
    fn from_iter<I: IntoIterator<Item = JoinHandle<T>>>(handles: I) -> JoinSet<T> {
        let mut set = JoinSet::new();
        set.extend(handles);
        set
    }
}

impl<T> fmt::Debug for JoinSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinSet").field("len", &self.len()).finish()
    }
}

// No waker is woken, cloned or dropped while the lock is held: that may run anybody's code.
impl News {
    /// Has `waker` woken by what is told from now on.
    fn wait(&self, waker: &Waker) {
        if self.told().waiting.as_ref().is_some_and(|waiting| waiting.will_wake(waker)) {
            return;
        }
        let waker = waker.clone();
        let replaced = self.told().waiting.replace(waker);
        drop(replaced);
    }

    fn tell(&self, key: usize) {
        let waiting = {
            let mut told = self.told();
            told.keys.push_back(key);
            told.waiting.take()
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    fn next(&self) -> Option<usize> {
        self.told().keys.pop_front()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.news.tell(self.key);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.news.tell(self.key);
    }
}

#[cfg(all(test, loom))]
mod models;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Runtime;
    use crate::task::yield_now;

    #[test]
    fn a_set_that_is_emptied_again_and_again_keeps_nothing() {
        Runtime::new().unwrap().block_on(async {
            let mut set = JoinSet::new();
            for _ in 0..1000 {
                set.spawn(async {});
                yield_now().await;
                set.detach_all();
            }
            assert!(set.news.told().keys.len() < 10, "{}", set.news.told().keys.len());
        });
    }
}
