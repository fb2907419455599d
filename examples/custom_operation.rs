//! An operation that annulus does not have, written outside of it: `custom_operation PATH..` asks
//! for the sizes of files by their paths, by `statx(2)`, all at once.
//!
//! An operation speaks twice: as an entry of the ring and as a system call. This one may wait for a
//! disk, so that `carry` takes it to the ring, or its system call to the blocking pool. One that
//! waits for a descriptor names it (`Operation::descriptor`) and is carried by `Op`.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStringExt;

use annulus::runtime::{Entry, Operation, carry};
use io_uring::{opcode, types};

/// Everything that the kernel may touch belongs to the operation and lies on the heap: it is moved
/// away when its future is dropped, and the kernel may be at it all the same.
struct Statx {
    path: CString,
    answer: Box<libc::statx>,
}

impl Statx {
    fn new(path: CString) -> Statx {
        // SAFETY: the struct holds integers only, for which all zeros is a value.
        Statx { path, answer: Box::new(unsafe { std::mem::zeroed() }) }
    }
}

// SAFETY: the entry refers to the heap only, to what the operation owns; it has one completion.
unsafe impl Operation for Statx {
    type Output = io::Result<u64>;

    fn entry(&mut self) -> Entry {
        let answer = (&raw mut *self.answer).cast();
        opcode::Statx::new(types::Fd(libc::AT_FDCWD), self.path.as_ptr(), answer)
            .mask(libc::STATX_SIZE)
            .build()
    }

    fn call(&mut self) -> io::Result<u32> {
        let (path, answer) = (self.path.as_ptr(), &raw mut *self.answer);
        // SAFETY: the path ends with a zero; the struct is valid for writing.
        match unsafe { libc::statx(libc::AT_FDCWD, path, 0, libc::STATX_SIZE, answer) } {
            0 => Ok(0),
            _ => Err(io::Error::last_os_error()),
        }
    }

    // Called once with the answer, also when nobody waits for it any more.
    unsafe fn complete(self, result: io::Result<u32>) -> io::Result<u64> {
        result.map(|_| self.answer.stx_size)
    }
}

#[annulus::main]
async fn main() -> io::Result<()> {
    println!("driver: {}", annulus::driver_info());
    let mut questions = Vec::new();
    for path in std::env::args_os().skip(1) {
        let question = Statx::new(CString::new(path.clone().into_vec())?);
        questions.push((path, annulus::spawn(carry(question))));
    }
    for (path, question) in questions {
        match question.await.expect("the task does not panic") {
            Ok(size) => println!("{size} {}", path.to_string_lossy()),
            Err(error) => println!("{}: {error}", path.to_string_lossy()),
        }
    }
    Ok(())
}
