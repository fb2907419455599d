//! Echo over TCP on loopback: annulus on both drivers, tokio, and loops without a runtime.
//!
//! Each server runs alone on one processor, in a process of its own, started afresh for every
//! measurement; the load generator has another processor and process; the parent sleeps. Rounds are
//! interleaved (A B C, A B C, ..) and the table shows medians over rounds. The figure to judge by
//! is the server's processor time per request: it hardly depends on who waits for whom.
//!
//! `cargo run --release -p versus -- --help` lists the options.

use std::process::ExitCode;
use std::{env, io};

mod options;
mod report;
mod servers;
mod work;

use crate::options::{Options, USAGE};
use crate::report::Series;
use crate::servers::Server;
use crate::work::Work;
use bench_support::BUFFER_BYTES;
use bench_support::children::{
    self, Answer, Failure, LOAD_ROLE, MEASURE_MARGIN, SERVER_ROLE, UNPINNED,
};
use bench_support::figures::Sample;
use bench_support::load::{self, Plan};
use bench_support::process;

const ECHO: Work = Work::Echo { buffer_bytes: BUFFER_BYTES };

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let role = arguments.first().map(String::as_str);
    let result = match role {
        Some(SERVER_ROLE) => serve(&arguments[1..]),
        Some(LOAD_ROLE) => load::play(&arguments[1..]),
        _ if arguments.iter().any(|argument| argument == "--help") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => measure_all(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versus: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The role of the parent: starts one server and one load generator at a time.
fn measure_all(arguments: &[String]) -> Result<(), Failure> {
    let options = Options::parse(arguments).map_err(|error| format!("{error}\n\n{USAGE}"))?;
    let places = Places::choose()?;
    let descriptors = process::raise_descriptor_limit()?;
    // Both ends hold one for each connection, and a few of their own.
    let connections_max = descriptors.saturating_sub(64);

    for &connections in &options.connections {
        if u64::from(connections) > connections_max {
            println!(
                "{connections} connections: skipped, the limit on descriptors is {descriptors}"
            );
            continue;
        }
        let mut all: Vec<Series> = options
            .servers
            .iter()
            .filter(|server| server.does(ECHO))
            .map(|&server| Series { server, samples: vec![] })
            .collect();
        let mut refused = vec![];
        for round in 1..=options.rounds {
            for series in &mut all {
                if refused.contains(&series.server) {
                    continue;
                }
                match measure(series.server, connections, &options, &places)? {
                    Outcome::Measured(sample) => series.samples.push(sample),
                    Outcome::Refused(reason) => {
                        println!("{} cannot start here: {reason}", series.server);
                        refused.push(series.server);
                    }
                    Outcome::NoLoad(reason) => {
                        println!("nothing measured: the load generator needs io_uring: {reason}");
                        return Ok(());
                    }
                }
            }
            eprintln!("{connections} connections: round {round} of {}", options.rounds);
        }
        println!(
            "\n{connections} connections, {} bytes each way, {} rounds of {:?}, {}",
            options.message_bytes, options.rounds, options.window, places.text,
        );
        println!("{}", report::table(&all));
    }
    Ok(())
}

enum Outcome {
    Measured(Sample),
    Refused(String),
    NoLoad(String),
}

/// One measurement: a fresh server, a fresh load generator; both are gone when it returns.
fn measure(
    server: Server,
    connections: u32,
    options: &Options,
    places: &Places,
) -> Result<Outcome, Failure> {
    let serving = match children::start_server(&[
        places.server.clone(),
        server.name.to_owned(),
        ECHO.to_string(),
    ])? {
        Answer::Given(serving) => serving,
        Answer::Refused(reason) => return Ok(Outcome::Refused(reason)),
    };
    let plan = Plan {
        place: places.load.clone(),
        servers: vec![serving.target()],
        connections,
        message_bytes: options.message_bytes,
        warm_up: options.warm_up(),
        window: options.window,
    };
    let limit = options.warm_up() + options.window + MEASURE_MARGIN;
    let answer = children::answer(&plan.start()?, limit)
        .map_err(|error| format!("{server}, {connections} connections: {error}"))?;
    match answer {
        Answer::Given(line) => Ok(Outcome::Measured(line.parse()?)),
        Answer::Refused(reason) => Ok(Outcome::NoLoad(reason)),
    }
}

/// Which processors the two children run on.
struct Places {
    server: String,
    load: String,
    text: String,
}

impl Places {
    fn choose() -> io::Result<Self> {
        Ok(match process::allowed_cpus()?[..] {
            [server, load, ..] => Self {
                server: server.to_string(),
                load: load.to_string(),
                text: format!("server on cpu {server}, load on cpu {load}"),
            },
            _ => {
                println!(
                    "one processor only: server and load share it, so compare CPU, not requests/s"
                );
                Self {
                    server: UNPINNED.to_owned(),
                    load: UNPINNED.to_owned(),
                    text: "not pinned".to_owned(),
                }
            }
        })
    }
}

/// The role of a server: `PLACE NAME WORK`.
fn serve(arguments: &[String]) -> Result<(), Failure> {
    let [place, name, work] = arguments else { return Err("server PLACE NAME WORK".into()) };
    children::take_place(place)?;
    let server = Server::named(name).ok_or(format!("no server {name:?}"))?;
    // A server returns only if it could not start; later the parent kills it.
    if let Err(error) = server.serve(work.parse()?) {
        children::refuse(&*error);
    }
    Ok(())
}
