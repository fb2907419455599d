//! What the kernel writes in front of a datagram, which may be anything.

use super::{CONTROL_BYTES, CONTROL_START, Datagram, NAME_BYTES, NAME_START, PAYLOAD_START};
use crate::buf::Pool;

/// Larger than what is in front, and small enough to be filled often.
const BUFFER_BYTES: u32 = 512;

/// A buffer of the pool with these bytes.
pub(crate) fn datagrams(bytes: &[u8]) {
    let pool = Pool::listed(1, BUFFER_BYTES).expect("memory for a pool");
    let buffer = pool.take().expect("a pool that nobody has used");
    let bytes = &bytes[..bytes.len().min(BUFFER_BYTES as usize)];
    pool.with_taken(buffer, |memory| {
        for (place, byte) in memory.iter_mut().zip(bytes) {
            place.write(*byte);
        }
    });
    let datagram = Datagram::parse(pool.lend(buffer, bytes.len() as u32));
    assert_eq!(datagram.is_some(), bytes.len() >= PAYLOAD_START, "what is cut short has no shape");
    let Some(datagram) = datagram else {
        assert!(pool.take().is_some(), "its buffer is lost");
        return;
    };
    let word = |index: usize| {
        let word = bytes[index * 4..][..4].try_into().expect("four bytes");
        u32::from_ne_bytes(word) as usize
    };
    let name = &bytes[NAME_START..][..word(0).min(NAME_BYTES)];
    let control = &bytes[CONTROL_START..][..word(1).min(CONTROL_BYTES)];
    let payload = &bytes[PAYLOAD_START..];
    assert_eq!(datagram.name(), name);
    assert_eq!(datagram.control(), control);
    assert_eq!(datagram.payload(), &payload[..word(2).min(payload.len())]);
    drop(datagram);
    assert!(pool.take().is_some(), "its buffer is lost");
}

#[cfg(test)]
mod tests {
    use super::datagrams;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn a_datagram_is_what_lies_within_its_buffer() {
        with_kept("datagrams", datagrams);
        with_seeds(2000, datagrams);
        with_seeds(2000, |bytes| {
            // Lengths that are near those of the parts.
            let mut bytes = [&[0; 16][..], bytes, &[0; 4]].concat();
            for word in 0..3 {
                let length = u32::from(bytes[16 + word]);
                bytes[word * 4..][..4].copy_from_slice(&length.to_ne_bytes());
            }
            datagrams(&bytes);
        });
    }
}
