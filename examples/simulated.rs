//! A bug that only a lost connection brings out, found by simulated worlds: a client that asks
//! again when its connection fails, and a server that adds up. Run with `--features sim`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use annulus::net::{TcpListener, TcpStream};
use annulus::sim::{Faults, Report, Simulation};
use annulus::{spawn, time};

const SERVER: &str = "10.0.0.1:7000";
const DEPOSITS: u32 = 10;
const SEEDS: u64 = 200;

/// What the server does about a deposit that it may have seen before.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    AddsUp,
    RemembersNumbers,
}

#[derive(Default)]
struct Account {
    balance: u32,
    seen: BTreeSet<u32>,
}

async fn serve(server: Server, listener: TcpListener) {
    let account = Rc::<RefCell<Account>>::default();
    while let Ok((stream, _)) = listener.accept().await {
        let account = Rc::clone(&account);
        spawn(async move {
            // A connection that fails is the client's to make anew.
            let _failed = answer(server, stream, &account).await;
        });
    }
}

/// Each request is the number of a deposit of 1, each answer the balance.
async fn answer(
    server: Server,
    mut stream: TcpStream,
    account: &RefCell<Account>,
) -> io::Result<()> {
    let mut number = [0; 4];
    loop {
        stream.read_exact(&mut number).await?;
        let balance = {
            let mut account = account.borrow_mut();
            let is_new = account.seen.insert(u32::from_be_bytes(number));
            if is_new || server == Server::AddsUp {
                account.balance += 1;
            }
            account.balance
        };
        stream.write_all(&balance.to_be_bytes()).await?;
    }
}

async fn deposit(stream: &mut Option<TcpStream>, number: u32) -> io::Result<u32> {
    let server: SocketAddr = SERVER.parse().expect("an address");
    let stream = match stream {
        Some(stream) => stream,
        none => none.insert(TcpStream::connect(server).await?),
    };
    stream.write_all(&number.to_be_bytes()).await?;
    let mut balance = [0; 4];
    stream.read_exact(&mut balance).await?;
    Ok(u32::from_be_bytes(balance))
}

/// The balance after all deposits, each tried until it is answered.
async fn client() -> u32 {
    let (mut stream, mut balance) = (None, 0);
    for number in 0..DEPOSITS {
        balance = loop {
            match deposit(&mut stream, number).await {
                Ok(balance) => break balance,
                Err(_) => {
                    stream = None;
                    time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
    }
    balance
}

fn run(server: Server, seed: u64) -> (u32, Report) {
    let faults = Faults::harsh().resets(50);
    Simulation::new(seed).faults(faults).run_and_report(async move || {
        let listener = TcpListener::bind(SERVER).await.expect("the address is free");
        spawn(serve(server, listener));
        client().await
    })
}

fn main() {
    for (server, name) in [(Server::AddsUp, "adds up"), (Server::RemembersNumbers, "remembers")] {
        let (mut wrong, mut resets, mut elapsed) = (Vec::new(), 0, Duration::ZERO);
        for seed in 0..SEEDS {
            let (balance, report) = run(server, seed);
            resets += report.resets;
            elapsed += report.elapsed;
            if balance != DEPOSITS {
                wrong.push((seed, balance));
            }
        }
        println!(
            "a server that {name}: {SEEDS} worlds, {resets} resets, {elapsed:?} of their time"
        );
        match wrong.first() {
            Some((seed, balance)) => println!(
                "  wrong in {} worlds, the first of seed {seed}: {balance} instead of {DEPOSITS}",
                wrong.len()
            ),
            None => println!("  always right"),
        }
    }
}
