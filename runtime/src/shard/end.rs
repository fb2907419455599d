//! The end of a shard.

use std::rc::Rc;
use std::time::Duration;

use super::{Entered, Shard, lock_registry};
use crate::driver::Wait;
use crate::{sys, timers};

/// How often sends are tried again that have failed: there is no task left that would.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

impl Shard {
    /// Ends everything on this shard: tasks, sockets, timers, operations in flight.
    pub(crate) fn close(self: &Rc<Self>) {
        let _current = Entered::new(self);
        let _at_work = self.executor.enter();
        lock_registry().remove(&self.id);
        if !self.end() {
            // A shard that stays reachable keeps what operations own, also of those whose future is
            // dropped later.
            std::mem::forget(Rc::clone(self));
        }
    }

    /// False if the kernel may still write to what operations own, or if what a drop runs has
    /// forked, and this is the child: the rest is its parent's.
    fn end(&self) -> bool {
        self.executor.close();
        if !self.id.is_ours() {
            return false;
        }
        self.residents.release_all(self.id);
        self.send_what_is_unsent();
        if !self.id.is_ours() {
            return false;
        }
        self.residents.clear();
        let mut wakers = Vec::new();
        self.timers.borrow_mut().drain(&mut wakers);
        timers::drop_all(wakers);
        if !self.id.is_ours() {
            return false;
        }
        let drained = self.driver.drain(self.config.drain_timeout, |work| {
            self.hand_out(work);
            self.id.is_ours()
        });
        if !self.id.is_ours() {
            return false;
        }
        self.publish();
        self.meter.end();
        drained
    }

    fn send_what_is_unsent(&self) {
        let mut now = sys::now();
        let deadline = now + self.config.drain_timeout;
        let mut retry = now;
        loop {
            if now >= retry {
                self.residents.mark_all(self.id);
                retry = now + RETRY_INTERVAL;
            }
            self.residents.write_out();
            let over = !self.residents.any() || now >= deadline;
            // What the kernel refuses to wait for is not sent.
            if over || self.try_enter(Wait::AtMost(Some(RETRY_INTERVAL))).is_err() {
                return;
            }
            now = sys::now();
        }
    }
}
