//! What is asked of files: each request as an entry of the ring and as a system call that may wait.
//!
//! Files are named by shared descriptors, which stay open while the kernel or a thread works on
//! them. No request here waits for readiness: see [`carry`](crate::io::carry).

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::{opcode, types};

use super::file::File;
use super::metadata::Metadata;
use crate::buf::{IoBuf, IoBufMut};
use crate::driver::operation::{Entry, Operation};
use crate::sys::TRANSFER_BYTES_MAX;

/// Opens a file. Its output is the file, which is closed if nobody takes it.
pub(super) struct Open {
    pub(super) path: CString,
    pub(super) flags: libc::c_int,
    pub(super) mode: libc::mode_t,
    /// The directory that must not be left, and how the kernel is told so. On the heap, because
    /// the kernel may read it after the operation has moved.
    pub(super) beneath: Option<(Arc<OwnedFd>, Box<libc::open_how>)>,
}

// SAFETY: the entry refers to the path and the boxed struct, which are on the heap.
unsafe impl Operation for Open {
    type Output = io::Result<File>;

    fn entry(&mut self) -> Entry {
        let path = self.path.as_ptr();
        match &self.beneath {
            None => opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path)
                .flags(self.flags)
                .mode(self.mode)
                .build(),
            Some((directory, how)) => {
                let how = (&raw const **how).cast();
                opcode::OpenAt2::new(types::Fd(directory.as_raw_fd()), path, how).build()
            }
        }
    }

    fn call(&mut self) -> io::Result<u32> {
        let path = self.path.as_ptr();
        match &self.beneath {
            // SAFETY: the path ends with a zero and lives for the call.
            None => check(unsafe { libc::open(path, self.flags, self.mode) as libc::c_long }),
            Some((directory, how)) => {
                let how = &raw const **how;
                let size = size_of::<libc::open_how>();
                // SAFETY: as above; the struct has the size that is told.
                check(unsafe {
                    libc::syscall(libc::SYS_openat2, directory.as_raw_fd(), path, how, size)
                })
            }
        }
    }

    unsafe fn complete(self, result: io::Result<u32>) -> Self::Output {
        // SAFETY: the result of an open is a descriptor made for us, handed over once, as the
        // caller says.
        File::adopt(unsafe { OwnedFd::from_raw_fd(result? as RawFd) })
    }
}

/// Reads into the buffer behind its first `begin` bytes, which are written.
pub(super) struct Read<B> {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) buffer: B,
    pub(super) begin: usize,
    pub(super) offset: u64,
}

/// Buffers are never pinned.
impl<B> Unpin for Read<B> {}

impl<B: IoBufMut> Read<B> {
    pub(super) fn room(&mut self) -> usize {
        self.memory().1
    }

    fn memory(&mut self) -> (*mut u8, usize) {
        // SAFETY: reading writes bytes.
        let memory = unsafe { self.buffer.as_uninit() };
        let rest = &mut memory[self.begin..];
        (rest.as_mut_ptr().cast(), rest.len().min(TRANSFER_BYTES_MAX))
    }
}

// SAFETY: the entry refers to the memory of an `IoBufMut`, which stays where it is though the
// operation is moved, and which nobody touches while the operation lives.
unsafe impl<B: IoBufMut + Send> Operation for Read<B> {
    type Output = (io::Result<usize>, B);

    fn entry(&mut self) -> Entry {
        let (memory, length) = self.memory();
        opcode::Read::new(types::Fd(self.fd.as_raw_fd()), memory, length as u32)
            .offset(self.offset)
            .build()
    }

    fn call(&mut self) -> io::Result<u32> {
        let (memory, length) = self.memory();
        let offset = self.offset as libc::off_t;
        // SAFETY: the pointer and the length describe the buffer's writable memory.
        let count = unsafe { libc::pread(self.fd.as_raw_fd(), memory.cast(), length, offset) };
        check(count as libc::c_long)
    }

    unsafe fn complete(mut self, result: io::Result<u32>) -> Self::Output {
        let result = result.map(|count| count as usize);
        if let Ok(count) = result {
            // SAFETY: so many bytes have been read, behind those that were written before.
            unsafe { self.buffer.set_received(self.begin + count) };
        }
        (result, self.buffer)
    }
}

/// Writes what is in the buffer behind its first `begin` bytes.
pub(super) struct Write<B> {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) buffer: B,
    pub(super) begin: usize,
    pub(super) offset: u64,
}

impl<B> Unpin for Write<B> {}

impl<B: IoBuf> Write<B> {
    pub(super) fn bytes(&self) -> &[u8] {
        let rest = &self.buffer.as_slice()[self.begin..];
        &rest[..rest.len().min(TRANSFER_BYTES_MAX)]
    }
}

// SAFETY: as for `Read`, of memory that is read only.
unsafe impl<B: IoBuf + Send> Operation for Write<B> {
    type Output = (io::Result<usize>, B);

    fn entry(&mut self) -> Entry {
        let bytes = self.bytes();
        opcode::Write::new(types::Fd(self.fd.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .offset(self.offset)
            .build()
    }

    fn call(&mut self) -> io::Result<u32> {
        let bytes = self.bytes();
        let offset = self.offset as libc::off_t;
        let (memory, length) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the pointer and the length describe the buffer's bytes.
        check(unsafe { libc::pwrite(self.fd.as_raw_fd(), memory, length, offset) } as libc::c_long)
    }

    unsafe fn complete(self, result: io::Result<u32>) -> Self::Output {
        (result.map(|count| count as usize), self.buffer)
    }
}

/// Has what was written reach the device.
pub(super) struct Sync {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) all: bool,
}

// SAFETY: the entry refers to no memory.
unsafe impl Operation for Sync {
    type Output = io::Result<()>;

    fn entry(&mut self) -> Entry {
        let flags = if self.all { types::FsyncFlags::empty() } else { types::FsyncFlags::DATASYNC };
        opcode::Fsync::new(types::Fd(self.fd.as_raw_fd())).flags(flags).build()
    }

    fn call(&mut self) -> io::Result<u32> {
        let sync = if self.all { libc::fsync } else { libc::fdatasync };
        // SAFETY: both calls take an integer and touch no memory.
        check(unsafe { sync(self.fd.as_raw_fd()) }.into())
    }

    unsafe fn complete(self, result: io::Result<u32>) -> Self::Output {
        result.map(drop)
    }
}

/// Asks for the metadata of an open file.
pub(super) struct Stat {
    fd: Arc<OwnedFd>,
    /// On the heap, because the kernel may write it after the operation has moved.
    answer: Box<libc::statx>,
}

impl Stat {
    const FLAGS: libc::c_int = libc::AT_EMPTY_PATH;
    const MASK: u32 = libc::STATX_BASIC_STATS | libc::STATX_BTIME;

    pub(super) fn new(fd: Arc<OwnedFd>) -> Stat {
        // SAFETY: the struct holds integers only, for which all zeros is a value.
        Stat { fd, answer: Box::new(unsafe { std::mem::zeroed() }) }
    }
}

// SAFETY: the entry refers to the boxed struct, and to an empty path, which is static.
unsafe impl Operation for Stat {
    type Output = io::Result<Metadata>;

    fn entry(&mut self) -> Entry {
        let answer = (&raw mut *self.answer).cast();
        opcode::Statx::new(types::Fd(self.fd.as_raw_fd()), c"".as_ptr(), answer)
            .flags(Stat::FLAGS)
            .mask(Stat::MASK)
            .build()
    }

    fn call(&mut self) -> io::Result<u32> {
        let (fd, answer) = (self.fd.as_raw_fd(), &raw mut *self.answer);
        // SAFETY: the path is static and ends with a zero; the struct is valid for writing.
        check(unsafe { libc::statx(fd, c"".as_ptr(), Stat::FLAGS, Stat::MASK, answer) }.into())
    }

    unsafe fn complete(self, result: io::Result<u32>) -> Self::Output {
        result.map(|_| Metadata::new(self.answer))
    }
}

/// Closes a file.
pub(super) struct Close {
    /// Taken when the number is no longer ours.
    fd: Option<OwnedFd>,
    begun: bool,
}

impl Close {
    pub(super) fn new(fd: OwnedFd) -> Close {
        Close { fd: Some(fd), begun: false }
    }
}

// SAFETY: the entry refers to no memory.
unsafe impl Operation for Close {
    type Output = Closed;

    fn entry(&mut self) -> Entry {
        match &self.fd {
            // A close that was interrupted has closed: a second one would meet another's file.
            Some(fd) if !std::mem::replace(&mut self.begun, true) => {
                opcode::Close::new(types::Fd(fd.as_raw_fd())).build()
            }
            _ => opcode::Nop::new().build(),
        }
    }

    fn call(&mut self) -> io::Result<u32> {
        let Some(fd) = self.fd.take() else { return Ok(0) };
        // SAFETY: the number is ours to close, and is given up here.
        check(unsafe { libc::close(fd.into_raw_fd()) }.into())
    }

    unsafe fn complete(mut self, result: io::Result<u32>) -> Self::Output {
        let cancelled =
            matches!(&result, Err(error) if error.raw_os_error() == Some(libc::ECANCELED));
        // Linux closes whatever it answers, unless it was kept from trying.
        if let Some(fd) = self.fd.take_if(|_| !cancelled) {
            let _closed = fd.into_raw_fd();
        }
        Closed { result: result.map(drop), open: self.fd }
    }
}

/// How a close has ended.
pub(super) struct Closed {
    result: io::Result<()>,
    /// May be open still: closed by the drop, where nobody waits for the answer.
    open: Option<OwnedFd>,
}

impl Closed {
    /// The answer, for who has waited for it and so has not cancelled it. Then `ECANCELED` is the
    /// file system's own, and the number no longer ours.
    pub(super) fn waited_for(self) -> io::Result<()> {
        if let Some(fd) = self.open {
            let _closed = fd.into_raw_fd();
        }
        self.result
    }
}

/// # Errors
///
/// As `pread(2)`. The ring would take the largest position for "where the file stands", and reads
/// what has no positions at any.
pub(super) fn check_position(seekable: bool, offset: u64) -> io::Result<()> {
    match i64::try_from(offset) {
        Ok(_) if seekable => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::ESPIPE)),
        Err(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Whether the file has positions. Does not wait.
pub(super) fn seekable(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: the call takes integers and touches no memory. It moves nothing.
    let position = unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_CUR) };
    position >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESPIPE)
}

/// May wait.
pub(super) fn set_len(fd: BorrowedFd<'_>, length: u64) -> io::Result<()> {
    let Ok(length) = libc::off_t::try_from(length) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    loop {
        // SAFETY: the call takes integers and touches no memory.
        match check(unsafe { libc::ftruncate(fd.as_raw_fd(), length) }.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer.map(drop),
        }
    }
}

fn check(answer: libc::c_long) -> io::Result<u32> {
    u32::try_from(answer).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file system of somebody else's (FUSE) may answer to its last flush.
    #[test]
    fn an_answer_that_was_waited_for_closes_no_number_twice() {
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let number = file.as_raw_fd();
        let cancelled = || Err(io::Error::from_raw_os_error(libc::ECANCELED));
        // SAFETY: the operation was never started, so that the number is still open.
        let closed = unsafe { Close::new(file).complete(cancelled()) };
        assert_eq!(closed.waited_for().unwrap_err().raw_os_error(), Some(libc::ECANCELED));
        // SAFETY: the number is open, and nobody else's, unless it was closed above.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        file.try_clone().expect("still open: for all this knows it is another's by now");
    }

    #[test]
    fn a_close_that_nobody_waits_for_and_nobody_began_closes() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let cancelled = io::Error::from_raw_os_error(libc::ECANCELED);
        // SAFETY: the operation was never started.
        drop(unsafe { Close::new(ours.into()).complete(Err(cancelled)) });
        assert_eq!(io::Read::read(&mut theirs, &mut [0]).unwrap(), 0);
    }
}
