//! Signals of the process: Ctrl-C, the order to end, and the like.
//!
//! The kernel gives a signal to the process, not to a task: every [`Signal`] of its kind sees it,
//! on whatever runtime or thread it waits.
//!
//! The first use of a kind installs a handler, which stays for as long as the process lives: from
//! then on the signal no longer ends the process by itself, even if nobody waits for it. Handlers
//! that the program has installed before are still called. Signals of a kind that come faster than
//! they are looked at may be seen as one, as the kernel merges them too.
//!
//! A child of `fork(2)` has the handlers, but not the thread that wakes who waits: there, signals
//! reach nobody until the child executes a program, which begins with the default actions.
//!
//! A server that is asked to end, and then told to, takes
//! [`ShutdownToken::on_signals`](crate::shutdown::ShutdownToken::on_signals).

// The handler counts and writes to an eventfd, which is all that it may do. One thread of the
// process sleeps on the eventfd and wakes who waits. It outlives every runtime, so a signal needs
// no shard to be awake, and costs a shard that waits for none nothing.

use std::future::{Future, poll_fn};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, thread};

use crate::sync::{AtomicU64, Ordering};
use crate::sys::EventFd;
use crate::waiters::{Place, Waiters};

/// Waits for SIGINT, which Ctrl-C sends.
///
/// The handler is installed by this call, not by the first poll: a signal that comes after it is
/// not lost, however late the future is polled. It completes once; each call has a future of its
/// own.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let interrupted = annulus_runtime::signal::ctrl_c();
/// #   assert_eq!(unsafe { libc::raise(2) }, 0);
///     interrupted.await // until the user presses Ctrl-C
/// })
/// # }
/// ```
///
/// # Errors
///
/// Those of [`Signal::new`], when it is awaited.
///
/// # Cancel safety
///
/// Polled by reference and given up, it can be awaited later, and has seen what came meanwhile. A
/// signal that a dropped future has not waited for is nobody's: keep the future, or a [`Signal`],
/// as long as signals matter.
pub fn ctrl_c() -> impl Future<Output = io::Result<()>> + Send + Sync + 'static {
    once(Kind::Interrupt)
}

/// Waits for SIGTERM, by which service managers and `kill` ask a program to end.
///
/// See [`ctrl_c`] for all else.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let terminated = annulus_runtime::signal::terminate();
/// #   assert_eq!(unsafe { libc::raise(15) }, 0);
///     terminated.await // until somebody calls `kill`
/// })
/// # }
/// ```
pub fn terminate() -> impl Future<Output = io::Result<()>> + Send + Sync + 'static {
    once(Kind::Terminate)
}

fn once(kind: Kind) -> impl Future<Output = io::Result<()>> + Send + Sync + 'static {
    let signal = Signal::new(kind);
    async move {
        signal?.recv().await;
        Ok(())
    }
}

/// A kind of signal that can be waited for.
///
/// # Examples
///
/// A signal of each kind wakes those who wait for that kind only:
///
/// ```
/// use annulus_runtime::signal::{Kind, Signal};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let [mut first, mut second] = [Signal::new(Kind::User1)?, Signal::new(Kind::User2)?];
///     let first = annulus_runtime::spawn(async move { first.recv().await });
///     assert_eq!(unsafe { libc::raise(Kind::User2.number()) }, 0); // or `kill -USR2`
///     second.recv().await;
///     assert!(!first.is_finished());
///     Ok(())
/// })
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: the order to end.
    Terminate,
    /// SIGHUP: the terminal is gone; for servers, the order to read their settings again.
    Hangup,
    /// SIGQUIT: Ctrl-\\.
    Quit,
    /// SIGUSR1: whatever the program says.
    User1,
    /// SIGUSR2: whatever the program says.
    User2,
}

impl Kind {
    /// The number by which the system knows it.
    ///
    /// # Examples
    ///
    /// ```
    /// use annulus_runtime::signal::Kind;
    ///
    /// assert_eq!(Kind::Terminate.number(), 15);
    /// ```
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            Kind::Interrupt => libc::SIGINT,
            Kind::Terminate => libc::SIGTERM,
            Kind::Hangup => libc::SIGHUP,
            Kind::Quit => libc::SIGQUIT,
            Kind::User1 => libc::SIGUSR1,
            Kind::User2 => libc::SIGUSR2,
        }
    }

    fn source(self) -> &'static Source {
        &SOURCES[self as usize]
    }
}

/// The signals of one kind, from its making on.
///
/// # Examples
///
/// A server that reads its settings again on SIGHUP:
///
/// ```
/// use annulus_runtime::signal::{Kind, Signal};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let mut hangups = Signal::new(Kind::Hangup)?;
/// #   assert_eq!(unsafe { libc::raise(Kind::Hangup.number()) }, 0);
///     loop {
///         hangups.recv().await;
///         // read the settings
/// #       return Ok(());
///     }
/// })
/// # }
/// ```
#[derive(Debug)]
pub struct Signal {
    source: &'static Source,
    /// How many of the source's signals this one has handed out, or came too late for.
    seen: u64,
}

impl Signal {
    /// Installs the handler, if it is the first of this kind, and sees every signal from now on.
    ///
    /// Works outside of runtimes too.
    ///
    /// # Errors
    ///
    /// Those of `sigaction(2)`; for the first signal of a process also a missing descriptor
    /// (`EMFILE`, `ENFILE`) or thread (`EAGAIN`). The next call tries again.
    pub fn new(kind: Kind) -> io::Result<Signal> {
        let source = kind.source();
        // Read first: what comes while this call lasts is seen.
        let seen = source.count();
        source.install(kind)?;
        Ok(Signal { source, seen })
    }

    /// Waits until a signal comes, and completes at once if one has come since the last time.
    ///
    /// # Examples
    ///
    /// Every `Signal` sees a signal, also one that came before it was awaited:
    ///
    /// ```
    /// use annulus_runtime::signal::{Kind, Signal};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// annulus_runtime::Runtime::new()?.block_on(async {
    ///     let [mut one, mut other] = [Signal::new(Kind::Hangup)?, Signal::new(Kind::Hangup)?];
    ///     assert_eq!(unsafe { libc::raise(Kind::Hangup.number()) }, 0);
    ///     one.recv().await;
    ///     other.recv().await;
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// A dropped `recv` loses no signal: the next one gets it.
    pub async fn recv(&mut self) {
        let mut place = self.place();
        poll_fn(|cx| self.poll(&mut place, cx)).await;
    }

    /// Where this one waits.
    pub(crate) fn place(&self) -> Place<'static> {
        self.source.waiters.place()
    }

    /// How many signals have come since the last time, or a wait for the next.
    pub(crate) fn poll(&mut self, place: &mut Place<'static>, cx: &mut Context<'_>) -> Poll<u64> {
        let mut come = self.take();
        if come == 0 {
            place.wait(cx.waker());
            // What was counted before the place was taken has woken nobody there.
            come = self.take();
        }
        if come == 0 { Poll::Pending } else { Poll::Ready(come) }
    }

    fn take(&mut self) -> u64 {
        let count = self.source.count();
        count - std::mem::replace(&mut self.seen, count)
    }
}

/// What there is for one kind of signal in the process.
#[derive(Default)]
struct Source {
    /// Signals that the handler has met.
    count: AtomicU64,
    waiters: Waiters,
    installed: Mutex<bool>,
}

impl Source {
    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// A signal has come. Before the bell: the write there orders it before the wake.
    fn note(&self) {
        // Release: pairs with the Acquire in `count`.
        self.count.fetch_add(1, Ordering::Release);
    }

    fn install(&'static self, kind: Kind) -> io::Result<()> {
        let mut installed = self.installed.lock().unwrap_or_else(PoisonError::into_inner);
        if *installed {
            return Ok(());
        }
        let bell = bell()?;
        let handler = move || {
            self.note();
            bell.signal();
        };
        // SAFETY: the handler adds to an atomic and makes system calls that signal-safety(7)
        // allows; it takes no lock and no memory. The registry keeps errno.
        unsafe { signal_hook_registry::register(kind.number(), handler) }?;
        *installed = true;
        Ok(())
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("count", &self.count()).finish_non_exhaustive()
    }
}

/// The eventfd of the process, and the thread that sleeps on it.
fn bell() -> io::Result<Arc<EventFd>> {
    let mut bell = BELL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(bell) = &*bell {
        return Ok(Arc::clone(bell));
    }
    let new = Arc::new(EventFd::new()?);
    let heard = Arc::clone(&new);
    // Nobody joins it: it ends with the process, and keeps none from ending.
    thread::Builder::new().name(THREAD_NAME.into()).spawn(move || listen(&heard))?;
    *bell = Some(Arc::clone(&new));
    Ok(new)
}

/// Wakes who waits for a signal, for ever.
fn listen(bell: &EventFd) {
    let mut woken = [0; KINDS];
    loop {
        match bell.wait() {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                thread::sleep(WAIT_REFUSED_PAUSE);
            }
            _ => {}
        }
        wake_those_told(&*SOURCES, &mut woken);
    }
}

/// Wakes those who wait for a kind of which more have come than they were woken for.
fn wake_those_told(sources: &[Source], woken: &mut [u64]) {
    for (source, woken) in sources.iter().zip(woken) {
        let count = source.count();
        if *woken != count {
            *woken = count;
            source.waiters.wake_all();
        }
    }
}

static SOURCES: LazyLock<[Source; KINDS]> = LazyLock::new(Default::default);
static BELL: Mutex<Option<Arc<EventFd>>> = Mutex::new(None);

/// How many there are of [`Kind`], the last of which is this.
const KINDS: usize = Kind::User2 as usize + 1;
/// The name of the thread.
const THREAD_NAME: &str = "annulus-signals";
/// The kernel refuses to wait, for example because a limit of no descriptors was set: then signals
/// are looked for so often, which is late for a user but no load.
const WAIT_REFUSED_PAUSE: Duration = Duration::from_millis(50);

#[cfg(all(test, loom))]
mod models;
