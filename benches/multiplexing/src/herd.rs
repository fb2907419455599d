//! Who is woken for a new connection when several threads wait for one listener.
//!
//! Connections come one at a time, with a pause in which every thread that was woken goes back to
//! sleep. A wake is a sleep that ended, by the kernel's count of each thread's voluntary switches:
//! so those count too that the kernel takes back before the thread has left its system call.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bench_support::children::Failure;
use bench_support::process::check;
use io_uring::types::Fd;
use io_uring::{cqueue, opcode};

use crate::figure::{Across, Figure, Scale};
use crate::options::Effort;
use crate::ring::Ring;
use crate::stats::Grid;
use crate::sys::{self, Epoll, Usage, ready};

const WAITERS: [usize; 3] = [2, 4, 8];

/// Until all who were woken sleep again. A wake and a look take some 20 µs, on two processors.
const PAUSE: Duration = Duration::from_micros(250);

/// Until all wait for the first time.
const START: Duration = Duration::from_millis(5);

/// An answer takes microseconds; this long, and nobody is left who could give it.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

const BACKLOG: i32 = 128;

/// How the threads wait.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Accept,
    Epoll,
    EpollExclusive,
    ReusePort,
    Ring,
}

impl Way {
    const ALL: [(&'static str, Self); 5] = [
        ("blocking accept", Self::Accept),
        ("epoll each", Self::Epoll),
        ("epoll, EXCLUSIVE", Self::EpollExclusive),
        ("SO_REUSEPORT", Self::ReusePort),
        ("ring, multishot accept", Self::Ring),
    ];
}

/// What one thread has seen.
#[derive(Clone, Copy, Default)]
struct Tally {
    accepted: u64,
    /// Returns to the program that found no connection.
    empty: u64,
    sleeps: u64,
    cpu_ns: u64,
}

/// By connection.
struct Outcome {
    wakes: f64,
    empty: f64,
    cpu_us: f64,
    /// The part of the connections that went to the thread with the most, in percent.
    busiest: f64,
}

pub(crate) fn measure(effort: Effort) -> Result<Vec<Figure>, Failure> {
    let connections = effort.choose(20, 200);
    let mut grids = [(); 4].map(|()| Grid::new(Way::ALL.len(), WAITERS.len()));
    for _ in 0..effort.choose(2, 11) {
        for (place, &waiters) in WAITERS.iter().enumerate() {
            for (series, &(_, way)) in Way::ALL.iter().enumerate() {
                let Outcome { wakes, empty, cpu_us, busiest } = herd(way, waiters, connections)?;
                for (grid, value) in grids.iter_mut().zip([wakes, empty, cpu_us, busiest]) {
                    grid.push(series, place, value);
                }
            }
        }
    }
    let names = Way::ALL.map(|(name, _)| name);
    let texts = [
        ("herd-wakes", "Threads woken for one connection", "wakes a connection"),
        ("herd-empty", "Returns to the program that found no connection", "returns a connection"),
        ("herd-cpu", "What the waiting threads pay for one connection", "µs of CPU a connection"),
        ("herd-share", "Connections that went to the busiest thread", "percent"),
    ];
    let figures = texts.iter().zip(&grids).map(|(&(name, title, unit), grid)| {
        let waiters = WAITERS.map(|count| format!("{count} threads wait"));
        Figure::new(name, title, Across::Names(waiters.to_vec()))
            .in_unit(unit, Scale::Linear)
            .with(&names, grid)
    });
    Ok(figures.collect())
}

fn herd(way: Way, waiters: usize, connections: u64) -> io::Result<Outcome> {
    let listeners = listeners(way, waiters)?;
    let address = listeners[0].local_addr()?;
    let (all_wait, stop) = (Barrier::new(waiters + 1), AtomicBool::new(false));
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let threads: Vec<_> = (0..waiters)
            .map(|waiter| {
                let listener = &listeners[waiter % listeners.len()];
                let (all_wait, stop) = (&all_wait, &stop);
                scope.spawn(move || wait(way, listener, all_wait, stop))
            })
            .collect();
        all_wait.wait();
        thread::sleep(START);
        let connected = (0..connections).try_for_each(|_| connect(address));
        stop.store(true, Ordering::Release); // Pairs with the load of who is woken by the shutdown.
        for listener in &listeners {
            // SAFETY: a call with two numbers, the first of which is an open descriptor.
            check(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) })?;
        }
        let ended = threads.into_iter().map(|thread| thread.join().expect("a waiter panicked"));
        let tallies = ended.collect::<io::Result<Vec<Tally>>>()?;
        connected.map(|()| tallies)
    })?;
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>() as f64;
    let accepted = sum(|tally| tally.accepted);
    assert_eq!(accepted, connections as f64, "every connection was accepted once");
    let most = tallies.iter().map(|tally| tally.accepted).max().unwrap_or(0) as f64;
    Ok(Outcome {
        wakes: sum(|tally| tally.sleeps) / accepted,
        empty: sum(|tally| tally.empty) / accepted,
        cpu_us: sum(|tally| tally.cpu_ns) / 1e3 / accepted,
        busiest: most * 100.0 / accepted,
    })
}

/// One for all, or one for each where the kernel is to spread connections.
fn listeners(way: Way, waiters: usize) -> io::Result<Vec<TcpListener>> {
    if way == Way::ReusePort {
        let first = listen(0)?;
        let port = first.local_addr()?.port();
        let others = (1..waiters).map(|_| listen(port));
        return std::iter::once(Ok(first)).chain(others).collect();
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // Who waits by other means must not be caught in an accept that another has emptied.
    listener.set_nonblocking(matches!(way, Way::Epoll | Way::EpollExclusive))?;
    Ok(vec![listener])
}

/// A listener that shares its port with others of this user.
fn listen(port: u16) -> io::Result<TcpListener> {
    // SAFETY: takes three numbers and touches no memory of ours.
    let made = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let socket = sys::owned(made)?;
    set_option(&socket, libc::SO_REUSEPORT, &1_i32)?;
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and the size describe `address`, which is only read.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
    // SAFETY: a call with two numbers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(TcpListener::from(socket))
}

/// Sets an option whose value is what `T` is in C.
fn set_option<T>(socket: &impl AsRawFd, option: i32, value: &T) -> io::Result<()> {
    let value: *const T = value;
    let size = size_of::<T>() as libc::socklen_t;
    let level = libc::SOL_SOCKET;
    // SAFETY: the pointer and the size describe the value, which is only read.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), size) })
}

/// The client: connects, is answered, and goes in a way that leaves nothing behind.
fn connect(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(&stream, libc::SO_LINGER, &linger)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    drop(stream);
    thread::sleep(PAUSE);
    Ok(())
}

/// A thread that waits: until it is told to stop, by the listener's end.
fn wait(
    way: Way,
    listener: &TcpListener,
    all_wait: &Barrier,
    stop: &AtomicBool,
) -> io::Result<Tally> {
    let mut tally = Tally::default();
    let mut waiter = Waiter::new(way, listener);
    all_wait.wait();
    let before = Usage::of_this_thread()?;
    // Whoever could not be made fails here, where nobody waits for it any more.
    let waiter = waiter.as_mut().map_err(|error| io::Error::other(error.to_string()))?;
    loop {
        let count = waiter.accept(listener)?;
        if stop.load(Ordering::Acquire) {
            break;
        }
        tally.accepted += count;
        tally.empty += u64::from(count == 0);
    }
    let used = Usage::of_this_thread()?.since(before);
    tally.cpu_ns = used.cpu_ns;
    // The last sleep was ended by the end.
    tally.sleeps = used.sleeps.saturating_sub(1);
    Ok(tally)
}

enum Waiter {
    Accept,
    Epoll(Epoll),
    Ring(Box<Ring>),
}

impl Waiter {
    fn new(way: Way, listener: &TcpListener) -> io::Result<Self> {
        let flags = match way {
            Way::Accept | Way::ReusePort => return Ok(Self::Accept),
            Way::Ring => {
                let mut ring = Ring::new(8, 64)?;
                arm(&mut ring, listener)?;
                ring.enter(0)?;
                return Ok(Self::Ring(Box::new(ring)));
            }
            Way::Epoll => 0,
            Way::EpollExclusive => libc::EPOLLEXCLUSIVE as u32,
        };
        let epoll = Epoll::new()?;
        epoll.add(listener.as_raw_fd(), libc::EPOLLIN as u32 | flags, 0)?;
        Ok(Self::Epoll(epoll))
    }

    /// Waits, and answers what there is; returns how many that were.
    fn accept(&mut self, listener: &TcpListener) -> io::Result<u64> {
        match self {
            Self::Accept => answer_one(listener),
            Self::Epoll(epoll) => {
                epoll.wait(&mut sys::no_events(1), -1)?;
                answer_one(listener)
            }
            Self::Ring(ring) => {
                ring.enter(1)?;
                let (mut count, mut is_armed) = (0, true);
                for completion in ring.completions() {
                    is_armed &= cqueue::more(completion.flags());
                    if completion.result() >= 0 {
                        // SAFETY: the kernel has just made it for us, and nothing else knows it.
                        answer(unsafe { OwnedFd::from_raw_fd(completion.result()) })?;
                        count += 1;
                    }
                }
                if !is_armed {
                    arm(ring, listener)?;
                }
                Ok(count)
            }
        }
    }
}

fn arm(ring: &mut Ring, listener: &TcpListener) -> io::Result<()> {
    let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build();
    // SAFETY: the entry names no memory.
    unsafe { ring.push(&entry) }
}

/// One if a connection was there. A listener that was shut down answers EINVAL, and has none.
fn answer_one(listener: &TcpListener) -> io::Result<u64> {
    match ready(listener.accept()) {
        Ok(Some((stream, _))) => answer(stream.into()).map(|()| 1),
        Ok(None) => Ok(0),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(0),
        Err(error) => Err(error),
    }
}

fn answer(stream: OwnedFd) -> io::Result<()> {
    sys::write(stream.as_raw_fd(), &[1]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{Way, herd};

    #[test]
    fn every_way_accepts_every_connection_once() {
        for (name, way) in Way::ALL {
            let outcome = herd(way, 2, 10).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(outcome.wakes > 0.0 && outcome.busiest >= 50.0, "{name}");
        }
    }
}
