//! The table of all rows: `cargo bench -p micro -- --help`.
//!
//! Rounds are interleaved: each measures a row once on every runtime, side by side, so that what
//! drifts meets all of them. The table shows medians over the rounds.

use std::env;
use std::io::{self, Write};
use std::process::{Command, ExitCode};

use bench_support::figures::median;
use bench_support::options::number;

use micro::place;
use micro::row::{self, Row};
use micro::subjects::{self, Entry};

const USAGE: &str = "\
cargo bench -p micro -- [OPTIONS]

  --quick             one short round: does it run at all?
  --rounds N          rounds, each of which measures every runtime once (default 15)
  --rows A,B,..       only these rows (--list names them)
  --runtimes A,B,..   only these runtimes
  --list              the rows, the runtimes, and no measurement";

/// The row that counts bytes has a program of its own.
const PARKED: &str = "parked";
const PARKED_TASKS: &str = "100000";
const PARKED_TARGET: f64 = 72.0;

/// A quick round does this part of the operations.
const QUICK_PART: u64 = 50;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match Options::parse(&arguments).map_err(Failure::from).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("micro: {error}\n\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    what: Do,
    quick: bool,
    rounds: usize,
    rows: Vec<&'static Row>,
    parked: bool,
    runtimes: Vec<Entry>,
}

enum Do {
    Measure,
    List,
    Help,
}

impl Options {
    /// # Errors
    /// A sentence for the user.
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self {
            what: Do::Measure,
            // `cargo bench` says `--bench`; `cargo test` says nothing, and wants to know only
            // whether this still runs.
            quick: arguments.is_empty(),
            rounds: 15,
            rows: row::ALL.iter().collect(),
            parked: true,
            runtimes: subjects::ALL.to_vec(),
        };
        let mut arguments = arguments.iter();
        while let Some(option) = arguments.next() {
            let mut value =
                || arguments.next().map(String::as_str).ok_or(format!("{option} needs a value"));
            match option.as_str() {
                "--bench" => {}
                "--help" => options.what = Do::Help,
                "--list" => options.what = Do::List,
                "--quick" => options.quick = true,
                "--rounds" => options.rounds = number(option, value()?, 1, 1000)?,
                "--rows" => {
                    let names: Vec<&str> = value()?.split(',').collect();
                    options.parked = names.contains(&PARKED);
                    let row = |name: &&str| Row::named(name).ok_or(format!("no row {name:?}"));
                    let named = names.iter().filter(|&&name| name != PARKED);
                    options.rows = named.map(row).collect::<Result<_, _>>()?;
                }
                "--runtimes" => {
                    let runtime = |name| Entry::named(name).ok_or(format!("no runtime {name:?}"));
                    options.runtimes =
                        value()?.split(',').map(runtime).collect::<Result<_, _>>()?;
                }
                _ => return Err(format!("no option {option:?}")),
            }
        }
        if options.quick {
            options.rounds = 1;
        }
        Ok(options)
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    match options.what {
        Do::Help => println!("{USAGE}"),
        Do::List => list(),
        Do::Measure => measure_all(options)?,
    }
    Ok(())
}

fn list() {
    for row in row::ALL {
        println!("{:<16}{}, {}", row.name, row.text, row.unit);
    }
    println!("{PARKED:<16}memory of a task that waits, bytes\n");
    subjects::ALL.iter().for_each(|runtime| println!("{runtime}"));
}

fn measure_all(options: &Options) -> Result<(), Failure> {
    place::settle()?;
    print!("{:<16}{:<38}{:<6}", "row", "", "unit");
    options.runtimes.iter().for_each(|runtime| print!("{runtime:>15}"));
    println!("{:>9}", "target");
    for row in &options.rows {
        let mut figures: Vec<Vec<f64>> = vec![vec![]; options.runtimes.len()];
        for _ in 0..options.rounds {
            for (runtime, figures) in options.runtimes.iter().zip(&mut figures) {
                let part = if options.quick { QUICK_PART } else { 1 };
                figures.extend(runtime.measure(row, (row.operations / part).max(4)));
            }
        }
        let medians = figures.into_iter().map(|figures| median(figures.into_iter()));
        line(row.name, row.text, row.unit, medians, row.target)?;
    }
    if options.parked {
        let bytes = options.runtimes.iter().map(parked).collect::<Result<Vec<_>, _>>()?;
        let bytes = bytes.into_iter().map(Some);
        line(PARKED, "memory of a task that waits", "bytes", bytes, Some(PARKED_TARGET))?;
    }
    Ok(())
}

fn line(
    name: &str,
    text: &str,
    unit: &str,
    medians: impl Iterator<Item = Option<f64>>,
    target: Option<f64>,
) -> io::Result<()> {
    let cell = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.1}"));
    // Its first letters may take two bytes, which the width counts as one.
    print!("{name:<16}{text:<38}{unit:<6}");
    medians.for_each(|median| print!("{:>15}", cell(median)));
    println!("{:>9}", cell(target));
    io::stdout().flush()
}

/// Asks the program that counts bytes.
fn parked(runtime: &Entry) -> Result<f64, Failure> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_parked")).args([runtime.name, PARKED_TASKS]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
