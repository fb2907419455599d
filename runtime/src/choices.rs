//! Bytes read as choices. A model that is steered by them is driven by a fuzzer, which learns from
//! what they lead to, and by seeds, which need none. Only in builds for tests.

/// What is left of the bytes. Past their end every choice is zero.
pub(crate) struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Choices<'a> {
        Choices(bytes)
    }

    /// True when nothing is left to choose.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub(crate) fn is_heads(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Of so many things, one. Of none, zero.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        let chosen = usize::from(u16::from_le_bytes(self.array()));
        chosen % count.max(1)
    }

    pub(crate) fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number of any magnitude, each as likely, and often next to a power of two.
    pub(crate) fn magnitude(&mut self) -> u64 {
        let (bits, near) = (u32::from(self.byte()) % 64, self.byte());
        match near % 4 {
            0 => 1 << bits,
            1 => (1 << bits) - 1,
            2 => (1_u64 << bits).saturating_add(u64::from(near / 4)),
            _ => self.number() >> (63 - bits),
        }
    }

    /// So many bytes at most.
    pub(crate) fn bytes(&mut self, count_max: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count_max.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left, as text of which a part may not be.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    fn array<const COUNT: usize>(&mut self) -> [u8; COUNT] {
        let mut array = [0; COUNT];
        let taken = self.bytes(COUNT);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}

/// Runs a model with so many inputs, the same each time. A failure names the input.
#[cfg(test)]
pub(crate) fn with_seeds(cases: u64, model: impl Fn(&[u8])) {
    struct Case(u64);

    impl Drop for Case {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed with seed {}", self.0);
            }
        }
    }

    for seed in 1..=cases {
        let _case = Case(seed);
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
        };
        let length = next() % 600;
        model(&(0..length).map(|_| next() as u8).collect::<Vec<_>>());
    }
}

/// Runs a model with the inputs that a fuzzer has found for it, of the folder `fuzz/corpus`, which
/// packages do not have.
#[cfg(test)]
pub(crate) fn with_kept(target: &str, model: impl Fn(&[u8])) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");
    let Ok(inputs) = std::fs::read_dir(std::path::Path::new(folder).join(target)) else { return };
    for input in inputs {
        let path = input.expect("an entry of a folder").path();
        eprintln!("{}", path.display());
        model(&std::fs::read(&path).expect("an input"));
    }
}
