//! Echo over TCP on loopback: annulus on both drivers, tokio, and loops without a runtime.
//!
//! Each server runs alone on one processor, in a process of its own, started afresh for every
//! measurement; the load generator has another processor and process; the parent sleeps. Rounds are
//! interleaved (A B C, A B C, ..) and the table shows medians over rounds. The figure to judge by
//! is the server's processor time per request: it hardly depends on who waits for whom.
//!
//! `cargo bench --bench echo -- --help` lists the options.

use std::io;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, error::Error};

mod support;

use support::load::{self, Plan, Waiting};
use support::options::{Options, USAGE};
use support::process::{self, Worker};
use support::report::{self, Sample, Series};
use support::servers::{LISTENING, REFUSED, Server};

/// The first argument of a child names its role.
const SERVER_ROLE: &str = "server";
const LOAD_ROLE: &str = "load";

/// What the processor argument of a child says when it is not to be pinned.
const UNPINNED: &str = "-";

/// A server starts in milliseconds; this long, and it hangs.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What a measurement may take beyond its warm-up and window.
const MEASURE_MARGIN: Duration = Duration::from_secs(20);

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let role = arguments.first().map(String::as_str);
    let result = match role {
        Some(SERVER_ROLE) => serve(&arguments[1..]),
        Some(LOAD_ROLE) => generate(&arguments[1..]),
        _ if arguments.iter().any(|argument| argument == "--help") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => measure_all(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo benchmark: {error}");
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
        let mut all: Vec<Series> =
            options.servers.iter().map(|&server| Series { server, samples: vec![] }).collect();
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
    let serving =
        Worker::spawn(&[SERVER_ROLE.to_owned(), places.server.clone(), server.name().to_owned()])?;
    let line = serving.line(START_LIMIT)?.ok_or(format!("{server} ended at its start"))?;
    if let Some(reason) = line.strip_prefix(REFUSED) {
        return Ok(Outcome::Refused(reason.to_owned()));
    }
    let address =
        line.strip_prefix(LISTENING).ok_or(format!("{server} said {line:?} at its start"))?;

    let loading = Worker::spawn(&[
        LOAD_ROLE.to_owned(),
        places.load.clone(),
        address.to_owned(),
        serving.id().to_string(),
        connections.to_string(),
        options.message_bytes.to_string(),
        options.warm_up().as_nanos().to_string(),
        options.window.as_nanos().to_string(),
    ])?;
    let line = loading
        .line(options.warm_up() + options.window + MEASURE_MARGIN)
        .map_err(|error| format!("{server}, {connections} connections: {error}"))?
        .ok_or(format!("{server}, {connections} connections: no measurement"))?;
    match line.strip_prefix(REFUSED) {
        Some(reason) => Ok(Outcome::NoLoad(reason.to_owned())),
        None => Ok(Outcome::Measured(line.parse()?)),
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

/// The role of a server: `CPU NAME`.
fn serve(arguments: &[String]) -> Result<(), Failure> {
    let [cpu, name] = arguments else { return Err("server CPU NAME".into()) };
    take_place(cpu)?;
    let server = Server::named(name).ok_or(format!("no server {name:?}"))?;
    // A server returns only if it could not start; later the parent kills it.
    if let Err(error) = server.serve() {
        println!("{REFUSED}{}", one_line(&*error));
    }
    Ok(())
}

/// The role of the load generator: `CPU ADDRESS PID CONNECTIONS BYTES WARM_UP_NS WINDOW_NS`.
fn generate(arguments: &[String]) -> Result<(), Failure> {
    let [cpu, address, server_pid, connections, message_bytes, warm_up_ns, window_ns] = arguments
    else {
        return Err("load CPU ADDRESS PID CONNECTIONS BYTES WARM_UP_NS WINDOW_NS".into());
    };
    take_place(cpu)?;
    let connections = connections.parse()?;
    let plan = Plan {
        address: address.parse()?,
        server_pid: server_pid.parse()?,
        connections,
        message_bytes: message_bytes.parse()?,
        waiting: Waiting::choose(connections, cpu != UNPINNED),
        warm_up: Duration::from_nanos(warm_up_ns.parse()?),
        window: Duration::from_nanos(window_ns.parse()?),
    };
    match load::open(&plan) {
        Ok((ring, echoes)) => println!("{}", load::run(&plan, ring, echoes)?),
        Err(error) => println!("{REFUSED}{}", one_line(&error)),
    }
    Ok(())
}

fn take_place(cpu: &str) -> Result<(), Failure> {
    process::end_with_parent();
    if cpu != UNPINNED {
        process::pin(cpu.parse()?)?;
    }
    Ok(())
}

/// What is told to the parent fits one line.
fn one_line(error: &dyn Error) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}
