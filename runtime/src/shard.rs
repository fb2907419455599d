//! A shard: one thread with its driver, executor, timers, buffers and mailbox, and the loop that
//! turns them.
//!
//! The turn, in order: run ready tasks (a budget), take the mail, let dirty residents write out,
//! enter the kernel once (and wait there if nothing is ready), hand out what arrived, fire timers.

mod end;
mod outside;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::{Arc as StdArc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::board::Board;
use crate::buf::Spare;
use crate::config::{Config, MAIL_PER_TURN_MAX};
use crate::crew::Crew;
use crate::driver::{Driver, DriverInfo, Shown, Strays, Wait, Work};
use crate::error::BuildError;
use crate::executor::{self, Executor, Mailbox, Observer, Pace, RootWaker, ShardId, TaskInfo};
use crate::fork::{self, NO_RUNTIME_SURVIVES, PerProcess, Process};
use crate::meter::Meter;
use crate::resident::Residents;
use crate::sim;
use crate::stall::{RestAtEnd, Watch, Watched};
use crate::sync::Arc;
use crate::sys::{self, EventFd};
use crate::timers::{self, Clock, Timers};

pub(crate) use outside::Due;
use outside::ShowAtEnd;

/// How often residents that are dirty again are let write out when the loop ends.
const PARTING_TURNS_MAX: u32 = 8;

/// How many turns a request that was told to stop is waited for. The kernel needs one or two.
const SETTLE_TURNS_MAX: u32 = 100;

pub(crate) struct Shard {
    pub(crate) id: ShardId,
    /// The shards of its runtime, and its place among them.
    pub(crate) crew: StdArc<Crew>,
    pub(crate) index: usize,
    pub(crate) config: Config,
    pub(crate) executor: Executor,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) clock: Clock,
    pub(crate) driver: Driver,
    pub(crate) driver_info: DriverInfo,
    pub(crate) residents: Residents,
    /// Empty send buffers.
    pub(crate) spare: Rc<Spare>,
    pub(crate) meter: Meter,
    mailbox: Arc<Mailbox>,
    /// Where stalls are looked for.
    watch: Option<Watch>,
    root_woken: Cell<bool>,
    /// A shard with a thread of its own was told to end.
    ending: Cell<bool>,
    /// How many more times a future of the task being polled may be ready in this poll.
    pub(crate) budget: Cell<u32>,
    /// Kept for its capacity.
    work: Cell<Work>,
    strays: Strays,
    /// Where another loop looks for news.
    shown: OnceCell<Shown>,
}

impl Shard {
    /// Makes a shard that runs on this thread, with the mailbox that its crew has for it.
    pub(crate) fn new(
        crew: StdArc<Crew>,
        index: usize,
        mailbox: Arc<Mailbox>,
    ) -> Result<Rc<Shard>, BuildError> {
        fork::watch(forget_parent).map_err(|error| BuildError::Io("watching for forks", error))?;
        let config = crew.config().clone();
        let bell = EventFd::new().map_err(|error| BuildError::Io("making an eventfd", error))?;
        let spare = Rc::<Spare>::default();
        let (driver, driver_info) = Driver::choose(&config, bell.raw_fd(), &spare)?;
        mailbox.hang_bell(bell);
        let id = mailbox.shard();
        let watch = Watch::this_thread(index, id, config.stall, crew.on_stall())
            .map_err(|error| BuildError::Io("looking for stalls", error))?;
        let meter = Meter::new(index, driver_info.driver());
        let shard = Rc::new(Shard {
            id,
            executor: Executor::new(Arc::clone(&mailbox)).with_hooks(index, crew.hooks().clone()),
            timers: RefCell::new(Timers::new()),
            clock: Clock::new(),
            driver,
            driver_info,
            residents: Residents::default(),
            spare,
            meter,
            watch,
            root_woken: Cell::new(false),
            ending: Cell::new(false),
            crew,
            index,
            budget: Cell::new(config.task_budget),
            work: Cell::default(),
            strays: Strays::default(),
            shown: OnceCell::new(),
            mailbox: Arc::clone(&mailbox),
            config,
        });
        if shard.config.start_paused {
            let _was_running = shard.clock.pause();
        }
        lock_registry().insert(id, mailbox);
        Ok(shard)
    }

    /// Runs a future, and everything spawned meanwhile, until the future is ready.
    #[track_caller]
    pub(crate) fn block_on<F: Future>(self: &Rc<Self>, future: F) -> F::Output {
        assert!(
            try_current().is_none(),
            "block_on was called within a runtime: a thread runs one runtime at a time. Use \
             `.await` or `spawn` here, or call block_on on another thread"
        );
        self.check_process();
        let _current = Entered::new(self);
        let _at_work = (self.executor.enter(), self.meter.begin_work());
        let root = RootWaker::new(Arc::clone(&self.mailbox));
        let waker = root.waker();
        let mut cx = Context::from_waker(&waker);
        let mut future = pin!(future);
        let place = Location::caller();
        let _rest = RestAtEnd(self.watch.as_ref());
        let _shown = ShowAtEnd(self);
        // What was sent here while no future ran, such as bytes given back, comes first.
        self.executor.take_mail(MAIL_PER_TURN_MAX);
        let mut woken = true;
        loop {
            if woken {
                if let Some(watch) = &self.watch {
                    watch.root::<F>(place);
                }
                let poll = self.poll_root(future.as_mut(), &mut cx);
                if let Poll::Ready(output) = poll {
                    // A child that was forked in there goes on with the output. What is to be
                    // written out is the parent's.
                    if self.id.is_ours() {
                        self.part();
                    }
                    return output;
                }
            }
            woken = self.turn(&root);
        }
    }

    fn poll_root<F: Future>(&self, future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.begin_poll();
        self.meter.begin_run();
        self.meter.begin_poll();
        let poll = future.poll(cx);
        let _only_one = self.meter.end_poll();
        self.meter.end_run();
        poll
    }

    /// Runs what is sent here, until [`tell_to_end`](Shard::tell_to_end).
    pub(crate) fn run_until_told(self: &Rc<Self>) {
        self.block_on(poll_fn(|_| if self.ending.get() { Poll::Ready(()) } else { Poll::Pending }));
    }

    pub(crate) fn tell_to_end(&self) {
        self.ending.set(true);
        self.root_woken.set(true);
    }

    /// Before the loop stands still: what was written goes out, and what was closed is closed.
    fn part(&self) {
        for turn in 0..PARTING_TURNS_MAX {
            self.residents.write_out();
            self.enter(Wait::No);
            // The second turn closes what the first has cancelled.
            if turn > 0 && !self.residents.has_dirty() {
                return;
            }
        }
    }

    /// One round of the loop. True if the root future was woken.
    fn turn(&self, root: &RootWaker) -> bool {
        self.work_off();
        let wait = if self.has_ready(root) { Wait::No } else { self.idle(root) };
        self.enter(wait);
        self.mailbox.awake();
        self.fire_timers();
        self.notice_root(root);
        self.root_woken.take()
    }

    /// The part of a turn that runs tasks and other code of the program.
    fn work_off(&self) {
        let _rest = RestAtEnd(self.watch.as_ref());
        if let Some(watch) = &self.watch {
            watch.upkeep();
        }
        self.run_tasks();
        self.check_process();
        let mail = self.executor.take_mail(MAIL_PER_TURN_MAX);
        self.residents.write_out();
        self.meter.count_turn(mail);
        self.publish();
    }

    fn run_tasks(&self) {
        if self.executor.has_ready() {
            self.meter.begin_run();
            let polls = self.config.event_interval;
            match &self.watch {
                None => self.executor.run(polls, self),
                Some(watch) => self.executor.run(polls, &Watched { observer: self, watch }),
            };
            self.meter.end_run();
        }
    }

    /// Puts what has been counted so far on the board.
    fn publish(&self) {
        self.meter.publish(self.driver.counts(), self.executor.len());
    }

    /// The board, on which everything is that has been counted so far.
    pub(crate) fn board(&self) -> StdArc<Board> {
        self.publish();
        StdArc::clone(self.meter.board())
    }

    /// Keeps in mind that the root future was woken, until the turn has ended.
    fn notice_root(&self, root: &RootWaker) {
        if root.take_woken() {
            self.root_woken.set(true);
        }
    }

    fn has_ready(&self, root: &RootWaker) -> bool {
        self.notice_root(root);
        self.root_woken.get() || self.executor.has_ready() || self.residents.has_dirty()
    }

    /// Nothing is ready: how long to wait.
    fn idle(&self, root: &RootWaker) -> Wait {
        if self.clock.is_paused() {
            return self.idle_paused(root);
        }
        if !self.config.spin.is_zero() {
            self.meter.park();
            let news = self.spin(root);
            self.meter.unpark();
            if news {
                return Wait::No;
            }
        }
        self.wait_at_most(self.until_next_timer())
    }

    fn until_next_timer(&self) -> Option<Duration> {
        let deadline = self.timers.borrow().next_wake()?;
        Some(Duration::from_nanos(deadline.saturating_sub(self.clock.now_ns())))
    }

    fn wait_at_most(&self, left: Option<Duration>) -> Wait {
        // Mail that comes from here on is what the sleep flag is about.
        sim::pause();
        if self.mailbox.prepare_sleep() { Wait::AtMost(left) } else { Wait::No }
    }

    /// With a paused clock, waiting for a timer means moving the clock: not before the kernel was
    /// asked once more and has told all (a simulated one never does), nor while jobs hold it.
    fn idle_paused(&self, root: &RootWaker) -> Wait {
        self.enter(Wait::No);
        let may_have_more = !sim::is_here() && !self.driver.is_drained();
        if self.has_ready(root) || !self.mailbox.is_empty() || may_have_more {
            return Wait::No;
        }
        let deadline = self.timers.borrow().next_deadline();
        match deadline {
            // What is overdue needs no move of the clock, which may be held.
            Some(deadline) if deadline <= self.clock.now_ns() => Wait::No,
            Some(deadline) if self.clock.auto_advance_to(deadline) => Wait::No,
            _ => self.wait_at_most(None),
        }
    }

    /// Watches for news for a while before sleeping. True if some came.
    fn spin(&self, root: &RootWaker) -> bool {
        // What is queued must be on its way before anything can come back.
        self.enter(Wait::No);
        let limit = self.config.spin.min(self.until_next_timer().unwrap_or(Duration::MAX));
        let until = sys::now() + limit;
        while !self.has_ready(root) && self.mailbox.is_empty() {
            if self.driver.has_news() {
                self.enter(Wait::No);
            }
            if sys::now() >= until {
                return self.has_ready(root);
            }
            std::hint::spin_loop();
        }
        true
    }

    /// # Panics
    ///
    /// In a forked child, which may touch nothing of what the shard shares with the kernel and with
    /// other threads.
    pub(crate) fn check_process(&self) {
        if !self.id.is_ours() {
            not_ours();
        }
    }

    /// Enters the kernel and hands out what it brought.
    fn enter(&self, wait: Wait) {
        self.check_process();
        if let Err(error) = self.try_enter(wait) {
            panic!("the kernel refuses to wait for I/O on this shard: {error}");
        }
    }

    /// As [`enter`](Shard::enter), where a refusal must not unwind: drops end here.
    fn try_enter(&self, wait: Wait) -> io::Result<()> {
        if !self.id.is_ours() {
            return Err(io::Error::other(NO_RUNTIME_SURVIVES));
        }
        let mut work = self.work.take();
        let waits = matches!(wait, Wait::AtMost(_));
        if waits {
            self.meter.park();
        }
        let entered = self.driver.turn(wait, &mut work);
        if waits {
            self.meter.unpark();
        }
        self.hand_out(&mut work);
        self.work.set(work);
        entered
    }

    #[inline]
    fn hand_out(&self, work: &mut Work) {
        // Most turns leave nothing, as tasks of this shard are woken where their wakers lie.
        if !work.is_empty() {
            self.hand_out_all(work);
        }
    }

    fn hand_out_all(&self, work: &mut Work) {
        for short in work.short_sends.drain(..) {
            self.residents.send_fell_short(short);
        }
        self.driver.dispose(&self.strays, work);
        timers::wake_all(&mut work.wakers);
    }

    fn fire_timers(&self) {
        if self.timers.borrow().len() == 0 {
            return;
        }
        let mut work = self.work.take();
        self.timers.borrow_mut().expire(self.clock.now_ns(), &mut work.wakers);
        self.hand_out(&mut work);
        self.work.set(work);
    }

    /// Turns the driver until something under way there has ended, for a bounded number of turns.
    pub(crate) fn settle(&self, ended: impl Fn() -> bool) {
        for _ in 0..SETTLE_TURNS_MAX {
            let patience = Some(Duration::from_millis(1));
            // Listeners are dropped through here. The next turn meets the refusal again.
            if ended() || self.try_enter(Wait::AtMost(patience)).is_err() {
                return;
            }
        }
    }

    /// Before each poll, so that a child that was forked in one does no other.
    fn begin_poll(&self) {
        self.check_process();
        self.budget.set(self.config.task_budget);
    }

    /// Counts a future that is about to be ready. A task whose futures are always ready is told
    /// to wait for its next turn once in a while, so that others have theirs.
    #[inline]
    pub(crate) fn poll_budget(&self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.budget.get();
        if left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.budget.set(left - 1);
        Poll::Ready(())
    }
}

impl Observer for Shard {
    fn before_poll(&self, _task: TaskInfo<'_>) {
        self.begin_poll();
        self.meter.begin_poll();
    }

    fn after_poll(&self, _task: TaskInfo<'_>) -> Pace {
        self.meter.end_poll()
    }
}

thread_local! {
    /// The shard that runs on this thread. Kept alive by the `Entered` that set it.
    static CURRENT: Cell<Option<NonNull<Shard>>> = const { Cell::new(None) };
}

/// Makes a shard the current one until it is dropped.
struct Entered<'a> {
    _shard: &'a Rc<Shard>,
    before: Option<NonNull<Shard>>,
}

impl<'a> Entered<'a> {
    fn new(shard: &'a Rc<Shard>) -> Entered<'a> {
        let pointer = NonNull::new(Rc::as_ptr(shard).cast_mut());
        Entered { _shard: shard, before: CURRENT.replace(pointer) }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // In a forked child there is nothing to go back to.
        if CURRENT.get().is_some() {
            CURRENT.set(self.before);
        }
    }
}

/// The shard that runs on this thread, if one does.
pub(crate) fn try_current() -> Option<Rc<Shard>> {
    let pointer = CURRENT.get()?.as_ptr().cast_const();
    // SAFETY: the pointer came from an Rc that the `Entered` which set it still borrows, and it is
    // this thread's own.
    unsafe { Rc::increment_strong_count(pointer) };
    // SAFETY: as above; the count made here is the one that this Rc gives back.
    Some(unsafe { Rc::from_raw(pointer) })
}

/// Looks at the shard that runs on this thread, without holding it.
#[inline]
pub(crate) fn try_with<R>(look: impl FnOnce(&Shard) -> R) -> Option<R> {
    let pointer = CURRENT.get()?;
    // SAFETY: the `Entered` that set the pointer borrows an Rc of the shard. It is on this thread's
    // stack below us, so that it outlives this call.
    Some(look(unsafe { pointer.as_ref() }))
}

/// As [`try_with`], where a runtime must be.
///
/// # Panics
///
/// If none runs on this thread.
#[inline]
#[track_caller]
pub(crate) fn with<R>(look: impl FnOnce(&Shard) -> R) -> R {
    match try_with(look) {
        Some(answer) => answer,
        None => no_runtime(),
    }
}

/// The shard that runs on this thread.
///
/// # Panics
///
/// If none does.
#[track_caller]
pub(crate) fn current() -> Rc<Shard> {
    match try_current() {
        Some(shard) => shard,
        None => no_runtime(),
    }
}

#[cold]
#[track_caller]
fn no_runtime() -> ! {
    let text = "no annulus runtime on this thread: call this within Runtime::block_on, \
                #[annulus::main] or a task spawned there";
    match Process::current().is_forked() {
        false => panic!("{text}"),
        true => panic!("{text}; {NO_RUNTIME_SURVIVES}"),
    }
}

#[cold]
#[track_caller]
fn not_ours() -> ! {
    panic!("{NO_RUNTIME_SURVIVES}")
}

/// In a forked child, within `fork`: the shard that runs on this thread is the parent's.
pub(crate) extern "C" fn forget_parent() {
    fork::begin_process();
    CURRENT.set(None);
    executor::disown_all();
}

type Registry = BTreeMap<ShardId, Arc<Mailbox>>;

/// The mailboxes of all shards that are alive. Only rare errands look here.
static REGISTRY: PerProcess<Mutex<Registry>> = PerProcess::new(Mutex::default);

fn lock_registry() -> MutexGuard<'static, Registry> {
    REGISTRY.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a closure on another shard, soon. Drops it if that shard has ended.
pub(crate) fn mail_to(id: ShardId, call: Box<dyn FnOnce() + Send>) {
    let mailbox = lock_registry().get(&id).cloned();
    if let Some(mailbox) = mailbox {
        mailbox.push_call(call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork::tests::in_child;

    #[test]
    fn a_forked_child_sends_its_parent_no_mail_and_waits_for_no_lock_of_its_parents() {
        let make = || {
            let crew = Crew::new(Config::default(), executor::Hooks::default(), None);
            let mailbox = crew.mailbox(0);
            Shard::new(crew, 0, mailbox).unwrap()
        };
        let shard = make();
        // As if another thread were at it, which the child does not have.
        let registry = lock_registry();
        in_child(|| {
            assert!(!shard.id.is_ours());
            mail_to(shard.id, Box::new(|| {}));
            shard.mailbox.push_call(Box::new(|| {}));
            shard.mailbox.ring();
            assert!(shard.mailbox.is_empty());
            let own = make();
            mail_to(own.id, Box::new(|| {}));
            assert!(!own.mailbox.is_empty());
            own.block_on(async {});
            own.close();
        });
        drop(registry);
        assert!(shard.id.is_ours() && shard.mailbox.is_empty());
        shard.close();
    }
}
