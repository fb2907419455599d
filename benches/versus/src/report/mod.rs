//! What was measured, for people and for programs.

pub(crate) mod idle;
pub(crate) mod json;
pub(crate) mod machine;
pub(crate) mod plot;
mod ratio;
pub(crate) mod table;

use bench_support::figures::{Sample, median};

use crate::scenario::Scenario;
use crate::servers::Server;

/// From this share of a processor on, the load generator may be what limits a server.
const SATURATED: f64 = 0.9;

/// Two measurements differ by this much without a cause.
const LOAD_TOLERANCE: f64 = 1.03;

/// All measurements of a scenario.
pub(crate) struct Results {
    pub(crate) scenario: Scenario,
    /// As many as there were, which the machine may have limited.
    pub(crate) connections: u32,
    pub(crate) series: Vec<Series>,
}

/// The samples of one server, by round. A server that could not start has none.
pub(crate) struct Series {
    pub(crate) server: Server,
    pub(crate) samples: Vec<Sample>,
    /// Why it is measured no further.
    pub(crate) fault: Option<Fault>,
    /// If they were counted.
    pub(crate) calls_per_request: Option<f64>,
}

/// Why a server is not measured.
pub(crate) enum Fault {
    /// What it needs is not there.
    Refused(String),
    /// It did not do its work.
    Failed(String),
}

impl Fault {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Refused(text) | Self::Failed(text) => text,
        }
    }
}

impl Results {
    /// Those with anything to show.
    fn measured(&self) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(|series| !series.samples.is_empty())
    }
}

impl Series {
    pub(crate) fn new(server: Server) -> Self {
        Self { server, samples: vec![], fault: None, calls_per_request: None }
    }

    /// From here on it is not measured: half of its rounds would be compared with all of the
    /// others'.
    pub(crate) fn give_up(&mut self, fault: Fault) {
        self.samples.clear();
        self.fault = Some(fault);
    }

    fn fault_line(&self) -> Option<String> {
        let fault = self.fault.as_ref()?;
        Some(format!("{}: not measured: {}\n", self.server, fault.text()))
    }

    /// Of a series that was measured.
    pub(crate) fn median(&self, figure: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(figure)).unwrap_or(f64::NAN)
    }

    pub(crate) fn range(&self, figure: impl Fn(&Sample) -> f64) -> (f64, f64) {
        let values = self.samples.iter().map(figure);
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
    }

    /// Whether requests/s and latencies are the load generator's, not the server's.
    pub(crate) fn limited_by_load(&self) -> bool {
        let (load, server) = (self.median(Sample::load_us), self.median(Sample::server_us));
        self.median(Sample::load_busy) > SATURATED && load > server * LOAD_TOLERANCE
    }
}
