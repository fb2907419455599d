//! Thin, safe wrappers around the system calls that the runtime makes itself.
//!
//! Each one keeps the errno. Nothing here knows about tasks, shards or drivers.

mod epoll;

use std::ffi::CStr;
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::time::Instant;

pub(crate) use self::epoll::{EPOLL_EVENTS_MAX, EpollEvent, EpollFd, clamp_wait};
use crate::sim;

/// The most bytes that one read or write system call transfers (`MAX_RW_COUNT` in the kernel).
///
/// Longer requests are cut: io_uring answers EINVAL from 2^31 on, and a length of 4 GiB would
/// wrap to zero in the entry.
pub const TRANSFER_BYTES_MAX: usize = 0x7fff_f000;

/// Turns the answer of a system call into a result that keeps the errno.
fn check(answer: libc::c_int) -> io::Result<u32> {
    u32::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// As [`check`], for calls that answer with a byte count.
fn check_size(answer: libc::ssize_t) -> io::Result<u32> {
    u32::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// A counter in the kernel whose only use here is to end a wait.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    pub(crate) fn new() -> io::Result<EventFd> {
        // SAFETY: eventfd takes two integers and touches no memory of ours.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: the kernel has just made this descriptor and nobody else knows it.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// Makes the descriptor readable anew. Never blocks and never fails.
    pub(crate) fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer is eight readable bytes, as eventfd(2) asks.
        let wrote = unsafe { libc::write(self.raw_fd(), one.as_ptr().cast(), one.len()) };
        if wrote < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock {
            // The counter stands at its maximum. A write that fails raises no event, so take the
            // count away and write once more.
            self.drain();
            // SAFETY: as above.
            unsafe { libc::write(self.raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    /// Blocks until it has been signalled since the last time, or a signal of the process arrives.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut wanted = libc::pollfd { fd: self.raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is to one pollfd, which the call reads and fills.
        let answer = check(unsafe { libc::poll(&raw mut wanted, 1, -1) });
        self.drain();
        answer.map(drop)
    }

    fn drain(&self) {
        let mut count = [0u8; 8];
        // SAFETY: the buffer is eight writable bytes, as eventfd(2) asks.
        unsafe { libc::read(self.raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Receives into `buffer` without waiting. The bytes that are counted have been written.
pub fn recv(
    fd: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    flags: libc::c_int,
) -> io::Result<usize> {
    if let Some(answer) = sim::calls::receive(fd, buffer, flags) {
        return answer.map(|(bytes, _)| bytes);
    }
    let length = buffer.len().min(TRANSFER_BYTES_MAX);
    // SAFETY: the pointer and the length describe the caller's writable slice.
    let count = check_size(unsafe {
        libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), length, flags | libc::MSG_DONTWAIT)
    })?;
    Ok(count as usize)
}

/// Whether a receive asks how much it leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It does not.
    Ignored,
    /// Told by TCP sockets that [were asked to](tell_rest).
    Asked,
}

/// What a receive has brought.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes in the buffer.
    pub bytes: usize,
    /// What was behind these bytes, if the kernel has told: 0 means that nothing is, neither bytes
    /// nor the end of the stream.
    pub rest: Option<usize>,
}

/// As [`recv`], and may ask for more than the bytes.
pub fn receive(
    fd: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    rest: Rest,
) -> io::Result<Received> {
    if rest == Rest::Ignored {
        return Ok(Received { bytes: recv(fd, buffer, 0)?, rest: None });
    }
    if let Some(answer) = sim::calls::receive(fd, buffer, 0) {
        return answer.map(|(bytes, rest)| Received { bytes, rest: Some(rest) });
    }
    let mut control = RestControl::default();
    let message = recv_message(fd, buffer, &mut [], &mut control.0, 0)?;
    Ok(Received { bytes: message.bytes, rest: control.rest(message.control_bytes) })
}

/// Has a TCP socket tell its receives how much they leave behind (`TCP_INQ`, since Linux 4.18).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn tell_rest(fd: BorrowedFd<'_>, rest: Rest) -> io::Result<()> {
    if sim::calls::is_simulated(fd) {
        return Ok(());
    }
    let value = libc::c_int::from(rest == Rest::Asked);
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value and its length agree and outlive the call.
    check(unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INQ, value, length)
    })
    .map(drop)
}

/// Room for the control message that tells the rest: a header of a word and two integers, and an
/// integer, padded.
#[derive(Default)]
#[repr(align(8))]
struct RestControl([u8; REST_CONTROL_BYTES]);

const REST_HEADER_BYTES: usize = size_of::<usize>() + 8;
const REST_CONTROL_BYTES: usize = REST_HEADER_BYTES + 8;

impl RestControl {
    /// What the kernel has written, if it is that message.
    fn rest(&self, written: usize) -> Option<usize> {
        let integer = |at: usize| Some(i32::from_ne_bytes(*self.0.get(at..)?.first_chunk()?));
        let kind = (integer(size_of::<usize>())?, integer(size_of::<usize>() + 4)?);
        let told = written >= REST_HEADER_BYTES + size_of::<i32>()
            && kind == (libc::IPPROTO_TCP, libc::TCP_CM_INQ);
        told.then(|| integer(REST_HEADER_BYTES).and_then(|rest| usize::try_from(rest).ok()))?
    }
}

/// Sends from `buffer` without waiting and without raising SIGPIPE.
pub fn send(fd: BorrowedFd<'_>, buffer: &[u8]) -> io::Result<usize> {
    if let Some(answer) = sim::calls::send(fd, &[IoSlice::new(buffer)]) {
        return answer;
    }
    let length = buffer.len().min(TRANSFER_BYTES_MAX);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    loop {
        // SAFETY: the pointer and the length describe the caller's readable slice.
        let count = unsafe { libc::send(fd.as_raw_fd(), buffer.as_ptr().cast(), length, flags) };
        match check_size(count) {
            // Nothing was sent. Taken for the connection's error, it would end the stream.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer.map(|count| count as usize),
        }
    }
}

/// As [`send`], from several places, 1024 at most (`IOV_MAX`).
pub fn send_vectored(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    if let Some(answer) = sim::calls::send(fd, slices) {
        return answer;
    }
    // SAFETY: all zeros is a message of no parts.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    // An `IoSlice` is laid out as an iovec, which the call only reads.
    header.msg_iov = slices.as_ptr().cast_mut().cast();
    header.msg_iovlen = slices.len() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    loop {
        // SAFETY: the header describes the caller's readable slices.
        let count = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, flags) };
        match check_size(count) {
            // Nothing was sent. Taken for the connection's error, it would end the stream.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer.map(|count| count as usize),
        }
    }
}

/// Ends one direction of a connection, or both.
pub fn shutdown(fd: BorrowedFd<'_>, how: Shutdown) -> io::Result<()> {
    if let Some(answer) = sim::calls::shutdown(fd, how) {
        return answer;
    }
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: the call takes integers and touches no memory of ours.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

/// How much of each part of a message has been received.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Bytes in the buffer.
    pub bytes: usize,
    /// Bytes of the sender's address, as the kernel writes it.
    pub name_bytes: usize,
    /// Bytes of control messages.
    pub control_bytes: usize,
}

/// Receives a message with its sender's address and control messages, as `recvmsg(2)`, without
/// waiting.
pub fn recv_message(
    fd: BorrowedFd<'_>,
    buffer: &mut [MaybeUninit<u8>],
    name: &mut [u8],
    control: &mut [u8],
    flags: libc::c_int,
) -> io::Result<Message> {
    if let Some(answer) = sim::calls::receive(fd, buffer, flags) {
        return answer.map(|(bytes, _)| Message { bytes, name_bytes: 0, control_bytes: 0 });
    }
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len().min(TRANSFER_BYTES_MAX),
    };
    // SAFETY: all zeros is a message of no parts.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if !name.is_empty() {
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = name.len() as libc::socklen_t;
    }
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() as _;
    // SAFETY: each pointer and its length describe one of the caller's writable slices.
    let bytes = check_size(unsafe {
        libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags | libc::MSG_DONTWAIT)
    })?;
    Ok(Message {
        bytes: bytes as usize,
        // The kernel tells the whole length of an address that it has cut.
        name_bytes: (header.msg_namelen as usize).min(name.len()),
        control_bytes: (header.msg_controllen as usize).min(control.len()),
    })
}

/// Accepts one connection, non-blocking and closed on exec.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    if let Some(answer) = sim::calls::accept(fd) {
        return answer;
    }
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null address pointers mean that no address is wanted.
    let accepted = check(unsafe {
        libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags)
    })?;
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted as RawFd) })
}

/// Takes and clears the pending error of a socket.
pub fn take_socket_error(fd: BorrowedFd<'_>) -> io::Result<()> {
    if let Some(answer) = sim::calls::take_error(fd) {
        return answer;
    }
    let mut error: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value and its length are valid for writing and agree with each other.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut error).cast(),
            &raw mut length,
        )
    })?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// A limit that the system sets for a process, which a privileged one may raise.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Resource {
    Descriptors,
    LockedMemory,
}

/// The soft and the hard limit, as `getrlimit(2)`; `u64::MAX` is no limit.
pub(crate) fn resource_limit(resource: Resource) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let number = match resource {
        Resource::Descriptors => libc::RLIMIT_NOFILE,
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
    };
    // SAFETY: the struct is valid for writing; getrlimit keeps no pointer to it.
    check(unsafe { libc::getrlimit(number, &raw mut limit) })?;
    let bound = |value| if value == libc::RLIM_INFINITY { u64::MAX } else { value };
    Ok((bound(limit.rlim_cur), bound(limit.rlim_max)))
}

/// The time by which everything runs that waits for time to pass.
#[inline]
pub(crate) fn now() -> Instant {
    sim::instant().unwrap_or_else(Instant::now)
}

/// The monotonic clock, in nanoseconds since some moment before all processes.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// How long this thread has kept a processor busy, in nanoseconds. A system call.
pub(crate) fn thread_cpu_ns() -> u64 {
    if sim::is_here() { 0 } else { clock_ns(libc::CLOCK_THREAD_CPUTIME_ID) }
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is valid for writing. The call cannot fail for the clocks that are ours.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A file in memory, of zeros and without a path, and its mapping, which stays for ever. Others may
/// read it, and none may write to it or cut it short, which would be the end of who looks here.
#[derive(Debug)]
pub(crate) struct SharedFile {
    pub(crate) fd: OwnedFd,
    pub(crate) start: NonNull<u8>,
}

impl SharedFile {
    /// # Errors
    ///
    /// Those of `memfd_create(2)`, `ftruncate(2)`, `mmap(2)` and `fcntl(2)`; EFBIG where files may
    /// not have this length.
    pub(crate) fn new(name: &CStr, length: usize) -> io::Result<SharedFile> {
        if file_bytes_max() < length as u64 {
            // The kernel would not only refuse, but send SIGXFSZ.
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let fd = memfd(name)?;
        // SAFETY: ftruncate takes two integers and touches no memory of ours.
        check(unsafe { libc::ftruncate(fd.as_raw_fd(), length as libc::off_t) })?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let (any, flags, raw) = (std::ptr::null_mut(), libc::MAP_SHARED, fd.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { libc::mmap(any, length, prot, flags, raw, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap never returns the null page");
        seal(&fd)?;
        Ok(SharedFile { fd, start })
    }
}

/// Leaves the file its length, and writing to the mappings that there are.
fn seal(file: &OwnedFd) -> io::Result<()> {
    let length = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    let add = |seals: libc::c_int| {
        // SAFETY: the call takes integers and touches no memory of ours.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
    };
    match add(length | libc::F_SEAL_FUTURE_WRITE) {
        // Before 5.1 those who may open the file may write to it: wrong figures, and no worse.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => add(length),
        other => other,
    }
}

/// A file in memory, which can be sealed and runs nothing.
pub(crate) fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    let create = |flags| {
        // SAFETY: the name ends with a zero, and the kernel copies it.
        check(unsafe { libc::memfd_create(name.as_ptr(), flags) })
    };
    // Since 6.3 a file should say that it is no program, and has to where vm.memfd_noexec is 2.
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let fd = match create(flags | libc::MFD_NOEXEC_SEAL) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => create(flags)?,
        other => other?,
    };
    // SAFETY: the kernel has just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// How long a file of this process may be.
fn file_bytes_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is valid for writing; getrlimit keeps no pointer to it.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => 0,
    }
}

/// A private anonymous mapping: page-aligned memory that costs nothing until it is touched.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    pub(crate) fn new(length: usize) -> io::Result<Mapping> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap never returns the null page");
        Ok(Mapping { start, length })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and this value is its only owner.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_full_counter_is_emptied_and_signalled_all_the_same() {
        let counter = EventFd::new().unwrap();
        let fill = (u64::MAX - 1).to_ne_bytes();
        // SAFETY: the buffer is eight readable bytes, as eventfd(2) asks.
        let wrote = unsafe { libc::write(counter.raw_fd(), fill.as_ptr().cast(), fill.len()) };
        assert_eq!(wrote, 8);
        counter.signal();
        let mut count = [0; 8];
        // SAFETY: the buffer is eight writable bytes.
        unsafe { libc::read(counter.raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn others_neither_cut_a_shared_file_short_nor_write_to_it() {
        let file = SharedFile::new(c"annulus-test", 8192).unwrap();
        let link = format!("/proc/self/fd/{}", file.fd.as_raw_fd());
        let theirs = OpenOptions::new().read(true).write(true).open(link).unwrap();
        let refused = |answer: io::Result<()>| {
            assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::EPERM));
        };
        refused(theirs.set_len(0));
        refused(theirs.set_len(1 << 20));
        refused(theirs.write_all_at(b"!", 0));
        // SAFETY: the mapping is writable, stays, and is this test's.
        unsafe { file.start.write(7) };
        let mut first = [0];
        theirs.read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first, [7]);
    }
}
