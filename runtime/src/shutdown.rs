//! Asking all parts of a program to end, and telling them to end at once.
//!
//! The level stands in one atomic, which those who poll again and again only read; who waits for a
//! level stands in its list. A waiter joins the list and then reads the level once more, a shutdown
//! sets the level and then wakes the list: whichever comes first, nobody sleeps on.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::{fmt, io};

use self::signals::Relay;
use crate::sync::{AtomicU8, Ordering};
use crate::waiters::{WaiterKey, Waiters};

/// Asks every part of a program that holds a clone of it to end, and later tells those that have
/// not to end at once.
///
/// Two levels, which only rise: **requested**, by the first [`shutdown`](Self::shutdown), means to
/// accept nothing new and to finish what has begun; **forced**, by the second one or by
/// [`shutdown_now`](Self::shutdown_now), means to drop everything.
///
/// It belongs to no runtime: clones can be used on any thread, within runtimes and outside, also
/// under other executors.
///
/// # Examples
///
/// ```
/// use annulus_runtime::shutdown::ShutdownToken;
///
/// # fn main() -> std::io::Result<()> {
/// let token = ShutdownToken::new();
/// let remote = token.clone();
/// let admin = std::thread::spawn(move || remote.shutdown());
/// annulus_runtime::Runtime::new()?.block_on(async {
///     token.requested().await;
///     assert!(token.is_requested() && !token.is_forced());
/// });
/// # admin.join().unwrap();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct ShutdownToken(Arc<State>);

struct State {
    /// [`RUNNING`], [`REQUESTED`] or [`FORCED`]; never falls.
    level: AtomicU8,
    requested: Waiters,
    forced: Waiters,
    /// Set if the token follows the signals of the process.
    relay: OnceLock<Arc<Relay>>,
}

impl ShutdownToken {
    /// A token of which nothing has been asked yet.
    #[must_use]
    pub fn new() -> ShutdownToken {
        ShutdownToken::default()
    }

    /// A token that follows SIGINT (Ctrl-C) and SIGTERM: each is a call of
    /// [`shutdown`](Self::shutdown), so that the first asks to end and the second tells to end at
    /// once.
    ///
    /// The handlers are installed by this call and stay for as long as the process lives, also when
    /// the token is gone: then these signals do nothing. See [`signal`](crate::signal).
    ///
    /// # Examples
    ///
    /// ```
    /// use annulus_runtime::shutdown::ShutdownToken;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let token = ShutdownToken::on_signals()?;
    /// # assert_eq!(unsafe { libc::raise(15) }, 0);
    /// annulus_runtime::Runtime::new()?.block_on(async {
    ///     token.requested().await; // `kill`, or Ctrl-C
    ///     assert!(!token.is_forced());
    /// });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Signal::new`](crate::signal::Signal::new).
    pub fn on_signals() -> io::Result<ShutdownToken> {
        let token = ShutdownToken::new();
        Relay::install(&token)?;
        Ok(token)
    }

    /// Asks to end. When that has been asked already, by this clone or another: tells to end at
    /// once.
    ///
    /// Wakes those who wait before it returns.
    ///
    /// # Examples
    ///
    /// ```
    /// # use annulus_runtime::shutdown::ShutdownToken;
    /// let token = ShutdownToken::new();
    /// token.shutdown();
    /// assert!(token.is_requested() && !token.is_forced());
    /// token.clone().shutdown();
    /// assert!(token.is_forced());
    /// ```
    pub fn shutdown(&self) {
        // Release: pairs with the Acquire in `reached`, so that who sees the level sees what was
        // done before it was set. The same holds for the swap below.
        let first =
            self.0.level.compare_exchange(RUNNING, REQUESTED, Ordering::Release, Ordering::Relaxed);
        match first {
            Ok(_) => self.0.requested.wake_all(),
            Err(_) => self.shutdown_now(),
        }
    }

    /// Tells to end at once, also when nothing has been asked before.
    ///
    /// Wakes those who wait before it returns: also those who wait to be asked.
    ///
    /// # Examples
    ///
    /// ```
    /// # use annulus_runtime::shutdown::ShutdownToken;
    /// let token = ShutdownToken::new();
    /// token.shutdown_now();
    /// assert!(token.is_requested() && token.is_forced());
    /// ```
    pub fn shutdown_now(&self) {
        let before = self.0.level.swap(FORCED, Ordering::AcqRel);
        if before < REQUESTED {
            self.0.requested.wake_all();
        }
        if before < FORCED {
            self.0.forced.wake_all();
        }
    }

    /// True from the first [`shutdown`](Self::shutdown) or [`shutdown_now`](Self::shutdown_now) on.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.reached(REQUESTED)
    }

    /// True from the second [`shutdown`](Self::shutdown) or the first
    /// [`shutdown_now`](Self::shutdown_now) on.
    #[must_use]
    pub fn is_forced(&self) -> bool {
        self.0.reached(FORCED)
    }

    /// Waits until the end has been asked for, and completes at once if it has.
    ///
    /// In a loop, make the future before it and poll it by reference: each new one joins a list
    /// that all threads share.
    ///
    /// # Examples
    ///
    /// Requests are served one after the other until the program is to end:
    ///
    /// ```
    /// use annulus_runtime::shutdown::ShutdownToken;
    ///
    /// async fn serve(token: ShutdownToken, mut request: impl AsyncFnMut()) {
    ///     let mut requested = token.requested();
    ///     while requested.unless(request()).await.is_some() {}
    /// }
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// # let (token, mut requests) = (ShutdownToken::new(), 0);
    /// # let request = async || {
    /// #     requests += 1;
    /// #     if requests == 3 {
    /// #         token.shutdown();
    /// #         std::future::pending().await
    /// #     }
    /// # };
    /// # serve(token.clone(), request).await;
    /// # assert_eq!(requests, 3);
    /// # });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it: a level that has been reached stays reached.
    pub fn requested(&self) -> Waiting {
        self.waiting(REQUESTED)
    }

    /// Waits until the program has been told to end at once, and completes at once if it has.
    ///
    /// # Examples
    ///
    /// What has begun is finished after the first Ctrl-C, and dropped at the second:
    ///
    /// ```
    /// # use annulus_runtime::shutdown::ShutdownToken;
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// # let token = ShutdownToken::new();
    /// # let answer = std::future::pending::<()>();
    /// # token.shutdown();
    /// # annulus_runtime::spawn({ let token = token.clone(); async move { token.shutdown() } });
    /// token.requested().await;
    /// match token.forced().unless(answer).await {
    ///     Some(_answered) => println!("done"),
    ///     None => println!("given up"),
    /// }
    /// # assert!(token.is_forced());
    /// # });
    /// # Ok::<(), annulus_runtime::BuildError>(())
    /// ```
    ///
    /// # Cancel safety
    ///
    /// As [`requested`](Self::requested).
    pub fn forced(&self) -> Waiting {
        self.waiting(FORCED)
    }

    fn waiting(&self, level: u8) -> Waiting {
        Waiting { state: Arc::clone(&self.0), level, joined: None }
    }
}

impl fmt::Debug for ShutdownToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requested, forced) = (self.is_requested(), self.is_forced());
        f.debug_struct("ShutdownToken")
            .field("requested", &requested)
            .field("forced", &forced)
            .finish()
    }
}

impl State {
    fn reached(&self, level: u8) -> bool {
        self.level.load(Ordering::Acquire) >= level
    }

    fn waiters(&self, level: u8) -> &Waiters {
        if level == FORCED { &self.forced } else { &self.requested }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            level: AtomicU8::new(RUNNING),
            requested: Waiters::default(),
            forced: Waiters::default(),
            relay: OnceLock::new(),
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(relay) = self.relay.get() {
            relay.end();
        }
    }
}

/// The future of [`ShutdownToken::requested`] and [`ShutdownToken::forced`].
///
/// It borrows nothing, can be polled on any thread, and stays ready once it has been.
///
/// # Examples
///
/// ```
/// # use annulus_runtime::shutdown::{ShutdownToken, Waiting};
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let token = ShutdownToken::new();
/// let mut requested: Waiting = token.requested();
/// assert_eq!(requested.unless(async { 5 }).await, Some(5));
/// token.shutdown();
/// (&mut requested).await;
/// requested.await; // and it stays ready
/// # });
/// # Ok::<(), annulus_runtime::BuildError>(())
/// ```
#[must_use = "it waits for nothing unless it is awaited or polled"]
pub struct Waiting {
    state: Arc<State>,
    level: u8,
    /// Once it has waited: its place, and the waker that stands there.
    joined: Option<(WaiterKey, Waker)>,
}

impl Waiting {
    /// Does the work, unless it would have to wait when the level has been reached: then it is
    /// dropped, and the answer is `None`.
    ///
    /// The work comes first: a request that has arrived already is still answered.
    ///
    /// # Examples
    ///
    /// ```
    /// use annulus_runtime::shutdown::ShutdownToken;
    ///
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// let token = ShutdownToken::new();
    /// let mut requested = token.requested();
    /// token.shutdown();
    /// assert_eq!(requested.unless(async { 5 }).await, Some(5));
    /// assert_eq!(requested.unless(std::future::pending::<i32>()).await, None);
    /// # });
    /// # Ok::<(), annulus_runtime::BuildError>(())
    /// ```
    ///
    /// # Cancel safety
    ///
    /// That of the work, which is dropped when this is, or when the level is reached.
    pub async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => Pin::new(&mut *self).poll(cx).map(|()| None),
        })
        .await
    }
}

impl Future for Waiting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.state.reached(this.level) {
            return Poll::Ready(());
        }
        // The waker leaves the list only to be woken for good. So polling again, as every turn of
        // a `select!` does, takes no lock that threads would meet at.
        if this.joined.as_ref().is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        let mut key = this.joined.as_ref().map(|(key, _)| *key);
        this.state.waiters(this.level).wait(&mut key, cx.waker());
        this.joined = key.map(|key| (key, cx.waker().clone()));
        if this.state.reached(this.level) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((key, _)) = self.joined {
            self.state.waiters(self.level).leave(key);
        }
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("ready", &self.state.reached(self.level)).finish()
    }
}

/// Nothing has been asked.
const RUNNING: u8 = 0;
/// The program is to end.
const REQUESTED: u8 = 1;
/// The program is to end at once.
const FORCED: u8 = 2;

mod signals;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
