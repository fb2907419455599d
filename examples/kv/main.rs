//! Keys and values on every core, by the protocol of Redis: `kv [ADDR]`, then `redis-cli`, or
//! `redis-benchmark -t set,get -P 16`.
//!
//! Every key has a home, the one shard that holds it. A connection lives on any shard: what its
//! client asks at once is answered here where the keys are at home here, and what is left goes to
//! each other shard as one piece of mail. Answers come in the order of the requests.
//!
//! | file | idea |
//! | --- | --- |
//! | `main` | connections, and how what they ask gets to its home |
//! | `protocol` | requests as bytes, answers as bytes |
//! | `store` | what a shard holds |

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use annulus::net::{ListenerGroup, TcpStream};
use annulus::{Shard, ShutdownToken};

use protocol::{Answer, Malformed, Parsed, parse, write_answers};
use store::Ask;

mod protocol;
mod store;

/// Answered at once: bounds what is carried to and fro for one connection.
const REQUESTS_MAX: usize = 256;
/// What a connection holds to receive into, unless a request needs more.
const INPUT_BYTES: usize = 4096;

#[annulus::main]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6379".to_owned());
    let group = ListenerGroup::bind(&*address)?
        .with_shutdown(ShutdownToken::on_signals()?, Duration::from_secs(1));
    println!("listening on {}", group.local_addr());
    println!("driver: {}", annulus::driver_info());
    group.serve(async |stream, _peer| attend(stream).await).await
}

async fn attend(mut stream: TcpStream) -> io::Result<()> {
    let shards = Shard::all();
    let mut input = Input { bytes: vec![0; INPUT_BYTES], start: 0, end: 0 };
    let mut output = Vec::new();
    loop {
        let mut batch = Batch::new(shards.len());
        let (taken, next) = batch.take_requests(&input.bytes[input.start..input.end]);
        input.start += taken;
        if !batch.answers.is_empty() {
            let answers = batch.answers(&shards).await?;
            write_answers(&mut stream, &mut output, answers).await?;
        }
        match next {
            Next::Requests => {}
            Next::Bytes(needed) => {
                if !input.receive(&mut stream, needed).await? {
                    return Ok(());
                }
            }
            Next::End => return stream.shutdown().await,
        }
    }
}

/// What has been received and not yet answered: a part of a buffer.
struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// Receives until there are so many bytes; false at the end of the stream.
    async fn receive(&mut self, stream: &mut TcpStream, needed: usize) -> io::Result<bool> {
        let held = self.end - self.start;
        let wanted = needed.max(held).next_multiple_of(INPUT_BYTES);
        // As large as what is received next, and as small again when that has been answered.
        if wanted > self.bytes.len() || wanted == INPUT_BYTES && self.bytes.len() > wanted {
            let mut bytes = vec![0; wanted];
            bytes[..held].copy_from_slice(&self.bytes[self.start..self.end]);
            self.bytes = bytes;
        } else {
            self.bytes.copy_within(self.start..self.end, 0);
        }
        (self.start, self.end) = (0, held);
        while self.end < needed {
            match stream.read(&mut self.bytes[self.end..]).await? {
                0 => return Ok(false),
                count => self.end += count,
            }
        }
        Ok(true)
    }
}

/// Why a batch has ended.
enum Next {
    /// There may be more requests.
    Requests,
    /// The next request is not complete before so many bytes are there.
    Bytes(usize),
    /// The client has said so, or cannot be understood.
    End,
}

/// Requests that came together, and the answers that are there already.
struct Batch {
    answers: Vec<Answer>,
    /// What each shard is asked.
    elsewhere: Vec<Vec<Asked>>,
    here: usize,
}

/// What another shard is asked, and where among the answers the answer belongs.
struct Asked {
    at: usize,
    key: Box<[u8]>,
    ask: Ask,
}

impl Batch {
    fn new(shards: usize) -> Batch {
        let elsewhere = (0..shards).map(|_| Vec::new()).collect();
        Batch { answers: Vec::new(), elsewhere, here: Shard::current().index() }
    }

    /// Takes what can be taken, and returns how many bytes that was.
    fn take_requests(&mut self, bytes: &[u8]) -> (usize, Next) {
        let mut arguments = Vec::new();
        let mut taken = 0;
        while self.answers.len() < REQUESTS_MAX {
            match parse(&bytes[taken..], &mut arguments) {
                Ok(Parsed::Request(len)) => taken += len,
                Ok(Parsed::Incomplete(needed)) => return (taken, Next::Bytes(needed)),
                Err(Malformed(what)) => {
                    self.answers.push(Answer::Error(format!("ERR Protocol error: {what}")));
                    return (bytes.len(), Next::End);
                }
            }
            if let Some((name, arguments)) = arguments.split_first() {
                let mut upper = [0; NAME_BYTES_MAX];
                let name = upper_case(name, &mut upper);
                self.take(name, arguments);
                if name == b"QUIT" {
                    return (taken, Next::End);
                }
            }
        }
        (taken, Next::Requests)
    }

    fn take(&mut self, name: &[u8], arguments: &[&[u8]]) {
        let answer = match (name, arguments) {
            (b"GET", [key]) => return self.ask(key, Ask::Get),
            (b"SET", [key, value]) => return self.ask(key, Ask::Set(Arc::from(*value))),
            (b"INCR", [key]) => return self.ask(key, Ask::Increment),
            (b"DEL" | b"EXISTS", [_, ..]) => {
                self.answers.push(Answer::SumOf(arguments.len()));
                for key in arguments {
                    self.ask(key, if name == b"DEL" { Ask::Delete } else { Ask::Exists });
                }
                return;
            }
            (b"PING", []) => Answer::Line("+PONG\r\n"),
            (b"PING" | b"ECHO", [text]) => Answer::Value(Some(Arc::from(*text))),
            (b"QUIT", _) => Answer::Line("+OK\r\n"),
            // What the clients of Redis ask before they begin.
            (b"COMMAND", _) => Answer::Line("*0\r\n"),
            (b"CONFIG", [get, name]) if get.eq_ignore_ascii_case(b"GET") => {
                Answer::Setting(Arc::from(*name))
            }
            (b"INFO", _) => Answer::Value(Some(Arc::from(INFO.as_bytes()))),
            (b"SET", [_, _, _, ..]) => Answer::Error("ERR syntax error".to_owned()),
            (b"GET" | b"SET" | b"INCR" | b"DEL" | b"EXISTS" | b"PING" | b"ECHO" | b"CONFIG", _) => {
                let name = String::from_utf8_lossy(name).to_lowercase();
                Answer::Error(format!("ERR wrong number of arguments for '{name}' command"))
            }
            _ => Answer::Error(format!("ERR unknown command '{}'", name.escape_ascii())),
        };
        self.answers.push(answer);
    }

    /// Answers now if the key is at home here.
    fn ask(&mut self, key: &[u8], ask: Ask) {
        let home = store::home(key, self.elsewhere.len());
        if home == self.here {
            self.answers.push(store::answer(key, ask));
        } else {
            let at = self.answers.len();
            self.elsewhere[home].push(Asked { at, key: Box::from(key), ask });
            // Until the other shard has answered.
            self.answers.push(Answer::Integer(0));
        }
    }

    /// The answers to all requests, those of the other shards among them.
    async fn answers(self, shards: &[Shard]) -> io::Result<Vec<Answer>> {
        let Batch { mut answers, elsewhere, .. } = self;
        let send = |(shard, asked): (&Shard, Vec<Asked>)| {
            shard.spawn_with(move || {
                let answer = |Asked { at, key, ask }: Asked| (at, store::answer(&key, ask));
                ready(asked.into_iter().map(answer).collect::<Vec<_>>())
            })
        };
        // All are asked before the first is waited for.
        let asked = shards.iter().zip(elsewhere).filter(|(_, asked)| !asked.is_empty());
        let handles: Vec<_> = asked.map(send).collect();
        for handle in handles {
            for (at, answer) in handle.await? {
                answers[at] = answer;
            }
        }
        Ok(answers)
    }
}

/// The name of a command as it is looked up; one that is too long for any is cut.
fn upper_case<'a>(name: &[u8], upper: &'a mut [u8; NAME_BYTES_MAX]) -> &'a [u8] {
    let len = name.len().min(upper.len());
    upper[..len].copy_from_slice(&name[..len]);
    upper[..len].make_ascii_uppercase();
    &upper[..len]
}

const NAME_BYTES_MAX: usize = 16;
const INFO: &str = "# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\n";
