//! The common workload: connections between tasks of one runtime that do at random all that a
//! stream can do, and a ledger of every byte.
//!
//! It uses the public interface only, on both ends, and draws all its choices from one seed. So it
//! runs on the real kernel and in a simulation, where the seed gives the same run each time.

#![allow(dead_code, reason = "each test binary uses its own part of what is here")]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus::net::{TcpListener, TcpStream};
use annulus::time::{sleep, timeout};
use annulus::{Builder, Runtime, Shard};

use crate::common::bytes::Numbers;
use cut::{Ends, cut};
use end::End;
use ledger::{Allowed, Ledger, Tally};
use seeds::draws;

pub(crate) mod cut;
pub(crate) mod end;
pub(crate) mod halves;
pub(crate) mod ledger;
pub(crate) mod plain;
pub(crate) mod reading;
pub(crate) mod seeds;
pub(crate) mod wire;
pub(crate) mod writing;

/// What one run does. The same seed and sizes make the same choices.
#[derive(Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) seed: u64,
    pub(crate) connections: usize,
    /// So many connections are open at a time, or a few more.
    pub(crate) at_once: usize,
    /// What one end sends at most.
    pub(crate) bytes_max: u64,
    /// What may befall a connection besides what its ends do.
    pub(crate) allowed: Allowed,
    /// Past this, by the clock of its own world, it hangs.
    pub(crate) time_max: Duration,
}

/// Settings drawn from the seed: small pools, small rings, and those that programs have.
pub(crate) fn settings(seed: u64) -> Builder {
    let builder = Runtime::builder().shards(2);
    match seed % 4 {
        0 => builder,
        1 => builder.ring_entries(2).recv_pool(4, 256).event_interval(3),
        2 => builder.ring_entries(4).recv_pool(2, 4096),
        _ => builder.recv_pool(16, 1024).event_interval(1).shards(3),
    }
}

impl Workload {
    /// Runs it on the shards of this runtime, and settles the ledger.
    pub(crate) async fn run(self) -> Tally {
        self.run_with(async |address, ledger| self.all_clients(address, ledger).await).await
    }

    /// Runs the servers, beside these clients.
    pub(crate) async fn run_with(
        self,
        clients: impl AsyncFnOnce(SocketAddr, &Arc<Ledger>),
    ) -> Tally {
        let server_stays = |number| End::stays(self.seed, number, 1);
        let ledger = Ledger::new(self.seed, self.connections, self.allowed, server_stays);
        let time_max = self.time_max;
        if timeout(time_max, self.pass(clients, &ledger)).await.is_err() {
            ledger.fail(format!("not over in {time_max:?}: {}", ledger.open_ends()));
        }
        ledger.settle()
    }

    async fn pass(self, clients: impl AsyncFnOnce(SocketAddr, &Arc<Ledger>), ledger: &Arc<Ledger>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a listener");
        let address = listener.local_addr().expect("its address");
        let serving = annulus::spawn(self.serve(listener, address, Arc::clone(ledger)));
        clients(address, ledger).await;
        serving.abort();
        if let Err(error) = serving.await {
            if !error.is_cancelled() {
                ledger.fail(format!("the server: {error}"));
            }
        }
        // Those that nobody waits for go on by themselves, and end.
        while ledger.has_open_ends() {
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn all_clients(self, address: SocketAddr, ledger: &Arc<Ledger>) {
        let shards = Shard::all();
        let mut clients = Vec::new();
        for first in 0..self.at_once {
            let ledger = Arc::clone(ledger);
            let shard = &shards[first % shards.len()];
            clients.push(shard.spawn_with(move || self.clients(first, address, ledger)));
        }
        for client in clients {
            if let Err(error) = client.await {
                ledger.fail(format!("a client: {error}"));
            }
        }
    }

    /// One connection after the other, of those that begin with this one.
    async fn clients(self, first: usize, address: SocketAddr, ledger: Arc<Ledger>) {
        for number in (first..self.connections).step_by(self.at_once) {
            let Some(end) = End::draw(&ledger, self.seed, number, 0, self.bytes_max) else {
                return;
            };
            let mut numbers = draws(self.seed, 16 * number as u64 + 4);
            let Some(mut stream) = self.connect(&mut numbers, address, &ledger).await else {
                return;
            };
            match end::say_number(&end, &mut stream).await {
                Ok(()) => end::tend(end, stream).await,
                Err(error) => end.account().failed("the number", &error),
            }
        }
    }

    async fn connect(
        self,
        numbers: &mut Numbers,
        address: SocketAddr,
        ledger: &Ledger,
    ) -> Option<TcpStream> {
        for _ in 0..CONNECTS_MAX {
            let ends = if numbers.below(4) == 0 { Ends::Dropped } else { Ends::Never };
            match cut(numbers, ends, TcpStream::connect(address)).await {
                None => ledger.count("a dropped connect"),
                Some(Ok(stream)) => {
                    // While nobody listens, a socket may be given that port, and find itself.
                    if stream.local_addr().is_ok_and(|own| own != address) {
                        return Some(stream);
                    }
                }
                Some(Err(error)) => {
                    let gone = is_refused(&error) && self.allowed.refused
                        || is_reset(&error) && (self.allowed.refused || self.allowed.reset);
                    if !gone {
                        ledger.fail(format!("connect: {error}"));
                        return None;
                    }
                    ledger.count("a refused connect");
                    sleep(Duration::from_micros(200 + numbers.below(2000))).await;
                }
            }
        }
        ledger.fail(format!("refused {CONNECTS_MAX} times"));
        None
    }

    /// Accepts, and gives each connection a task. Now and then the listener goes, and comes back.
    async fn serve(self, first: TcpListener, address: SocketAddr, ledger: Arc<Ledger>) {
        let mut numbers = draws(self.seed, 5);
        let mut listener = first;
        loop {
            let accepts = 1 + numbers.below(ACCEPTS_MAX);
            for _ in 0..accepts {
                match cut(&mut numbers, Ends::Forgotten, listener.accept()).await {
                    None => ledger.count("a dropped accept"),
                    Some(Ok((stream, _))) => self.attend(stream, &ledger),
                    Some(Err(error)) => return ledger.fail(format!("accept: {error}")),
                }
            }
            if self.allowed.refused {
                ledger.count("a listener bound anew");
                drop(listener);
                sleep(Duration::from_micros(numbers.below(1000))).await;
                listener = bind_again(address, &ledger).await;
            }
        }
    }

    fn attend(self, stream: TcpStream, ledger: &Arc<Ledger>) {
        let ledger = Arc::clone(ledger);
        let nameless = ledger.nameless();
        annulus::spawn(async move {
            let serving = annulus::spawn(self.greet(stream, Arc::clone(&ledger)));
            if let Err(error) = serving.await {
                ledger.fail(format!("a server: {error}"));
            }
            drop(nameless);
        });
    }

    /// Learns which connection this is, and sees it through.
    async fn greet(self, mut stream: TcpStream, ledger: Arc<Ledger>) {
        let mut numbers = draws(self.seed, 6);
        let mut number = [0; 8];
        loop {
            match cut(&mut numbers, Ends::Dropped, stream.read_exact(&mut number)).await {
                None => {}
                Some(Ok(_)) => break,
                // A connect that was dropped, or a client that has left.
                Some(Err(_)) => return,
            }
        }
        let number = u64::from_le_bytes(number) as usize;
        if let Some(end) = End::draw(&ledger, self.seed, number, 1, self.bytes_max) {
            end::tend(end, stream).await;
        }
    }
}

async fn bind_again(address: SocketAddr, ledger: &Ledger) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            // A connect may have been given the port meanwhile.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                ledger.count("a port in use");
                sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("bind again: {error}"),
        }
    }
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

fn is_reset(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections, {} bytes checked", self.connections, self.bytes)?;
        self.counts.iter().try_for_each(|(what, count)| write!(f, ", {count} {what}"))
    }
}

impl Tally {
    /// Fails unless the ledger is right, and all that the workload is for has happened.
    #[track_caller]
    pub(crate) fn check(&self) {
        assert!(self.failures.is_empty(), "the ledger is wrong:\n{}", self.failures.join("\n"));
        let missing: Vec<_> = HAPPENS
            .iter()
            .filter(|&&what| !self.counts.iter().any(|(counted, _)| *counted == what))
            .collect();
        let enough = self.connections >= CONNECTIONS_FOR_ALL;
        assert!(missing.is_empty() || !enough, "never happened: {missing:?}");
    }
}

/// Of a listener that is not there, or of an unlucky client.
const CONNECTS_MAX: u64 = 10_000;
/// Between two times that the listener goes.
const ACCEPTS_MAX: u64 = 200;
/// What every run of so many connections must have done.
const HAPPENS: [&str; 23] = [
    "a dropped accept",
    "a dropped write half",
    "aborted",
    "dropped",
    "dropped a read half",
    "dropped detached",
    "flush",
    "moved to another shard",
    "panicked",
    "peek",
    "read",
    "read_exact",
    "recv",
    "recv_exact",
    "recv_lease",
    "reset",
    "send",
    "send_all",
    "send_vectored",
    "send_zc",
    "shutdown",
    "write",
    "write_all",
];
const CONNECTIONS_FOR_ALL: usize = 300;
