//! Without the feature `sim`: nothing is simulated, and whoever asks is told so at compile time.

use std::convert::Infallible;
use std::time::Instant;

#[inline(always)]
pub(crate) fn instant() -> Option<Instant> {
    None
}

#[inline(always)]
pub(crate) fn nanoseconds() -> Option<u64> {
    None
}

/// It does not.
#[inline(always)]
pub fn is_here() -> bool {
    false
}

#[inline(always)]
pub(crate) fn pause() {}

/// A seat that there is none of.
#[derive(Clone)]
pub(crate) struct Place(Infallible);

#[inline(always)]
pub(crate) fn expect(_shard: usize) -> Option<Place> {
    None
}

impl Place {
    pub(crate) fn take(self) {
        match self.0 {}
    }

    pub(crate) fn give_up(self) {
        match self.0 {}
    }
}

#[inline(always)]
pub(crate) fn stand_aside() -> Option<Infallible> {
    None
}

pub(crate) mod calls {
    use std::io;
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::net::{Shutdown, SocketAddr};
    use std::os::fd::{BorrowedFd, OwnedFd};

    /// Nothing is simulated.
    #[inline(always)]
    pub fn socket() -> Option<io::Result<OwnedFd>> {
        None
    }

    /// Nothing is simulated.
    #[inline(always)]
    pub fn bind(
        _fd: BorrowedFd<'_>,
        _address: SocketAddr,
        _binding: Binding,
    ) -> Option<io::Result<()>> {
        None
    }

    /// Nothing is simulated.
    #[inline(always)]
    pub fn share_address(_fd: BorrowedFd<'_>) -> Option<io::Result<()>> {
        None
    }

    /// Nothing is simulated.
    #[inline(always)]
    pub fn listen(_fd: BorrowedFd<'_>, _backlog: u32) -> Option<io::Result<()>> {
        None
    }

    /// Nothing is simulated.
    #[inline(always)]
    pub fn connect(_fd: BorrowedFd<'_>, _to: SocketAddr) -> Option<io::Result<()>> {
        None
    }

    /// Nothing is simulated.
    #[inline(always)]
    pub fn local_address(_fd: BorrowedFd<'_>) -> Option<io::Result<SocketAddr>> {
        None
    }

    /// Nothing is simulated.
    #[inline(always)]
    pub fn peer_address(_fd: BorrowedFd<'_>) -> Option<io::Result<SocketAddr>> {
        None
    }

    /// How a socket is bound.
    #[derive(Clone, Copy, Debug)]
    pub struct Binding {
        /// `SO_REUSEPORT`.
        pub shares: bool,
        /// `IPV6_V6ONLY`.
        pub only_v6: bool,
    }

    /// What can be set.
    #[derive(Clone, Copy, Debug)]
    pub struct Options {
        /// `TCP_NODELAY`.
        pub nodelay: bool,
        /// `IP_TTL`.
        pub ttl: u32,
        /// `SO_LINGER` of zero.
        pub abortive: bool,
    }

    /// Nothing is simulated.
    #[inline(always)]
    pub fn options(
        _fd: BorrowedFd<'_>,
        _change: impl FnOnce(&mut Options),
    ) -> Option<io::Result<Options>> {
        None
    }

    /// Nothing is simulated.
    #[inline(always)]
    pub fn is_simulated(_fd: BorrowedFd<'_>) -> bool {
        false
    }

    #[inline(always)]
    pub(crate) fn accept(_fd: BorrowedFd<'_>) -> Option<io::Result<OwnedFd>> {
        None
    }

    #[inline(always)]
    pub(crate) fn receive(
        _fd: BorrowedFd<'_>,
        _buffer: &mut [MaybeUninit<u8>],
        _flags: libc::c_int,
    ) -> Option<io::Result<(usize, usize)>> {
        None
    }

    #[inline(always)]
    pub(crate) fn send(_fd: BorrowedFd<'_>, _slices: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        None
    }

    #[inline(always)]
    pub(crate) fn shutdown(_fd: BorrowedFd<'_>, _how: Shutdown) -> Option<io::Result<()>> {
        None
    }

    #[inline(always)]
    pub(crate) fn take_error(_fd: BorrowedFd<'_>) -> Option<io::Result<()>> {
        None
    }
}

pub(crate) mod epoll {
    use std::io;
    use std::os::fd::RawFd;
    use std::time::Duration;

    use crate::sys::{EpollEvent, EpollFd};

    #[inline(always)]
    pub(crate) fn add(_fd: RawFd, _events: u32, _token: u64) -> Option<io::Result<()>> {
        None
    }

    #[inline(always)]
    pub(crate) fn remove(_fd: RawFd) -> Option<()> {
        None
    }

    #[inline(always)]
    pub(crate) fn wait(
        _epoll: &EpollFd,
        _timeout: Option<Duration>,
        _take: &mut impl FnMut(EpollEvent),
    ) -> Option<io::Result<()>> {
        None
    }
}
