//! Many shards: how connections spread over them, and what it costs that there are several.
//!
//! Three parts. **Spread**: on which shards connections that stay come to lie, for each placement.
//! **Second shard**: the server's processor time per echoed request with one shard and with two.
//! **Short**: the server's processor time per connection that lasts for one request, for each
//! placement.
//!
//! Servers and loads are processes of their own, started afresh for every measurement. Rounds are
//! interleaved; ratios are those of measurements that lie side by side.
//!
//! `cargo bench --bench shards -- --help` lists the options.

use std::io::Read;
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, io};

use annulus::Driver;
use annulus::net::Placement;

mod group;
mod short;

use bench_support::children::{self, Answer, Failure, LOAD_ROLE, MEASURE_MARGIN};
use bench_support::children::{SERVER_ROLE, Serving, UNPINNED};
use bench_support::figures::{Figures, Sample, median};
use bench_support::load;
use bench_support::options::{SECONDS_MAX, number};
use bench_support::process;
use bench_support::traffic::Traffic;
use group::{Group, Pins, Service};
use short::{CLIENTS, REQUEST_BYTES, SHORT_ROLE};

const USAGE: &str = "\
cargo bench --bench shards -- [OPTIONS]

  --quick         one short round: does it run at all?
  --rounds N      rounds, each of which measures everything once (default 7)
  --seconds S     length of one measurement of the second shard (default 2)
  --attempts N    how often a measurement is made again because others ran meanwhile (default 10)
  --only A,B,..   of spread, second, short (default: all)
  --cpus A,B,..   the processors to use (default: all that are allowed); with four or more the
                  second shard is measured apart from the load, too";

const DRIVERS: [Driver; 2] = [Driver::Uring, Driver::Epoll];
const PLACEMENTS: [Placement; 3] =
    [Placement::ReusePort, Placement::LeastConnections, Placement::RoundRobin];

/// The second shard is measured with so many connections, from so many load processes.
const CONNECTIONS: u32 = 64;
const MESSAGE_BYTES: usize = 64;
const LOADS: usize = 2;

/// Connections of one measurement of short ones: the ports of one address last for twice as many.
const SHORT_CONNECTIONS: usize = 12_000;
const SHORT_CONNECTIONS_QUICK: usize = 800;

/// Where servers and loads share processors, they leave them no rest. Less than this part of them,
/// and something else ran. Such figures mislead: what has one processor instead of two runs in
/// turns on it, which is cheaper than side by side, and most so for one shard.
const OURS_MIN: f64 = 0.85;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some(SERVER_ROLE) => group::play(&arguments[1..]),
        Some(LOAD_ROLE) => load::play(&arguments[1..]),
        Some(SHORT_ROLE) => short::play(&arguments[1..]),
        _ if arguments.iter().any(|argument| argument == "--help") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => measure_all(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shards benchmark: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Spread,
    Second,
    Short,
}

struct Options {
    rounds: usize,
    attempts: usize,
    window: Duration,
    short_connections: usize,
    parts: Vec<Part>,
    cpus: Vec<usize>,
}

impl Options {
    /// # Errors
    /// A sentence for the user.
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut options = Self {
            rounds: 7,
            attempts: 10,
            window: Duration::from_secs(2),
            short_connections: SHORT_CONNECTIONS,
            parts: vec![Part::Spread, Part::Second, Part::Short],
            cpus: process::allowed_cpus()?,
        };
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
                "--attempts" => options.attempts = number(option, value()?, 1, 1000)?,
                "--only" => {
                    options.parts = value()?.split(',').map(part).collect::<Result<_, _>>()?;
                }
                "--cpus" => {
                    let cpu = |text| number(option, text, 0, libc::CPU_SETSIZE as usize - 1);
                    options.cpus = value()?.split(',').map(cpu).collect::<Result<_, _>>()?;
                }
                _ => return Err(format!("no option {option:?}\n\n{USAGE}").into()),
            }
        }
        if quick {
            options.rounds = 1;
            options.attempts = 1;
            options.window = Duration::from_millis(200);
            options.short_connections = SHORT_CONNECTIONS_QUICK;
        }
        Ok(options)
    }
}

fn part(name: &str) -> Result<Part, String> {
    match name {
        "spread" => Ok(Part::Spread),
        "second" => Ok(Part::Second),
        "short" => Ok(Part::Short),
        _ => Err(format!("no part {name:?}")),
    }
}

/// The role of the parent.
fn measure_all(arguments: &[String]) -> Result<(), Failure> {
    let options = Options::parse(arguments)?;
    process::raise_descriptor_limit()?;
    let is_wanted = |part| options.parts.contains(&part);
    if is_wanted(Part::Spread) {
        spread(&options)?;
    }
    let beside = Layout::beside(&options.cpus);
    if is_wanted(Part::Second) {
        second_shard(&options, &beside)?;
        if let Some(apart) = Layout::apart(&options.cpus) {
            second_shard(&options, &apart)?;
        }
    }
    if is_wanted(Part::Short) {
        short_connections(&options, &beside)?;
    }
    Ok(())
}

/// On which processors the shards and the loads of a measurement run.
struct Layout {
    /// Of a first and, where there is one, a second server process.
    servers: [String; 2],
    /// Of the process that has two shards.
    both: String,
    loads: [String; LOADS],
    pins: Pins,
    /// How many processors servers and loads share.
    shared: Option<usize>,
    text: String,
}

impl Layout {
    /// All on the same two processors: what counts then is the server's processor time.
    fn beside(cpus: &[usize]) -> Self {
        let (both, shared, text) = match *cpus {
            [first, second, ..] => {
                let text = format!("server and load share cpus {first} and {second}, unpinned");
                (format!("{first},{second}"), 2, text)
            }
            _ => (UNPINNED.to_owned(), 1, "one processor for all".to_owned()),
        };
        Self {
            servers: [both.clone(), both.clone()],
            loads: [both.clone(), both.clone()],
            both,
            pins: Pins::Nothing,
            shared: Some(shared),
            text,
        }
    }

    /// A processor for each shard and for each load: requests/s count too.
    fn apart(cpus: &[usize]) -> Option<Self> {
        let &[first, second, third, fourth, ..] = cpus else { return None };
        Some(Self {
            servers: [first.to_string(), second.to_string()],
            both: format!("{first},{second}"),
            loads: [third.to_string(), fourth.to_string()],
            pins: Pins::Shards,
            shared: None,
            text: format!(
                "shards pinned to cpu {first} and {second}, loads to cpu {third} and {fourth}"
            ),
        })
    }
}

/// The part that counts connections: fewest and most on a shard, and the most by the mean.
fn spread(options: &Options) -> Result<(), Failure> {
    const SHARDS: [u32; 3] = [2, 4, 16];
    const NUMBERS: [usize; 2] = [8, 1000];
    println!(
        "\nspread of connections that stay: fewest and most on a shard, the most by the mean; \
         medians of {} runs, shards unpinned, io_uring where it runs",
        options.rounds
    );
    print!("{:<28}", "");
    NUMBERS.iter().for_each(|number| print!("{number:>16} connections"));
    println!();
    for shards in SHARDS {
        for placement in PLACEMENTS {
            print!("{:<28}", format!("{shards} shards, {}", group::placement_name(placement)));
            for number in NUMBERS {
                let runs: Vec<Vec<usize>> = (0..options.rounds)
                    .map(|_| counts(shards, placement, number))
                    .collect::<Result<_, _>>()?;
                let of_each = |choose: fn(&Vec<usize>) -> Option<usize>| {
                    median(runs.iter().filter_map(choose).map(|count| count as f64)).unwrap_or(0.0)
                };
                let fewest = of_each(|counts| counts.iter().copied().min());
                let most = of_each(|counts| counts.iter().copied().max());
                let mean = number as f64 / f64::from(shards);
                print!("{fewest:>10.0} {most:>6.0} {:>10.2}", most / mean);
            }
            println!();
        }
    }
    Ok(())
}

/// How many of so many connections each shard of a fresh server takes.
fn counts(shards: u32, placement: Placement, connections: usize) -> Result<Vec<usize>, Failure> {
    let group = Group {
        place: UNPINNED.to_owned(),
        pins: Pins::Nothing,
        driver: Driver::Auto,
        shards,
        placement,
        service: Service::Tell,
    };
    let Answer::Given(serving) = group.start()? else { return Err("no server starts".into()) };
    // All are there before the first is asked.
    let streams: Vec<TcpStream> =
        (0..connections).map(|_| TcpStream::connect(serving.address)).collect::<io::Result<_>>()?;
    let mut counts = vec![0; shards as usize];
    for mut stream in streams.iter() {
        let mut index = [0];
        stream.read_exact(&mut index)?;
        counts[usize::from(index[0])] += 1;
    }
    Ok(counts)
}

impl Layout {
    /// The part of the shared processors that was ours. All, where each has one of its own.
    fn ours(&self, figures: &Figures) -> f64 {
        let busy = figures.server_busy + figures.load_busy;
        self.shared.map_or(1.0, |shared| busy / shared as f64)
    }

    /// The measurements during which little else ran; if there are none, all.
    fn undisturbed<const N: usize>(&self, all: Vec<[Figures; N]>) -> Vec<[Figures; N]> {
        let is_good = |it: &&[Figures; N]| it.iter().all(|it| self.ours(it) >= OURS_MIN);
        let good: Vec<_> = all.iter().filter(is_good).copied().collect();
        if good.is_empty() { all } else { good }
    }
}

/// One row of a table: the servers to start for it, and what was measured, by round.
struct Row {
    name: String,
    groups: Vec<Group>,
    figures: Vec<Figures>,
}

impl Row {
    fn new(name: impl Into<String>, groups: Vec<Group>) -> Self {
        Self { name: name.into(), groups, figures: vec![] }
    }

    fn driver(&self) -> &'static str {
        group::driver_name(self.groups[0].driver)
    }
}

/// The part that compares two shards with one. Two processes of one shard each, which share nothing
/// but the machine, show what of the difference is the machine's.
fn second_shard(options: &Options, layout: &Layout) -> Result<(), Failure> {
    let rows = DRIVERS.map(|driver| {
        let group = |place: &str, shards| Group {
            place: place.to_owned(),
            pins: layout.pins,
            driver,
            shards,
            placement: Placement::default(),
            service: Service::Echo,
        };
        let [first, second] = &layout.servers;
        [
            Row::new("1 shard", vec![group(first, 1)]),
            Row::new("2 shards", vec![group(&layout.both, 2)]),
            Row::new("2 processes", vec![group(first, 1), group(second, 1)]),
        ]
    });
    let mut rows: Vec<Row> = rows.into_iter().flatten().collect();
    measure_rows(&mut rows, "second shard", options, layout, |groups| {
        echo(groups, options, layout)
    })?;
    println!(
        "\n{CONNECTIONS} connections, {MESSAGE_BYTES} bytes each way, from {LOADS} load processes; \
         {} rounds of {:?}; {}",
        options.rounds, options.window, layout.text
    );
    print_table(&rows, layout, "requests", "req");
    Ok(())
}

/// Echo by one server or by several, over which each load spreads its connections.
fn echo(groups: &[Group], options: &Options, layout: &Layout) -> Result<Answer<Figures>, Failure> {
    let mut servers = vec![];
    for group in groups {
        match group.start()? {
            Answer::Given(serving) => servers.push(serving),
            Answer::Refused(reason) => return Ok(Answer::Refused(reason)),
        }
    }
    let warm_up = (options.window / 5).min(Duration::from_millis(300));
    let mut loads = vec![];
    for place in &layout.loads {
        let plan = load::Plan {
            place: place.clone(),
            servers: servers.iter().map(Serving::target).collect(),
            connections: CONNECTIONS / LOADS as u32,
            traffic: Traffic::echo(MESSAGE_BYTES),
            warm_up,
            window: options.window,
        };
        loads.push(plan.start()?);
    }
    let mut sum = Figures { per_second: 0.0, server_busy: 0.0, load_busy: 0.0 };
    for load in &loads {
        let limit = warm_up + options.window + MEASURE_MARGIN;
        let sample: Sample = match children::answer(load, limit)? {
            Answer::Given(line) => line.parse()?,
            Answer::Refused(reason) => return Ok(Answer::Refused(reason)),
        };
        sum.per_second += sample.requests_per_second();
        sum.load_busy += sample.load_busy();
        // Each load has read the whole of the servers' time.
        sum.server_busy += sample.server_busy() / LOADS as f64;
    }
    Ok(Answer::Given(sum))
}

/// The part that compares placements, for connections that last for one request.
fn short_connections(options: &Options, layout: &Layout) -> Result<(), Failure> {
    let rows = DRIVERS.map(|driver| {
        let group = |shards, placement| Group {
            place: layout.both.clone(),
            pins: layout.pins,
            driver,
            shards,
            placement,
            service: Service::Echo,
        };
        let row = |placement| {
            let name = format!("2 shards, {}", group::placement_name(placement));
            Row::new(name, vec![group(2, placement)])
        };
        let one = Row::new("1 shard", vec![group(1, Placement::default())]);
        [one].into_iter().chain(PLACEMENTS.map(row))
    });
    let mut rows: Vec<Row> = rows.into_iter().flatten().collect();
    measure_rows(&mut rows, "short", options, layout, |groups| {
        connect(&groups[0], options, layout)
    })?;
    println!(
        "\nconnect, {REQUEST_BYTES} bytes each way, close; {CLIENTS} clients; {} rounds of {} \
         connections; {}",
        options.rounds, options.short_connections, layout.text
    );
    print_table(&rows, layout, "conns", "conn");
    Ok(())
}

fn connect(group: &Group, options: &Options, layout: &Layout) -> Result<Answer<Figures>, Failure> {
    let serving = match group.start()? {
        Answer::Given(serving) => serving,
        Answer::Refused(reason) => return Ok(Answer::Refused(reason)),
    };
    let plan = short::Plan {
        place: layout.loads[0].clone(),
        server: serving.target(),
        connections: options.short_connections,
    };
    Ok(match children::answer(&plan.start()?, MEASURE_MARGIN)? {
        Answer::Given(line) => Answer::Given(line.parse()?),
        Answer::Refused(reason) => Answer::Refused(reason),
    })
}

/// Measures all rows in every round. What cannot run here is said, and left out.
fn measure_rows(
    rows: &mut Vec<Row>,
    part: &str,
    options: &Options,
    layout: &Layout,
    measure: impl Fn(&[Group]) -> Result<Answer<Figures>, Failure>,
) -> Result<(), Failure> {
    for round in 1..=options.rounds {
        let mut refused = vec![];
        for (place, row) in rows.iter_mut().enumerate() {
            match attempt(options, layout, || measure(&row.groups))? {
                Answer::Given(figures) => row.figures.push(figures),
                Answer::Refused(reason) => {
                    println!("{}, {}: cannot run here: {reason}", row.driver(), row.name);
                    refused.push(place);
                }
            }
        }
        refused.into_iter().rev().for_each(|place| drop(rows.remove(place)));
        eprintln!("{part}: round {round} of {}", options.rounds);
    }
    Ok(())
}

/// Measures until nothing else runs meanwhile, or takes what came closest to it.
fn attempt(
    options: &Options,
    layout: &Layout,
    measure: impl Fn() -> Result<Answer<Figures>, Failure>,
) -> Result<Answer<Figures>, Failure> {
    let mut best: Option<Figures> = None;
    for _ in 0..options.attempts {
        let figures = match measure()? {
            Answer::Given(figures) => figures,
            refused => return Ok(refused),
        };
        if best.is_none_or(|best| layout.ours(&figures) > layout.ours(&best)) {
            best = Some(figures);
        }
        if layout.ours(&figures) >= OURS_MIN {
            break;
        }
    }
    best.map(Answer::Given).ok_or("no attempt".into())
}

/// Medians over the rounds; each driver's first row is what its others are compared with.
fn print_table(rows: &[Row], layout: &Layout, things: &str, thing: &str) {
    println!(
        "{:<32}{things:>9} {:>8} {:>16} {:>7} {:>6}  {:>13}",
        "", "server", "lowest to", "server", "load", "to one shard"
    );
    println!(
        "{:<32}{:>9} {:>8} {:>16} {:>7} {:>6}  {:>6} {:>6}",
        "server",
        "/s",
        format!("µs/{thing}"),
        "highest",
        "busy %",
        "busy %",
        "CPU",
        "rate"
    );
    for row in rows {
        let first = rows.iter().find(|other| other.driver() == row.driver()).unwrap_or(row);
        print_row(row, first, layout);
    }
    let all = rows.iter().flat_map(|row| &row.figures);
    let (count, left_out) =
        (all.clone().count(), all.filter(|it| layout.ours(it) < OURS_MIN).count());
    if left_out > 0 {
        println!(
            "warning: other work ran here. {left_out} of {count} measurements had less than \
             {:.0} % of these processors. They are left out; a row of nothing else says little.",
            OURS_MIN * 100.0
        );
    }
}

fn print_row(row: &Row, first: &Row, layout: &Layout) {
    let figures = layout.undisturbed(row.figures.iter().map(|&it| [it]).collect());
    let pairs = row.figures.iter().zip(&first.figures).map(|(&mine, &its)| [mine, its]);
    let pairs = layout.undisturbed(pairs.collect());
    let of = |measure: fn(&Figures) -> f64| {
        median(figures.iter().map(|[it]| measure(it))).unwrap_or(f64::NAN)
    };
    let to_first = |measure: fn(&Figures) -> f64| {
        let ratios = pairs.iter().map(|[mine, its]| measure(mine) / measure(its));
        median(ratios).unwrap_or(f64::NAN)
    };
    let costs = || figures.iter().map(|[it]| it.server_us());
    let (lowest, highest) = (costs().fold(f64::MAX, f64::min), costs().fold(f64::MIN, f64::max));
    println!(
        "{:<32}{:>9.0} {:>8.2} {:>16} {:>7.0} {:>6.0}  {:>6.2} {:>6.2}",
        format!("{}, {}", row.driver(), row.name),
        of(|it| it.per_second),
        of(Figures::server_us),
        format!("{lowest:.2} to {highest:.2}"),
        of(|it| it.server_busy) * 100.0,
        of(|it| it.load_busy) * 100.0,
        to_first(Figures::server_us),
        to_first(|it| it.per_second),
    );
}
