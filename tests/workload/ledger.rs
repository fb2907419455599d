//! The ledger: what each end of each connection has sent and received, and how it has ended. At
//! the end both sides must agree with what the way it ended allows.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wire::{HEAD, Piece, Place, RECORDS_MAX, Script};

/// All connections of one run. Shared by all shards; none holds the lock over an await.
pub(crate) struct Ledger {
    seed: u64,
    /// The listener goes away at times, and the network may break any connection.
    allowed: Allowed,
    books: Mutex<Books>,
}

/// What may befall a connection though neither end wants it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Allowed {
    /// A connection may be refused, or ended before it is accepted.
    pub(crate) refused: bool,
    /// A connection may be reset at any time.
    pub(crate) reset: bool,
}

#[derive(Default)]
struct Books {
    connections: Vec<Connection>,
    /// Ends that live: with a name, and those whose connection is not known yet.
    open: usize,
    failures: Vec<String>,
    counts: Vec<(&'static str, u64)>,
    bytes: u64,
}

#[derive(Default)]
struct Connection {
    ends: [End; 2],
}

/// One end of a connection: what it sends, and what has reached it.
#[derive(Default)]
struct End {
    begun: bool,
    over: bool,
    /// It was meant to see the connection through to both ends.
    stays: bool,
    doing: &'static str,
    shard: usize,
    sent: Vec<Sent>,
    /// It has told its peer that nothing more comes.
    finished: bool,
    /// It may have left bytes unsent although it was told that they were taken.
    leaves_unsent: bool,
    received: Vec<Part>,
    seen_end: bool,
    error: Option<String>,
}

/// What may have left of one record.
#[derive(Clone, Copy)]
struct Sent {
    least: usize,
    most: usize,
}

/// What has come of one record.
#[derive(Clone, Copy)]
struct Part {
    number: Option<usize>,
    len: usize,
}

impl Ledger {
    /// Which servers stay is known before they come: one that never does is missed.
    pub(crate) fn new(
        seed: u64,
        connections: usize,
        allowed: Allowed,
        server_stays: impl Fn(usize) -> bool,
    ) -> Arc<Self> {
        let mut books = Books::default();
        books.connections.resize_with(connections, Connection::default);
        for (number, connection) in books.connections.iter_mut().enumerate() {
            connection.ends[1].stays = server_stays(number);
        }
        Arc::new(Self { seed, allowed, books: Mutex::new(books) })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // A task that panics on purpose holds no lock; one that fails has failed the run.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of something that the run does; what never happens is not tested.
    pub(crate) fn count(&self, what: &'static str) {
        let mut books = self.books();
        match books.counts.iter_mut().find(|(name, _)| *name == what) {
            Some((_, count)) => *count += 1,
            None => books.counts.push((what, 1)),
        }
    }

    /// Something that must never happen.
    pub(crate) fn fail(&self, what: String) {
        let mut books = self.books();
        if books.failures.len() < FAILURES_TOLD {
            books.failures.push(what);
        }
    }

    /// The account of one end, which is over when it is dropped.
    pub(crate) fn open(
        self: &Arc<Self>,
        connection: usize,
        side: usize,
        stays: bool,
    ) -> Option<Account> {
        let mut books = self.books();
        let Some(end) = books.connections.get_mut(connection).map(|it| &mut it.ends[side]) else {
            drop(books);
            self.fail(format!("nobody has connection {connection}"));
            return None;
        };
        if end.begun {
            drop(books);
            self.fail(format!("connection {connection} came twice"));
            return None;
        }
        (end.begun, end.stays) = (true, stays);
        books.open += 1;
        Some(Account { ledger: Arc::clone(self), connection, side })
    }

    /// An end whose connection is not known yet.
    pub(crate) fn nameless(self: &Arc<Self>) -> Nameless {
        self.books().open += 1;
        Nameless(Arc::clone(self))
    }

    pub(crate) fn has_open_ends(&self) -> bool {
        self.books().open > 0
    }

    /// What is still open, for who finds that the run hangs.
    pub(crate) fn open_ends(&self) -> String {
        let books = self.books();
        let mut text = format!("{} open ends", books.open);
        for (number, connection) in books.connections.iter().enumerate() {
            for (side, end) in connection.ends.iter().enumerate() {
                if end.begun && !end.over {
                    text += &format!("\nconnection {number}, {}: {}", SIDES[side], end.state());
                }
            }
        }
        text
    }

    /// Compares both sides of every connection, once all are over.
    pub(crate) fn settle(&self) -> Tally {
        let mut books = self.books();
        let mut found = Vec::new();
        for (number, connection) in books.connections.iter().enumerate() {
            for reader in [0, 1] {
                let [writer, reader] = [&connection.ends[1 - reader], &connection.ends[reader]];
                if let Err(what) = self.agree(writer, reader) {
                    found.push(format!("connection {number}: {what}\n{}", connection.text()));
                }
            }
        }
        let received = |end: &End| end.received.iter().map(|part| part.len as u64).sum::<u64>();
        books.bytes = books.connections.iter().flat_map(|it| &it.ends).map(received).sum();
        let untold = found.len().saturating_sub(FAILURES_TOLD);
        books.failures.extend(found.into_iter().take(FAILURES_TOLD));
        if untold > 0 {
            books.failures.push(format!("and {untold} more"));
        }
        let mut counts = books.counts.clone();
        counts.sort_unstable();
        Tally {
            connections: books.connections.len(),
            bytes: books.bytes,
            counts,
            failures: std::mem::take(&mut books.failures),
        }
    }

    fn agree(&self, writer: &End, reader: &End) -> Result<(), String> {
        if !reader.begun {
            return Ok(());
        }
        let complete = reader.seen_end && reader.error.is_none();
        let owed = complete && writer.error.is_none() && !writer.leaves_unsent;
        matches(&writer.sent, &reader.received, owed)?;
        let met = writer.begun || !self.allowed.refused;
        let both_stay = writer.stays && reader.stays && met && !self.allowed.reset;
        if both_stay && !(writer.begun && reader.seen_end && writer.finished) {
            return Err("both ends wanted all of it, and one has not seen the end".into());
        }
        if both_stay && reader.error.is_some() {
            return Err("a connection that both ends wanted has failed".into());
        }
        Ok(())
    }
}

/// Fails unless the parts are those of the records, in their order; all that was surely sent if
/// that is `owed`.
fn matches(sent: &[Sent], parts: &[Part], owed: bool) -> Result<(), String> {
    let (mut next, mut scraps) = (0, 0);
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        let Some(number) = part.number else {
            // Of so short a part nobody can say whose it is.
            scraps += 1;
            continue;
        };
        if number < next {
            return Err(format!("record {number} came twice or late"));
        }
        let Some(record) = sent.get(number) else {
            return Err(format!("record {number} was never sent"));
        };
        skipped(&sent[next..number], scraps).map_err(|at| format!("{} is missing", next + at))?;
        if part.len > record.most {
            return Err(format!("record {number} is too long: {} bytes", part.len));
        }
        if part.len < record.least && (owed || !last) {
            return Err(format!("record {number} was cut at {} of {}", part.len, record.least));
        }
        (next, scraps) = (number + 1, 0);
    }
    if owed {
        let missing = skipped(&sent[next..], scraps);
        missing.map_err(|at| format!("record {} is missing at the end", next + at))?;
    }
    Ok(())
}

/// The first of these records that must have come, if there are more than the scraps may be.
fn skipped(records: &[Sent], scraps: usize) -> Result<(), usize> {
    let mut scraps = scraps;
    for (at, record) in records.iter().enumerate() {
        match record.least {
            0 => {}
            1..HEAD if scraps > 0 => scraps -= 1,
            _ => return Err(at),
        }
    }
    Ok(())
}

/// One end's pages of the ledger.
pub(crate) struct Account {
    ledger: Arc<Ledger>,
    pub(crate) connection: usize,
    pub(crate) side: usize,
}

impl Account {
    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    pub(crate) fn outgoing(&self) -> Script {
        Script::new(self.ledger.seed, self.connection, self.side)
    }

    pub(crate) fn incoming(&self) -> Script {
        Script::new(self.ledger.seed, self.connection, 1 - self.side)
    }

    pub(crate) fn doing(&self, what: &'static str, shard: usize) {
        self.end(|end| (end.doing, end.shard) = (what, shard));
        self.ledger.count(what);
    }

    /// A record is about to be sent, of so many bytes at most.
    pub(crate) fn begins(&self, number: usize) {
        assert!(number < RECORDS_MAX, "a stream of more records than have numbers");
        self.end(|end| {
            assert_eq!(number, end.sent.len(), "records are sent in their order");
            end.sent.push(Sent { least: 0, most: 0 });
        });
    }

    /// Of this record, from now on, so much may have left, and so much surely has.
    pub(crate) fn sent(&self, number: usize, least: usize, most: usize) {
        self.end(|end| end.sent[number] = Sent { least, most });
    }

    /// These bytes have come. Fails the run if they are not the next ones.
    pub(crate) fn received(&self, place: &mut Place, bytes: &[u8]) {
        let checked = self.end(|end| {
            place.take(bytes, |piece| match (piece, end.received.last_mut()) {
                (Piece::Begins, _) => end.received.push(Part { number: None, len: 0 }),
                (Piece::Goes(number, len), Some(part)) => {
                    part.number = number;
                    part.len += len;
                }
                (Piece::Goes(..), None) => unreachable!("every part begins"),
            })
        });
        self.checked(checked);
    }

    /// These bytes come next, and stay where they are.
    pub(crate) fn peeked(&self, mut place: Place, bytes: &[u8]) {
        let checked = place.take(bytes, |_| {});
        self.checked(checked);
    }

    fn checked(&self, checked: Result<(), String>) {
        if let Err(what) = checked {
            let (number, side) = (self.connection, SIDES[self.side]);
            self.ledger.fail(format!("connection {number}, bytes that reached the {side}: {what}"));
        }
    }

    /// The peer has finished.
    pub(crate) fn seen_end(&self) {
        self.end(|end| end.seen_end = true);
    }

    /// Everything was sent, and the peer told.
    pub(crate) fn finished(&self) {
        self.end(|end| end.finished = true);
    }

    /// The end may come without bytes that were taken.
    pub(crate) fn leaves_unsent(&self) {
        self.end(|end| end.leaves_unsent = true);
    }

    /// It is attached: what is unsent leaves though the stream is dropped.
    pub(crate) fn is_attached(&self) {
        self.end(|end| end.leaves_unsent = false);
    }

    /// The connection has failed. Only a connection that is gone may do so.
    pub(crate) fn failed(&self, what: &'static str, error: &io::Error) {
        let text = format!("{what}: {error}");
        let gone = matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::NotConnected
                | io::ErrorKind::ConnectionAborted
        );
        if !gone {
            self.ledger.fail(format!("connection {}: {text}", self.connection));
        }
        self.end(|end| end.error = end.error.take().or(Some(text)));
    }

    fn end<T>(&self, change: impl FnOnce(&mut End) -> T) -> T {
        change(&mut self.ledger.books().connections[self.connection].ends[self.side])
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.end(|end| end.over = true);
        self.ledger.books().open -= 1;
    }
}

/// An accepted connection that has not said its number yet.
pub(crate) struct Nameless(Arc<Ledger>);

impl Drop for Nameless {
    fn drop(&mut self) {
        self.0.books().open -= 1;
    }
}

impl Connection {
    fn text(&self) -> String {
        format!("  client: {}\n  server: {}", self.ends[0].state(), self.ends[1].state())
    }
}

impl End {
    fn state(&self) -> String {
        if !self.begun {
            return "never came".into();
        }
        let least: usize = self.sent.iter().map(|it| it.least).sum();
        let received: usize = self.received.iter().map(|part| part.len).sum();
        let ended = if self.seen_end { "and the end" } else { "and no end" };
        format!(
            "{} on shard {}; {}; sent {} records, {least} bytes surely, {}; received {received} \
             bytes {ended}; {}{}",
            if self.over { "over" } else { self.doing },
            self.shard,
            if self.stays { "stays" } else { "leaves on the way" },
            self.sent.len(),
            if self.finished { "finished" } else { "not finished" },
            self.error.as_deref().unwrap_or("no error"),
            if self.leaves_unsent { ", may leave bytes unsent" } else { "" },
        )
    }
}

/// What a run has done.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) connections: usize,
    pub(crate) bytes: u64,
    pub(crate) counts: Vec<(&'static str, u64)>,
    pub(crate) failures: Vec<String>,
}

const SIDES: [&str; 2] = ["client", "server"];
const FAILURES_TOLD: usize = 8;
