//! What textbooks claim about I/O multiplexing, measured on this machine.
//!
//! Six parts, each a module that says what it measures: what a ready event costs (`ready`), what a
//! change of interest costs (`interest`), who is woken for a connection (`herd`), threads against
//! loops (`echo`), edges against levels (`edges`), ways to wake a thread (`wakes`). No runtime is
//! involved. Rounds are interleaved; tables and curves show medians and quartiles over rounds.
//!
//! `cargo run --release -p multiplexing -- --help` lists the options; `docs/multiplexing.md` says
//! what came out.

use std::process::ExitCode;
use std::{env, fs};

mod echo;
mod edges;
mod figure;
mod herd;
mod interest;
mod options;
mod plot;
mod ready;
mod ring;
mod stats;
mod sys;
mod wakes;

use crate::figure::Figure;
use crate::options::{Options, Part, USAGE};
use bench_support::children::{Failure, LOAD_ROLE, SERVER_ROLE};
use bench_support::{load, process};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some(SERVER_ROLE) => echo::serve(&arguments[1..]),
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
            eprintln!("multiplexing: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure_all(arguments: &[String]) -> Result<(), Failure> {
    let options = Options::parse(arguments).map_err(|error| format!("{error}\n\n{USAGE}"))?;
    let descriptors = process::raise_descriptor_limit()?;
    let machine = machine();
    println!("{machine}");
    fs::create_dir_all(&options.out)?;
    for &part in &options.parts {
        let figures = match part {
            Part::Ready => ready::measure(options.effort, descriptors)?,
            Part::Interest => interest::measure(options.effort, descriptors)?,
            Part::Herd => herd::measure(options.effort)?,
            Part::Echo => echo::measure(options.effort, descriptors)?,
            Part::Edges => edges::measure(options.effort)?,
            Part::Wakes => wakes::measure(options.effort)?,
        };
        for figure in figures {
            show(&figure, &options, &machine)?;
        }
    }
    println!("\ncurves are in {}", options.out.display());
    Ok(())
}

fn show(figure: &Figure, options: &Options, machine: &str) -> Result<(), Failure> {
    println!("{}", figure.table());
    let file = |ending| options.out.join(format!("multiplexing-{}.{ending}", figure.name));
    fs::write(file("json"), figure.json(machine))?;
    plot::write(figure, &file("svg"))
}

/// What was measured on, in one line.
fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let count = process::allowed_cpus().map_or(0, |cpus| cpus.len());
    format!("Linux {}, {count} x {model}", kernel.trim())
}
