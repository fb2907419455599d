//! On each connection one message is under way; its echo lets the next one go.
//!
//! It must cost less than the servers it measures, so all connections share one ring and each turn
//! is one system call: submit the next messages, wait for echoes. Echoes arrive by multishot
//! receive in small packed buffers, a send completes without a completion (its echo proves it), and
//! the clock is read once a turn. What is left is the kernel's TCP.

use std::hint::spin_loop;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::{io, mem};

use io_uring::types::Fixed;
use io_uring::{cqueue, opcode, squeue};

use super::measure::{Generator, Tally, measure};
use super::{Plan, Refused, Target, failure};
use crate::children::UNPINNED;
use crate::figures::Sample;
use crate::ring::{Buffers, Filling, Piece, Ring, leak};
use crate::traffic::Messages;

/// Messages up to this many bytes are compared whole with their echo; of larger ones the two ends
/// are, and all of every `WHOLE_EVERY`th message.
const COMPARED_WHOLE_BYTES: usize = 256;
const COMPARED_END_BYTES: usize = 64;
const WHOLE_EVERY: u64 = 64;

/// The largest piece in which an echo is received.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Messages start at a cache line.
const ALIGNMENT_BYTES: usize = 64;

/// Marks the completion of a send: only a failed one has any.
const SEND: u64 = 1 << 32;

/// Where the user data of a receive has the connection's generation.
const GENERATION_SHIFT: u32 = 40;

/// Echoes that a turn waits for, as a share of the connections and at most. Small turns cost the
/// generator 10 % more per request; the server always has the other connections to serve meanwhile.
const CONNECTIONS_PER_WANT: u32 = 4;
const WANT_MAX: u32 = 16;

/// A spin that lasts this long gives way to sleep: something other than a server's turn is awaited.
const SPIN_MAX_NS: u64 = 1_000_000;

/// Between two looks at the clock a spin takes tens of nanoseconds.
const SPIN_GAP_MAX_NS: u64 = 10_000;

/// How the generator waits for echoes.
#[derive(Clone, Copy)]
enum Waiting {
    /// In the kernel, for so many of them.
    Sleep { want: usize },
    /// Watching the ring. With few connections the generator would sleep between any two messages,
    /// and waking it, which costs four times what serving does, would be charged to the server.
    Spin,
}

impl Waiting {
    /// A spinning generator needs a processor of its own.
    fn choose(connections: u32, pinned: bool) -> Self {
        match (connections / CONNECTIONS_PER_WANT).min(WANT_MAX) {
            0 | 1 if pinned => Self::Spin,
            want => Self::Sleep { want: want.max(1) as usize },
        }
    }
}

pub(super) fn play(plan: &Plan, messages: Messages) -> Result<Sample, Refused> {
    let (ring, echoes) = open(plan, messages).map_err(Refused::no_ring)?;
    let mut echo = Echo::connect(plan, messages, ring, echoes)?;
    Ok(measure(plan, &mut echo)?)
}

/// Sets up what the kernel may refuse.
fn open(plan: &Plan, messages: Messages) -> io::Result<(Ring, Buffers)> {
    let count = plan.connections;
    let ring = Ring::new(count.next_power_of_two(), (count * 4).next_power_of_two())?;
    ring.register_slots(count)?;
    let echo_bytes = messages.bytes * messages.copies;
    let piece_bytes = echo_bytes.next_multiple_of(ALIGNMENT_BYTES).min(PIECE_BYTES_MAX);
    // Two for each connection: what a turn brings is looked at while more may arrive.
    let buffers = (count * 2).next_power_of_two().clamp(64, 1 << 15) as u16;
    let echoes = Buffers::new(&ring, buffers, piece_bytes, Filling::Whole)?;
    Ok((ring, echoes))
}

struct Echo {
    ring: Ring,
    echoes: Buffers,
    connections: Vec<Connection>,
    messages: Patterns,
    /// How often a message comes back, and as how many requests it counts.
    copies: usize,
    requests: u64,
    waiting: Waiting,
    /// When the next connection is replaced, and how long after the one before.
    replace_at_ns: u64,
    replace_every_ns: u64,
    /// The connection that is replaced next.
    replaced_next: u32,
    servers: Vec<Target>,
    tally: Tally,
}

struct Connection {
    /// Kept open; the ring uses the slot of the same number.
    stream: TcpStream,
    /// How many this one has replaced: marks what its receive completes.
    generation: u8,
    sent_at_ns: u64,
    echoed_bytes: usize,
    sequence: u64,
}

impl Echo {
    fn connect(plan: &Plan, of: Messages, ring: Ring, echoes: Buffers) -> io::Result<Self> {
        let count = plan.connections;
        let replace_every_ns = replace_every_ns(count, of.replaced_percent);
        let mut echo = Self {
            ring,
            echoes,
            connections: Vec::new(),
            messages: Patterns::new(count as usize, of),
            copies: of.copies,
            requests: of.requests,
            waiting: Waiting::choose(plan.connections, plan.place != UNPINNED),
            replace_at_ns: replace_every_ns,
            replace_every_ns,
            replaced_next: 0,
            servers: plan.servers.clone(),
            tally: Tally::new(),
        };
        for slot in 0..count {
            let stream = open_stream(plan.servers[slot as usize % plan.servers.len()])?;
            echo.ring.register_slot(slot, stream.as_raw_fd())?;
            echo.connections.push(Connection {
                stream,
                generation: 0,
                sent_at_ns: 0,
                echoed_bytes: 0,
                sequence: 0,
            });
        }
        for slot in 0..count {
            echo.receive(slot)?;
            echo.send(slot)?;
        }
        Ok(echo)
    }

    fn spin(&mut self) {
        let start_ns = self.tally.clock.now_ns();
        let mut now_ns = start_ns;
        while !self.ring.is_ready() && now_ns - start_ns < SPIN_MAX_NS {
            spin_loop();
            let before_ns = mem::replace(&mut now_ns, self.tally.clock.now_ns());
            // A longer gap was not spent here: another process had the processor.
            let gap_ns = now_ns - before_ns;
            self.tally.spun_ns += if gap_ns < SPIN_GAP_MAX_NS { gap_ns } else { 0 };
        }
    }

    fn receive(&mut self, slot: u32) -> io::Result<()> {
        let generation = u64::from(self.connections[slot as usize].generation);
        let user_data = generation << GENERATION_SHIFT | u64::from(slot);
        let entry = opcode::RecvMulti::new(Fixed(slot), 0).build().user_data(user_data);
        // SAFETY: the entry names no memory; the buffers of the group are never freed.
        unsafe { self.ring.push(&entry) }
    }

    fn received(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let slot = completion.user_data() as u32;
        let result = completion.result();
        if completion.user_data() & SEND != 0 {
            return Err(failure("send", slot, result));
        }
        let generation = (completion.user_data() >> GENERATION_SHIFT) as u8;
        let replaced = generation != self.connections[slot as usize].generation;
        match self.echoes.take(completion) {
            Some(piece) => {
                if !replaced {
                    self.echo(slot, &piece)?;
                }
                self.echoes.give_back(piece);
            }
            None if replaced => return Ok(()),
            None if result == -libc::ENOBUFS => {}
            None => return Err(failure("receive", slot, result)),
        }
        let ended = !cqueue::more(completion.flags());
        if ended && !replaced { self.receive(slot) } else { Ok(()) }
    }

    /// Ends the connection, between two messages, and goes on with another in its place. The end of
    /// its receive is seen later, and is not taken for that of the new one.
    fn replace(&mut self, slot: u32) -> io::Result<()> {
        let stream = open_stream(self.servers[slot as usize % self.servers.len()])?;
        self.ring.register_slot(slot, stream.as_raw_fd())?;
        let connection = &mut self.connections[slot as usize];
        connection.stream.shutdown(Shutdown::Both)?;
        connection.stream = stream;
        connection.generation = connection.generation.wrapping_add(1);
        self.replaced_next = (slot + 1) % self.connections.len() as u32;
        self.replace_at_ns += self.replace_every_ns;
        self.receive(slot)?;
        self.send(slot)
    }

    /// Checks a piece of an echo; after the last piece the next message goes.
    fn echo(&mut self, slot: u32, piece: &Piece) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        let message = self.messages.of(slot);
        let mut piece = self.echoes.bytes(piece);
        let echo_bytes = message.len() * self.copies;
        if connection.echoed_bytes + piece.len() > echo_bytes {
            return Err(wrong_echo(slot));
        }
        while !piece.is_empty() {
            let expected = &message[connection.echoed_bytes % message.len()..];
            let (now, later) = piece.split_at(piece.len().min(expected.len()));
            if !alike(&expected[..now.len()], now, connection.sequence) {
                return Err(wrong_echo(slot));
            }
            connection.echoed_bytes += now.len();
            piece = later;
        }
        if connection.echoed_bytes < echo_bytes {
            return Ok(());
        }
        self.tally.histogram.record(self.tally.now_ns - connection.sent_at_ns);
        self.tally.requests += self.requests;
        if self.tally.now_ns >= self.replace_at_ns && slot == self.replaced_next {
            return self.replace(slot);
        }
        self.send(slot)
    }

    fn send(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        connection.echoed_bytes = 0;
        connection.sequence += 1;
        connection.sent_at_ns = self.tally.now_ns;
        let message = self.messages.stamp(slot, connection.sequence);
        // WAITALL: the message goes whole, or there is a completion that says why not.
        let entry = opcode::Send::new(Fixed(slot), message.as_ptr(), message.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(SEND | u64::from(slot));
        // SAFETY: messages are never freed, and this one is written again only when all of it has
        // come back, after the kernel had read all of it.
        unsafe { self.ring.push(&entry) }
    }
}

impl Generator for Echo {
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    fn turn(&mut self) -> io::Result<()> {
        let want = match self.waiting {
            Waiting::Sleep { want } => want,
            Waiting::Spin => {
                self.ring.submit()?;
                self.spin();
                1
            }
        };
        self.ring.submit_and_wait(want)?;
        self.tally.now_ns = self.tally.clock.now_ns();
        while let Some(completion) = self.ring.next_completion() {
            self.received(&completion)?;
        }
        self.echoes.publish();
        Ok(())
    }
}

fn open_stream(server: Target) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(server.address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The nanoseconds from one replaced connection to the next.
fn replace_every_ns(connections: u32, percent_per_second: u32) -> u64 {
    match u64::from(connections) * u64::from(percent_per_second) {
        0 => u64::MAX,
        each_100_s => 100 * 1_000_000_000 / each_100_s,
    }
}

/// The message of each connection: a pattern of its own, and a stamp that no two of them share.
struct Patterns {
    memory: &'static mut [u8],
    stride: usize,
    message_bytes: usize,
}

impl Patterns {
    fn new(count: usize, of: Messages) -> Self {
        let message_bytes = of.bytes;
        let stride = message_bytes.next_multiple_of(ALIGNMENT_BYTES);
        let start = leak(count * stride);
        // SAFETY: the memory is zeroed, this large, never freed, and named by nothing else.
        let memory = unsafe { std::slice::from_raw_parts_mut(start, count * stride) };
        for (index, byte) in memory.iter_mut().enumerate() {
            *byte = (index % 251) as u8 ^ (index / stride) as u8;
        }
        Self { memory, stride, message_bytes }
    }

    fn of(&self, slot: u32) -> &[u8] {
        &self.memory[slot as usize * self.stride..][..self.message_bytes]
    }

    /// Makes the connection's next message, which no earlier one is alike.
    fn stamp(&mut self, slot: u32, sequence: u64) -> &[u8] {
        let message = &mut self.memory[slot as usize * self.stride..][..self.message_bytes];
        // Odd, so that even a stamp cut to one byte differs from its neighbours'.
        let stamp = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(slot));
        let length = message.len().min(size_of::<u64>());
        message[..length].copy_from_slice(&stamp.to_le_bytes()[..length]);
        message
    }
}

fn alike(expected: &[u8], piece: &[u8], sequence: u64) -> bool {
    if expected.len() <= COMPARED_WHOLE_BYTES || sequence % WHOLE_EVERY == 0 {
        return expected == piece;
    }
    let tail = expected.len() - COMPARED_END_BYTES;
    expected[..COMPARED_END_BYTES] == piece[..COMPARED_END_BYTES]
        && expected[tail..] == piece[tail..]
}

fn wrong_echo(slot: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("connection {slot}: the echo differs from the message"),
    )
}
