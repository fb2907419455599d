//! The ring that a driver drives: the kernel's. With the feature `sim` it is a simulated one where
//! a simulation runs.

#[cfg(not(feature = "sim"))]
pub(crate) use self::kernel::{Ring, Submitter, foreseen, of_kernel, simulated};
#[cfg(feature = "sim")]
pub(crate) use crate::sim::ring::{Ring, Submitter, foreseen, of_kernel, simulated};

/// What kernels differ in that have all that the ring driver needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    /// A send can be told to report failures only.
    pub(crate) quiet_sends: bool,
    /// There are sends that do not copy.
    pub(crate) zero_copy_sends: bool,
    /// A multishot receive can be told how much to bring.
    pub(crate) bounded_receives: bool,
}

#[cfg(not(feature = "sim"))]
mod kernel {
    use std::io;

    pub(crate) use io_uring::{IoUring as Ring, Submitter};

    use super::Trial;

    /// A ring that the kernel has made.
    #[inline]
    pub(crate) fn of_kernel(ring: Ring) -> Ring {
        ring
    }

    /// A ring of this thread's simulation, which none has.
    #[inline]
    pub(crate) fn simulated(_entries: u32, _completions: u32) -> Option<io::Result<Ring>> {
        None
    }

    /// What is known of the kernel without a trial.
    #[inline]
    pub(crate) fn foreseen() -> Option<Trial> {
        None
    }
}
