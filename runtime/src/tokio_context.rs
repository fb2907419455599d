//! tokio's runtime beside the shards, for futures that insist on it.
//!
//! `tokio::net`, `tokio::time` and what is built on them, as reqwest and sqlx are, find their
//! reactor in the thread that polls them: "there is no reactor running" is what they say elsewhere.
//! A [`TokioContext`] polls such a future within the context of a runtime of tokio's, on the shard
//! where its task is. The runtime itself, one thread for the whole process, waits for its sockets
//! and timers and wakes the task.
//!
//! ```
//! use std::time::Duration;
//!
//! use annulus_runtime::tokio_context::TokioContext;
//!
//! # fn main() -> std::io::Result<()> {
//! # annulus_runtime::Runtime::new()?.block_on(async {
//! let tokio = TokioContext::start()?;
//! // In an async block, as most of tokio's futures look for the reactor when they are made.
//! tokio.enter(async { tokio::time::sleep(Duration::from_millis(1)).await }).await;
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! # What it costs
//!
//! Bytes are read and written by the shard itself, but each wait is one of another thread: a wake
//! is mail. Sockets that have annulus types of their own are better off with those.
//!
//! # What does not work
//!
//! - What is spawned by `tokio::spawn` runs on tokio's one thread and has to be `Send`; it should
//!   not compute for long. [`annulus_runtime::spawn`](crate::spawn) stays on the shard.
//! - `tokio::task::spawn_local` and `block_in_place` panic, `Handle::block_on` holds the shard.
//! - A [paused clock](crate::time) does not hold for tokio's timers, and does not wait for its
//!   sockets.
//! - A child of `fork` has no such thread. It may [`start`](TokioContext::start) its own; to poll
//!   what its parent entered panics.
//!
//! # Its end
//!
//! The thread, `annulus-tokio`, is started by the first call of [`start`](TokioContext::start) and
//! ends with the process, which it does not hold up. It belongs to no `Runtime`: what lives in it,
//! such as a pool of connections, may be used by several, one after the other. What `tokio::spawn`
//! started goes on when the runtime that asked for it has ended.

use std::fmt;
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;

use pin_project_lite::pin_project;
use tokio::runtime::{self, EnterGuard, Handle};

use crate::cpus;
use crate::fork::{self, NO_RUNTIME_SURVIVES, PerProcess, Process};
use crate::shard;

/// A handle to tokio's runtime beside the shards: see [this module](self).
#[derive(Clone)]
pub struct TokioContext {
    handle: Handle,
    process: Process,
}

impl TokioContext {
    /// The context of this process. The first call starts its thread.
    ///
    /// May be called on any thread, within a runtime of annulus and without one.
    ///
    /// # Errors
    ///
    /// Those of making a thread (`EAGAIN`) and what tokio needs to wait for sockets: no descriptors
    /// left (`EMFILE`, `ENFILE`). The next call tries again.
    pub fn start() -> io::Result<TokioContext> {
        static STARTED: PerProcess<Mutex<Option<Handle>>> = PerProcess::new(Mutex::default);
        // A child that is forked before there is a runtime must find a context of its own, too.
        fork::watch(shard::forget_parent)?;
        let mut started = STARTED.get().lock().unwrap_or_else(PoisonError::into_inner);
        let handle = match &*started {
            Some(handle) => handle.clone(),
            None => started.insert(start_thread()?).clone(),
        };
        Ok(TokioContext { handle, process: Process::current() })
    }

    /// The future, which finds tokio's runtime whenever it is polled, and when it is dropped.
    ///
    /// It is polled where the returned future is, so it need not be `Send`.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it drops the future: what that loses is lost.
    ///
    /// # Panics
    ///
    /// Polled after it was ready, and in a child of `fork` whose parent made it. A panic of
    /// the future passes through.
    pub fn enter<F: Future>(&self, future: F) -> Entered<F> {
        Entered { future: Some(future), context: self.clone() }
    }

    /// tokio's own handle: to spawn on its thread.
    ///
    /// ```
    /// use annulus_runtime::tokio_context::TokioContext;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// let tokio = TokioContext::start()?;
    /// let answer = tokio.handle().spawn(async { 6 * 7 }).await;
    /// assert_eq!(answer.unwrap(), 42);
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl fmt::Debug for TokioContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokioContext").finish_non_exhaustive()
    }
}

/// Builds the runtime here, where its error can be told, and has a thread of its own drive it.
fn start_thread() -> io::Result<Handle> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        // Those that take what blocks are made by whoever asks, which may be a shard that is bound.
        .on_thread_start(cpus::unbind)
        .build()?;
    let handle = runtime.handle().clone();
    let drive = move || {
        cpus::unbind();
        runtime.block_on(pending::<()>());
    };
    // Nobody joins it: it ends with the process, and keeps none from ending.
    thread::Builder::new().name(THREAD_NAME.into()).spawn(drive)?;
    Ok(handle)
}

pin_project! {
    /// A future within tokio's context, made by [`TokioContext::enter`].
    #[must_use = "futures do nothing unless they are awaited"]
    pub struct Entered<F> {
        // None when it is over.
        #[pin]
        future: Option<F>,
        context: TokioContext,
    }

    impl<F> PinnedDrop for Entered<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.future.is_some() {
                let _within = within(&this.context.handle);
                this.future.set(None);
            }
        }
    }
}

impl<F: Future> Future for Entered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        assert!(this.context.process.is_current(), "{NO_RUNTIME_SURVIVES}");
        let _within = within(&this.context.handle);
        let future = this.future.as_mut().as_pin_mut();
        let output = ready!(future.expect("`Entered` polled after it was ready").poll(cx));
        // What it holds is dropped within the context as well.
        this.future.set(None);
        Poll::Ready(output)
    }
}

impl<F> fmt::Debug for Entered<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").field("is_over", &self.future.is_none()).finish_non_exhaustive()
    }
}

/// tokio's context until the guard is dropped, but for a thread so near its end that tokio has none
/// there any more: then what is dropped has to do without, as anywhere else.
fn within(handle: &Handle) -> Option<EnterGuard<'_>> {
    match Handle::try_current() {
        Err(error) if error.is_thread_local_destroyed() => None,
        _ => Some(handle.enter()),
    }
}

/// The name of the thread.
const THREAD_NAME: &str = "annulus-tokio";
