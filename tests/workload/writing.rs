//! The writing of one end of a connection, in every way there is.

use std::io;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use annulus::Shard;
use annulus::task::yield_now;
use annulus::time::sleep;

use super::cut::{Ends, cut};
use super::halves::Sink;
use super::ledger::Account;
use super::reading::State;
use crate::common::bytes::Numbers;

pub(crate) struct Writing {
    account: Arc<Account>,
    numbers: Numbers,
    /// What is still to be sent, not counting the record that is under way.
    left: u64,
    /// The number of the next record.
    next: usize,
    record: Option<Record>,
    state: State,
}

/// A record that is under way.
struct Record {
    number: usize,
    bytes: Vec<u8>,
    sent: usize,
}

impl Writing {
    pub(crate) fn new(account: &Arc<Account>, numbers: Numbers, bytes: u64) -> Self {
        Self {
            account: Arc::clone(account),
            numbers,
            left: bytes,
            next: 0,
            record: None,
            state: State::Goes,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// One operation: more of a record, or the end once all are sent.
    pub(crate) async fn step(&mut self, sink: &mut impl Sink) {
        if self.state != State::Goes {
            return;
        }
        match self.numbers.below(8) {
            0 => {
                self.doing("flush");
                let flushed = cut(&mut self.numbers, Ends::Forgotten, sink.flush()).await;
                self.answered("flush", flushed.unwrap_or(Ok(())));
            }
            1 => self.pause().await,
            _ => match self.record.take().or_else(|| self.begin()) {
                Some(record) => self.send(sink, record).await,
                None => self.finish(sink).await,
            },
        }
    }

    async fn pause(&mut self) {
        self.doing("pause");
        match self.numbers.below(3) {
            0 => yield_now().await,
            _ => sleep(Duration::from_micros(self.numbers.below(300))).await,
        }
    }

    /// The next record, if something is left to be sent.
    fn begin(&mut self) -> Option<Record> {
        if self.left == 0 {
            return None;
        }
        let sizes = [10, 200, 3000, 20_000, 20_000, 150_000];
        let most = sizes[self.numbers.below(sizes.len() as u64) as usize];
        let body = (1 + self.numbers.below(most)).min(self.left);
        self.left -= body;
        let number = self.next;
        self.next += 1;
        self.account.begins(number);
        let bytes = self.account.outgoing().record(number, body as usize);
        Some(Record { number, bytes, sent: 0 })
    }

    async fn send(&mut self, sink: &mut impl Sink, mut record: Record) {
        let (number, len) = (record.number, record.bytes.len());
        // Whatever becomes of the operation: nothing behind the record's end leaves.
        self.account.sent(number, record.sent, len);
        let bytes = &record.bytes[record.sent..];
        // Some send a first part of it only; others send all, and nobody can say how much of it if
        // they are ended.
        let taken = match self.numbers.below(8) {
            0 => {
                self.doing("write_all");
                let sending = sink.write_all(bytes);
                let sent = cut(&mut self.numbers, Ends::Forgotten, sending).await;
                sent.map(|sent| sent.map(|()| bytes.len()))
            }
            1 => {
                self.doing("send_all");
                let sending = sink.send_all(bytes.to_vec());
                plain(cut(&mut self.numbers, Ends::Forgotten, sending).await)
            }
            2 => {
                self.doing("send_zc");
                let sending = sink.send_zc(bytes.to_vec());
                plain(cut(&mut self.numbers, Ends::Forgotten, sending).await)
            }
            3 => {
                self.doing("write_vectored");
                let pieces = 1 + self.numbers.below(5) as usize;
                let slices: Vec<_> =
                    bytes.chunks(bytes.len().div_ceil(pieces)).map(IoSlice::new).collect();
                let sending = sink.write_vectored(&slices);
                self.none_if_cut(Ends::Forgotten, sending).await
            }
            4 => {
                self.doing("send_vectored");
                let pieces: Vec<_> =
                    bytes.chunks(1 + bytes.len() / 3).map(<[u8]>::to_vec).collect();
                let sending = sink.send_vectored(pieces);
                let sending =
                    async { sending.await.map(|(count, _)| count).map_err(io::Error::from) };
                self.none_if_cut(Ends::Forgotten, sending).await
            }
            5 => {
                self.doing("send");
                let sending = sink.send(bytes.to_vec());
                let sending =
                    async { sending.await.map(|(count, _)| count).map_err(io::Error::from) };
                self.none_if_cut(Ends::Forgotten, sending).await
            }
            _ => {
                self.doing("write");
                let sending = sink.write(bytes);
                self.none_if_cut(Ends::Forgotten, sending).await
            }
        };
        match taken {
            Some(Ok(count)) => {
                record.sent += count;
                if record.sent < len {
                    // The head is whole or not there: its bytes are told from those of others.
                    self.account.sent(number, record.sent, len);
                    self.record = Some(record);
                } else {
                    self.account.sent(number, len, len);
                }
            }
            Some(Err(error)) => self.answered("write", Err(error)),
            // The next one begins where this was cut.
            None => self.account.sent(number, record.sent, len),
        }
    }

    /// What takes nothing when it is cut.
    async fn none_if_cut(
        &mut self,
        ends: Ends,
        sending: impl Future<Output = io::Result<usize>>,
    ) -> Option<io::Result<usize>> {
        Some(cut(&mut self.numbers, ends, sending).await.unwrap_or(Ok(0)))
    }

    async fn finish(&mut self, sink: &mut impl Sink) {
        self.doing("shutdown");
        match cut(&mut self.numbers, Ends::Dropped, sink.shutdown()).await {
            Some(Ok(())) => {
                self.state = State::Done;
                self.account.finished();
            }
            Some(Err(error)) => self.answered("shutdown", Err(error)),
            None => {}
        }
    }

    /// The drop of this end's half tells the peer.
    pub(crate) fn finishes_by_drop(&mut self) -> bool {
        let over = self.state == State::Goes && self.left == 0 && self.record.is_none();
        if over {
            self.doing("a dropped write half");
            self.state = State::Done;
            self.account.finished();
        }
        over
    }

    fn answered(&mut self, what: &'static str, answer: io::Result<()>) {
        if let Err(error) = answer {
            self.state = State::Failed;
            self.account.failed(what, &error);
        }
    }

    fn doing(&self, what: &'static str) {
        self.account.doing(what, Shard::current().index());
    }
}

fn plain(answer: Option<annulus::buf::BufResult<usize, Vec<u8>>>) -> Option<io::Result<usize>> {
    answer.map(|sent| sent.map(|(count, _)| count).map_err(io::Error::from))
}
