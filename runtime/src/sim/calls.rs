//! What is asked before a system call is made on a socket. `None`: this socket is not simulated.

use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use super::dice::mix;
pub use super::names::Binding;
pub use super::network::Options;
use super::network::errno;
use super::trace::Call;
use super::world::World;

/// A new TCP socket.
pub fn socket() -> Option<io::Result<OwnedFd>> {
    Some(World::current()?.open_socket())
}

/// As `bind(2)`.
pub fn bind(fd: BorrowedFd<'_>, address: SocketAddr, binding: Binding) -> Option<io::Result<()>> {
    let world = World::current()?;
    // What was closed before frees its port.
    world.take_closed();
    world.on_socket(fd, Call::Bind, none, |network, _, id| network.bind(id, address, binding))
}

/// Lets others have the address of a socket that is bound.
pub fn share_address(fd: BorrowedFd<'_>) -> Option<io::Result<()>> {
    World::current()?.on_socket(fd, Call::Bind, none, |network, _, id| network.share_address(id))
}

/// As `listen(2)`.
pub fn listen(fd: BorrowedFd<'_>, backlog: u32) -> Option<io::Result<()>> {
    let backlog = backlog as usize;
    World::current()?
        .on_socket(fd, Call::Listen, none, |network, _, id| network.listen(id, backlog))
}

/// As `connect(2)` on a socket that does not block.
pub fn connect(fd: BorrowedFd<'_>, to: SocketAddr) -> Option<io::Result<()>> {
    let world = World::current()?;
    world.take_closed();
    world.on_socket(fd, Call::Connect, none, |network, moment, id| network.connect(moment, id, to))
}

/// As `getsockname(2)`.
pub fn local_address(fd: BorrowedFd<'_>) -> Option<io::Result<SocketAddr>> {
    World::current()?.on_socket(fd, Call::Address, port, |network, _, id| network.local_address(id))
}

/// As `getpeername(2)`.
pub fn peer_address(fd: BorrowedFd<'_>) -> Option<io::Result<SocketAddr>> {
    World::current()?.on_socket(fd, Call::Address, port, |network, _, id| network.peer_address(id))
}

/// True for a simulated socket, whose options are accepted and do nothing.
pub fn is_simulated(fd: BorrowedFd<'_>) -> bool {
    World::current().is_some_and(|world| world.finds(fd))
}

/// The options of a socket, changed or only looked at.
pub fn options(
    fd: BorrowedFd<'_>,
    change: impl FnOnce(&mut Options),
) -> Option<io::Result<Options>> {
    let weigh = |options: &Options| u64::from(options.ttl);
    World::current()?.on_socket(fd, Call::Options, weigh, |network, _, id| {
        let options = network.options(id)?;
        change(options);
        Ok(*options)
    })
}

pub(crate) fn accept(fd: BorrowedFd<'_>) -> Option<io::Result<OwnedFd>> {
    World::current()?.accept(fd)
}

/// Answers how many bytes were received, and how many there are behind them.
pub(crate) fn receive(
    fd: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    flags: libc::c_int,
) -> Option<io::Result<(usize, usize)>> {
    let keep = flags & libc::MSG_PEEK != 0;
    let weigh = |(count, _): &(usize, usize)| *count as u64;
    World::current()?.on_socket(fd, Call::Receive, weigh, |network, moment, id| {
        network.receive(moment, id, buffer, keep)
    })
}

pub(crate) fn send(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
    let weigh = |count: &usize| {
        let sent = slices.iter().flat_map(|slice| slice.iter()).take(*count);
        sent.fold(*count as u64, |sum, byte| sum.rotate_left(7) ^ u64::from(*byte))
    };
    World::current()?.on_socket(
        fd,
        Call::Send,
        |count| mix(weigh(count)),
        |network, moment, id| network.send(moment, id, slices),
    )
}

pub(crate) fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) -> Option<io::Result<()>> {
    World::current()?.on_socket(fd, Call::Shutdown, none, |network, moment, id| {
        network.shutdown(moment, id, how)
    })
}

pub(crate) fn take_error(fd: BorrowedFd<'_>) -> Option<io::Result<()>> {
    World::current()?.on_socket(fd, Call::TakeError, none, |network, _, id| {
        network.take_error(id).map_or(Ok(()), |number| Err(errno(number)))
    })
}

/// What poll(2) would tell.
pub(crate) fn poll(fd: BorrowedFd<'_>) -> Option<u32> {
    let events = World::current()?.on_socket(
        fd,
        Call::Poll,
        |events| u64::from(*events),
        |network, _, id| Ok(network.events(id)),
    )?;
    events.ok()
}

fn none((): &()) -> u64 {
    0
}

fn port(address: &SocketAddr) -> u64 {
    u64::from(address.port())
}
