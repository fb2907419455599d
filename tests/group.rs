//! Listening with every shard: where connections go, what becomes of them when something ends, and
//! what is shared.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use annulus::net::{ListenOptions, ListenerGroup, Placement, TcpListener, TcpStream};
use annulus::{Driver, JoinHandle, Runtime, Shard, ShutdownToken, spawn};

use common::each_driver;
use common::peer::{patience, peer};
use common::process::{IO_URING_ENTER, in_own_process, leave_descriptors, refuse_here};

mod common;

const SHARDS: usize = 4;

fn runtime(driver: Driver) -> Runtime {
    Runtime::builder().driver(driver).shards(SHARDS as u32).build().unwrap()
}

/// A client that has been told which shard serves it.
struct Client {
    socket: std::net::TcpStream,
    shard: usize,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        let mut shard = [0];
        socket.read_exact(&mut shard).unwrap();
        Client { socket, shard: shard[0].into() }
    }

    /// Waits until the server has closed its side, and closes.
    fn leave(mut self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(self.socket.read(&mut [0]).unwrap(), 0);
    }
}

/// Connects until it is refused. Whoever gets in is served or told of the end: nobody is forgotten.
fn storm(address: SocketAddr, served: &AtomicUsize) {
    loop {
        let mut socket = match std::net::TcpStream::connect(address) {
            Ok(socket) => socket,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
            Err(_reset) => continue,
        };
        socket.set_read_timeout(Some(patience())).unwrap();
        // The kernel forgets a client whose handshake ends while the listener closes, whoever
        // closes it (seen on 6.18 with plain sockets): it is told when it sends something.
        let mut text = Vec::new();
        match socket.write_all(b"x").and_then(|()| socket.read_to_end(&mut text)) {
            Ok(count) => drop(served.fetch_add(count, Ordering::Relaxed)),
            Err(error) => {
                let told = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                assert!(told.contains(&error.kind()), "{error}");
            }
        }
    }
}

/// What a shard waits by: `epoll_wait`, `epoll_pwait`, `epoll_pwait2` and `io_uring_enter`.
const WAITING: [(u32, i32); 4] =
    [(232, libc::EACCES), (281, libc::EACCES), (441, libc::EACCES), (IO_URING_ENTER, libc::EACCES)];

/// Says which shard it is, and echoes.
async fn introduce_and_echo(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(&[Shard::current().index() as u8]).await?;
    let mut buffer = [0; 1000];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}

fn serve(placement: Placement) -> (SocketAddr, JoinHandle<io::Result<()>>) {
    let group = ListenerGroup::bind("127.0.0.1:0").unwrap().placement(placement);
    let address = group.local_addr();
    let serving = group.serve(async |stream, _| introduce_and_echo(stream).await);
    (address, spawn(serving))
}

fn count(clients: &[Client]) -> [usize; SHARDS] {
    let mut counts = [0; SHARDS];
    clients.iter().for_each(|client| counts[client.shard] += 1);
    counts
}

each_driver! {
    fn long_lived_connections_are_spread_evenly(driver: Driver) {
        runtime(driver).block_on(async {
            for placement in [Placement::LeastConnections, Placement::RoundRobin] {
                for number in [8, 1000] {
                    let (address, serving) = serve(placement);
                    peer(move || {
                        let clients: Vec<_> =
                            (0..number).map(|_| Client::connect(address)).collect();
                        assert_eq!(count(&clients), [number / SHARDS; SHARDS], "{placement:?}");
                        // The last one first, the way that a count would notice.
                        clients.into_iter().rev().for_each(Client::leave);
                    })
                    .await;
                    serving.abort();
                }
            }
        });
    }

    fn the_kernel_spreads_what_is_served_where_it_is_accepted(driver: Driver) {
        runtime(driver).block_on(async {
            let (address, _serving) = serve(Placement::ReusePort);
            peer(move || {
                let clients: Vec<_> = (0..400).map(|_| Client::connect(address)).collect();
                // A hash gives each some; how many is the kernel's affair.
                let counts = count(&clients);
                assert!(counts.iter().all(|&count| count > 20), "{counts:?}");
                clients.into_iter().for_each(Client::leave);
            })
            .await;
        });
    }

    fn who_has_fewest_is_given_more(driver: Driver) {
        runtime(driver).block_on(async {
            let (address, _serving) = serve(Placement::LeastConnections);
            peer(move || {
                let clients: Vec<_> = (0..40).map(|_| Client::connect(address)).collect();
                let (left, stay): (Vec<_>, Vec<_>) =
                    clients.into_iter().partition(|client| client.shard == 2);
                left.into_iter().for_each(Client::leave);
                // The server has seen their ends, and its tasks end in the same turn.
                let replaced: Vec<_> = (0..10).map(|_| Client::connect(address)).collect();
                assert!(count(&replaced)[2] >= 9, "{:?}", count(&replaced));
                drop((stay, replaced));
            })
            .await;
        });
    }

    fn a_connection_moves_with_what_was_sent_at_once(driver: Driver) {
        runtime(driver).block_on(async {
            let (address, _serving) = serve(Placement::RoundRobin);
            peer(move || {
                for round in 0..100_u8 {
                    let mut socket = std::net::TcpStream::connect(address).unwrap();
                    socket.write_all(&[round; 500]).unwrap();
                    socket.shutdown(Shutdown::Write).unwrap();
                    let mut answer = Vec::new();
                    socket.read_to_end(&mut answer).unwrap();
                    assert_eq!(answer[1..], [round; 500]);
                }
            })
            .await;
        });
    }

    fn the_peers_address_comes_with_the_connection(driver: Driver) {
        runtime(driver).block_on(async {
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let address = group.local_addr();
            let _serving = spawn(group.serve(async |mut stream: TcpStream, peer| {
                assert_eq!(stream.peer_addr().unwrap(), peer);
                assert!(stream.nodelay().unwrap());
                stream.write_all(peer.to_string().as_bytes()).await.unwrap();
            }));
            peer(move || {
                for _ in 0..20 {
                    let mut socket = std::net::TcpStream::connect(address).unwrap();
                    let mut text = String::new();
                    socket.read_to_string(&mut text).unwrap();
                    assert_eq!(text, socket.local_addr().unwrap().to_string());
                }
            })
            .await;
        });
    }

    fn nobody_else_gets_the_port_and_a_restart_does_at_once(driver: Driver) {
        for _ in 0..2 {
            let first = runtime(driver);
            let address = first.block_on(async {
                let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
                let address = group.local_addr();
                let refused = [
                    ListenerGroup::bind(address).map(drop).unwrap_err(),
                    TcpListener::bind(address).await.map(drop).unwrap_err(),
                    std::net::TcpListener::bind(address).map(drop).unwrap_err(),
                ];
                assert!(refused.iter().all(|error| error.kind() == ErrorKind::AddrInUse));
                let serving = spawn(group.serve(async |stream, _| {
                    introduce_and_echo(stream).await
                }));
                let client = peer(move || Client::connect(address)).await;
                drop((client, serving));
                address
            });
            drop(first);
            runtime(driver).block_on(async { drop(ListenerGroup::bind(address).unwrap()) });
        }
    }

    fn a_successor_may_share_the_port_where_both_ask_for_it(driver: Driver) {
        runtime(driver).block_on(async {
            let options = ListenOptions::new().reuse_port(true);
            let group = ListenerGroup::bind_with("127.0.0.1:0", options).unwrap();
            drop(ListenerGroup::bind_with(group.local_addr(), options).unwrap());
            // The kernel asks the newcomer alone, once the group shares the port among its own.
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            drop(TcpListener::bind_with(group.local_addr(), options).await.unwrap());
        });
    }

    fn an_address_that_cannot_be_bound_is_an_error(driver: Driver) {
        let outside = ListenerGroup::bind("127.0.0.1:0").map(drop).unwrap_err();
        assert!(outside.to_string().contains("no annulus runtime on this thread"), "{outside}");
        runtime(driver).block_on(async {
            // TEST-NET-1 of RFC 5737: no machine has it.
            let error = ListenerGroup::bind("192.0.2.1:0").map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
            assert!(error.to_string().contains("192.0.2.1"), "{error}");
            let none: &[SocketAddr] = &[];
            let error = ListenerGroup::bind(none).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        });
    }

    fn a_group_serves_on_the_runtime_that_bound_it(driver: Driver) {
        let group = runtime(driver).block_on(async { ListenerGroup::bind("127.0.0.1:0").unwrap() });
        let other = Runtime::builder().driver(driver).shards(1).build().unwrap();
        let served = other.block_on(group.serve(async |_stream, _peer| {}));
        assert!(served.unwrap_err().to_string().contains("another runtime"));
    }

    fn each_shard_has_a_state_of_its_own(driver: Driver) {
        runtime(driver).block_on(async {
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let group = group.placement(Placement::RoundRobin);
            let address = group.local_addr();
            let made = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&made);
            let make = async move |shard: Shard| {
                count.fetch_add(1, Ordering::Relaxed);
                assert_eq!(Shard::current(), shard);
                Ok(Cell::new(0_u8))
            };
            let serving = group.serve_with(make, async |served: Rc<Cell<u8>>, mut stream, _| {
                served.set(served.get() + 1);
                let stream: &mut TcpStream = &mut stream;
                stream.write_all(&[Shard::current().index() as u8, served.get()]).await
            });
            let _serving = spawn(serving);
            peer(move || {
                for round in 0..3 * SHARDS {
                    let mut socket = std::net::TcpStream::connect(address).unwrap();
                    let mut answer = Vec::new();
                    socket.read_to_end(&mut answer).unwrap();
                    assert_eq!(answer[1], (round / SHARDS + 1) as u8, "{answer:?}");
                }
            })
            .await;
            assert_eq!(made.load(Ordering::Relaxed), SHARDS);
        });
    }

    fn a_state_that_cannot_be_made_is_the_error_of_serving(driver: Driver) {
        runtime(driver).block_on(async {
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let address = group.local_addr();
            let make = async |shard: Shard| match shard.index() {
                3 => Err(io::Error::other("no database")),
                index => Ok(index),
            };
            let served = group.serve_with(make, async |_, _, _| {}).await;
            assert_eq!(served.unwrap_err().to_string(), "no database");
            let refused = peer(move || std::net::TcpStream::connect(address)).await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);

            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let make = async |shard: Shard| {
                assert_ne!(shard.index(), 2, "on purpose");
                Ok(())
            };
            let error = group.serve_with(make, async |_, _, _| {}).await.unwrap_err();
            assert!(error.to_string().contains("on purpose"), "{error}");
        });
    }

    fn a_panic_of_a_handler_ends_one_connection(driver: Driver) {
        runtime(driver).block_on(async {
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let address = group.local_addr();
            let number = Arc::new(AtomicUsize::new(0));
            let _serving = spawn(group.serve(async move |stream, _| {
                let number = number.fetch_add(1, Ordering::Relaxed);
                assert!(number % 2 == 0, "on purpose");
                introduce_and_echo(stream).await
            }));
            peer(move || {
                let mut clients = Vec::new();
                for number in 0..20 {
                    let mut socket = std::net::TcpStream::connect(address).unwrap();
                    let read = socket.read(&mut [0]).unwrap_or(0);
                    assert_eq!(read, 1 - number % 2);
                    clients.push(socket);
                }
                for client in clients.iter_mut().step_by(2) {
                    client.write_all(b"x").unwrap();
                    assert_eq!(client.read(&mut [0]).unwrap(), 1);
                }
            })
            .await;
        });
    }

    fn a_dropped_serve_frees_the_port_and_leaves_its_connections(driver: Driver) {
        runtime(driver).block_on(async {
            let (address, serving) = serve(Placement::RoundRobin);
            let clients =
                peer(move || (0..8).map(|_| Client::connect(address)).collect::<Vec<_>>()).await;
            serving.abort();
            assert!(serving.await.unwrap_err().is_cancelled());
            // Other shards hear of it by mail.
            let freed = async {
                while ListenerGroup::bind(address).is_err() {
                    annulus::task::yield_now().await;
                }
            };
            freed.await;
            peer(move || {
                for mut client in clients {
                    client.socket.write_all(b"still there").unwrap();
                    let mut answer = [0; 11];
                    client.socket.read_exact(&mut answer).unwrap();
                    assert_eq!(&answer, b"still there");
                    client.leave();
                }
            })
            .await;
        });
    }

    fn a_shutdown_lets_connections_finish_and_refuses_new_ones(driver: Driver) {
        runtime(driver).block_on(async {
            let token = ShutdownToken::new();
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let group = group.placement(Placement::RoundRobin);
            let group = group.with_shutdown(token.clone(), Duration::from_secs(3600));
            let address = group.local_addr();
            let serving = spawn(group.serve(async |stream, _| introduce_and_echo(stream).await));
            let clients =
                peer(move || (0..8).map(|_| Client::connect(address)).collect::<Vec<_>>()).await;
            token.shutdown();
            let refused = peer(move || {
                loop {
                    // Who connects before the last shard has stopped may be served or reset, also
                    // within connect. One that the kernel has forgotten hears of it when it sends.
                    match std::net::TcpStream::connect(address) {
                        Ok(mut late) => drop((late.write_all(b"x"), late.read(&mut [0]))),
                        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                        Err(error) => return error,
                    }
                }
            });
            assert_eq!(refused.await.kind(), ErrorKind::ConnectionRefused);
            assert!(!serving.is_finished());
            peer(move || {
                for mut client in clients {
                    client.socket.write_all(b"finishing").unwrap();
                    let mut answer = [0; 9];
                    client.socket.read_exact(&mut answer).unwrap();
                    client.leave();
                }
            })
            .await;
            serving.await.unwrap().unwrap();
        });
    }

    fn what_does_not_finish_in_time_is_closed(driver: Driver) {
        runtime(driver).block_on(async {
            for forced in [false, true] {
                let token = ShutdownToken::new();
                let grace = Duration::from_millis(if forced { 3_600_000 } else { 300 });
                let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
                let group = group.with_shutdown(token.clone(), grace);
                let address = group.local_addr();
                let serving =
                    spawn(group.serve(async |stream, _| introduce_and_echo(stream).await));
                let clients: Vec<_> =
                    peer(move || (0..8).map(|_| Client::connect(address)).collect()).await;
                let begun = Instant::now();
                token.shutdown();
                if forced {
                    token.shutdown();
                }
                let closed = peer(move || {
                    let clients: Vec<Client> = clients;
                    for mut client in clients {
                        assert_eq!(client.socket.read(&mut [0]).unwrap(), 0);
                    }
                });
                serving.await.unwrap().unwrap();
                closed.await;
                assert!(forced || begun.elapsed() >= grace, "closed before its time");
            }
        });
    }

    fn a_shard_that_does_not_yield_holds_up_no_forced_end(driver: Driver) {
        runtime(driver).block_on(async {
            let token = ShutdownToken::new();
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let group = group.placement(Placement::RoundRobin);
            let group = group.with_shutdown(token.clone(), Duration::from_secs(3600));
            let address = group.local_addr();
            let (started, is_stuck) = mpsc::channel();
            let (release, released) = mpsc::channel::<()>();
            let released = Arc::new(Mutex::new(released));
            let serving = spawn(group.serve(async move |_stream, _peer| {
                if Shard::current().index() == 1 {
                    started.send(()).unwrap();
                    // Blocks the shard's thread, not the task.
                    let _ended = released.lock().unwrap().recv();
                }
            }));
            let clients: Vec<_> =
                (0..2).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            peer(move || is_stuck.recv().unwrap()).await;
            token.shutdown_now();
            serving.await.unwrap().unwrap();
            drop((clients, release));
        });
    }

    fn what_waits_to_be_accepted_when_the_end_is_asked_for_is_served(driver: Driver) {
        runtime(driver).block_on(async {
            let token = ShutdownToken::new();
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let group = group.with_shutdown(token.clone(), Duration::from_secs(3600));
            let address = group.local_addr();
            // Before anybody accepts.
            let sockets: Vec<_> =
                (0..20).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            token.shutdown();
            let clients = peer(move || {
                for mut socket in sockets {
                    let mut shard = [0];
                    socket.read_exact(&mut shard).unwrap();
                }
            });
            group.serve(async |stream, _| introduce_and_echo(stream).await).await.unwrap();
            clients.await;
        });
    }

    fn a_full_backlog_is_served_when_the_end_is_asked_for(driver: Driver) {
        const CLIENTS: usize = 1025;
        let runtime = Runtime::builder().driver(driver).shards(1).build().unwrap();
        runtime.block_on(async {
            let token = ShutdownToken::new();
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let address = group.local_addr();
            let group = group.with_shutdown(token.clone(), Duration::from_secs(3600));
            // As many as the kernel takes by the limit that is named.
            let connect = |_| std::net::TcpStream::connect(address).unwrap();
            let mut clients: Vec<_> = (0..CLIENTS).map(connect).collect();
            token.shutdown();
            let serving = spawn(group.serve(async |mut stream: TcpStream, _| {
                stream.write_all(b"x").await
            }));
            peer(move || {
                let served = clients.iter_mut().filter_map(|it| it.read_exact(&mut [0]).ok());
                assert_eq!(served.count(), CLIENTS);
            })
            .await;
            serving.await.unwrap().unwrap();
        });
    }

    fn a_grace_time_without_end_is_one(driver: Driver) {
        runtime(driver).block_on(async {
            let token = ShutdownToken::new();
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let address = group.local_addr();
            let group = group.with_shutdown(token.clone(), Duration::MAX);
            let serving = spawn(group.serve(async |stream, _| introduce_and_echo(stream).await));
            let client = peer(move || Client::connect(address)).await;
            token.shutdown();
            peer(move || client.leave()).await;
            serving.await.unwrap().unwrap();
        });
    }

    #[deadline_s(120)]
    fn who_connects_while_serving_ends_is_served_or_told(driver: Driver) {
        for (round, placement) in
            [Placement::ReusePort, Placement::LeastConnections, Placement::RoundRobin]
                .into_iter()
                .cycle()
                .take(30)
                .enumerate()
        {
            runtime(driver).block_on(async {
                let token = ShutdownToken::new();
                let group = ListenerGroup::bind("127.0.0.1:0").unwrap().placement(placement);
                let address = group.local_addr();
                let group = group.with_shutdown(token.clone(), Duration::from_secs(3600));
                let serving = spawn(group.serve(async |mut stream: TcpStream, _| {
                    stream.read_exact(&mut [0]).await?;
                    stream.write_all(b"x").await
                }));
                let served = Arc::new(AtomicUsize::new(0));
                let storms: Vec<_> = (0..4)
                    .map(|_| {
                        let served = Arc::clone(&served);
                        peer(move || storm(address, &served))
                    })
                    .collect();
                while served.load(Ordering::Relaxed) < 20 {
                    annulus::task::yield_now().await;
                }
                match round % 3 {
                    0 => serving.abort(),
                    1 => token.shutdown(),
                    _ => token.shutdown_now(),
                }
                for storm in storms {
                    storm.await;
                }
                // Nothing is left that keeps it: all connections have had their end.
                match serving.await {
                    Ok(outcome) => outcome.unwrap(),
                    Err(error) => assert!(error.is_cancelled() && round % 3 == 0, "{error}"),
                }
            });
        }
    }

    fn a_shard_that_fails_ends_serving_with_its_reason(driver: Driver) {
        let name = "a_shard_that_fails_ends_serving_with_its_reason";
        in_own_process(name, driver, || {
            runtime(driver).block_on(async {
                let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
                let address = group.local_addr();
                let group = group.placement(Placement::RoundRobin);
                let serving =
                    spawn(group.serve(async |stream, _| introduce_and_echo(stream).await));
                let clients: Vec<_> =
                    peer(move || (0..8).map(|_| Client::connect(address)).collect()).await;
                let shards = Shard::all();
                drop(shards[2].spawn_with(|| async { refuse_here(&WAITING) }));
                let error = serving.await.unwrap().unwrap_err();
                assert!(error.to_string().contains("shard 2 has failed"), "{error}");
                // On the ring the accept of the failed shard cannot be ended, and keeps the port.
                while driver == Driver::Epoll && ListenerGroup::bind(address).is_err() {
                    annulus::task::yield_now().await;
                }
                // Those of the others go on, and the shard is started anew.
                peer(move || {
                    for mut client in clients.into_iter().filter(|client| client.shard != 2) {
                        client.socket.write_all(b"x").unwrap();
                        client.socket.read_exact(&mut [0]).unwrap();
                        client.leave();
                    }
                })
                .await;
                assert_eq!(shards[2].spawn_with(|| async { 7 }).await.unwrap(), 7);
            });
        });
    }

    fn without_descriptors_the_group_says_so_and_recovers(driver: Driver) {
        let name = "without_descriptors_the_group_says_so_and_recovers";
        in_own_process(name, driver, || {
            runtime(driver).block_on(async {
                // Before the shards accept: the ring goes by the limit that it found then.
                leave_descriptors(100);
                let (told, errors) = mpsc::channel();
                let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
                let address = group.local_addr();
                let group = group.on_accept_error(move |error| {
                    told.send(error.raw_os_error()).unwrap_or_default();
                });
                let _serving =
                    spawn(group.serve(async |stream, _| introduce_and_echo(stream).await));
                // All shards accept: each has what it needs.
                peer(move || (0..64).for_each(|_| Client::connect(address).leave())).await;
                let (mut waiting, taken) = peer(move || {
                    let mut taken = Vec::new();
                    loop {
                        taken.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
                        // One for a client, and none for its other side.
                        taken.pop();
                        let client = std::net::TcpStream::connect(address).unwrap();
                        // Who has just gone may have left one more.
                        if let Ok(error) = errors.recv_timeout(Duration::from_millis(200)) {
                            assert_eq!(error, Some(libc::EMFILE));
                            return (client, taken);
                        }
                    }
                })
                .await;
                drop(taken);
                peer(move || waiting.read_exact(&mut [0]).unwrap()).await;
            });
        });
    }
}

#[test]
fn an_accept_error_nobody_hears_is_written() {
    let name = "an_accept_error_nobody_hears_is_written";
    if !common::process::in_role() {
        let mut child = common::process::Running::start(common::process::role(name));
        let (status, output, errors) = child.finish();
        assert!(status.success(), "{output}\n{errors}");
        let notices = errors.matches("annulus: accepting on 127.0.0.1:").count();
        assert_eq!(notices, 1, "{errors}");
        assert!(errors.contains("(os error 24); raise RLIMIT_NOFILE"), "{errors}");
        return;
    }
    let runtime = Runtime::builder().shards(1).build().unwrap();
    runtime.block_on(async {
        let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
        let address = group.local_addr();
        let client = std::net::TcpStream::connect(address).unwrap();
        leave_descriptors(0);
        let serving = group.serve(async |stream, _| introduce_and_echo(stream).await);
        let served = annulus::time::timeout(Duration::from_millis(350), serving).await;
        assert!(served.is_err());
        drop(client);
    });
}
