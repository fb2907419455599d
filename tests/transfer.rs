//! A long transfer through `examples/proxy`, checked byte for byte. `.ci/transfer` makes it long.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use annulus::Driver;

use common::asked;
use common::bytes::{Keyed, Numbers};
use common::peer::{self, Peer, peer};
use common::process::{Running, example};
use common::{each_driver, say};

mod common;

each_driver! {
    // Half of the bytes each way, each connection its share, both ways at once.
    #[alone]
    #[deadline_s(super::deadline_s())]
    fn bytes_pass_through_the_proxy_unchanged(driver: Driver) {
        transfer(driver, amount_mib());
    }

    fn a_target_that_is_away_ends_a_connection_and_not_the_proxy(driver: Driver) {
        let (listener, target) = peer::listen();
        drop(listener);
        let (proxy, addr) = start(driver, target);
        for _ in 0..3 {
            peer::expect_closed(&peer::connect(addr));
        }
        // The port is free again, and what comes now is passed on.
        let listener = TcpListener::bind(target).expect("bind the target");
        let mut client = peer::connect(addr);
        client.write_all(b"hello").expect("a peer's write");
        let mut greeting = [0; 5];
        peer::accept(&listener).read_exact(&mut greeting).expect("a peer's read");
        assert_eq!(&greeting, b"hello");
        let (_, errors) = proxy.kill();
        assert_eq!(errors.matches("refused").count(), 3, "{errors}");
    }
}

fn transfer(driver: Driver, mib: u64) {
    let len = (mib << 20) / (2 * CONNECTIONS);
    let (listener, target) = peer::listen();
    let (proxy, addr) = start(driver, target);

    let begin = Instant::now();
    let servers = peer(move || {
        let serve = |_| {
            let mut stream = peer::accept(&listener);
            peer(move || {
                let mut key = [0; 8];
                stream.read_exact(&mut key).expect("the key of a connection");
                let key = u64::from_le_bytes(key);
                exchange(stream, Keyed(!key), Keyed(key), len);
            })
        };
        (0..CONNECTIONS).map(serve).collect::<Vec<_>>().into_iter().for_each(Peer::join);
    });
    let connect = |key: u64| {
        peer(move || {
            let mut stream = peer::connect(addr);
            stream.write_all(&key.to_le_bytes()).expect("the key of a connection");
            exchange(stream, Keyed(key), Keyed(!key), len);
        })
    };
    (1..=CONNECTIONS).map(connect).collect::<Vec<_>>().into_iter().for_each(Peer::join);
    servers.join();
    let took = begin.elapsed().as_secs_f64();
    let (_, errors) = proxy.kill();
    assert_eq!(errors, "", "the proxy has reported errors");
    say(&format!("{mib} MiB on {driver} in {took:.1} s, {:.0} MiB/s", mib as f64 / took));
}

/// The proxy as a child process.
fn start(driver: Driver, target: SocketAddr) -> (Running, SocketAddr) {
    let mut command = Command::new(example("proxy"));
    command.args(["127.0.0.1:0", &target.to_string()]).env("ANNULUS_DRIVER", driver.to_string());
    let mut proxy = Running::start(command);
    let addr = proxy.line_after("listening on ").parse().expect("an address");
    let runs_on = proxy.line_after("driver: ");
    assert!(runs_on.contains(&driver.to_string()), "the proxy runs on {runs_on}");
    (proxy, addr)
}

/// Sends one stream and its end, and checks that the other one comes, and its end.
fn exchange(stream: TcpStream, sent: Keyed, expected: Keyed, len: u64) {
    let other = stream.try_clone().expect("a second handle of the connection");
    let sending = peer(move || send_with_pauses(&other, sent, len));
    expect_with_pauses(&stream, expected, len);
    sending.join();
}

fn send_with_pauses(mut stream: &TcpStream, key: Keyed, len: u64) {
    let mut numbers = Numbers(key.0);
    let mut buffer = vec![0; PIECE_MAX as usize];
    let mut offset = 0;
    while offset < len {
        let count = piece(&mut numbers).min(len - offset);
        let bytes = &mut buffer[..count as usize];
        key.fill(offset, bytes);
        stream.write_all(bytes).expect("a peer's write");
        offset += count;
        pause_sometimes(&mut numbers);
    }
    stream.shutdown(Shutdown::Write).expect("end the stream");
}

fn expect_with_pauses(mut stream: &TcpStream, key: Keyed, len: u64) {
    let mut numbers = Numbers(key.0 ^ 1);
    let mut buffer = vec![0; PIECE_MAX as usize];
    let mut offset = 0;
    loop {
        let most = piece(&mut numbers) as usize;
        let count = stream.read(&mut buffer[..most]).expect("a peer's read");
        if count == 0 {
            break;
        }
        key.check(offset, &buffer[..count]);
        offset += count as u64;
        pause_sometimes(&mut numbers);
    }
    assert_eq!(offset, len, "stream {:#x} has another length", key.0);
}

/// Small pieces and large ones.
fn piece(numbers: &mut Numbers) -> u64 {
    let most = [1000, 20_000, PIECE_MAX, PIECE_MAX][numbers.below(4) as usize];
    1 + numbers.below(most)
}

fn pause_sometimes(numbers: &mut Numbers) {
    if numbers.below(64) == 0 {
        thread::sleep(Duration::from_micros(numbers.below(5000)));
    }
}

fn amount_mib() -> u64 {
    asked::number(AMOUNT, 1).unwrap_or(16)
}

/// Slow machines and debug builds transfer more than 4 MiB in a second.
fn deadline_s() -> u64 {
    30 + amount_mib() / 4
}

const CONNECTIONS: u64 = 64;
const PIECE_MAX: u64 = 256 * 1024;
const AMOUNT: &str = "ANNULUS_TRANSFER_MIB";
