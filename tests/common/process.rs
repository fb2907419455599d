//! This process and its children: descriptors, memory, limits, refused system calls.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use annulus::Driver;

use super::peer::{Peer, peer};

/// How many descriptors this process has open.
pub(crate) fn open_descriptors() -> usize {
    descriptors().len()
}

/// The descriptors of this process.
pub(crate) fn descriptors() -> Vec<i32> {
    let entries = fs::read_dir("/proc/self/fd").expect("read /proc/self/fd");
    let number = |entry: io::Result<fs::DirEntry>| {
        let name = entry.expect("an entry of /proc/self/fd").file_name();
        name.to_str().and_then(|name| name.parse().ok()).expect("a number")
    };
    let listed: Vec<i32> = entries.map(number).collect();
    // The one that read the directory is closed by now.
    listed.into_iter().filter(|&fd| is_open(fd)).collect()
}

/// Whether this process has a descriptor of this number.
pub(crate) fn is_open(fd: i32) -> bool {
    // SAFETY: the call takes no pointer; a closed descriptor is an error.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// How much memory of this process is resident.
pub(crate) fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("read /proc/self/status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a VmRSS line");
    let kib = line.split_whitespace().nth(1).expect("a number of kB");
    kib.parse::<usize>().expect("a number of kB") * 1024
}

/// Processor time that this process has used, in clock ticks turned to milliseconds.
pub(crate) fn cpu_ms() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole rusage, which the call fills.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    assert_eq!(result, 0, "getrusage failed");
    // SAFETY: zeroed memory is a valid rusage, and the call filled it.
    let usage = unsafe { usage.assume_init() };
    let ms = |time: libc::timeval| time.tv_sec as u64 * 1000 + time.tv_usec as u64 / 1000;
    ms(usage.ru_utime) + ms(usage.ru_stime)
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Lets this process open as many descriptors as it may. Once, so that it does not interfere with
/// a test that lowers the limit.
pub(crate) fn raise_descriptor_limit() {
    static RAISED: Once = Once::new();
    RAISED.call_once(|| {
        let mut limit = descriptor_limit();
        limit.rlim_cur = limit.rlim_max;
        set_descriptor_limit(limit).expect("raise the soft limit of descriptors");
    });
}

/// Fails where a test may not open as many descriptors as it needs.
pub(crate) fn need_descriptors(count: u64) {
    raise_descriptor_limit();
    let limit = descriptor_limit().rlim_max;
    assert!(
        limit >= count,
        "this test needs {count} descriptors and the hard limit is {limit}; raise it (ulimit -Hn)"
    );
}

/// The limit of open descriptors.
pub(crate) fn descriptor_limit() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole rlimit, which the call fills.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0, "getrlimit failed");
    limit
}

/// Sets the limit of open descriptors.
pub(crate) fn set_descriptor_limit(limit: libc::rlimit) -> io::Result<()> {
    // SAFETY: the pointer is to a whole rlimit, which the call reads.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lowers the limit so that this many more descriptors can be opened.
pub(crate) fn leave_descriptors(free: usize) {
    let open = descriptors();
    let bound = (0..).filter(|fd| !open.contains(fd)).nth(free).expect("an endless sequence");
    let mut limit = descriptor_limit();
    limit.rlim_cur = u64::try_from(bound).expect("descriptors are not negative");
    set_descriptor_limit(limit).expect("lower the soft limit of descriptors");
}

/// Gives up root, if this process has it, and the right to lock more memory than this.
pub(crate) fn lock_no_more_than(bytes: u64) {
    limit_a_user_of_its_own(libc::RLIMIT_MEMLOCK, bytes, 61_234);
}

/// Gives up root, if this process has it, and the right to make a thread more.
pub(crate) fn make_no_thread() {
    limit_a_user_of_its_own(libc::RLIMIT_NPROC, 1, 61_235);
}

/// For what the kernel counts by user: becomes one that nobody else is, if this process may.
fn limit_a_user_of_its_own(
    resource: libc::__rlimit_resource_t,
    most: u64,
    nobody_else: libc::uid_t,
) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the pointer is to a whole rlimit, which the call reads.
    let limited = unsafe { libc::setrlimit(resource, &raw const limit) };
    assert_eq!(limited, 0, "limit the process: {}", io::Error::last_os_error());
    if is_root() {
        // SAFETY: the call takes no pointer.
        let changed = unsafe { libc::setuid(nobody_else) };
        assert_eq!(changed, 0, "become another user: {}", io::Error::last_os_error());
    }
}

/// Runs the test `role` of this same binary in a new process, with `ROLE` set for it.
///
/// The role is a test that returns at once when `ROLE` is not set (see [`in_role`]).
pub(crate) fn role(name: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("path of the test binary"));
    // One test thread makes the role run on the process's main thread, and alone.
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, name);
    command
}

/// Whether this process was started to play a role.
pub(crate) fn in_role() -> bool {
    env::var_os(ROLE).is_some()
}

/// Runs the body in a process of its own, for tests that change what belongs to the process.
/// Returns what it wrote to its stderr; in that process itself, nothing.
pub(crate) fn in_own_process(name: &str, driver: Driver, body: impl FnOnce()) -> String {
    if in_role() {
        body();
        return String::new();
    }
    let mut child = Running::start(role(&format!("{name}::{driver}")));
    let (status, output, errors) = child.finish();
    assert!(status.success(), "{status}\n{output}\n{errors}");
    assert!(output.contains("1 passed"), "no test has this name:\n{output}");
    errors
}

/// The names of this process's threads.
pub(crate) fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("read /proc/self/task");
    let name = |task: io::Result<fs::DirEntry>| {
        // One that has ended meanwhile has no name.
        fs::read_to_string(task.expect("an entry").path().join("comm")).ok()
    };
    tasks.filter_map(name).map(|name| name.trim_end().to_owned()).collect()
}

/// A program under `strace -f`, its raw log in this file.
pub(crate) fn under_strace(command: &Command, log: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(log).arg("--");
    behind(strace, command)
}

/// Whether this line of strace is a shard asking how much of its time was work. It asks every
/// 10 ms, so that the slower a machine is, the more of it there is for each request.
pub(crate) fn is_look_at_processor_time(line: &str) -> bool {
    line.contains("clock_gettime(CLOCK_THREAD_CPUTIME_ID")
}

/// A program as the argument of another that runs it.
pub(crate) fn behind(mut first: Command, command: &Command) -> Command {
    first.arg(command.get_program());
    with_arguments_of(first, command)
}

/// The same command with its program elsewhere.
pub(crate) fn moved(command: &Command, program: &Path) -> Command {
    with_arguments_of(Command::new(program), command)
}

fn with_arguments_of(mut other: Command, command: &Command) -> Command {
    other.args(command.get_args());
    for (key, value) in command.get_envs() {
        other.env(key, value.unwrap_or(OsStr::new("")));
    }
    other
}

/// Fails with what to do about it where strace is missing.
pub(crate) fn need_strace() {
    let found = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    assert!(
        found.is_ok_and(|status| status.success()),
        "this test counts system calls with strace, which is not installed"
    );
}

/// The path of a built example.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = env::current_exe().expect("path of the test binary");
    let profile = test.ancestors().nth(2).expect("target/<profile>");
    let built = profile.join("examples").join(name);
    assert!(
        built.exists(),
        "{} is missing: a plain `cargo test` builds it, or run `cargo build --examples`",
        built.display()
    );
    built
}

/// A new folder that all users may enter; removed with what is in it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("annulus-test-{}-{unique}", std::process::id());
        let folder = env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("make a scratch folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("let all enter it");
        Self(folder)
    }

    /// The path of a file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Copies a program to where any user may run it. No other thread may start a process
    /// meanwhile: the child would hold the copy open for writing, and nobody could run it.
    pub(crate) fn program(&self, program: &Path) -> PathBuf {
        let copy = self.path("program");
        fs::copy(program, &copy).expect("copy the program");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("let all run it");
        copy
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's own cleaning.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child process that is killed when its test is over.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Option<Peer<String>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        let stdout = BufReader::new(child.stdout.take().expect("the child's stdout"));
        let stderr = child.stderr.take().expect("the child's stderr");
        // Read at once, so that a child that writes much never blocks.
        let stderr = Some(peer(move || read_all(stderr)));
        Self { child, stdout, stderr }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The rest of the first line of its output in which the marker stands.
    pub(crate) fn line_after(&mut self, marker: &str) -> String {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            let len = self.stdout.read_line(&mut line).expect("read the child's output");
            if len == 0 {
                let (status, _, errors) = self.finish();
                panic!("the child ended ({status}) without {marker:?}:\n{seen}\n{errors}");
            }
            if let Some((_, rest)) = line.split_once(marker) {
                return rest.trim().to_owned();
            }
            seen.push_str(&line);
        }
    }

    /// Writes a line to the child's input.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("the child's input is open");
        writeln!(input, "{line}").expect("write to the child");
    }

    /// Ends the child's input, which the roles take as the order to end.
    pub(crate) fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Sends the child a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill has no memory effects; the child is not yet reaped, so the id is its own.
        let result = unsafe { libc::kill(pid, signal) };
        assert_eq!(result, 0, "kill failed");
    }

    /// Waits for its end and returns its status, the rest of its output, and its errors.
    pub(crate) fn finish(&mut self) -> (std::process::ExitStatus, String, String) {
        self.close_input();
        let mut output = String::new();
        self.stdout.read_to_string(&mut output).expect("read the child's output");
        let status = self.child.wait().expect("wait for the child");
        let errors = self.stderr.take().map(Peer::join).unwrap_or_default();
        (status, output, errors)
    }

    /// Kills the child and returns the rest of its output, and its errors.
    pub(crate) fn kill(mut self) -> (String, String) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let (_, output, errors) = self.finish();
        (output, errors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What runs under strace outlives a killed strace, but not the end of its input.
        self.close_input();
        // Both fail only when the child was already waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Forks this process. The child gets `None`. It must end by [`end_child`], and never get back into
/// the test harness; a signal ends it if it hangs.
///
/// Only in tests that run alone: a child that prints waits for ever for a thread of another test
/// that printed just then.
pub(crate) fn fork() -> Option<Forked> {
    let_threads_come_to_rest();
    // SAFETY: what the child does with what it has is what the test is about.
    match unsafe { libc::fork() } {
        -1 => panic!("fork failed: {}", io::Error::last_os_error()),
        0 => {
            // SAFETY: no pointers, and the default action of the signal is the end.
            unsafe { libc::alarm(CHILD_S) };
            None
        }
        pid => Some(Forked(pid)),
    }
}

/// A thread that starts or ends holds a lock of the standard library's, for which every thread that
/// a child makes would wait. So others have time to get by it; those that never rest hold none.
fn let_threads_come_to_rest() {
    const LOOKS_MAX: usize = 1000;
    let this = thread_id();
    let rests = |task: io::Result<fs::DirEntry>| {
        let id = task.expect("an entry").file_name().to_string_lossy().parse().expect("an id");
        id == this || rests(id)
    };
    for _ in 0..LOOKS_MAX {
        if fs::read_dir("/proc/self/task").expect("read /proc/self/task").all(rests) {
            return;
        }
        thread::yield_now();
    }
}

/// This thread, as the kernel numbers it.
pub(crate) fn thread_id() -> libc::pid_t {
    // SAFETY: the call takes and gives integers.
    unsafe { libc::gettid() }
}

/// Whether that thread of this process waits in the kernel, or has ended.
pub(crate) fn rests(thread: libc::pid_t) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_none_or(|state| state == 'S')
}

/// Does this in a child that ends with it.
pub(crate) fn fork_for(work: impl FnOnce()) -> Forked {
    match fork() {
        Some(child) => child,
        None => end_child(work),
    }
}

/// Ends this child: well if the work does not panic.
pub(crate) fn end_child(work: impl FnOnce()) -> ! {
    let failed = catch_unwind(AssertUnwindSafe(work)).is_err_and(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
        super::say(&format!("a forked child panicked: {text}"));
        true
    });
    // SAFETY: the call ends the process, and runs nothing of it.
    unsafe { libc::_exit(if failed { 1 } else { CHILD_IS_WELL }) }
}

/// Whether a child with this wait status has ended well.
pub(crate) fn is_well(status: libc::c_int) -> bool {
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == CHILD_IS_WELL
}

/// A forked child of this process.
pub(crate) struct Forked(libc::pid_t);

impl Forked {
    /// Waits for its end, which must be a good one.
    pub(crate) fn join(self) {
        let status = self.wait();
        assert!(is_well(status), "the child ended with the wait status {status:#x}");
    }

    /// Kills it.
    pub(crate) fn kill(self) {
        // SAFETY: no pointers; the child is not yet reaped, so the id is its own.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        self.wait();
    }

    /// Waits for its end, however it ends, and answers its wait status.
    pub(crate) fn wait(&self) -> libc::c_int {
        let mut status = 0;
        // The child's alarm bounds this.
        // SAFETY: the pointer is to an integer, which the call fills.
        while unsafe { libc::waitpid(self.0, &raw mut status, 0) } != self.0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted, "waitpid failed: {error}");
        }
        status
    }
}

fn read_all(mut stderr: ChildStderr) -> String {
    let mut text = Vec::new();
    // A broken pipe ends the text, which is what there is to report.
    let _ = stderr.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Makes these system calls fail with these error numbers in the child, by seccomp.
pub(crate) fn refuse(command: &mut Command, calls: &[(u32, i32)]) {
    let filter = Filter::refusing(calls);
    // SAFETY: the closure makes two system calls and allocates nothing, as a forked child must.
    unsafe { command.pre_exec(move || filter.install()) };
}

/// Makes these system calls fail with these error numbers on this thread, for as long as it lives.
pub(crate) fn refuse_here(calls: &[(u32, i32)]) {
    Filter::refusing(calls).install().expect("install a filter on this thread");
}

/// The version of the kernel.
pub(crate) fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse());
    let mut next = || numbers.next().and_then(Result::ok).expect("a number of the version");
    (next(), next())
}

/// Whether the kernel, on which annulus has a ring, counts it as locked memory.
pub(crate) fn rings_are_counted() -> bool {
    kernel() >= (6, 14)
}

/// Gives the child the rights of nobody and this much lockable memory.
pub(crate) fn unprivileged(command: &mut Command, memlock_bytes: u64) {
    let root = is_root();
    let become_nobody = move || {
        let limit = libc::rlimit { rlim_cur: memlock_bytes, rlim_max: memlock_bytes };
        // SAFETY: the pointer is to a whole rlimit, which the call reads.
        check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) })?;
        if root {
            // SAFETY: no pointers; the group goes first, while we still may.
            check(unsafe { libc::setgid(NOBODY) })?;
            // SAFETY: no pointers.
            check(unsafe { libc::setuid(NOBODY) })?;
        }
        Ok(())
    };
    // SAFETY: the closure makes three system calls and allocates nothing, as a forked child must.
    unsafe { command.pre_exec(become_nobody) };
}

/// A seccomp program: system call number to error number, all else allowed.
struct Filter(Vec<libc::sock_filter>);

impl Filter {
    fn refusing(calls: &[(u32, i32)]) -> Self {
        // The number is the first field of `struct seccomp_data`.
        let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
        for &(call, errno) in calls {
            let refusal = libc::SECCOMP_RET_ERRNO | errno as u32;
            program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call));
            program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, refusal));
        }
        program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
        Self(program)
    }

    fn install(&self) -> io::Result<()> {
        let program =
            libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        // SAFETY: no pointers. Without this an unprivileged process may install no filter.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        // SAFETY: the program lives until the call returns, and the kernel copies it.
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
        };
        check(result as libc::c_int)
    }
}

fn step(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(crate) const IO_URING_SETUP: u32 = 425;
pub(crate) const IO_URING_ENTER: u32 = 426;
pub(crate) const IO_URING_REGISTER: u32 = 427;
/// The marker in a role's output before the address it serves.
pub(crate) const READY: &str = "@ready ";
/// How long a forked child may take, in seconds: less than the watchdog gives its parent.
const CHILD_S: u32 = 20;
/// Not 0: a child that gets lost in the test harness may end with that.
const CHILD_IS_WELL: libc::c_int = 42;
const ROLE: &str = "ANNULUS_TEST_ROLE";
const NOBODY: u32 = 65534;
