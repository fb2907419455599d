//! Keyed bytes: a stream whose byte at every offset is known from its key alone.

/// An endless stream of bytes; two keys give two unrelated streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keyed(pub(crate) u64);

impl Keyed {
    /// Writes the bytes from `offset` on into the buffer.
    pub(crate) fn fill(self, offset: u64, buf: &mut [u8]) {
        let mut index = offset / WORD;
        let mut skipped = (offset % WORD) as usize;
        let mut rest = buf;
        while !rest.is_empty() {
            let word = self.word(index);
            let len = rest.len().min(word.len() - skipped);
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&word[skipped..skipped + len]);
            rest = later;
            index += 1;
            skipped = 0;
        }
    }

    /// The bytes from `offset` on.
    pub(crate) fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(offset, &mut bytes);
        bytes
    }

    /// Fails at the first byte that is not the stream's.
    #[track_caller]
    pub(crate) fn check(self, offset: u64, got: &[u8]) {
        let want = self.bytes(offset, got.len());
        if want == got {
            return;
        }
        let at = want.iter().zip(got).position(|(want, got)| want != got).unwrap_or(0);
        let end = (at + 16).min(got.len());
        panic!(
            "stream {:#x}: wrong byte at offset {}: want {:02x?}, got {:02x?}",
            self.0,
            offset + at as u64,
            &want[at..end],
            &got[at..end],
        );
    }

    /// Where in `offset..=offset + len` the stream continues with these bytes.
    pub(crate) fn find(self, offset: u64, len: usize, bytes: &[u8]) -> Option<u64> {
        let window = self.bytes(offset, len + bytes.len());
        let at = window.windows(bytes.len()).position(|candidate| candidate == bytes)?;
        Some(offset + at as u64)
    }

    /// A position at the start of the stream.
    pub(crate) fn cursor(self) -> Cursor {
        Cursor { keyed: self, offset: 0 }
    }

    /// A position within the stream.
    pub(crate) fn cursor_at(self, offset: u64) -> Cursor {
        Cursor { keyed: self, offset }
    }

    fn word(self, index: u64) -> [u8; WORD as usize] {
        mix(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index)).to_le_bytes()
    }
}

/// How far a stream has been written or checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    keyed: Keyed,
    pub(crate) offset: u64,
}

impl Cursor {
    /// The next bytes of the stream.
    pub(crate) fn next(&mut self, len: usize) -> Vec<u8> {
        let bytes = self.keyed.bytes(self.offset, len);
        self.offset += len as u64;
        bytes
    }

    /// Fails unless these are the next bytes of the stream.
    #[track_caller]
    pub(crate) fn check(&mut self, got: &[u8]) {
        self.keyed.check(self.offset, got);
        self.offset += got.len() as u64;
    }
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    /// The next number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % bound
    }
}

// The output function of SplitMix64: every bit of the input reaches every bit of the output.
fn mix(input: u64) -> u64 {
    let mut z = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const WORD: u64 = 8;
