//! Peers for futures that are cut short, and what such writes may leave on the wire.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use annulus::net::TcpStream;

use super::bytes::{Keyed, Numbers};
use super::peer::Peer;
use super::steps::with_peer;

/// A peer that streams keyed bytes in bursts until told that it is over, and how many it sent.
pub(crate) async fn streaming_peer(key: Keyed, over: &Arc<AtomicBool>) -> (TcpStream, Peer<u64>) {
    let over = Arc::clone(over);
    with_peer(move |mut stream| {
        let mut sent = key.cursor();
        let mut numbers = Numbers(key.0);
        while !over.load(Ordering::Relaxed) {
            let len = 1 + numbers.below(3000) as usize;
            if stream.write_all(&sent.next(len)).is_err() {
                break;
            }
            // Pauses as long as the readers' patience, so that their ends meet in every way.
            std::thread::sleep(Duration::from_micros(numbers.below(200)));
        }
        sent.offset
    })
    .await
}

/// A peer that reads no more than its ration in all, and returns what came.
pub(crate) async fn rationed_peer(ration: &Arc<AtomicU64>) -> (TcpStream, Peer<Vec<u8>>) {
    let ration = Arc::clone(ration);
    with_peer(move |mut stream| {
        let mut wire = Vec::new();
        let mut buf = vec![0; 10_000];
        loop {
            if wire.len() as u64 >= ration.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(50));
                continue;
            }
            match stream.read(&mut buf).unwrap() {
                0 => return wire,
                n => wire.extend_from_slice(&buf[..n]),
            }
        }
    })
    .await
}

/// What the numbered write sends: a zero, its number, and keyed bytes, none of them zero.
pub(crate) fn attempt(number: usize) -> Vec<u8> {
    let mut bytes = Keyed(number as u64).bytes(0, 100_000);
    bytes.iter_mut().for_each(|byte| *byte |= 1);
    bytes[..3].copy_from_slice(&[0, 1 + (number / 200) as u8, 1 + (number % 200) as u8]);
    bytes
}

/// Fails unless the wire is a prefix of each attempt, in order, the whole of it where `whole`.
pub(crate) fn check_attempts(wire: &[u8], whole: &[bool]) {
    let mut seen = 0;
    for part in wire.split(|&byte| byte == 0).skip(1) {
        // Of so short a part nobody can say whose it is, only that its write was cut short.
        let [high, low, ..] = *part else { continue };
        let number = 200 * (high as usize - 1) + low as usize - 1;
        assert!(number >= seen, "write {number} came twice or late");
        assert!(!whole[seen..number].contains(&true), "a write before {number} is missing");
        let bytes = attempt(number);
        assert!(bytes[1..].starts_with(part), "write {number} is garbled");
        assert!(!whole[number] || part.len() == bytes.len() - 1, "write {number} was cut");
        seen = number + 1;
    }
    assert!(!whole[seen..].contains(&true), "a write is missing at the end");
}
