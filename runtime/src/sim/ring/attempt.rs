//! One try of each operation, by a system call that does not wait.

use std::mem::MaybeUninit;
use std::os::fd::IntoRawFd;

use super::entry::{BUFFER, BUFFER_SHIFT, Request};
use super::flight::{Around, Flight, Step};
use super::kind::Kind;
use super::{files, messages, sockets};

/// What a call that does not wait has answered: `None` is "not now".
pub(super) type Answer = Result<Option<u32>, i32>;

impl Flight {
    pub(super) fn attempt(&mut self, around: &mut Around<'_>) -> Step {
        match self.kind {
            Kind::Nop | Kind::Cancel => Step::Last(0, 0),
            Kind::Poll => match sockets::ready(self.file(), self.request.poll_events()) {
                0 => Step::Wait,
                events => Step::Last(events as i32, 0),
            },
            Kind::PollMany => match self.edges.as_ref().and_then(|edges| edges.take()) {
                Some(events) => Step::More(events as i32, 0),
                None => Step::Wait,
            },
            Kind::Accept => self.accept(Step::Last),
            Kind::AcceptMany => self.accept(Step::More),
            Kind::Connect => self.connect(),
            Kind::Send | Kind::SendZeroCopy => self.send(around),
            Kind::Receive => self.receive_one(around),
            Kind::ReceiveMany => self.receive_many(around),
            Kind::ReceiveMessages => messages::receive(self, around),
            Kind::Shutdown => last(sockets::shutdown(self.file(), self.request.length)),
            _ => last(files::call(self)),
        }
    }

    fn accept(&self, wrap: impl FnOnce(i32, u32) -> Step) -> Step {
        match sockets::accept(self.file(), self.request.op_flags) {
            Ok(Some(accepted)) => wrap(accepted.into_raw_fd(), 0),
            Ok(None) => Step::Wait,
            Err(errno) => Step::Last(-errno, 0),
        }
    }

    fn connect(&mut self) -> Step {
        let answer = if self.begun {
            sockets::connected(self.file())
        } else {
            sockets::connect(self.file(), &self.request)
        };
        self.begun = true;
        or_wait(answer)
    }

    /// Sends as much as there is room for, or as the dice say that there is.
    fn send(&mut self, around: &Around<'_>) -> Step {
        let left = (self.request.length - self.done) as usize;
        if self.kind == Kind::SendZeroCopy && self.done == 0 {
            if let Some(errno) = around.nature.refuses_zero_copy(around.world) {
                return Step::Last(-errno, 0);
            }
        }
        if let Some(errno) = around.nature.interrupts_send(around.world) {
            return Step::Last(self.done_or(-errno), 0);
        }
        let Some(length) = around.nature.piece_of(around.world, left) else { return Step::Wait };
        let bytes = sockets::bytes_of(&self.request, self.done as usize, length);
        match sockets::send(self.file(), bytes) {
            Ok(None) => Step::Wait,
            Ok(Some(count)) => {
                self.done += count;
                let whole = self.request.message_flags() & libc::MSG_WAITALL != 0;
                if whole && self.done < self.request.length {
                    return Step::Part;
                }
                Step::Last(self.done as i32, 0)
            }
            Err(errno) => Step::Last(self.done_or(-errno), 0),
        }
    }

    fn done_or(&self, result: i32) -> i32 {
        if self.done > 0 { self.done as i32 } else { result }
    }

    /// A receive of one answer, into the caller's memory or a buffer of a group.
    fn receive_one(&mut self, around: &mut Around<'_>) -> Step {
        if self.request.selects_buffer() {
            return match self.receive_pooled(around) {
                Step::More(result, flags) => Step::Last(result, flags),
                step => step,
            };
        }
        let left = (self.request.length - self.done) as usize;
        let Some(length) = around.nature.piece_of(around.world, left) else { return Step::Wait };
        let flags = self.request.message_flags();
        let memory = sockets::memory_of(&self.request, self.done as usize, length);
        match sockets::recv(self.file(), memory, flags & !libc::MSG_WAITALL) {
            Ok(None) => Step::Wait,
            Ok(Some(count)) => {
                self.done += count;
                let whole = flags & libc::MSG_WAITALL != 0;
                if count > 0 && whole && self.done < self.request.length {
                    return Step::Part;
                }
                Step::Last(self.done as i32, 0)
            }
            Err(errno) => Step::Last(self.done_or(-errno), 0),
        }
    }

    fn receive_many(&mut self, around: &mut Around<'_>) -> Step {
        let step = self.receive_pooled(around);
        let Step::More(count @ 1.., flags) = step else { return step };
        let bound = self.request.option;
        self.brought = self.brought.saturating_add(count as u32);
        // Since 6.17 what crosses the bound is the last, and is not cut.
        if bound > 0 && self.brought >= bound { Step::Last(count, flags) } else { step }
    }

    fn receive_pooled(&mut self, around: &mut Around<'_>) -> Step {
        let group = around.groups.get_mut(&self.request.group);
        let Some(offered) = group.as_ref().and_then(|group| group.next()) else {
            return Step::Last(-libc::ENOBUFS, 0);
        };
        let room = match self.request.length {
            0 => offered.length,
            cap => offered.length.min(cap),
        };
        let Some(length) = around.nature.piece_of(around.world, room as usize) else {
            return Step::Wait;
        };
        // SAFETY: the driver has offered this memory in the ring of buffers, and leaves it alone
        // until a completion names it.
        let memory = unsafe {
            std::slice::from_raw_parts_mut(offered.address.cast::<MaybeUninit<u8>>(), length)
        };
        match sockets::recv(self.file(), memory, self.request.message_flags()) {
            Ok(None) => Step::Wait,
            Ok(Some(0)) => Step::Last(0, 0),
            Ok(Some(count)) => {
                group.into_iter().for_each(|group| group.take());
                Step::More(count as i32, BUFFER | u32::from(offered.number) << BUFFER_SHIFT)
            }
            Err(errno) => Step::Last(-errno, 0),
        }
    }
}

pub(super) fn or_wait(answer: Answer) -> Step {
    match answer {
        Ok(None) => Step::Wait,
        Ok(Some(result)) => Step::Last(result as i32, 0),
        Err(errno) => Step::Last(-errno, 0),
    }
}

fn last(answer: Result<u32, i32>) -> Step {
    or_wait(answer.map(Some))
}

/// What an entry's pointer is taken for.
pub(super) fn pointer<T>(request: &Request) -> *mut T {
    request.address as *mut T
}
