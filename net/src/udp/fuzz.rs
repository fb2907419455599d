//! What the kernel writes beside datagrams: addresses and control messages, which may be anything.

use std::mem::MaybeUninit;

use socket2::{SockAddr, SockAddrStorage};

use super::name::socket_addr;
use super::offload::{SegmentControl, joined_segment_bytes};
use crate::choices::Choices;

/// A control message (cmsg(3)) begins with its length, its level and its type.
const HEADER_BYTES: usize = 16;

/// Addresses and control messages of these bytes.
pub(crate) fn controls(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    match choices.byte() % 4 {
        0 => name(choices.rest()),
        1 => {
            // As it comes: nothing is known of it but that it has an answer.
            let found = joined_segment_bytes(choices.rest());
            assert!(found.is_none_or(|bytes| bytes > 0));
        }
        2 => segments(choices.number() as u16),
        _ => messages(&mut choices),
    }
}

/// The same address as the crate that makes them reads.
fn name(bytes: &[u8]) {
    let mut storage = MaybeUninit::<SockAddrStorage>::zeroed();
    let length = bytes.len().min(size_of::<SockAddrStorage>());
    // SAFETY: so many bytes are in both.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), storage.as_mut_ptr().cast(), length) };
    // SAFETY: zeros and bytes are an address of some family.
    let storage = unsafe { storage.assume_init() };
    // SAFETY: so long it is, and what is behind are zeros.
    let known = unsafe { SockAddr::new(storage, length as libc::socklen_t) };
    // What is cut short is none; of an IPv4 address the last eight bytes mean nothing.
    let whole = match i32::from(known.family()) {
        libc::AF_INET => length >= 8,
        libc::AF_INET6 => length >= 28,
        _ => false,
    };
    let bytes = &bytes[..length];
    assert_eq!(socket_addr(bytes), known.as_socket().filter(|_| whole), "{bytes:?}");
}

fn segments(segment_bytes: u16) {
    let control = SegmentControl::new(segment_bytes);
    let bytes = control.bytes();
    // SAFETY: it only counts.
    let length = unsafe { libc::CMSG_LEN(2) } as usize;
    // SAFETY: as above.
    let space = unsafe { libc::CMSG_SPACE(2) } as usize;
    assert_eq!(bytes.len(), space);
    assert_eq!(bytes[..8], length.to_ne_bytes());
    assert_eq!(bytes[16..18], segment_bytes.to_ne_bytes());
}

/// Well-formed messages, of which some tell a length, and the last is cut.
fn messages(choices: &mut Choices<'_>) {
    let (mut bytes, mut expected) = (Vec::new(), None);
    for _ in 0..choices.below(5) {
        let data = choices.number().to_ne_bytes();
        let data = &data[..choices.below(9)];
        let is_ours = choices.is_heads();
        let kind = if is_ours { libc::UDP_GRO } else { i32::from(choices.byte()) };
        let level = libc::SOL_UDP;
        bytes.extend((HEADER_BYTES + data.len()).to_ne_bytes());
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        if kind == libc::UDP_GRO && expected.is_none() {
            // The first that is of this kind counts, whether or not it makes sense.
            let told = data.first_chunk().map_or(0, |chunk| i32::from_ne_bytes(*chunk));
            expected = Some(usize::try_from(told).ok().filter(|&told| told > 0));
        }
    }
    assert_eq!(joined_segment_bytes(&bytes), expected.flatten());
    let cut = bytes.len().saturating_sub(choices.magnitude() as usize % 64);
    let found = joined_segment_bytes(&bytes[..cut]);
    assert!(found.is_none() || found == expected.flatten());
}

#[cfg(test)]
mod tests {
    use super::controls;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn what_comes_beside_datagrams_may_be_anything() {
        with_kept("controls", controls);
        with_seeds(5000, controls);
        // Families that are known, so that their fields are looked at.
        with_seeds(2000, |bytes| {
            let family = if bytes.len() % 2 == 0 { libc::AF_INET } else { libc::AF_INET6 };
            let of_name = [&[0][..], &(family as u16).to_ne_bytes(), bytes].concat();
            controls(&of_name);
        });
    }
}
