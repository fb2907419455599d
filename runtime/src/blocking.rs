//! Work that blocks, on threads of its own.
//!
//! One pool serves the whole process: threads are made when a job finds none idle, and end after
//! some idle time. A job belongs to the future that waits for it. It is shared between the two
//! and goes through [`Stage`]s under its own lock; no waker and no user code runs while a lock is
//! held.
//!
//! The queue has no bound of its own: each entry belongs to a live future, and entries whose
//! future is gone are swept out before they are half of it.

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::{io, mem, thread};

use crate::contain::contain;
use crate::cpus;
use crate::executor::JoinHandle;
use crate::fork::{NO_RUNTIME_SURVIVES, PerProcess, Process};
use crate::shard;
use crate::sim;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::timers::ClockHold;
use crate::trace::traced_job;

/// Threads of the pool. More are of use only to jobs that wait for each other or for slow disks;
/// each costs a stack. Jobs beyond it queue.
const THREADS_MAX: usize = 512;

/// How long a thread waits for the next job before it ends. Making a thread takes tens of
/// microseconds, so this only has to be longer than the gaps of a server under load.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Abandoned jobs that may stay in the queue however short it is, so that sweeping is rare.
const ABANDONED_MIN: usize = 32;

/// The name of the pool's threads.
const THREAD_NAME: &str = "annulus-blocking";

/// A forked child has none of its parent's threads, so it has a pool of its own.
static POOL: PerProcess<Pool> = PerProcess::new(|| Pool::new(THREADS_MAX, IDLE_MAX, spawn_thread));

/// Runs `f` on a thread where it may block, and returns a handle to its result.
///
/// For calls that have no asynchronous form, such as files and name resolution, and for
/// computations of more than some 100 µs. At most 512 jobs run at a time in the process; others
/// wait in a queue that is bounded only by the number of their handles.
///
/// Dropping the handle detaches the job. [`JoinHandle::abort`] keeps a job that waits in the
/// queue from running at all; one that has begun runs to its end, and its result is dropped. The
/// same happens to jobs when their runtime ends: it does not wait for those that run, and they do
/// not keep the process from ending.
///
/// # Examples
///
/// ```
/// use annulus_runtime::task::spawn_blocking;
///
/// # fn main() -> std::io::Result<()> {
/// let sum = annulus_runtime::Runtime::new()?.block_on(async {
///     spawn_blocking(|| (1..=1000_u64).sum::<u64>()).await
/// });
/// assert_eq!(sum.unwrap(), 500_500);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// Awaiting the handle fails if `f` panicked, if it was aborted, or if the system refused to make
/// the first thread; the last is reported as a panic with a text that says so.
///
/// # Panics
///
/// Outside of a runtime.
///
/// # Cancel safety
///
/// Awaiting `&mut handle` can be given up and taken up again.
#[track_caller]
pub fn spawn_blocking<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let shard = shard::current();
    let job = POOL.get().submit(traced_job(f), Some(shard.clock.hold()));
    shard.executor.spawn(async move { job.await.unwrap_or_else(|payload| resume_unwind(payload)) })
}

/// Runs `f` on the pool and returns its result here, a panic included. Starts at the first poll.
/// If the future is dropped, `f` does not run, or its result is dropped.
pub(crate) async fn offload<F, T>(f: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    try_offload(f).await.unwrap_or_else(|payload| resume_unwind(payload))
}

/// As [`offload`]. The error is the panic of `f`, or why it was not run.
pub(crate) async fn try_offload<F, T>(f: F) -> Result<T, Payload>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let hold = shard::current().clock.hold();
    POOL.get().submit(f, Some(hold)).await
}

pub(crate) type Payload = Box<dyn Any + Send>;

/// Waits for a job. Its drop abandons the job.
struct Waiting<F, T> {
    job: Arc<Job<F, T>>,
    pool: &'static Pool,
    /// A paused clock does not run away from a job, which lives in real time.
    _hold: Option<ClockHold>,
}

/// A job, shared by its future and the pool.
struct Job<F, T> {
    stage: Mutex<Stage<F, T>>,
    /// A forked child touches no lock of its parent's.
    process: Process,
}

/// The life of a job. `begin`, `finish`, `take` and `abandon` are its only transitions.
enum Stage<F, T> {
    /// In the pool's queue.
    Queued { f: F, waker: Option<Waker> },
    /// On a thread.
    Running { waker: Option<Waker> },
    /// Over; the future has not seen it yet.
    Finished(Result<T, Payload>),
    /// Nobody waits: the result was taken, or the future is gone.
    Abandoned,
}

/// What the pool knows of a job.
trait Runnable: Send + Sync {
    /// Runs it, unless it is abandoned.
    fn run(&self);
    /// Ends it without running it.
    fn refuse(&self, reason: &str);
    fn is_abandoned(&self) -> bool;
}

struct Pool {
    state: Mutex<PoolState>,
    /// Signalled once for each job that an idle thread is to take.
    work: Condvar,
    threads_max: usize,
    idle_max: Duration,
    /// Whose threads these are.
    process: Process,
    /// A field, so that tests can have it fail.
    spawn_thread: fn(&'static Pool) -> io::Result<()>,
}

struct PoolState {
    queue: VecDeque<Arc<dyn Runnable>>,
    /// Jobs in the queue that nobody waits for; counts some that have just left it.
    abandoned: usize,
    /// Threads there are, or are about to be.
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
}

impl<F, T> Job<F, T> {
    /// The closure, if the job is to run.
    fn begin(&self) -> Option<F> {
        let mut stage = lock(&self.stage);
        match mem::replace(&mut *stage, Stage::Abandoned) {
            Stage::Queued { f, waker } => {
                *stage = Stage::Running { waker };
                Some(f)
            }
            other => {
                *stage = other;
                None
            }
        }
    }

    /// Leaves the result for the future and wakes it. What nobody waits for is dropped, here.
    fn finish(&self, result: Result<T, Payload>) {
        if !self.process.is_current() {
            return;
        }
        let mut stage = lock(&self.stage);
        let before = mem::replace(&mut *stage, Stage::Abandoned);
        match before {
            Stage::Queued { waker, .. } | Stage::Running { waker } => {
                *stage = Stage::Finished(result);
                drop(stage);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            other => {
                *stage = other;
                drop(stage);
                drop(result);
            }
        }
    }

    /// The result, if it is there; otherwise `waker` is kept for when it is.
    fn take(&self, waker: &Waker) -> Poll<Result<T, Payload>> {
        if !self.process.is_current() {
            return Poll::Ready(Err(Box::new(NO_RUNTIME_SURVIVES)));
        }
        let mut latest = Some(waker.clone()); // before the lock: a waker's code is its owner's
        let mut stage = lock(&self.stage);
        match &mut *stage {
            Stage::Queued { waker, .. } | Stage::Running { waker } => {
                mem::swap(waker, &mut latest);
                drop(stage);
                drop(latest); // the one before
                Poll::Pending
            }
            Stage::Finished(_) => match mem::replace(&mut *stage, Stage::Abandoned) {
                Stage::Finished(result) => Poll::Ready(result),
                _ => unreachable!("the stage is locked"),
            },
            Stage::Abandoned => panic!("a blocking job was polled after its end"),
        }
    }

    /// Lets go of the job. True if that leaves a dead entry in the queue.
    #[must_use]
    fn abandon(&self) -> bool {
        if !self.process.is_current() {
            return false;
        }
        let before = mem::replace(&mut *lock(&self.stage), Stage::Abandoned);
        // The closure is dropped here, where nothing is locked.
        matches!(before, Stage::Queued { .. })
    }
}

impl<F, T> Runnable for Job<F, T>
where
    F: FnOnce() -> T + Send,
    T: Send,
{
    fn run(&self) {
        let Some(f) = self.begin() else { return };
        self.finish(catch_unwind(AssertUnwindSafe(f)));
    }

    fn refuse(&self, reason: &str) {
        self.finish(Err(Box::new(reason.to_owned())));
    }

    fn is_abandoned(&self) -> bool {
        matches!(*lock(&self.stage), Stage::Abandoned)
    }
}

impl<F, T> Future for Waiting<F, T> {
    type Output = Result<T, Payload>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.job.take(cx.waker())
    }
}

impl<F, T> Drop for Waiting<F, T> {
    fn drop(&mut self) {
        if self.job.abandon() {
            self.pool.note_abandoned();
        }
    }
}

impl Pool {
    fn new(
        threads_max: usize,
        idle_max: Duration,
        spawn_thread: fn(&'static Self) -> io::Result<()>,
    ) -> Self {
        let state = PoolState { queue: VecDeque::new(), abandoned: 0, threads: 0, idle: 0 };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            threads_max,
            idle_max,
            process: Process::current(),
            spawn_thread,
        }
    }

    fn submit<F, T>(&'static self, f: F, hold: Option<ClockHold>) -> Waiting<F, T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let stage = Mutex::new(Stage::Queued { f, waker: None });
        let job = Arc::new(Job { stage, process: self.process });
        if sim::is_here() {
            // Another thread would run it at a time that no seed gives.
            job.run();
        } else {
            self.enqueue(job.clone());
        }
        Waiting { job, pool: self, _hold: hold }
    }

    fn enqueue(&'static self, job: Arc<dyn Runnable>) {
        let mut state = lock(&self.state);
        state.queue.push_back(job);
        if state.queue.len() <= state.idle {
            drop(state);
            self.work.notify_one();
        } else if state.threads < self.threads_max {
            state.threads += 1;
            drop(state);
            if let Err(error) = (self.spawn_thread)(self) {
                self.thread_refused(&error);
            }
        }
    }

    /// The threads there are will get to the job. If there is none, nobody will: then the queue is
    /// refused, which may hold jobs of others who were refused just before.
    fn thread_refused(&self, error: &io::Error) {
        let mut state = lock(&self.state);
        state.threads -= 1;
        if state.threads > 0 {
            return;
        }
        let jobs = mem::take(&mut state.queue);
        state.abandoned = 0;
        drop(state);
        let reason = format!(
            "no thread for blocking work: {error}; see the limits on processes and tasks \
             (ulimit -u, cgroup pids.max)"
        );
        for job in jobs {
            contain(|| job.refuse(&reason));
            contain(|| drop(job));
        }
    }

    /// Sweeps the queue when abandoned jobs make up half of it.
    fn note_abandoned(&self) {
        let mut state = lock(&self.state);
        state.abandoned += 1;
        if state.abandoned < ABANDONED_MIN.max(state.queue.len() / 2) {
            return;
        }
        state.abandoned = 0;
        // Only headers are dropped under the lock: what a job held went when it was abandoned.
        state.queue.retain(|job| !job.is_abandoned());
        state.queue.shrink_to(ABANDONED_MIN);
    }

    /// The life of a thread.
    ///
    /// # Panics
    ///
    /// In a child that a job has forked and that returns into here.
    fn work(&self) {
        while let Some(job) = self.next_job() {
            contain(|| job.run());
            assert!(self.process.is_current(), "{NO_RUNTIME_SURVIVES}");
            contain(|| drop(job));
        }
    }

    /// Waits for a job. `None` if none came for long enough; the thread is then no longer counted.
    fn next_job(&self) -> Option<Arc<dyn Runnable>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.queue.pop_front() {
                if state.queue.is_empty() {
                    state.abandoned = 0;
                    state.queue.shrink_to(ABANDONED_MIN);
                }
                return Some(job);
            }
            state.idle += 1;
            let waited = self.work.wait_timeout(state, self.idle_max);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

fn spawn_thread(pool: &'static Pool) -> io::Result<()> {
    let work = || {
        // A thread that is bound to a processor may have made this one.
        cpus::unbind();
        pool.work();
    };
    thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(work)?;
    Ok(())
}

/// No user code runs under these locks, so none is left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
