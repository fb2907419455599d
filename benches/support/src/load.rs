//! The load generator: on each connection one message is under way; its echo lets the next one go.
//!
//! It must cost less than the servers it measures, so all connections share one ring and each turn
//! is one system call: submit the next messages, wait for echoes. Echoes arrive by multishot
//! receive in small packed buffers, a send completes without a completion (its echo proves it), and
//! the clock is read once a turn. What is left is the kernel's TCP.

use std::hint::spin_loop;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::{fmt, io, mem};

use io_uring::types::Fixed;
use io_uring::{cqueue, opcode, squeue};

use crate::children::{self, Failure, LOAD_ROLE, UNPINNED};
use crate::figures::Sample;
use crate::histogram::Histogram;
use crate::process::{Clock, CpuReading, Worker, own_cpu_ns};
use crate::ring::{Buffers, Ring, leak};

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

/// What to do; the parent passes it on the command line.
pub struct Plan {
    pub place: String,
    /// The connections go to them in turn.
    pub servers: Vec<Target>,
    pub connections: u32,
    pub message_bytes: usize,
    pub warm_up: Duration,
    pub window: Duration,
}

/// A server process.
#[derive(Clone, Copy)]
pub struct Target {
    pub pid: u32,
    pub address: SocketAddr,
}

impl Target {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let (pid, address) = text.split_once('@').ok_or("a server is PID@ADDRESS")?;
        Ok(Self { pid: pid.parse()?, address: address.parse()? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.pid, self.address)
    }
}

impl Plan {
    /// Starts a child that does it.
    pub fn start(&self) -> io::Result<Worker> {
        Worker::spawn(&[
            LOAD_ROLE.to_owned(),
            self.place.clone(),
            self.servers.iter().map(Target::to_string).collect::<Vec<_>>().join(","),
            self.connections.to_string(),
            self.message_bytes.to_string(),
            self.warm_up.as_nanos().to_string(),
            self.window.as_nanos().to_string(),
        ])
    }

    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let [place, servers, connections, message_bytes, warm_up_ns, window_ns] = arguments else {
            return Err("load PLACE SERVERS CONNECTIONS BYTES WARM_UP_NS WINDOW_NS".into());
        };
        Ok(Self {
            place: place.clone(),
            servers: servers.split(',').map(Target::parse).collect::<Result<_, _>>()?,
            connections: connections.parse()?,
            message_bytes: message_bytes.parse()?,
            warm_up: Duration::from_nanos(warm_up_ns.parse()?),
            window: Duration::from_nanos(window_ns.parse()?),
        })
    }
}

/// The role of the child: prints the sample.
pub fn play(arguments: &[String]) -> Result<(), Failure> {
    let plan = Plan::parse(arguments)?;
    children::take_place(&plan.place)?;
    match open(&plan) {
        Ok((ring, echoes)) => println!("{}", run(&plan, ring, echoes)?),
        Err(error) => children::refuse(&error),
    }
    Ok(())
}

/// Sets up what the kernel may refuse.
fn open(plan: &Plan) -> io::Result<(Ring, Buffers)> {
    let count = plan.connections;
    let ring = Ring::new(count.next_power_of_two(), (count * 4).next_power_of_two())?;
    ring.register_slots(count)?;
    let piece_bytes = plan.message_bytes.next_multiple_of(ALIGNMENT_BYTES).min(PIECE_BYTES_MAX);
    // Two for each connection: what a turn brings is looked at while more may arrive.
    let buffers = (count * 2).next_power_of_two().clamp(64, 1 << 15) as u16;
    let echoes = Buffers::new(&ring, buffers, piece_bytes)?;
    Ok((ring, echoes))
}

/// Connects, warms up, measures.
fn run(plan: &Plan, ring: Ring, echoes: Buffers) -> io::Result<Sample> {
    let mut generator = Generator::connect(plan, ring, echoes)?;
    generator.run_until(plan.warm_up)?;

    generator.histogram.clear();
    let echoed_before = generator.echoed;
    let pids: Vec<u32> = plan.servers.iter().map(|server| server.pid).collect();
    let server_before = CpuReading::of_all(&pids)?;
    let load_before_ns = own_cpu_ns().saturating_sub(generator.spun_ns);
    let start_ns = generator.clock.now_ns();
    generator.run_until(Duration::from_nanos(start_ns) + plan.window)?;
    let window_ns = generator.clock.now_ns() - start_ns;
    let load_after_ns = own_cpu_ns().saturating_sub(generator.spun_ns);
    let server = CpuReading::of_all(&pids)?.since(&server_before);

    let histogram = &generator.histogram;
    Ok(Sample {
        requests: generator.echoed - echoed_before,
        window_ns,
        server_cpu_ns: server.ran_ns,
        server_waited_ns: server.waited_ns,
        server_switches: server.slices,
        load_cpu_ns: load_after_ns.saturating_sub(load_before_ns),
        p50_ns: histogram.quantile(0.5),
        p99_ns: histogram.quantile(0.99),
        p999_ns: histogram.quantile(0.999),
    })
}

struct Generator {
    ring: Ring,
    echoes: Buffers,
    connections: Vec<Connection>,
    messages: Messages,
    histogram: Histogram,
    clock: Clock,
    /// The clock, as read at the start of this turn.
    now_ns: u64,
    waiting: Waiting,
    /// Time spent on spinning, which is no cost of any request.
    spun_ns: u64,
    echoed: u64,
}

struct Connection {
    /// Kept open; the ring uses the slot of the same number.
    _stream: TcpStream,
    sent_at_ns: u64,
    echoed_bytes: usize,
    sequence: u64,
}

impl Generator {
    fn connect(plan: &Plan, ring: Ring, echoes: Buffers) -> io::Result<Self> {
        let count = plan.connections;
        let mut generator = Self {
            ring,
            echoes,
            connections: Vec::new(),
            messages: Messages::new(count as usize, plan.message_bytes),
            histogram: Histogram::default(),
            clock: Clock::start(),
            now_ns: 0,
            waiting: Waiting::choose(plan.connections, plan.place != UNPINNED),
            spun_ns: 0,
            echoed: 0,
        };
        for (slot, server) in (0..count).zip(plan.servers.iter().cycle()) {
            let stream = TcpStream::connect(server.address)?;
            stream.set_nodelay(true)?;
            generator.ring.register_slot(slot, stream.as_raw_fd())?;
            let connection =
                Connection { _stream: stream, sent_at_ns: 0, echoed_bytes: 0, sequence: 0 };
            generator.connections.push(connection);
        }
        generator.clock = Clock::start();
        for slot in 0..count {
            generator.receive(slot)?;
            generator.send(slot)?;
        }
        Ok(generator)
    }

    fn run_until(&mut self, end: Duration) -> io::Result<()> {
        let end_ns = end.as_nanos() as u64;
        while self.now_ns < end_ns {
            self.turn()?;
        }
        Ok(())
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
        self.now_ns = self.clock.now_ns();
        while let Some(completion) = self.ring.next_completion() {
            self.received(&completion)?;
        }
        self.echoes.publish();
        Ok(())
    }

    fn spin(&mut self) {
        let start_ns = self.clock.now_ns();
        let mut now_ns = start_ns;
        while !self.ring.is_ready() && now_ns - start_ns < SPIN_MAX_NS {
            spin_loop();
            let before_ns = mem::replace(&mut now_ns, self.clock.now_ns());
            // A longer gap was not spent here: another process had the processor.
            let gap_ns = now_ns - before_ns;
            self.spun_ns += if gap_ns < SPIN_GAP_MAX_NS { gap_ns } else { 0 };
        }
    }

    fn receive(&mut self, slot: u32) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fixed(slot), 0).build().user_data(u64::from(slot));
        // SAFETY: the entry names no memory; the buffers of the group are never freed.
        unsafe { self.ring.push(&entry) }
    }

    fn received(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let slot = completion.user_data() as u32;
        let result = completion.result();
        if completion.user_data() & SEND != 0 {
            return Err(failure("send", slot, result));
        }
        let buffer = cqueue::buffer_select(completion.flags());
        match (usize::try_from(result), buffer) {
            (Ok(length @ 1..), Some(buffer)) => {
                self.echo(slot, buffer, length)?;
                self.echoes.give_back(buffer);
            }
            _ if result == -libc::ENOBUFS => {}
            _ => return Err(failure("receive", slot, result)),
        }
        if cqueue::more(completion.flags()) { Ok(()) } else { self.receive(slot) }
    }

    /// Checks a piece of an echo; after the last piece the next message goes.
    fn echo(&mut self, slot: u32, buffer: u16, length: usize) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        let message = self.messages.of(slot);
        let piece = self.echoes.bytes(buffer, length);
        let start = connection.echoed_bytes;
        let expected = message.get(start..start + length).ok_or_else(|| wrong_echo(slot))?;
        if !alike(expected, piece, connection.sequence) {
            return Err(wrong_echo(slot));
        }
        connection.echoed_bytes += length;
        if connection.echoed_bytes < message.len() {
            return Ok(());
        }
        self.histogram.record(self.now_ns - connection.sent_at_ns);
        self.echoed += 1;
        self.send(slot)
    }

    fn send(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        connection.echoed_bytes = 0;
        connection.sequence += 1;
        connection.sent_at_ns = self.now_ns;
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

/// The message of each connection: a pattern of its own, and a stamp that no two of them share.
struct Messages {
    memory: &'static mut [u8],
    stride: usize,
    message_bytes: usize,
}

impl Messages {
    fn new(count: usize, message_bytes: usize) -> Self {
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
    if expected.len() <= COMPARED_WHOLE_BYTES || sequence.is_multiple_of(WHOLE_EVERY) {
        return expected == piece;
    }
    let tail = expected.len() - COMPARED_END_BYTES;
    expected[..COMPARED_END_BYTES] == piece[..COMPARED_END_BYTES]
        && expected[tail..] == piece[tail..]
}

fn failure(what: &str, slot: u32, result: i32) -> io::Error {
    let reason = match result {
        0 => "the server closed the connection".to_owned(),
        1.. => format!("cut short after {result} bytes"),
        _ => io::Error::from_raw_os_error(-result).to_string(),
    };
    io::Error::other(format!("{what} on connection {slot}: {reason}"))
}

fn wrong_echo(slot: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("connection {slot}: the echo differs from the message"),
    )
}
