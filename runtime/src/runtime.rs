//! Building a runtime and running a future on it.

mod outside;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, Driver};
use crate::crew::{self, Crew};
use crate::driver::DriverInfo;
use crate::error::BuildError;
use crate::executor::{Hooks, TaskInfo};
use crate::shard;
use crate::shards::Shard;
use crate::stall::{OnStall, Stall};
use crate::trace::TaskSpan;

pub use outside::Outlook;

/// A runtime: the shard of the thread that made it, and further ones as soon as they are addressed
/// (see [`Shard`]).
///
/// It stays on its thread. Dropping it drops every task, closes every socket and cancels every
/// operation in flight, on all shards, and returns when the kernel has let go of all memory and the
/// threads have ended; bytes that streams have not yet sent are given a second to leave. A thread
/// whose task does not yield is waited for some seconds, and left behind with a notice.
///
/// # In a library
///
/// A library may have a runtime of its own on a thread that it owns, whatever its user's program
/// runs on: any number of runtimes are in a process. What the user calls sends its work there by
/// [`Shard::spawn_with`]; the handle can be awaited in every runtime, also in none of this crate.
///
/// ```
/// use std::thread;
///
/// use annulus_runtime::{Runtime, Shard, shutdown::ShutdownToken};
///
/// /// Keeps its thread until it is dropped.
/// struct Library {
///     shard: Shard,
///     end: ShutdownToken,
///     thread: Option<thread::JoinHandle<()>>,
/// }
///
/// impl Library {
///     fn start() -> std::io::Result<Library> {
///         let end = ShutdownToken::new();
///         let ended = end.clone();
///         let (tell, told) = std::sync::mpsc::channel::<std::io::Result<Shard>>();
///         let run = move || match Runtime::builder().shards(1).build() {
///             Err(error) => drop(tell.send(Err(error.into()))),
///             Ok(runtime) => {
///                 let _heard = tell.send(Ok(runtime.handle()));
///                 runtime.block_on(ended.requested());
///             }
///         };
///         let thread = Some(thread::Builder::new().name("library".to_owned()).spawn(run)?);
///         Ok(Library { shard: told.recv().expect("it tells")?, end, thread })
///     }
///
///     async fn answer(&self) -> u32 {
///         self.shard.spawn_with(|| async { 42 }).await.expect("it is there, and does not panic")
///     }
/// }
///
/// impl Drop for Library {
///     fn drop(&mut self) {
///         self.end.shutdown();
///         let _panicked = self.thread.take().map(thread::JoinHandle::join);
///     }
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let library = Library::start()?;
/// // Here by another runtime of this crate.
/// assert_eq!(Runtime::new()?.block_on(library.answer()), 42);
/// # Ok(())
/// # }
/// ```
///
/// A thread that already has a loop can run the runtime within it: see [`turn`](Runtime::turn).
///
/// # Fork and threads
///
/// - **Starting programs is safe**, by [`Command`](std::process::Command) or otherwise, within a
///   task as well: every descriptor of the runtime is closed on exec. On a shard that is bound to a
///   processor the program is bound to it too; within
///   [`spawn_blocking`](crate::task::spawn_blocking) it is not.
/// - **`fork` does the parent no harm**, whatever the child does with its copies: it has the ring's
///   memory not at all, and reaches neither the ring nor the epoll instance.
/// - **In the child no runtime survives.** What was made before the fork can be dropped, and is
///   then leaked or let go of without a word to the parent. To use it is an error or a panic that
///   says so; a child that returns from a task into the loop meets that panic in
///   [`block_on`](Runtime::block_on). A future of `block_on` that forks and is then ready gives its
///   output in both.
/// - **The child may build a new runtime** and do everything with it. As in every child of a
///   program with threads, locks that other threads held at the fork stay held (of the standard
///   output, say, or the one that the standard library takes where a thread starts or ends, for
///   which the child's threads would wait): exec, or `_exit`, is the better course.
/// - **A child that does not exec holds copies of the descriptors**: the peers of connections that
///   the parent has closed see no end, and ports stay in use, until it ends. The end of the
///   parent's runtime is as quick as ever, and the kernel writes to none of its memory afterwards.
/// - Children that are made past the C library, by a bare `clone` or `_Fork`, are not noticed. Such
///   a child must exec: if it uses what it has, it is ended by a fault, or harms the parent.
/// - **A thread may end with its runtime** in a thread-local: that is a drop like any other. A
///   runtime that was given to [`mem::forget`](std::mem::forget) stands still when its thread has
///   ended; wakers and handles can still be used and dropped, and its descriptors stay open.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let runtime = annulus_runtime::Runtime::new()?;
/// let answer = runtime.block_on(async { 42 });
/// assert_eq!(answer, 42);
/// # Ok(())
/// # }
/// ```
pub struct Runtime {
    shard: Rc<shard::Shard>,
}

impl Runtime {
    /// A runtime with the defaults, and what the environment says of them: see [`Builder`].
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn new() -> Result<Runtime, BuildError> {
        Runtime::builder().build()
    }

    /// The runtime of a crew of which this thread is the first.
    pub(crate) fn with(crew: Arc<Crew>) -> Result<Runtime, BuildError> {
        let mailbox = crew.mailbox(0);
        Ok(Runtime { shard: shard::Shard::new(crew, 0, mailbox)? })
    }

    /// Settings for a runtime.
    pub fn builder() -> Builder {
        Builder { config: Config::default(), hooks: Hooks::default(), on_stall: None }
    }

    /// Runs a future on this thread until it is ready, and everything it spawns meanwhile.
    ///
    /// Tasks that are not done by then stand still until the next call.
    ///
    /// # Panics
    ///
    /// Within a runtime, this one or another: a thread runs one at a time. If the future panics,
    /// so does this call, and the runtime can be used again.
    #[track_caller]
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.shard.check_process();
        let _bound = self.shard.crew.bind_first();
        let span = TaskSpan::block_on(size_of::<F>());
        self.shard.block_on(span.around(future))
    }

    /// The first shard, to which any thread can send tasks. They run while `block_on` does.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let runtime = annulus_runtime::Runtime::new()?;
    /// let handle = runtime.handle();
    /// let sum = std::thread::spawn(move || handle.spawn_with(|| async { 1 + 1 })).join().unwrap();
    /// assert_eq!(runtime.block_on(sum).unwrap(), 2);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn handle(&self) -> Shard {
        Shard::new(Arc::clone(&self.shard.crew), 0)
    }

    /// All shards, started or not: see [`Shard::all`].
    #[must_use]
    pub fn shards(&self) -> Vec<Shard> {
        Shard::all_of(&self.shard.crew)
    }

    /// Which driver runs, and if it is not io_uring, why.
    #[must_use]
    pub fn driver(&self) -> DriverInfo {
        self.shard.driver_info.clone()
    }
}

impl Drop for Runtime {
    /// # Panics
    ///
    /// Within one of the runtime's own tasks, which cannot end what it runs on.
    fn drop(&mut self) {
        let within = shard::try_current().is_some_and(|current| Rc::ptr_eq(&current, &self.shard));
        if within && std::thread::panicking() {
            // A second panic would end the process. The shard goes with it, or with the thread.
            return;
        }
        assert!(!within, "a runtime cannot be dropped within one of its own tasks");
        if !self.shard.id.is_ours() {
            // In a forked child. The parent drives this ring or epoll instance; to end what is
            // under way there, to unmap or to close it here is not ours to do.
            std::mem::forget(Rc::clone(&self.shard));
            return;
        }
        let leaving = self.shard.crew.dismiss();
        // Here as well as there, at the same time.
        crew::end(Rc::clone(&self.shard));
        self.shard.crew.see_off(leaving);
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("driver", &self.shard.driver_info).finish_non_exhaustive()
    }
}

/// Which driver runs on this shard, and if it is not io_uring, why.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     println!("driver: {}", annulus_runtime::driver_info());
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// Outside of a runtime.
#[must_use]
#[track_caller]
pub fn driver_info() -> DriverInfo {
    shard::current().driver_info.clone()
}

/// Settings for a [`Runtime`].
///
/// The environment overrides them, for every program built on this crate:
/// `ANNULUS_DRIVER` (`auto`, `uring`, `epoll`), `ANNULUS_SHARDS`, `ANNULUS_RING_ENTRIES`,
/// `ANNULUS_SPIN_US`, `ANNULUS_STALL_MS`.
///
/// # Examples
///
/// ```
/// use annulus_runtime::{Driver, Runtime};
///
/// # fn main() -> std::io::Result<()> {
/// let runtime = Runtime::builder().driver(Driver::Epoll).shards(2).build()?;
/// println!("driver: {}", runtime.driver()); // with ANNULUS_DRIVER=uring: io_uring
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "settings do nothing until `build` is called"]
pub struct Builder {
    config: Config,
    hooks: Hooks,
    on_stall: Option<OnStall>,
}

impl Builder {
    /// Which driver to use. `Auto`, the default, takes io_uring where it works.
    pub fn driver(mut self, driver: Driver) -> Builder {
        self.config.driver = driver;
        self
    }

    /// How many shards the runtime has, 1 to 1024. Default: as many as this process has processors,
    /// by its affinity and the quota of its cgroup.
    ///
    /// Each but the first is a thread that starts when something is first sent to it; a runtime
    /// that never addresses another shard has one thread.
    pub fn shards(mut self, shards: u32) -> Builder {
        self.config.shards = Some(shards);
        self
    }

    /// Whether each shard is bound to a processor of its own.
    ///
    /// By default the threads that the runtime makes are, and the thread of `block_on`, which is
    /// the program's, is not. With `true` it is as well, until `block_on` returns; with `false`
    /// none is. Nobody is bound where there are more shards than processors, or a quota of the
    /// cgroup leaves fewer than there are. A refusal is a notice, not an error. Shards that are not
    /// bound may run where the thread that built the runtime might then.
    ///
    /// Threads and programs that a bound thread starts are bound to the same processor, unless they
    /// change that; those of [`spawn_blocking`](crate::task::spawn_blocking) do.
    pub fn pin(mut self, pin: bool) -> Builder {
        self.config.pin = Some(pin);
        self
    }

    /// Entries of the submission queue, rounded up to a power of two. Default 256.
    ///
    /// More operations than that may be in flight; this is how many are handed over at a time.
    pub fn ring_entries(mut self, entries: u32) -> Builder {
        self.config.ring_entries = entries;
        self
    }

    /// The receive buffers that the shard's streams share: how many (rounded up to a power of
    /// two), and the bytes of each. Default 1024 of 4096 bytes.
    ///
    /// They cost memory once they have been used. A stream that finds none receives all the same,
    /// with one more system call.
    pub fn recv_pool(mut self, buffers: u32, bytes: u32) -> Builder {
        self.config.recv_pool_buffers = buffers;
        self.config.recv_pool_buffer_bytes = bytes;
        self
    }

    /// How long an idle shard watches for news before it sleeps. Default: not at all.
    ///
    /// Waking a sleeping core costs some 20 µs of latency; watching costs that core. Worth it with
    /// few connections and a core to spare.
    pub fn spin(mut self, limit: Duration) -> Builder {
        self.config.spin = limit;
        self
    }

    /// How many tasks are polled between two looks at sockets, timers and other threads' wakes.
    /// Default 64.
    pub fn event_interval(mut self, polls: u32) -> Builder {
        self.config.event_interval = polls;
        self
    }

    /// Has this called for each task that is spawned, on the task's shard, before its first poll.
    /// A second one replaces the first, as with the hooks below.
    ///
    /// Hooks may spawn and wake; one that spawns is called for those tasks too, and has to end it.
    /// What they panic with is caught, and harms no task. The time that they take is taken from the
    /// tasks; a runtime without hooks pays one look for each occasion. The future that `block_on`
    /// runs is no task.
    ///
    /// # Examples
    ///
    /// ```
    /// use annulus_runtime::{Runtime, task};
    ///
    /// let runtime = Runtime::builder()
    ///     .on_task_spawn(|task| println!("{} comes: {:?}", task.id(), task.name()))
    ///     .on_task_terminate(|task| println!("{} goes", task.id()))
    ///     .build()?;
    /// runtime.block_on(async {
    ///     task::Builder::new().name("the only one").spawn(async {}).await.unwrap();
    /// });
    /// # Ok::<(), annulus_runtime::BuildError>(())
    /// ```
    pub fn on_task_spawn<F>(mut self, hook: F) -> Builder
    where
        F: Fn(&TaskInfo<'_>) + Send + Sync + 'static,
    {
        self.hooks.spawn = Some(Arc::new(hook));
        self
    }

    /// Has this called before each poll of a task.
    pub fn on_before_task_poll<F>(mut self, hook: F) -> Builder
    where
        F: Fn(&TaskInfo<'_>) + Send + Sync + 'static,
    {
        self.hooks.before_poll = Some(Arc::new(hook));
        self
    }

    /// Has this called after each poll of a task, also one that panicked.
    pub fn on_after_task_poll<F>(mut self, hook: F) -> Builder
    where
        F: Fn(&TaskInfo<'_>) + Send + Sync + 'static,
    {
        self.hooks.after_poll = Some(Arc::new(hook));
        self
    }

    /// Has this called when a task has ended, by its output, a panic, an abort or the end of its
    /// runtime, and its future has been dropped; before whoever awaits it is woken.
    pub fn on_task_terminate<F>(mut self, hook: F) -> Builder
    where
        F: Fn(&TaskInfo<'_>) + Send + Sync + 'static,
    {
        self.hooks.terminate = Some(Arc::new(hook));
        self
    }

    /// Reports what holds a shard for this long without yielding, 1 ms to a minute. Default: zero,
    /// which looks at nothing and costs nothing.
    ///
    /// A report names the task, where it was spawned and for how long it has held its shard, and
    /// has a backtrace of the thread. It is printed on standard error, unless
    /// [`on_stall`](Builder::on_stall) takes it: when the limit is reached (found up to half of it
    /// later), again whenever the time has doubled, and at most five times in ten seconds for each
    /// shard. With the feature `backtrace` the functions have their names; without, there is the
    /// `addr2line` command that finds them.
    ///
    /// The time is that of the clock: a thread that waits for a processor holds its shard as well.
    /// A process that is stopped as a whole, as by SIGSTOP, is not stalled. Paused clocks
    /// ([`time::pause`](crate::time::pause)) change nothing here.
    ///
    /// With a limit each poll costs some nanoseconds, and a thread of the process wakes four times
    /// in the limit. It asks a stalled thread for its backtrace by SIGURG, for which the first such
    /// runtime of a process installs a handler; one that was there before gets the signals that
    /// are others'. Calls of C libraries that a signal ends with EINTR, such as `nanosleep` and
    /// `poll`, may then end early in a task that stalls. A thread that blocks SIGURG is reported
    /// without a backtrace; so is every one with a C library before glibc 2.35, where looking at an
    /// interrupted stack is not safe.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// use std::time::Duration;
    ///
    /// let builder = annulus_runtime::Runtime::builder().stall(Duration::from_millis(100));
    /// let runtime = builder.build()?;
    /// runtime.block_on(async { /* what holds the thread for longer is told on stderr */ });
    /// # Ok(())
    /// # }
    /// ```
    pub fn stall(mut self, limit: Duration) -> Builder {
        self.config.stall = limit;
        self
    }

    /// Who is told of a [`stall`](Builder::stall), instead of standard error.
    ///
    /// It is called on a thread that watches all runtimes of the process and waits meanwhile; what
    /// it panics with is lost. See [`Stall`] for an example.
    pub fn on_stall(mut self, tell: Arc<dyn Fn(&Stall) + Send + Sync>) -> Builder {
        self.on_stall = Some(OnStall(tell));
        self
    }

    /// Starts with the clock paused, for tests: see [`time::pause`](crate::time::pause).
    pub fn start_paused(mut self, paused: bool) -> Builder {
        self.config.start_paused = paused;
        self
    }

    /// Makes the runtime, on this thread.
    ///
    /// # Errors
    ///
    /// A setting, or a variable of the environment, that cannot be used; a refusal of io_uring if
    /// it was asked for by name, with the cause and the remedy; no descriptor or memory left.
    pub fn build(self) -> Result<Runtime, BuildError> {
        let config = self.config.with_environment()?;
        Runtime::with(Crew::new(config, self.hooks, self.on_stall))
    }
}
