//! The io_uring driver. Every entry into the kernel, every completion and every slot is here.
//!
//! 1. An operation's future asks [`Uring::poll_op`]: the first poll makes a slot and queues an
//!    entry that carries the slot's key; nothing is submitted yet.
//! 2. The shard ends its turn in [`Uring::turn`]: one `io_uring_enter` submits all entries and
//!    waits; then all completions are reaped into their slots. Tasks of this shard are woken, the
//!    wakers of others handed out.
//! 3. The future, polled again, takes its answer and frees the slot.
//! 4. A future that is dropped in between leaves its operation as an orphan in the slot and a
//!    cancel in the queue; the orphan goes with the operation's last completion.
//!
//! No user code (wakers, orphans, operations) runs while the driver is borrowed.

mod show;
pub(super) mod untaken;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use io_uring::types::{self, CancelBuilder, SubmitArgs};
use io_uring::{EnterFlags, opcode, squeue};

use super::features::{Ring, quiet_sends, zero_copy_sends};
use super::operation::{
    Completion, Entry, Many, MultishotOperation, Operation, Orphan, Single, hand_over,
};
use super::patience::Patience;
use super::pools::Pools;
use super::quiet::{Batch, Quiet};
use super::slots::{Arrival, IGNORED_KEY, Key, Multishot, Slots, State, WAKE_KEY};
use super::{Counts, Wait, Work};
use crate::buf::{Pool, Spare};
use crate::contain::contain;
use crate::fd::Fd;
use crate::resident_key::ResidentKey;
use crate::{ring, sys};

/// How often one turn asks the kernel for completions that did not fit the queue.
const OVERFLOW_ROUNDS_MAX: u32 = 64;

/// For how many cancels a turn enters once more: since 6.13 an enter hands over some 20 answers.
const CANCELS_PER_ENTER: u32 = 16;

pub(crate) struct Uring {
    inner: RefCell<Inner>,
    /// After the ring, which must be gone before its buffers are.
    pools: Pools,
    /// Where the buffers of quiet sends go.
    spare: Rc<Spare>,
    patience: Patience,
}

struct Inner {
    ring: ring::Ring,
    slots: Slots,
    /// Entries that found the queue full and could not be submitted at once.
    backlog: VecDeque<Entry>,
    quiet: Quiet,
    /// Whether the kernel has such sends.
    sends_quietly: bool,
    wake_fd: RawFd,
    no_iowait: bool,
    /// Cancels for which a turn has not entered once more.
    cancels: u32,
    counts: Counts,
}

impl Uring {
    pub(crate) fn new(ring: Ring, wake_fd: RawFd, spare: Rc<Spare>) -> Uring {
        let Ring { ring, pool, .. } = ring;
        let no_iowait = ring.params().is_feature_no_iowait();
        let mut inner = Inner {
            ring,
            slots: Slots::default(),
            backlog: VecDeque::new(),
            quiet: Quiet::default(),
            sends_quietly: quiet_sends(),
            wake_fd,
            no_iowait,
            cancels: 0,
            counts: Counts::default(),
        };
        inner.arm_wake();
        Uring {
            inner: RefCell::new(inner),
            pools: Pools::new(pool),
            spare,
            patience: Patience::default(),
        }
    }

    #[inline]
    pub(crate) fn counts(&self) -> Counts {
        Counts { pool_dry: self.pools.dry(), ..self.inner.borrow().counts }
    }

    pub(crate) fn pool(&self) -> &Rc<Pool> {
        self.pools.streams()
    }

    pub(crate) fn datagram_pool(&self) -> Option<Rc<Pool>> {
        self.pools.datagrams(&self.inner.borrow().ring.submitter())
    }

    /// Polls an operation of one answer. `flight` is its slot while it is in flight.
    pub(crate) fn poll_op<T: Operation>(
        &self,
        flight: &mut Option<Key>,
        operation: &mut T,
        waker: &Waker,
    ) -> Poll<io::Result<u32>> {
        let Some(key) = *flight else {
            *flight = Some(self.start(operation, waker));
            return Poll::Pending;
        };
        let Poll::Ready(completion) = self.look(key, waker) else { return Poll::Pending };
        *flight = None;
        if completion.is_errno(libc::EINTR) {
            // A signal ended the kernel's wait, not the operation's meaning: once more.
            *flight = Some(self.start(operation, waker));
            return Poll::Pending;
        }
        Poll::Ready(completion.result())
    }

    fn start<T: Operation>(&self, operation: &mut T, waker: &Waker) -> Key {
        let entry = operation.entry();
        let waker = Some(waker.clone());
        self.inner.borrow_mut().start(entry, State::Waiting(waker))
    }

    /// Takes the answer of an operation in flight, or remembers whom to wake for it.
    fn look(&self, key: Key, waker: &Waker) -> Poll<Completion> {
        let mut inner = self.inner.borrow_mut();
        match inner.slots.get_mut(key) {
            Some(State::Done(completion)) => {
                let completion = *completion;
                inner.slots.remove(key);
                return Poll::Ready(completion);
            }
            Some(State::Waiting(Some(old))) if old.will_wake(waker) => {}
            Some(State::Waiting(_)) => {
                drop(inner);
                self.replace_waker(key, waker);
            }
            _ => unreachable!("a future in flight owns a waiting slot"),
        }
        Poll::Pending
    }

    /// Cloning and dropping a waker may run user code, so neither happens under the borrow.
    fn replace_waker(&self, key: Key, waker: &Waker) {
        let new = Some(waker.clone());
        let old = match self.inner.borrow_mut().slots.get_mut(key) {
            Some(State::Waiting(waker)) => std::mem::replace(waker, new),
            Some(State::Multishot(multishot)) => new.and_then(|new| multishot.replace_waker(new)),
            _ => new,
        };
        drop(old);
    }

    /// Polls an operation of many answers, and arms it when it is not armed.
    pub(crate) fn poll_multishot<T: MultishotOperation>(
        &self,
        flight: &mut Option<Key>,
        operation: &mut T,
        waker: &Waker,
    ) -> Poll<Completion> {
        match self.poll_armed(*flight, waker) {
            Poll::Ready(Some(completion)) => return Poll::Ready(completion),
            Poll::Ready(None) => *flight = Some(self.arm(*flight, operation, waker)),
            Poll::Pending => {}
        }
        Poll::Pending
    }

    /// Arms an operation of many answers, in a new slot or in the one it has.
    fn arm<T: MultishotOperation>(
        &self,
        flight: Option<Key>,
        operation: &mut T,
        waker: &Waker,
    ) -> Key {
        let entry = operation.entry();
        let Some(key) = flight else {
            let state = State::Multishot(Multishot::new(waker.clone(), operation.queued_max()));
            return self.inner.borrow_mut().start(entry, state);
        };
        self.replace_waker(key, waker);
        self.inner.borrow_mut().rearm(key, entry);
        key
    }

    /// An answer that has come; waits for one that may come. `None` if nothing is armed.
    #[inline]
    pub(crate) fn poll_armed(
        &self,
        flight: Option<Key>,
        waker: &Waker,
    ) -> Poll<Option<Completion>> {
        let Some(key) = flight else { return Poll::Ready(None) };
        let mut inner = self.inner.borrow_mut();
        let multishot = inner.multishot(key);
        if let Some(completion) = multishot.queue.pop_front() {
            return Poll::Ready(Some(completion));
        }
        if !multishot.armed {
            return Poll::Ready(None);
        }
        if !multishot.await_by(waker) {
            drop(inner);
            self.replace_waker(key, waker);
        }
        Poll::Pending
    }

    /// An answer that has come already.
    pub(crate) fn pop_multishot(&self, flight: Option<Key>) -> Option<Completion> {
        let mut inner = self.inner.borrow_mut();
        flight.and_then(|key| inner.multishot(key).queue.pop_front())
    }

    pub(crate) fn is_armed(&self, flight: Option<Key>) -> bool {
        let mut inner = self.inner.borrow_mut();
        flight.is_some_and(|key| inner.multishot(key).armed)
    }

    /// Asks the kernel to end a multishot; answers under way still arrive.
    pub(crate) fn stop_multishot(&self, flight: Option<Key>) {
        let mut inner = self.inner.borrow_mut();
        let Some(key) = flight else { return };
        let multishot = inner.multishot(key);
        if multishot.armed && !multishot.stopping {
            multishot.stopping = true;
            inner.cancel(key);
        }
    }

    /// Asks the kernel to give an operation up; its answer still comes.
    pub(crate) fn cancel(&self, key: Key) {
        let mut inner = self.inner.borrow_mut();
        if let Some(State::Waiting(_)) = inner.slots.get_mut(key) {
            inner.cancel(key);
        }
    }

    /// The future of this operation is gone: keeps it until its last answer.
    pub(crate) fn orphan<T: Operation>(&self, key: Key, operation: T) {
        let mut orphan = Single(Some(operation));
        let mut inner = self.inner.borrow_mut();
        match inner.slots.get_mut(key) {
            Some(State::Done(completion)) => {
                let completion = *completion;
                inner.slots.remove(key);
                drop(inner);
                hand_over(&mut orphan, completion);
            }
            Some(state @ State::Waiting(_)) => {
                let old = std::mem::replace(state, State::Orphaned(Box::new(orphan)));
                inner.cancel(key);
                drop(inner);
                drop(old);
            }
            _ => unreachable!("a future in flight owns a waiting slot"),
        }
    }

    /// As [`orphan`](Uring::orphan), for an operation of many answers.
    pub(crate) fn orphan_multishot<T: MultishotOperation>(&self, key: Key, operation: T) {
        let mut inner = self.inner.borrow_mut();
        let Multishot { queue, armed, stopping, waker, .. } = std::mem::take(inner.multishot(key));
        if armed && !stopping {
            inner.cancel(key);
        }
        *inner.slots.get_mut(key).expect("looked up above") = State::Lent(VecDeque::new());
        drop(inner);
        self.serve_orphan(key, Box::new(Many(operation)), queue, armed);
        // The user's code, of which a panic must not unwind past an operation in flight.
        drop(waker);
    }

    /// Hands an orphan one of its answers. Called without a borrow: it may run user code.
    pub(crate) fn dispose(&self, key: Key, completion: Completion) {
        let taken = match self.inner.borrow_mut().slots.get_mut(key) {
            // It is being served further up the stack, and gets this one there.
            Some(State::Lent(answers)) => return answers.push_back(completion),
            Some(state @ State::Orphaned(_)) => {
                std::mem::replace(state, State::Lent(VecDeque::new()))
            }
            _ => return,
        };
        let State::Orphaned(orphan) = taken else { return };
        self.serve_orphan(key, orphan, VecDeque::from([completion]), completion.more());
    }

    /// Hands over answers, also those that come meanwhile; then puts the orphan back, or ends it
    /// after its last answer.
    fn serve_orphan(
        &self,
        key: Key,
        mut orphan: Box<dyn Orphan>,
        mut answers: VecDeque<Completion>,
        mut armed: bool,
    ) {
        loop {
            answers.drain(..).for_each(|completion| hand_over(&mut *orphan, completion));
            let mut inner = self.inner.borrow_mut();
            match inner.slots.get_mut(key) {
                Some(State::Lent(more)) if !more.is_empty() => answers = std::mem::take(more),
                Some(state) if armed => {
                    *state = State::Orphaned(orphan);
                    return;
                }
                _ => {
                    inner.slots.remove(key);
                    break;
                }
            }
            armed = answers.iter().all(|completion| completion.more());
        }
        contain(|| drop(orphan));
    }

    pub(crate) fn send_quietly(
        &self,
        fd: &Rc<Fd>,
        buffer: Vec<u8>,
        owner: ResidentKey,
    ) -> Result<Batch, Vec<u8>> {
        let mut inner = self.inner.borrow_mut();
        if !inner.sends_quietly || buffer.len() > sys::TRANSFER_BYTES_MAX {
            return Err(buffer);
        }
        let (batch, entry) = inner.quiet.add(fd, buffer, owner);
        inner.push(entry);
        Ok(batch)
    }

    pub(crate) fn sends_zero_copy(&self) -> bool {
        zero_copy_sends()
    }

    #[inline]
    pub(crate) fn is_settled(&self, batch: Batch) -> bool {
        self.inner.borrow().quiet.is_settled(batch)
    }

    /// Two loads from memory shared with the kernel.
    pub(crate) fn has_news(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        !inner.ring.completion().is_empty() || inner.ring.submission().taskrun()
    }

    /// Ends a turn: submits everything, waits as told, and reaps every completion into `work`.
    ///
    /// # Errors
    ///
    /// What `io_uring_enter` answered, if it cannot be cured by trying again.
    pub(crate) fn turn(&self, wait: Wait, work: &mut Work) -> io::Result<()> {
        self.pools.publish();
        let mut inner = self.inner.borrow_mut();
        let entered = inner.enter_as_needed(wait);
        inner.reap(work);
        inner.reap_overflow(work);
        inner.reap_cancelled(work);
        inner.settle_quiet(&self.spare);
        // Everything was reaped before this is asked.
        self.patience.weigh(entered)
    }

    /// Cancels everything and reaps until nothing is in flight. True if nothing is.
    pub(crate) fn drain(&self, limit: Duration, run: impl Fn(&mut Work) -> bool) -> bool {
        let deadline = sys::now() + limit;
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        self.inner.borrow_mut().push(cancel.user_data(IGNORED_KEY.user_data()));
        let mut work = Work::default();
        while self.inner.borrow().slots.any_in_flight() && sys::now() < deadline {
            let turned = self.turn(Wait::AtMost(Some(Duration::from_millis(10))), &mut work);
            if turned.is_err() || !run(&mut work) {
                break;
            }
        }
        !self.inner.borrow().slots.any_in_flight()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        if inner.slots.any_in_flight() {
            // The drain ran out of time: the kernel may still write. Leak, never free.
            std::mem::forget(std::mem::take(&mut inner.slots));
            self.pools.leak();
        }
    }
}

impl Inner {
    fn start(&mut self, entry: Entry, state: State) -> Key {
        let key = self.slots.insert(state);
        self.push(entry.user_data(key.user_data()));
        key
    }

    fn rearm(&mut self, key: Key, entry: Entry) {
        let multishot = self.multishot(key);
        multishot.armed = true;
        multishot.stopping = false;
        self.push(entry.user_data(key.user_data()));
    }

    fn multishot(&mut self, key: Key) -> &mut Multishot {
        match self.slots.get_mut(key) {
            Some(State::Multishot(multishot)) => multishot,
            _ => unreachable!("a multishot in flight owns a multishot slot"),
        }
    }

    fn cancel(&mut self, key: Key) {
        // Success says nothing that the operation's own completion does not say.
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(key.user_data()))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(IGNORED_KEY.user_data());
        self.cancels += 1;
        self.push(entry);
    }

    fn arm_wake(&mut self) {
        // Never drained: each write to the eventfd gives one completion.
        let poll = opcode::PollAdd::new(types::Fd(self.wake_fd), libc::POLLIN as u32).multi(true);
        self.push(poll.build().user_data(WAKE_KEY.user_data()));
    }

    /// Queues an entry. Never loses one: a full queue is submitted first.
    fn push(&mut self, entry: Entry) {
        if self.backlog.is_empty() {
            if self.try_push(&entry) {
                return;
            }
            // An error is met again, and weighed, at the end of the turn.
            let _retried = self.enter(0, None);
            if self.try_push(&entry) {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    fn try_push(&mut self, entry: &Entry) -> bool {
        // SAFETY: what the entry refers to is owned by an operation, and the operation is kept,
        // by its future or by its slot, until the kernel has answered for the last time.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn refill(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    fn enter_as_needed(&mut self, mut wait: Wait) -> io::Result<()> {
        while !self.backlog.is_empty() {
            self.refill();
            if !self.backlog.is_empty() {
                self.enter(0, None)?;
            }
        }
        if !self.ring.completion().is_empty() {
            wait = Wait::No;
        }
        match wait {
            Wait::No => {
                let queue = self.ring.submission();
                let needed = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
                drop(queue);
                if needed { self.enter(0, None) } else { Ok(()) }
            }
            Wait::AtMost(limit) => self.enter(1, limit.map(sys::clamp_wait)),
        }
    }

    /// The system call of a turn.
    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        let queued = self.ring.submission().len() as u32;
        // Without GETEVENTS a ring with deferred task work delivers nothing, for ever.
        let mut flags = EnterFlags::GETEVENTS;
        if self.no_iowait {
            // Since 6.15: an idle shard does not show as a core that waits for a disk.
            flags |= EnterFlags::NO_IOWAIT;
        }
        self.counts.enters += 1;
        self.counts.submissions += u64::from(queued);
        let submitter = self.ring.submitter();
        let answer = match timeout {
            None => {
                // SAFETY: no argument is passed, and the entries obey `try_push`.
                unsafe { submitter.enter::<libc::sigset_t>(queued, want, flags.bits(), None) }
            }
            Some(timeout) => {
                // Since 5.11 the wait itself carries a timeout, so no entry is spent on it.
                flags |= EnterFlags::EXT_ARG;
                let timeout = types::Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timeout);
                // SAFETY: EXT_ARG says that the argument is of this type; it and the time that
                // it points to outlive the call.
                unsafe { submitter.enter(queued, want, flags.bits(), Some(&args)) }
            }
        };
        answer.map(drop)
    }

    fn reap(&mut self, work: &mut Work) {
        let Inner { ring, slots, quiet, counts, .. } = self;
        let mut stopped = Vec::new();
        let mut wake_ended = false;
        for entry in ring.completion() {
            counts.completions += 1;
            let key = Key::from_user_data(entry.user_data());
            let completion = Completion::from_ring(&entry);
            match key {
                WAKE_KEY => wake_ended |= !completion.more(),
                IGNORED_KEY => {}
                key if key.is_quiet_send() => match quiet.fell_short(key, completion) {
                    Some(short) => work.short_sends.push(short),
                    None => counts.stale_keys += 1,
                },
                key => match slots.arrive(key, completion) {
                    Arrival::Quiet => {}
                    Arrival::Wake(waker) => work.wakers.push(waker),
                    Arrival::Stop(waker) => {
                        work.wakers.extend(waker);
                        stopped.push(key);
                    }
                    Arrival::Orphaned => work.orphans.push((key, completion)),
                    Arrival::Stale => counts.stale_keys += 1,
                },
            }
        }
        stopped.into_iter().for_each(|key| self.cancel(key));
        if wake_ended {
            self.arm_wake();
        }
    }

    /// Completions that did not fit the queue wait in the kernel until they are asked for.
    fn reap_overflow(&mut self, work: &mut Work) {
        for _ in 0..OVERFLOW_ROUNDS_MAX {
            if !self.ring.submission().cq_overflow() {
                return;
            }
            self.counts.overflows += 1;
            if self.enter(0, None).is_err() {
                return;
            }
            self.reap(work);
        }
    }

    /// On a busy shard, what its enters do not hand over would pile up, and descriptors with it.
    fn reap_cancelled(&mut self, work: &mut Work) {
        // Twice as often as needed: now and then a signal ends one.
        for _ in 0..2 * (self.cancels / CANCELS_PER_ENTER) {
            if self.cancels < CANCELS_PER_ENTER || !self.ring.submission().taskrun() {
                break;
            }
            if self.enter(0, None).is_ok() {
                self.cancels -= CANCELS_PER_ENTER;
                self.reap(work);
            }
        }
        self.cancels %= CANCELS_PER_ENTER;
    }

    /// Quiet sends that were submitted and of which nothing was heard have succeeded.
    fn settle_quiet(&mut self, spare: &Spare) {
        if self.quiet.is_empty() || !self.backlog.is_empty() {
            return;
        }
        let queue = self.ring.submission();
        let taken = queue.is_empty() && !queue.cq_overflow();
        drop(queue);
        // Entries that a failed enter had left may have been taken since the reaping.
        if taken && self.ring.completion().is_empty() {
            self.quiet.settle(spare);
        }
    }
}
