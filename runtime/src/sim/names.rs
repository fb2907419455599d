//! Who has which address of a simulated network, and who may have it beside others.
//!
//! The rules are those of Linux (`inet_csk_get_port`, `inet_rcv_saddr_equal`): addresses overlap if
//! they are the same or one of them stands for all; `[::]` stands for all of IPv4 as well, unless
//! it was told not to. Sockets that are bound have `SO_REUSEADDR`, as every listener here. So two
//! may be bound to what overlaps, but only one of them listens, unless both share the address
//! (`SO_REUSEPORT`). Any address is there to be bound, and any port, whoever asks.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::network::{SocketId, errno};

/// The ports that nobody asked for by number (RFC 6335).
const EPHEMERAL_PORTS: RangeInclusive<u16> = 49_152..=u16::MAX;

#[derive(Default)]
pub(super) struct Names {
    /// Those who have a port, in the order in which they got it.
    by_port: BTreeMap<u16, Vec<Name>>,
    /// The last that was given to somebody who did not mind.
    latest_port: u16,
}

struct Name {
    owner: SocketId,
    /// One of IPv4 is never told as one of IPv6.
    ip: IpAddr,
    only_v6: bool,
    /// `SO_REUSEPORT`.
    shares: bool,
    hold: Hold,
}

/// What somebody has an address for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Bound,
    Listening,
    /// Has got it by a connect to there.
    Connected(SocketAddr),
}

/// How a socket is bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Binding {
    /// Others may have the same address, if they say so too (`SO_REUSEPORT`).
    pub shares: bool,
    /// `[::]` does not stand for addresses of IPv4 (`IPV6_V6ONLY`).
    pub only_v6: bool,
}

impl Names {
    /// Takes an address. Answers which port it is.
    pub(super) fn bind(
        &mut self,
        owner: SocketId,
        address: SocketAddr,
        Binding { shares, only_v6 }: Binding,
    ) -> io::Result<u16> {
        let ip = address.ip().to_canonical();
        let name = Name { owner, ip, only_v6, shares, hold: Hold::Bound };
        let port = match address.port() {
            0 => self.free_port(|others| !others.iter().any(|other| name.overlaps(other))),
            port => Some(port).filter(|_| self.admits(port, &name)),
        };
        let port = port.ok_or_else(|| errno(libc::EADDRINUSE))?;
        self.by_port.entry(port).or_default().push(name);
        Ok(port)
    }

    /// Takes an address from which nobody is connected to there. Answers which port it is.
    pub(super) fn connect(
        &mut self,
        owner: SocketId,
        from: IpAddr,
        to: SocketAddr,
    ) -> io::Result<u16> {
        let (ip, hold) = (from.to_canonical(), Hold::Connected(to));
        let port = self.free_port(|others| {
            others.iter().all(|other| match other.hold {
                Hold::Connected(_) => (other.ip, other.hold) != (ip, hold),
                // Linux leaves those ports alone, whatever their address.
                Hold::Bound | Hold::Listening => false,
            })
        });
        let port = port.ok_or_else(|| errno(libc::EADDRNOTAVAIL))?;
        let name = Name { owner, ip, only_v6: false, shares: false, hold };
        self.by_port.entry(port).or_default().push(name);
        Ok(port)
    }

    /// Somebody who is bound begins to listen.
    pub(super) fn listen(&mut self, owner: SocketId, port: u16) -> io::Result<()> {
        // Others that are bound may have begun in between.
        let own = self.find(owner, port).ok_or_else(|| errno(libc::EINVAL))?;
        if !self.admits(port, own) {
            return Err(errno(libc::EADDRINUSE));
        }
        self.change(owner, port, |name| name.hold = Hold::Listening);
        Ok(())
    }

    /// Has others share the address of somebody who has it already.
    pub(super) fn share(&mut self, owner: SocketId, port: u16) {
        self.change(owner, port, |name| name.shares = true);
    }

    pub(super) fn release(&mut self, owner: SocketId, port: u16) {
        if let Some(names) = self.by_port.get_mut(&port) {
            names.retain(|name| name.owner != owner);
            if names.is_empty() {
                self.by_port.remove(&port);
            }
        }
    }

    /// Those who listen for connections to there: at this very address, or else at all of its
    /// family's, or else at all there are.
    pub(super) fn listeners_at(&self, to: SocketAddr) -> Vec<SocketId> {
        let ip = to.ip().to_canonical();
        let names = self.by_port.get(&to.port()).into_iter().flatten();
        let listening = names.filter(|name| name.hold == Hold::Listening);
        let ranked: Vec<_> = listening.filter_map(|name| Some((name.rank(ip)?, name))).collect();
        let best = ranked.iter().map(|(rank, _)| *rank).min();
        let best = ranked.into_iter().filter(|(rank, _)| Some(*rank) == best);
        best.map(|(_, name)| name.owner).collect()
    }

    /// Whether the name may be had beside those who have the port.
    fn admits(&self, port: u16, name: &Name) -> bool {
        let others = self.by_port.get(&port).into_iter().flatten();
        !others.filter(|other| other.owner != name.owner).any(|other| name.conflicts(other))
    }

    /// The next port of those that nobody asked for whose owners are such. `None`: there is none.
    fn free_port(&mut self, suits: impl Fn(&[Name]) -> bool) -> Option<u16> {
        let (first, last) = (*EPHEMERAL_PORTS.start(), *EPHEMERAL_PORTS.end());
        let latest = self.latest_port.max(first - 1);
        let port = (latest..last)
            .map(|port| port + 1)
            .chain(first..=latest)
            .find(|port| suits(self.by_port.get(port).map_or(&[], Vec::as_slice)))?;
        self.latest_port = port;
        Some(port)
    }

    fn find(&self, owner: SocketId, port: u16) -> Option<&Name> {
        self.by_port.get(&port)?.iter().find(|name| name.owner == owner)
    }

    fn change(&mut self, owner: SocketId, port: u16, change: impl Fn(&mut Name)) {
        let names = self.by_port.get_mut(&port).into_iter().flatten();
        names.filter(|name| name.owner == owner).for_each(change);
    }
}

impl Name {
    /// Whether it cannot be had beside the other.
    fn conflicts(&self, other: &Name) -> bool {
        // An address that a connect has taken was taken without `SO_REUSEADDR`.
        self.overlaps(other) && !(self.shares && other.shares) && other.hold != Hold::Bound
    }

    fn overlaps(&self, other: &Name) -> bool {
        self.rank(other.ip).is_some() || other.rank(self.ip).is_some()
    }

    /// How exactly it stands for an address: 0 is best. `None`: it does not.
    fn rank(&self, ip: IpAddr) -> Option<u8> {
        if self.ip == ip {
            return Some(0);
        }
        if !self.ip.is_unspecified() {
            return None;
        }
        match (self.ip, ip) {
            (IpAddr::V6(_), IpAddr::V4(_)) => (!self.only_v6).then_some(2),
            (IpAddr::V4(_), IpAddr::V6(_)) => None,
            _ => Some(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "10.0.0.1:80";

    fn errno_of<T>(answer: io::Result<T>) -> Option<i32> {
        answer.err().and_then(|error| error.raw_os_error())
    }

    #[test]
    fn a_connect_without_a_free_port_fails_and_one_to_elsewhere_does_not() {
        let mut names = Names::default();
        let (client, server) = (IpAddr::from([10, 0, 0, 9]), SERVER.parse().unwrap());
        let ports: Vec<u16> = EPHEMERAL_PORTS
            .map(|port| names.connect(port.into(), client, server).unwrap())
            .collect();
        assert_eq!(ports, EPHEMERAL_PORTS.collect::<Vec<_>>());
        assert_eq!(errno_of(names.connect(1, client, server)), Some(libc::EADDRNOTAVAIL));
        names.connect(1, client, "10.0.0.2:80".parse().unwrap()).unwrap();
        // Whose is free again is given again.
        names.release(50_000, 50_000);
        assert_eq!(names.connect(2, client, server).unwrap(), 50_000);
    }

    #[test]
    fn a_bind_without_a_free_port_fails() {
        let mut names = Names::default();
        let anywhere = "0.0.0.0:0".parse().unwrap();
        for owner in EPHEMERAL_PORTS {
            names.bind(owner.into(), anywhere, Binding::default()).unwrap();
        }
        let one_more = names.bind(1, anywhere, Binding::default());
        assert_eq!(errno_of(one_more), Some(libc::EADDRINUSE));
        let connected = names.connect(1, IpAddr::from([10, 0, 0, 9]), SERVER.parse().unwrap());
        assert_eq!(errno_of(connected), Some(libc::EADDRNOTAVAIL));
    }

    #[test]
    fn who_listens_more_exactly_gets_the_connection() {
        let mut names = Names::default();
        let shared = Binding { shares: true, only_v6: false };
        let bound = ["[::]:80", "0.0.0.0:80", SERVER, "[2001:db8::1]:80"];
        for (owner, address) in (0..).zip(bound) {
            names.bind(owner, address.parse().unwrap(), shared).unwrap();
            names.listen(owner, 80).unwrap();
        }
        let to = |address: &str| names.listeners_at(address.parse().unwrap());
        assert_eq!(to(SERVER), [2]);
        assert_eq!(to("[::ffff:10.0.0.1]:80"), [2]);
        assert_eq!(to("10.0.0.2:80"), [1]);
        assert_eq!(to("[2001:db8::1]:80"), [3]);
        assert_eq!(to("[2001:db8::2]:80"), [0]);
        assert!(to("10.0.0.1:81").is_empty());
        names.release(1, 80);
        let to = |address: &str| names.listeners_at(address.parse().unwrap());
        assert_eq!(to("10.0.0.2:80"), [0]);
    }
}
