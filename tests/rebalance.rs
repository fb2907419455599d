//! Live connections that go from shard to shard: the example that does so where one is busy, and
//! streams that move at random with everything that is on its way.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use annulus::net::stream::Detached;
use annulus::net::{ListenerGroup, Placement, Tcp, TcpStream};
use annulus::time::timeout;
use annulus::{Runtime, Shard, spawn};

use common::bytes::{Cursor, Keyed, Numbers};
use common::each_driver;
use common::peer::{self, Peer, peer};
use common::process::{Running, example};

mod common;

each_driver! {
    #[deadline_s(120)]
    fn the_example_moves_connections_off_a_busy_shard_and_no_byte_is_lost(driver: Driver) {
        let mut server = start(driver);
        let address = server.address;
        let clients: Vec<_> = (0..8 * SHARDS).map(|_| Client::connect(address)).collect();
        let busy = clients[0].shard;
        let (busy_clients, idle_clients): (Vec<_>, Vec<_>) =
            clients.into_iter().partition(|client| client.shard == busy);
        assert_eq!(busy_clients.len(), 8, "the group spreads connections by number");

        let (over, places) = (Arc::new(AtomicBool::new(false)), Arc::new(Places::new(busy)));
        let loads: Vec<_> = (0..)
            .zip(busy_clients)
            .map(|(key, client)| {
                let (over, places) = (Arc::clone(&over), Arc::clone(&places));
                peer(move || load(client, key, &over, &places))
            })
            .collect();
        // The watchdog ends this if they all stay.
        while places.taken().len() < SHARDS {
            assert!(!loads.iter().any(Peer::is_over), "a client has failed");
            std::thread::yield_now();
        }
        let moved = server.running.line_after("moved ");
        assert!(moved.contains(&format!(" from shard {busy} to shard ")), "{moved}");
        over.store(true, Ordering::Relaxed);
        let answered: usize = loads.into_iter().map(Peer::join).sum();
        assert!(answered >= 8 * PIPELINED, "only {answered} requests were answered");
        // Who asked for no work has cost nothing, and stays.
        for mut client in idle_clients {
            let shard = client.shard;
            client.say("still there");
            assert_eq!(client.answer(), (shard, "still there".to_owned()));
        }
    }

    fn the_example_moves_nothing_where_nobody_is_busy(driver: Driver) {
        let server = start(driver);
        let mut clients: Vec<_> =
            (0..2 * SHARDS).map(|_| Client::connect(server.address)).collect();
        // For a few of the looks that it takes ten times a second.
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            for client in &mut clients {
                client.say("hello");
                assert_eq!(client.answer().0, client.shard);
            }
        }
        let (output, errors) = server.running.kill();
        assert!(!output.contains("moved"), "{output}");
        assert_eq!(errors, "");
    }

    #[deadline_s(120)]
    fn a_hundred_connections_move_between_shards_and_lose_no_byte(driver: Driver) {
        const CONNECTIONS: u64 = 100;
        let runtime = Runtime::builder().driver(driver).shards(3).build().unwrap();
        runtime.block_on(async {
            let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
            let group = group.placement(Placement::RoundRobin);
            let address = group.local_addr();
            let (report, reports) = mpsc::channel();
            let next = Arc::new(AtomicUsize::new(0));
            let serving = spawn(group.serve(async move |stream, _peer| {
                let traveller = Traveller::new(next.fetch_add(1, Ordering::Relaxed) as u64);
                traveller.stay(stream, report.clone()).await
            }));
            let peers: Vec<_> = (0..CONNECTIONS).map(|_| talk(address)).collect();
            let mut talked = 0;
            for both in peers {
                let (sent, received) = both.await;
                talked += sent + received;
            }
            let (mut heard, mut moves) = (0, 0);
            for _ in 0..CONNECTIONS {
                let traveller = reports.recv().expect("each says what it has seen");
                heard += traveller.received.offset + traveller.sent.offset;
                moves += traveller.moves;
                assert_eq!(traveller.seen, BTreeSet::from([0, 1, 2]));
            }
            assert_eq!(heard, talked, "bytes were lost or repeated");
            assert!(moves >= 20 * CONNECTIONS, "only {moves} moves");
            serving.abort();
        });
    }
}

const SHARDS: usize = 4;
/// Requests that a client has on their way at once.
const PIPELINED: usize = 3;
/// What a peer sends before it ends its side.
const SENT_BYTES: usize = 100_000;

/// The example as a child process.
struct Server {
    running: Running,
    address: SocketAddr,
}

fn start(driver: annulus::Driver) -> Server {
    let mut command = Command::new(example("rebalance"));
    command.arg("127.0.0.1:0").env("ANNULUS_DRIVER", driver.to_string());
    command.env("ANNULUS_SHARDS", SHARDS.to_string());
    let mut running = Running::start(command);
    let line = running.line_after("listening on ");
    let address = line.split(' ').next().and_then(|it| it.parse().ok()).expect("an address");
    Server { running, address }
}

/// A client that knows which shard has answered it last.
struct Client {
    stream: std::net::TcpStream,
    input: BufReader<std::net::TcpStream>,
    shard: usize,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = peer::connect(address);
        let input = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut client = Client { stream, input, shard: 0 };
        client.say("hello");
        client.answer();
        client
    }

    fn say(&mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).expect("send a line");
    }

    /// The shard that has answered, and the line that it sent back.
    fn answer(&mut self) -> (usize, String) {
        let mut line = String::new();
        self.input.read_line(&mut line).expect("receive a line");
        let (shard, line) = line.trim_end().split_once(' ').expect("a number and a line");
        self.shard = shard.parse().expect("a number");
        (self.shard, line.to_owned())
    }
}

/// Asks for work again and again, several times at once, and checks every byte of what comes back.
fn load(mut client: Client, key: u64, over: &AtomicBool, places: &Places) -> usize {
    let (mut asked, mut answered) = (0, 0);
    while !over.load(Ordering::Relaxed) || answered < asked {
        while asked < answered + PIPELINED && !over.load(Ordering::Relaxed) {
            client.say(&request(key, asked));
            asked += 1;
        }
        if answered < asked {
            let (shard, line) = client.answer();
            assert_eq!(line, request(key, answered));
            answered += 1;
            places.set(key as usize, shard);
        }
    }
    answered
}

/// A request with bytes that belong to it alone, and a length of its own.
fn request(key: u64, number: usize) -> String {
    let len = 1 + number * 7 % 200;
    let bytes = Keyed(key).bytes(1000 * number as u64, len);
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("work 2000 {text}")
}

/// Where each of the busy clients is served now.
struct Places([AtomicUsize; 8]);

impl Places {
    fn new(all: usize) -> Places {
        Places([(); 8].map(|()| AtomicUsize::new(all)))
    }

    fn set(&self, client: usize, shard: usize) {
        self.0[client].store(shard, Ordering::Relaxed);
    }

    fn taken(&self) -> BTreeSet<usize> {
        self.0.iter().map(|shard| shard.load(Ordering::Relaxed)).collect()
    }
}

/// Introduces itself by a number, and both sends and receives until its own side has ended and the
/// other one does. Answers how many bytes each way were right.
fn talk(address: SocketAddr) -> Peer<(u64, u64)> {
    peer(move || {
        let mut stream = peer::connect(address);
        let mut number = [0; 8];
        io::Read::read_exact(&mut stream, &mut number).expect("the connection's number");
        let number = u64::from_le_bytes(number);
        let (mut sent, mut received) = (incoming(number).cursor(), outgoing(number).cursor());
        let other = stream.try_clone().expect("a second handle");
        let sender = peer(move || {
            let mut sizes = Numbers(number);
            while sent.offset < SENT_BYTES as u64 {
                peer::send(&other, &mut sent, 1 + sizes.below(2000) as usize);
            }
            other.shutdown(std::net::Shutdown::Write).expect("end our side");
            sent.offset
        });
        peer::expect_until_end(&stream, &mut received);
        (sender.join(), received.offset)
    })
}

fn incoming(number: u64) -> Keyed {
    Keyed(2 * number)
}

fn outgoing(number: u64) -> Keyed {
    Keyed(2 * number + 1)
}

/// A connection that is served now here and now there.
struct Traveller {
    number: u64,
    numbers: Numbers,
    received: Cursor,
    sent: Cursor,
    moves: u64,
    seen: BTreeSet<usize>,
}

/// What a stay has come to.
enum Then {
    Move,
    End,
}

impl Traveller {
    fn new(number: u64) -> Traveller {
        let (received, sent) = (incoming(number).cursor(), outgoing(number).cursor());
        let (numbers, seen) = (Numbers(number), BTreeSet::new());
        Traveller { number, numbers, received, sent, moves: 0, seen }
    }

    async fn stay(mut self, mut stream: TcpStream, report: mpsc::Sender<Traveller>) {
        if self.seen.is_empty() {
            stream.write_all(&self.number.to_le_bytes()).await.unwrap();
        }
        let here = Shard::current().index();
        self.seen.insert(here);
        match self.talk(&mut stream).await {
            Then::Move => {
                self.moves += 1;
                let detached = stream.detach().unwrap();
                let next = (here + 1 + self.numbers.below(2) as usize) % 3;
                drop(Shard::all()[next].spawn_with(move || self.arrive(detached, report)));
            }
            Then::End => {
                stream.shutdown().await.unwrap();
                report.send(self).unwrap();
            }
        }
    }

    async fn arrive(self, detached: Detached<Tcp>, report: mpsc::Sender<Traveller>) {
        self.stay(TcpStream::attach(detached).unwrap(), report).await;
    }

    /// Reads and writes a few times, with reads that are given up half way.
    async fn talk(&mut self, stream: &mut TcpStream) -> Then {
        let mut buffer = [0; 3000];
        for _ in 0..=self.numbers.below(4) {
            let len = 1 + self.numbers.below(2000) as usize;
            stream.write_all(&self.sent.next(len)).await.unwrap();
            let patience = Duration::from_micros(self.numbers.below(300));
            let room = 1 + self.numbers.below(3000) as usize;
            match timeout(patience, stream.read(&mut buffer[..room])).await.map(Result::unwrap) {
                Ok(0) => return Then::End,
                Ok(count) => self.received.check(&buffer[..count]),
                // The bytes come later, perhaps elsewhere.
                Err(_elapsed) => return Then::Move,
            }
        }
        Then::Move
    }
}
