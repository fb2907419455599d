//! What one direction of a connection carries: numbered records of keyed bytes.
//!
//! A write that is dropped may have sent any first part of its bytes. So each record begins with a
//! byte that is nowhere else, and with its number: the reader finds the beginning of the next one
//! and knows how much of each has come. Any byte of another stream, or from elsewhere in this one,
//! is not the byte that is expected.

use super::seeds::draws;
use crate::common::bytes::Keyed;

/// A beginning, the stream's mark, and the number in two digits.
pub(crate) const HEAD: usize = 4;
/// How many records a stream may have.
pub(crate) const RECORDS_MAX: usize = DIGIT * DIGIT;

/// The bytes of one direction, each known from the stream's key, the record and the offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    key: u64,
}

impl Script {
    pub(crate) fn new(seed: u64, connection: usize, side: usize) -> Self {
        let stream = 8 * (2 * connection + side) as u64;
        Self { key: draws(seed, stream + 3).below(u64::MAX) }
    }

    /// The record with this number: the head, and so many bytes.
    pub(crate) fn record(self, number: usize, body: usize) -> Vec<u8> {
        let mut record = vec![0; HEAD + body];
        self.fill(number, 0, &mut record);
        record
    }

    /// The bytes of a record from an offset on. All but the first are odd.
    fn fill(self, number: usize, offset: usize, buf: &mut [u8]) {
        let body = HEAD.saturating_sub(offset).min(buf.len());
        let head = [0, odd(self.key >> 57), odd(number / DIGIT), odd(number % DIGIT)];
        let (front, back) = buf.split_at_mut(body);
        front.copy_from_slice(&head[offset.min(HEAD)..][..body]);
        let keyed = Keyed(self.key.wrapping_add(number as u64));
        keyed.fill((offset + body) as u64, back);
        back.iter_mut().for_each(|byte| *byte |= 1);
    }
}

fn odd(digit: impl TryInto<u8>) -> u8 {
    2 * digit.try_into().ok().expect("a digit is small") + 1
}

/// So many values has a digit that is sent as an odd byte.
const DIGIT: usize = 127;

/// How far one direction was received. A copy checks bytes that are looked at, not taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    script: Script,
    /// What has come of the record that is under way, and its number once that is known.
    within: usize,
    number: usize,
    digits: [u8; HEAD],
}

/// The beginning of a record, or some more of it.
pub(crate) enum Piece {
    Begins,
    /// So many bytes, of the record with this number; none while its head has not come.
    Goes(Option<usize>, usize),
}

impl Place {
    pub(crate) fn start(script: Script) -> Self {
        Self { script, within: 0, number: 0, digits: [0; HEAD] }
    }

    /// Checks the next bytes, and tells what they are.
    pub(crate) fn take(&mut self, bytes: &[u8], mut tell: impl FnMut(Piece)) -> Result<(), String> {
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            if first == 0 {
                (self.within, self.digits) = (0, [0; HEAD]);
                tell(Piece::Begins);
            } else if self.within == 0 {
                return Err(format!("{first:#04x} comes where a record begins: {self:?}"));
            }
            let until_next = rest[1..].iter().position(|&byte| byte == 0);
            let in_head = if self.within < HEAD { HEAD - self.within } else { usize::MAX };
            let len = until_next.map_or(rest.len(), |at| at + 1).min(in_head);
            let (now, later) = rest.split_at(len);
            let number = if self.within < HEAD { self.head(now)? } else { self.body(now)? };
            tell(Piece::Goes(number, len));
            rest = later;
        }
        Ok(())
    }

    fn head(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        self.digits[self.within..][..bytes.len()].copy_from_slice(bytes);
        self.within += bytes.len();
        let [_, mark, high, low] = self.digits;
        let even = self.digits[1..self.within].iter().any(|digit| digit % 2 == 0);
        if even || self.within > 1 && mark != odd(self.script.key >> 57) {
            return Err(format!("the head of a record of another stream: {self:?}"));
        }
        if self.within < HEAD {
            return Ok(None);
        }
        self.number = DIGIT * usize::from(high / 2) + usize::from(low / 2);
        Ok(Some(self.number))
    }

    fn body(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let mut want = vec![0; bytes.len()];
        self.script.fill(self.number, self.within, &mut want);
        if let Some(at) = want.iter().zip(bytes).position(|(want, got)| want != got) {
            let end = (at + 16).min(bytes.len());
            return Err(format!(
                "record {}, offset {}: want {:02x?}, got {:02x?}",
                self.number,
                self.within + at,
                &want[at..end],
                &bytes[at..end],
            ));
        }
        self.within += bytes.len();
        Ok(Some(self.number))
    }
}
