//! A histogram of durations. Its buckets grow with the value; each is 1.6 % wide.

/// Buckets per doubling. 64 keep the error of a quantile at 1.6 %, less than two runs differ by.
const BUCKETS_PER_DOUBLING: u64 = 64;
const SHIFT: u32 = BUCKETS_PER_DOUBLING.trailing_zeros();
const BUCKETS: usize = ((64 - SHIFT as usize) + 1) * BUCKETS_PER_DOUBLING as usize;

/// Counts durations in nanoseconds.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, value_ns: u64) {
        self.counts[bucket_of(value_ns)] += 1;
        self.total += 1;
    }

    /// Forgets everything: the warm-up is over.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    /// The value that `fraction` of the records do not exceed; 0 when there are none.
    pub fn quantile(&self, fraction: f64) -> u64 {
        let rank = (self.total as f64 * fraction).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_bound(bucket);
            }
        }
        0
    }
}

/// Below `BUCKETS_PER_DOUBLING` each value has its own bucket; above, the leading bits choose.
fn bucket_of(value: u64) -> usize {
    let doublings = (u64::BITS - value.leading_zeros()).saturating_sub(SHIFT + 1);
    (u64::from(doublings) * BUCKETS_PER_DOUBLING + (value >> doublings)) as usize
}

/// The largest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doublings = (bucket / BUCKETS_PER_DOUBLING).saturating_sub(1);
    let leading = bucket - doublings * BUCKETS_PER_DOUBLING;
    (leading << doublings) + ((1 << doublings) - 1)
}
