//! Programs in a simulated world.

use std::any::Any;
use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::future::pending;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use annulus::net::{ListenOptions, ListenerGroup, TcpListener, TcpStream};
use annulus::shutdown::ShutdownToken;
use annulus::sim::{self, Faults, Report, Simulation};
use annulus::{Driver, Runtime, Shard, task, time};

use common::steps::echo_by;

#[allow(unused_imports, unused_macros, reason = "each simulation is of one driver")]
mod common;

async fn serve_echo() -> io::Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("10.0.0.1:7000").await?;
    let address = listener.local_addr()?;
    annulus::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            annulus::spawn(echo_by(stream, 512));
        }
    });
    Ok(address)
}

async fn ask(server: std::net::SocketAddr, length: usize) -> io::Result<()> {
    let mut stream = TcpStream::connect(server).await?;
    assert_eq!(stream.peer_addr()?, server);
    let sent: Vec<u8> = (0..length).map(|at| at as u8).collect();
    stream.write_all(&sent).await?;
    // The end may arrive together with the last bytes, or long after them.
    let ends_early = sim::random(2) == 0;
    if ends_early {
        stream.shutdown().await?;
    }
    let mut received = vec![0; length];
    stream.read_exact(&mut received).await?;
    assert_eq!(received, sent);
    if !ends_early {
        stream.shutdown().await?;
    }
    assert_eq!(stream.read(&mut received).await?, 0);
    Ok(())
}

fn echoes(simulation: Simulation, faults: Faults) -> Report {
    let simulation = simulation.faults(faults);
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

/// A process that is being started has, for a moment, every descriptor of this one: what is closed
/// meanwhile is closed later. So none is started while runs are compared.
static STARTING: RwLock<()> = RwLock::new(());

fn while_none_is_started() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

const DRIVERS: [Driver; 2] = [Driver::Uring, Driver::Epoll];

#[test]
fn a_server_and_its_clients_meet_in_memory() {
    let _starting = while_none_is_started();
    for driver in DRIVERS {
        sim::each_seed(0..20, |simulation| {
            let simulation = simulation.driver(driver);
            let report = echoes(simulation.clone(), Faults::none());
            assert_eq!((report.connections, report.left_open), (5, 0), "{report:?}");
            assert_eq!(report.elapsed, Duration::from_secs(3600));
            let report = echoes(simulation, Faults::ordinary());
            assert_eq!((report.connections, report.left_open), (5, 0), "{report:?}");
        });
    }
}

/// The simulation of a seed, on each driver.
fn each_driver(seed: u64) -> impl Iterator<Item = Simulation> {
    DRIVERS.into_iter().map(move |driver| Simulation::new(seed).driver(driver))
}

/// A program that uses what there is: shards, mail, timers, streams that move, blocking work.
async fn everything() {
    let token = ShutdownToken::new();
    let group = ListenerGroup::bind("10.0.0.1:7000").unwrap();
    let (server, grace) = (group.local_addr(), Duration::from_secs(60));
    let group = group.with_shutdown(token.clone(), grace);
    let serving = annulus::spawn(group.serve(async |stream, _peer| echo_by(stream, 512).await));
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
    let _starting = while_none_is_started();
    for driver in DRIVERS {
        sim::each_seed(0..30, |simulation| {
            let ((), report) = simulation.driver(driver).shards(3).run_and_report(everything);
            assert_eq!((report.connections, report.left_open), (9, 0), "{report:?}");
        });
    }
}

/// Reads that are dropped again and again, of bytes that tell their place.
async fn cut_reads(server: std::net::SocketAddr, length: usize) {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let sent: Vec<u8> = (0..length).map(|at| (at * 7 + at / 256) as u8).collect();
    let (mut at, mut out) = (0, 0);
    let mut buffer = [0; 600];
    while at < length {
        if out < length {
            let piece = (1 + sim::random(700) as usize).min(length - out);
            stream.write_all(&sent[out..out + piece]).await.unwrap();
            out += piece;
        }
        let limit = Duration::from_micros(sim::random(3000));
        let want = (1 + sim::random(599) as usize).min(length - at);
        if sim::random(2) == 0 {
            if let Ok(count) = time::timeout(limit, stream.read(&mut buffer[..want])).await {
                let count = count.unwrap();
                assert!(count > 0, "an end before all has come");
                assert_eq!(buffer[..count], sent[at..at + count], "at {at}");
                at += count;
            }
        } else if out - at >= want {
            let reading = time::timeout(limit, stream.read_exact(&mut buffer[..want]));
            if let Ok(read) = reading.await {
                read.unwrap();
                assert_eq!(buffer[..want], sent[at..at + want], "at {at}");
                at += want;
            }
        }
        if sim::random(8) == 0 {
            stream = TcpStream::attach(stream.detach().unwrap()).unwrap();
        }
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
}

async fn cuts() {
    let server = serve_echo().await.unwrap();
    let shards = Shard::all();
    let cuts: Vec<_> = (0..4usize)
        .map(|it| shards[it % shards.len()].spawn_with(move || cut_reads(server, 300 + it * 2000)))
        .collect();
    for cut in cuts {
        cut.await.unwrap();
    }
}

#[test]
fn reads_that_are_dropped_and_streams_that_move_lose_no_byte() {
    sim::each_seed(80..110, |simulation| {
        let shards = 1 + simulation.seed() as u32 % 3;
        for driver in [Driver::Epoll, Driver::Uring] {
            simulation.clone().driver(driver).shards(shards).turns_max(300_000).run(cuts);
        }
    });
}

#[test]
fn a_seed_gives_one_run() {
    let _starting = while_none_is_started();
    let mut prints = BTreeSet::new();
    for seed in 0..10 {
        for simulation in each_driver(seed) {
            let run = || simulation.clone().shards(3).run_and_report(everything).1;
            let report = run();
            assert_eq!(report, run(), "seed {seed}");
            prints.insert(report.fingerprint);
        }
    }
    assert_eq!(prints.len(), 20);
}

#[test]
fn a_seed_gives_the_same_run_in_another_process() {
    const ASKED: &str = "ANNULUS_TEST_PRINT";
    let run = |it: Simulation| it.shards(3).run_and_report(everything).1;
    let own = format!("reports: {:?}", each_driver(7).map(run).collect::<Vec<_>>());
    if env::var_os(ASKED).is_some() {
        println!("{own}");
        return;
    }
    let test = "a_seed_gives_the_same_run_in_another_process";
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    let mut other = Command::new(env::current_exe().unwrap());
    let other = other.args(["--exact", test, "--nocapture"]).env(ASKED, "1").output().unwrap();
    let printed = String::from_utf8(other.stdout).unwrap();
    assert!(printed.contains(&own), "{own}\n{printed}");
}

/// A seed that is taken for none is not tried again, and all others seem to pass for it.
#[test]
fn what_is_no_seed_is_told_and_nothing_is_run() {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    for text in [&b"many"[..], b"", b"-1", b"7\xff"] {
        let mut other = Command::new(env::current_exe().unwrap());
        other.args(["--exact", "a_server_and_its_clients_meet_in_memory"]);
        other.env_remove("RUST_TEST_NOCAPTURE");
        let other = other.env("ANNULUS_SIM_SEED", OsStr::from_bytes(text)).output().unwrap();
        let printed = String::from_utf8_lossy(&other.stdout);
        assert!(printed.contains("expected a whole number"), "{text:?}: {printed}");
        assert!(!other.status.success());
    }
}

#[test]
fn the_last_seed_there_is_can_be_seen_again() {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    let mut other = Command::new(env::current_exe().unwrap());
    other.args(["--exact", "reads_that_are_dropped_and_streams_that_move_lose_no_byte"]);
    let other = other.env("ANNULUS_SIM_SEED", u64::MAX.to_string()).output().unwrap();
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stdout));
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default()
}

fn fails(run: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    text_of(&*payload).to_owned()
}

#[test]
fn a_program_that_waits_for_ever_is_told_so_at_once() {
    for (shards, simulation) in [1, 3, 1, 3].into_iter().zip(each_driver(1).chain(each_driver(2))) {
        let text = fails(|| {
            simulation.shards(shards).run(|| async {
                let server = serve_echo().await.unwrap();
                let mut stream = TcpStream::connect(server).await.unwrap();
                // Others have something to do for a while.
                let shard = Shard::all().pop().unwrap();
                shard.spawn_with(|| time::sleep(Duration::from_secs(9))).await.unwrap();
                // Nothing was sent, so that nothing comes back.
                stream.read(&mut [0; 8]).await.unwrap();
            });
        });
        assert!(text.contains("stands still") && text.contains("10.0.0.1:7000 listens"), "{text}");
    }
}

#[test]
fn a_program_that_does_not_end_is_told_so() {
    let text = fails(|| {
        Simulation::new(1).turns_max(1000).run(|| async {
            let mut ticks = time::interval(Duration::from_secs(1));
            loop {
                ticks.tick().await;
            }
        });
    });
    assert!(text.contains("did not end within 1000 turns"), "{text}");
}

#[test]
fn a_panic_of_the_program_is_that_of_the_run() {
    let text = fails(|| Simulation::new(1).shards(2).run(|| async { panic!("as it is written") }));
    assert_eq!(text, "as it is written");
    // Nothing of it is left.
    Simulation::new(1).run(|| async {});
}

#[test]
fn a_task_that_never_ends_does_not_keep_a_run_from_its_end() {
    let report = Simulation::new(3).shards(2).run_and_report(|| async {
        let shard = Shard::all().pop().unwrap();
        drop(shard.spawn_with(pending::<()>));
        let server = serve_echo().await.unwrap();
        annulus::spawn(async move {
            let _open = TcpStream::connect(server).await;
            pending::<()>().await;
        });
        task::yield_now().await;
    });
    assert_eq!(report.1.left_open, 0, "{:?}", report.1);
}

/// Errors that the network may cause, and the bytes that came before them.
#[test]
fn connections_that_are_refused_or_reset_are_errors_and_nothing_else() {
    let (mut whole, mut broken) = (0, 0);
    let mut kinds = BTreeSet::new();
    for seed in 0..60 {
        let faults = Faults::harsh().resets(12).refusals(6);
        let driver = DRIVERS[seed as usize % 2];
        let simulation = Simulation::new(seed).driver(driver).shards(2);
        let outcomes = simulation.faults(faults).run(|| async {
            let server = serve_echo().await.unwrap();
            let client = |it: u64| {
                let shard = Shard::all().swap_remove(it as usize % 2);
                shard.spawn_with(move || ask(server, 200 + it as usize * 100))
            };
            let clients: Vec<_> = (0..4).map(client).collect();
            let mut outcomes = Vec::new();
            for client in clients {
                outcomes.push(client.await.unwrap());
            }
            outcomes
        });
        for outcome in outcomes {
            match outcome {
                Ok(()) => whole += 1,
                Err(error) => {
                    broken += 1;
                    kinds.insert(format!("{:?}", error.kind()));
                }
            }
        }
    }
    assert!(whole > 30 && broken > 30, "{whole} and {broken}");
    let expected = ["BrokenPipe", "ConnectionRefused", "ConnectionReset", "UnexpectedEof"];
    assert!(kinds.iter().all(|kind| expected.contains(&kind.as_str())), "{kinds:?}");
    assert!(kinds.contains("ConnectionRefused") && kinds.contains("ConnectionReset"), "{kinds:?}");
}

/// What a server sends at once may break the connection before its client knows that there is one.
#[test]
fn a_reset_that_overtakes_the_answer_to_a_connect_is_told() {
    let faults = Faults::none().latency(Duration::ZERO, Duration::from_millis(200)).resets(1);
    for simulation in (0..20).flat_map(each_driver) {
        simulation.faults(faults).run(|| async {
            let listener = TcpListener::bind("10.0.0.1:7000").await.unwrap();
            let server = annulus::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(b"soon").await.unwrap();
                let ended = stream.read(&mut [0; 8]).await.unwrap_err();
                assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
            });
            let meet = async {
                let mut stream = TcpStream::connect("10.0.0.1:7000").await?;
                while stream.read(&mut [0; 8]).await? > 0 {}
                Ok::<(), io::Error>(())
            };
            let ended = meet.await.expect_err("a reset that is an end");
            assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
            server.await.unwrap();
        });
    }
}

/// A wait that ends is something that others look at; were each look a chance for their own wait to
/// end, many shards would keep each other awake.
#[test]
fn shards_do_not_pass_interruptions_on_to_each_other() {
    // Some 1,500 turns; it was 219,374 where each look could end a wait.
    let simulation = |seed| each_driver(seed).map(|it| it.shards(8).turns_max(10_000));
    for simulation in (0..4).flat_map(simulation) {
        simulation.faults(Faults::none().interruptions(2)).run(|| async {
            let doze = async |_shard: Shard| {
                for _ in 0..20 {
                    time::sleep(Duration::from_secs(60)).await;
                }
            };
            annulus::on_each_shard(doze).await.into_iter().for_each(Result::unwrap);
        });
    }
}

/// What would never end, and what would end well for having tried nothing.
#[test]
fn what_makes_no_sense_is_refused() {
    let always = fails(|| {
        let _always = Faults::none().interruptions(1);
    });
    assert!(always.contains("time stands still"), "{always}");
    let none = fails(|| sim::each_seed(5..5, |_simulation| ()));
    assert!(none.contains("nothing would be tried"), "{none}");
}

#[test]
fn a_runtime_that_ends_within_a_simulation_takes_nothing_with_it() {
    for simulation in (0..4).flat_map(each_driver) {
        simulation.run(|| async {
            let server = serve_echo().await.unwrap();
            let mut stream = TcpStream::connect(server).await.unwrap();
            let inner = Runtime::builder().shards(2).driver(Driver::Epoll).build().unwrap();
            let sum = inner.shards()[1].spawn_with(|| async { 1 + 1 });
            assert_eq!(sum.await.unwrap(), 2);
            drop(inner);
            // What is watched since before is still told.
            let mut buffer = [0; 5];
            stream.write_all(b"still").await.unwrap();
            stream.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"still");
            ask(server, 700).await.unwrap();
        });
    }
}

#[test]
fn what_is_not_simulated_says_so() {
    Simulation::new(1).run(|| async {
        let refused = annulus::net::UdpSocket::bind("127.0.0.1:0").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    });
    assert_eq!(sim::seed(), None);
    let outside = fails(|| {
        let _drawn = sim::random(2);
    });
    assert!(outside.contains("outside of a simulation"), "{outside}");
}

#[test]
fn addresses_ports_and_ends_are_those_of_tcp() {
    for simulation in each_driver(1).chain(each_driver(2)) {
        simulation.run(addresses_ports_and_ends);
    }
}

async fn addresses_ports_and_ends() {
    let first = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = first.local_addr().unwrap().port();
    assert_ne!(port, 0);
    let taken = TcpListener::bind(("0.0.0.0", port)).await.unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut served, peer) = first.accept().await.unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    assert_eq!(served.local_addr().unwrap(), client.peer_addr().unwrap());
    assert!(client.nodelay().unwrap());

    // What was sent before the end comes before it, and the other direction goes on.
    client.write_all(b"last").await.unwrap();
    client.shutdown().await.unwrap();
    let mut buffer = [0; 8];
    served.read_exact(&mut buffer[..4]).await.unwrap();
    assert_eq!(served.read(&mut buffer).await.unwrap(), 0);
    served.write_all(b"answer").await.unwrap();
    drop(served);
    client.read_exact(&mut buffer[..6]).await.unwrap();
    assert_eq!(client.read(&mut buffer).await.unwrap(), 0);

    // A close with bytes unread is a reset.
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (served, _) = first.accept().await.unwrap();
    client.write_all(b"unread").await.unwrap();
    client.flush().await.unwrap();
    time::sleep(Duration::from_secs(1)).await;
    drop(served);
    let reset = client.read(&mut buffer).await.unwrap_err();
    assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);

    // The port is free as soon as the listener is gone.
    drop(first);
    let refused = TcpStream::connect(("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    TcpListener::bind(("0.0.0.0", port)).await.unwrap();
}

async fn binds(address: &str, options: ListenOptions) -> io::Result<TcpListener> {
    TcpListener::bind_with(address, options).await
}

#[test]
fn an_address_that_stands_for_another_is_taken_with_it() {
    Simulation::new(1).run(|| async {
        let plain = ListenOptions::new();
        let taken = |answer: io::Result<TcpListener>| {
            assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        };
        let one = binds("10.0.0.1:80", plain).await.unwrap();
        taken(binds("0.0.0.0:80", plain).await);
        taken(binds("[::]:80", plain).await);
        let _beside = binds("10.0.0.2:80", plain).await.unwrap();
        let _v6 = binds("[::]:80", plain.only_v6(true)).await.unwrap();
        taken(binds("[::1]:80", plain).await);
        drop(one);
        taken(binds("0.0.0.0:80", plain).await);
        let _all = binds("[::]:81", plain.reuse_port(true)).await.unwrap();
        taken(binds("0.0.0.0:81", plain).await);
        binds("0.0.0.0:81", plain.reuse_port(true)).await.unwrap();
    });
}

#[test]
fn a_clock_that_is_paused_moves_on_by_its_timers() {
    for driver in [Driver::Epoll, Driver::Uring] {
        Simulation::new(1).driver(driver).run(|| async {
            time::pause();
            let begun = time::Instant::now();
            time::sleep(Duration::from_secs(5)).await;
            assert_eq!(begun.elapsed(), Duration::from_secs(5));
        });
    }
}
