//! Entries of operations, read as the kernel reads them.

use std::ffi::CString;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use super::{Open, Operation, Read, Stat, Sync, Write};
use crate::buf::{IoBuf, IoBufMut};
use crate::choices::Choices;
use crate::driver::operation::MultishotOperation;
use crate::fd::{Fd, Interest};
use crate::receive::{Arrivals, Ready};
use crate::seen::{Fields, HUGE_BYTES, huge};
use crate::sys::TRANSFER_BYTES_MAX;

/// Numbers of `enum io_uring_op`.
const FSYNC: u8 = 3;
const POLL_ADD: u8 = 6;
const OPENAT: u8 = 18;
const STATX: u8 = 21;
const READ: u8 = 22;
const WRITE: u8 = 23;
const OPENAT2: u8 = 28;

const FSYNC_DATASYNC: u32 = 1;
const POLL_ADD_MULTI: u32 = 1;

#[derive(Clone, Copy)]
struct Huge {
    length: usize,
}

// SAFETY: the memory stays for ever, and nobody writes to it.
unsafe impl IoBuf for Huge {
    fn as_slice(&self) -> &[u8] {
        // SAFETY: so many bytes are there, which are zeros.
        unsafe { std::slice::from_raw_parts(huge(), self.length) }
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for Huge {
    unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: so many bytes are there, and only entries are made of them here.
        unsafe { std::slice::from_raw_parts_mut(huge().cast(), self.length) }
    }

    unsafe fn set_init(&mut self, _count: usize) {}
}

/// An operation that these bytes describe.
pub(crate) fn entries(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    match choices.byte() % 6 {
        kind @ 0..=1 => transfer(kind == 0, &mut choices),
        2 => open(&mut choices),
        3 => stat(),
        4 => sync(choices.is_heads()),
        _ => poll(choices.is_heads()),
    }
}

fn file() -> Arc<OwnedFd> {
    static FILE: OnceLock<Arc<OwnedFd>> = OnceLock::new();
    let open = || Arc::new(File::open("/dev/null").expect("there is nothing").into());
    Arc::clone(FILE.get_or_init(open))
}

/// The entry of an operation, the same before and after it has moved.
fn entry_of<T: Operation>(mut operation: T) -> (Fields, Box<T>) {
    let before = Fields::of(&operation.entry());
    let mut moved = Box::new(operation);
    assert_eq!(Fields::of(&moved.entry()), before, "an entry that refers to what can move");
    (before, moved)
}

fn transfer(reads: bool, choices: &mut Choices<'_>) {
    // About the most that one request can carry, and what the field would be cut at.
    let edge = [0, TRANSFER_BYTES_MAX, 1 << 31, HUGE_BYTES - 64][choices.below(4)];
    let length = (edge + choices.below(64)).saturating_sub(choices.below(64));
    let begin = match choices.byte() % 3 {
        0 => 0,
        1 => choices.below(64).min(length),
        _ => length - choices.below(64).min(length),
    };
    let (fd, buffer, offset) = (file(), Huge { length }, choices.magnitude());
    let number = fd.as_raw_fd();
    let (fields, opcode) = match reads {
        true => (entry_of(Read { fd, buffer, begin, offset }).0, READ),
        false => (entry_of(Write { fd, buffer, begin, offset }).0, WRITE),
    };
    let rest = length - begin;
    assert!(fields.len as usize <= rest, "beyond the buffer");
    let expected = Fields {
        opcode,
        fd: number,
        off: offset,
        addr: (huge() as usize + begin) as u64,
        len: u32::try_from(rest.min(TRANSFER_BYTES_MAX)).expect("a request has fewer"),
        ..Fields::default()
    };
    assert_eq!(fields, expected);
}

fn open(choices: &mut Choices<'_>) {
    let (flags, mode) = (choices.number() as libc::c_int, choices.number() as libc::mode_t);
    let beneath = choices.is_heads().then(|| {
        // SAFETY: the struct holds integers only, for which all zeros is a value.
        (file(), Box::new(unsafe { std::mem::zeroed::<libc::open_how>() }))
    });
    let text = choices.bytes(300);
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let path = CString::new(text).expect("cut at the first zero");
    let (fields, open) = entry_of(Open { path, flags, mode, beneath });
    let common = Fields { addr: open.path.as_ptr() as u64, ..Fields::default() };
    let expected = match &open.beneath {
        None => Fields {
            opcode: OPENAT,
            fd: libc::AT_FDCWD,
            len: mode,
            op_flags: flags as u32,
            ..common
        },
        Some((directory, how)) => Fields {
            opcode: OPENAT2,
            fd: directory.as_raw_fd(),
            off: &raw const **how as u64,
            len: size_of::<libc::open_how>() as u32,
            ..common
        },
    };
    assert_eq!(fields, expected);
}

fn stat() {
    let (fields, stat) = entry_of(Stat::new(file()));
    let expected = Fields {
        opcode: STATX,
        fd: stat.fd.as_raw_fd(),
        off: &raw const *stat.answer as u64,
        addr: c"".as_ptr() as u64,
        len: Stat::MASK,
        op_flags: Stat::FLAGS as u32,
        ..Fields::default()
    };
    // The empty path may lie in several places.
    assert_eq!(Fields { addr: expected.addr, ..fields }, expected);
}

fn sync(all: bool) {
    let (fields, sync) = entry_of(Sync { fd: file(), all });
    let op_flags = if all { 0 } else { FSYNC_DATASYNC };
    let fd = sync.fd.as_raw_fd();
    assert_eq!(fields, Fields { opcode: FSYNC, fd, op_flags, ..Fields::default() });
}

fn poll(reads: bool) {
    let (socket, _peer) = UnixStream::pair().expect("a pair of sockets");
    let fd = Fd::new(socket.into());
    let (interest, events) = match reads {
        true => (Interest::Read, libc::POLLIN | libc::POLLRDHUP),
        false => (Interest::Write, libc::POLLOUT),
    };
    let fields = entry_of(Ready::new(Rc::clone(&fd), interest)).0;
    let expected =
        Fields { opcode: POLL_ADD, fd: fd.raw(), op_flags: events as u32, ..Fields::default() };
    assert_eq!(fields, expected);
    let fields = Fields::of(&Arrivals::new(Rc::clone(&fd)).entry());
    let op_flags = (libc::POLLIN | libc::POLLRDHUP) as u32;
    assert_eq!(fields, Fields { op_flags, len: POLL_ADD_MULTI, ..expected });
}

#[cfg(test)]
mod tests {
    use super::entries;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn an_entry_is_what_the_kernel_reads_and_stays_within_its_buffer() {
        with_kept("entries", entries);
        with_seeds(3000, entries);
    }
}
