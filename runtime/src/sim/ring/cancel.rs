//! Cancels: found, not found, or too late.

use super::entry::{CANCEL_ALL, CANCEL_ANY, CANCEL_FD, Request};
use super::flight::Ending;
use super::kernel::Kernel;

/// What becomes of a request that a cancel names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It ends, as cancelled. What was under way comes before that.
    Found(Ending),
    /// It is being executed, and shortly ends by itself or as interrupted (EALREADY).
    TooLate(Ending),
    /// It is about to answer and can be found no more (ENOENT).
    Gone,
}

impl Kernel {
    pub(super) fn cancel(&mut self, request: &Request) {
        let flags = request.op_flags;
        if flags & !(CANCEL_ALL | CANCEL_ANY | CANCEL_FD) != 0 {
            return self.post(request.user_data, -libc::EINVAL, 0);
        }
        let named = self.flights.iter().filter(|flight| flight.is_named_by(request));
        let named: Vec<u64> = named.map(|flight| flight.serial()).collect();
        let answer = if flags & (CANCEL_ALL | CANCEL_ANY) != 0 {
            named.iter().filter(|&&serial| self.cancel_one(serial, false) == 0).count() as i32
        } else {
            named.first().map_or(-libc::ENOENT, |&serial| self.cancel_one(serial, true))
        };
        if answer < 0 || !request.is_quiet() {
            self.post(request.user_data, answer, 0);
        }
    }

    /// Answers what a cancel of this flight alone would answer.
    fn cancel_one(&mut self, serial: u64, may_be_gone: bool) -> i32 {
        let Some(at) = self.flights.iter().position(|flight| flight.serial() == serial) else {
            return -libc::ENOENT;
        };
        let flight = &self.flights[at];
        let may_be_gone = may_be_gone && flight.is_about_to_end(&self.nature, self.groups());
        let verdict = self.nature.verdict(&self.world, flight.is_single(), may_be_gone);
        let due = self.world.now() + self.nature.delay(&self.world);
        let flight = &mut self.flights[at];
        flight.due = Some(due);
        let answer = match verdict {
            Verdict::Found(ending) => {
                flight.end(ending);
                0
            }
            Verdict::TooLate(ending) => {
                flight.end(ending);
                -libc::EALREADY
            }
            Verdict::Gone => {
                flight.hide();
                -libc::ENOENT
            }
        };
        // Which of the two answers comes first is not promised. With deferred task work it is the
        // cancel's, mostly.
        if self.nature.hurries(&self.world) {
            self.carry_on_one(serial);
        }
        answer
    }
}
