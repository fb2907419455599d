//! Connections of one request: connect, send, take the echo, reset; so many at a time.
//!
//! The four steps are one chain of linked entries, of which only the last has a completion. A reset
//! leaves nothing in `TIME_WAIT`, so that the ports do not run out, and the same sockets connect
//! over and over (`connect` to `AF_UNSPEC`): making and closing sockets would cost the load more
//! than the server, which has to do both.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::types::Fixed;
use io_uring::{cqueue, opcode, squeue};

use super::measure::{Generator, Tally, measure};
use super::{Plan, Refused, failure};
use crate::figures::Sample;
use crate::process::check;
use crate::ring::{Ring, leak};

const REQUEST_BYTES: usize = 64;

/// The steps of a connection. The upper half of the user data has the number of one.
const STEPS: [&str; 4] = ["connect", "send", "receive", "reset"];
const RESET: u64 = 3;

/// As in an echo: how many connections a turn waits for.
const CONNECTIONS_PER_WANT: u32 = 4;
const WANT_MAX: u32 = 16;

pub(super) fn play(plan: &Plan) -> Result<Sample, Refused> {
    let slots = plan.connections;
    let entries = (slots * STEPS.len() as u32).next_power_of_two();
    let ring = Ring::new(entries, entries * 2)
        .and_then(|ring| ring.register_slots(slots).map(|()| ring))
        .map_err(Refused::no_ring)?;
    let mut short = Short {
        ring,
        addresses: leak(2 * size_of::<libc::sockaddr_in>()).cast(),
        memory: leak(slots as usize * size_of::<Buffers>()).cast(),
        clients: Vec::new(),
        want: (slots / CONNECTIONS_PER_WANT).clamp(1, WANT_MAX) as usize,
        tally: Tally::new(),
    };
    short.set_address(plan)?;
    for slot in 0..slots {
        // SAFETY: takes numbers only.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        check(socket)?;
        // SAFETY: the descriptor was just made and has no other owner.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        short.ring.register_slot(slot, socket.as_raw_fd())?;
        short.clients.push(Client { _socket: socket, started_at_ns: 0, number: 0 });
        short.start(slot)?;
    }
    Ok(measure(plan, &mut short)?)
}

struct Short {
    ring: Ring,
    /// Where to connect, and nowhere (`AF_UNSPEC`).
    addresses: *mut [libc::sockaddr_in; 2],
    /// As many as there are clients.
    memory: *mut Buffers,
    clients: Vec<Client>,
    want: usize,
    tally: Tally,
}

#[derive(Clone, Copy)]
struct Buffers {
    request: [u8; REQUEST_BYTES],
    echo: [u8; REQUEST_BYTES],
}

struct Client {
    /// Kept open; the ring uses the slot of the same number.
    _socket: OwnedFd,
    started_at_ns: u64,
    number: u64,
}

impl Short {
    fn set_address(&mut self, plan: &Plan) -> io::Result<()> {
        let address = plan.servers.first().map(|server| server.address);
        let Some(SocketAddr::V4(address)) = address else {
            return Err(io::Error::other("short connections go to one IPv4 address"));
        };
        // SAFETY: zeroed, which is a value of the type, with room for both, never freed; the ring
        // does not know it yet.
        let [server, _nowhere] = unsafe { &mut *self.addresses };
        server.sin_family = libc::AF_INET as libc::sa_family_t;
        server.sin_port = address.port().to_be();
        server.sin_addr.s_addr = u32::from(*address.ip()).to_be();
        Ok(())
    }

    fn buffers(&mut self, slot: u32) -> &mut Buffers {
        // SAFETY: there are as many as clients, by which the slot is checked where it is used.
        let buffers = unsafe { self.memory.add(slot as usize) };
        // SAFETY: zeroed, which is a value of the type, and never freed. The kernel uses it during
        // a chain only, and the callers look at it between two.
        unsafe { &mut *buffers }
    }

    /// Queues all steps of a connection.
    fn start(&mut self, slot: u32) -> io::Result<()> {
        let client = &mut self.clients[slot as usize];
        client.started_at_ns = self.tally.now_ns;
        client.number += 1;
        let stamp = client.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(slot);
        let buffers = self.buffers(slot);
        buffers.request[..8].copy_from_slice(&stamp.to_le_bytes());
        let (request, echo) = (buffers.request.as_ptr(), buffers.echo.as_mut_ptr());
        let server = self.addresses.cast::<libc::sockaddr>().cast_const();
        // The second of the two.
        let nowhere = self.addresses.cast::<libc::sockaddr_in>().wrapping_add(1);
        let nowhere = nowhere.cast::<libc::sockaddr>().cast_const();
        let (length, bytes) = (size_of::<libc::sockaddr_in>() as u32, REQUEST_BYTES as u32);
        let file = Fixed(slot);
        let linked = squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS;
        let steps = [
            opcode::Connect::new(file, server, length).build().flags(linked),
            opcode::Send::new(file, request, bytes)
                .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                .build()
                .flags(linked),
            opcode::Recv::new(file, echo, bytes).flags(libc::MSG_WAITALL).build().flags(linked),
            opcode::Connect::new(file, nowhere, length).build(),
        ];
        for (step, entry) in (0_u64..).zip(steps) {
            let entry = entry.user_data(step << 32 | u64::from(slot));
            // SAFETY: addresses and buffers are never freed; the buffers are looked at again when
            // the chain is over.
            unsafe { self.ring.push(&entry) }?;
        }
        Ok(())
    }

    fn done(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let slot = completion.user_data() as u32;
        let step = completion.user_data() >> 32;
        if step != RESET || completion.result() < 0 {
            return Err(failure(STEPS[step as usize & 3], slot, completion.result()));
        }
        let buffers = self.buffers(slot);
        if buffers.request != buffers.echo {
            return Err(io::Error::other(format!("connection {slot}: the echo differs")));
        }
        let started_at_ns = self.clients[slot as usize].started_at_ns;
        self.tally.histogram.record(self.tally.now_ns - started_at_ns);
        self.tally.requests += 1;
        self.start(slot)
    }
}

impl Generator for Short {
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    fn turn(&mut self) -> io::Result<()> {
        self.ring.submit_and_wait(self.want)?;
        self.tally.now_ns = self.tally.clock.now_ns();
        while let Some(completion) = self.ring.next_completion() {
            self.done(&completion)?;
        }
        Ok(())
    }
}
