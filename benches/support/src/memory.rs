//! The memory of a process, as the kernel accounts for it.

use std::{fs, io};

/// Of one process, or the sum over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub rss_bytes: u64,
    /// Shared pages count in parts.
    pub pss_bytes: u64,
    /// What only this process has, and has written.
    pub private_dirty_bytes: u64,
}

impl Memory {
    pub fn of_all(pids: &[u32]) -> io::Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let one = Self::parse(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?);
            sum.rss_bytes += one.rss_bytes;
            sum.pss_bytes += one.pss_bytes;
            sum.private_dirty_bytes += one.private_dirty_bytes;
        }
        Ok(sum)
    }

    /// What is missing is 0.
    fn parse(rollup: &str) -> Self {
        let bytes = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
            kib.unwrap_or(0) * 1024
        };
        Self {
            rss_bytes: bytes("Rss"),
            pss_bytes: bytes("Pss"),
            private_dirty_bytes: bytes("Private_Dirty"),
        }
    }

    /// What has been added since an earlier look, for each of so many.
    pub fn growth_each(self, earlier: Self, count: u64) -> Self {
        let each = |now: u64, before: u64| now.saturating_sub(before) / count.max(1);
        Self {
            rss_bytes: each(self.rss_bytes, earlier.rss_bytes),
            pss_bytes: each(self.pss_bytes, earlier.pss_bytes),
            private_dirty_bytes: each(self.private_dirty_bytes, earlier.private_dirty_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLLUP: &str = "55-7f ---p 00000000 00:00 0    [rollup]\n\
        Rss:                1024 kB\nPss:                 512 kB\nPss_Dirty:   4 kB\n\
        Private_Clean:        12 kB\nPrivate_Dirty:       100 kB\n";

    #[test]
    fn a_rollup_is_read_by_the_names_of_its_lines() {
        let memory = Memory::parse(ROLLUP);
        assert_eq!(memory.rss_bytes, 1024 * 1024);
        assert_eq!(memory.pss_bytes, 512 * 1024);
        assert_eq!(memory.private_dirty_bytes, 100 * 1024);
        assert_eq!(Memory::parse(""), Memory::default());
    }

    #[test]
    fn growth_is_shared_among_those_who_caused_it() {
        let before = Memory { rss_bytes: 100, pss_bytes: 50, private_dirty_bytes: 10 };
        let after = Memory { rss_bytes: 300, pss_bytes: 40, private_dirty_bytes: 30 };
        let each = Memory { rss_bytes: 20, pss_bytes: 0, private_dirty_bytes: 2 };
        assert_eq!(after.growth_each(before, 10), each);
    }
}
