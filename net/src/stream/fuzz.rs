//! Entries of sends, accepts and connects, read as the kernel reads them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use annulus_runtime::buf::IoBuf;
use annulus_runtime::io::{Fd, MultishotOperation, Operation, TRANSFER_BYTES_MAX};
use socket2::SockAddr;

use super::send::Send;
use super::zero_copy::SendZeroCopy;
use crate::choices::Choices;
use crate::operations::{Accept, Connect};
use crate::seen::{Fields, HUGE_BYTES, huge};

/// Numbers of `enum io_uring_op`.
const ACCEPT: u8 = 13;
const CONNECT: u8 = 16;
const SEND: u8 = 26;
const SEND_ZC: u8 = 47;

const ACCEPT_MULTISHOT: u16 = 1;
const SEND_ZC_REPORT_USAGE: u16 = 8;

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

/// An operation that these bytes describe.
pub(crate) fn requests(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let (socket, _peer) = UnixStream::pair().expect("a pair of sockets");
    let fd = Fd::new(socket.into());
    match choices.byte() % 5 {
        0 => send_own(fd, &mut choices),
        kind @ 1..=2 => send_of_caller(fd, kind == 1, &mut choices),
        3 => connect(fd, &mut choices),
        _ => accept(fd),
    }
}

/// The entry of an operation, the same before and after it has moved.
fn entry_of<T: Operation>(mut operation: T) -> (Fields, Box<T>) {
    let before = Fields::of(&operation.entry());
    let mut moved = Box::new(operation);
    assert_eq!(Fields::of(&moved.entry()), before, "an entry that refers to what can move");
    (before, moved)
}

fn send_fields(fd: &Fd, address: usize, length: usize) -> Fields {
    Fields {
        opcode: SEND,
        fd: fd.raw(),
        addr: address as u64,
        len: u32::try_from(length.min(TRANSFER_BYTES_MAX)).expect("a request has fewer"),
        op_flags: (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32,
        ..Fields::default()
    }
}

fn send_own(fd: Rc<Fd>, choices: &mut Choices<'_>) {
    let length = choices.below(600);
    let buffer = choices.bytes(length).to_vec();
    let start = choices.below(buffer.len() + 1);
    let expected = send_fields(&fd, buffer.as_ptr() as usize + start, buffer.len() - start);
    let rest = buffer[start..].to_vec();
    let (fields, send) = entry_of(Send::own(fd, buffer, start));
    assert_eq!(fields, expected);
    assert_eq!(send.into_rest(), rest);
}

fn send_of_caller(fd: Rc<Fd>, copies: bool, choices: &mut Choices<'_>) {
    // About the most that one request can carry, and what the field would be cut at.
    let edge = [0, TRANSFER_BYTES_MAX, 1 << 31, HUGE_BYTES - 64][choices.below(4)];
    let length = (edge + choices.below(64)).saturating_sub(choices.below(64));
    let start = match choices.is_heads() {
        true => choices.below(64).min(length),
        false => length - choices.below(64).min(length),
    };
    let buffer = Rc::new(Huge { length });
    let expected = send_fields(&fd, huge() as usize + start, length - start);
    if copies {
        assert_eq!(entry_of(Send::of_caller(fd, buffer, start)).0, expected);
        return;
    }
    let mut send = SendZeroCopy { fd: Some(fd), buffer, start };
    let fields = Fields::of(&send.entry());
    let expected = Fields { opcode: SEND_ZC, ioprio: SEND_ZC_REPORT_USAGE, ..expected };
    assert_eq!(fields, expected);
}

fn connect(fd: Rc<Fd>, choices: &mut Choices<'_>) {
    let port = choices.number() as u16;
    let address = match choices.is_heads() {
        true => SocketAddr::from((Ipv4Addr::from(choices.number() as u32), port)),
        false => SocketAddr::from((Ipv6Addr::from(u128::from(choices.number())), port)),
    };
    let number = fd.raw();
    let (fields, _connect) = entry_of(Connect::new(fd, SockAddr::from(address)));
    let length = if address.is_ipv4() { 16 } else { 28 };
    let expected = Fields { opcode: CONNECT, fd: number, off: length, ..Fields::default() };
    assert_eq!(Fields { addr: 0, ..fields }, expected);
    // SAFETY: the operation is alive, and its entry refers to an address of this length.
    let bytes = unsafe { std::slice::from_raw_parts(fields.addr as *const u8, length as usize) };
    assert_eq!(bytes[2..4], port.to_be_bytes());
}

fn accept(fd: Rc<Fd>) {
    let expected = Fields {
        opcode: ACCEPT,
        ioprio: ACCEPT_MULTISHOT,
        fd: fd.raw(),
        op_flags: (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32,
        ..Fields::default()
    };
    assert_eq!(Fields::of(&Accept::new(fd).entry()), expected);
}

#[cfg(test)]
mod tests {
    use super::requests;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn an_entry_is_what_the_kernel_reads_and_stays_within_its_buffer() {
        with_kept("requests", requests);
        with_seeds(3000, requests);
    }
}
