//! Keyed bytes: a stream whose byte at every offset is known from its key alone.

#[derive(Clone, Copy)]
pub(crate) struct Keyed(pub(crate) u64);

impl Keyed {
    /// The bytes from `offset` on.
    pub(crate) fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        let first = offset / WORD;
        let skipped = (offset % WORD) as usize;
        let words = (skipped + len).div_ceil(WORD as usize) as u64;
        let mut bytes: Vec<u8> = (first..first + words)
            .flat_map(|index| mix(self.0.wrapping_mul(ODD).wrapping_add(index)).to_le_bytes())
            .skip(skipped)
            .collect();
        bytes.truncate(len);
        bytes
    }

    /// Fails at the first byte that is not the stream's.
    pub(crate) fn check(self, offset: u64, got: &[u8]) -> Result<(), String> {
        let want = self.bytes(offset, got.len());
        let Some(at) = want.iter().zip(got).position(|(want, got)| want != got) else {
            return Ok(());
        };
        let end = (at + 16).min(got.len());
        let (want, got) = (&want[at..end], &got[at..end]);
        Err(format!("offset {}: want {want:02x?}, got {got:02x?}", offset + at as u64))
    }
}

/// Numbers that look random and are the same in every run.
#[derive(Clone)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    /// Those of one part of one connection.
    pub(crate) fn of(seed: u64, connection: u64, part: u64) -> Self {
        Self(mix(mix(seed).wrapping_add(8 * connection + part)))
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % bound
    }
}

/// The output function of SplitMix64: every bit of the input reaches every bit of the output.
fn mix(input: u64) -> u64 {
    let mut z = input.wrapping_add(ODD);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
const WORD: u64 = 8;
