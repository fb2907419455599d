//! The calls on files, which never wait for others.

use std::io;
use std::os::fd::AsRawFd;

use super::attempt::pointer;
use super::flight::Flight;
use super::kind::Kind;

/// Makes the call that an operation on a file asks for.
pub(super) fn call(flight: &Flight) -> Result<u32, i32> {
    let request = &flight.request;
    let file = || flight.file().as_raw_fd();
    let position = request.offset as libc::off_t;
    let flags = request.op_flags as libc::c_int;
    let length = request.length as usize;
    check(match flight.kind {
        // SAFETY: the pointer and the length describe memory that the operation keeps for this.
        Kind::Read => unsafe { libc::pread(file(), pointer(request), length, position) as i64 },
        // SAFETY: as above.
        Kind::Write => unsafe { libc::pwrite(file(), pointer(request), length, position) as i64 },
        // SAFETY: the call takes an integer and touches no memory.
        Kind::Sync if request.op_flags & 1 != 0 => unsafe { libc::fdatasync(file()).into() },
        // SAFETY: as above.
        Kind::Sync => unsafe { libc::fsync(file()).into() },
        // SAFETY: the number is the program's to close, and it has given it up.
        Kind::Close => unsafe { libc::close(request.fd).into() },
        // SAFETY: the path ends with a zero, and the operation keeps it.
        Kind::Open => unsafe {
            libc::openat(request.fd, pointer(request), flags, request.length).into()
        },
        // SAFETY: as above; so does the struct, whose size is the length.
        Kind::OpenHow => unsafe {
            let how = request.offset as *const libc::open_how;
            let path = pointer::<libc::c_char>(request);
            libc::syscall(libc::SYS_openat2, request.fd, path, how, length)
        },
        // SAFETY: as above; the answer is kept for writing.
        Kind::Stat => unsafe {
            let answer = request.offset as *mut libc::statx;
            libc::statx(file(), pointer(request), flags, request.length, answer).into()
        },
        kind => unreachable!("{kind:?} is no operation on a file"),
    })
}

fn check(answer: i64) -> Result<u32, i32> {
    let failed = |_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    u32::try_from(answer).map_err(failed)
}
