//! Several datagrams by one call: the kernel cuts what is sent (GSO, since Linux 4.18) and joins
//! what is received (GRO, since 5.0). See udp(7).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use super::name::field;

/// What one call has received: a datagram, or several of one sender, one after the other.
///
/// ```
/// # let received = annulus_net::udp::Segments {
/// #     bytes: 5, segment_bytes: 2, peer: ([127, 0, 0, 1], 9).into(),
/// # };
/// # let buffer = *b"aabbc";
/// for datagram in buffer[..received.bytes].chunks(received.segment_bytes) {
///     assert!(datagram.len() <= 2);
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Bytes in the buffer.
    pub bytes: usize,
    /// Length of each datagram; the last may be shorter. Never 0.
    pub segment_bytes: usize,
    /// Who sent them.
    pub peer: SocketAddr,
}

/// Room for what a receive is told beside the bytes.
pub(super) const CONTROL_BYTES: usize = 128;

/// A control message (cmsg(3)) begins with its length, of a word, its level and its type.
const WORD: usize = size_of::<usize>();
const HEADER_BYTES: usize = WORD + 8;

/// The control message that has a send cut into segments.
#[repr(align(8))]
pub(super) struct SegmentControl([u8; HEADER_BYTES + WORD]);

impl SegmentControl {
    pub(super) fn new(segment_bytes: u16) -> SegmentControl {
        let mut bytes = [0; HEADER_BYTES + WORD];
        let length = HEADER_BYTES + size_of::<u16>();
        bytes[..WORD].copy_from_slice(&length.to_ne_bytes());
        bytes[WORD..WORD + 4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        bytes[WORD + 4..WORD + 8].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
        bytes[HEADER_BYTES..HEADER_BYTES + 2].copy_from_slice(&segment_bytes.to_ne_bytes());
        SegmentControl(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The length of the segments that were joined, if several were.
pub(super) fn joined_segment_bytes(mut control: &[u8]) -> Option<usize> {
    loop {
        let length = usize::from_ne_bytes(field(control, 0)?);
        let level = i32::from_ne_bytes(field(control, WORD)?);
        let kind = i32::from_ne_bytes(field(control, WORD + 4)?);
        if length < HEADER_BYTES {
            return None;
        }
        if (level, kind) == (libc::SOL_UDP, libc::UDP_GRO) {
            let bytes = i32::from_ne_bytes(field(control.get(..length)?, HEADER_BYTES)?);
            return usize::try_from(bytes).ok().filter(|&bytes| bytes > 0);
        }
        control = control.get(length.checked_next_multiple_of(WORD)?..)?;
    }
}

/// Checks what a send is to be cut into. `None` where one datagram takes all.
pub(super) fn check_segments(
    socket: BorrowedFd<'_>,
    bytes: usize,
    segment_bytes: usize,
) -> io::Result<Option<u16>> {
    if segment_bytes == 0 {
        let text = "datagrams of no bytes cannot be cut from a buffer: segment_bytes is 0";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    if bytes <= segment_bytes {
        return Ok(None);
    }
    // An older kernel would send it all as one datagram, without an error.
    static OFFERED: OnceLock<bool> = OnceLock::new();
    if !OFFERED.get_or_init(|| option(socket, libc::UDP_SEGMENT).is_ok()) {
        return Err(missing("UDP_SEGMENT", "4.18"));
    }
    match u16::try_from(segment_bytes) {
        Ok(segment_bytes) => Ok(Some(segment_bytes)),
        Err(_) => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
    }
}

/// Switches the joining of received datagrams.
pub(super) fn set_receive_offload(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    // SAFETY: the value and its length agree and outlive the call, which reads them.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if answer == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT) if on => Err(missing("UDP_GRO", "5.0")),
        Some(libc::ENOPROTOOPT) => Ok(()),
        _ => Err(error),
    }
}

/// Whether received datagrams are joined.
pub(super) fn receive_offload(socket: BorrowedFd<'_>) -> io::Result<bool> {
    match option(socket, libc::UDP_GRO) {
        Ok(value) => Ok(value != 0),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn option(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value and its length agree and outlive the call, which writes them.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if answer == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn missing(name: &str, since: &str) -> io::Error {
    let text = format!(
        "this kernel has no {name}, which Linux has since {since}: use single sends \
         and receives"
    );
    io::Error::new(io::ErrorKind::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER_BYTES + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    #[test]
    fn the_length_of_segments_is_found_among_other_messages() {
        let other = message(libc::SOL_SOCKET, 29, &[7; 13]);
        let joined = message(libc::SOL_UDP, libc::UDP_GRO, &1200i32.to_ne_bytes());
        assert_eq!(joined_segment_bytes(&joined), Some(1200));
        assert_eq!(joined_segment_bytes(&[other.clone(), joined].concat()), Some(1200));
        assert_eq!(joined_segment_bytes(&other), None);
        assert_eq!(joined_segment_bytes(&[]), None);
    }

    #[test]
    fn control_messages_of_no_sense_are_ignored() {
        let joined = message(libc::SOL_UDP, libc::UDP_GRO, &0i32.to_ne_bytes());
        assert_eq!(joined_segment_bytes(&joined), None);
        for cut in 0..joined.len() {
            assert_eq!(joined_segment_bytes(&joined[..cut]), None);
        }
        for length in [0, HEADER_BYTES - 1, usize::MAX] {
            let mut bytes = message(0, 0, &[0; 16]);
            bytes[..WORD].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(joined_segment_bytes(&bytes), None);
        }
    }

    #[test]
    fn a_segment_length_is_written_as_the_kernel_reads_it() {
        let control = SegmentControl::new(1400);
        assert_eq!(
            control.bytes(),
            message(libc::SOL_UDP, libc::UDP_SEGMENT, &1400u16.to_ne_bytes())
        );
    }
}
