//! The load of short connections: connect, one request, its echo, close; some at a time.
//!
//! Each client is a thread with a blocking socket. That is dear, but none of it is the server's,
//! but for waking them, which costs it the same whichever shard does it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Instant;

use bench_support::children::{self, Failure};
use bench_support::figures::Figures;
use bench_support::load::Target;
use bench_support::process::{CpuReading, Worker, own_cpu_ns};

/// The first argument of the child.
pub(crate) const SHORT_ROLE: &str = "short";

pub(crate) const REQUEST_BYTES: usize = 64;

/// Clients at a time: enough to keep two shards busy.
pub(crate) const CLIENTS: usize = 16;

/// This share of the connections comes before those that count.
const WARM_UP_SHARE: usize = 10;

/// What to do; the parent passes it on the command line.
pub(crate) struct Plan {
    pub(crate) place: String,
    pub(crate) server: Target,
    pub(crate) connections: usize,
}

impl Plan {
    /// Starts a child that does it.
    pub(crate) fn start(&self) -> io::Result<Worker> {
        Worker::spawn(&[
            SHORT_ROLE.to_owned(),
            self.place.clone(),
            self.server.to_string(),
            self.connections.to_string(),
        ])
    }

    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let [place, server, connections] = arguments else {
            return Err("short PLACE SERVER CONNECTIONS".into());
        };
        Ok(Self {
            place: place.clone(),
            server: Target::parse(server)?,
            connections: connections.parse()?,
        })
    }
}

/// The role of the child: prints the figures.
pub(crate) fn play(arguments: &[String]) -> Result<(), Failure> {
    let plan = Plan::parse(arguments)?;
    children::take_place(&plan.place)?;
    let Target { pid, address } = plan.server;
    connect_all(address, plan.connections / WARM_UP_SHARE)?;

    let server_before = CpuReading::of(pid)?;
    let (load_before_ns, start) = (own_cpu_ns(), Instant::now());
    let connected = connect_all(address, plan.connections)?;
    let window_ns = start.elapsed().as_nanos() as f64;
    let load_ns = own_cpu_ns() - load_before_ns;
    let server = CpuReading::of(pid)?.since(&server_before);

    let figures = Figures {
        per_second: connected as f64 * 1e9 / window_ns,
        server_busy: server.ran_ns as f64 / window_ns,
        load_busy: load_ns as f64 / window_ns,
    };
    println!("{figures}");
    Ok(())
}

/// At least so many connections, one after the other on each of the threads.
fn connect_all(address: SocketAddr, connections: usize) -> io::Result<usize> {
    let each = connections.div_ceil(CLIENTS);
    let client = || (0..each).try_for_each(|number| connect_once(address, number as u8));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client panicked"))
    })?;
    Ok(each * CLIENTS)
}

fn connect_once(address: SocketAddr, number: u8) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let (request, mut echo) = ([number; REQUEST_BYTES], [0; REQUEST_BYTES]);
    stream.write_all(&request)?;
    stream.read_exact(&mut echo)?;
    if request == echo { Ok(()) } else { Err(io::Error::other("the echo differs")) }
}
