//! The command line of the benchmark.

use std::time::Duration;

use bench_support::options::{SECONDS_MAX, number};

use crate::servers::{self, Server};

pub(crate) const USAGE: &str = "\
cargo run --release -p versus -- [OPTIONS]

  --quick               one short round: does it run at all?
  --rounds N            rounds, each of which measures every server once (default 5)
  --seconds S           length of one measurement (default 2)
  --connections A,B,..  numbers of connections (default 1,64)
  --bytes N             bytes of a message (default 64)
  --servers A,B,..      of annulus-uring, annulus-epoll, tokio, floor-ring, floor-epoll
                        (default: all; ratios need tokio and floor-ring)";

/// More connections than this exhaust the ports of one loopback address.
const CONNECTIONS_MAX: u32 = 16_000;
const BYTES_MAX: usize = 16 << 20;

pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) window: Duration,
    pub(crate) connections: Vec<u32>,
    pub(crate) message_bytes: usize,
    pub(crate) servers: Vec<Server>,
}

impl Options {
    /// # Errors
    /// A sentence for the user.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self {
            rounds: 5,
            window: Duration::from_secs(2),
            connections: vec![1, 64],
            message_bytes: 64,
            servers: servers::ALL.to_vec(),
        };
        // `cargo bench` says `--bench`. `cargo test --benches` says nothing, and wants to know only
        // whether this still runs.
        let mut quick = arguments.is_empty();
        let mut arguments = arguments.iter();
        while let Some(option) = arguments.next() {
            let mut value =
                || arguments.next().map(String::as_str).ok_or(format!("{option} needs a value"));
            match option.as_str() {
                "--bench" => {}
                "--quick" => quick = true,
                "--rounds" => options.rounds = number(option, value()?, 1, 1000)?,
                "--seconds" => {
                    let seconds = number(option, value()?, 0.01, SECONDS_MAX)?;
                    options.window = Duration::from_secs_f64(seconds);
                }
                "--connections" => {
                    let connection = |text| number(option, text, 1, CONNECTIONS_MAX);
                    options.connections =
                        value()?.split(',').map(connection).collect::<Result<_, _>>()?;
                }
                "--bytes" => options.message_bytes = number(option, value()?, 1, BYTES_MAX)?,
                "--servers" => {
                    let server = |name| Server::named(name).ok_or(format!("no server {name:?}"));
                    options.servers = value()?.split(',').map(server).collect::<Result<_, _>>()?;
                }
                _ => return Err(format!("no option {option:?}")),
            }
        }
        if quick {
            options.rounds = 1;
            options.window = Duration::from_millis(200);
        }
        Ok(options)
    }

    /// Before a measurement counts: the pages are touched, the branch predictors trained.
    pub(crate) fn warm_up(&self) -> Duration {
        (self.window / 5).min(Duration::from_millis(300))
    }
}
