//! One end of a connection: where it stays, how it reads and writes there, and how it ends.

use std::any::Any;
use std::future::pending;
use std::io;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use annulus::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use annulus::net::{Detached, Tcp, TcpStream};
use annulus::time::{Instant, sleep, sleep_until};
use annulus::{JoinError, JoinHandle, Shard};

use super::ledger::{Account, Ledger};
use super::reading::{Reading, State};
use super::seeds::draws;
use super::writing::Writing;
use crate::common::bytes::Numbers;
use crate::common::steps::{Either, poll_once, race};

pub(crate) struct End {
    account: Arc<Account>,
    numbers: Numbers,
    reading: Reading,
    writing: Writing,
    ending: Ending,
    /// Steps until its ending befalls it.
    left: u64,
}

/// How an end leaves its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// When all is sent, and all received.
    Stays,
    Drops,
    Resets,
    DropsDetached,
    DropsReadHalf,
    Panics,
    /// Its task is aborted after this time.
    Aborted(Duration),
}

impl Ending {
    fn draw(numbers: &mut Numbers) -> Self {
        match numbers.below(20) {
            0 => Self::Drops,
            1 => Self::Resets,
            2 => Self::DropsDetached,
            3 => Self::DropsReadHalf,
            4 => Self::Panics,
            5 => Self::Aborted(Duration::from_micros(numbers.below(3000))),
            _ => Self::Stays,
        }
    }
}

fn draws_of(seed: u64, connection: usize, side: usize, part: u64) -> Numbers {
    draws(seed, 8 * (2 * connection + side) as u64 + part)
}

/// The payload of a panic that is part of the plan.
struct Planned;

impl End {
    /// The end of this side, or none if the connection is there twice or not at all.
    pub(crate) fn draw(
        ledger: &Arc<Ledger>,
        seed: u64,
        connection: usize,
        side: usize,
        bytes_max: u64,
    ) -> Option<Self> {
        let draws = |part| draws_of(seed, connection, side, part);
        let mut numbers = draws(0);
        let ending = Ending::draw(&mut numbers);
        let account = Arc::new(ledger.open(connection, side, ending == Ending::Stays)?);
        let most = [bytes_max / 1000 + 1, bytes_max / 20 + 1, bytes_max][numbers.below(3) as usize];
        let bytes = numbers.below(most);
        Some(Self {
            reading: Reading::new(&account, draws(1)),
            writing: Writing::new(&account, draws(2), bytes),
            left: numbers.below(40),
            numbers,
            ending,
            account,
        })
    }

    /// Whether this side wants all that its peer sends.
    pub(crate) fn stays(seed: u64, connection: usize, side: usize) -> bool {
        Ending::draw(&mut draws_of(seed, connection, side, 0)) == Ending::Stays
    }

    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    fn is_over(&self) -> bool {
        self.reading.state() != State::Goes && self.writing.state() != State::Goes
    }
}

/// Sees one end through, from shard to shard.
pub(crate) async fn tend(mut end: End, stream: TcpStream) {
    let account = Arc::clone(&end.account);
    let abort_at = match end.ending {
        Ending::Aborted(after) => Some(Instant::now() + after),
        _ => None,
    };
    let Some(mut detached) = detach(&account, stream).await else { return };
    loop {
        let shards = Shard::all();
        let shard = &shards[end.numbers.below(shards.len() as u64) as usize];
        if *shard != Shard::current() {
            account.ledger().count("moved to another shard");
        }
        let mut stay = shard.spawn_with(move || stay(end, detached));
        let left = match abort_at {
            Some(at) => match race(&mut stay, sleep_until(at)).await {
                Either::Left(left) => left,
                Either::Right(()) => {
                    account.ledger().count("aborted");
                    stay.abort();
                    stay.await
                }
            },
            None => stay.await,
        };
        match left {
            Ok(None) => return,
            Ok(Some(goes_on)) => (end, detached) = goes_on,
            Err(error) if error.is_cancelled() && abort_at.is_some() => return,
            Err(error) => match planned(error) {
                Ok(Planned) => return account.ledger().count("panicked"),
                Err(text) => return account.ledger().fail(text),
            },
        }
    }
}

fn planned(error: JoinError) -> Result<Planned, String> {
    let text = error.to_string();
    let panic: Box<dyn Any + Send> = error.try_into_panic().map_err(|_| text.clone())?;
    panic.downcast().map(|planned| *planned).map_err(|_| text)
}

/// A while on one shard. Gives the end back if it goes on elsewhere.
async fn stay(mut end: End, detached: Detached<Tcp>) -> Option<(End, Detached<Tcp>)> {
    let mut stream = TcpStream::attach(detached).expect("a runtime runs here");
    end.account.is_attached();
    for _ in 0..1 + end.numbers.below(4) {
        let steps = 1 + end.numbers.below(12);
        if end.ending != Ending::Stays && end.left <= steps {
            leave(end, stream).await;
            return None;
        }
        end.left = end.left.saturating_sub(steps);
        match end.numbers.below(5) {
            0 => end.in_turn(&mut stream, steps).await,
            1 => end.first_of_both(&mut stream, steps).await,
            2 => end.by_halves(&mut stream, steps).await,
            3 => (end, stream) = in_two_tasks(end, stream, steps).await?,
            _ if end.ending == Ending::Stays => return to_the_end(end, stream).await,
            _ => {}
        }
        if end.is_over() {
            return None;
        }
    }
    let detached = detach(&end.account, stream).await?;
    Some((end, detached))
}

/// Takes the stream off its shard. While the kernel holds on to some of it, it is asked again.
async fn detach(account: &Account, mut stream: TcpStream) -> Option<Detached<Tcp>> {
    for _ in 0..DETACHES_MAX {
        let error = match stream.detach() {
            Ok(detached) => {
                // Who is aborted with it in hand drops it.
                account.leaves_unsent();
                return Some(detached);
            }
            Err(error) => error,
        };
        let text = error.to_string();
        let Some(back) = error.into_stream() else {
            account.ledger().fail(format!("detach: {text}"));
            return None;
        };
        account.ledger().count("a refused detach");
        stream = back;
        sleep(Duration::from_millis(1)).await;
    }
    account.ledger().fail(format!("{DETACHES_MAX} detaches were refused"));
    None
}

impl End {
    async fn in_turn(&mut self, stream: &mut TcpStream, steps: u64) {
        for _ in 0..steps {
            match self.numbers.below(2) {
                0 => self.reading.step(stream).await,
                _ => self.writing.step(stream).await,
            }
        }
    }

    /// Whichever is ready first; the other is dropped where it stands.
    async fn first_of_both(&mut self, stream: &mut TcpStream, steps: u64) {
        let (mut read, mut write) = stream.split();
        for _ in 0..steps {
            let reading = self.reading.step(&mut read);
            let writing = self.writing.step(&mut write);
            let _first = match self.numbers.below(2) {
                0 => race(reading, writing).await,
                _ => race(writing, reading).await,
            };
        }
    }

    async fn by_halves(&mut self, stream: &mut TcpStream, steps: u64) {
        let (mut read, mut write) = stream.split();
        let reading = async {
            for _ in 0..steps {
                self.reading.step(&mut read).await;
            }
        };
        let writing = async {
            for _ in 0..steps {
                self.writing.step(&mut write).await;
            }
        };
        both(reading, writing).await;
    }
}

/// Two tasks with a half each, which meet again. None if their connection is of no more use.
async fn in_two_tasks(end: End, stream: TcpStream, steps: u64) -> Option<(End, TcpStream)> {
    let (mut read, mut write) = stream.into_split();
    let End { account, numbers, mut reading, mut writing, ending, left } = end;
    let reader = Tied(annulus::spawn(async move {
        for _ in 0..steps {
            reading.step(&mut read).await;
        }
        (reading, read)
    }));
    let writer = Tied(annulus::spawn(async move {
        for _ in 0..steps {
            writing.step(&mut write).await;
        }
        (writing, write)
    }));
    let (reading, read) = rejoin(reader.await);
    let (writing, write) = rejoin(writer.await);
    let end = End { account, numbers, reading, writing, ending, left };
    Some((end, reunite(read, write)))
}

/// Two tasks with a half each, until there is nothing more to do.
async fn to_the_end(end: End, stream: TcpStream) -> Option<(End, Detached<Tcp>)> {
    let (mut read, mut write) = stream.into_split();
    let End { mut numbers, mut reading, mut writing, .. } = end;
    let reader = Tied(annulus::spawn(async move {
        while reading.state() == State::Goes {
            reading.step(&mut read).await;
        }
    }));
    let by_drop = numbers.below(2) == 0;
    let writer = Tied(annulus::spawn(async move {
        while writing.state() == State::Goes && !(by_drop && writing.finishes_by_drop()) {
            writing.step(&mut write).await;
        }
    }));
    rejoin(reader.await);
    rejoin(writer.await);
    None
}

/// The last steps of an end that does not wait for its peer.
async fn leave(mut end: End, mut stream: TcpStream) {
    let steps = end.left;
    match end.ending {
        Ending::Stays => unreachable!("it stays"),
        Ending::DropsReadHalf => return without_the_read_half(end, stream).await,
        // Its end comes while it is here.
        Ending::Aborted(_) => {
            while !end.is_over() {
                end.by_halves(&mut stream, 10).await;
            }
            return pending().await;
        }
        Ending::Panics if end.numbers.below(2) == 0 => {
            let reading = Tied(annulus::spawn(async move {
                end.in_turn(&mut stream, steps).await;
                panics_in_a_read(stream).await;
            }));
            return rejoin(reading.await);
        }
        _ => {}
    }
    end.in_turn(&mut stream, steps).await;
    let ledger = Arc::clone(end.account.ledger());
    match end.ending {
        Ending::Panics => panics_in_a_read(stream).await,
        Ending::Resets => {
            ledger.count("reset");
            end.account.leaves_unsent();
            if let Err(error) = stream.set_linger(Some(Duration::ZERO)) {
                end.account.failed("set_linger", &error);
            }
        }
        Ending::DropsDetached => {
            ledger.count("dropped detached");
            // What the socket has no room for is lost then.
            end.account.leaves_unsent();
            drop(stream.detach());
        }
        _ => ledger.count("dropped"),
    }
}

async fn panics_in_a_read(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    let mut reading = pin!(stream.read(&mut buffer));
    let _ready_or_not = poll_once(reading.as_mut()).await;
    resume_unwind(Box::new(Planned));
}

async fn without_the_read_half(end: End, stream: TcpStream) {
    let (read, mut write) = stream.into_split();
    let End { account, mut writing, left, .. } = end;
    account.ledger().count("dropped a read half");
    drop(read);
    // A peer that does the same never reads what is sent here.
    for _ in 0..left + 20 {
        writing.step(&mut write).await;
    }
}

fn reunite(read: OwnedReadHalf, write: OwnedWriteHalf) -> TcpStream {
    read.reunite(write).expect("two halves of one stream")
}

/// A task that does not outlive its handle.
struct Tied<T>(JoinHandle<T>);

impl<T> Future for Tied<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> Drop for Tied<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the task has to give; its panic goes on here.
fn rejoin<T>(joined: Result<T, JoinError>) -> T {
    joined.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// Waits for both, whichever is ready first.
async fn both(left: impl Future<Output = ()>, right: impl Future<Output = ()>) {
    let (mut left, mut right) = (pin!(left), pin!(right));
    match race(left.as_mut(), right.as_mut()).await {
        Either::Left(()) => right.await,
        Either::Right(()) => left.await,
    }
}

/// Says the number of the connection, so that the server knows it.
pub(crate) async fn say_number(end: &End, stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&(end.account.connection as u64).to_le_bytes()).await
}

/// So often the kernel may hold on to a stream, for a millisecond each time.
const DETACHES_MAX: usize = 1000;
