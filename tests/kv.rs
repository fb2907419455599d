//! The example of keys and values: answers are right and in order, and nothing a client sends harms
//! the others.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;

use common::bytes::{Keyed, Numbers};
use common::each_driver;
use common::peer::{self, peer};
use common::process::{Running, example};

mod common;

each_driver! {
    fn a_pipeline_is_answered_in_its_order(driver: Driver) {
        let kv = Kv::start(driver, SHARDS);
        let mut model = Model::default();
        let mut numbers = Numbers(1);
        let (mut requests, mut answers) = (Vec::new(), String::new());
        for _ in 0..5000 {
            requests.extend(model.next(&mut numbers, &mut answers));
        }
        // Cut anywhere, and none waits for an answer.
        let stream = peer::connect(kv.addr);
        let mut reading = stream.try_clone().unwrap();
        let sending = peer(move || {
            let mut rest = &requests[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(1 + numbers.below(3000) as usize));
                (&stream).write_all(now).unwrap();
                rest = later;
            }
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = String::new();
        reading.read_to_string(&mut received).unwrap();
        sending.join();
        assert!(received == answers, "{}", first_difference(&received, &answers));
    }

    fn what_one_client_sets_all_others_get(driver: Driver) {
        let kv = Kv::start(driver, SHARDS);
        let mut clients: Vec<_> = (0..2 * SHARDS).map(|_| kv.connect()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            for key in 0..10 {
                client.ask(&["SET", &format!("{number}-{key}"), &format!("{key} of {number}")]);
                assert_eq!(client.answer(), "+OK");
            }
        }
        for client in &mut clients {
            for number in 0..2 * SHARDS {
                for key in 0..10 {
                    client.ask(&["GET", &format!("{number}-{key}")]);
                    assert_eq!(client.value(), Some(format!("{key} of {number}").into_bytes()));
                }
            }
        }
        let client = &mut clients[0];
        client.ask(&["DEL", "0-0", "1-0", "2-0", "2-0", "nothing"]);
        assert_eq!(client.answer(), ":3");
        client.ask(&["EXISTS", "0-0", "0-1", "1-1", "1-1"]);
        assert_eq!(client.answer(), ":3");
        client.ask(&["GET", "2-0"]);
        assert_eq!(client.value(), None);
    }

    fn increments_of_many_clients_all_count(driver: Driver) {
        let kv = Kv::start(driver, SHARDS);
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let mut client = kv.connect();
                peer(move || {
                    for _ in 0..50 {
                        (0..30).for_each(|key| client.ask(&["INCR", &format!("n{}", key % 3)]));
                        (0..30).for_each(|_| assert!(client.answer().starts_with(':')));
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(peer::Peer::join);
        let mut client = kv.connect();
        for key in ["n0", "n1", "n2"] {
            client.ask(&["GET", key]);
            assert_eq!(client.value().as_deref(), Some(&b"4000"[..]));
        }
        client.ask(&["SET", "n0", "9223372036854775807"]);
        assert_eq!(client.answer(), "+OK");
        client.ask(&["INCR", "n0"]);
        assert_eq!(client.answer(), "-ERR value is not an integer or out of range");
        client.ask(&["GET", "n0"]);
        assert_eq!(client.value().as_deref(), Some(&b"9223372036854775807"[..]));
    }

    fn what_cannot_be_understood_is_told_and_ends_its_connection(driver: Driver) {
        let kv = Kv::start(driver, SHARDS);
        let long = "x".repeat(2000);
        for broken in [
            "*1025\r\n",
            "*999999999999999999999999\r\n",
            "*2147483647\r\n",
            "*x\r\n",
            "*1\n$4\nPING\n",
            "*1\r\n:5\r\n",
            "*1\r\n$-1\r\n",
            "*1\r\n$-9223372036854775808\r\n",
            "*1\r\n$1048577\r\n",
            "*1\r\n$18446744073709551615\r\n",
            "*1\r\n$4\r\nPINGPING\r\n",
            "*11111111111111111111111111111111111",
            "*1\r\n$11111111111111111111111111111111111",
            &long,
        ] {
            let mut client = kv.connect();
            client.send(format!("*1\r\n$4\r\nPING\r\n{broken}").as_bytes());
            assert_eq!(client.answer(), "+PONG", "before {broken:?}");
            let answer = client.answer();
            assert!(answer.starts_with("-ERR Protocol error: "), "{broken:?}: {answer}");
            peer::expect_closed(&client.stream);
        }
        // More than a request may have, each part of which is allowed.
        let client = kv.connect();
        let value = vec![b'v'; 1 << 20];
        client.send(b"*6\r\n$3\r\nDEL\r\n");
        let sending = || -> std::io::Result<()> {
            for _ in 0..5 {
                (&client.stream).write_all(b"$1048576\r\n")?;
                (&client.stream).write_all(&value)?;
                (&client.stream).write_all(b"\r\n")?;
            }
            Ok(())
        };
        // It may be shown out before all is sent, and before it has read why.
        drop(sending());
        let mut told = Vec::new();
        drop((&client.stream).read_to_end(&mut told));
        assert!(!told.starts_with(b":"), "it was carried out");
        kv.is_well();
    }

    fn whatever_is_sent_the_others_are_served(driver: Driver) {
        let kv = Kv::start(driver, SHARDS);
        let mut numbers = Numbers(2);
        let pieces = "* $ \r\n -1 3 GET SET key \0 1048576 *3\r\n".split(' ');
        let pieces: Vec<_> = pieces.chain([" "]).collect();
        for round in 0..300 {
            let mut bytes = Vec::new();
            for _ in 0..numbers.below(40) {
                let piece = pieces[numbers.below(pieces.len() as u64) as usize];
                bytes.extend_from_slice(piece.as_bytes());
            }
            if round % 3 == 0 {
                bytes.extend(Keyed(round).bytes(0, numbers.below(5000) as usize));
            }
            let stream = peer::connect(kv.addr);
            // What it sends may be refused before it has come as a whole.
            drop((&stream).write_all(&bytes));
            if round % 2 == 0 {
                drop(stream.shutdown(Shutdown::Write));
                drop((&stream).read_to_end(&mut Vec::new()));
            }
        }
        kv.is_well();
    }

    fn a_client_that_does_not_read_costs_no_memory(driver: Driver) {
        let kv = Kv::start(driver, SHARDS);
        let mut client = kv.connect();
        let value = Keyed(3).bytes(0, 1 << 20);
        client.ask_bytes(&[b"SET", b"large", &value]);
        assert_eq!(client.answer(), "+OK");
        client.ask(&["GET", "large"]);
        assert!(client.value() == Some(value), "another value came back");

        let before = kv.resident_bytes();
        let idle: Vec<_> = (0..4).map(|_| kv.connect()).collect();
        for client in &idle {
            // 1 GiB of answers each.
            (0..1024).for_each(|_| client.ask(&["GET", "large"]));
        }
        // The server has been there and back.
        kv.is_well();
        let grown = kv.resident_bytes().saturating_sub(before);
        assert!(grown < 16 << 20, "the server has grown by {grown} bytes");
    }

    #[alone]
    fn a_full_store_says_so_and_has_room_again(driver: Driver) {
        let kv = Kv::start(driver, 1);
        let mut client = kv.connect();
        let value = vec![b'v'; 1 << 20];
        let stored = (0..)
            .take_while(|number: &u32| {
                client.ask_bytes(&[b"SET", number.to_string().as_bytes(), &value]);
                let answer = client.answer();
                assert!(answer == "+OK" || answer.starts_with("-OOM "), "{answer}");
                answer == "+OK"
            })
            .count();
        assert_eq!(stored, 255, "of 256 MiB, in which keys take room too");
        client.ask(&["SET", "small", "one"]);
        assert_eq!(client.answer(), "+OK");
        client.ask(&["DEL", "0", "1"]);
        assert_eq!(client.answer(), ":2");
        client.ask_bytes(&[b"SET", b"other", &value]);
        assert_eq!(client.answer(), "+OK");
    }
}

/// The example as a child process.
struct Kv {
    process: Running,
    addr: SocketAddr,
}

impl Kv {
    fn start(driver: annulus::Driver, shards: usize) -> Kv {
        let mut command = Command::new(example("kv"));
        command.arg("127.0.0.1:0").env("ANNULUS_DRIVER", driver.to_string());
        command.env("ANNULUS_SHARDS", shards.to_string());
        let mut process = Running::start(command);
        let addr = process.line_after("listening on ").parse().expect("an address");
        Kv { process, addr }
    }

    fn connect(&self) -> Client {
        let stream = peer::connect(self.addr);
        let input = BufReader::new(stream.try_clone().expect("a second handle"));
        Client { stream, input }
    }

    /// Connections on all shards are answered, for keys of all shards.
    fn is_well(&self) {
        for _ in 0..2 * SHARDS {
            let mut client = self.connect();
            for key in 0..10 {
                client.ask(&["EXISTS", &key.to_string()]);
                assert_eq!(client.answer(), ":0");
            }
        }
    }

    fn resident_bytes(&self) -> usize {
        let path = format!("/proc/{}/statm", self.process.id());
        let text = std::fs::read_to_string(path).expect("read statm");
        let pages = text.split(' ').nth(1).and_then(|it| it.parse::<usize>().ok());
        pages.expect("a number") * 4096
    }
}

struct Client {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

impl Client {
    fn send(&self, bytes: &[u8]) {
        (&self.stream).write_all(bytes).expect("send a request");
    }

    fn ask(&self, arguments: &[&str]) {
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_bytes()).collect();
        self.ask_bytes(&arguments);
    }

    fn ask_bytes(&self, arguments: &[&[u8]]) {
        self.send(&encode(arguments));
    }

    /// A line of an answer, without its end.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.input.read_line(&mut line).expect("receive an answer");
        line.strip_suffix("\r\n").expect("a whole line").to_owned()
    }

    /// An answer that is a value.
    fn value(&mut self) -> Option<Vec<u8>> {
        let head = self.answer();
        let len: i64 = head.strip_prefix('$').and_then(|it| it.parse().ok()).expect("a length");
        let mut value = vec![0; usize::try_from(len).ok()? + 2];
        self.input.read_exact(&mut value).expect("receive a value");
        assert!(value.ends_with(b"\r\n"), "a value without its end");
        value.truncate(value.len() - 2);
        Some(value)
    }
}

fn encode(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// What a store does that is a single one.
#[derive(Default)]
struct Model(HashMap<String, String>);

impl Model {
    /// Makes up a request, and appends what should be answered.
    fn next(&mut self, numbers: &mut Numbers, answers: &mut String) -> Vec<u8> {
        let key = format!("key {}", numbers.below(20));
        let other = format!("key {}", numbers.below(20));
        let request = match numbers.below(7) {
            0 => {
                let value = "v".repeat(numbers.below(100) as usize);
                answers.push_str("+OK\r\n");
                self.0.insert(key.clone(), value.clone());
                vec!["SET".to_owned(), key, value]
            }
            1 => {
                match self.0.get(&key) {
                    Some(value) => write!(answers, "${}\r\n{value}\r\n", value.len()).unwrap(),
                    None => answers.push_str("$-1\r\n"),
                }
                vec!["get".to_owned(), key]
            }
            2 => {
                let found = self.0.contains_key(&key) as u8 + self.0.contains_key(&other) as u8;
                write!(answers, ":{found}\r\n").unwrap();
                vec!["EXISTS".to_owned(), key, other]
            }
            3 => {
                let found =
                    self.0.remove(&key).is_some() as u8 + self.0.remove(&other).is_some() as u8;
                write!(answers, ":{found}\r\n").unwrap();
                vec!["Del".to_owned(), key, other]
            }
            4 => {
                let value = self.0.entry(key.clone()).or_insert_with(|| "0".to_owned());
                match value.parse::<i64>() {
                    Ok(number) => {
                        *value = (number + 1).to_string();
                        write!(answers, ":{value}\r\n").unwrap();
                    }
                    Err(_) => {
                        answers.push_str("-ERR value is not an integer or out of range\r\n");
                    }
                }
                vec!["INCR".to_owned(), key]
            }
            5 => {
                answers.push_str("+PONG\r\n");
                return b"ping\r\n".to_vec();
            }
            _ => {
                answers.push_str("-ERR wrong number of arguments for 'get' command\r\n");
                vec!["GET".to_owned()]
            }
        };
        let request: Vec<_> = request.iter().map(|argument| argument.as_bytes()).collect();
        encode(&request)
    }
}

fn first_difference(received: &str, wanted: &str) -> String {
    let pairs = received.lines().zip(wanted.lines()).enumerate();
    let mut different = pairs.filter(|(_, (received, wanted))| received != wanted);
    match different.next() {
        Some((line, (received, wanted))) => format!("line {line}: {received:?}, not {wanted:?}"),
        None => format!("{} bytes came, not {}", received.len(), wanted.len()),
    }
}

const SHARDS: usize = 3;
