//! The command line of the benchmark.

use std::path::PathBuf;
use std::time::Duration;

use bench_support::options::{SECONDS_MAX, number};

use crate::scenario::{self, Scenario};
use crate::servers::{self, Server};

const USAGE: &str = "\
cargo run --release -p versus -- [OPTIONS]

  --quick               one very short round of everything: does it run at all?
  --scenario A,B,..     what is measured, or `all` (default: those with a star)
  --runtime A,B,..      servers, or `all` (default: those that matter in the scenario)
  --rounds N            rounds, each of which measures every server once (default 5)
  --seconds S           length of one measurement (default 1)
  --syscalls            one more measurement of each server, under perf, that counts its calls
  --out DIR             where results.json and the plots go (default target/versus)

Ratios need the servers that they are to: tokio, floor-ring, floor-epoll.";

pub(crate) fn usage() -> String {
    let mut text = format!("{USAGE}\n\nscenarios:\n");
    for scenario in scenario::ALL {
        let star = if scenario.main { '*' } else { ' ' };
        text += &format!("  {:<15}{star} {}\n", scenario.name, scenario.about);
    }
    let servers: Vec<_> = servers::ALL.iter().map(|server| server.name).collect();
    text + "\nruntimes: " + &servers.join(", ")
}

#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) window: Duration,
    pub(crate) scenarios: Vec<Scenario>,
    /// None: those that matter.
    runtimes: Option<Vec<Server>>,
    pub(crate) out: PathBuf,
    pub(crate) quick: bool,
    pub(crate) calls: bool,
}

impl Options {
    /// # Errors
    /// A sentence for the user.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self {
            rounds: 5,
            window: Duration::from_secs(1),
            scenarios: scenario::ALL.iter().copied().filter(|scenario| scenario.main).collect(),
            runtimes: None,
            out: PathBuf::from("target/versus"),
            quick: false,
            calls: false,
        };
        let mut named = false;
        let mut arguments = arguments.iter();
        while let Some(option) = arguments.next() {
            let mut value =
                || arguments.next().map(String::as_str).ok_or(format!("{option} needs a value"));
            match option.as_str() {
                "--quick" => options.quick = true,
                "--rounds" => options.rounds = number(option, value()?, 1, 1000)?,
                "--seconds" => {
                    let seconds = number(option, value()?, 0.01, SECONDS_MAX)?;
                    options.window = Duration::from_secs_f64(seconds);
                }
                "--scenario" => {
                    options.scenarios =
                        all_or("scenario", value()?, scenario::ALL, Scenario::named)?;
                    named = true;
                }
                "--runtime" => {
                    let runtimes = all_or("runtime", value()?, servers::ALL, Server::named)?;
                    options.runtimes = Some(runtimes);
                }
                "--syscalls" => options.calls = true,
                "--out" => options.out = PathBuf::from(value()?),
                _ => return Err(format!("no option {option:?}")),
            }
        }
        if options.quick {
            options.rounds = 1;
            options.window = Duration::from_millis(30);
            if !named {
                options.scenarios = scenario::ALL.to_vec();
            }
        }
        Ok(options)
    }

    /// The servers of a scenario, in the order of the table.
    pub(crate) fn servers(&self, scenario: Scenario) -> Vec<Server> {
        let chosen = |server: &Server| match &self.runtimes {
            Some(named) => named.contains(server) && server.does(scenario.work),
            None => scenario.asks(*server),
        };
        servers::ALL.iter().copied().filter(chosen).collect()
    }

    /// Before a measurement counts: the pages are touched, the branch predictors trained.
    pub(crate) fn warm_up(&self) -> Duration {
        (self.window / 5).min(Duration::from_millis(300))
    }
}

/// Names with commas between them, or all there are.
fn all_or<T: Copy>(
    what: &str,
    text: &str,
    all: &[T],
    named: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, String> {
    if text == "all" {
        return Ok(all.to_vec());
    }
    text.split(',').map(|name| named(name).ok_or(format!("no {what} {name:?}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn scenarios_and_runtimes_are_chosen_by_name() {
        let options = parse("--scenario spin,message-16k --runtime tokio --rounds 3").unwrap();
        let names: Vec<_> = options.scenarios.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names, ["spin", "message-16k"]);
        assert_eq!(options.rounds, 3);
        let servers = options.servers(options.scenarios[0]);
        assert_eq!(servers.iter().map(|server| server.name).collect::<Vec<_>>(), ["tokio"]);
    }

    #[test]
    fn what_is_not_there_is_refused_by_its_name() {
        assert!(parse("--scenario pingpong").unwrap_err().contains("\"pingpong\""));
        assert!(parse("--runtime seastar").unwrap_err().contains("\"seastar\""));
        assert!(parse("--rounds 0").unwrap_err().contains("--rounds"));
        assert!(parse("--seconds").unwrap_err().contains("--seconds"));
        assert!(parse("--fast").unwrap_err().contains("--fast"));
    }

    #[test]
    fn quick_is_everything_for_a_moment() {
        let options = parse("--quick").unwrap();
        assert_eq!(options.scenarios.len(), scenario::ALL.len());
        assert_eq!(options.rounds, 1);
        assert_eq!(parse("--quick --scenario spin").unwrap().scenarios.len(), 1);
    }

    #[test]
    fn servers_that_spin_take_part_where_they_may() {
        let options = parse("--scenario all").unwrap();
        let takes_part = |scenario, server: &str| {
            let servers = options.servers(Scenario::named(scenario).unwrap());
            servers.iter().any(|candidate| candidate.name == server)
        };
        assert!(takes_part("spin", "annulus-uring-spin") && takes_part("spin", "tokio"));
        assert!(!takes_part("spin", "annulus-uring"));
        assert!(!takes_part("pingpong-64", "annulus-uring-spin"));
        assert!(takes_part("pingpong-64", "annulus-uring-owned"));
        assert!(!takes_part("pingpong-1", "annulus-uring-owned"));
    }
}
