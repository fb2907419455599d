//! Receiving datagrams into the shard's pool, ahead of whoever asks for them.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::fmt;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use io_uring::opcode;
use io_uring::types::{self, RecvMsgOut};

use crate::buf::{DATAGRAM_GROUP, Pool, PoolBuffer};
use crate::config::LIMITS;
use crate::driver::operation::{Completion, Entry, MultishotOperation};
use crate::fd::{Fd, Interest};
use crate::shard;

/// Receives whatever comes, each datagram with its sender's address and control messages into a
/// buffer of the shard's pool for datagrams. Since Linux 6.0.
///
/// `ENOBUFS` means that the pool was dry, `EINVAL` that the kernel has no such receive.
pub struct ReceiveDatagrams {
    fd: Rc<Fd>,
    pool: Rc<Pool>,
}

/// What stands in front of the kernel's receive: `struct io_uring_recvmsg_out`, four words.
const HEADER_BYTES: usize = 16;

/// Room for the sender's address: the longest is `sockaddr_in6`, of 28 bytes.
const NAME_BYTES: usize = 32;

/// Room for control messages: a segment length and some that a socket may have been set to give
/// before it came here, such as times.
const CONTROL_BYTES: usize = 128;

const NAME_START: usize = HEADER_BYTES;
const CONTROL_START: usize = NAME_START + NAME_BYTES;
const PAYLOAD_START: usize = CONTROL_START + CONTROL_BYTES;

/// What the kernel is told of the shape of each buffer. It copies this when it takes the entry.
struct Shape(libc::msghdr);

// SAFETY: all its pointers are null, and nobody writes to it.
unsafe impl Sync for Shape {}

static SHAPE: Shape = {
    // SAFETY: all zeros is a message of no parts.
    let mut shape: libc::msghdr = unsafe { std::mem::zeroed() };
    shape.msg_namelen = NAME_BYTES as libc::socklen_t;
    shape.msg_controllen = CONTROL_BYTES as _;
    Shape(shape)
};

impl ReceiveDatagrams {
    /// Receives from a datagram socket. `None` where datagrams are not received ahead: on epoll,
    /// and while there is no memory for the pool.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[must_use]
    #[track_caller]
    pub fn new(fd: Rc<Fd>) -> Option<ReceiveDatagrams> {
        let pool = shard::with(|shard| shard.driver.datagram_pool())?;
        Some(ReceiveDatagrams { fd, pool })
    }

    /// # Panics
    ///
    /// On another shard: the kernel would fill buffers of that shard's pool.
    fn check_pool(&self) {
        let here = shard::with(|shard| shard.driver.datagram_pool());
        let at_home = here.is_some_and(|pool| Rc::ptr_eq(&self.pool, &pool));
        assert!(at_home, "a pooled receive works on the shard where it was made");
    }

    /// True while the pool has a buffer to receive into. If not, that is counted.
    #[must_use]
    pub fn has_buffers(&self) -> bool {
        let has = self.pool.has_free();
        if !has {
            self.pool.note_dry();
        }
        has
    }
}

// SAFETY: the entry refers to a static and to the memory of the pool, which the driver and this
// value keep.
unsafe impl MultishotOperation for ReceiveDatagrams {
    type Item = io::Result<Datagram>;

    fn queued_max(&self) -> usize {
        LIMITS.datagram_queue_max
    }

    fn entry(&mut self) -> Entry {
        self.check_pool();
        let fd = types::Fd(self.fd.raw());
        opcode::RecvMsgMulti::new(fd, &raw const SHAPE.0, DATAGRAM_GROUP).build()
    }

    /// Never asked for: only the ring has a pool for datagrams.
    fn call(&mut self) -> io::Result<Completion> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    fn descriptor(&self) -> &Rc<Fd> {
        &self.fd
    }

    fn interest(&self) -> Interest {
        Interest::Read
    }

    unsafe fn item(&mut self, completion: Completion) -> Self::Item {
        // The buffer first: it returns to the pool whatever the result says.
        let length = completion.result().unwrap_or(0);
        let buffer = completion.buffer().map(|buffer| self.pool.lend(buffer, length));
        if completion.is_errno(libc::ENOBUFS) {
            self.pool.note_dry();
        }
        completion.result()?;
        buffer.and_then(Datagram::parse).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the kernel gave a datagram of no shape")
        })
    }
}

impl fmt::Debug for ReceiveDatagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveDatagrams").field("fd", &self.fd).finish_non_exhaustive()
    }
}

/// One datagram, or one batch of equal datagrams, in a buffer of the shard's pool. Drop returns the
/// buffer.
#[derive(Debug)]
pub struct Datagram {
    buffer: PoolBuffer,
    name: Range<usize>,
    control: Range<usize>,
    payload: Range<usize>,
}

impl Datagram {
    fn parse(buffer: PoolBuffer) -> Option<Datagram> {
        let parsed = RecvMsgOut::parse(&buffer, &SHAPE.0).ok()?;
        let part = |start: usize, bytes: &[u8]| start..start + bytes.len();
        let name = part(NAME_START, parsed.name_data());
        let control = part(CONTROL_START, parsed.control_data());
        let payload = part(PAYLOAD_START, parsed.payload_data());
        Some(Datagram { name, control, payload, buffer })
    }

    /// The sender's address, as the kernel writes it.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.buffer[self.name.clone()]
    }

    /// The control messages (cmsg(3)), as the kernel writes them.
    #[must_use]
    pub fn control(&self) -> &[u8] {
        &self.buffer[self.control.clone()]
    }

    /// The bytes that were sent.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.buffer[self.payload.clone()]
    }
}
