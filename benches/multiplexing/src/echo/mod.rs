//! A thread for each connection against one loop: an echo of 64 bytes over TCP on loopback.
//!
//! Server and load are processes of their own, on a processor each. What counts is the server's:
//! its processor time and its switches for each request, and what a connection adds to its memory:
//! pages of its own, page tables and kernel stacks. The sockets, which all have, are not counted.

mod servers;

use std::time::{Duration, Instant};
use std::{fs, io, thread};

use bench_support::children::{self, Answer, Failure, MEASURE_MARGIN, UNPINNED};
use bench_support::load::Plan;
use bench_support::process::allowed_cpus;
use bench_support::traffic::Traffic;

use crate::figure::{Across, Figure, Scale};
use crate::options::Effort;
use crate::stats::Grid;
use servers::Way;

const CONNECTIONS: [usize; 4] = [1, 10, 100, 1000];
const CONNECTIONS_MAX_QUICK: usize = 100;
const MESSAGE_BYTES: usize = 64;

/// A thousand connections and their threads take a tenth of a second; this long, and it hangs.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LOOK: Duration = Duration::from_millis(5);

/// Descriptors of a process besides its connections.
const OTHERS: usize = 64;

/// The role of a server: `PLACE NAME`.
pub(crate) fn serve(arguments: &[String]) -> Result<(), Failure> {
    let [place, name] = arguments else { return Err("server PLACE NAME".into()) };
    children::take_place(place)?;
    let way = Way::named(name).ok_or(format!("no server {name:?}"))?;
    // A server returns only if it could not start; later the parent kills it.
    if let Err(error) = way.serve() {
        children::refuse(&*error);
    }
    Ok(())
}

pub(crate) fn measure(effort: Effort, limit: u64) -> Result<Vec<Figure>, Failure> {
    let wanted = effort.choose(CONNECTIONS_MAX_QUICK, usize::MAX);
    let room = (limit as usize).saturating_sub(OTHERS).min(wanted);
    let connections: Vec<usize> = CONNECTIONS.into_iter().filter(|&count| count <= room).collect();
    if room < wanted.min(CONNECTIONS[CONNECTIONS.len() - 1]) {
        println!("notice: the limit on descriptors is {limit}: fewer connections are measured");
    }
    let times = Times {
        warm_up: Duration::from_millis(effort.choose(20, 100)),
        window: Duration::from_millis(effort.choose(100, 400)),
    };
    let (names, places) = (Way::ALL.map(|(name, _)| name), Places::choose()?);
    let mut grids = [(); 4].map(|()| Grid::new(names.len(), connections.len()));
    for _ in 0..effort.choose(2, 5) {
        for (place, &count) in connections.iter().enumerate() {
            for (series, name) in names.iter().enumerate() {
                let Some(outcome) = measure_one(name, count as u32, &times, &places)? else {
                    continue;
                };
                for (grid, value) in grids.iter_mut().zip(outcome) {
                    value.into_iter().for_each(|value| grid.push(series, place, value));
                }
            }
        }
    }
    let texts = [
        ("echo-cpu", "Echo of 64 bytes: the server's CPU", "µs a request"),
        ("echo-switches", "Echo of 64 bytes: the server's context switches", "a request"),
        (
            "echo-memory",
            "Echo of 64 bytes: what a connection adds to the server",
            "KiB a connection",
        ),
        ("echo-rate", "Echo of 64 bytes: answers", "requests/s"),
    ];
    let scales = [Scale::Linear, Scale::Linear, Scale::Linear, Scale::Logarithmic];
    let figures =
        texts.iter().zip(scales).zip(&grids).map(|((&(name, title, unit), scale), grid)| {
            Figure::new(name, title, Across::numbers("connections", &connections))
                .in_unit(unit, scale)
                .with(&names, grid)
        });
    Ok(figures.collect())
}

struct Times {
    warm_up: Duration,
    window: Duration,
}

/// CPU in µs and switches, a request; KiB a connection; requests a second. `None` where the kernel
/// refuses what a server or the load needs.
fn measure_one(
    name: &str,
    connections: u32,
    times: &Times,
    places: &Places,
) -> Result<Option<[Option<f64>; 4]>, Failure> {
    let serving = match children::start_server(&[places.server.clone(), name.to_owned()])? {
        Answer::Given(serving) => serving,
        Answer::Refused(reason) => {
            println!("notice: {name} cannot start here: {reason}");
            return Ok(None);
        }
    };
    let pid = serving.target().pid;
    let (before, open_before) = (Memory::of(pid)?, open_descriptors(pid)?);
    let plan = Plan {
        place: places.load.clone(),
        servers: vec![serving.target()],
        connections,
        traffic: Traffic::echo(MESSAGE_BYTES),
        warm_up: times.warm_up,
        window: times.window,
    };
    let load = plan.start()?;
    // In the middle of the window: all connections are there, and have been used.
    until_open(pid, open_before + connections as usize)?;
    thread::sleep(times.warm_up + times.window / 2);
    let after = Memory::of(pid)?;
    // On busy processors this process may come too late; then there is no such figure.
    let memory = (open_descriptors(pid)? >= open_before + connections as usize)
        .then(|| (after.kib() - before.kib()) / f64::from(connections));
    let line = match children::answer(&load, times.warm_up + times.window + MEASURE_MARGIN)? {
        Answer::Given(line) => line,
        Answer::Refused(reason) => {
            println!("notice: the load generator needs io_uring: {reason}");
            return Ok(None);
        }
    };
    // It has compared every echo with its message.
    let sample: bench_support::figures::Sample = line.parse()?;
    Ok(Some([
        Some(sample.server_us()),
        Some(sample.server_switches as f64 / sample.requests as f64),
        memory,
        Some(sample.requests_per_second()),
    ]))
}

/// Waits until a process has so many open descriptors: until its clients are connected.
fn until_open(pid: u32, wanted: usize) -> io::Result<()> {
    let start = Instant::now();
    while open_descriptors(pid)? < wanted {
        if start.elapsed() > CONNECT_LIMIT {
            return Err(io::Error::other("the clients do not get connected"));
        }
        thread::sleep(CONNECT_LOOK);
    }
    Ok(())
}

fn open_descriptors(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// What a process holds, in KiB.
struct Memory {
    /// Its own pages, and the page tables for them.
    own: u64,
    threads: u64,
}

/// Each thread has one, outside of its process's memory: 4 pages on x86-64 and arm64.
const KERNEL_STACK_KIB: u64 = 16;

impl Memory {
    fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        // What `status` says of a process's pages is some dozens off for each processor.
        let pages = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let own = field(&pages, "Anonymous:")? + field(&text, "VmPTE:")?;
        Ok(Self { own, threads: field(&text, "Threads:")? })
    }

    fn kib(&self) -> f64 {
        (self.own + self.threads * KERNEL_STACK_KIB) as f64
    }
}

/// The number that follows a name in `/proc/PID/status`.
fn field(text: &str, name: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("/proc/PID/status has no number for {name}")))
}

/// Which processors the two children run on.
struct Places {
    server: String,
    load: String,
}

impl Places {
    fn choose() -> io::Result<Self> {
        Ok(match allowed_cpus()?[..] {
            [server, load, ..] => Self { server: server.to_string(), load: load.to_string() },
            _ => {
                println!("notice: server and load share the only processor");
                Self { server: UNPINNED.to_owned(), load: UNPINNED.to_owned() }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Memory, field};

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "VmRSS:\t    1234 kB\nThreads:\t7\n";
        assert_eq!(field(text, "VmRSS:").expect("a number"), 1234);
        assert_eq!(field(text, "Threads:").expect("a number"), 7);
        assert!(field(text, "VmPTE:").is_err());
    }

    #[test]
    fn kernel_stacks_are_memory_too() {
        assert_eq!(Memory { own: 100, threads: 2 }.kib(), 132.0);
    }
}
