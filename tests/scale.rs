//! Many connections at once, and very many one after another.

use std::cell::Cell;
use std::env;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use annulus::net::{TcpListener, TcpStream};

use common::bytes::Keyed;
use common::peer::{self, peer};
use common::process::{self, READY, Running, need_descriptors, open_descriptors, resident_bytes};
use common::steps::{eventually, settle};
use common::{each_driver, slower};

mod common;

each_driver! {
    #[alone]
    #[deadline_s(180)]
    async fn ten_thousand_connections_are_held_and_echo_every_byte() {
        need_descriptors(HELD + 200);
        let before = open_descriptors();
        let bytes_before = resident_bytes();
        let (addr, active) = serve_counting().await;
        let mut command = process::role("role_holds_connections");
        command.env(ADDR, addr.to_string());
        let mut clients = Running::start(command);

        let mut clients = peer(move || {
            assert_eq!(clients.line_after(READY), "connected");
            clients
        })
        .await;
        eventually("all are accepted", || active.get() == HELD).await;
        let idle_bytes = resident_bytes();

        clients = peer(move || {
            clients.tell("echo");
            assert_eq!(clients.line_after(READY), "echoed");
            clients
        })
        .await;
        assert_eq!(active.get(), HELD, "connections were lost meanwhile");

        peer(move || {
            let (status, output, errors) = clients.finish();
            assert!(status.success(), "{output}{errors}");
        })
        .await;
        eventually("all are closed", || active.get() == 0).await;
        let what = format!("{before} open descriptors again, now {}", open_descriptors());
        // The listener stays.
        eventually(&what, || open_descriptors() <= before + 1).await;
        let each = idle_bytes.saturating_sub(bytes_before) as u64 / HELD;
        println!("{each} bytes for each idle connection");
        assert!(each < 4096, "{each} bytes for each idle connection: one holds a buffer");
    }

    #[alone]
    #[deadline_s(240)]
    async fn a_hundred_thousand_connects_leave_descriptors_and_memory_where_they_were() {
        let (addr, active) = serve_counting().await;
        let mut before = None;
        let rounds = CONNECTS / CONNECTS_A_ROUND / u64::from(slower());
        for _ in 0..rounds.max(2) {
            let mut command = process::role("role_connects_again_and_again");
            command.env(ADDR, addr.to_string());
            let mut clients = Running::start(command);
            peer(move || {
                let (status, output, errors) = clients.finish();
                assert!(status.success(), "{output}{errors}");
            })
            .await;
            eventually("all are closed", || active.get() == 0).await;
            settle().await;
            // The first round fills pools and caches, which is no growth.
            before.get_or_insert_with(|| (open_descriptors(), resident_bytes()));
        }
        let (descriptors, bytes) = before.expect("at least one round");
        let what = format!("{descriptors} open descriptors again, now {}", open_descriptors());
        eventually(&what, || open_descriptors() <= descriptors).await;
        let grown = resident_bytes().saturating_sub(bytes);
        println!("{grown} bytes more than after the first round");
        assert!(grown < 4 << 20, "{grown} bytes more are resident after all connects");
    }
}

/// An echo server that counts its open connections.
async fn serve_counting() -> (SocketAddr, Rc<Cell<u64>>) {
    // All addresses, so that clients can spread over more than one and run out of no ports.
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("bind a listener");
    let port = listener.local_addr().expect("address of the listener").port();
    let active = Rc::new(Cell::new(0));
    let counter = Rc::clone(&active);
    annulus::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            counter.set(counter.get() + 1);
            let counter = Rc::clone(&counter);
            annulus::spawn(async move {
                // A client that fails tells so itself.
                drop(echo_small(stream).await);
                counter.set(counter.get() - 1);
            });
        }
    });
    ((Ipv4Addr::LOCALHOST, port).into(), active)
}

async fn echo_small(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buf = [0; 256];
    loop {
        match stream.read(&mut buf).await? {
            0 => return Ok(()),
            n => stream.write_all(&buf[..n]).await?,
        }
    }
}

// Started by ten_thousand_connections_are_held_and_echo_every_byte.
#[test]
fn role_holds_connections() {
    if !process::in_role() {
        return;
    }
    need_descriptors(HELD + 200);
    let addr = server();
    let mut connections: Vec<_> = (0..HELD)
        .map(|key| (peer::connect(addr), Keyed(key).cursor(), Keyed(key).cursor()))
        .collect();
    println!("{READY}connected");
    let mut order = String::new();
    std::io::stdin().read_line(&mut order).expect("wait for the order to echo");
    for round in 0..3 {
        let len = |index: usize| 1 + (index * 31 + round * 97) % 1500;
        for (index, (stream, sent, _)) in connections.iter_mut().enumerate() {
            peer::send(stream, sent, len(index));
        }
        for (index, (stream, _, received)) in connections.iter_mut().enumerate() {
            peer::expect(stream, received, len(index));
        }
    }
    println!("{READY}echoed");
    std::io::stdin().read_to_string(&mut order).expect("wait for the order to end");
}

// Started by a_hundred_thousand_connects_leave_descriptors_and_memory_where_they_were.
#[test]
fn role_connects_again_and_again() {
    if !process::in_role() {
        return;
    }
    let addr = server();
    let threads: Vec<_> = (0..4_u8)
        .map(|thread| {
            peer(move || {
                for round in 0..CONNECTS_A_ROUND / 4 {
                    // Each address of ours has its own ports in TIME_WAIT.
                    let ip = Ipv4Addr::new(127, 0, 1 + thread, 1 + (round % 16) as u8);
                    let stream = peer::connect((ip, addr.port()).into());
                    peer::echo(&stream, Keyed(round), 40);
                    if round % 4 == 0 {
                        peer::reset(stream);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(peer::Peer::join);
}

fn server() -> SocketAddr {
    env::var(ADDR).expect("the server's address").parse().expect("an address")
}

const HELD: u64 = 10_000;
const CONNECTS: u64 = 100_000;
const CONNECTS_A_ROUND: u64 = 20_000;
const ADDR: &str = "ANNULUS_TEST_ADDR";
