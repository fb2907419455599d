//! A runtime within a loop that is not its own.

use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::Runtime;
use crate::executor::JoinHandle;
use crate::shard::Due;
use crate::trace::TaskSpan;

impl Runtime {
    /// Runs what is ready on this thread, without waiting, and says when to do it again. So a loop
    /// that is not the runtime's drives it, be it that of another runtime, of a window system or
    /// of a game:
    ///
    /// 1. call `turn`;
    /// 2. if the answer [is due](Outlook::is_due), serve others, and go on with 1;
    /// 3. otherwise wait until the [`descriptor`](Runtime::descriptor) is readable, or the answer's
    ///    [deadline](Outlook::deadline) has come, whichever is first; go on with 1.
    ///
    /// One turn polls some 64 tasks, or for a millisecond. Between turns nothing of the runtime
    /// runs on this thread, and nothing is lost, however late the next one comes: what arrives
    /// waits in the kernel or the mailbox, and timers that are overdue fire in it. While nothing
    /// happens the descriptor stays quiet.
    ///
    /// A loop that comes by anyway, once for each frame, say, needs no descriptor.
    ///
    /// Tasks come by [`spawn`](Runtime::spawn), or from any thread by
    /// [`Shard::spawn_with`](crate::Shard::spawn_with); their handles can be awaited anywhere. The
    /// other shards of the runtime have threads of their own, as ever. This thread is bound to no
    /// processor and does not spin, whatever the settings say. [`block_on`](Runtime::block_on) may
    /// be called in between, and makes the descriptor readable.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::os::fd::AsRawFd;
    /// use std::time::Duration;
    ///
    /// use annulus_runtime::{Runtime, time};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let runtime = Runtime::new()?;
    /// let fd = runtime.descriptor()?.as_raw_fd();
    /// let task = runtime.spawn(async { time::sleep(Duration::from_millis(5)).await });
    /// loop {
    ///     let next = runtime.turn();
    ///     if task.is_finished() {
    ///         break;
    ///     }
    ///     let wanted = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    ///     // A loop of one's own has more to wait for here.
    ///     let left = next.wait_at_most().map_or(-1, |left| left.as_millis() as i32 + 1);
    ///     let timeout = if next.is_due() { 0 } else { left };
    ///     // SAFETY: the array holds one pollfd.
    ///     unsafe { libc::poll(&mut [wanted] as *mut libc::pollfd, 1, timeout) };
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Within a runtime of this crate, and in a forked child.
    #[track_caller]
    pub fn turn(&self) -> Outlook {
        Outlook(self.shard.turn_outside())
    }

    /// Is readable when a [`turn`](Runtime::turn) would find something, wakes and tasks from other
    /// threads among it: from the first turn on, and while the last one said that none is due.
    ///
    /// Only wait for it to be readable, and never read it: turns do that. Loops that watch edges
    /// (`EPOLLET`) must take note of an edge before the turn that answers it, as
    /// `examples/embed_in_tokio.rs` does, and must not wait for one while a turn is due.
    ///
    /// On epoll it is the epoll instance, on io_uring another one that is made by the first call:
    /// it watches the mailbox's eventfd and one that is registered with the ring, as a ring of the
    /// kind that is used here wakes nobody who waits for its own descriptor. It is open as long as
    /// the runtime is there.
    ///
    /// One thing is not shown on io_uring: the answer to an operation of another crate that waits
    /// for an eventfd, or for an epoll instance that does, because the kernel (6.18) tells of such
    /// answers only once. They come with the next turn.
    ///
    /// # Errors
    ///
    /// No descriptor or no memory left.
    ///
    /// # Panics
    ///
    /// In a forked child.
    pub fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        let raw = self.shard.shown_at()?;
        // SAFETY: the shard keeps it open at least as long as this runtime is borrowed.
        Ok(unsafe { BorrowedFd::borrow_raw(raw) })
    }

    /// Spawns a task on this thread from outside of the runtime: for those who call
    /// [`turn`](Runtime::turn), or before a [`block_on`](Runtime::block_on). The descriptor becomes
    /// readable by it.
    ///
    /// # Panics
    ///
    /// In a forked child.
    #[track_caller]
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.shard.spawn_outside(TaskSpan::task(None, size_of::<F>()).around(future))
    }
}

/// When the next [`turn`](Runtime::turn) is due.
#[derive(Clone, Copy, Debug)]
#[must_use = "it says when to call `turn` again"]
pub struct Outlook(Due);

impl Outlook {
    /// True if something is ready: the next turn is due at once, and the descriptor need not show
    /// it.
    #[must_use]
    pub fn is_due(&self) -> bool {
        matches!(self.0, Due::Now)
    }

    /// When the next timer is due. None if there is none, or if the turn is due at once. The clock
    /// is the system's: one that is [paused](crate::time::pause) has no deadline here.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.0 {
            Due::At(deadline) => Some(deadline),
            Due::Now | Due::OnNews => None,
        }
    }

    /// How long the descriptor may be waited for: not at all if a turn is due. None is for ever.
    #[must_use]
    pub fn wait_at_most(&self) -> Option<Duration> {
        match self.0 {
            Due::Now => Some(Duration::ZERO),
            Due::OnNews => None,
            Due::At(deadline) => Some(deadline.saturating_duration_since(Instant::now())),
        }
    }
}
