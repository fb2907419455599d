//! What a failed wait means: whether it is made again, and how often.

use std::cell::Cell;
use std::io;
use std::thread;
use std::time::Duration;

/// Waits in a row that may fail for want of something in the kernel before the failure surfaces:
/// about a second, in which memory that is short for a moment comes back.
const FAILURES_MAX: u32 = 1000;
/// So many are made again at once. Then the kernel is given time: no processor is spun on.
const FAILURES_AT_ONCE: u32 = 8;
const PAUSE: Duration = Duration::from_millis(1);

/// How many waits have failed in a row.
#[derive(Default)]
pub(super) struct Patience {
    failures: Cell<u32>,
}

impl Patience {
    /// Decides what the answer to a wait means. After `Ok` the caller looks at its clock and its
    /// queues, and waits again where nothing is due.
    ///
    /// # Errors
    ///
    /// What the kernel answered, if it cannot be cured by trying again.
    pub(super) fn weigh(&self, answer: io::Result<()>) -> io::Result<()> {
        let Err(error) = answer else {
            self.failures.set(0);
            return Ok(());
        };
        match error.raw_os_error() {
            // A signal, or the deadline: the clock and the queues decide what is due.
            Some(libc::EINTR | libc::ETIME) => Ok(()),
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                if self.failures.get() < FAILURES_MAX =>
            {
                self.failures.set(self.failures.get() + 1);
                if self.failures.get() > FAILURES_AT_ONCE {
                    thread::sleep(PAUSE);
                }
                Ok(())
            }
            _ => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(errno: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn what_passes_is_tried_again_and_what_does_not_is_told() {
        for errno in [libc::EINTR, libc::ETIME, libc::EAGAIN, libc::EBUSY, libc::ENOMEM] {
            Patience::default().weigh(failed(errno)).unwrap();
        }
        for errno in [libc::EPERM, libc::ENOSYS, libc::EBADF, libc::EBADR, libc::EINVAL] {
            let told = Patience::default().weigh(failed(errno)).unwrap_err();
            assert_eq!(told.raw_os_error(), Some(errno));
        }
    }

    #[test]
    fn signals_are_no_failures_and_a_success_makes_good_for_all() {
        let patience = Patience::default();
        for _ in 0..10 * FAILURES_MAX {
            patience.weigh(failed(libc::EINTR)).unwrap();
        }
        for _ in 0..2 {
            for _ in 0..2 * FAILURES_AT_ONCE {
                patience.weigh(failed(libc::ENOMEM)).unwrap();
            }
            patience.weigh(Ok(())).unwrap();
            assert_eq!(patience.failures.get(), 0);
        }
    }

    #[test]
    fn a_shortage_without_end_surfaces() {
        let patience = Patience { failures: Cell::new(FAILURES_MAX) };
        let told = patience.weigh(failed(libc::ENOMEM)).unwrap_err();
        assert_eq!(told.raw_os_error(), Some(libc::ENOMEM));
    }
}
