//! The simulated ring beside the kernel's, and what it does when the dice are against the driver.

mod faults;
mod same;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use io_uring::squeue::{Entry, Flags};
use io_uring::{EnterFlags, IoUring, opcode, types};

use super::nature::Nature;
use super::{Ring, of_kernel};
use crate::buf::Pool;
use crate::sim::{Faults, Place, World};

/// A ring with a pool of four buffers of 64 bytes, and what it has answered.
struct Machine {
    ring: Ring,
    pool: Rc<Pool>,
    answers: BTreeMap<u64, Vec<(i32, u32)>>,
    /// Whether an enter is followed by a look at what it has brought.
    reaps: bool,
}

/// `IORING_CQE_F_SOCK_NONEMPTY`.
const SOCKET_NONEMPTY: u32 = 4;

const ENTRIES: u32 = 16;
const COMPLETIONS: u32 = 16;
const BUFFERS: u16 = 4;
const BUFFER_BYTES: u32 = 64;

impl Machine {
    fn new(ring: Ring) -> Machine {
        let pool = Pool::registered(&ring.submitter(), 0, BUFFERS, BUFFER_BYTES).unwrap();
        Machine { ring, pool, answers: BTreeMap::new(), reaps: true }
    }

    /// The kernel's ring, set up as the driver does; `None` where it is refused.
    fn real() -> Option<Machine> {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS);
        Some(Machine::new(of_kernel(builder.build(ENTRIES).ok()?)))
    }

    fn simulated(world: &Arc<World>, nature: Nature) -> Machine {
        Machine::new(Ring::of_nature(world, nature, ENTRIES, COMPLETIONS).unwrap())
    }

    /// Queues an entry under this number.
    fn push(&mut self, number: u64, entry: Entry) {
        // SAFETY: what the entries of these tests refer to outlives the machine.
        unsafe { self.ring.submission().push(&entry.user_data(number)) }.unwrap();
    }

    fn enter(&mut self, want: u32) -> io::Result<usize> {
        self.pool.publish();
        let queued = self.ring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: as above; there is no argument.
        let entered =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, want, flags, None) };
        if self.reaps {
            self.reap();
        }
        entered
    }

    /// Submits, and does not ask for what has come since.
    fn enter_without_looking(&mut self) {
        let queued = self.ring.submission().len() as u32;
        // SAFETY: as in `enter`.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, 0, None) };
        assert_eq!(entered.unwrap(), queued as usize);
        self.reap();
    }

    /// Requests that have been taken and not said their last.
    fn in_flight(&self) -> usize {
        self.ring.simulated.as_ref().unwrap().borrow().flights.len()
    }

    fn reap(&mut self) {
        for entry in self.ring.completion() {
            // Which sockets tell that there is more differs from kernel to kernel, and nobody here
            // asks.
            let answer = (entry.result(), entry.flags() & !SOCKET_NONEMPTY);
            self.answers.entry(entry.user_data()).or_default().push(answer);
        }
    }

    /// Enters until everything is taken and nothing more comes at once.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.enter(0).unwrap();
        }
    }

    fn answers(&self, number: u64) -> &[(i32, u32)] {
        self.answers.get(&number).map_or(&[], Vec::as_slice)
    }

    /// The bytes of a completion, whose buffer goes back to the pool.
    fn take(&self, (result, flags): (i32, u32)) -> Vec<u8> {
        let buffer = io_uring::cqueue::buffer_select(flags).unwrap();
        self.pool.lend(buffer, result as u32).to_vec()
    }
}

/// Makes this thread the only shard of a world.
fn in_world<R>(seed: u64, faults: Faults, run: impl FnOnce(&Arc<World>) -> R) -> R {
    let world = World::new(seed, faults, u64::MAX);
    let place: Place = world.expect(0);
    let _taken = place.take();
    run(&world)
}

fn receive_many(fd: RawFd) -> Entry {
    opcode::RecvMulti::new(types::Fd(fd), 0).build()
}

fn send(fd: RawFd, bytes: &[u8]) -> opcode::Send {
    opcode::Send::new(types::Fd(fd), bytes.as_ptr(), bytes.len() as u32)
}

fn cancel(number: u64) -> Entry {
    opcode::AsyncCancel2::new(types::CancelBuilder::user_data(number)).build()
}

fn quiet_send(fd: RawFd, bytes: &[u8]) -> Entry {
    send(fd, bytes)
        .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
        .build()
        .flags(Flags::SKIP_SUCCESS)
}
