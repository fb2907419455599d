//! Three servers that send back what they receive: a thread for each connection, and two loops.
//!
//! As plain as they can be without being wrong: messages are small and clients wait for each echo,
//! so that a write never finds the socket full. One that does is an error, and ends the connection.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use bench_support::BUFFER_BYTES;
use bench_support::children::{Failure, announce};
use bench_support::ring::{Buffers, Filling, Piece, Ring};
use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};

use crate::sys::{self, Epoll};

const EVENTS: usize = 256;
const SUBMISSIONS: u32 = 2048;
const COMPLETIONS: u32 = 8192;
const BUFFERS: u16 = 1024;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Way {
    Threads,
    Epoll,
    Ring,
}

impl Way {
    pub(super) const ALL: [(&'static str, Self); 3] =
        [("threads", Self::Threads), ("epoll", Self::Epoll), ("ring", Self::Ring)];

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|&(_, way)| way)
    }

    /// Serves for ever.
    pub(super) fn serve(self) -> Result<(), Failure> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        match self {
            Self::Threads => threads(&listener),
            Self::Epoll => epoll(&listener),
            Self::Ring => RingServer::new(&listener)?.run(&listener),
        }
    }
}

fn threads(listener: &TcpListener) -> Result<(), Failure> {
    announce(listener.local_addr()?);
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        // Ends with its connection, by whatever error.
        thread::Builder::new().spawn(move || -> io::Result<()> {
            let mut buffer = [0; BUFFER_BYTES];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    length => stream.write_all(&buffer[..length])?,
                }
            }
        })?;
    }
}

/// Level-triggered, one read an event: what is left comes again with the next turn.
fn epoll(listener: &TcpListener) -> Result<(), Failure> {
    let (epoll, accepting) = (Epoll::new()?, listener.as_raw_fd());
    listener.set_nonblocking(true)?;
    epoll.add(accepting, libc::EPOLLIN as u32, accepting as u64)?;
    announce(listener.local_addr()?);
    let mut streams: HashMap<i32, TcpStream> = HashMap::new();
    let (mut events, mut buffer) = (sys::no_events(EVENTS), [0; BUFFER_BYTES]);
    loop {
        let count = epoll.wait(&mut events, -1)?;
        for event in &events[..count] {
            let descriptor = event.u64 as i32;
            if descriptor == accepting {
                while let Some((stream, _)) = sys::ready(listener.accept())? {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    let descriptor = stream.as_raw_fd();
                    epoll.add(descriptor, libc::EPOLLIN as u32, descriptor as u64)?;
                    streams.insert(descriptor, stream);
                }
                continue;
            }
            let Some(stream) = streams.get_mut(&descriptor) else { continue };
            let echoed = match stream.read(&mut buffer) {
                Ok(length @ 1..) => stream.write_all(&buffer[..length]),
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => Err(error),
            };
            // What was announced is there.
            if echoed.is_err() {
                streams.remove(&descriptor);
            }
        }
    }
}

/// Multishot accept and receive; echoes leave from the buffer that they came in.
struct RingServer {
    ring: Ring,
    buffers: Buffers,
    streams: HashMap<i32, OwnedFd>,
    /// What the next enter sends.
    leaving: Vec<Piece>,
}

/// The upper half of the user data says what has completed, the lower half on which descriptor.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;

impl RingServer {
    fn new(listener: &TcpListener) -> io::Result<Self> {
        let ring = Ring::new(SUBMISSIONS, COMPLETIONS)?;
        let buffers = Buffers::new(&ring, BUFFERS, BUFFER_BYTES, Filling::Whole)?;
        let mut server = Self { ring, buffers, streams: HashMap::new(), leaving: vec![] };
        server.accept(listener)?;
        Ok(server)
    }

    fn run(&mut self, listener: &TcpListener) -> Result<(), Failure> {
        announce(listener.local_addr()?);
        loop {
            self.ring.submit_and_wait(1)?;
            // A send that may not wait is over when it has been submitted.
            for piece in self.leaving.drain(..) {
                self.buffers.give_back(piece);
            }
            self.buffers.publish();
            while let Some(completion) = self.ring.next_completion() {
                let descriptor = completion.user_data() as u32 as i32;
                match completion.user_data() >> 32 {
                    ACCEPT => self.accepted(listener, &completion)?,
                    RECEIVE => self.received(descriptor, &completion)?,
                    // Only failed ones are told: the connection is of no use any more.
                    _ => drop(self.streams.remove(&descriptor)),
                }
            }
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        let descriptor = listener.as_raw_fd();
        self.push(opcode::AcceptMulti::new(Fd(descriptor)).build(), ACCEPT, descriptor)
    }

    fn accepted(&mut self, listener: &TcpListener, completion: &cqueue::Entry) -> io::Result<()> {
        if completion.result() < 0 {
            return Err(io::Error::from_raw_os_error(-completion.result()));
        }
        // SAFETY: the kernel has just made it for us, and nothing else knows it.
        let stream = unsafe { OwnedFd::from_raw_fd(completion.result()) };
        let stream = TcpStream::from(stream);
        stream.set_nodelay(true)?;
        let descriptor = stream.as_raw_fd();
        self.streams.insert(descriptor, stream.into());
        self.receive(descriptor)?;
        if cqueue::more(completion.flags()) { Ok(()) } else { self.accept(listener) }
    }

    fn receive(&mut self, descriptor: i32) -> io::Result<()> {
        self.push(opcode::RecvMulti::new(Fd(descriptor), 0).build(), RECEIVE, descriptor)
    }

    fn received(&mut self, descriptor: i32, completion: &cqueue::Entry) -> io::Result<()> {
        let is_armed = cqueue::more(completion.flags());
        match self.buffers.take(completion) {
            Some(piece) => {
                let length = piece.length as u32;
                let entry = opcode::Send::new(Fd(descriptor), piece.start, length)
                    .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL | libc::MSG_DONTWAIT)
                    .build()
                    .flags(squeue::Flags::SKIP_SUCCESS);
                self.push(entry, SEND, descriptor)?;
                self.leaving.push(piece);
            }
            // No buffer was free; there are some again after the next enter.
            None if completion.result() == -libc::ENOBUFS => {}
            None => {
                self.streams.remove(&descriptor);
                return Ok(());
            }
        }
        if is_armed { Ok(()) } else { self.receive(descriptor) }
    }

    fn push(&mut self, entry: squeue::Entry, kind: u64, descriptor: i32) -> io::Result<()> {
        let entry = entry.user_data(kind << 32 | u64::from(descriptor as u32));
        // SAFETY: the only memory that entries name is that of the buffers, which is never freed,
        // and a buffer goes back to the kernel after the enter that has sent it.
        unsafe { self.ring.push(&entry) }
    }
}
