//! The clients: so many connections a second, each with a plan of its own.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use annulus::net::TcpStream;
use annulus::time::{Instant, interval, sleep, timeout};
use annulus::{Driver, Runtime};
use bench_support::children::Failure;

use crate::plan::{Plan, Side};
use crate::server;
use crate::tally::{self, Open};
use crate::traffic;

/// What a connection may take. The slowest plan takes a tenth of it.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(120);
/// Past this no more are begun: the server has to catch up first.
const OPEN_MAX: u64 = 1000;
/// How often connections are begun.
const TICK: Duration = Duration::from_millis(10);

pub(crate) fn run(
    driver: Driver,
    address: SocketAddr,
    seed: u64,
    per_second: u64,
    seconds: u64,
) -> Result<(), Failure> {
    let runtime = Runtime::builder().driver(driver).shards(1).build()?;
    runtime.block_on(async {
        annulus::spawn(server::tell());
        // The parent looks at what this process has before there is anything to do.
        sleep(QUIET).await;
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut ticks = interval(TICK);
        let (mut due_millis, mut number) = (0, 0);
        while Instant::now() < end {
            ticks.tick().await;
            due_millis += per_second * TICK.as_millis() as u64;
            while due_millis >= 1000 {
                due_millis -= 1000;
                if tally::open() >= OPEN_MAX {
                    tally::skipped();
                    continue;
                }
                let open = Open::begin();
                annulus::spawn(async move {
                    let connection = connection(address, seed, number);
                    if timeout(CONNECTION_TIME_MAX, connection).await.is_err() {
                        tally::error(&format!("connection {number} hangs"));
                    }
                    drop(open);
                });
                number += 1;
            }
        }
        while tally::open() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
        tally::say(tally::OVER);
        // What is left now is looked at by the parent, which then ends this process.
        std::future::pending().await
    })
}

async fn connection(address: SocketAddr, seed: u64, number: u64) {
    let mut numbers = crate::keyed::Numbers::of(seed, number, 7);
    if numbers.below(50) == 0 {
        // A connect that is given up, and a client that leaves before it says its number.
        let patience = Duration::from_micros(numbers.below(200));
        drop(timeout(patience, TcpStream::connect(address)).await);
    }
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) => return tally::error(&format!("connection {number}: connect: {error}")),
    };
    let plan = Rc::new(Plan::of(seed, number));
    if let Err(error) = stream.write_all(&number.to_le_bytes()).await {
        return traffic::unless_planned(&plan, "the number", &error);
    }
    let Some((stream, reached)) = traffic::begin(stream, &plan, Side::Client).await else { return };
    traffic::finish(stream, &plan, Side::Client, reached).await;
}

/// Time for the parent to look at what the process has when it does nothing.
pub(crate) const QUIET: Duration = Duration::from_secs(3);
