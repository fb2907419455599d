//! The floor of io_uring: the barest loop that does the work, and no runtime on top.
//!
//! Multishot accept and receive; descriptors are direct, they live in the ring's table only; what
//! is received is sent from the very buffer the kernel put it in, and small pieces lie close
//! together there. One enter a turn: a send goes as a
//! quiet one first, which has a completion only if it sent less than everything, so that none
//! satisfies the wait of the enter that submits it.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::{io, mem};

use io_uring::types::{Fd, Fixed};
use io_uring::{cqueue, opcode, squeue};
use socket2::SockRef;

use bench_support::children::{Failure, announce};
use bench_support::ring::{Buffers, Filling, Piece, Ring, leak};

use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 16_384;
const CONNECTIONS_MAX: u32 = 16_384;

/// Pieces lie one behind the other in so many buffers, each of which has room for
/// `READS_PER_BUFFER` reads: messages of 64 bytes share cache lines and pages.
const BUFFERS: u16 = 32;
const READS_PER_BUFFER: usize = 8;
const BUFFER_BYTES_MIN: usize = 64 * 1024;

/// Where the kernel cannot pack (before Linux 6.12) a piece has a buffer for itself.
const BUFFERS_WHOLE: u16 = 1024;

/// A sink is done with its bytes at once: few buffers stay in the cache.
const BUFFERS_SINK: u16 = 16;

const ANSWER_BYTES: usize = SMALL_WRITES * REQUEST_BYTES;

/// The upper half of the user data; the lower half is the connection's slot.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CLOSE: u64 = 3;

pub(crate) fn does(work: Work) -> bool {
    !matches!(work, Work::Relay | Work::Http)
}

/// Serves for ever, asleep where there is nothing to do.
pub(crate) fn serve(work: Work) -> Result<(), Failure> {
    Server::start(work)?.run(Ring::submit_and_wait)
}

/// Serves for ever, awake: a client that has a processor of its own is answered at once.
pub(crate) fn spin(work: Work) -> Result<(), Failure> {
    Server::start(work)?.run(|ring, want| {
        ring.submit()?;
        while want > 0 && !ring.is_ready() {
            std::hint::spin_loop();
        }
        ring.submit_and_wait(want)
    })
}

struct Server {
    work: Work,
    ring: Ring,
    buffers: Buffers,
    listener: TcpListener,
    connections: Vec<Connection>,
    /// The number of the next enter, and the slots whose quiet sends leave with it.
    turn: u64,
    quiet: Vec<u32>,
    /// Whether a message waits for one of these.
    waits: bool,
    /// What a source sends, over and over.
    block: *const u8,
}

#[derive(Default)]
struct Connection {
    /// What is in flight comes first: one send at a time keeps the order.
    unsent: VecDeque<Message>,
    flight: Flight,
    /// The receive has ended; the slot is closed once nothing is left to send.
    ended: bool,
    closing: bool,
    answers: Option<Answers>,
}

/// The state of a connection's one send.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Flight {
    #[default]
    None,
    /// Leaves with the enter of this turn. No completion after it means that all of it was sent.
    Quiet { turn: u64 },
    /// Has a completion.
    Loud,
}

/// Bytes to send.
struct Message {
    start: *const u8,
    length: u32,
    sent: u32,
    /// Goes back to the kernel when the message is sent.
    piece: Option<Piece>,
}

impl Server {
    fn start(work: Work) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // Accepted sockets inherit it; a direct descriptor could not be asked afterwards.
        SockRef::from(&listener).set_tcp_nodelay(true)?;
        let ring = Ring::new(SUBMISSIONS, COMPLETIONS)?;
        ring.register_slots(CONNECTIONS_MAX)?;
        let buffers = make_buffers(&ring, work)?;
        let mut server = Self {
            work,
            ring,
            buffers,
            listener,
            connections: Vec::new(),
            turn: 0,
            quiet: Vec::new(),
            waits: false,
            block: leak(BLOCK_BYTES),
        };
        server.accept()?;
        announce(server.listener.local_addr()?);
        Ok(server)
    }

    fn run(mut self, enter: impl Fn(&mut Ring, usize) -> io::Result<()>) -> Result<(), Failure> {
        loop {
            let quiet = mem::take(&mut self.quiet);
            let turn = self.turn;
            // What waits behind a quiet send has nothing else to say when it may go.
            let want = if mem::take(&mut self.waits) { 0 } else { 1 };
            enter(&mut self.ring, want)?;
            self.turn += 1;
            while let Some(completion) = self.ring.next_completion() {
                let slot = completion.user_data() as u32;
                match completion.user_data() >> 32 {
                    ACCEPT => self.accepted(&completion)?,
                    RECEIVE => self.received(slot, &completion)?,
                    SEND => self.sent(slot, completion.result())?,
                    _ => self.connections[slot as usize] = Connection::default(),
                }
            }
            // Those that have had a completion are under way again, by a loud one, or over.
            for slot in quiet {
                if self.connections[slot as usize].flight == (Flight::Quiet { turn }) {
                    self.settle(slot)?;
                }
            }
            self.buffers.publish();
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let listener = Fd(self.listener.as_raw_fd());
        let entry = opcode::AcceptMulti::new(listener).allocate_file_index(true).build();
        self.push(entry, ACCEPT, 0)
    }

    fn accepted(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let slot = result(completion)?;
        let needed = self.connections.len().max(slot as usize + 1);
        self.connections.resize_with(needed, Connection::default);
        self.receive(slot)?;
        match self.work {
            Work::Source => self.send_block(slot)?,
            Work::SmallWrites => {
                self.connections[slot as usize].answers = Some(Answers::default());
            }
            _ => {}
        }
        if cqueue::more(completion.flags()) { Ok(()) } else { self.accept() }
    }

    fn receive(&mut self, slot: u32) -> io::Result<()> {
        self.push(opcode::RecvMulti::new(Fixed(slot), 0).build(), RECEIVE, slot)
    }

    fn received(&mut self, slot: u32, completion: &cqueue::Entry) -> io::Result<()> {
        if let Some(piece) = self.buffers.take(completion) {
            self.bytes(slot, piece)?;
            return if cqueue::more(completion.flags()) { Ok(()) } else { self.receive(slot) };
        }
        // Buffers come back when pieces are sent, which they are by the next turn or soon after.
        if completion.result() == -libc::ENOBUFS {
            return self.receive(slot);
        }
        self.connections[slot as usize].ended = true;
        self.close_when_sent(slot)
    }

    /// What the work does with bytes that have come.
    fn bytes(&mut self, slot: u32, piece: Piece) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        match self.work {
            Work::SmallWrites => {
                let bytes = self.buffers.bytes(&piece);
                let answer = connection.answers.as_mut().and_then(|answers| answers.take_in(bytes));
                connection.unsent.extend(answer);
                self.buffers.give_back(piece);
            }
            Work::Sink => self.buffers.give_back(piece),
            _ => connection.unsent.push_back(Message {
                start: piece.start,
                length: piece.length as u32,
                sent: 0,
                piece: Some(piece),
            }),
        }
        match (connection.flight, connection.unsent.len()) {
            (Flight::None, 1..) => self.send_quietly(slot)?,
            (Flight::Quiet { .. }, 2..) => self.waits = true,
            _ => {}
        }
        Ok(())
    }

    /// Sends the first message if the socket has room for it.
    fn send_quietly(&mut self, slot: u32) -> io::Result<()> {
        self.quiet.push(slot);
        self.waits |= self.connections[slot as usize].unsent.len() > 1;
        self.send(
            slot,
            Flight::Quiet { turn: self.turn },
            libc::MSG_DONTWAIT,
            squeue::Flags::SKIP_SUCCESS,
        )
    }

    /// Sends what is left of the first message, and waits for room.
    fn send_loudly(&mut self, slot: u32) -> io::Result<()> {
        self.send(slot, Flight::Loud, 0, squeue::Flags::empty())
    }

    fn send(
        &mut self,
        slot: u32,
        flight: Flight,
        flags: i32,
        entry_flags: squeue::Flags,
    ) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        connection.flight = flight;
        let message = &connection.unsent[0];
        let rest = message.start.wrapping_add(message.sent as usize);
        let entry = opcode::Send::new(Fixed(slot), rest, message.length - message.sent)
            .flags(flags | libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .flags(entry_flags);
        self.push(entry, SEND, slot)
    }

    /// A source's blocks are waited for: it has nothing else to do.
    fn send_block(&mut self, slot: u32) -> io::Result<()> {
        let (start, length) = (self.block, BLOCK_BYTES as u32);
        let message = Message { start, length, sent: 0, piece: None };
        self.connections[slot as usize].unsent.push_back(message);
        self.send_loudly(slot)
    }

    /// The kernel's word on a send: of a quiet one, that it was not all.
    fn sent(&mut self, slot: u32, result: i32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        let message = &mut connection.unsent[0];
        match u32::try_from(result) {
            Ok(sent) => message.sent += sent,
            Err(_) if result == -libc::EAGAIN => {}
            Err(_) => {
                // The rest of this connection's bytes cannot be delivered.
                let pieces = connection.unsent.drain(..).filter_map(|message| message.piece);
                pieces.for_each(|piece| self.buffers.give_back(piece));
                connection.flight = Flight::None;
                return self.close_when_sent(slot);
            }
        }
        if message.sent < message.length { self.send_loudly(slot) } else { self.settle(slot) }
    }

    /// The first message is sent: the next one may go.
    fn settle(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        connection.flight = Flight::None;
        if let Some(Message { piece: Some(piece), .. }) = connection.unsent.pop_front() {
            self.buffers.give_back(piece);
        }
        if !connection.unsent.is_empty() {
            return self.send_quietly(slot);
        }
        if self.work == Work::Source && !connection.ended {
            return self.send_block(slot);
        }
        self.close_when_sent(slot)
    }

    fn close_when_sent(&mut self, slot: u32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        if connection.ended && !connection.closing && connection.unsent.is_empty() {
            connection.closing = true;
            self.push(opcode::Close::new(Fixed(slot)).build(), CLOSE, slot)?;
        }
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry, kind: u64, slot: u32) -> io::Result<()> {
        let entry = entry.user_data(kind << 32 | u64::from(slot));
        // SAFETY: the only memory that entries name is that of the buffers, the block and the
        // answers. None is ever freed; a buffer goes back to the kernel, and an answer is written
        // again, after the kernel is done with its send.
        unsafe { self.ring.push(&entry) }
    }
}

fn make_buffers(ring: &Ring, work: Work) -> io::Result<Buffers> {
    let read_bytes = match work {
        Work::Echo { buffer_bytes } => buffer_bytes,
        Work::SmallWrites | Work::Relay => REQUEST_BYTES,
        Work::Source | Work::Sink | Work::Http => BLOCK_BYTES,
    };
    if work == Work::Sink {
        return Buffers::new(ring, BUFFERS_SINK, read_bytes, Filling::Whole);
    }
    let packed_bytes = (read_bytes * READS_PER_BUFFER).max(BUFFER_BYTES_MIN);
    Buffers::new(ring, BUFFERS, packed_bytes, Filling::Packed)
        .or_else(|_| Buffers::new(ring, BUFFERS_WHOLE, read_bytes, Filling::Whole))
}

/// The answers of one connection that asks for small writes. There are two: the next request may
/// be seen in the turn whose end says that the answer before is sent.
struct Answers {
    request: [u8; REQUEST_BYTES],
    received: usize,
    memory: *mut [[u8; ANSWER_BYTES]; 2],
    next: usize,
}

impl Default for Answers {
    fn default() -> Self {
        let memory = leak(2 * ANSWER_BYTES).cast();
        Self { request: [0; REQUEST_BYTES], received: 0, memory, next: 0 }
    }
}

impl Answers {
    /// The answer, if these bytes complete a request. Who asks has had the last answer.
    fn take_in(&mut self, bytes: &[u8]) -> Option<Message> {
        let bytes = &bytes[..bytes.len().min(REQUEST_BYTES - self.received)];
        self.request[self.received..][..bytes.len()].copy_from_slice(bytes);
        self.received += bytes.len();
        if self.received < REQUEST_BYTES {
            return None;
        }
        self.received = 0;
        // SAFETY: never freed, and the answer that may still be in flight is the other one.
        let answer = unsafe { &mut (&mut *self.memory)[self.next] };
        self.next ^= 1;
        answer.chunks_exact_mut(REQUEST_BYTES).for_each(|part| part.copy_from_slice(&self.request));
        let (start, length) = (answer.as_ptr(), ANSWER_BYTES as u32);
        Some(Message { start, length, sent: 0, piece: None })
    }
}

/// The kernel's answer, or its error.
fn result(completion: &cqueue::Entry) -> io::Result<u32> {
    u32::try_from(completion.result())
        .map_err(|_| io::Error::from_raw_os_error(-completion.result()))
}
