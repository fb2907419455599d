//! What the parent of a benchmark and its children tell each other.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use crate::load::Target;
use crate::process::{self, Worker};

pub type Failure = Box<dyn Error>;

/// The first argument of a child names its role.
pub const SERVER_ROLE: &str = "server";
pub const LOAD_ROLE: &str = "load";

/// What a server prints before its address.
const LISTENING: &str = "listening ";

/// What a child prints before the reason why it cannot do what it was started for.
const REFUSED: &str = "refused ";

/// What the place of a child says when it may run anywhere; else its processors, with commas.
pub const UNPINNED: &str = "-";

/// A server starts in milliseconds; this long, and it hangs.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What a measurement may take beyond its warm-up and window.
pub const MEASURE_MARGIN: Duration = Duration::from_secs(20);

/// What a child has to say to its parent.
pub enum Answer<T> {
    Given(T),
    Refused(String),
}

/// A server that listens. It ends when this is dropped.
pub struct Serving {
    worker: Worker,
    pub address: SocketAddr,
}

impl Serving {
    pub fn target(&self) -> Target {
        Target { pid: self.worker.id(), address: self.address }
    }

    /// The child itself, for servers that say more than their address.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }
}

/// Starts this executable as a server and waits until it listens.
pub fn start_server(arguments: &[String]) -> Result<Answer<Serving>, Failure> {
    let worker = Worker::spawn(&[&[SERVER_ROLE.to_owned()], arguments].concat())?;
    Ok(match answer(&worker, START_LIMIT)? {
        Answer::Given(line) => {
            let address = line.strip_prefix(LISTENING).ok_or(format!("a server said {line:?}"))?;
            Answer::Given(Serving { address: address.parse()?, worker })
        }
        Answer::Refused(reason) => Answer::Refused(reason),
    })
}

/// The one line that a child prints.
pub fn answer(worker: &Worker, limit: Duration) -> Result<Answer<String>, Failure> {
    let line = worker.line(limit)?.ok_or("a child ended without a word")?;
    Ok(match line.strip_prefix(REFUSED) {
        Some(reason) => Answer::Refused(reason.to_owned()),
        None => Answer::Given(line),
    })
}

/// Tells the parent where to connect.
pub fn announce(address: SocketAddr) {
    println!("{LISTENING}{address}");
}

/// Tells the parent why there will be nothing else. What is told to it fits one line.
pub fn refuse(error: &dyn Error) {
    println!("{REFUSED}{}", error.to_string().lines().collect::<Vec<_>>().join(" "));
}

/// Goes where the parent wants this child to run.
pub fn take_place(place: &str) -> Result<(), Failure> {
    process::end_with_parent();
    if place != UNPINNED {
        let cpus: Vec<usize> = place.split(',').map(str::parse).collect::<Result<_, _>>()?;
        process::pin(&cpus)?;
    }
    Ok(())
}
