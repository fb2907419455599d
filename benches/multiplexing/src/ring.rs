//! A ring that can be ended before its process: what it watches is taken back first.
//!
//! Closing a ring leaves the taking back to a worker of the kernel, which would run beside the next
//! measurement.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::types::CancelBuilder;
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::sys;

/// The user data of the cancellation that ends a ring. No other entry has it.
const ENDING: u64 = u64::MAX;

pub(crate) struct Ring(IoUring);

impl Ring {
    /// As an event loop sets one up: for one thread, which runs the kernel's part when it waits.
    pub(crate) fn new(submissions: usize, completions: usize) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            // Without it an enter that does not wait would not look for what has come.
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(completions.max(submissions).next_power_of_two() as u32);
        let ring = builder.build(submissions.next_power_of_two() as u32)?;
        // Saves a look-up at each enter. Not worth failing for.
        let _ = ring.submitter().register_ring_fd();
        Ok(Self(ring))
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Queues a submission; if the queue is full, what waits there is submitted first.
    ///
    /// # Safety
    /// The memory that `entry` names stays valid and unaliased until its last completion.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.0.submission().is_full() {
            self.0.submit()?;
        }
        // SAFETY: the caller vouches for the memory.
        unsafe { self.0.submission().push(entry) }.map_err(io::Error::other)
    }

    /// Submits everything and waits for so many completions, in one system call.
    pub(crate) fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.0.submit_and_wait(want) {
            Err(error) => sys::interrupted(error),
            Ok(_) => Ok(()),
        }
    }

    /// Submits everything and lets the kernel do all that has come for it, without waiting. One
    /// enter does 20 pieces at most since 6.13, and as many as it waits for.
    pub(crate) fn look(&mut self) -> io::Result<()> {
        loop {
            self.enter(0)?;
            if !self.0.submission().taskrun() {
                return Ok(());
            }
        }
    }

    /// What has completed.
    pub(crate) fn completions(&mut self) -> cqueue::CompletionQueue<'_> {
        self.0.completion()
    }

    /// Waits until so many completions have been seen, each of which `check` accepts.
    pub(crate) fn expect(
        &mut self,
        count: usize,
        mut check: impl FnMut(&cqueue::Entry) -> bool,
    ) -> io::Result<()> {
        let mut seen = 0;
        while seen < count {
            self.enter(1)?;
            for completion in self.0.completion() {
                if !check(&completion) {
                    let (result, data) = (completion.result(), completion.user_data());
                    return Err(io::Error::other(format!("entry {data} completed with {result}")));
                }
                seen += 1;
            }
        }
        assert_eq!(seen, count, "more completions than were asked for");
        Ok(())
    }

    /// Takes back everything that is in flight, and closes the ring when the last has completed.
    pub(crate) fn end(mut self) -> io::Result<()> {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(ENDING);
        // SAFETY: the entry names no memory.
        unsafe { self.push(&entry) }?;
        let (mut ended, mut wanted) = (0, None);
        while wanted.is_none_or(|wanted| ended < wanted) {
            self.enter(1)?;
            for completion in self.0.completion() {
                match completion.user_data() {
                    // ENOENT: nothing was in flight.
                    ENDING => wanted = Some(completion.result().max(0)),
                    _ if cqueue::more(completion.flags()) => {}
                    _ => ended += i32::from(completion.result() == -libc::ECANCELED),
                }
            }
        }
        Ok(())
    }
}
