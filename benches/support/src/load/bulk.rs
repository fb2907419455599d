//! Bytes in one direction, as fast as they go. A request is a block of them.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use io_uring::types::Fixed;
use io_uring::{cqueue, opcode};

use super::measure::{Generator, Tally, measure};
use super::{Plan, Refused, failure};
use crate::figures::Sample;
use crate::ring::{Ring, leak};

/// What counts as a request, and what one operation takes at most.
const BLOCK_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy)]
pub(super) enum Direction {
    /// To the server.
    Up,
    /// From the server. The bytes are thrown away where they lie (`MSG_TRUNC`), so that the load
    /// costs less than the server, which has to copy them.
    Down,
}

pub(super) fn play(plan: &Plan, direction: Direction) -> Result<Sample, Refused> {
    let slots = plan.connections;
    let ring = Ring::new(slots.next_power_of_two(), (slots * 2).next_power_of_two())
        .and_then(|ring| ring.register_slots(slots).map(|()| ring))
        .map_err(Refused::no_ring)?;
    let mut bulk = Bulk {
        ring,
        direction,
        block: leak(BLOCK_BYTES),
        bytes: 0,
        streams: Vec::new(),
        tally: Tally::new(),
    };
    for (slot, server) in (0..slots).zip(plan.servers.iter().cycle()) {
        let stream = TcpStream::connect(server.address)?;
        bulk.ring.register_slot(slot, stream.as_raw_fd())?;
        bulk.streams.push(stream);
        bulk.go_on(slot)?;
    }
    Ok(measure(plan, &mut bulk)?)
}

struct Bulk {
    ring: Ring,
    direction: Direction,
    block: *mut u8,
    bytes: u64,
    /// Kept open; the ring uses the slots of the same numbers.
    streams: Vec<TcpStream>,
    tally: Tally,
}

impl Bulk {
    /// One operation is under way on each connection.
    fn go_on(&mut self, slot: u32) -> io::Result<()> {
        let (file, block) = (Fixed(slot), self.block);
        let entry = match self.direction {
            Direction::Up => opcode::Send::new(file, block, BLOCK_BYTES as u32)
                .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                .build(),
            Direction::Down => {
                opcode::Recv::new(file, block, BLOCK_BYTES as u32).flags(libc::MSG_TRUNC).build()
            }
        };
        // SAFETY: the block is never freed; all it is for is to be read, or to be ignored.
        unsafe { self.ring.push(&entry.user_data(u64::from(slot))) }
    }

    fn done(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let slot = completion.user_data() as u32;
        let bytes = u64::try_from(completion.result()).ok().filter(|&bytes| bytes > 0);
        let bytes = bytes.ok_or_else(|| failure("a transfer", slot, completion.result()))?;
        self.bytes += bytes;
        self.go_on(slot)
    }
}

impl Generator for Bulk {
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    fn turn(&mut self) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        self.tally.now_ns = self.tally.clock.now_ns();
        while let Some(completion) = self.ring.next_completion() {
            self.done(&completion)?;
        }
        self.tally.requests = self.bytes / BLOCK_BYTES as u64;
        Ok(())
    }
}
