//! The shards of a runtime: who is there, who is started when first addressed, and how all end.
//!
//! The first shard is the thread that made the runtime. Each other one is a thread of its own,
//! which is made when something is first sent to it. A shard that could not start, or failed,
//! leaves its seat empty: what was sent to it is told why, and what is sent next starts it anew.

mod seats;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::contain::text_of;
use crate::cpus::{self, Bound, Cpus, Home};
use crate::error::BuildError;
use crate::executor::{Hooks, Mailbox, SharedMailbox};
use crate::fork::NO_RUNTIME_SURVIVES;
use crate::notice::notify;
use crate::shard::{self, Shard};
use crate::sim::{self, Place};
use crate::stall::OnStall;
use seats::{Door, Seats, Taken};

/// What a shard may take to end beyond the two waits that its `close` allows itself.
const END_SLACK: Duration = Duration::from_secs(1);

/// All shards of a runtime, started or not.
pub(crate) struct Crew {
    config: Config,
    hooks: Hooks,
    /// Whom to tell of a stall. None: those who read the standard error.
    on_stall: Option<OnStall>,
    /// Of the first shard.
    first: SharedMailbox,
    others: OnceLock<Others>,
    /// Where the threads of the others may run.
    home: Home,
    door: Door,
}

/// The shards behind the first.
struct Others {
    cpus: Cpus,
    seats: Seats<thread::JoinHandle<()>>,
}

impl Crew {
    /// A crew of which this thread is to be the first.
    pub(crate) fn new(config: Config, hooks: Hooks, on_stall: Option<OnStall>) -> Arc<Crew> {
        Arc::new(Crew {
            config,
            hooks,
            on_stall,
            first: Mailbox::new(),
            others: OnceLock::new(),
            home: Home::of_this_thread(),
            door: Door::new(),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Who is told of the tasks of each shard.
    pub(crate) fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    pub(crate) fn on_stall(&self) -> Option<OnStall> {
        self.on_stall.clone()
    }

    /// False in a forked child. It has none of the threads, and waits for none of the locks.
    fn is_ours(&self) -> bool {
        self.first.shard().is_ours()
    }

    /// How many shards there are, started or not.
    pub(crate) fn size(&self) -> usize {
        if !self.is_ours() {
            return self.others.get().map_or(1, |others| others.seats.len() + 1);
        }
        self.others().seats.len() + 1
    }

    /// Made when first asked for: most runtimes of one shard never do, and this reads files.
    fn others(&self) -> &Others {
        self.others.get_or_init(|| {
            let cpus = Cpus::of_this_thread();
            let size = self.config.shards.map_or(cpus.parallel(), |shards| shards as usize);
            Others { cpus, seats: Seats::new(size.saturating_sub(1)) }
        })
    }

    /// The mailbox of a shard, which is started if it does not run. One that cannot be started
    /// gives a mailbox that is closed.
    pub(crate) fn mailbox(self: &Arc<Self>, index: usize) -> SharedMailbox {
        if !self.is_ours() {
            let mailbox = Mailbox::new();
            mailbox.close_as_failed(NO_RUNTIME_SURVIVES);
            return mailbox;
        }
        if index == 0 {
            return SharedMailbox::clone(&self.first);
        }
        self.others().seats.mailbox(index - 1, &self.door, |mailbox| {
            match self.start(index, mailbox) {
                Ok(thread) => Some(thread),
                Err(error) => {
                    could_not_start(mailbox, index, &error);
                    None
                }
            }
        })
    }

    fn start(
        self: &Arc<Self>,
        index: usize,
        mailbox: &SharedMailbox,
    ) -> Result<thread::JoinHandle<()>, BuildError> {
        let mailbox = SharedMailbox::clone(mailbox);
        let running = Running::new(Arc::clone(self));
        let place = sim::expect(index);
        let taken = place.clone();
        let started = thread::Builder::new().name(format!("annulus-{index}")).spawn(move || {
            let _place = taken.map(Place::take);
            running.crew.run(index, &mailbox);
        });
        started.map_err(|error| {
            if let Some(place) = place {
                place.give_up();
            }
            BuildError::Io("making its thread", error)
        })
    }

    /// What the thread of a shard does.
    fn run(self: &Arc<Self>, index: usize, mailbox: &SharedMailbox) {
        self.home.go();
        if let Some(cpu) = self.place(index) {
            if let Err(error) = cpus::bind(cpu) {
                notify(format_args!("shard {index} is not bound to processor {cpu}: {error}"));
            }
        }
        let make = || Shard::new(Arc::clone(self), index, SharedMailbox::clone(mailbox));
        match catch_unwind(AssertUnwindSafe(make)) {
            Ok(Ok(shard)) => {
                let run = catch_unwind(AssertUnwindSafe(|| shard.run_until_told()));
                if !self.is_ours() {
                    // A child that a task has forked; it was told. The shard is the parent's.
                    std::mem::forget(shard);
                    return;
                }
                if let Err(payload) = &run {
                    let why = text_of(&**payload).unwrap_or("a panic");
                    mailbox.fail(&format!("shard {index} has failed: {why}"));
                }
                self.vacate(index, mailbox);
                end(shard);
            }
            Ok(Err(error)) => {
                self.vacate(index, mailbox);
                could_not_start(mailbox, index, &error);
            }
            // A bug. Tasks that wait in a box must not outlive it, so it is closed all the same.
            Err(payload) => {
                self.vacate(index, mailbox);
                could_not_start(mailbox, index, &text_of(&*payload).unwrap_or("a panic"));
            }
        }
    }

    /// The processor that a shard of a thread of its own is bound to.
    fn place(&self, index: usize) -> Option<usize> {
        let wanted = self.config.pin.unwrap_or(true);
        if wanted { self.others().cpus.place(index, self.size()) } else { None }
    }

    /// Binds the calling thread, which is the program's, only where that was asked for.
    pub(crate) fn bind_first(&self) -> Option<Bound> {
        let cpu = if self.config.pin == Some(true) { self.place(0)? } else { return None };
        match Bound::to(cpu) {
            Ok(bound) => Some(bound),
            Err(error) => {
                notify(format_args!("shard 0 is not bound to processor {cpu}: {error}"));
                None
            }
        }
    }

    fn vacate(&self, index: usize, of: &SharedMailbox) {
        self.others().seats.vacate(index - 1, of);
    }

    /// Tells the shards that have threads to end. None is started any more.
    #[must_use]
    pub(crate) fn dismiss(&self) -> Leaving {
        self.door.shut();
        let mut threads = Vec::new();
        let seated = self.others.get().into_iter().flat_map(|others| others.seats.clear());
        for (place, Taken { mailbox, thread }) in seated {
            mailbox.push_call(Box::new(|| {
                shard::try_with(Shard::tell_to_end);
            }));
            threads.push((place + 1, thread));
        }
        Leaving { threads }
    }

    /// Waits until the dismissed have ended, within a bound.
    pub(crate) fn see_off(&self, leaving: Leaving) {
        if !self.is_ours() {
            // What was dropped has forked, and this child has none of these threads.
            return std::mem::forget(leaving);
        }
        let _aside = sim::stand_aside();
        let deadline = Instant::now() + 2 * self.config.drain_timeout + END_SLACK;
        let all_ended = self.door.wait(deadline);
        for (index, thread) in leaving.threads {
            if all_ended || thread.is_finished() {
                // A panic of the thread was its shard's failure, and told then.
                let _told = thread.join();
            } else {
                notify(format_args!(
                    "shard {index} does not end: one of its tasks does not yield; its thread is \
                     left behind"
                ));
            }
        }
    }
}

/// Threads of shards that were told to end.
pub(crate) struct Leaving {
    threads: Vec<(usize, thread::JoinHandle<()>)>,
}

/// Counts a thread from before it is made until it has ended, or could not be made.
struct Running {
    crew: Arc<Crew>,
}

impl Running {
    fn new(crew: Arc<Crew>) -> Running {
        crew.door.enter();
        Running { crew }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.crew.is_ours() {
            return;
        }
        self.crew.door.leave();
    }
}

/// Ends a shard on its own thread.
pub(crate) fn end(shard: Rc<Shard>) {
    // If closing unwinds, the shard stays, with all that the kernel may still write to.
    let kept = std::mem::ManuallyDrop::new(Rc::clone(&shard));
    shard.close();
    drop(shard);
    drop(std::mem::ManuallyDrop::into_inner(kept));
}

#[cold]
fn could_not_start(mailbox: &SharedMailbox, index: usize, error: &dyn fmt::Display) {
    mailbox.close_as_failed(&format!("shard {index} could not start: {error}"));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::executor::spawn_at;
    use crate::sys::EventFd;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_shard_whose_making_panics_leaves_nobody_waiting() {
        let config = Config { shards: Some(2), pin: Some(false), ..Config::default() };
        let crew = Crew::new(config, Hooks::default(), None);
        let mailbox = Mailbox::new();
        let mut task = spawn_at(&mailbox, || async {});
        // The shard will find a bell there, which only a bug can have hung.
        mailbox.hang_bell(EventFd::new().unwrap());
        crew.run(1, &mailbox);
        drop((crew, mailbox));
        task.abort();
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Err(error)) = Pin::new(&mut task).poll(&mut cx) else { panic!("{task:?}") };
        assert!(error.to_string().contains("shard 1 could not start: a mailbox has one bell"));
    }
}
