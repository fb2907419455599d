//! One side of one connection. The client's and the server's are the same, with roles swapped.

use std::io::{self, ErrorKind};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::time::Duration;

use annulus::JoinHandle;
use annulus::net::TcpStream;
use annulus::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use annulus::time::{sleep, timeout};

use crate::keyed::Numbers;
use crate::plan::{Ending, Plan, Side};
use crate::tally;

/// How far one direction has come.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reached {
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// The payload of a panic that is part of the plan.
struct Planned;

/// How a leg of the way has gone.
enum Leg {
    /// Both directions have come where they should.
    There(TcpStream, Reached),
    /// The connection is over, as planned or not: the tally knows.
    Over,
}

/// Receives and sends in two tasks until both directions have come to a half, or to the end.
async fn leg(stream: TcpStream, plan: &Rc<Plan>, side: Side, from: Reached, half: bool) -> Leg {
    let (read, write) = stream.into_split();
    let most = |of: Side| if half { plan.bytes_of(of) / 2 } else { u64::MAX };
    let reading = Reading { read, plan: Rc::clone(plan), side, offset: from.received };
    let writing = Writing { write, plan: Rc::clone(plan), side, offset: from.sent };
    let reader = annulus::spawn(reading.run(most(side.other())));
    let writer = annulus::spawn(writing.run(most(side)));
    if plan.ending == Ending::Aborts(side) {
        sleep(Duration::from_micros(plan.numbers(3).below(3000))).await;
        reader.abort();
        writer.abort();
    }
    let Some(reading) = joined(reader).await else {
        writer.abort();
        joined(writer).await;
        return Leg::Over;
    };
    let Some(writing) = joined(writer).await else { return Leg::Over };
    let reached = Reached { received: reading.offset, sent: writing.offset };
    match reading.read.reunite(writing.write) {
        Ok(stream) => Leg::There(stream, reached),
        Err(_) => {
            tally::error("two halves of one stream do not fit");
            Leg::Over
        }
    }
}

/// None if it left, failed, was aborted, or panicked by plan.
async fn joined<T>(task: JoinHandle<Option<T>>) -> Option<T> {
    let error = match task.await {
        Ok(output) => return output,
        Err(error) => error,
    };
    let text = error.to_string();
    if !error.is_cancelled() && !error.try_into_panic().is_ok_and(|panic| panic.is::<Planned>()) {
        tally::error(&text);
    }
    None
}

struct Reading {
    read: OwnedReadHalf,
    plan: Rc<Plan>,
    side: Side,
    offset: u64,
}

impl Reading {
    /// Receives until `most`, or the end. Gives itself back if the connection is still good.
    async fn run(mut self, most: u64) -> Option<Self> {
        let plan = Rc::clone(&self.plan);
        let from = self.side.other();
        let mut numbers = plan.numbers(4 + self.side as u64);
        numbers.0 ^= self.offset;
        let leaves_at = leaves_at(&plan, self.side, plan.bytes_of(from), &mut numbers);
        while self.offset < most {
            if self.offset >= leaves_at {
                return self.leave().await;
            }
            let room = most - self.offset;
            match self.step(&mut numbers, room).await {
                Err(error) => return self.fails("receiving", &error),
                Ok(Some(0)) => return self.ends(),
                Ok(_) => {}
            }
            if plan.slow == Some(self.side) {
                sleep(Duration::from_micros(1000 + numbers.below(15_000))).await;
            }
        }
        Some(self)
    }

    /// One operation. None if it took nothing, as it was dropped on the way.
    async fn step(&mut self, numbers: &mut Numbers, room: u64) -> io::Result<Option<usize>> {
        let slow = self.plan.slow == Some(self.side);
        let size = 1 + numbers.below(if slow { 200 } else { 9000 });
        let mut buffer = vec![0; size.min(room) as usize];
        let patience = Duration::from_micros(numbers.below(500));
        match numbers.below(8) {
            0 => {
                if let Ok(Ok(count)) = timeout(patience, self.read.peek(&mut buffer)).await {
                    self.check(&buffer[..count]);
                }
                Ok(None)
            }
            // A lease takes what has come, whatever the room is.
            1 if room == u64::MAX - self.offset => {
                let leased = timeout(patience, self.read.recv_lease()).await;
                self.taken(leased.ok().transpose()?.as_deref())
            }
            2 => {
                let receiving = self.read.recv(buffer);
                let received = timeout(patience, receiving).await.ok().transpose()?;
                self.taken(received.as_ref().map(|(_, buffer)| &buffer[..]))
            }
            3 | 4 => {
                let count = timeout(patience, self.read.read(&mut buffer)).await;
                self.taken(count.ok().transpose()?.map(|count| &buffer[..count]))
            }
            _ => {
                let count = self.read.read(&mut buffer).await?;
                self.taken(Some(&buffer[..count]))
            }
        }
    }

    fn taken(&mut self, bytes: Option<&[u8]>) -> io::Result<Option<usize>> {
        let Some(bytes) = bytes else { return Ok(None) };
        self.check(bytes);
        tally::checked(bytes.len());
        self.offset += bytes.len() as u64;
        Ok(Some(bytes.len()))
    }

    fn check(&self, bytes: &[u8]) {
        let from = self.side.other();
        if let Err(what) = self.plan.keyed(from).check(self.offset, bytes) {
            tally::error(&format!("connection {}: from the {from:?}: {what}", self.plan.number));
        }
        if self.offset + bytes.len() as u64 > self.plan.bytes_of(from) {
            let number = self.plan.number;
            tally::error(&format!("connection {number}: the {from:?} sent more than it has"));
        }
    }

    fn ends(self) -> Option<Self> {
        let all = self.plan.bytes_of(self.side.other());
        if self.plan.is_clean() && self.offset != all {
            let number = self.plan.number;
            tally::error(&format!("connection {number}: ended at {} of {all}", self.offset));
        }
        Some(self)
    }

    fn fails(self, what: &str, error: &io::Error) -> Option<Self> {
        unless_planned(&self.plan, what, error);
        None
    }

    async fn leave(mut self) -> Option<Self> {
        match self.plan.ending {
            Ending::Panics(_) => {
                // With an operation under way.
                let mut byte = [0];
                let _ = timeout(Duration::ZERO, self.read.read(&mut byte)).await;
                resume_unwind(Box::new(Planned))
            }
            _ => None,
        }
    }
}

struct Writing {
    write: OwnedWriteHalf,
    plan: Rc<Plan>,
    side: Side,
    offset: u64,
}

impl Writing {
    /// Sends until `most`, or everything and then the end. Gives itself back if the connection is
    /// still good.
    async fn run(mut self, most: u64) -> Option<Self> {
        let plan = Rc::clone(&self.plan);
        let all = plan.bytes_of(self.side);
        let mut numbers = plan.numbers(6 + self.side as u64);
        numbers.0 ^= self.offset;
        let leaves_at = leaves_at(&plan, self.side, all, &mut numbers);
        while self.offset < all.min(most) {
            if self.offset >= leaves_at {
                return None;
            }
            let slow = plan.slow == Some(self.side);
            let len = 1 + numbers.below(if slow { 200 } else { 20_000 });
            let len = len.min(all.min(most) - self.offset) as usize;
            match self.step(&mut numbers, len).await {
                Ok(count) => self.offset += count as u64,
                Err(error) => return self.fails("sending", &error),
            }
            if slow {
                sleep(Duration::from_micros(1000 + numbers.below(15_000))).await;
            }
        }
        if most < u64::MAX {
            return Some(self);
        }
        if self.side == Side::Client && plan.idles > Duration::ZERO {
            sleep(plan.idles).await;
        }
        match self.write.shutdown().await {
            Ok(()) => Some(self),
            Err(error) => self.fails("the end", &error),
        }
    }

    /// One operation, and how many bytes it took.
    async fn step(&mut self, numbers: &mut Numbers, len: usize) -> io::Result<usize> {
        let bytes = self.plan.keyed(self.side).bytes(self.offset, len);
        let patience = Duration::from_micros(numbers.below(500));
        match numbers.below(6) {
            0 => self.write.write_all(&bytes).await.map(|()| len),
            1 => Ok(self.write.send_all(bytes).await?.0),
            2 => {
                let slices: Vec<_> = bytes.chunks(1 + len / 3).map(io::IoSlice::new).collect();
                self.write.write_vectored(&slices).await
            }
            3 => match timeout(patience, self.write.flush()).await {
                Ok(flushed) => flushed.map(|()| 0),
                Err(_) => Ok(0),
            },
            4 => match timeout(patience, self.write.send(bytes)).await {
                Ok(sent) => Ok(sent?.0),
                Err(_) => Ok(0),
            },
            _ => timeout(patience, self.write.write(&bytes)).await.unwrap_or(Ok(0)),
        }
    }

    fn fails(self, what: &str, error: &io::Error) -> Option<Self> {
        unless_planned(&self.plan, what, error);
        None
    }
}

/// Where this side leaves, if it is the one that does; never else.
fn leaves_at(plan: &Plan, side: Side, bytes: u64, numbers: &mut Numbers) -> u64 {
    let at = numbers.below(bytes + 1);
    let leaves = [Ending::Drops(side), Ending::Panics(side)].contains(&plan.ending);
    if leaves { at } else { u64::MAX }
}

/// A connection that ends as planned may fail so; any other error is one.
pub(crate) fn unless_planned(plan: &Plan, what: &str, error: &io::Error) {
    let gone = matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected
    );
    if plan.is_clean() || !gone {
        tally::error(&format!("connection {} ({:?}): {what}: {error}", plan.number, plan.ending));
    }
}

/// The first half of the way of a connection whose number both sides know.
pub(crate) async fn begin(
    stream: TcpStream,
    plan: &Rc<Plan>,
    side: Side,
) -> Option<(TcpStream, Reached)> {
    match leg(stream, plan, side, Reached::default(), true).await {
        Leg::There(stream, reached) => Some((stream, reached)),
        Leg::Over => None,
    }
}

/// The second half of the way.
pub(crate) async fn finish(stream: TcpStream, plan: &Rc<Plan>, side: Side, reached: Reached) {
    if plan.ending == Ending::Resets(side) {
        if let Err(error) = stream.set_linger(Some(Duration::ZERO)) {
            unless_planned(plan, "linger", &error);
        }
        return;
    }
    let _over = leg(stream, plan, side, reached, false).await;
}
