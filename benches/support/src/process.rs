//! Processes: where they run, what they cost, and how the children of a benchmark are ended.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{env, fs, mem, thread};

/// A child of this process. It is killed, by its own process id, and reaped when this is dropped.
pub struct Worker {
    child: Child,
    lines: Receiver<io::Result<String>>,
}

impl Worker {
    /// Starts this executable again, in the role that `arguments` name.
    pub fn spawn(arguments: &[String]) -> io::Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(arguments)
            // They would turn one row of the table into another.
            .env_remove("ANNULUS_DRIVER")
            .env_remove("ANNULUS_SHARDS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
        let (sender, lines) = mpsc::channel();
        // Ends with the pipe, which ends with the child.
        thread::spawn(move || {
            BufReader::new(stdout).lines().try_for_each(|line| sender.send(line).map_err(drop)).ok()
        });
        Ok(Self { child, lines })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line that the child prints; `None` when it ends without one.
    ///
    /// # Errors
    /// `TimedOut` after `limit`.
    pub fn line(&self, limit: Duration) -> io::Result<Option<String>> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => line.map(Some),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let text = format!("no word from process {} for {limit:?}", self.id());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Not reaped yet, so the id is still this child's. An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends this process with its parent, so that an interrupted benchmark leaves no server behind.
pub fn end_with_parent() {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    assert_eq!(result, 0, "prctl(PR_SET_PDEATHSIG)");
}

/// The processors this process may run on, in order.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: a cpu_set_t is a bit mask, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    check(unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) })?;
    let cpus = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: every number asked for lies within the set.
    Ok(cpus.filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Binds this thread, and those it starts from here on, to these processors.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: a cpu_set_t is a bit mask, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    for &cpu in cpus {
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no cpu {cpu}")));
        }
        // SAFETY: the number was just found to lie within the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) })
}

/// Raises the soft limit on descriptors to the hard one and returns it. Children inherit it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is an rlimit that the kernel only reads.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_cur)
}

/// The processor time that this process has used, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a writable timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "clock_gettime(CLOCK_PROCESS_CPUTIME_ID)");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The processor time that the children of this process have used that it has waited for.
pub fn children_cpu_ns() -> u64 {
    // SAFETY: an rusage is made of numbers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: `usage` is a writable rusage.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    assert_eq!(result, 0, "getrusage(RUSAGE_CHILDREN)");
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    ns(usage.ru_utime) + ns(usage.ru_stime)
}

/// What a thread or a process has had of the processors.
#[derive(Clone, Copy, Default)]
pub struct CpuTime {
    pub ran_ns: u64,
    /// Ready to run, while something else ran.
    pub waited_ns: u64,
    /// How often it was given a processor.
    pub slices: u64,
}

/// The processor times of the threads of other processes up to now.
pub struct CpuReading(HashMap<String, CpuTime>);

impl CpuReading {
    pub fn of_all(pids: &[u32]) -> io::Result<Self> {
        let mut all = HashMap::new();
        for &pid in pids {
            all.extend(Self::of(pid)?.0);
        }
        Ok(Self(all))
    }

    /// Reads `/proc/PID/task/*/schedstat`: nanoseconds run, nanoseconds waited, time slices.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut threads = HashMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?;
            // A thread may end between the two reads; its part is not counted then.
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let fields: Vec<u64> =
                text.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
            let &[ran_ns, waited_ns, slices] = &fields[..] else {
                let text = format!("schedstat reads {text:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            };
            let name = thread.file_name().to_string_lossy().into_owned();
            threads.insert(name, CpuTime { ran_ns, waited_ns, slices });
        }
        if threads.is_empty() {
            let text = format!("/proc/{pid}/task/*/schedstat cannot be read");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        Ok(Self(threads))
    }

    /// The sum over all threads since an earlier reading of the same process.
    pub fn since(&self, earlier: &Self) -> CpuTime {
        let mut sum = CpuTime::default();
        for (thread, now) in &self.0 {
            let before = earlier.0.get(thread).copied().unwrap_or_default();
            sum.ran_ns += now.ran_ns.saturating_sub(before.ran_ns);
            sum.waited_ns += now.waited_ns.saturating_sub(before.waited_ns);
            sum.slices += now.slices.saturating_sub(before.slices);
        }
        sum
    }
}

/// A clock whose readings are small numbers.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now_ns(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Turns the answer of a system call into a result.
pub fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
