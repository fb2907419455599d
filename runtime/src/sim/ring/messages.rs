//! A multishot receive of datagrams, each behind a header in a buffer of a group.

use std::mem::MaybeUninit;

use super::attempt::pointer;
use super::entry::{BUFFER, BUFFER_SHIFT};
use super::flight::{Around, Flight, Step};
use super::sockets;
use crate::sys;

/// `struct io_uring_recvmsg_out`: four words.
const HEADER_BYTES: usize = 16;

pub(super) fn receive(flight: &Flight, around: &mut Around<'_>) -> Step {
    let request = &flight.request;
    // SAFETY: the operation keeps the message that its entry points to.
    let shape = unsafe { pointer::<libc::msghdr>(request).read() };
    let group = around.groups.get_mut(&request.group);
    let Some(offered) = group.as_ref().and_then(|group| group.next()) else {
        return Step::Last(-libc::ENOBUFS, 0);
    };
    let name_bytes = shape.msg_namelen as usize;
    // Its type differs from C library to C library.
    let control_bytes: usize = shape.msg_controllen as _;
    let front = HEADER_BYTES + name_bytes + control_bytes;
    let Some(room) = (offered.length as usize).checked_sub(front) else {
        return Step::Last(-libc::EFAULT, 0);
    };
    let mut payload = vec![MaybeUninit::uninit(); room];
    let (mut name, mut control) = (vec![0u8; name_bytes], vec![0u8; control_bytes]);
    let flags = request.message_flags();
    let got = sys::recv_message(flight.file(), &mut payload, &mut name, &mut control, flags);
    let message = match sockets::not_now(got) {
        Ok(Some(message)) => message,
        Ok(None) => return Step::Wait,
        Err(errno) => return Step::Last(-errno, 0),
    };
    let words = [message.name_bytes, message.control_bytes, message.bytes, 0];
    let mut bytes: Vec<u8> = words.iter().flat_map(|&word| (word as u32).to_ne_bytes()).collect();
    bytes.extend(name);
    bytes.extend(control);
    // SAFETY: the buffer was offered to be written to, and holds the header and what follows it.
    unsafe { offered.address.copy_from_nonoverlapping(bytes.as_ptr(), front) };
    // SAFETY: as above.
    let behind = unsafe { offered.address.add(front) };
    // SAFETY: as above; so many bytes of the payload have been received.
    unsafe { behind.copy_from_nonoverlapping(payload.as_ptr().cast(), message.bytes) };
    group.into_iter().for_each(|group| group.take());
    let flags = BUFFER | u32::from(offered.number) << BUFFER_SHIFT;
    Step::More((front + message.bytes) as i32, flags)
}
