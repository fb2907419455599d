//! What was measured, and how one process tells another.

use std::fmt;
use std::str::FromStr;

use crate::memory::Memory;

/// One measurement of one server.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    pub requests: u64,
    pub window_ns: u64,
    pub server_cpu_ns: u64,
    pub server_waited_ns: u64,
    /// How often a thread of the server was given a processor.
    pub server_switches: u64,
    pub load_cpu_ns: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    /// The server's at the end.
    pub memory: Memory,
}

impl Sample {
    pub fn requests_per_second(&self) -> f64 {
        self.requests as f64 * 1e9 / self.window_ns as f64
    }

    pub fn server_us(&self) -> f64 {
        self.server_cpu_ns as f64 / 1e3 / self.requests as f64
    }

    pub fn load_us(&self) -> f64 {
        self.load_cpu_ns as f64 / 1e3 / self.requests as f64
    }

    /// The share of the window in which the load generator worked.
    pub fn load_busy(&self) -> f64 {
        self.load_cpu_ns as f64 / self.window_ns as f64
    }

    /// The share of the window in which the server was ready to run and something else ran.
    pub fn server_waited(&self) -> f64 {
        self.server_waited_ns as f64 / self.window_ns as f64
    }

    /// The share of the window in which the server ran.
    pub fn server_busy(&self) -> f64 {
        self.server_cpu_ns as f64 / self.window_ns as f64
    }
}

/// One line, by which the load generator hands the sample to its parent.
impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, window_ns, server_cpu_ns, server_waited_ns, .. } = self;
        let Self { server_switches, load_cpu_ns, p50_ns, p99_ns, p999_ns, memory, .. } = self;
        let Memory { rss_bytes, pss_bytes, private_dirty_bytes } = memory;
        write!(formatter, "{requests} {window_ns} {server_cpu_ns} {server_waited_ns} ")?;
        write!(formatter, "{server_switches} {load_cpu_ns} {p50_ns} {p99_ns} {p999_ns} ")?;
        write!(formatter, "{rss_bytes} {pss_bytes} {private_dirty_bytes}")
    }
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let unknown = || format!("the load generator said {line:?}");
        let numbers = line.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>();
        let numbers: [u64; 12] =
            numbers.map_err(|_| unknown())?.try_into().map_err(|_| unknown())?;
        let [requests, window_ns, server_cpu_ns, server_waited_ns, server_switches, ..] = numbers;
        let [.., load_cpu_ns, p50_ns, p99_ns, p999_ns, rss_bytes, pss_bytes, private_dirty_bytes] =
            numbers;
        if requests == 0 {
            return Err("not one request was answered".to_owned());
        }
        Ok(Self {
            requests,
            window_ns,
            server_cpu_ns,
            server_waited_ns,
            server_switches,
            load_cpu_ns,
            p50_ns,
            p99_ns,
            p999_ns,
            memory: Memory { rss_bytes, pss_bytes, private_dirty_bytes },
        })
    }
}

/// What a measurement comes to when several took part in it: rates, and processors in use.
#[derive(Clone, Copy)]
pub struct Figures {
    pub per_second: f64,
    pub server_busy: f64,
    pub load_busy: f64,
}

impl Figures {
    pub fn server_us(&self) -> f64 {
        self.server_busy * 1e6 / self.per_second
    }
}

/// One line, by which a load hands the figures to its parent.
impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.per_second, self.server_busy, self.load_busy)
    }
}

impl FromStr for Figures {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let numbers: Result<Vec<f64>, _> = line.split(' ').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[per_second, server_busy, load_busy]) => {
                Ok(Self { per_second, server_busy, load_busy })
            }
            _ => Err(format!("the load said {line:?}")),
        }
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_read_as_it_is_written() {
        let memory = Memory { rss_bytes: 9, pss_bytes: 10, private_dirty_bytes: 11 };
        let sample = Sample {
            requests: 1,
            window_ns: 2,
            server_cpu_ns: 3,
            server_waited_ns: 4,
            server_switches: 12,
            load_cpu_ns: 5,
            p50_ns: 6,
            p99_ns: 7,
            p999_ns: 8,
            memory,
        };
        assert_eq!(sample.to_string().parse(), Ok(sample));
        assert!("1 2 3".parse::<Sample>().is_err());
        assert!(
            Sample::default().to_string().parse::<Sample>().is_err(),
            "no request is no sample"
        );
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
    }
}
