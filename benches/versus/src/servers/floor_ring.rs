//! The floor of io_uring: multishot accept and receive, one enter per turn, and no runtime on top.
//!
//! What is received is sent from the very buffer the kernel put it in. Descriptors are direct: they
//! live in the ring's table only.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, Fixed};
use io_uring::{cqueue, opcode, squeue};
use socket2::SockRef;

use bench_support::BUFFER_BYTES;
use bench_support::children::{Failure, announce};
use bench_support::ring::{Buffers, Ring};

use crate::work::Work;

const SUBMISSIONS: u32 = 256;
const COMPLETIONS: u32 = 8192;
const CONNECTIONS_MAX: u32 = 16_384;
const BUFFERS: u16 = 1024;

/// The upper half of the user data; the lower half is the connection's slot.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CLOSE: u64 = 3;

pub(crate) fn does(work: Work) -> bool {
    matches!(work, Work::Echo { .. })
}

/// Serves for ever.
pub(crate) fn serve(_echo: Work) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // Accepted sockets inherit it; a direct descriptor could not be asked afterwards.
    SockRef::from(&listener).set_tcp_nodelay(true)?;
    let ring = Ring::new(SUBMISSIONS, COMPLETIONS)?;
    ring.register_slots(CONNECTIONS_MAX)?;
    let buffers = Buffers::new(&ring, BUFFERS, BUFFER_BYTES)?;
    let mut server = Server { ring, buffers, listener, connections: Vec::new() };
    server.accept()?;
    announce(server.listener.local_addr()?);
    loop {
        server.turn()?;
    }
}

struct Server {
    ring: Ring,
    buffers: Buffers,
    listener: TcpListener,
    connections: Vec<Connection>,
}

#[derive(Default)]
struct Connection {
    /// Received and not yet sent, the piece in flight first: one send at a time keeps the order.
    pieces: VecDeque<Piece>,
    /// The receive has ended; the slot is closed once nothing is left to send.
    ended: bool,
}

struct Piece {
    buffer: u16,
    length: u32,
    sent: u32,
}

impl Server {
    fn turn(&mut self) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        while let Some(completion) = self.ring.next_completion() {
            let slot = completion.user_data() as u32;
            match completion.user_data() >> 32 {
                ACCEPT => self.accepted(&completion)?,
                RECEIVE => self.received(slot, &completion)?,
                SEND => self.sent(slot, completion.result())?,
                _ => {}
            }
        }
        self.buffers.publish();
        Ok(())
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
        self.connections[slot as usize].ended = false;
        self.receive(slot)?;
        if cqueue::more(completion.flags()) { Ok(()) } else { self.accept() }
    }

    fn receive(&mut self, slot: u32) -> io::Result<()> {
        self.push(opcode::RecvMulti::new(Fixed(slot), 0).build(), RECEIVE, slot)
    }

    fn received(&mut self, slot: u32, completion: &cqueue::Entry) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        if let (Some(buffer), Ok(length @ 1..)) =
            (cqueue::buffer_select(completion.flags()), result(completion))
        {
            connection.pieces.push_back(Piece { buffer, length, sent: 0 });
            if connection.pieces.len() == 1 {
                self.send(slot)?;
            }
            return if cqueue::more(completion.flags()) { Ok(()) } else { self.receive(slot) };
        }
        // Buffers come back when sends complete, which they have by the next turn or soon after.
        if completion.result() == -libc::ENOBUFS {
            return self.receive(slot);
        }
        connection.ended = true;
        self.close_when_sent(slot)
    }

    /// Sends the first piece, or what is left of it.
    fn send(&mut self, slot: u32) -> io::Result<()> {
        let piece = &self.connections[slot as usize].pieces[0];
        let rest = self.buffers.start(piece.buffer).wrapping_add(piece.sent as usize);
        let entry = opcode::Send::new(Fixed(slot), rest, piece.length - piece.sent)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(entry, SEND, slot)
    }

    fn sent(&mut self, slot: u32, result: i32) -> io::Result<()> {
        let connection = &mut self.connections[slot as usize];
        let piece = &mut connection.pieces[0];
        piece.sent += u32::try_from(result).unwrap_or(0);
        // After an error the rest of this connection's bytes cannot be delivered.
        let undeliverable = if result < 0 { connection.pieces.len() } else { 0 };
        let done = usize::from(connection.pieces[0].sent == connection.pieces[0].length);
        for piece in connection.pieces.drain(..done.max(undeliverable)) {
            self.buffers.give_back(piece.buffer);
        }
        if connection.pieces.is_empty() { self.close_when_sent(slot) } else { self.send(slot) }
    }

    fn close_when_sent(&mut self, slot: u32) -> io::Result<()> {
        let connection = &self.connections[slot as usize];
        if connection.ended && connection.pieces.is_empty() {
            self.push(opcode::Close::new(Fixed(slot)).build(), CLOSE, slot)?;
        }
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry, kind: u64, slot: u32) -> io::Result<()> {
        let entry = entry.user_data(kind << 32 | u64::from(slot));
        // SAFETY: the only memory that entries name is that of the buffers, which is never freed,
        // and a buffer being sent from is given back to the kernel after its send has completed.
        unsafe { self.ring.push(&entry) }
    }
}

/// The kernel's answer, or its error.
fn result(completion: &cqueue::Entry) -> io::Result<u32> {
    u32::try_from(completion.result())
        .map_err(|_| io::Error::from_raw_os_error(-completion.result()))
}
