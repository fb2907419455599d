//! Servers on annulus, on other runtimes and on none, under the same load on loopback.
//!
//! Each server runs alone on one processor, in a process of its own, started afresh for every
//! measurement; the load generator has another processor and process; the parent sleeps. Rounds are
//! interleaved (A B C, A B C, ..) and the table shows medians over rounds. The figure to judge by
//! is the server's processor time per request: it hardly depends on who waits for whom.
//!
//! `cargo run --release -p versus -- --help` lists scenarios, runtimes and options.

use std::process::ExitCode;
use std::{env, fs, io, thread};

mod calls;
mod options;
mod report;
mod scenario;
mod servers;
mod work;

use crate::calls::Counter;
use crate::options::{Options, usage};
use crate::report::machine::Machine;
use crate::report::{Fault, Results, Series, idle, json, plot, table};
use crate::scenario::Scenario;
use crate::servers::{Server, Side};
use bench_support::children::{
    self, Answer, Failure, LOAD_ROLE, MEASURE_MARGIN, SERVER_ROLE, Serving, UNPINNED,
};
use bench_support::figures::Sample;
use bench_support::load::{self, Plan};
use bench_support::process::{self, Worker};

/// What a process has open besides its connections.
const DESCRIPTORS_OWN: u64 = 64;

/// More connections than this take too long to make where only a moment is measured.
const QUICK_CONNECTIONS_MAX: u32 = 256;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let role = arguments.first().map(String::as_str);
    let result = match role {
        Some(SERVER_ROLE) => serve(&arguments[1..]),
        Some(LOAD_ROLE) => load::play(&arguments[1..]),
        _ if arguments.iter().any(|argument| argument == "--help") => {
            println!("{}", usage());
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
    let options = Options::parse(arguments).map_err(|error| format!("{error}\n\n{}", usage()))?;
    let places = Places::choose()?;
    let descriptors = process::raise_descriptor_limit()?;
    let machine = Machine::look(&places.text);
    println!("{machine}");
    let mut all = vec![];
    for &scenario in &options.scenarios {
        let mut connections = scenario.connections;
        if options.quick {
            connections = connections.min(QUICK_CONNECTIONS_MAX);
        }
        // Both ends hold one for each connection, and a few of their own.
        let connections_max = descriptors.saturating_sub(DESCRIPTORS_OWN);
        if u64::from(connections) > connections_max && !scenario.is_about_memory() {
            println!("{scenario}: left out, as the limit on descriptors is {descriptors}\n");
            continue;
        }
        connections = connections.min(connections_max as u32);
        let Some(results) = measure_scenario(scenario, connections, &options, &places) else {
            continue;
        };
        println!(
            "{scenario}: {}. {} connections, {} rounds of {:?}, {}",
            scenario.about, results.connections, options.rounds, options.window, places.text,
        );
        let memory = scenario.is_about_memory();
        println!("{}", if memory { idle::table(&results) } else { table::table(&results) });
        all.push(results);
        write_out(&all, &machine, &options)?;
    }
    let ours = |series: &&Series| {
        series.server.side() != Side::Peer && matches!(series.fault, Some(Fault::Failed(_)))
    };
    let failed = all.iter().flat_map(|results| &results.series).filter(ours).count();
    if failed > 0 {
        return Err(format!("{failed} of annulus's servers or of the floors failed").into());
    }
    Ok(())
}

/// What there is so far, so that a run that is cut short leaves what it has.
fn write_out(all: &[Results], machine: &Machine, options: &Options) -> io::Result<()> {
    fs::create_dir_all(&options.out)?;
    fs::write(options.out.join("machine.txt"), machine.to_string())?;
    fs::write(options.out.join("results.json"), json::results(all, machine, options))?;
    all.last().map_or(Ok(()), |last| {
        fs::write(options.out.join(format!("{}.svg", last.scenario)), plot::svg(last))
    })
}

/// None where there can be no load, which it says.
fn measure_scenario(
    scenario: Scenario,
    connections: u32,
    options: &Options,
    places: &Places,
) -> Option<Results> {
    let series = options.servers(scenario).into_iter().map(Series::new).collect();
    let mut results = Results { scenario, connections, series };
    for round in 1..=options.rounds {
        for series in results.series.iter_mut().filter(|series| series.fault.is_none()) {
            match measure(series.server, scenario, connections, options, places) {
                Ok(Outcome::Measured(sample)) => series.samples.push(sample),
                Ok(Outcome::Refused(reason)) => series.give_up(Fault::Refused(reason)),
                Ok(Outcome::NoLoad(reason)) => {
                    println!("{scenario}: left out: {reason}\n");
                    return None;
                }
                Err(error) => series.give_up(Fault::Failed(error.to_string())),
            }
        }
        eprintln!("{scenario}: round {round} of {}", options.rounds);
    }
    if options.calls {
        for series in results.series.iter_mut().filter(|series| series.fault.is_none()) {
            match count_calls(series.server, scenario, connections, options, places) {
                Ok(calls) => series.calls_per_request = Some(calls),
                Err(error) => println!("{}: calls are not counted: {error}", series.server),
            }
        }
    }
    Some(results)
}

enum Outcome {
    Measured(Sample),
    Refused(String),
    NoLoad(String),
}

/// One measurement: a fresh server, a fresh load generator; both are gone when it returns.
fn measure(
    server: Server,
    scenario: Scenario,
    connections: u32,
    options: &Options,
    places: &Places,
) -> Result<Outcome, Failure> {
    let serving = match start(server, scenario, places)? {
        Answer::Given(serving) => serving,
        Answer::Refused(reason) => return Ok(Outcome::Refused(reason)),
    };
    let load = plan(&serving, scenario, connections, options, places).start()?;
    finish(&load, options)
}

/// As `measure`, with a counter beside it. It disturbs, so that nothing else is taken from it.
fn count_calls(
    server: Server,
    scenario: Scenario,
    connections: u32,
    options: &Options,
    places: &Places,
) -> Result<f64, Failure> {
    let Answer::Given(serving) = start(server, scenario, places)? else {
        return Err("the server cannot start".into());
    };
    let load = plan(&serving, scenario, connections, options, places).start()?;
    thread::sleep(options.warm_up());
    let counter = Counter::start(serving.target().pid, options.window)?;
    let Outcome::Measured(sample) = finish(&load, options)? else {
        return Err("there is no load".into());
    };
    Ok(counter.finish()? / sample.requests_per_second())
}

fn start(server: Server, scenario: Scenario, places: &Places) -> Result<Answer<Serving>, Failure> {
    let (name, work) = (server.name.to_owned(), scenario.work.to_string());
    children::start_server(&[places.server.clone(), name, work])
}

fn plan(
    serving: &Serving,
    scenario: Scenario,
    connections: u32,
    options: &Options,
    places: &Places,
) -> Plan {
    Plan {
        place: places.load.clone(),
        servers: vec![serving.target()],
        connections,
        traffic: scenario.traffic,
        warm_up: options.warm_up(),
        window: options.window,
    }
}

fn finish(load: &Worker, options: &Options) -> Result<Outcome, Failure> {
    let limit = options.warm_up() + options.window + MEASURE_MARGIN;
    Ok(match children::answer(load, limit)? {
        Answer::Given(line) => Outcome::Measured(line.parse()?),
        Answer::Refused(reason) => Outcome::NoLoad(reason),
    })
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
