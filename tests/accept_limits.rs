//! A listener without descriptors: says so now and then, burns nothing, and recovers.

use std::time::{Duration, Instant};

use annulus::net::{TcpListener, TcpStream, UdpSocket};
use annulus::time::{sleep, timeout};
use socket2::{Domain, Socket, Type};

use common::bytes::Keyed;
use common::each_driver;
use common::peer::{self, peer};
use common::process::{cpu_ms, descriptor_limit, leave_descriptors, set_descriptor_limit};
use common::steps::{listen, settle};

mod common;

each_driver! {
    #[alone]
    async fn a_full_descriptor_table_backs_off_and_recovers() {
        let (listener, addr) = listen().await;
        // Connected by the kernel, not yet accepted by us.
        let clients = peer(move || (0..20).map(|_| peer::connect(addr)).collect::<Vec<_>>()).await;
        // What the measuring itself opens must not be what fails.
        let cpu_before = cpu_ms();
        let unlimited = descriptor_limit();
        leave_descriptors(5);

        let mut served = Vec::new();
        let mut errors = 0;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            match timeout(Duration::from_millis(300), listener.accept()).await {
                Ok(Ok((stream, _))) => served.push(stream),
                Ok(Err(error)) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "accept failed: {error}");
                    errors += 1;
                }
                Err(_) => {}
            }
        }
        let spent = cpu_ms() - cpu_before;
        assert!(served.len() <= 5, "{} connections on 5 descriptors", served.len());
        assert!(errors >= 2, "the shortage was reported {errors} times in two seconds");
        // At most every 100 ms, and the one at the start.
        assert!(errors <= 22, "the shortage was reported {errors} times in two seconds");
        assert!(spent < 1000, "{spent} ms of processor time in two seconds of waiting");

        assert_eq!(annulus::metrics().accept_pauses, errors, "each report is a pause");

        // Who is connected is served meanwhile.
        let mut clients = clients.into_iter();
        for stream in &mut served {
            let client = clients.next().expect("clients are accepted in order");
            exchange(stream, client).await;
        }

        set_descriptor_limit(unlimited).expect("raise the limit again");
        // Nobody new connects: the ones who wait are found without being announced again.
        for client in clients {
            let accepted = timeout(Duration::from_secs(5), accept_in_the_end(&listener)).await;
            exchange(&mut accepted.expect("the listener recovers"), client).await;
        }
    }

    #[alone]
    async fn a_bind_without_descriptors_says_what_to_raise() {
        let unlimited = descriptor_limit();
        leave_descriptors(0);
        let tcp = TcpListener::bind("127.0.0.1:0").await;
        let udp = UdpSocket::bind("127.0.0.1:0").await;
        set_descriptor_limit(unlimited).expect("raise the limit again");
        for error in [tcp.unwrap_err(), udp.unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("Too many open files") && text.contains("ulimit -n"), "{text}");
        }
    }

    #[alone]
    async fn a_listener_nobody_accepts_from_costs_nothing_without_descriptors() {
        let (listener, addr) = listen().await;
        timeout(Duration::from_millis(1), listener.accept()).await.map(drop).unwrap_err();
        let unlimited = descriptor_limit();
        // The clients have their sockets already; for our ends of them there is nothing left.
        let new = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let clients: Vec<_> = (0..10).map(|_| new()).collect();
        leave_descriptors(0);
        let clients = peer(move || {
            clients.iter().for_each(|client| client.connect(&addr.into()).unwrap());
            clients
        })
        .await;
        settle().await;
        let before = cpu_ms();
        sleep(Duration::from_secs(1)).await;
        let spent = cpu_ms() - before;
        set_descriptor_limit(unlimited).expect("raise the limit again");
        assert!(spent < 500, "{spent} ms of processor time in a second of waiting");
        drop(clients);
    }
}

/// Sends bytes both ways, so that both are known to be the ends of one connection.
async fn exchange(stream: &mut TcpStream, client: std::net::TcpStream) {
    let client = peer(move || peer::echo(&client, Keyed(1), 1000));
    let mut buf = [0; 1000];
    stream.read_exact(&mut buf).await.unwrap();
    stream.write_all(&buf).await.unwrap();
    client.await;
}

async fn accept_in_the_end(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // One report may still be on its way.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}"),
        }
    }
}
