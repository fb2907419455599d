//! A server of several shards: a `ListenerGroup`, as a user would write it.

use std::io;

use annulus::net::{ListenerGroup, Placement, TcpStream};
use annulus::{Driver, Runtime, Shard};

use bench_support::BUFFER_BYTES;
use bench_support::children::{self, Answer, Failure, Serving};

/// What to run; the parent passes it on the command line.
#[derive(Clone)]
pub(crate) struct Group {
    pub(crate) place: String,
    pub(crate) pins: Pins,
    pub(crate) driver: Driver,
    pub(crate) shards: u32,
    pub(crate) placement: Placement,
    pub(crate) service: Service,
}

/// Whether each shard has a processor of its own among those of the process.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Pins {
    Shards,
    Nothing,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Service {
    /// Sends back what it receives.
    Echo,
    /// Sends one byte, the index of its shard, and then waits for the client's end.
    Tell,
}

/// The words of the command line.
const PINS: [(Pins, &str); 2] = [(Pins::Shards, "pinned"), (Pins::Nothing, "free")];
const DRIVERS: [(Driver, &str); 3] =
    [(Driver::Auto, "auto"), (Driver::Uring, "uring"), (Driver::Epoll, "epoll")];
const PLACEMENTS: [(Placement, &str); 3] = [
    (Placement::ReusePort, "ReusePort"),
    (Placement::LeastConnections, "LeastConnections"),
    (Placement::RoundRobin, "RoundRobin"),
];
const SERVICES: [(Service, &str); 2] = [(Service::Echo, "echo"), (Service::Tell, "tell")];

impl Group {
    /// Starts a child that serves so.
    pub(crate) fn start(&self) -> Result<Answer<Serving>, Failure> {
        children::start_server(&[
            self.place.clone(),
            word(&PINS, self.pins).to_owned(),
            word(&DRIVERS, self.driver).to_owned(),
            self.shards.to_string(),
            placement_name(self.placement).to_owned(),
            word(&SERVICES, self.service).to_owned(),
        ])
    }

    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let [place, pins, driver, shards, placement, service] = arguments else {
            return Err("server PLACE PINS DRIVER SHARDS PLACEMENT SERVICE".into());
        };
        Ok(Self {
            place: place.clone(),
            pins: named(&PINS, pins)?,
            driver: named(&DRIVERS, driver)?,
            shards: shards.parse()?,
            placement: named(&PLACEMENTS, placement)?,
            service: named(&SERVICES, service)?,
        })
    }

    fn serve(&self) -> Result<(), Failure> {
        let runtime = Runtime::builder()
            .driver(self.driver)
            .shards(self.shards)
            .pin(self.pins == Pins::Shards)
            .build()?;
        runtime.block_on(async {
            let group = ListenerGroup::bind("127.0.0.1:0")?.placement(self.placement);
            children::announce(group.local_addr());
            match self.service {
                Service::Echo => group.serve(async |stream, _peer| echo(stream).await).await?,
                Service::Tell => group.serve(async |stream, _peer| tell(stream).await).await?,
            }
            Ok(())
        })
    }
}

/// The role of the child. It returns only if it could not start; later the parent kills it.
pub(crate) fn play(arguments: &[String]) -> Result<(), Failure> {
    let group = Group::parse(arguments)?;
    children::take_place(&group.place)?;
    if let Err(error) = group.serve() {
        children::refuse(&*error);
    }
    Ok(())
}

pub(crate) fn driver_name(driver: Driver) -> &'static str {
    word(&DRIVERS, driver)
}

pub(crate) fn placement_name(placement: Placement) -> &'static str {
    word(&PLACEMENTS, placement)
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            received => stream.write_all(&buffer[..received]).await?,
        }
    }
}

async fn tell(mut stream: TcpStream) -> io::Result<()> {
    let index = u8::try_from(Shard::current().index()).map_err(io::Error::other)?;
    stream.write_all(&[index]).await?;
    stream.read(&mut [0]).await.map(drop)
}

fn word<T: PartialEq>(words: &[(T, &'static str)], value: T) -> &'static str {
    words.iter().find(|(known, _)| *known == value).map_or("?", |(_, word)| word)
}

fn named<T: Copy>(words: &[(T, &str)], name: &str) -> Result<T, String> {
    let found = words.iter().find(|(_, word)| *word == name);
    found.map(|(value, _)| *value).ok_or(format!("no {name:?}"))
}
