//! Quiet sends: handed over in a batch, over when the batch is submitted, heard of only if they
//! fall short.
//!
//! With `MSG_DONTWAIT` a send never leaves the `io_uring_enter` that submits it, and with
//! `CQE_SKIP_SUCCESS` only a failure has a completion; with `MSG_WAITALL` a part is a failure too.
//! So when the enter has taken all entries and their completions are reaped, silence means that the
//! whole buffer was sent. That saves a slot, a completion and a waker for each send, and leaves the
//! wait of the same enter to what comes from outside.
//!
//! Without `MSG_DONTWAIT` this would not hold: a send that goes on in the background and then
//! succeeds leaves no trace (ARCHITECTURE.md, "What was measured").

use std::io;
use std::rc::Rc;

use super::operation::{Completion, Entry};
use super::slots::Key;
use crate::buf::Spare;
use crate::fd::Fd;
use crate::resident_key::ResidentKey;

/// Names the sends that are submitted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch(u32);

/// A send that did not send everything. The buffer goes back to its owner.
#[derive(Debug)]
pub(crate) struct ShortSend {
    pub(crate) owner: ResidentKey,
    pub(crate) buffer: Vec<u8>,
    /// How much was sent, or why nothing was.
    pub(crate) result: io::Result<usize>,
}

/// What the kernel reads from until the batch is settled.
struct Send {
    owner: ResidentKey,
    buffer: Vec<u8>,
    /// Keeps the descriptor from being closed, and its number reused, before the entry is taken.
    _fd: Rc<Fd>,
}

/// The batch that is being gathered.
#[derive(Default)]
pub(super) struct Quiet {
    batch: u32,
    sends: Vec<Send>,
}

impl Quiet {
    /// Adds a send. The entry must be queued before the batch is settled.
    pub(super) fn add(
        &mut self,
        fd: &Rc<Fd>,
        buffer: Vec<u8>,
        owner: ResidentKey,
    ) -> (Batch, Entry) {
        let key = Key::of_quiet_send(self.batch, self.sends.len());
        let entry = super::features::quiet_send(fd.raw(), &buffer).user_data(key.user_data());
        self.sends.push(Send { owner, buffer, _fd: Rc::clone(fd) });
        (Batch(self.batch), entry)
    }

    #[inline]
    pub(super) fn is_settled(&self, batch: Batch) -> bool {
        batch.0 != self.batch || self.sends.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sends.is_empty()
    }

    /// A completion that names a send of this batch: it has fallen short.
    pub(super) fn fell_short(&mut self, key: Key, completion: Completion) -> Option<ShortSend> {
        let index = key.quiet_send_of(self.batch)?;
        let send = self.sends.get_mut(index)?;
        let buffer = std::mem::take(&mut send.buffer);
        // A signal has ended the try, not the connection: nothing was sent yet.
        let interrupted = completion.is_errno(libc::EINTR);
        let result = if interrupted { Ok(0) } else { completion.result() };
        let result = result.map(|count| count as usize);
        Some(ShortSend { owner: send.owner, buffer, result })
    }

    /// Everything was submitted and reaped: whoever was not heard of has succeeded.
    pub(super) fn settle(&mut self, spare: &Spare) {
        self.sends.drain(..).for_each(|send| spare.put(send.buffer));
        self.batch = self.batch.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::executor::ShardId;

    #[test]
    fn a_send_that_a_signal_ended_is_no_error_of_the_connection() {
        let result_of = |errno: i32| {
            let (socket, _other) = UnixStream::pair().expect("a pair of sockets");
            let fd = Fd::new(OwnedFd::from(socket));
            let owner = ResidentKey { shard: ShardId::next(), index: 0, generation: 1 };
            let mut quiet = Quiet::default();
            let (_, entry) = quiet.add(&fd, b"not sent".to_vec(), owner);
            let key = Key::from_user_data(entry.get_user_data());
            let answer = Completion::from_error(&io::Error::from_raw_os_error(errno));
            let short = quiet.fell_short(key, answer).expect("the batch's own send");
            assert_eq!(short.buffer, b"not sent");
            short.result.map_err(|error| error.raw_os_error())
        };
        assert_eq!(result_of(libc::EINTR), Ok(0));
        assert_eq!(result_of(libc::EPIPE), Err(Some(libc::EPIPE)));
    }
}
