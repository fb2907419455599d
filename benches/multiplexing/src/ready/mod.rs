//! What a ready event costs, against the number of descriptors that are watched.
//!
//! A cycle: some of the descriptors are made ready by a write each, all of these are found, and
//! each is read. All by one thread, so that nobody sleeps or is woken. The whole cycle is timed, as
//! epoll and the ring do a part of their work in the write: what notices the event puts it on a
//! list. A cycle without any multiplexing is drawn beside it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bench_support::children::Failure;

mod watch;

use crate::figure::{Across, Figure, Scale};
use crate::options::Effort;
use crate::stats::{Grid, shuffled};
use crate::sys::{self, Mode};
use watch::{Watch, Way};

const WATCHED: [usize; 8] = [10, 30, 100, 300, 1000, 3000, 10_000, 20_000];
const WATCHED_MAX_QUICK: usize = 1000;

/// Descriptors that are not watched: standard streams, epoll, rings, what the tool had open.
const OTHERS: usize = 64;

const FLOOR: &str = "write and read alone";

/// How many of those watched are ready in each cycle.
#[derive(Clone, Copy)]
enum Density {
    One,
    Tenth,
    All,
}

impl Density {
    const ALL: [(&'static str, &'static str, Self); 3] = [
        ("ready-one", "one of n ready", Self::One),
        ("ready-tenth", "a tenth of n ready", Self::Tenth),
        ("ready-all", "all of n ready", Self::All),
    ];

    fn of(self, watched: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Tenth => watched.div_ceil(10),
            Self::All => watched,
        }
    }
}

pub(crate) fn measure(effort: Effort, limit: u64) -> Result<Vec<Figure>, Failure> {
    let wanted = effort.choose(WATCHED_MAX_QUICK, usize::MAX);
    let watched = numbers(wanted, limit as usize);
    let rounds = effort.choose(2, 9);
    let window = Duration::from_millis(effort.choose(1, 6));
    let most = watched.last().copied().ok_or("too few descriptors to watch ten")?;
    if most < WATCHED[WATCHED.len() - 1].min(wanted) {
        println!("notice: the limit on descriptors is {limit}, so {most} are watched at most");
    }
    let descriptors: Vec<OwnedFd> =
        (0..most).map(|_| sys::eventfd(Mode::Nonblocking)).collect::<io::Result<_>>()?;

    // The last series is the floor.
    let series = Way::ALL.len() + 1;
    let mut grids = Density::ALL.map(|_| Grid::new(series, watched.len()));
    for _ in 0..rounds {
        for (place, &count) in watched.iter().enumerate() {
            let descriptors = &descriptors[..count];
            let order = shuffled(count);
            for (series, (_, way)) in Way::ALL.iter().enumerate() {
                let Some(mut watch) = way.watch(descriptors)? else { continue };
                for (grid, (_, _, density)) in grids.iter_mut().zip(Density::ALL) {
                    let mut cycle = Cycle::new(descriptors, &order, density);
                    let ns = cycle.time(window, |cycle| cycle.run(&mut *watch))?;
                    grid.push(series, place, ns);
                }
                watch.end()?;
            }
            for (grid, (_, _, density)) in grids.iter_mut().zip(Density::ALL) {
                let mut cycle = Cycle::new(descriptors, &order, density);
                grid.push(Way::ALL.len(), place, cycle.time(window, Cycle::run_alone)?);
            }
        }
    }
    let mut names: Vec<&str> = Way::ALL.iter().map(|&(name, _)| name).collect();
    names.push(FLOOR);
    let figures = grids.iter().zip(Density::ALL).map(|(grid, (name, what, _))| {
        let title = format!("A ready event, made, found and read: {what}");
        let figure = Figure::new(name, title, Across::numbers("descriptors watched (n)", &watched))
            .in_unit("ns an event", Scale::Logarithmic)
            .with(&names, grid);
        let end = libc::FD_SETSIZE as f64;
        if most > libc::FD_SETSIZE {
            figure.ending(end, "select ends here: FD_SETSIZE")
        } else {
            figure
        }
    });
    Ok(figures.collect())
}

/// The numbers of descriptors to watch; where the limit cuts off the last, as many as there are.
fn numbers(wanted: usize, limit: usize) -> Vec<usize> {
    let room = limit.saturating_sub(OTHERS);
    let mut numbers: Vec<usize> =
        WATCHED.into_iter().filter(|&count| count <= wanted.min(room)).collect();
    let next = WATCHED.get(numbers.len()).copied().filter(|&next| next <= wanted);
    // Not worth a point unless it is nearly where the next one would be.
    if next.is_some_and(|next| room * 10 >= next * 9) {
        numbers.push(room);
    }
    numbers
}

struct Cycle<'a> {
    descriptors: &'a [OwnedFd],
    order: &'a [u32],
    ready: usize,
    next: usize,
    found: Vec<u32>,
}

impl<'a> Cycle<'a> {
    fn new(descriptors: &'a [OwnedFd], order: &'a [u32], density: Density) -> Self {
        Self { descriptors, order, ready: density.of(order.len()), next: 0, found: vec![] }
    }

    /// Nanoseconds an event, over as many cycles as the window holds, one of which is not timed.
    fn time(
        &mut self,
        window: Duration,
        mut run: impl FnMut(&mut Self) -> io::Result<()>,
    ) -> io::Result<f64> {
        // The clock is not read more often than every few microseconds.
        let batch = (16 / self.ready).max(1);
        run(self)?;
        let start = Instant::now();
        let mut events = 0;
        loop {
            for _ in 0..batch {
                run(self)?;
            }
            events += batch * self.ready;
            let elapsed = start.elapsed();
            if elapsed >= window {
                return Ok(elapsed.as_nanos() as f64 / events as f64);
            }
        }
    }

    /// The number of the descriptor whose turn it is.
    fn turn(&mut self) -> u32 {
        let number = self.order[self.next];
        self.next = (self.next + 1) % self.order.len();
        number
    }

    fn descriptor(&self, number: u32) -> i32 {
        self.descriptors[number as usize].as_raw_fd()
    }

    fn run(&mut self, watch: &mut dyn Watch) -> io::Result<()> {
        for _ in 0..self.ready {
            let number = self.turn();
            sys::signal(self.descriptor(number))?;
        }
        let mut events = 0;
        while events < self.ready {
            self.found.clear();
            watch.wait(&mut self.found)?;
            for &number in &self.found {
                // What is not ready cannot be read, and is an error here.
                let value = sys::take(self.descriptor(number))?;
                assert_eq!(value, 1, "descriptor {number} was made ready once");
            }
            events += self.found.len();
        }
        assert_eq!(events, self.ready, "as many events as were made");
        Ok(())
    }

    /// What there is to do for one who knows which are ready.
    fn run_alone(&mut self) -> io::Result<()> {
        let first = self.next;
        for _ in 0..self.ready {
            let number = self.turn();
            sys::signal(self.descriptor(number))?;
        }
        self.next = first;
        for _ in 0..self.ready {
            let number = self.turn();
            let value = sys::take(self.descriptor(number))?;
            assert_eq!(value, 1, "descriptor {number} was made ready once");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Cycle, Density, Mode, OwnedFd, Way, numbers, shuffled, sys};

    #[test]
    fn the_limit_cuts_points_off_and_leaves_one_near_the_last() {
        assert_eq!(numbers(usize::MAX, 100_000).last(), Some(&20_000));
        assert_eq!(numbers(usize::MAX, 20_000).last(), Some(&19_936));
        assert_eq!(numbers(usize::MAX, 1024), [10, 30, 100, 300, 960]);
        assert_eq!(numbers(usize::MAX, 4096), [10, 30, 100, 300, 1000, 3000]);
        assert_eq!(numbers(1000, 1 << 20).last(), Some(&1000));
        assert_eq!(numbers(usize::MAX, 60), []);
    }

    #[test]
    fn a_density_is_at_least_one() {
        assert_eq!([1, 10, 11, 20_000].map(|count| Density::Tenth.of(count)), [1, 1, 2, 2000]);
        assert_eq!((Density::One.of(300), Density::All.of(300)), (1, 300));
    }

    #[test]
    fn every_way_finds_what_was_made_ready_and_nothing_else() {
        let descriptors: Vec<OwnedFd> =
            (0..30).map(|_| sys::eventfd(Mode::Nonblocking).expect("an eventfd")).collect();
        let order = shuffled(descriptors.len());
        for (name, way) in Way::ALL {
            let watch = way.watch(&descriptors).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut watch = watch.expect("numbers that select can name");
            for (_, _, density) in Density::ALL {
                let mut cycle = Cycle::new(&descriptors, &order, density);
                for _ in 0..100 {
                    cycle.run(&mut *watch).unwrap_or_else(|error| panic!("{name}: {error}"));
                }
            }
            watch.end().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}
