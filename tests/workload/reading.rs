//! The reading of one end of a connection, in every way there is.

use std::sync::Arc;

use annulus::Shard;
use annulus::buf::Lease;

use super::cut::{Ends, cut};
use super::halves::Source;
use super::ledger::Account;
use super::wire::Place;
use crate::common::bytes::Numbers;

pub(crate) struct Reading {
    account: Arc<Account>,
    numbers: Numbers,
    place: Place,
    /// Leases that are held for a while, with the place where their bytes begin.
    kept: Vec<(Place, Lease)>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Goes,
    Done,
    Failed,
}

impl Reading {
    pub(crate) fn new(account: &Arc<Account>, numbers: Numbers) -> Self {
        Self {
            account: Arc::clone(account),
            numbers,
            place: Place::start(account.incoming()),
            kept: Vec::new(),
            state: State::Goes,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// One operation, or none if nothing more comes.
    pub(crate) async fn step(&mut self, source: &mut impl Source) {
        if self.state != State::Goes {
            return;
        }
        if self.numbers.below(8) == 0 {
            self.look_again();
        }
        let sizes = [1, 7, 100, 300, 4096, 9000, 20_000, 70_000];
        let size = sizes[self.numbers.below(sizes.len() as u64) as usize];
        match self.numbers.below(7) {
            0 => self.peek(source, size).await,
            1 => self.read_exact(source, size.min(300)).await,
            2 => self.recv_exact(source, size).await,
            3 => self.recv(source, size).await,
            4 => self.recv_lease(source).await,
            _ => self.read(source, size).await,
        }
    }

    async fn read(&mut self, source: &mut impl Source, size: usize) {
        self.doing("read");
        let mut buffer = vec![0; size];
        let Some(count) = cut(&mut self.numbers, Ends::Forgotten, source.read(&mut buffer)).await
        else {
            return;
        };
        self.answered("read", count.map(|count| (count, &buffer[..count])));
    }

    async fn peek(&mut self, source: &mut impl Source, size: usize) {
        self.doing("peek");
        let mut buffer = vec![0; size];
        match cut(&mut self.numbers, Ends::Forgotten, source.peek(&mut buffer)).await {
            Some(Ok(count)) => self.account.peeked(self.place, &buffer[..count]),
            Some(Err(error)) => self.fails("peek", &error),
            None => {}
        }
    }

    async fn recv(&mut self, source: &mut impl Source, size: usize) {
        self.doing("recv");
        let receiving = source.recv(Vec::with_capacity(size));
        match cut(&mut self.numbers, Ends::Forgotten, receiving).await {
            Some(Ok((count, buffer))) => self.answered("recv", Ok((count, &buffer))),
            Some(Err(failed)) => self.fails("recv", &failed.error),
            None => {}
        }
    }

    async fn recv_lease(&mut self, source: &mut impl Source) {
        self.doing("recv_lease");
        match cut(&mut self.numbers, Ends::Forgotten, source.recv_lease()).await {
            Some(Ok(lease)) => {
                let begins = self.place;
                self.answered("recv_lease", Ok((lease.len(), &lease)));
                if self.kept.len() < KEPT_MAX {
                    self.kept.push((begins, lease));
                }
            }
            Some(Err(error)) => self.fails("recv_lease", &error),
            None => {}
        }
    }

    /// What came before an end is in the buffer; how much that is tells a mark that is never sent.
    async fn read_exact(&mut self, source: &mut impl Source, size: usize) {
        self.doing("read_exact");
        let mut buffer = vec![NEVER_SENT; size];
        let reading = source.read_exact(&mut buffer);
        let Some(answer) = cut(&mut self.numbers, Ends::Dropped, reading).await else { return };
        let count = buffer.iter().position(|&byte| byte == NEVER_SENT).unwrap_or(size);
        self.exactly("read_exact", answer.map(|_| ()), &buffer[..count]);
    }

    async fn recv_exact(&mut self, source: &mut impl Source, size: usize) {
        self.doing("recv_exact");
        let receiving = source.recv_exact(Vec::with_capacity(size));
        match cut(&mut self.numbers, Ends::Dropped, receiving).await {
            Some(Ok((_, buffer))) => self.exactly("recv_exact", Ok(()), &buffer),
            Some(Err(failed)) => self.exactly("recv_exact", Err(failed.error), &failed.buffer),
            None => {}
        }
    }

    fn exactly(&mut self, what: &'static str, answer: std::io::Result<()>, bytes: &[u8]) {
        self.account.received(&mut self.place, bytes);
        match answer {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => self.ends(),
            Err(error) => self.fails(what, &error),
        }
    }

    fn answered(&mut self, what: &'static str, answer: std::io::Result<(usize, &[u8])>) {
        match answer {
            Ok((0, _)) => self.ends(),
            Ok((_, bytes)) => self.account.received(&mut self.place, bytes),
            Err(error) => self.fails(what, &error),
        }
    }

    fn ends(&mut self) {
        self.state = State::Done;
        self.account.seen_end();
    }

    fn fails(&mut self, what: &'static str, error: &std::io::Error) {
        self.state = State::Failed;
        self.account.failed(what, error);
    }

    /// The bytes of leases stay what they were, however much has come since.
    fn look_again(&mut self) {
        let kept = self.kept.len() as u64;
        let gone = self.kept.split_off(self.numbers.below(kept + 1) as usize);
        gone.iter().for_each(|(place, lease)| self.account.peeked(*place, lease));
    }

    fn doing(&self, what: &'static str) {
        self.account.doing(what, Shard::current().index());
    }
}

// Bytes on the wire are odd, or zero.
const NEVER_SENT: u8 = 2;
const KEPT_MAX: usize = 3;
