//! The simulated network: TCP as programs see it, without a kernel.
//!
//! Everything that one end does is told to the other by a [`Delivery`], which is on its way for a
//! time that is drawn. What goes from one end to the other keeps its order; nothing else does. The
//! answers are those of tcp(7): what was received before a reset can still be read, who closes with
//! bytes unread resets the connection, and so does what arrives for somebody who is gone.
//!
//! Rules that drivers rest on, and so must hold here:
//! 1. A receive takes all that has arrived, as far as there is room. What is to be read later
//!    arrives later, and is an event.
//! 2. A send that was cut short, or refused with EAGAIN, is followed by an event when there is
//!    room.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::line::{Line, Watch};
use super::moment::Moment;
use super::names::{Binding, Names};

/// After this a connection is asked for again that found the listener's queue full (Linux: 1 s).
const REQUEST_AGAIN: Duration = Duration::from_secs(1);

pub(super) type SocketId = u64;

#[derive(Default)]
pub(super) struct Network {
    pub(super) sockets: BTreeMap<SocketId, Socket>,
    names: Names,
    on_its_way: BTreeMap<(Duration, u64), Delivery>,
    next_socket: SocketId,
    next_serial: u64,
    pub(super) figures: Figures,
}

/// What has happened in a network.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) connections: u64,
    pub(super) refusals: u64,
    pub(super) resets: u64,
    pub(super) bytes: u64,
    pub(super) deliveries: u64,
}

pub(super) struct Socket {
    bound: Option<SocketAddr>,
    options: Options,
    role: Role,
    pub(super) watches: Vec<Watch>,
}

/// What can be set and does nothing here, but for the last.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// `IP_TTL`.
    pub ttl: u32,
    /// A close resets the connection (`SO_LINGER` of zero).
    pub abortive: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { nodelay: true, ttl: 64, abortive: false }
    }
}

enum Role {
    Fresh,
    Listening {
        waiting: VecDeque<SocketId>,
        backlog: usize,
    },
    /// Asked for, or refused.
    Connecting {
        error: Option<i32>,
        over: bool,
        /// A reset has overtaken the answer, and is told with it.
        reset: bool,
    },
    Connected(Box<Line>),
}

enum Delivery {
    Request { client: SocketId, from: SocketAddr, to: SocketAddr },
    Welcome { client: SocketId, line: Box<Line> },
    Refusal { client: SocketId },
    Bytes { to: SocketId, from: SocketId, bytes: Vec<u8> },
    End { to: SocketId },
    Reset { to: SocketId },
    Room { to: SocketId, bytes: usize },
}

impl Network {
    pub(super) fn open(&mut self) -> SocketId {
        self.insert(Role::Fresh, None)
    }

    fn insert(&mut self, role: Role, bound: Option<SocketAddr>) -> SocketId {
        let id = self.next_socket;
        self.next_socket += 1;
        let options = Options::default();
        let socket = Socket { bound, options, role, watches: Vec::new() };
        self.sockets.insert(id, socket);
        id
    }

    pub(super) fn bind(
        &mut self,
        id: SocketId,
        mut address: SocketAddr,
        binding: Binding,
    ) -> io::Result<()> {
        if self.socket(id)?.bound.is_some() {
            return Err(errno(libc::EINVAL));
        }
        address.set_port(self.names.bind(id, address, binding)?);
        self.socket(id)?.bound = Some(address);
        Ok(())
    }

    /// Has others share the address of a socket that has it already.
    pub(super) fn share_address(&mut self, id: SocketId) -> io::Result<()> {
        if let Some(name) = self.socket(id)?.bound {
            self.names.share(id, name.port());
        }
        Ok(())
    }

    pub(super) fn listen(&mut self, id: SocketId, backlog: usize) -> io::Result<()> {
        let socket = self.sockets.get_mut(&id).ok_or_else(|| errno(libc::EBADF))?;
        match (&socket.role, socket.bound) {
            (Role::Fresh, Some(name)) => self.names.listen(id, name.port())?,
            _ => return Err(errno(libc::EINVAL)),
        }
        socket.role = Role::Listening { waiting: VecDeque::new(), backlog };
        Ok(())
    }

    pub(super) fn connect(
        &mut self,
        moment: &mut Moment<'_>,
        id: SocketId,
        to: SocketAddr,
    ) -> io::Result<()> {
        match &self.socket(id)?.role {
            Role::Fresh => {}
            Role::Connecting { over: false, .. } => return Err(errno(libc::EALREADY)),
            Role::Connected(_) => return Err(errno(libc::EISCONN)),
            _ => return Err(errno(libc::EINVAL)),
        }
        let to = SocketAddr::new(reachable(to.ip()), to.port());
        let from = match self.socket(id)?.bound {
            Some(name) if name.ip().is_unspecified() => SocketAddr::new(to.ip(), name.port()),
            Some(name) => name,
            None => SocketAddr::new(to.ip(), self.names.connect(id, to.ip(), to)?),
        };
        let socket = self.socket(id)?;
        socket.bound = Some(from);
        socket.role = Role::Connecting { error: None, over: false, reset: false };
        let due = moment.now + moment.latency();
        self.send_off(due, Delivery::Request { client: id, from, to });
        self.deliver(moment);
        match &mut self.socket(id)?.role {
            Role::Connected(_) => Ok(()),
            Role::Connecting { error, .. } => {
                Err(error.take().map_or_else(|| errno(libc::EINPROGRESS), errno))
            }
            _ => Err(errno(libc::EINVAL)),
        }
    }

    /// The socket of the connection that waits longest.
    pub(super) fn first_waiting(&mut self, id: SocketId) -> io::Result<Option<SocketId>> {
        match &self.socket(id)?.role {
            Role::Listening { waiting, .. } => Ok(waiting.front().copied()),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    /// It waits no more.
    pub(super) fn take_waiting(&mut self, id: SocketId) {
        if let Some(Role::Listening { waiting, .. }) =
            self.sockets.get_mut(&id).map(|socket| &mut socket.role)
        {
            waiting.pop_front();
        }
    }

    /// Sends the slices, or as much as is taken of them.
    pub(super) fn send(
        &mut self,
        moment: &mut Moment<'_>,
        id: SocketId,
        slices: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let line = match &mut self.socket(id)?.role {
            Role::Connected(line) => line,
            Role::Connecting { over: false, .. } => return Err(errno(libc::EAGAIN)),
            Role::Connecting { error, .. } => {
                return Err(errno(error.take().unwrap_or(libc::EPIPE)));
            }
            _ => return Err(errno(libc::EPIPE)),
        };
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let count = line.take_room(wanted)?;
        if count == 0 {
            return Ok(0);
        }
        let cut = moment.dice.one_in(moment.faults.short_io);
        let count = if cut { 1 + moment.dice.below(count as u64) as usize } else { count };
        line.note_sent(count);
        let peer = line.peer;
        if cut && count < wanted {
            // As if there had been no more room: it comes back with an event.
            line.lacks_room = true;
            let due = moment.now + moment.latency();
            self.send_off(due, Delivery::Room { to: id, bytes: 0 });
        }
        self.figures.bytes += count as u64;
        self.send_pieces(moment, id, gather(slices, count))?;
        if moment.dice.one_in(moment.faults.resets) {
            for to in [id, peer] {
                let due = moment.now + moment.latency();
                self.send_off(due, Delivery::Reset { to });
            }
        }
        self.deliver(moment);
        Ok(count)
    }

    /// Bytes that were sent by one call may arrive in pieces.
    fn send_pieces(
        &mut self,
        moment: &mut Moment<'_>,
        from: SocketId,
        mut bytes: Vec<u8>,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let cut = moment.dice.one_in(moment.faults.short_io);
            let length = bytes.len();
            let count = if cut { 1 + moment.dice.below(length as u64) as usize } else { length };
            let rest = bytes.split_off(count);
            let line = self.line(from)?;
            let (to, due) = (line.peer, line.due_after(moment.now + moment.latency()));
            self.send_off(due, Delivery::Bytes { to, from, bytes });
            bytes = rest;
        }
        Ok(())
    }

    /// Receives what has arrived. Answers how many bytes, and how many more there are: one if that
    /// is the end of the stream (as `TCP_INQ` does).
    pub(super) fn receive(
        &mut self,
        moment: &mut Moment<'_>,
        id: SocketId,
        buffer: &mut [MaybeUninit<u8>],
        keep: bool,
    ) -> io::Result<(usize, usize)> {
        let line = match &mut self.socket(id)?.role {
            Role::Connected(line) => line,
            _ => return Err(errno(libc::ENOTCONN)),
        };
        let count = line.receive(buffer, keep)?;
        let (peer, rest) = (line.peer, line.rest());
        if count > 0 && !keep {
            let due = moment.now + moment.latency();
            self.send_off(due, Delivery::Room { to: peer, bytes: count });
            self.deliver(moment);
        }
        Ok((count, rest))
    }

    pub(super) fn shutdown(
        &mut self,
        moment: &mut Moment<'_>,
        id: SocketId,
        how: std::net::Shutdown,
    ) -> io::Result<()> {
        let line = self.line(id)?;
        if line.is_over() {
            return Err(errno(libc::ENOTCONN));
        }
        if how != std::net::Shutdown::Write {
            line.turn_deaf();
        }
        if how != std::net::Shutdown::Read && !std::mem::replace(&mut line.shut, true) {
            let (to, due) = (line.peer, line.due_after(moment.now + moment.latency()));
            self.send_off(due, Delivery::End { to });
        }
        self.notify(id, libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP);
        self.deliver(moment);
        Ok(())
    }

    /// Takes and clears the pending error.
    pub(super) fn take_error(&mut self, id: SocketId) -> Option<i32> {
        match &mut self.sockets.get_mut(&id)?.role {
            Role::Connecting { error, .. } => error.take(),
            Role::Connected(line) => line.error.take(),
            _ => None,
        }
    }

    /// The last descriptor of a socket is gone.
    pub(super) fn close(&mut self, moment: &mut Moment<'_>, id: SocketId) {
        let Some(socket) = self.sockets.remove(&id) else { return };
        if let Some(name) = socket.bound {
            self.names.release(id, name.port());
        }
        match socket.role {
            Role::Listening { waiting, .. } => {
                for server in waiting {
                    self.abort(moment, server);
                }
            }
            Role::Connected(mut line) if !line.is_over() => {
                let (to, due) = (line.peer, line.due_after(moment.now + moment.latency()));
                if line.has_unread() || socket.options.abortive {
                    self.send_off(due, Delivery::Reset { to });
                } else if !line.shut {
                    self.send_off(due, Delivery::End { to });
                }
            }
            _ => {}
        }
        self.deliver(moment);
    }

    /// As a close that waits for nothing (`SO_LINGER` of zero).
    fn abort(&mut self, moment: &mut Moment<'_>, id: SocketId) {
        let Some(Socket { role: Role::Connected(mut line), .. }) = self.sockets.remove(&id) else {
            return;
        };
        let (to, due) = (line.peer, line.due_after(moment.now + moment.latency()));
        self.send_off(due, Delivery::Reset { to });
    }

    pub(super) fn local_address(&self, id: SocketId) -> io::Result<SocketAddr> {
        let socket = self.sockets.get(&id).ok_or_else(|| errno(libc::EBADF))?;
        Ok(socket.bound.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)))
    }

    pub(super) fn peer_address(&self, id: SocketId) -> io::Result<SocketAddr> {
        match self.sockets.get(&id).map(|socket| &socket.role) {
            // A connection that is over has no peer (getpeername(2)).
            Some(Role::Connected(line)) if !line.is_over() => Ok(line.remote),
            _ => Err(errno(libc::ENOTCONN)),
        }
    }

    pub(super) fn options(&mut self, id: SocketId) -> io::Result<&mut Options> {
        Ok(&mut self.socket(id)?.options)
    }

    fn socket(&mut self, id: SocketId) -> io::Result<&mut Socket> {
        self.sockets.get_mut(&id).ok_or_else(|| errno(libc::EBADF))
    }

    fn line(&mut self, id: SocketId) -> io::Result<&mut Line> {
        match &mut self.socket(id)?.role {
            Role::Connected(line) => Ok(line),
            _ => Err(errno(libc::ENOTCONN)),
        }
    }

    fn send_off(&mut self, due: Duration, delivery: Delivery) {
        self.next_serial += 1;
        self.on_its_way.insert((due, self.next_serial), delivery);
    }

    /// When something arrives next.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.on_its_way.first_key_value().map(|((due, _), _)| *due)
    }

    /// Has everything arrive that is due. Answers how much that was.
    pub(super) fn deliver(&mut self, moment: &mut Moment<'_>) -> u64 {
        let before = self.figures.deliveries;
        while let Some(entry) = self.on_its_way.first_entry() {
            if entry.key().0 > moment.now {
                break;
            }
            let delivery = entry.remove();
            self.figures.deliveries += 1;
            self.arrive(moment, delivery);
        }
        self.figures.deliveries - before
    }

    fn arrive(&mut self, moment: &mut Moment<'_>, delivery: Delivery) {
        match delivery {
            Delivery::Request { client, from, to } => self.request(moment, client, from, to),
            Delivery::Welcome { client, line } => {
                let peer = line.peer;
                match self.sockets.get_mut(&client) {
                    Some(socket) => {
                        let reset = matches!(socket.role, Role::Connecting { reset: true, .. });
                        socket.role = Role::Connected(line);
                        self.notify(client, libc::EPOLLOUT);
                        if reset {
                            self.reset(client);
                        }
                    }
                    None => self.send_off(moment.now, Delivery::Reset { to: peer }),
                }
            }
            Delivery::Refusal { client } => {
                if let Some(socket) = self.sockets.get_mut(&client) {
                    let error = Some(libc::ECONNREFUSED);
                    socket.role = Role::Connecting { error, over: true, reset: false };
                    self.notify(client, libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLERR);
                }
            }
            Delivery::Bytes { to, from, bytes } => match self.line(to) {
                Ok(line) if !line.repels() => {
                    line.arrive(bytes);
                    self.notify(to, libc::EPOLLIN);
                }
                // Nobody is there to read it.
                _ => {
                    self.reset(to);
                    let due = moment.now + moment.latency();
                    self.send_off(due, Delivery::Reset { to: from });
                }
            },
            Delivery::End { to } => {
                if let Ok(line) = self.line(to) {
                    line.end();
                    self.notify(to, libc::EPOLLIN | libc::EPOLLRDHUP);
                }
            }
            Delivery::Reset { to } => self.reset(to),
            Delivery::Room { to, bytes } => {
                if self.line(to).is_ok_and(|line| line.make_room(bytes)) {
                    self.notify(to, libc::EPOLLOUT);
                }
            }
        }
    }

    /// A client asks for a connection.
    fn request(
        &mut self,
        moment: &mut Moment<'_>,
        client: SocketId,
        from: SocketAddr,
        to: SocketAddr,
    ) {
        let refused = moment.dice.one_in(moment.faults.refusals);
        let due = moment.now + moment.latency();
        let listeners = self.names.listeners_at(to);
        if refused || listeners.is_empty() {
            self.figures.refusals += 1;
            return self.send_off(due, Delivery::Refusal { client });
        }
        let listener = listeners[moment.dice.below(listeners.len() as u64) as usize];
        if let Role::Listening { waiting, backlog } = &self.sockets[&listener].role {
            if waiting.len() > *backlog {
                let due = moment.now + REQUEST_AGAIN;
                return self.send_off(due, Delivery::Request { client, from, to });
            }
        }
        let windows = (Line::window(moment), Line::window(moment));
        let line = Line::new(client, from, windows.0, due);
        let server = self.insert(Role::Connected(Box::new(line)), Some(to));
        let line = Box::new(Line::new(server, to, windows.1, due));
        self.send_off(due, Delivery::Welcome { client, line });
        self.figures.connections += 1;
        if let Some(Role::Listening { waiting, .. }) =
            self.sockets.get_mut(&listener).map(|socket| &mut socket.role)
        {
            waiting.push_back(server);
        }
        self.notify(listener, libc::EPOLLIN);
    }

    fn reset(&mut self, id: SocketId) {
        let line = match self.sockets.get_mut(&id).map(|socket| &mut socket.role) {
            Some(Role::Connected(line)) => line,
            Some(Role::Connecting { over: false, reset, .. }) => return *reset = true,
            _ => return,
        };
        if line.reset() {
            self.figures.resets += 1;
            self.notify(id, libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP);
        }
    }

    /// How things stand with a socket, as poll(2) tells.
    pub(super) fn events(&self, id: SocketId) -> u32 {
        self.sockets.get(&id).map_or(libc::EPOLLERR as u32, Socket::events)
    }

    /// What there is, one line for each socket, for people.
    pub(super) fn describe(&self) -> Vec<String> {
        self.sockets
            .iter()
            .map(|(id, socket)| format!("socket {id}: {}", socket.describe()))
            .collect()
    }
}

impl Socket {
    pub(super) fn events(&self) -> u32 {
        let events = match &self.role {
            Role::Fresh => libc::EPOLLOUT | libc::EPOLLHUP,
            Role::Listening { waiting, .. } if waiting.is_empty() => 0,
            Role::Listening { .. } => libc::EPOLLIN,
            Role::Connecting { over: false, .. } => 0,
            Role::Connecting { error, .. } => {
                let error = if error.is_some() { libc::EPOLLERR } else { 0 };
                error | libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLRDHUP
            }
            Role::Connected(line) => line.events(),
        };
        events as u32
    }

    fn describe(&self) -> String {
        let bound = self.bound.map_or_else(|| "unbound".to_owned(), |name| name.to_string());
        match &self.role {
            Role::Fresh => format!("{bound}, not used yet"),
            Role::Listening { waiting, .. } => {
                format!("{bound} listens, {} connections wait", waiting.len())
            }
            Role::Connecting { over: false, .. } => format!("{bound} waits to be connected"),
            Role::Connecting { .. } => format!("{bound} was refused"),
            Role::Connected(line) => format!("{bound} with {line}"),
        }
    }
}

/// Who asks for "any address" means this machine.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

fn gather(slices: &[IoSlice<'_>], count: usize) -> Vec<u8> {
    slices.iter().flat_map(|slice| slice.iter().copied()).take(count).collect()
}

pub(super) fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
