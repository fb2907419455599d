//! A chat of lines on one thread: `chat [ADDR]`, then `nc 127.0.0.1 7000`. The first line is your
//! name.
//!
//! The room remembers its last lines, and each client has a task that sends them on from where it
//! stands. So a client that does not read holds nobody up and costs no memory: it misses lines.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use annulus::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use annulus::net::{TcpListener, TcpStream};
use annulus::task::yield_now;
use annulus::time::sleep;

/// What a client may send without a line's end, before it is shown out.
const LINE_BYTES_MAX: usize = 1024;
/// How far a client may lag behind.
const LINES_MAX: usize = 256;

#[annulus::main]
async fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    println!("driver: {}", annulus::driver_info());
    let room = Rc::new(RefCell::new(Room::default()));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let room = Rc::clone(&room);
                annulus::spawn(async move {
                    if let Err(error) = attend(&room, stream).await {
                        eprintln!("{peer}: {error}");
                    }
                });
            }
            Err(error) => {
                eprintln!("accept: {error}");
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

async fn attend(room: &Rc<RefCell<Room>>, stream: TcpStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut input = Lines { read, received: Vec::new() };
    let name = loop {
        write.write_all(b"your name?\n").await?;
        match input.next().await? {
            None => return Ok(()),
            Some(name) if room.borrow_mut().enter(&name) => break name,
            Some(_) => {}
        }
    };
    let guest = Guest { room: Rc::clone(room), name };
    let first = room.borrow().next_line();
    guest.say("joins");
    let sending = annulus::spawn(send_lines(Rc::clone(room), first, write));
    let result = loop {
        match input.next().await {
            Ok(Some(line)) => {
                guest.say(&format!("says: {line}"));
                // The others take the line before there is another: only who lags misses any.
                yield_now().await;
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    sending.abort();
    result
}

/// Sends the room's lines from `at` on.
async fn send_lines(
    room: Rc<RefCell<Room>>,
    mut at: u64,
    mut write: OwnedWriteHalf,
) -> io::Result<()> {
    loop {
        let (line, missed) = poll_fn(|cx| room.borrow_mut().poll_line(&mut at, cx.waker())).await;
        if missed > 0 {
            write.write_all(format!("({missed} lines missed)\n").as_bytes()).await?;
        }
        write.write_all(line.as_bytes()).await?;
    }
}

/// The last lines, who is here, and who waits for the next line.
#[derive(Default)]
struct Room {
    names: BTreeSet<String>,
    lines: VecDeque<Rc<str>>,
    forgotten: u64,
    waiting: Vec<Waker>,
}

impl Room {
    fn enter(&mut self, name: &str) -> bool {
        !name.is_empty() && self.names.insert(name.to_owned())
    }

    fn next_line(&self) -> u64 {
        self.forgotten + self.lines.len() as u64
    }

    fn say(&mut self, line: String) {
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
            self.forgotten += 1;
        }
        self.lines.push_back(line.into());
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// The line at a position, or the oldest that is left, and how many lines lay in between.
    fn poll_line(&mut self, at: &mut u64, waker: &Waker) -> Poll<(Rc<str>, u64)> {
        let missed = self.forgotten.saturating_sub(*at);
        match self.lines.get((*at + missed - self.forgotten) as usize) {
            Some(line) => {
                *at += missed + 1;
                Poll::Ready((Rc::clone(line), missed))
            }
            None => {
                self.waiting.push(waker.clone());
                Poll::Pending
            }
        }
    }
}

/// Somebody in the room, until dropped.
struct Guest {
    room: Rc<RefCell<Room>>,
    name: String,
}

impl Guest {
    fn say(&self, what: &str) {
        self.room.borrow_mut().say(format!("{} {what}\n", self.name));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.say("leaves");
        self.room.borrow_mut().names.remove(&self.name);
    }
}

struct Lines {
    read: OwnedReadHalf,
    received: Vec<u8>,
}

impl Lines {
    /// The next line without its end; `None` when there are no more.
    async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim().to_owned()));
            }
            if self.received.len() > LINE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
            }
            let mut buffer = [0; LINE_BYTES_MAX];
            match self.read.read(&mut buffer).await? {
                0 => return Ok(None),
                count => self.received.extend_from_slice(&buffer[..count]),
            }
        }
    }
}
