//! A shard's inbox for wakes and closures from other threads, and the bell that ends its sleep.
//!
//! # The sleep flag
//!
//! A pusher first pushes, then looks whether the shard sleeps; a shard first says that it sleeps,
//! then looks whether something was pushed. Each side stores one word and loads the other's, so
//! each has a sequentially consistent fence in between: whichever fence comes second, its side sees
//! what the other has stored, and no mail is slept through. Release and Acquire would not do.
//!
//! Among the pushers who find the shard asleep, one exchange decides who rings. N pieces of mail to
//! a sleeping shard cost one write.
//!
//! # Closing
//!
//! The same argument with another word: the closer first says so, then empties the queue; a pusher
//! pushes, then looks whether the box is closed, and if so empties it itself. No mail stays behind.
//!
//! A box is there before its shard runs, and collects mail meanwhile. A shard that then cannot run
//! closes it too.

use super::join::JoinError;
use super::task::{Newborn, TaskRef};
use crate::contain::contain;
use crate::sync::counter::{AtomicU64, Ordering as CounterOrdering};
use crate::sync::{Arc, AtomicBool, AtomicU8, Ordering, SegQueue, fence};
use crate::sys::EventFd;
use std::sync::{Arc as StdArc, OnceLock};

use bell::Bell;

/// Names a shard. Unique in the process and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ShardId(u64);

impl ShardId {
    /// No shard has this name.
    pub(super) const NOBODY: ShardId = ShardId(0);
    /// In the name of whoever is to own a task and does not yet, so that no thread takes itself for
    /// the owner.
    const UNBORN: u64 = 1 << 63;

    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// A name that nobody had before.
    pub(crate) fn next() -> ShardId {
        // 64 bits do not wrap in the lifetime of a process.
        ShardId(NEXT.fetch_add(1, CounterOrdering::Relaxed))
    }

    /// Whether the shard is one of this process, and not of one that this was forked from.
    #[inline]
    pub(crate) fn is_ours(self) -> bool {
        self.0 >= FIRST.load(CounterOrdering::Relaxed)
    }

    /// In a forked child: all shards up to now are the parent's.
    pub(super) fn disown_all() {
        FIRST.store(NEXT.load(CounterOrdering::Relaxed), CounterOrdering::Relaxed);
    }
}

/// The name of the next shard.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The least name of a shard of this process.
static FIRST: AtomicU64 = AtomicU64::new(1);

/// Who owns a task. Changes once at most, from nobody to the shard whose mail the task was.
#[derive(Debug)]
pub(super) struct Owner(AtomicU64);

impl Owner {
    pub(super) fn settled(shard: ShardId) -> Owner {
        Owner(AtomicU64::new(shard.0))
    }

    pub(super) fn unborn(of: ShardId) -> Owner {
        Owner(AtomicU64::new(of.0 | ShardId::UNBORN))
    }

    /// Only on the owner's thread, which alone has to see it: others find that they are not the
    /// owner before as well as after.
    pub(super) fn settle(&self, shard: ShardId) {
        self.0.store(shard.0, CounterOrdering::Relaxed);
    }

    #[inline]
    pub(super) fn get(&self) -> ShardId {
        ShardId(self.0.load(CounterOrdering::Relaxed))
    }

    /// Whether it is a shard of this process, and was when the task was made.
    pub(super) fn is_ours(&self) -> bool {
        ShardId(self.get().0 & !ShardId::UNBORN).is_ours()
    }
}

/// A closure that runs on another shard.
pub(crate) type Call = Box<dyn FnOnce() + Send>;

/// One piece of mail.
pub(super) enum Mail {
    /// A task of this shard was woken or aborted; its header says which.
    Wake(TaskRef),
    /// A task for this shard, made elsewhere.
    Spawn(Newborn),
    Call(Call),
    /// Ends the sleep, no more.
    Ring,
}

/// As all who send mail have it.
pub(crate) type SharedMailbox = Arc<Mailbox>;

/// The inbox. Any thread pushes, the owner takes.
pub(crate) struct Mailbox {
    shard: ShardId,
    mail: SegQueue<Mail>,
    /// [`AWAKE`], [`SLEEPING`] or [`NOTIFIED`].
    sleep: AtomicU8,
    closed: AtomicBool,
    /// Why the shard could not run, or did not run on.
    failure: OnceLock<StdArc<str>>,
    bell: Bell,
}

/// The shard will look at its mail before it sleeps.
const AWAKE: u8 = 0;
/// The shard sleeps, or is about to; who brings mail rings.
const SLEEPING: u8 = 1;
/// The shard sleeps, and somebody has taken it upon them to ring.
const NOTIFIED: u8 = 2;

impl Mailbox {
    /// A mailbox for a shard that does not run yet.
    pub(crate) fn new() -> Arc<Mailbox> {
        Arc::new(Mailbox {
            shard: ShardId::next(),
            mail: SegQueue::new(),
            sleep: AtomicU8::new(AWAKE),
            closed: AtomicBool::new(false),
            failure: OnceLock::new(),
            bell: Bell::new(),
        })
    }

    /// Gives the box what ends the shard's sleep. Before the first sleep, once.
    pub(crate) fn hang_bell(&self, eventfd: EventFd) {
        self.bell.hang(eventfd);
    }

    /// Takes a strong count of a mailbox of which the caller knows the address only.
    ///
    /// # Safety
    /// Somebody must have a strong count, and the address be that which [`Arc::as_ptr`] gave.
    pub(super) unsafe fn retain(mailbox: *const Mailbox) -> Arc<Mailbox> {
        // SAFETY: as the caller promises.
        unsafe { Arc::increment_strong_count(mailbox) };
        // SAFETY: the count was taken for this.
        unsafe { Arc::from_raw(mailbox) }
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.shard
    }

    /// Runs the closure on the shard at its next look into the mailbox, or drops it here and now if
    /// the shard is closed.
    pub(crate) fn push_call(&self, call: Call) {
        self.push(Mail::Call(call));
    }

    /// Makes the shard take a turn, if only to look around.
    pub(crate) fn ring(&self) {
        self.push(Mail::Ring);
    }

    /// Rings whether or not the shard sleeps: for another loop, which waits in its place.
    pub(crate) fn ring_bell(&self) {
        if self.shard.is_ours() {
            self.bell.ring();
        }
    }

    /// Never blocks and never waits for the owner.
    pub(super) fn push(&self, mail: Mail) {
        // In a forked child nobody takes it, and a push that the parent's threads were at would
        // hold this one up for ever; the bell is the parent's.
        if !self.shard.is_ours() {
            return self.discard(mail);
        }
        // A closed box stays closed, so this early look needs no ordering.
        if self.closed.load(Ordering::Relaxed) {
            return self.discard(mail);
        }
        self.mail.push(mail);
        // Pairs with the fences in `prepare_sleep` and `close`.
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Relaxed) {
            return self.discard_all();
        }
        self.ring_if_asleep();
    }

    fn ring_if_asleep(&self) {
        // The plain load keeps the flag's cache line shared while the owner is awake.
        let asleep = self.sleep.load(Ordering::Relaxed) == SLEEPING;
        // Relaxed: the mail is ordered by its queue, the flag only elects who rings.
        let elected = |sleep: &AtomicU8| {
            let order = Ordering::Relaxed;
            sleep.compare_exchange(SLEEPING, NOTIFIED, order, order).is_ok()
        };
        if asleep && elected(&self.sleep) {
            self.bell.ring();
        }
    }

    /// Announces that the owner is about to sleep. Answers whether it may: then [`awake`] follows
    /// the sleep. Otherwise there is mail, and the owner counts as awake.
    ///
    /// [`awake`]: Mailbox::awake
    #[must_use]
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.sleep.store(SLEEPING, Ordering::Relaxed);
        // Pairs with the fence in `push`. The one locked instruction of a sleep.
        fence(Ordering::SeqCst);
        let may_block = self.mail.is_empty();
        if !may_block {
            self.awake();
        }
        may_block
    }

    /// The owner is up and will look at its mail before it sleeps again.
    pub(crate) fn awake(&self) {
        // Only the owner raises the flag. What is not written stays shared with those who push.
        // Relaxed: a pusher that still sees the sleep rings once too often, no more.
        if self.sleep.load(Ordering::Relaxed) != AWAKE {
            self.sleep.store(AWAKE, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.mail.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.mail.len()
    }

    pub(super) fn take(&self) -> Option<Mail> {
        self.mail.pop()
    }

    /// The shard has failed: tasks that end with it, and those in the mail, are told why.
    pub(crate) fn fail(&self, reason: &str) {
        let _the_first_counts = self.failure.set(reason.into());
    }

    /// Closes the box of a shard that cannot run, for this reason.
    pub(crate) fn close_as_failed(&self, reason: &str) {
        self.fail(reason);
        self.close();
    }

    /// Drops all mail, here and, from now on, on the thread that brings it.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // Pairs with the fence in `push`.
        fence(Ordering::SeqCst);
        self.discard_all();
    }

    fn discard_all(&self) {
        while let Some(mail) = self.mail.pop() {
            self.discard(mail);
        }
    }

    /// A closure's captures may panic when they are dropped; that is nobody's business here.
    fn discard(&self, mail: Mail) {
        match mail {
            Mail::Spawn(task) => task.cancel(self.lost()),
            mail => contain(|| drop(mail)),
        }
    }

    /// What becomes of tasks when the shard ends.
    pub(super) fn lost(&self) -> JoinError {
        match self.failure.get() {
            Some(reason) => JoinError::lost(StdArc::clone(reason)),
            None => JoinError::cancelled(),
        }
    }
}

#[cfg(not(loom))]
mod bell {
    use crate::sys::EventFd;
    use std::sync::OnceLock;

    pub(super) struct Bell(OnceLock<EventFd>);

    impl Bell {
        pub(super) fn new() -> Self {
            Self(OnceLock::new())
        }

        pub(super) fn hang(&self, eventfd: EventFd) {
            assert!(self.0.set(eventfd).is_ok(), "a mailbox has one bell");
        }

        #[cfg(test)]
        pub(super) fn raw_fd(&self) -> std::os::fd::RawFd {
            self.0.get().expect("it has been hung").raw_fd()
        }

        /// Who rings has seen the shard asleep, behind the fence that came after the bell was hung.
        pub(super) fn ring(&self) {
            if let Some(eventfd) = self.0.get() {
                eventfd.signal();
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
impl Mailbox {
    pub(super) fn bell_fd(&self) -> std::os::fd::RawFd {
        self.bell.raw_fd()
    }
}

/// A bell that loom hears.
#[cfg(loom)]
mod bell {
    use crate::sys::EventFd;
    use loom::sync::Notify;
    use std::sync::atomic::{AtomicU32, Ordering};

    pub(super) struct Bell {
        notify: Notify,
        rings: AtomicU32,
    }

    impl Bell {
        pub(super) fn new() -> Self {
            Self { notify: Notify::new(), rings: AtomicU32::new(0) }
        }

        pub(super) fn hang(&self, _eventfd: EventFd) {}

        pub(super) fn ring(&self) {
            self.rings.fetch_add(1, Ordering::Relaxed);
            self.notify.notify();
        }

        pub(super) fn wait(&self) {
            self.notify.wait();
        }
    }

    impl super::Mailbox {
        /// Sleeps until the bell rings.
        pub(crate) fn wait_for_bell(&self) {
            self.bell.wait();
        }

        pub(in crate::executor) fn rings(&self) -> u32 {
            self.bell.rings.load(Ordering::Relaxed)
        }
    }
}
