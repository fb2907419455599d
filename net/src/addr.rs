//! What can be turned into socket addresses; names are looked up off the shard.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use annulus_runtime::io::offload;

use crate::shortage::remedy;

/// Something that names one or more socket addresses.
///
/// Addresses and texts such as `"127.0.0.1:80"` or `"[::1]:80"` are taken as they are. Other texts
/// are names, such as `"localhost:80"` or `("localhost", 80)`: a thread of the blocking pool asks
/// the system's resolver, `getaddrinfo(3)`, and the shard goes on meanwhile.
///
/// The trait cannot be implemented outside of this crate.
pub trait ToSocketAddrs: sealed::Named {}

impl<T: sealed::Named + ?Sized> ToSocketAddrs for T {}

/// The addresses behind a name, in the resolver's order.
pub(crate) async fn resolve(named: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
    let found = match named.named()? {
        sealed::Name::One(address) => vec![address],
        sealed::Name::Known(addresses) => addresses,
        sealed::Name::Lookup(host, port) => lookup(host, port).await?,
    };
    if found.is_empty() { Err(no_address()) } else { Ok(found) }
}

/// The first of the addresses behind a name. Allocates nothing where that is given.
pub(crate) async fn resolve_first(named: impl ToSocketAddrs) -> io::Result<SocketAddr> {
    let first = match named.named()? {
        sealed::Name::One(address) => Some(address),
        sealed::Name::Known(addresses) => addresses.first().copied(),
        sealed::Name::Lookup(host, port) => lookup(host, port).await?.first().copied(),
    };
    first.ok_or_else(no_address)
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the name stands for no address at all")
}

async fn lookup(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    offload(move || {
        let found = std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), port));
        found.map(Iterator::collect).map_err(|error| {
            io::Error::new(error.kind(), format!("looking up {host:?} failed: {error}"))
        })
    })
    .await
}

/// What the kernel says of a socket of ours.
pub(crate) fn internet_address(address: socket2::SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().ok_or_else(|| io::Error::other("the socket has no internet address"))
}

/// Says why an address cannot be bound, and what to do about it.
pub(crate) fn explain_bind(error: io::Error, address: SocketAddr) -> io::Error {
    let why = match (error.kind(), remedy(&error)) {
        (_, Some(remedy)) => remedy,
        (io::ErrorKind::AddrInUse, _) => "another socket has the port; port 0 takes a free one",
        (io::ErrorKind::PermissionDenied, _) => "ports below 1024 need CAP_NET_BIND_SERVICE",
        (io::ErrorKind::AddrNotAvailable, _) => "no interface of this machine has the address",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("binding {address} failed: {error}: {why}"))
}

mod sealed {
    use super::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, io};

    pub enum Name {
        One(SocketAddr),
        Known(Vec<SocketAddr>),
        Lookup(String, u16),
    }

    pub trait Named {
        fn named(&self) -> io::Result<Name>;
    }

    macro_rules! known {
        ($($address:ty),*) => {$(
            impl Named for $address {
                fn named(&self) -> io::Result<Name> {
                    Ok(Name::One(SocketAddr::from(*self)))
                }
            }
        )*};
    }

    known!(SocketAddr, SocketAddrV4, SocketAddrV6);
    known!((IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16));

    impl Named for [SocketAddr] {
        fn named(&self) -> io::Result<Name> {
            Ok(Name::Known(self.to_vec()))
        }
    }

    impl<const N: usize> Named for [SocketAddr; N] {
        fn named(&self) -> io::Result<Name> {
            self.as_slice().named()
        }
    }

    impl Named for Vec<SocketAddr> {
        fn named(&self) -> io::Result<Name> {
            self.as_slice().named()
        }
    }

    impl Named for (&str, u16) {
        fn named(&self) -> io::Result<Name> {
            let (host, port) = *self;
            Ok(match host.parse::<IpAddr>() {
                Ok(ip) => Name::One(SocketAddr::new(ip, port)),
                Err(_) => Name::Lookup(host.to_owned(), port),
            })
        }
    }

    impl Named for (String, u16) {
        fn named(&self) -> io::Result<Name> {
            (self.0.as_str(), self.1).named()
        }
    }

    impl Named for str {
        fn named(&self) -> io::Result<Name> {
            if let Ok(address) = self.parse() {
                return Ok(Name::One(address));
            }
            let parts = self.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            let parts = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
            let (host, port) = parts.ok_or_else(|| {
                let expected = "expected HOST:PORT, such as 127.0.0.1:7000";
                let text = format!("{self:?} is no socket address: {expected}");
                io::Error::new(io::ErrorKind::InvalidInput, text)
            })?;
            Ok(Name::Lookup(host.to_owned(), port))
        }
    }

    impl Named for String {
        fn named(&self) -> io::Result<Name> {
            self.as_str().named()
        }
    }

    impl<T: Named + ?Sized> Named for &T {
        fn named(&self) -> io::Result<Name> {
            (**self).named()
        }
    }
}
