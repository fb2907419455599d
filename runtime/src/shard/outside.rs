//! One turn for a loop that is not ours: nothing is waited for here, and what the shard would have
//! waited for shows at a descriptor.

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Entered, Shard, try_current};
use crate::driver::{Shown, Wait};
use crate::executor::{JoinHandle, RootWaker};
use crate::sync::Arc;
use crate::sys;

/// When the next turn is due at the latest.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    /// At once: something is ready.
    Now,
    /// When the descriptor is readable.
    OnNews,
    /// As above, or when this time has come.
    At(Instant),
}

impl Shard {
    /// The descriptor at which news are shown, from the first call on.
    ///
    /// # Errors
    ///
    /// No descriptor or memory left.
    pub(crate) fn shown_at(&self) -> io::Result<RawFd> {
        self.check_process();
        if let Some(shown) = self.shown.get() {
            return Ok(shown.raw_fd());
        }
        let shown = self.driver.show()?;
        Ok(self.shown.get_or_init(|| shown).raw_fd())
    }

    /// # Panics
    ///
    /// Within a runtime.
    #[track_caller]
    pub(crate) fn turn_outside(self: &Rc<Self>) -> Due {
        assert!(
            try_current().is_none(),
            "turn was called within a runtime: it belongs into a loop that is not the runtime's"
        );
        self.check_process();
        let _current = Entered::new(self);
        let _at_work = (self.executor.enter(), self.meter.begin_work());
        // From here on mail is found here. What was rung for before has made the descriptor ready.
        self.mailbox.awake();
        self.enter(Wait::No);
        self.fire_timers();
        self.work_off();
        // What the tasks have asked for must be with the kernel while nobody turns.
        self.enter(Wait::No);
        // Among it is what this turn has taken. What has come since is seen below.
        if let Some(Err(error)) = self.shown.get().map(Shown::take) {
            panic!("the kernel refuses to show what has come for this shard: {error}");
        }
        // No future is run by this turn, so nobody wakes this.
        let root = RootWaker::new(Arc::clone(&self.mailbox));
        let _new = root.take_woken();
        let wait = if self.has_ready(&root) { Wait::No } else { self.idle_outside(&root) };
        match wait {
            // An edge that has been shown is not shown again: what it was for must be taken first.
            Wait::AtMost(_) if !self.driver.is_drained() => Due::Now,
            Wait::AtMost(Some(Duration::ZERO)) | Wait::No => Due::Now,
            Wait::AtMost(Some(left)) => Due::At(sys::now() + left),
            Wait::AtMost(None) => Due::OnNews,
        }
    }

    /// As [`idle`](Shard::idle), for a shard that does not spin. It counts as asleep until the next
    /// turn, so that mail rings.
    fn idle_outside(&self, root: &RootWaker) -> Wait {
        if self.clock.is_paused() {
            return self.idle_paused(root);
        }
        self.wait_at_most(self.until_next_timer())
    }

    /// Spawns a task from outside, and has the descriptor tell of it.
    #[track_caller]
    pub(crate) fn spawn_outside<F>(self: &Rc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.check_process();
        let _current = Entered::new(self);
        let _at_work = self.executor.enter();
        let handle = self.executor.spawn(future);
        self.mailbox.ring();
        handle
    }
}

/// Has another loop turn once when a `block_on` has ended: nobody rang for what came meanwhile, and
/// nobody would for what comes now, as the shard counts as awake.
pub(super) struct ShowAtEnd<'a>(pub(super) &'a Shard);

impl Drop for ShowAtEnd<'_> {
    fn drop(&mut self) {
        if self.0.shown.get().is_some() {
            self.0.mailbox.ring_bell();
        }
    }
}
