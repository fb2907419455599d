//! Programs in a simulated world.

use std::io;
use std::time::Duration;

use annulus::net::{ListenerGroup, TcpListener, TcpStream};
use annulus::shutdown::ShutdownToken;
use annulus::sim::{self, Faults, Report, Simulation};
use annulus::{Driver, Shard, task, time};

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 512];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}

async fn serve_echo() -> io::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("10.0.0.1:7000").await?;
    let address = listener.local_addr()?;
    annulus::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            annulus::spawn(echo(stream));
        }
    });
    Ok(address)
}

async fn ask(server: std::net::SocketAddr, length: usize) -> io::Result<()> {
    let mut stream = TcpStream::connect(server).await?;
    assert_eq!(stream.peer_addr()?, server);
    let sent: Vec<u8> = (0..length).map(|at| at as u8).collect();
    stream.write_all(&sent).await?;
    stream.flush().await?;
    let mut received = vec![0; length];
    stream.read_exact(&mut received).await?;
    assert_eq!(received, sent);
    stream.shutdown().await?;
    assert_eq!(stream.read(&mut received).await?, 0);
    Ok(())
}

fn echoes(seed: u64, faults: Faults) -> Report {
    let simulation = Simulation::new(seed).driver(Driver::Epoll).faults(faults);
    let program = || async {
        let server = serve_echo().await.unwrap();
        let clients: Vec<_> = (1..6).map(|it| annulus::spawn(ask(server, it * 300))).collect();
        for client in clients {
            client.await.unwrap().unwrap();
        }
        time::sleep(Duration::from_secs(3600)).await;
    };
    let ((), report) = simulation.run_and_report(program);
    report
}

#[test]
fn a_server_and_its_clients_meet_in_memory() {
    for seed in 0..20 {
        let report = echoes(seed, Faults::none());
        assert_eq!((report.connections, report.left_open), (5, 0), "{report:?}");
        assert_eq!(report.elapsed, Duration::from_secs(3600));
        let report = echoes(seed, Faults::ordinary());
        assert_eq!((report.connections, report.left_open), (5, 0), "{report:?}");
    }
}

fn epoll(seed: u64) -> Simulation {
    Simulation::new(seed).driver(Driver::Epoll)
}

/// A program that uses what there is: shards, mail, timers, streams that move, blocking work.
async fn everything() {
    let token = ShutdownToken::new();
    let group = ListenerGroup::bind("10.0.0.1:7000").unwrap();
    let (server, grace) = (group.local_addr(), Duration::from_secs(60));
    let group = group.with_shutdown(token.clone(), grace);
    let serving = annulus::spawn(group.serve(async |stream, _peer| echo(stream).await));
    let clients: Vec<_> = (0..8u64)
        .map(|it| {
            let shards = Shard::all();
            let shard = &shards[it as usize % shards.len()];
            shard.spawn_with(move || async move {
                time::sleep(Duration::from_millis(it * 3)).await;
                ask(server, 100 + it as usize * 200).await.unwrap();
                sim::observe(it);
                it
            })
        })
        .collect();
    for (it, client) in (0..).zip(clients) {
        assert_eq!(client.await.unwrap(), it);
    }
    let moved = TcpStream::connect(server).await.unwrap().detach().unwrap();
    let there = Shard::all().pop().unwrap().spawn_with(move || async move {
        let mut stream = TcpStream::attach(moved).unwrap();
        stream.write_all(b"moved").await.unwrap();
        let mut buffer = [0; 5];
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"moved");
    });
    there.await.unwrap();
    assert_eq!(task::spawn_blocking(|| 7).await.unwrap(), 7);
    token.shutdown();
    serving.await.unwrap().unwrap();
}

#[test]
fn shards_take_turns_and_nothing_is_lost_between_them() {
    sim::each_seed(0..30, |simulation| {
        let simulation = simulation.driver(Driver::Epoll).shards(3);
        let ((), report) = simulation.run_and_report(everything);
        assert_eq!((report.connections, report.left_open), (9, 0), "{report:?}");
    });
}

#[test]
fn a_seed_gives_one_run() {
    let mut prints = std::collections::BTreeSet::new();
    for seed in 0..10 {
        let run = || epoll(seed).shards(3).run_and_report(everything).1;
        let report = run();
        assert_eq!(report, run(), "seed {seed}");
        prints.insert(report.fingerprint);
    }
    assert_eq!(prints.len(), 10);
}
