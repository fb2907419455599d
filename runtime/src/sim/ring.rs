//! The ring of a driver, which is the kernel's or a simulated one.
//!
//! A simulated ring is a [`Kernel`] that a driver talks to as it talks to Linux: by the queues in
//! shared memory, whose driver's side is the [`IoUring`] of all days, and by the system calls that
//! a [`Submitter`] stands for. It executes the very entries that the driver submits.

mod attempt;
mod buffers;
mod cancel;
mod entry;
mod files;
mod flight;
mod kernel;
mod kind;
mod memory;
mod messages;
mod nature;
mod sockets;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::Timespec;
use io_uring::{EnterFlags, IoUring};

use self::kernel::{Kernel, Wanted};
use self::memory::Queues;
use self::nature::Nature;
use self::nature::Traits;
use super::World;
use crate::ring::Trial;

/// A ring that the kernel has made.
pub(crate) fn of_kernel(queues: IoUring) -> Ring {
    Ring { queues, simulated: None }
}

/// A ring of the simulation that this thread lives in, if it does: of so many entries, and so many
/// completions at most.
pub(crate) fn simulated(entries: u32, completions: u32) -> Option<io::Result<Ring>> {
    let world = World::current()?;
    let nature = Nature::of(&world);
    let completions = nature.completions_of(&world, entries, completions);
    Some(Ring::of_nature(&world, nature, entries, completions))
}

/// What is known of the kernel of this thread's simulation.
pub(crate) fn foreseen() -> Option<Trial> {
    World::current().map(|world| Traits::of(&world).trial)
}

/// A ring of the kernel's, or a simulated one.
pub(crate) struct Ring {
    /// The driver's side of the queues.
    queues: IoUring,
    simulated: Option<RefCell<Kernel>>,
}

impl Ring {
    fn of_nature(
        world: &Arc<World>,
        nature: Nature,
        entries: u32,
        completions: u32,
    ) -> io::Result<Ring> {
        let (kernel_side, queues) = Queues::new(entries, completions, nature.traits.no_iowait)?;
        let kernel = Kernel::new(Arc::clone(world), nature, kernel_side);
        Ok(Ring { queues, simulated: Some(RefCell::new(kernel)) })
    }

    pub(crate) fn submitter(&self) -> Submitter<'_> {
        match &self.simulated {
            None => Submitter::Kernel(self.queues.submitter()),
            Some(kernel) => Submitter::Simulated(kernel),
        }
    }
}

/// The queues are the same.
impl Deref for Ring {
    type Target = IoUring;

    fn deref(&self) -> &IoUring {
        &self.queues
    }
}

impl DerefMut for Ring {
    fn deref_mut(&mut self) -> &mut IoUring {
        &mut self.queues
    }
}

/// The system calls on a ring.
pub(crate) enum Submitter<'a> {
    Kernel(io_uring::Submitter<'a>),
    Simulated(&'a RefCell<Kernel>),
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    _signals: u64,
    _signals_bytes: u32,
    _min_wait_us: u32,
    timeout: u64,
}

impl Submitter<'_> {
    /// `io_uring_enter(2)`.
    ///
    /// # Errors
    ///
    /// Those of the call.
    ///
    /// # Safety
    ///
    /// The flags say what the argument is, and the entries that are queued may be executed.
    #[track_caller]
    pub(crate) unsafe fn enter<T: Sized>(
        &self,
        to_submit: u32,
        want: u32,
        flags: u32,
        argument: Option<&T>,
    ) -> io::Result<usize> {
        let kernel = match self {
            // SAFETY: as the caller says.
            Submitter::Kernel(ring) => unsafe {
                return ring.enter(to_submit, want, flags, argument);
            },
            Submitter::Simulated(kernel) => kernel,
        };
        let flags = EnterFlags::from_bits_retain(flags);
        let extended = argument.filter(|_| flags.contains(EnterFlags::EXT_ARG));
        let timeout = extended.and_then(|argument| {
            assert_eq!(size_of::<T>(), size_of::<WaitArgument>(), "EXT_ARG is of this type");
            let argument = std::ptr::from_ref(argument).cast::<WaitArgument>();
            // SAFETY: EXT_ARG says that the argument is of this type.
            let timeout = unsafe { (*argument).timeout } as *const Timespec;
            // SAFETY: the argument points to a time, or to nothing.
            unsafe { timeout.as_ref() }.map(duration)
        });
        let wanted =
            flags.contains(EnterFlags::GETEVENTS).then_some(Wanted { completions: want, timeout });
        kernel.borrow_mut().enter(to_submit, wanted)
    }

    /// Gives the kernel a ring of buffers.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_register(2)`.
    ///
    /// # Safety
    ///
    /// The address is that of so many entries, and stays so while the ring lives.
    pub(crate) unsafe fn register_buf_ring_with_flags(
        &self,
        address: u64,
        count: u16,
        group: u16,
        flags: u16,
    ) -> io::Result<()> {
        match self {
            // SAFETY: as the caller says.
            Submitter::Kernel(ring) => unsafe {
                ring.register_buf_ring_with_flags(address, count, group, flags)
            },
            // SAFETY: as the caller says.
            Submitter::Simulated(kernel) => unsafe {
                kernel.borrow_mut().register_buffers(address, count, group)
            },
        }
    }

    /// Has the kernel write to an eventfd when there is news.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_register(2)`; EOPNOTSUPP in a simulation, which nobody drives from
    /// outside.
    pub(crate) fn register_eventfd(&self, eventfd: RawFd) -> io::Result<()> {
        match self {
            Submitter::Kernel(ring) => ring.register_eventfd(eventfd),
            Submitter::Simulated(_) => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        }
    }
}

/// `types::Timespec` hides its fields, which are the kernel's.
fn duration(timeout: &Timespec) -> Duration {
    const { assert!(size_of::<Timespec>() == 16) };
    // SAFETY: `struct __kernel_timespec` is two signed words.
    let [seconds, nanos] = unsafe { *std::ptr::from_ref(timeout).cast::<[i64; 2]>() };
    Duration::new(seconds.max(0) as u64, nanos.clamp(0, 999_999_999) as u32)
}
