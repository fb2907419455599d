//! Shards as programs address them: a handle to each, and running something on all.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::crew::Crew;
use crate::executor::{JoinError, JoinHandle, spawn_at};
use crate::shard;
use crate::trace::TaskSpan;

/// One of the threads of a runtime, with its own executor, driver, timers and buffers.
///
/// A runtime has as many as the [builder](crate::Builder::shards) says. The first is the thread of
/// [`block_on`](crate::Runtime::block_on); each other one is a thread that starts when something is
/// first sent to it. They share nothing: what a task of one shard gives to another goes through
/// [`spawn_with`](Shard::spawn_with), and sockets are used on the shard on which they were made.
///
/// A `Shard` is a handle, which can be cloned and sent anywhere, and outlive its runtime.
///
/// # Examples
///
/// ```
/// use annulus_runtime::{Runtime, Shard};
///
/// # fn main() -> std::io::Result<()> {
/// Runtime::builder().shards(2).build()?.block_on(async {
///     let other = Shard::all().pop().expect("two shards");
///     let index = other.spawn_with(|| async { Shard::current().index() });
///     assert_eq!(index.await.unwrap(), 1);
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Shard {
    crew: Arc<Crew>,
    index: usize,
}

impl Shard {
    pub(crate) fn new(crew: Arc<Crew>, index: usize) -> Shard {
        Shard { crew, index }
    }

    /// The shard of the calling thread.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[must_use]
    #[track_caller]
    pub fn current() -> Shard {
        shard::with(|shard| Shard::new(Arc::clone(&shard.crew), shard.index))
    }

    /// All shards of the runtime of the calling thread, by their index. Asking starts none.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[must_use]
    #[track_caller]
    pub fn all() -> Vec<Shard> {
        Shard::all_of(&Shard::current().crew)
    }

    pub(crate) fn all_of(crew: &Arc<Crew>) -> Vec<Shard> {
        (0..crew.size()).map(|index| Shard::new(Arc::clone(crew), index)).collect()
    }

    /// Where the shard stands in its runtime: 0 is that of `block_on`.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Spawns a task on this shard, from wherever this is called. The closure runs there and makes
    /// the future, which therefore need not be `Send`.
    ///
    /// The handle is as that of [`spawn`](crate::spawn): it gives the output or says that the task
    /// panicked; dropping it detaches the task. A shard that cannot be started, that fails, or
    /// whose runtime ends, cancels the task, and the error says why.
    ///
    /// Tasks of the first shard run only while `block_on` does.
    ///
    /// What is sent to a shard that is busy waits in its mailbox, which has no bound: a program
    /// that sends more than its shards can take has to wait for the handles.
    #[track_caller]
    pub fn spawn_with<F, Fut>(&self, make: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + 'static,
        Fut::Output: Send + 'static,
    {
        let span = TaskSpan::task(None, size_of::<Fut>());
        spawn_at(&self.crew.mailbox(self.index), move || span.around(make()))
    }
}

impl PartialEq for Shard {
    fn eq(&self, other: &Shard) -> bool {
        Arc::ptr_eq(&self.crew, &other.crew) && self.index == other.index
    }
}

impl Eq for Shard {}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Runs a task on every shard of this runtime, this one included, and waits for all. The outputs
/// come in the order of the shards.
///
/// # Examples
///
/// ```
/// use annulus_runtime::{Runtime, on_each_shard};
///
/// # fn main() -> std::io::Result<()> {
/// Runtime::builder().shards(3).build()?.block_on(async {
///     let squares = on_each_shard(async |shard| shard.index().pow(2)).await;
///     let squares: Result<Vec<usize>, _> = squares.into_iter().collect();
///     assert_eq!(squares.unwrap(), [0, 1, 4]);
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Each task's own: it panicked, or its shard could not be started or has failed.
///
/// # Panics
///
/// Outside of a runtime.
///
/// # Cancel safety
///
/// Dropped, it leaves the tasks to run on.
pub async fn on_each_shard<F, T>(f: F) -> Vec<Result<T, JoinError>>
where
    F: AsyncFn(Shard) -> T + Clone + Send + 'static,
    T: Send + 'static,
{
    let spawn = |shard: Shard| {
        let f = f.clone();
        let there = shard.clone();
        shard.spawn_with(move || async move { f(there).await })
    };
    // All before the first is waited for.
    let handles: Vec<_> = Shard::all().into_iter().map(spawn).collect();
    let mut outputs = Vec::with_capacity(handles.len());
    for handle in handles {
        outputs.push(handle.await);
    }
    outputs
}
