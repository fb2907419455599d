//! A storm of signals: a thousand a second to every thread of this process, while the tests of a
//! binary run. Asked for by a variable, so that every test there is can be run in it.
//!
//! The signal has a handler, and calls that it ends are not made again by the kernel. Peers are
//! kept out of it: they are plain blocking sockets, and what they do about a signal is not ours.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use crate::common::asked;

/// Starts the storm, once, where the variable asks for it.
pub(crate) fn start_if_asked() {
    static STARTED: Once = Once::new();
    if asked::is_on(ASKED) {
        STARTED.call_once(start);
    }
}

/// Starts the storm. It lasts as long as the process.
pub(crate) fn start() {
    handle();
    let (tell, opened) = channel();
    let sender = thread::Builder::new().name("storm".into());
    sender.spawn(move || blow(&tell)).expect("spawn the storm");
    opened.recv().expect("the storm does not panic");
}

/// Keeps it from this thread, and from those that this one makes.
pub(crate) fn keep_out() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is to a whole set, which the call makes an empty one.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set was made by the call before.
    unsafe { libc::sigaddset(set.as_mut_ptr(), SIGNAL) };
    // SAFETY: the set is a whole one, and what was blocked before is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) };
}

/// How many of the signals have been handled.
pub(crate) fn handled() -> u64 {
    HANDLED.load(Ordering::Relaxed)
}

fn handle() {
    extern "C" fn count(_signal: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: a zeroed sigaction is a valid one: no flags, so that calls are not restarted.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as *const () as usize;
    // SAFETY: the pointers are to a whole sigaction and to nothing; the handler only counts.
    let result = unsafe { libc::sigaction(SIGNAL, &raw const action, ptr::null_mut()) };
    assert_eq!(result, 0, "sigaction failed");
}

fn blow(tell: &Sender<()>) {
    keep_out();
    let tasks = Tasks::open();
    tell.send(()).expect("it is waited for");
    let pid = std::process::id();
    loop {
        while let Some(thread) = tasks.next() {
            // SAFETY: no pointers; a thread that has ended is an error, and not ours.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, SIGNAL) };
        }
        tasks.rewind();
        thread::sleep(PAUSE);
    }
}

/// The threads of this process. Opened once: tests that count descriptors find it there before and
/// after.
struct Tasks(NonNull<libc::DIR>);

impl Tasks {
    fn open() -> Tasks {
        // SAFETY: the path ends with a zero, and the kernel copies it.
        let opened = unsafe { libc::opendir(c"/proc/self/task".as_ptr()) };
        Tasks(NonNull::new(opened).expect("open /proc/self/task"))
    }

    fn next(&self) -> Option<libc::pid_t> {
        loop {
            // SAFETY: the directory is open, and used by this thread only.
            let entry = NonNull::new(unsafe { libc::readdir(self.0.as_ptr()) })?;
            // SAFETY: an entry lives until the next call on its directory.
            let entry = unsafe { entry.as_ref() };
            // SAFETY: its name ends with a zero.
            let name = unsafe { CStr::from_ptr(entry.d_name.as_ptr()) };
            if let Some(thread) = name.to_str().ok().and_then(|name| name.parse().ok()) {
                return Some(thread);
            }
        }
    }

    fn rewind(&self) {
        // SAFETY: the directory is open, and used by this thread only.
        unsafe { libc::rewinddir(self.0.as_ptr()) };
    }
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

/// One that neither a test nor the runtime uses. It is not queued: a thread that is late has one.
const SIGNAL: libc::c_int = libc::SIGVTALRM;
/// With what the sending itself takes, about a thousand rounds a second.
const PAUSE: Duration = Duration::from_micros(900);
const ASKED: &str = "ANNULUS_TEST_STORM";
