//! What another loop is told of the ring.

use std::io;

use super::Uring;
use crate::driver::shown::Shown;
use crate::sys::EventFd;

impl Uring {
    /// Makes the descriptor at which this ring shows its news from now on. Once per ring.
    ///
    /// # Errors
    ///
    /// No descriptor or memory left.
    pub(crate) fn show(&self) -> io::Result<Shown> {
        let inner = self.inner.borrow();
        let of_ring = EventFd::new()?;
        let raw = of_ring.raw_fd();
        let shown = Shown::gather(of_ring, inner.wake_fd)?;
        // Since 6.1 it is written when the first task work comes, not when that is done.
        inner.ring.submitter().register_eventfd(raw)?;
        Ok(shown)
    }

    /// True if everything queued is with the kernel, and everything that it has was taken.
    pub(crate) fn is_drained(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        let queue = inner.ring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        idle && inner.backlog.is_empty() && inner.ring.completion().is_empty()
    }
}
