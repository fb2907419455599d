//! The floor of epoll: edge-triggered, registered once, and no runtime on top.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use bench_support::children::{Failure, announce};
use bench_support::process::check;

use crate::work::{BLOCK_BYTES, REQUEST_BYTES, SMALL_WRITES, Work};

const HUNG_UP: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;

/// Events taken by one wait.
const EVENTS: usize = 256;

pub(crate) fn does(work: Work) -> bool {
    !matches!(work, Work::Relay | Work::Http)
}

/// Serves for ever.
pub(crate) fn serve(work: Work) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new()?;
    epoll.add(&listener)?;
    announce(listener.local_addr()?);

    let buffer_bytes = match work {
        Work::Echo { buffer_bytes } => buffer_bytes,
        _ => BLOCK_BYTES,
    };
    let mut server = Server { work, buffer: vec![0; buffer_bytes] };
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    loop {
        for event in epoll.wait(&mut events)? {
            let token = event.u64 as usize;
            if token == listener.as_raw_fd() as usize {
                accept(&listener, &epoll, &mut connections)?;
            } else if let Some(connection) = connections[token].as_mut() {
                // Data and end may share one edge: then a short read is not the last.
                let until = if event.events & HUNG_UP == 0 { Until::ShortRead } else { Until::End };
                if let Ok(Life::Over) | Err(_) = server.serve(connection, until) {
                    connections[token] = None;
                }
            }
        }
    }
}

/// Takes every waiting connection; a connection's token is its descriptor.
fn accept(
    listener: &TcpListener,
    epoll: &Epoll,
    connections: &mut Vec<Option<Connection>>,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _peer)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        epoll.add(&stream)?;
        let token = stream.as_raw_fd() as usize;
        connections.resize_with(connections.len().max(token + 1), || None);
        connections[token] = Some(Connection { stream, unsent: Vec::new(), request: Vec::new() });
    }
}

/// A connection and what its peer has not had room for.
struct Connection {
    stream: TcpStream,
    unsent: Vec<u8>,
    /// The part of a request that has come.
    request: Vec<u8>,
}

enum Until {
    ShortRead,
    End,
}

enum Life {
    GoesOn,
    Over,
}

/// What all connections share.
struct Server {
    work: Work,
    buffer: Vec<u8>,
}

impl Server {
    fn serve(&mut self, connection: &mut Connection, until: Until) -> io::Result<Life> {
        if self.work == Work::Source {
            // Its peer sends nothing: an end is all there is to see.
            while send(&mut connection.stream, &self.buffer)? > 0 {}
        }
        self.answer(connection, until)
    }

    /// Reads until a short read or a full socket: the next edge comes then, without asking again.
    fn answer(&mut self, connection: &mut Connection, until: Until) -> io::Result<Life> {
        loop {
            if !connection.unsent.is_empty() {
                let sent = send(&mut connection.stream, &connection.unsent)?;
                connection.unsent.drain(..sent);
                if !connection.unsent.is_empty() {
                    return Ok(Life::GoesOn);
                }
            }
            let received = match connection.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(Life::Over),
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Life::GoesOn),
                Err(error) => return Err(error),
            };
            let bytes = &self.buffer[..received];
            match self.work {
                Work::Sink | Work::Source => {}
                Work::SmallWrites => connection.answer_copies(bytes)?,
                _ => connection.send(bytes)?,
            }
            let drained = received < self.buffer.len() && matches!(until, Until::ShortRead);
            if drained && connection.unsent.is_empty() {
                return Ok(Life::GoesOn);
            }
        }
    }
}

impl Connection {
    /// Sends what fits and keeps the rest.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = send(&mut self.stream, bytes)?;
        self.unsent.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    /// Answers each whole request by copies of it, all at once.
    fn answer_copies(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let missing = REQUEST_BYTES - self.request.len();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.request.extend_from_slice(now);
            if self.request.len() == REQUEST_BYTES {
                let answer = self.request.repeat(SMALL_WRITES);
                self.request.clear();
                self.send(&answer)?;
            }
            bytes = later;
        }
        Ok(())
    }
}

/// Sends what fits.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match stream.write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

struct Epoll(OwnedFd);

impl Epoll {
    fn new() -> io::Result<Self> {
        // SAFETY: takes flags only.
        let descriptor = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check(descriptor)?;
        // SAFETY: the descriptor was just made and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    fn add(&self, source: &impl AsRawFd) -> io::Result<()> {
        let descriptor = source.as_raw_fd();
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: interest as u32, u64: descriptor as u64 };
        let epoll = self.0.as_raw_fd();
        // SAFETY: both descriptors are open, and the kernel copies the event.
        check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, descriptor, &raw mut event) })
    }

    fn wait<'a>(&self, events: &'a mut [libc::epoll_event]) -> io::Result<&'a [libc::epoll_event]> {
        let room = events.len() as libc::c_int;
        // SAFETY: the pointer and the room describe `events`.
        let ready = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room, -1) };
        match check(ready) {
            Ok(()) => Ok(&events[..ready as usize]),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(&[]),
            Err(error) => Err(error),
        }
    }
}
