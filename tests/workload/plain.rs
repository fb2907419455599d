//! Clients of the standard library, on threads that block: the same ledger, none of our streams.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Workload;
use super::ledger::{Account, Ledger};
use super::seeds::draws;
use super::wire::Place;
use crate::common::bytes::Numbers;
use crate::common::peer::{self, peer};

impl Workload {
    /// The clients, on so many threads as connections are to be open at a time.
    pub(crate) async fn plain_clients(self, address: SocketAddr, ledger: &Arc<Ledger>) {
        let threads: Vec<_> = (0..self.at_once)
            .map(|first| {
                let ledger = Arc::clone(ledger);
                peer(move || {
                    let numbers = (first..self.connections).step_by(self.at_once);
                    numbers.for_each(|number| self.plain_client(number, address, &ledger));
                })
            })
            .collect();
        for thread in threads {
            thread.await;
        }
    }

    fn plain_client(self, connection: usize, address: SocketAddr, ledger: &Arc<Ledger>) {
        let mut numbers = draws(self.seed, 16 * connection as u64);
        let resets_at = (numbers.below(8) == 0).then(|| numbers.below(self.bytes_max));
        let Some(account) = ledger.open(connection, 0, resets_at.is_none()) else { return };
        let mut client = Client { account, numbers, stream: peer::connect(address) };
        let most = [self.bytes_max / 1000 + 1, self.bytes_max / 20 + 1, self.bytes_max];
        let most = most[client.numbers.below(3) as usize];
        let bytes = client.numbers.below(most);
        match client.send(bytes, resets_at) {
            Ok(true) => client.receive(),
            Ok(false) => peer::reset(client.stream),
            Err(error) => {
                client.account.failed("a client's write", &error);
                client.receive();
            }
        }
    }
}

struct Client {
    account: Account,
    numbers: Numbers,
    stream: TcpStream,
}

impl Client {
    /// Sends all there is; false when it is to be reset.
    fn send(&mut self, bytes: u64, resets_at: Option<u64>) -> io::Result<bool> {
        self.stream.write_all(&(self.account.connection as u64).to_le_bytes())?;
        let (mut left, mut number) = (bytes, 0);
        while left > 0 {
            if resets_at.is_some_and(|at| bytes - left >= at) {
                return Ok(false);
            }
            let body = (1 + self.numbers.below(8000)).min(left);
            left -= body;
            let record = self.account.outgoing().record(number, body as usize);
            self.account.begins(number);
            self.account.sent(number, 0, record.len());
            for piece in record.chunks(1 + self.numbers.below(4000) as usize) {
                self.stream.write_all(piece)?;
                if self.numbers.below(4) == 0 {
                    thread::sleep(Duration::from_micros(self.numbers.below(300)));
                }
            }
            self.account.sent(number, record.len(), record.len());
            number += 1;
        }
        self.stream.shutdown(Shutdown::Write)?;
        self.account.finished();
        Ok(resets_at.is_none())
    }

    fn receive(&mut self) {
        let mut place = Place::start(self.account.incoming());
        let mut buffer = vec![0; 1 + self.numbers.below(20_000) as usize];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.account.seen_end(),
                Ok(count) => self.account.received(&mut place, &buffer[..count]),
                Err(error) => return self.account.failed("a client's read", &error),
            }
        }
    }
}
