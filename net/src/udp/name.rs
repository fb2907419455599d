//! Socket addresses, read from the bytes that the kernel writes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for the longest internet address, `sockaddr_in6`.
pub(super) const NAME_BYTES: usize = 32;

/// Reads a `sockaddr_in` (ip(7)) or a `sockaddr_in6` (ipv6(7)). `None` for any other.
pub(super) fn socket_addr(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(field(name, 0)?));
    let port = u16::from_be_bytes(field(name, 2)?);
    match family {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(field::<4>(name, 4)?);
            Some(SocketAddr::V4(SocketAddrV4::new(ip, port)))
        }
        libc::AF_INET6 => {
            // As the standard library: the flow label stays in the network's order.
            let flow = u32::from_ne_bytes(field(name, 4)?);
            let ip = Ipv6Addr::from(field::<16>(name, 8)?);
            let scope = u32::from_ne_bytes(field(name, 24)?);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
        }
        _ => None,
    }
}

/// The bytes of a field.
pub(super) fn field<const N: usize>(bytes: &[u8], start: usize) -> Option<[u8; N]> {
    bytes.get(start..start + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use socket2::SockAddr;

    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["127.0.0.1:80", "255.1.2.3:65535", "[::1]:7", "[fe80::1:2%3]:4000"] {
            let address: SocketAddr = text.parse().unwrap();
            let written = SockAddr::from(address);
            // SAFETY: the length is that of the address that the pointer refers to.
            let bytes = unsafe {
                std::slice::from_raw_parts(written.as_ptr().cast::<u8>(), written.len() as usize)
            };
            assert_eq!(socket_addr(bytes), Some(address));
            assert_eq!(socket_addr(&bytes[..bytes.len() / 2 - 2]), None, "cut short");
        }
        assert_eq!(socket_addr(&[]), None);
        assert_eq!(socket_addr(&[0; 16]), None);
    }
}
