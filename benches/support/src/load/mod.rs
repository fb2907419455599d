//! The load generator: a process of its own, in which one ring serves all connections. HTTP is
//! `wrk`'s.

use std::net::SocketAddr;
use std::time::Duration;
use std::{fmt, io};

use crate::children::{self, Failure, LOAD_ROLE};
use crate::figures::Sample;
use crate::process::Worker;
use crate::traffic::Traffic;
use bulk::Direction;

mod bulk;
mod echo;
mod idle;
mod measure;
mod short;
mod wrk;

/// What to do; the parent passes it on the command line.
pub struct Plan {
    pub place: String,
    /// The connections go to them in turn.
    pub servers: Vec<Target>,
    pub connections: u32,
    pub traffic: Traffic,
    pub warm_up: Duration,
    pub window: Duration,
}

/// A server process.
#[derive(Clone, Copy)]
pub struct Target {
    pub pid: u32,
    pub address: SocketAddr,
}

impl Target {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let (pid, address) = text.split_once('@').ok_or("a server is PID@ADDRESS")?;
        Ok(Self { pid: pid.parse()?, address: address.parse()? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.pid, self.address)
    }
}

impl Plan {
    /// Starts a child that does it.
    pub fn start(&self) -> io::Result<Worker> {
        Worker::spawn(&[
            LOAD_ROLE.to_owned(),
            self.place.clone(),
            self.servers.iter().map(Target::to_string).collect::<Vec<_>>().join(","),
            self.connections.to_string(),
            self.traffic.to_string(),
            self.warm_up.as_nanos().to_string(),
            self.window.as_nanos().to_string(),
        ])
    }

    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let [place, servers, connections, traffic, warm_up_ns, window_ns] = arguments else {
            return Err("load PLACE SERVERS CONNECTIONS TRAFFIC WARM_UP_NS WINDOW_NS".into());
        };
        Ok(Self {
            place: place.clone(),
            servers: servers.split(',').map(Target::parse).collect::<Result<_, _>>()?,
            connections: connections.parse()?,
            traffic: traffic.parse()?,
            warm_up: Duration::from_nanos(warm_up_ns.parse()?),
            window: Duration::from_nanos(window_ns.parse()?),
        })
    }
}

/// The role of the child: prints the sample.
pub fn play(arguments: &[String]) -> Result<(), Failure> {
    let plan = Plan::parse(arguments)?;
    children::take_place(&plan.place)?;
    let played: Result<Sample, Refused> = match plan.traffic {
        Traffic::Echo(messages) => echo::play(&plan, messages),
        Traffic::Up => bulk::play(&plan, Direction::Up),
        Traffic::Down => bulk::play(&plan, Direction::Down),
        Traffic::Short => short::play(&plan),
        Traffic::Idle => idle::play(&plan),
        Traffic::Http { depth } => wrk::play(&plan, depth),
    };
    match played {
        Ok(sample) => println!("{sample}"),
        Err(Refused::Here(error)) => children::refuse(&error),
        Err(Refused::Failed(error)) => return Err(error.into()),
    }
    Ok(())
}

/// Why there is no sample.
enum Refused {
    /// What the load is made of is not there.
    Here(io::Error),
    /// It went wrong later.
    Failed(io::Error),
}

impl Refused {
    fn no_ring(error: io::Error) -> Self {
        let text = format!("the load generator needs io_uring: {error}");
        Self::Here(io::Error::new(error.kind(), text))
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// What the kernel's answer to an operation says of a connection.
fn failure(what: &str, slot: u32, result: i32) -> io::Error {
    let reason = match result {
        0 => "the server closed the connection".to_owned(),
        1.. => format!("cut short after {result} bytes"),
        _ => io::Error::from_raw_os_error(-result).to_string(),
    };
    io::Error::other(format!("{what} on connection {slot}: {reason}"))
}
