//! What is asked of files: each request as an entry of the ring and as a system call that may wait.
//!
//! Files are named by shared descriptors, which stay open while the kernel or a thread works on
//! them. No request here waits for readiness: see [`carry`](crate::io::carry).

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use io_uring::{opcode, types};

use super::file::File;
use super::metadata::Metadata;
use crate::blocking::try_offload;
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
            unsafe { self.buffer.set_init(self.begin + count) };
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
///
/// Not through the ring: where the file system is asked at the close (`flush`), the kernel needs a
/// worker thread for it, and answers `ECANCELED` without having closed where it gets none. So may a
/// file system that was asked, and then the file is closed (FUSE). Who gives up the wait has
/// closed as well.
///
/// # Errors
///
/// Those of `close(2)`. The file is closed all the same.
pub(super) async fn close(fd: OwnedFd) -> io::Result<()> {
    let close = |fd: OwnedFd| {
        // SAFETY: the number is ours to close, and is given up here. Linux closes whatever it
        // answers.
        check(unsafe { libc::close(fd.into_raw_fd()) }.into()).map(drop)
    };
    let ours = Arc::new(Mutex::new(Some(fd)));
    let theirs = Arc::clone(&ours);
    let take = |fd: &Mutex<Option<OwnedFd>>| fd.try_lock().ok().and_then(|mut fd| fd.take());
    match try_offload(move || take(&theirs).map_or(Ok(()), close)).await {
        Ok(answer) => answer,
        // No thread could be made.
        Err(_refused) => take(&ours).map_or(Ok(()), close),
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
