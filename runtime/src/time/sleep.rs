//! A future that waits for an instant.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::Instant;
use crate::executor::ShardId;
use crate::shard::{self, Shard};
use crate::timers::{Clock, NEVER, Registration, TimerKey};

/// Waits until `duration` has passed.
///
/// Counted from this call, not from the first poll. Never completes early. Zero is ready at the
/// first poll, or in the next turn if the task has run for long, so that a loop of sleeps leaves
/// room for others. A duration that ends beyond some 580 years means never.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, Instant, sleep};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let start = Instant::now();
///     sleep(Duration::from_millis(2)).await;
///     assert!(start.elapsed() >= Duration::from_millis(2));
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// When polled outside of a runtime.
///
/// # Cancel safety
///
/// Dropping it ends the wait and frees its timer.
pub fn sleep(duration: Duration) -> Sleep {
    let mut sleep = Sleep::new(Instant::now().add_or_never(duration));
    if !duration.is_zero() && !Clock::any_ever_paused() {
        if let Some((shard, stamp)) = shard::try_with(|shard| (shard.id, shard.meter.stamp())) {
            sleep.state = State::Fresh { shard, stamp };
        }
    }
    sleep
}

/// Waits until `deadline`.
///
/// An instant in the past is ready at the first poll. See [`sleep`] for the rest.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, Instant, sleep_until};
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let deadline = Instant::now() + Duration::from_millis(2);
///     sleep_until(deadline).await;
///     assert!(Instant::now() >= deadline);
/// });
/// # Ok(())
/// # }
/// ```
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep::new(deadline)
}

/// The future of [`sleep`] and [`sleep_until`].
///
/// Once complete it stays so: polled again it is ready again, until [`reset`](Self::reset). It is
/// `Unpin`, so a `&mut Sleep` can be awaited as it is, in a loop or a `select!`. It may be polled
/// on one shard, then on another, and dropped anywhere.
///
/// # Examples
///
/// ```
/// use annulus_runtime::time::{Duration, Instant, sleep};
/// use std::pin::Pin;
///
/// # fn main() -> std::io::Result<()> {
/// annulus_runtime::Runtime::new()?.block_on(async {
///     let mut idle = sleep(Duration::from_secs(60));
///     Pin::new(&mut idle).reset(Instant::now() + Duration::from_millis(1));
///     (&mut idle).await;
///     assert!(idle.is_elapsed());
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a sleep does nothing unless it is awaited or polled"]
pub struct Sleep {
    deadline: Instant,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// As `Idle`, of a deadline that was to come when this shard had taken this stamp, and
    /// no other. As long as it takes none, the poll that made the sleep goes on, mostly, and the
    /// clock is not asked: if that poll was long, what is overdue is fired at the end of the turn.
    Fresh { shard: ShardId, stamp: u64 },
    /// No shard knows of it: not polled yet, or reset after it was over.
    Idle,
    /// That shard's wheel holds a timer for it, or has fired it.
    Registered { shard: ShardId, key: TimerKey },
    /// The deadline was seen to be over.
    Elapsed,
}

impl Sleep {
    fn new(deadline: Instant) -> Self {
        Self { deadline, state: State::Idle }
    }

    /// The instant that is waited for.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the deadline is over, polled or not.
    pub fn is_elapsed(&self) -> bool {
        self.state == State::Elapsed || Instant::now() >= self.deadline
    }

    /// Waits for another instant from now on, whether or not the one before is over.
    ///
    /// A task that waits already need not poll again: it is woken at the new deadline. After
    /// completion the next poll begins the new wait. Called on a thread other than the one that
    /// polled, it sends the change there.
    pub fn reset(self: Pin<&mut Self>, deadline: Instant) {
        let this = self.get_mut();
        this.deadline = deadline;
        let State::Registered { shard: id, key } = this.state else {
            this.state = State::Idle;
            return;
        };
        match shard::try_current() {
            Some(shard) if shard.id == id => {
                let deadline_ns = shard.clock.ns_of(deadline.into_std());
                if !shard.timers.borrow_mut().reset(key, deadline_ns) {
                    this.state = State::Idle;
                }
            }
            // If it has fired meanwhile, the task was woken, polls, and finds the new deadline.
            _ => on_shard(id, move |shard| {
                let deadline_ns = shard.clock.ns_of(deadline.into_std());
                let _fired = !shard.timers.borrow_mut().reset(key, deadline_ns);
            }),
        }
    }

    /// As `poll`, but outside of the task's budget: for futures that end with this one and do
    /// their own accounting.
    pub(super) fn poll_elapsed(&mut self, shard: &Shard, cx: &mut Context<'_>) -> Poll<()> {
        let mut is_fresh = false;
        match self.state {
            State::Idle => {}
            State::Fresh { shard: id, stamp } => {
                is_fresh = id == shard.id && stamp == shard.meter.stamp();
            }
            State::Elapsed => return Poll::Ready(()),
            State::Registered { shard: id, .. } if id != shard.id => self.unregister(),
            State::Registered { key, .. } => {
                if self.is_registered(shard, key, cx) {
                    return Poll::Pending;
                }
                self.state = State::Idle;
            }
        }
        // A timer that is gone is no proof: only the clock says that the time has come.
        let deadline_ns = shard.clock.ns_of(self.deadline.into_std());
        let is_over = || deadline_ns != NEVER && deadline_ns <= shard.clock.now_ns();
        if !is_fresh && is_over() {
            self.state = State::Elapsed;
            return Poll::Ready(());
        }
        // Cloned before the wheel is borrowed: a waker's code is its owner's.
        let waker = cx.waker().clone();
        let key = shard.timers.borrow_mut().insert(deadline_ns, waker);
        self.state = State::Registered { shard: shard.id, key };
        Poll::Pending
    }

    /// Whether the timer still waits; if so, it will wake the task of `cx`.
    fn is_registered(&self, shard: &Shard, key: TimerKey, cx: &Context<'_>) -> bool {
        let registration = shard.timers.borrow().registration(key, cx.waker());
        match registration {
            Registration::Current => true,
            Registration::Gone => false,
            Registration::Other => {
                let waker = cx.waker().clone();
                let replaced = shard.timers.borrow_mut().replace_waker(key, waker);
                replaced.is_ok() // and dropped here, where nothing is borrowed
            }
        }
    }

    /// Takes the timer out of its wheel, wherever that is.
    fn unregister(&mut self) {
        let State::Registered { shard: id, key } = self.state else { return };
        self.state = State::Idle;
        let is_removed = shard::try_with(|shard| {
            let is_here = shard.id == id;
            if is_here {
                remove(shard, key);
            }
            is_here
        });
        if is_removed != Some(true) {
            on_shard(id, move |shard| remove(shard, key));
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        shard::with(|shard| {
            ready!(self.poll_elapsed(shard, cx));
            shard.poll_budget(cx)
        })
    }
}

impl Drop for Sleep {
    #[inline]
    fn drop(&mut self) {
        self.unregister();
    }
}

/// Runs on that shard, if it is still there.
fn on_shard(id: ShardId, f: impl FnOnce(&Shard) + Send + 'static) {
    shard::mail_to(
        id,
        Box::new(move || {
            if let Some(shard) = shard::try_current() {
                f(&shard);
            }
        }),
    );
}

fn remove(shard: &Shard, key: TimerKey) {
    // `try`, because this runs in drop, which must not panic. Nothing runs while the wheel is
    // borrowed, so it never fails; if it did, the timer would fire for nobody.
    let removed = shard.timers.try_borrow_mut().ok().and_then(|mut timers| timers.remove(key));
    drop(removed); // here, where nothing is borrowed
}
