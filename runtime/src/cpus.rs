//! The processors that the process may use, and binding threads to them.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::{fs, io, mem, thread};

/// The processors of the thread that asked, in the order in which shards take them: one of each
/// core first, then the cores' further threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus {
    order: Vec<usize>,
    /// How many threads can run at a time: the processors, or what a quota of the cgroup leaves.
    parallel: usize,
}

impl Cpus {
    pub(crate) fn of_this_thread() -> Cpus {
        let allowed = affinity().map(|set| members(&set)).unwrap_or_default();
        // Looks at the quotas of both kinds of cgroups as well.
        let parallel = thread::available_parallelism().map_or(1, usize::from);
        Cpus { order: cores_first(allowed, core_of), parallel }
    }

    /// How many there are. `None`: it could not be read.
    pub(crate) fn count(&self) -> Option<usize> {
        (!self.order.is_empty()).then_some(self.order.len())
    }

    pub(crate) fn parallel(&self) -> usize {
        self.parallel
    }

    /// The processor for one of so many shards: none unless each can have one of its own.
    ///
    /// A quota below the number of processors is no right to the first few of them: all containers
    /// of a machine would meet there.
    pub(crate) fn place(&self, index: usize, shards: usize) -> Option<usize> {
        let each_has_one = shards <= self.order.len();
        let is_under_quota = self.parallel < self.order.len();
        if each_has_one && !is_under_quota { self.order.get(index).copied() } else { None }
    }
}

/// Processors whose core has been met before come last.
fn cores_first(allowed: Vec<usize>, core_of: impl Fn(usize) -> String) -> Vec<usize> {
    let mut met = BTreeSet::new();
    let (mut order, further): (Vec<_>, Vec<_>) =
        allowed.into_iter().partition(|&cpu| met.insert(core_of(cpu)));
    order.extend(further);
    order
}

/// What all threads of a core have in common, and no others.
fn core_of(cpu: usize) -> String {
    let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    fs::read_to_string(file).unwrap_or_else(|_unknown| cpu.to_string())
}

/// Threads made by one that was bound would be bound too. Here is what was allowed to the first
/// that was bound to each processor.
static UNBOUND: [OnceLock<Box<libc::cpu_set_t>>; CPUS] = [const { OnceLock::new() }; CPUS];

/// How many processors a set has room for.
const CPUS: usize = 8 * size_of::<libc::cpu_set_t>();

thread_local! {
    /// The processor to which this thread was bound here, and what it was allowed before.
    static BOUND: Cell<Option<(usize, libc::cpu_set_t)>> = const { Cell::new(None) };
}

/// Binds this thread to one processor, and gives what it was allowed before.
pub(crate) fn bind(cpu: usize) -> io::Result<libc::cpu_set_t> {
    let before = affinity()?;
    // Who had but one has nothing to hand on.
    if let Some(unbound) = UNBOUND.get(cpu).filter(|_| members(&before).len() > 1) {
        unbound.get_or_init(|| Box::new(before));
    }
    // SAFETY: a set of processors is plain bits, of which none may be set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the call checks that the processor is in the range of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    set_affinity(&set)?;
    BOUND.set(Some((cpu, but_for_us(before))));
    Ok(before)
}

/// For a thread that serves all runtimes, and that one of ours may have made: lets it run wherever
/// its maker might before that was bound. Which several processors are allowed to was bound by
/// nobody here.
pub(crate) fn unbind() {
    let Ok(allowed) = affinity() else { return };
    if let [cpu] = members(&allowed)[..] {
        if let Some(set) = UNBOUND[cpu].get() {
            // What was allowed once and is no more leaves the thread where it is.
            let _stays = set_affinity(set);
        }
    }
}

/// Where this thread, which is allowed to run here, might run if we had not bound it.
fn but_for_us(now: libc::cpu_set_t) -> libc::cpu_set_t {
    match BOUND.get() {
        Some((cpu, before)) if members(&now) == [cpu] => before,
        _ => now,
    }
}

/// Where the thread that makes a runtime may run, and with it those of the runtime's shards.
pub(crate) struct Home(Option<libc::cpu_set_t>);

impl Home {
    pub(crate) fn of_this_thread() -> Home {
        Home(affinity().ok().map(but_for_us))
    }

    /// For a thread of the runtime: whoever first sends something to a shard makes its thread, and
    /// may be held elsewhere, or have been bound.
    pub(crate) fn go(&self) {
        let (Some(home), Ok(now)) = (&self.0, affinity()) else { return };
        // A set that was never set follows the cpuset when that grows.
        if members(&now) != members(home) {
            // As in `unbind`.
            let _stays = set_affinity(home);
        }
    }
}

/// Binds this thread until it is dropped.
pub(crate) struct Bound {
    /// Where the thread might run before: the program may have bound it, too.
    before: libc::cpu_set_t,
    /// How we had bound it already.
    outer: Option<(usize, libc::cpu_set_t)>,
}

impl Bound {
    pub(crate) fn to(cpu: usize) -> io::Result<Bound> {
        let outer = BOUND.get();
        bind(cpu).map(|before| Bound { before, outer })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // As in `unbind`.
        let _stays = set_affinity(&self.before);
        BOUND.set(self.outer);
    }
}

fn affinity() -> io::Result<libc::cpu_set_t> {
    // SAFETY: a set of processors is plain bits.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the set has the size that is given; 0 is this thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result == 0 { Ok(set) } else { Err(io::Error::last_os_error()) }
}

fn set_affinity(set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: the set has the size that is given; 0 is this thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(set), set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn members(set: &libc::cpu_set_t) -> Vec<usize> {
    // SAFETY: the processors asked for are those that the set has room for.
    (0..CPUS).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, set) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_take_whole_cores_before_they_share_one() {
        let neighbours = |cpu: usize| format!("{}-{}", cpu / 2 * 2, cpu / 2 * 2 + 1);
        assert_eq!(cores_first((0..6).collect(), neighbours), [0, 2, 4, 1, 3, 5]);
        let halves = |cpu: usize| format!("{},{}", cpu % 3, cpu % 3 + 3);
        assert_eq!(cores_first((0..6).collect(), halves), [0, 1, 2, 3, 4, 5]);
        assert_eq!(cores_first(vec![5, 4, 1], neighbours), [5, 1, 4]);
    }

    #[test]
    fn more_shards_than_processors_or_a_quota_bind_nobody() {
        let whole = Cpus { order: vec![3, 5], parallel: 2 };
        assert_eq!((whole.place(0, 2), whole.place(1, 2)), (Some(3), Some(5)));
        assert_eq!(whole.place(0, 1), Some(3));
        assert_eq!(whole.place(0, 3), None);
        let under_quota = Cpus { order: vec![3, 5], parallel: 1 };
        assert_eq!(under_quota.place(0, 1), None);
        let unknown = Cpus { order: vec![], parallel: 1 };
        assert_eq!(unknown.place(0, 1), None);
    }

    #[test]
    fn a_bound_thread_runs_there_and_is_free_again() {
        let before = members(&affinity().unwrap());
        let last = *before.last().unwrap();
        let bound = Bound::to(last).unwrap();
        assert_eq!(members(&affinity().unwrap()), [last]);
        let inherited = thread::spawn(|| {
            unbind();
            members(&affinity().unwrap())
        });
        assert_eq!(inherited.join().unwrap(), before);
        let home = Home::of_this_thread();
        let of_a_runtime = thread::spawn(move || {
            home.go();
            members(&affinity().unwrap())
        });
        assert_eq!(of_a_runtime.join().unwrap(), before);
        drop(bound);
        assert_eq!(members(&affinity().unwrap()), before);
    }

    #[test]
    fn a_thread_that_the_program_has_bound_stays_so() {
        let allowed = members(&affinity().unwrap());
        let (first, last) = (allowed[0], *allowed.last().unwrap());
        let by_the_program = thread::spawn(move || {
            bind(first).unwrap();
            drop(Bound::to(last).unwrap());
            members(&affinity().unwrap())
        });
        assert_eq!(by_the_program.join().unwrap(), [first]);
    }
}
