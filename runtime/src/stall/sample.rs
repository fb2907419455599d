//! Asking a thread where it stands: a signal to it alone, whose handler writes down the return
//! addresses on its stack and the name of its task.
//!
//! The signal is SIGURG. Its default is to be ignored, debuggers pass it on silently, and the
//! kernel itself sends it only to who asked for it (`F_SETOWN`). It carries a value by which the
//! handler tells ours from others, which go on to the handler that was there before.
//!
//! The handler allocates nothing, takes no lock, and writes to memory that is there from the
//! start. It walks the stack by the unwinder that the standard library links. That one has done its
//! lazy parts before (`warm_up`), and finds its tables by `_dl_find_object` (glibc 2.35), which is
//! made for signal handlers. With older C libraries it has a lock and a cache, which the thread may
//! have in its hands just then: there the stack is left alone, and the report says why.
//!
//! It does not ask for the alternate stack: what the standard library gives a thread has room for
//! the kernel's frame and little else (`AT_MINSIGSTKSZ` grows with the registers), while the stack
//! of a shard has megabytes. Nor is the handler ever taken out: someone may have come behind it.
//!
//! A system call that the signal interrupts is made again (`SA_RESTART`). Those that the kernel
//! never restarts, as `nanosleep`, `poll` and `epoll_wait`, answer EINTR; the standard library and
//! this crate then go on.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::Ordering;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::record::Record;

/// Return addresses that are kept, from the innermost: more than the nesting that a person reads.
const FRAMES_MAX: usize = 128;
/// Bytes of a task's name that are kept.
const NAME_BYTES_MAX: usize = 128;
/// How long a thread has to begin its answer. One that can takes microseconds; one that cannot,
/// as it blocks the signal or waits for a disk, would keep the watchdog from the others.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long it has to end it, once begun.
const PATIENCE_TO_END: Duration = Duration::from_secs(1);
/// Between two looks whether the answer is there.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);
/// An alternate stack below this is too small for the unwinder.
const STACK_BYTES_MIN: usize = 64 * 1024;

const SIGNAL: c_int = libc::SIGURG;

/// What a thread has said.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: Option<String>,
    /// The innermost first; addresses within the calls.
    pub(super) frames: Vec<usize>,
}

/// The one question that is open at a time, and the answer to it.
struct Question {
    phase: AtomicU32,
    thread: AtomicI32,
    record: AtomicPtr<Record>,
    number: AtomicU64,
    name: [AtomicU8; NAME_BYTES_MAX],
    /// Of the name, or [`NO_NAME`].
    name_bytes: AtomicUsize,
    frames: [AtomicUsize; FRAMES_MAX],
    frame_count: AtomicUsize,
}

/// Nobody is asked.
const FREE: u32 = 0;
/// The thread may begin.
const ASKED: u32 = 1;
/// It writes; the watchdog keeps off.
const ANSWERING: u32 = 2;
/// The answer is whole.
const ANSWERED: u32 = 3;
/// What was asked about has ended.
const OVER: u32 = 4;

const NO_NAME: usize = usize::MAX;

static QUESTION: Question = Question {
    phase: AtomicU32::new(FREE),
    thread: AtomicI32::new(0),
    record: AtomicPtr::new(ptr::null_mut()),
    number: AtomicU64::new(0),
    name: [const { AtomicU8::new(0) }; NAME_BYTES_MAX],
    name_bytes: AtomicUsize::new(NO_NAME),
    frames: [const { AtomicUsize::new(0) }; FRAMES_MAX],
    frame_count: AtomicUsize::new(0),
};

/// Whether stacks can be walked within the handler. Set before the first signal.
static WALKS: AtomicBool = AtomicBool::new(false);

/// The handler that was there before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// The right to ask. The watchdog has the only one.
#[derive(Debug)]
pub(super) struct Asker(());

impl Asker {
    /// Installs the handler, if it is not there. To be called once in a process.
    pub(super) fn install() -> io::Result<Asker> {
        if finds_tables_without_a_lock() {
            warm_up();
            WALKS.store(true, Ordering::Relaxed);
        }
        // Of a parent's, which a forked child has, too. Its questions are not the child's.
        QUESTION.phase.store(FREE, Ordering::Release);
        if PREVIOUS.get().is_some() {
            return Ok(Asker(()));
        }
        let mut previous = empty_action();
        // SAFETY: a null action changes nothing; the old one is written to a whole struct.
        check(unsafe { libc::sigaction(SIGNAL, ptr::null(), &raw mut previous) })?;
        // For its sake the mask and the stack are as they were.
        let wants_stack = if is_handler(&previous) { libc::SA_ONSTACK } else { 0 };
        let mut ours = previous;
        ours.sa_sigaction = on_signal as *const () as libc::sighandler_t;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | (previous.sa_flags & wants_stack);
        // It has to be there when the first signal comes.
        let _is_first = PREVIOUS.set(previous);
        // SAFETY: the action is whole, and its handler does only what a handler may.
        check(unsafe { libc::sigaction(SIGNAL, &raw const ours, ptr::null_mut()) })?;
        Ok(Asker(()))
    }

    /// Where the thread stands that runs this number of the record. If it does not tell, why not.
    pub(super) fn ask(&mut self, record: &Arc<Record>, number: u64) -> Result<Sample, String> {
        if !claim() {
            return Err("another thread has not ended its answer".to_owned());
        }
        QUESTION.thread.store(record.thread, Ordering::Relaxed);
        QUESTION.record.store(Arc::as_ptr(record).cast_mut(), Ordering::Relaxed);
        QUESTION.number.store(number, Ordering::Relaxed);
        // Release: pairs with the exchange in `answer`.
        QUESTION.phase.store(ASKED, Ordering::Release);
        match send(record.thread) {
            Ok(()) => wait(record),
            Err(error) if withdraw() => Err(format!("its thread cannot be signalled: {error}")),
            // It answers to the late signal of an earlier question.
            Err(_) => wait(record),
        }
    }
}

/// Whether another question may be written down. One whose asker has given up may be open still: a
/// thread that it was not for put it back late. Nobody is to begin an answer to half of the next.
fn claim() -> bool {
    let _was_open = withdraw();
    QUESTION.phase.load(Ordering::Acquire) != ANSWERING
}

/// Takes back a question to which no answer was begun. A late signal then finds nothing to do.
fn withdraw() -> bool {
    let phase = &QUESTION.phase;
    phase.compare_exchange(ASKED, FREE, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

fn wait(record: &Arc<Record>) -> Result<Sample, String> {
    let asked = Instant::now();
    loop {
        match QUESTION.phase.load(Ordering::Acquire) {
            ANSWERED => return Ok(read()),
            OVER => return Err("it went on before its thread was looked at".to_owned()),
            ANSWERING if asked.elapsed() > PATIENCE_TO_END => {
                // It may still look at the record, whenever it goes on.
                mem::forget(Arc::clone(record));
                return Err("its thread does not end its answer".to_owned());
            }
            ASKED if asked.elapsed() > PATIENCE && withdraw() => {
                let why = "its thread does not answer: it blocks SIGURG, or waits in the kernel \
                           where no signal reaches it";
                return Err(why.to_owned());
            }
            _ => thread::sleep(LOOK_INTERVAL),
        }
    }
}

fn read() -> Sample {
    let frames = QUESTION.frame_count.load(Ordering::Relaxed).min(FRAMES_MAX);
    let frames = QUESTION.frames[..frames].iter().map(|it| it.load(Ordering::Relaxed)).collect();
    let name = match QUESTION.name_bytes.load(Ordering::Relaxed) {
        NO_NAME => None,
        bytes => {
            let bytes = &QUESTION.name[..bytes.min(NAME_BYTES_MAX)];
            let bytes: Vec<u8> = bytes.iter().map(|it| it.load(Ordering::Relaxed)).collect();
            // It may have been cut within a character.
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
    };
    Sample { name, frames }
}

/// What the kernel takes for a queued signal: `siginfo_t`, whose last part is a union.
#[repr(C)]
struct Queued {
    signal: c_int,
    errno: c_int,
    code: c_int,
    sent: Sent,
    rest: [usize; 16],
}

#[repr(C)]
struct Sent {
    pid: libc::pid_t,
    uid: libc::uid_t,
    value: *const c_void,
}

const _: () = assert!(size_of::<Queued>() >= size_of::<libc::siginfo_t>());

/// Sends the signal to one thread of this process, or to none.
fn send(thread: libc::pid_t) -> io::Result<()> {
    // SAFETY: getpid takes nothing and cannot fail.
    let pid = unsafe { libc::getpid() };
    // SAFETY: nor does getuid.
    let uid = unsafe { libc::getuid() };
    let value = ptr::from_ref(&QUESTION).cast();
    let code = libc::SI_QUEUE;
    let sent = Sent { pid, uid, value };
    let info = Queued { signal: SIGNAL, errno: 0, code, sent, rest: [0; 16] };
    // SAFETY: the kernel reads a siginfo_t, which is no longer than this; a thread that has ended
    // is an error, and one of another process is never meant, as its process is named.
    let answer =
        unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, thread, SIGNAL, &raw const info) };
    check(answer as c_int)
}

extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the C library gives the address of this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; it lives as long as the thread.
    let before = unsafe { errno.read() };
    if is_ours(info) {
        answer();
    } else {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { errno.write(before) };
}

fn is_ours(info: *mut libc::siginfo_t) -> bool {
    // SAFETY: with SA_SIGINFO the kernel passes a whole one.
    let Some(info) = (unsafe { info.as_ref() }) else { return false };
    // SAFETY: who queues a signal gives it a value.
    let value = || unsafe { info.si_value() }.sival_ptr.cast_const();
    info.si_code == libc::SI_QUEUE && value() == ptr::from_ref(&QUESTION).cast()
}

/// Calls the handler that was there before. The default is to ignore the signal.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(previous) = PREVIOUS.get().filter(|previous| is_handler(previous)) else { return };
    let handler = previous.sa_sigaction as *const ();
    if previous.sa_flags & libc::SA_SIGINFO != 0 {
        type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: the flag says that it is a function of this kind.
        let handler = unsafe { mem::transmute::<*const (), Handler>(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: without the flag it is one of this kind.
        let handler = unsafe { mem::transmute::<*const (), extern "C" fn(c_int)>(handler) };
        handler(signal);
    }
}

fn is_handler(action: &libc::sigaction) -> bool {
    ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction)
}

/// Answers the question, on the thread that it is for.
fn answer() {
    // SAFETY: gettid takes nothing and cannot fail.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) } as libc::pid_t;
    // One that comes too late, after another was asked.
    if QUESTION.thread.load(Ordering::Relaxed) != thread {
        return;
    }
    // Acquire: pairs with the store in `ask`.
    let phase = &QUESTION.phase;
    let began = phase.compare_exchange(ASKED, ANSWERING, Ordering::Acquire, Ordering::Relaxed);
    if began.is_err() || QUESTION.thread.load(Ordering::Relaxed) != thread {
        if began.is_ok() {
            // It became another's question between the two looks.
            phase.store(ASKED, Ordering::Release);
        }
        return;
    }
    // SAFETY: the watchdog holds the record until an answer that was begun has ended.
    let record = unsafe { &*QUESTION.record.load(Ordering::Relaxed) };
    let number = QUESTION.number.load(Ordering::Relaxed);
    if record.number() != number {
        phase.store(OVER, Ordering::Release);
        return;
    }
    // SAFETY: this is the shard's thread, and what runs has the number.
    let name = unsafe { record.name_on_its_thread(number) };
    write_name(name);
    QUESTION.frame_count.store(0, Ordering::Relaxed);
    if WALKS.load(Ordering::Relaxed) && has_room() {
        walk(on_frame);
    }
    // Release: pairs with the load in `wait`.
    phase.store(ANSWERED, Ordering::Release);
}

fn write_name(name: Option<&[u8]>) {
    let bytes = name.map_or(NO_NAME, |name| name.len().min(NAME_BYTES_MAX));
    for (place, byte) in QUESTION.name.iter().zip(name.unwrap_or_default()) {
        place.store(*byte, Ordering::Relaxed);
    }
    QUESTION.name_bytes.store(bytes, Ordering::Relaxed);
}

/// Why an answer has no frames.
pub(super) fn why_no_frames() -> &'static str {
    if WALKS.load(Ordering::Relaxed) {
        return "the unwinder found no frame, or no room";
    }
    "this C library lacks `_dl_find_object` (since glibc 2.35), and without it the stack of an \
     interrupted thread cannot be looked at safely"
}

/// Whether the unwinder has what it needs of the C library.
fn finds_tables_without_a_lock() -> bool {
    // SAFETY: the name is a C string, and the answer is not used but compared.
    !unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()) }.is_null()
}

/// Whether the unwinder has the stack that it needs: on an alternate one only if that is large.
fn has_room() -> bool {
    let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    let mut stack = none;
    // SAFETY: a null stack changes nothing; the present one is written to a whole struct.
    let answer = unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) };
    answer == 0 && (stack.ss_flags & libc::SS_ONSTACK == 0 || stack.ss_size >= STACK_BYTES_MIN)
}

/// What the unwinder says of a frame.
#[repr(C)]
struct UnwindContext {
    _opaque: [u8; 0],
}

type OnFrame = extern "C" fn(*mut UnwindContext, *mut c_void) -> c_int;

// Of libgcc or libunwind, which the standard library links for panics.
unsafe extern "C" {
    fn _Unwind_Backtrace(on_frame: OnFrame, data: *mut c_void) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut UnwindContext, before_call: *mut c_int) -> usize;
}

/// `_URC_NO_REASON`: go on; and any other that ends the walk.
const GO_ON: c_int = 0;
const STOP: c_int = 4;

fn walk(on_frame: OnFrame) {
    // SAFETY: the function does only what it may within a walk, and unwinds nothing.
    unsafe { _Unwind_Backtrace(on_frame, ptr::null_mut()) };
}

extern "C" fn on_frame(context: *mut UnwindContext, _data: *mut c_void) -> c_int {
    let mut interrupted: c_int = 0;
    // SAFETY: the unwinder gave the context for the length of this call.
    let address = unsafe { _Unwind_GetIPInfo(context, &raw mut interrupted) };
    let mut count = QUESTION.frame_count.load(Ordering::Relaxed);
    if interrupted != 0 {
        // The signal came here: what was kept until now is its handler.
        count = 0;
    }
    let Some(place) = QUESTION.frames.get(count) else { return STOP };
    if address == 0 {
        return STOP;
    }
    // A return address is behind its call, and may belong to the next function.
    let address = if interrupted == 0 { address - 1 } else { address };
    place.store(address, Ordering::Relaxed);
    QUESTION.frame_count.store(count + 1, Ordering::Relaxed);
    GO_ON
}

/// Has the unwinder and the dynamic linker do what they do once.
fn warm_up() {
    extern "C" fn look(context: *mut UnwindContext, _data: *mut c_void) -> c_int {
        let mut interrupted: c_int = 0;
        // SAFETY: the unwinder gave the context for the length of this call.
        unsafe { _Unwind_GetIPInfo(context, &raw mut interrupted) };
        GO_ON
    }
    walk(look);
}

fn empty_action() -> libc::sigaction {
    // SAFETY: all zeros are the default action with an empty mask.
    unsafe { mem::zeroed() }
}

fn check(answer: c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_env = "gnu")]
    fn stacks_are_walked_from_glibc_2_35_on() {
        // SAFETY: the call takes nothing.
        let version = unsafe { libc::gnu_get_libc_version() };
        // SAFETY: the answer is a C string that lives as long as the program.
        let version = unsafe { std::ffi::CStr::from_ptr(version) };
        let mut parts = version.to_str().unwrap().split('.').map(|part| part.parse().unwrap());
        let version: (u32, u32) = (parts.next().unwrap(), parts.next().unwrap());
        assert_eq!(finds_tables_without_a_lock(), version >= (2, 35), "glibc {version:?}");
    }

    #[test]
    fn a_question_that_was_left_open_is_closed_before_the_next() {
        let phase = &QUESTION.phase;
        for (left, may_ask, then) in [
            (FREE, true, FREE),
            (ASKED, true, FREE),
            (ANSWERING, false, ANSWERING),
            (ANSWERED, true, ANSWERED),
            (OVER, true, OVER),
        ] {
            phase.store(left, Ordering::Relaxed);
            assert_eq!((claim(), phase.load(Ordering::Relaxed)), (may_ask, then), "phase {left}");
        }
        phase.store(FREE, Ordering::Relaxed);
    }
}
