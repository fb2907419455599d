//! What a change of interest costs: beginning to watch n descriptors, and leaving off.
//!
//! epoll takes a system call for each. The ring takes one enter for all, whose entries are polls of
//! its own or changes of an epoll instance. poll's array is the program's own memory: a change is a
//! store, which the next call pays for by reading the whole array again.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use bench_support::children::Failure;
use io_uring::types::{self, Fd};
use io_uring::{opcode, squeue};

use crate::figure::{Across, Figure, Scale};
use crate::options::Effort;
use crate::ring::Ring;
use crate::stats::Grid;
use crate::sys::{self, Epoll, Mode};

const CHANGED: [usize; 7] = [1, 10, 30, 100, 1000, 3000, 10_000];
const CHANGED_MAX_QUICK: usize = 1000;

/// Descriptors that the process holds besides.
const OTHERS: usize = 64;

const READABLE: u32 = libc::EPOLLIN as u32;

/// Marks the completion of a removal; the lower half of the user data is the descriptor's number.
const REMOVAL: u64 = 1 << 32;

const SERIES: [&str; 5] = [
    "epoll_ctl ADD, DEL",
    "epoll_ctl MOD",
    "ring POLL_ADD, POLL_REMOVE",
    "ring EPOLL_CTL ADD, DEL",
    "poll: array and next call",
];

pub(crate) fn measure(effort: Effort, limit: u64) -> Result<Vec<Figure>, Failure> {
    let room = (limit as usize).saturating_sub(OTHERS);
    let wanted = effort.choose(CHANGED_MAX_QUICK, usize::MAX);
    let changed: Vec<usize> =
        CHANGED.into_iter().filter(|&count| count <= room.min(wanted)).collect();
    let most = changed.last().copied().ok_or("too few descriptors to watch one")?;
    if most < CHANGED[CHANGED.len() - 1].min(wanted) {
        println!("notice: the limit on descriptors is {limit}, so {most} are changed at most");
    }
    let descriptors: Vec<OwnedFd> =
        (0..most).map(|_| sys::eventfd(Mode::Nonblocking)).collect::<io::Result<_>>()?;
    let window = Duration::from_millis(effort.choose(1, 15));
    let mut grid = Grid::new(SERIES.len(), changed.len());
    for _ in 0..effort.choose(2, 11) {
        for (place, &count) in changed.iter().enumerate() {
            let descriptors: Vec<RawFd> =
                descriptors[..count].iter().map(AsRawFd::as_raw_fd).collect();
            let mut put = |series, ns| grid.push(series, place, ns);
            let epoll = Epoll::new()?;
            put(0, time(window, 2 * count, || add_and_delete(&epoll, &descriptors))?);
            put(1, modifying(window, &descriptors)?);
            // One enter takes all, and its answers find room: a removal has two.
            let mut ring = Ring::new(count, count * 2)?;
            put(2, time(window, 2 * count, || poll_and_remove(&mut ring, &descriptors))?);
            if let Some(ns) = by_entries(window, &mut ring, &epoll, &descriptors)? {
                put(3, ns);
            }
            ring.end()?;
            put(4, array(window, &descriptors)?);
        }
    }
    let title = "A change of interest, by the number changed together";
    let figure =
        Figure::new("interest", title, Across::numbers("descriptors changed (n)", &changed))
            .in_unit("ns a change", Scale::Logarithmic)
            .with(&SERIES, &grid);
    Ok(vec![figure])
}

/// Nanoseconds a change: repeats what makes so many changes, the first time untimed.
fn time(
    window: Duration,
    changes: usize,
    mut run: impl FnMut() -> io::Result<()>,
) -> io::Result<f64> {
    run()?;
    let start = Instant::now();
    let mut times = 0;
    loop {
        run()?;
        times += 1;
        let elapsed = start.elapsed();
        if elapsed >= window {
            return Ok(elapsed.as_nanos() as f64 / (times * changes) as f64);
        }
    }
}

fn add_and_delete(epoll: &Epoll, descriptors: &[RawFd]) -> io::Result<()> {
    // Each call answers for itself: what is there already, or is not there, is an error.
    for (number, &descriptor) in (0..).zip(descriptors) {
        epoll.add(descriptor, READABLE, number)?;
    }
    descriptors.iter().try_for_each(|&descriptor| epoll.delete(descriptor))
}

/// From reading to an interest that is never met, and back. (An eventfd can always be written.)
fn modifying(window: Duration, descriptors: &[RawFd]) -> io::Result<f64> {
    let epoll = Epoll::new()?;
    descriptors.iter().try_for_each(|&descriptor| epoll.add(descriptor, READABLE, 0))?;
    time(window, 2 * descriptors.len(), || {
        for events in [0, READABLE] {
            for (number, &descriptor) in (0..).zip(descriptors) {
                epoll.modify(descriptor, events, number)?;
            }
        }
        Ok(())
    })
}

fn poll_and_remove(ring: &mut Ring, descriptors: &[RawFd]) -> io::Result<()> {
    for (number, &descriptor) in (0..).zip(descriptors) {
        let entry = opcode::PollAdd::new(Fd(descriptor), READABLE).build().user_data(number);
        // SAFETY: the entry names no memory.
        unsafe { ring.push(&entry) }?;
    }
    ring.enter(0)?;
    for number in 0..descriptors.len() as u64 {
        let entry = opcode::PollRemove::new(number).build().user_data(REMOVAL | number);
        // SAFETY: the entry names no memory.
        unsafe { ring.push(&entry) }?;
    }
    let (mut removals, mut ended) = (0, 0);
    ring.expect(descriptors.len() * 2, |completion| match completion.user_data() & REMOVAL {
        0 => {
            ended += 1;
            completion.result() == -libc::ECANCELED
        }
        _ => {
            removals += 1;
            completion.result() == 0
        }
    })?;
    assert_eq!((removals, ended), (descriptors.len(), descriptors.len()), "all were taken back");
    Ok(())
}

/// `None` where the kernel has no such entry any more.
fn by_entries(
    window: Duration,
    ring: &mut Ring,
    epoll: &Epoll,
    descriptors: &[RawFd],
) -> io::Result<Option<f64>> {
    let events: Vec<libc::epoll_event> = (0..descriptors.len())
        .map(|it| libc::epoll_event { events: READABLE, u64: it as u64 })
        .collect();
    let mut change = |what| -> io::Result<()> {
        for (&descriptor, event) in descriptors.iter().zip(&events) {
            let entry = epoll_entry(epoll, descriptor, what, event);
            // SAFETY: the event outlives the enter below, which waits until all have been read.
            unsafe { ring.push(&entry) }?;
        }
        ring.expect(descriptors.len(), |completion| completion.result() == 0)
    };
    // Tried with one: a kernel without it says so by its answer.
    let mut run = || {
        change(libc::EPOLL_CTL_ADD)?;
        change(libc::EPOLL_CTL_DEL)
    };
    if let Err(error) = run() {
        println!("notice: EPOLL_CTL by the ring is left out: {error}");
        return Ok(None);
    }
    time(window, 2 * descriptors.len(), run).map(Some)
}

fn epoll_entry(
    epoll: &Epoll,
    descriptor: RawFd,
    what: i32,
    event: &libc::epoll_event,
) -> squeue::Entry {
    let event: *const types::epoll_event = std::ptr::from_ref(event).cast();
    opcode::EpollCtl::new(Fd(epoll.as_raw_fd()), Fd(descriptor), what, event).build()
}

/// All entries are written anew, and a call that does not wait reads them.
fn array(window: Duration, descriptors: &[RawFd]) -> io::Result<f64> {
    let blank = libc::pollfd { fd: -1, events: 0, revents: 0 };
    let mut entries = vec![blank; descriptors.len()];
    let mut is_odd = false;
    time(window, descriptors.len(), || {
        is_odd = !is_odd;
        let events = if is_odd { libc::POLLOUT } else { libc::POLLIN };
        for (entry, &descriptor) in entries.iter_mut().zip(descriptors) {
            *entry = libc::pollfd { fd: descriptor, events, revents: 0 };
        }
        let count = entries.len() as libc::nfds_t;
        // SAFETY: the pointer and the count describe entries that are ours to write.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), count, 0) };
        // An eventfd without a value can be written and not read.
        let expected = if is_odd { descriptors.len() } else { 0 };
        assert_eq!(usize::try_from(ready), Ok(expected), "poll read the new array");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::{Epoll, READABLE, add_and_delete, sys};
    use crate::sys::Mode;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_was_deleted_is_watched_no_more() {
        let epoll = Epoll::new().expect("an epoll instance");
        let descriptor = sys::eventfd(Mode::Nonblocking).expect("an eventfd");
        add_and_delete(&epoll, &[descriptor.as_raw_fd()]).expect("add and delete");
        assert!(epoll.delete(descriptor.as_raw_fd()).is_err());
        epoll.add(descriptor.as_raw_fd(), READABLE | libc::EPOLLOUT as u32, 7).expect("add");
        let mut events = sys::no_events(4);
        assert_eq!(epoll.wait(&mut events, 0).expect("wait"), 1);
        assert_eq!({ events[0].u64 }, 7);
    }
}
