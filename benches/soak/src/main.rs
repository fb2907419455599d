//! `soak MINUTES [uring|epoll|both]`: servers on annulus under churn, slow peers, resets,
//! half-closes, dropped futures, moves, aborts and panics, on both drivers at once, each in a
//! process of its own beside its load. Told every ten seconds; a table at the end; fails on wrong
//! bytes, on descriptors that are left, on memory that grows, and on a load or looks that have not
//! taken place.

mod keyed;
mod load;
mod plan;
mod probe;
mod report;
mod server;
mod soak;
mod tally;
mod traffic;
mod watch;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use annulus::Driver;
use bench_support::children::{Failure, LOAD_ROLE, SERVER_ROLE, refuse, take_place};
use bench_support::{options, process};

/// So that connections are in each state at any time, and two cores are not full: on loopback a
/// port of a connection that has ended is free again after a second.
const CONNECTIONS_PER_SECOND: u64 = 400;
const MINUTES_MAX: f64 = 7.0 * 24.0 * 60.0;
const USAGE: &str = "soak MINUTES [uring|epoll|both]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) if [Some(&SERVER_ROLE), Some(&LOAD_ROLE)].contains(&words.first()) => {
            refuse(&*failure);
            ExitCode::FAILURE
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// True if nothing was found wrong.
fn run(words: &[&str]) -> Result<bool, Failure> {
    match *words {
        [SERVER_ROLE, place, driver, seed] => {
            take_place(place)?;
            server::serve(driver_of(driver)?, seed.parse()?)?;
            Ok(true)
        }
        [LOAD_ROLE, place, driver, seed, address, seconds] => {
            take_place(place)?;
            let (driver, seconds) = (driver_of(driver)?, seconds.parse()?);
            load::run(driver, address.parse()?, seed.parse()?, CONNECTIONS_PER_SECOND, seconds)?;
            Ok(true)
        }
        [minutes] | [minutes, "both"] => soak(minutes, &["uring", "epoll"]),
        [minutes, "uring"] => soak(minutes, &["uring"]),
        [minutes, "epoll"] => soak(minutes, &["epoll"]),
        _ => Err(USAGE.into()),
    }
}

fn soak(minutes: &str, drivers: &[&'static str]) -> Result<bool, Failure> {
    let minutes = options::number("MINUTES", minutes, 0.5, MINUTES_MAX)?;
    process::raise_descriptor_limit()?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    soak::run((minutes * 60.0) as u64, drivers, seed)
}

fn driver_of(name: &str) -> Result<Driver, Failure> {
    match name {
        "uring" => Ok(Driver::Uring),
        "epoll" => Ok(Driver::Epoll),
        _ => Err(format!("no driver {name:?}; {USAGE}").into()),
    }
}
