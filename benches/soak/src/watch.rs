//! What is watched from outside: descriptors and memory of a process, over time.

use std::{fs, io};

use bench_support::memory::Memory;

/// One look at a process.
#[derive(Clone, Copy)]
pub(crate) struct Look {
    pub(crate) seconds: f64,
    pub(crate) descriptors: u64,
    /// Connections that were open then, or a moment before.
    pub(crate) open: u64,
    pub(crate) rss_kib: f64,
}

/// All looks at one process, in their order.
#[derive(Default)]
pub(crate) struct Watched {
    looks: Vec<Look>,
}

impl Watched {
    pub(crate) fn look(&mut self, pid: u32, seconds: f64, open: u64) -> io::Result<()> {
        let rss_bytes = Memory::of_all(&[pid])?.rss_bytes;
        if rss_bytes == 0 {
            return Err(io::Error::other(format!("the kernel tells no memory of process {pid}")));
        }
        self.looks.push(Look {
            seconds,
            open,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
            rss_kib: rss_bytes as f64 / 1024.0,
        });
        Ok(())
    }

    pub(crate) fn first(&self) -> Look {
        self.looks[0]
    }

    pub(crate) fn last(&self) -> Look {
        self.looks[self.looks.len() - 1]
    }

    pub(crate) fn most(&self, what: impl Fn(&Look) -> f64) -> f64 {
        self.looks.iter().map(what).fold(0.0, f64::max)
    }

    /// How many looks there are between two times.
    pub(crate) fn count(&self, from_s: f64, to_s: f64) -> usize {
        self.between(from_s, to_s).count()
    }

    /// How much it grows in a minute, by least squares over the looks between two times.
    pub(crate) fn per_minute(&self, from_s: f64, to_s: f64, what: impl Fn(&Look) -> f64) -> f64 {
        let looks = self.between(from_s, to_s);
        slope(&looks.map(|look| (look.seconds / 60.0, what(look))).collect::<Vec<_>>())
    }

    fn between(&self, from_s: f64, to_s: f64) -> impl Iterator<Item = &Look> {
        self.looks.iter().filter(move |look| look.seconds >= from_s && look.seconds <= to_s)
    }
}

/// The slope of the line that is nearest to all points; 0 of fewer than two.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
    let together: f64 = points.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    let alone: f64 = points.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
    if points.len() < 2 || alone == 0.0 { 0.0 } else { together / alone }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Watched {
        pub(crate) fn of(looks: impl IntoIterator<Item = Look>) -> Self {
            Self { looks: looks.into_iter().collect() }
        }
    }

    #[test]
    fn the_slope_is_that_of_the_line() {
        let line: Vec<_> = (0..10).map(|x| (f64::from(x), 3.0 * f64::from(x) + 7.0)).collect();
        assert!((slope(&line) - 3.0).abs() < 1e-9);
        assert_eq!(slope(&[(1.0, 5.0)]), 0.0);
        assert_eq!(slope(&[]), 0.0);
    }
}
