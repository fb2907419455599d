//! Every way to read and to write a stream, mixed at random and cut short at random: no byte is
//! lost, doubled or out of its place. `ANNULUS_TEST_SEEDS=100` tries more seeds than the usual few.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::process::Command;
use std::task::Poll;
use std::time::Duration;

use annulus::Runtime;
use annulus::buf::Lease;
use annulus::net::{Family, Stream, Tcp, Unix};
use annulus::time::timeout;

use common::asked;
use common::bytes::{Cursor, Keyed, Numbers};
use common::cut::{attempt, check_attempts};
use common::each_driver;
use common::peer::{self, peer};
use common::steps::poll_once;

mod common;

each_driver! {
    #[deadline_s(3600)]
    fn everything_at_once_keeps_every_byte(driver: Driver) {
        let seeds = asked::number("ANNULUS_TEST_SEEDS", 1).unwrap_or(6);
        for seed in 0..seeds {
            println!("seed {seed}");
            let pool = [1024, 1, 2, 4][seed as usize % 4];
            let builder = Runtime::builder().driver(driver).recv_pool(pool, 4096);
            builder.build().unwrap().block_on(async {
                let (listener, addr) = peer::listen();
                let ours = peer::connect(addr);
                mix::<Tcp>(seed, ours.into(), peer::accept(&listener).into()).await;
                let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                mix::<Unix>(seed, ours.into(), theirs.into()).await;
            });
        }
    }
}

/// Taken for something else, or for nothing, it would let this file pass without what was wanted.
#[test]
fn what_is_asked_for_in_a_way_that_nobody_understands_fails() {
    for (variable, text, expected) in [
        ("ANNULUS_TEST_SEEDS", "0", "a number of at least 1"),
        ("ANNULUS_TEST_SEEDS", "", "a number of at least 1"),
        ("ANNULUS_TEST_SEEDS", "many", "a number of at least 1"),
        ("ANNULUS_TEST_SLOWER", "0", "a number of at least 1"),
        ("ANNULUS_TEST_STORM", "yes", "0 or 1"),
        ("ANNULUS_TEST_NO_URING", "yes", "0 or 1"),
    ] {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "everything_at_once_keeps_every_byte::uring"]);
        command.env_remove("RUST_TEST_NOCAPTURE");
        command.env("ANNULUS_TEST_NO_URING", "0").env(variable, text);
        let output = command.output().expect("run this program");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "{variable}={text:?} passes:\n{said}");
        assert!(said.contains(&format!("{variable}={text:?}: {expected}")), "{said}");
    }
}

const WRITES: usize = 60;
const BYTES: u64 = 3_000_000;

/// One connection, with a peer that sends keyed bytes and takes down what it receives.
async fn mix<F: Family>(seed: u64, ours: OwnedFd, theirs: OwnedFd) {
    let writing = theirs.try_clone().unwrap();
    let sender = peer(move || send(seed, writing));
    let receiver = peer(move || receive(seed, theirs));
    let mut at_random = At {
        numbers: Numbers(seed << 32),
        received: Keyed(seed).cursor(),
        kept: Vec::new(),
        ended: false,
    };
    let mut stream = Stream::<F>::from_std(ours.into()).unwrap();
    let mut whole = Vec::new();
    while !at_random.ended || whole.len() < WRITES {
        match at_random.numbers.below(16) {
            0..4 if whole.len() < WRITES => {
                let number = whole.len();
                whole.push(at_random.write(&mut stream, number).await);
            }
            4 => stream = Stream::attach(stream.detach().unwrap()).unwrap(),
            5 => at_random.drop_some(),
            _ => at_random.read(&mut stream).await,
        }
    }
    stream.shutdown().await.unwrap();
    assert_eq!(at_random.received.offset, BYTES, "bytes are missing");
    check_attempts(&receiver.await, &whole);
    sender.await;
}

struct At {
    numbers: Numbers,
    received: Cursor,
    /// Leases with the place of their bytes in the stream.
    kept: Vec<(u64, Lease)>,
    ended: bool,
}

impl At {
    async fn read<F: Family>(&mut self, stream: &mut Stream<F>) {
        let sizes = [1, 100, 4096, 8192, 16 << 10, 64 << 10, 1 << 20];
        let size = sizes[self.numbers.below(sizes.len() as u64) as usize];
        let mut borrowed = vec![0; size];
        let bytes = match self.numbers.below(6) {
            0 => self.cut(stream.read(&mut borrowed)).await.map(|n| borrowed[..n.unwrap()].into()),
            1 => {
                let peeked = self.cut(stream.peek(&mut borrowed)).await;
                let seen = &borrowed[..peeked.map_or(0, Result::unwrap)];
                return Keyed::check(self.keyed(), self.received.offset, seen);
            }
            2 => self.cut(stream.recv(Vec::with_capacity(size))).await.map(|it| it.unwrap().1),
            3 => self.cut(stream.recv_lease()).await.map(|lease| self.keep(lease.unwrap())),
            4 => {
                let read = self.cut(stream.read_exact(&mut borrowed)).await;
                let left = (BYTES - self.received.offset).min(size as u64) as usize;
                read.map(|result| {
                    assert_eq!(result.is_ok(), left == size, "a short end, or none");
                    borrowed[..left].into()
                })
            }
            _ => {
                let exact = self.cut(stream.recv_exact(vec![0; 7].into_boxed_slice())).await;
                exact.map(|result| match result {
                    Ok((n, buffer)) => buffer[..n].into(),
                    Err(failed) => {
                        let left = BYTES - self.received.offset;
                        assert!(left < 7, "{} with {left} to come", failed.error);
                        failed.buffer[..left as usize].into()
                    }
                })
            }
        };
        if let Some(bytes) = bytes {
            self.received.check(&bytes);
            self.ended |= self.received.offset == BYTES;
        }
    }

    /// True if the write was not cut short.
    async fn write<F: Family>(&mut self, stream: &mut Stream<F>, number: usize) -> bool {
        let bytes = attempt(number);
        match self.numbers.below(5) {
            0 => self.cut(stream.write_all(&bytes)).await.map(Result::unwrap).is_some(),
            1 => self.cut(stream.send_zc(bytes)).await.map(Result::unwrap).is_some(),
            2 => {
                let (head, tail) = bytes.split_at(30_000);
                let slices = vec![head.to_vec(), tail.to_vec()];
                self.cut(stream.send_vectored(slices)).await.map(Result::unwrap);
                false
            }
            3 => {
                self.cut(stream.send(bytes)).await.map(Result::unwrap);
                self.cut(stream.flush()).await.map(Result::unwrap);
                false
            }
            _ => self.cut(stream.send_all(bytes)).await.map(Result::unwrap).is_some(),
        }
    }

    /// Awaits a future, or drops it at a random time.
    async fn cut<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        match self.numbers.below(4) {
            0 => match poll_once(future.as_mut()).await {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            },
            // Long enough for a peer that is slow, so that nothing hangs on the other direction.
            1 => timeout(Duration::from_millis(20), future).await.ok(),
            _ => timeout(Duration::from_micros(self.numbers.below(400)), future).await.ok(),
        }
    }

    fn keep(&mut self, lease: Lease) -> Vec<u8> {
        let bytes = lease.to_vec();
        self.kept.push((self.received.offset, lease));
        bytes
    }

    /// Half of what is kept is checked once more and dropped, some of it on another thread.
    fn drop_some(&mut self) {
        let keyed = self.keyed();
        let gone = self.kept.split_off(self.kept.len() / 2);
        gone.iter().for_each(|(at, lease)| keyed.check(*at, lease));
        if self.numbers.below(2) == 0 {
            std::thread::spawn(move || drop(gone)).join().unwrap();
        }
    }

    fn keyed(&self) -> Keyed {
        Keyed(self.numbers.0 >> 32)
    }
}

fn send(seed: u64, socket: OwnedFd) {
    let mut socket = std::net::TcpStream::from(socket);
    let mut numbers = Numbers(seed);
    let mut sent = Keyed(seed).cursor();
    while sent.offset < BYTES {
        let most = [10, 5000, 200_000][numbers.below(3) as usize];
        let length = (1 + numbers.below(most)).min(BYTES - sent.offset);
        socket.write_all(&sent.next(length as usize)).unwrap();
        if numbers.below(3) == 0 {
            std::thread::sleep(Duration::from_micros(numbers.below(300)));
        }
    }
    socket.shutdown(Shutdown::Write).unwrap();
}

fn receive(seed: u64, socket: OwnedFd) -> Vec<u8> {
    let mut socket = std::net::TcpStream::from(socket);
    let mut numbers = Numbers(!seed);
    let mut wire = Vec::new();
    let mut buf = vec![0; 100_000];
    loop {
        let length = 1 + numbers.below(100_000) as usize;
        match socket.read(&mut buf[..length]).unwrap() {
            0 => return wire,
            n => wire.extend_from_slice(&buf[..n]),
        }
        if numbers.below(3) == 0 {
            std::thread::sleep(Duration::from_micros(numbers.below(500)));
        }
    }
}
