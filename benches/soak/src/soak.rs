//! The run: starts a server and a load for each driver, looks at them every second, and tells.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use bench_support::children::{Answer, Failure, LOAD_ROLE, Serving, UNPINNED, start_server};
use bench_support::process::{Worker, allowed_cpus};

use crate::load::QUIET;
use crate::probe::{Latency, Probe};
use crate::report;
use crate::tally::{ERROR, OVER, Tally};
use crate::watch::Watched;

const LOOK: Duration = Duration::from_secs(1);
/// Between two lines; how many looks that are.
const LOOKS_PER_LINE: u32 = 10;
/// What the last connections may take, beyond the time that was asked for.
const MARGIN: Duration = Duration::from_secs(150);
/// What a server may take to see that the last connections are gone.
const SETTLING_MAX: Duration = Duration::from_secs(30);

/// One driver: its server, its load, and what is known of them.
pub(crate) struct Pair {
    pub(crate) driver: &'static str,
    pub(crate) server: Side,
    pub(crate) load: Side,
    serving: Serving,
    loading: Worker,
    probe: Probe,
    pub(crate) latencies: Vec<Latency>,
    over: bool,
}

/// What is known of one process.
#[derive(Default)]
pub(crate) struct Side {
    pub(crate) watched: Watched,
    pub(crate) first: Option<Tally>,
    pub(crate) tally: Tally,
    pub(crate) tasks_most: u64,
    pub(crate) errors: Vec<String>,
}

/// True if nothing was found wrong.
pub(crate) fn run(seconds: u64, drivers: &[&'static str], seed: u64) -> Result<bool, Failure> {
    let [server_place, load_place] = places()?;
    println!(
        "{} s on {}, seed {seed}, servers on processor {server_place}, loads on {load_place}",
        seconds,
        drivers.join(" and ")
    );
    let mut pairs = Vec::new();
    for driver in drivers {
        pairs.push(Pair::start(driver, seconds, seed, &server_place, &load_place)?);
    }
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds) + QUIET + MARGIN;
    let mut looks = 0;
    while pairs.iter().any(|pair| !pair.over) {
        if Instant::now() > end {
            return Err("the connections do not come to an end".into());
        }
        thread::sleep(LOOK);
        looks += 1;
        let now = start.elapsed().as_secs_f64();
        for pair in &mut pairs {
            pair.look(now)?;
            if looks % LOOKS_PER_LINE == 0 {
                pair.tell(now);
            }
        }
    }
    for pair in &mut pairs {
        pair.settle(start)?;
    }
    Ok(report::tell(&pairs, seconds))
}

/// The server on one processor, the load on the others, where there are several.
fn places() -> io::Result<[String; 2]> {
    let cpus: Vec<String> = allowed_cpus()?.iter().map(usize::to_string).collect();
    Ok(match &cpus[..] {
        [first, rest @ ..] if !rest.is_empty() => [first.clone(), rest.join(",")],
        _ => [UNPINNED.to_owned(), UNPINNED.to_owned()],
    })
}

impl Pair {
    fn start(
        driver: &'static str,
        seconds: u64,
        seed: u64,
        server_place: &str,
        load_place: &str,
    ) -> Result<Self, Failure> {
        let seed = seed.to_string();
        let words = [server_place.to_owned(), driver.to_owned(), seed.clone()];
        let serving = match start_server(&words)? {
            Answer::Given(serving) => serving,
            Answer::Refused(reason) => return Err(format!("{driver}: {reason}").into()),
        };
        let target = serving.target();
        let probe = Probe::start(target.address)?;
        let words = [
            LOAD_ROLE.to_owned(),
            load_place.to_owned(),
            driver.to_owned(),
            seed,
            target.address.to_string(),
            seconds.to_string(),
        ];
        let began = Instant::now();
        let loading = Worker::spawn(&words)?;
        // The load waits for longer than this: so the first look is at what nobody uses yet.
        thread::sleep(QUIET / 2);
        let mut pair = Self {
            driver,
            server: Side::default(),
            load: Side::default(),
            serving,
            loading,
            probe,
            latencies: Vec::new(),
            over: false,
        };
        pair.look(0.0)?;
        // What is there at the first look may be there at the end: it must not be the load's.
        if began.elapsed() >= QUIET {
            return Err("this machine is too slow: the first look came after the load began".into());
        }
        // The probe's task is one of those that stay.
        pair.server.first = Some(pair.server.tally);
        Ok(pair)
    }

    fn look(&mut self, now: f64) -> Result<(), Failure> {
        self.server.hear(self.serving.worker())?;
        self.over |= self.load.hear(&self.loading)?;
        self.server.watched.look(self.serving.target().pid, now, self.server.tally.open)?;
        self.load.watched.look(self.loading.id(), now, self.load.tally.open)?;
        self.server.errors.extend(self.probe.failed().map(|error| format!("the probe: {error}")));
        Ok(())
    }

    /// One line of how it stands.
    fn tell(&mut self, now: f64) {
        let latency = self.probe.take();
        self.latencies.push(latency);
        let (server, load) = (self.server.watched.last(), self.load.watched.last());
        println!(
            "{now:>6.0} s {}: {:>8} connections, {:>4} open, {:>7.0} MiB checked, {} errors; \
             descriptors {:>4} {:>4}; RSS {:>6.1} {:>6.1} MiB; {:>4} tasks; \
             p50 {:>4.0} p99 {:>6.0} p99.9 {:>6.0} us",
            self.driver,
            self.server.tally.done,
            self.server.tally.open,
            (self.server.tally.bytes + self.load.tally.bytes) as f64 / MIB,
            self.server.tally.errors + self.load.tally.errors,
            server.descriptors,
            load.descriptors,
            server.rss_kib / 1024.0,
            load.rss_kib / 1024.0,
            self.server.tally.tasks,
            latency.p50_us,
            latency.p99_us,
            latency.p999_us,
        );
    }

    /// Waits until the server has seen all ends, and looks once more.
    fn settle(&mut self, start: Instant) -> Result<(), Failure> {
        let end = Instant::now() + SETTLING_MAX;
        let tasks_first = self.server.first.map_or(0, |tally| tally.tasks);
        loop {
            thread::sleep(LOOK);
            self.look(start.elapsed().as_secs_f64())?;
            let Tally { open, tasks, .. } = self.server.tally;
            if open == 0 && tasks <= tasks_first || Instant::now() > end {
                return Ok(());
            }
        }
    }
}

impl Side {
    /// Takes in what the child has said. True when it is over.
    fn hear(&mut self, worker: &Worker) -> Result<bool, Failure> {
        let mut over = false;
        loop {
            match worker.line(Duration::ZERO) {
                Ok(Some(line)) => {
                    if let Some(tally) = Tally::parse(&line) {
                        self.tally = tally;
                        self.tasks_most = self.tasks_most.max(tally.tasks);
                    } else if let Some(error) = line.strip_prefix(ERROR) {
                        println!("error: {error}");
                        self.errors.push(error.to_owned());
                    } else if line == OVER {
                        over = true;
                    } else {
                        return Err(format!("a child said {line:?}").into());
                    }
                }
                Ok(None) => return Err("a child has ended".into()),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(over),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

const MIB: f64 = 1024.0 * 1024.0;
