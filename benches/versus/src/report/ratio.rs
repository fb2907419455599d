//! One server by another.

use bench_support::figures::{Sample, median};

use super::{Results, Series};
use crate::servers::Side;

/// CPU and requests/s by those of another server, where both were measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) cpu: Option<f64>,
    pub(crate) requests: Option<f64>,
}

impl Ratio {
    /// The medians of the ratios of each round, whose measurements lie side by side, so that what
    /// drifts between rounds cancels out.
    fn of(series: &Series, other: Option<&Series>) -> Self {
        let ratio = |figure: fn(&Sample) -> f64| {
            let pairs = series.samples.iter().zip(&other?.samples);
            median(pairs.map(|(mine, theirs)| figure(mine) / figure(theirs)))
        };
        Self { cpu: ratio(Sample::server_us), requests: ratio(Sample::requests_per_second) }
    }

    pub(crate) fn to_tokio(series: &Series, results: &Results) -> Self {
        Self::of(series, results.named("tokio"))
    }

    /// The floor of the interface that the server's name says it is on; io_uring's for all others.
    pub(crate) fn to_floor(series: &Series, results: &Results) -> Self {
        let floor = match series.server.name {
            name if name.ends_with("-spin") => "floor-ring-spin",
            name if name.contains("epoll") => "floor-epoll",
            _ => "floor-ring",
        };
        Self::of(series, results.named(floor).or_else(|| results.named("floor-ring")))
    }

    pub(crate) fn to_best_peer(series: &Series, results: &Results) -> Self {
        Self::of(series, best_peer(results))
    }
}

/// The best of the peers beside tokio: the fastest one where a scenario is about speed, otherwise
/// the cheapest.
pub(crate) fn best_peer(results: &Results) -> Option<&Series> {
    let others = results.measured().filter(|series| {
        series.server.side() == Side::Peer
            && !["tokio", "tokio-multi"].contains(&series.server.name)
    });
    let price = |series: &Series| {
        if results.scenario.is_about_speed() {
            -series.median(Sample::requests_per_second)
        } else {
            series.median(Sample::server_us)
        }
    };
    others.min_by(|one, other| price(one).total_cmp(&price(other)))
}

impl Results {
    fn named(&self, name: &str) -> Option<&Series> {
        self.measured().find(|series| series.server.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;
    use crate::servers::Server;

    /// So many µs of CPU a request, in each round, and requests in a window of one second.
    fn series(name: &str, rounds: &[(u64, u64)]) -> Series {
        let sample = |&(us, requests): &(u64, u64)| Sample {
            requests,
            window_ns: 1_000_000_000,
            server_cpu_ns: us * requests * 1000,
            load_cpu_ns: requests * 1000,
            ..Sample::default()
        };
        let mut series = Series::new(Server::named(name).expect("a server of the table"));
        series.samples = rounds.iter().map(sample).collect();
        series
    }

    fn results(series: Vec<Series>) -> Results {
        let scenario = Scenario::named("pingpong-64").expect("a scenario of the table");
        Results { scenario, connections: 64, series }
    }

    #[test]
    fn a_ratio_is_the_median_of_the_ratios_of_the_rounds() {
        // The machine was twice as slow in the second round, for both.
        let ours = series("annulus-uring", &[(3, 200), (6, 100), (3, 200)]);
        let tokio = series("tokio", &[(4, 100), (8, 50), (5, 100)]);
        let results = results(vec![ours, tokio]);
        let ratio = Ratio::to_tokio(&results.series[0], &results);
        assert_eq!(ratio, Ratio { cpu: Some(0.75), requests: Some(2.0) });
    }

    #[test]
    fn there_is_no_ratio_to_what_was_not_measured() {
        let results = results(vec![series("annulus-uring", &[(3, 1)]), series("tokio", &[])]);
        assert_eq!(Ratio::to_tokio(&results.series[0], &results), Ratio::default());
        assert_eq!(Ratio::to_best_peer(&results.series[0], &results), Ratio::default());
    }

    #[test]
    fn the_floor_is_that_of_the_servers_interface() {
        let results = results(vec![
            series("annulus-uring", &[(6, 1)]),
            series("annulus-epoll", &[(6, 1)]),
            series("floor-ring", &[(3, 1)]),
            series("floor-epoll", &[(4, 1)]),
        ]);
        let cpu = |index: usize| Ratio::to_floor(&results.series[index], &results).cpu;
        assert_eq!((cpu(0), cpu(1)), (Some(2.0), Some(1.5)));
    }
}
