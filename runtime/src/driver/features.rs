//! Which driver runs, found out by trying: once with every operation that the ring driver needs.
//!
//! What is tried, since when Linux has it and what happens without it stands in `table`. The
//! kernel's version is never asked: distributions port features back, containers filter them.

mod table;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, Probe, opcode, squeue};

pub use self::table::Feature;
pub(crate) use self::table::survey;
use super::operation::Completion;
use super::patience::Patience;
use super::refusal::{Refusal, Stage};
use crate::buf::{GROUP, Pool};
use crate::config::Config;
use crate::ring::{self, Trial};

/// The smallest ring worth having; below it the limit on locked memory sends us to epoll.
const RING_ENTRIES_MIN: u32 = 64;

/// The kernel gives the locked memory of a closed ring back a moment after its close: a program
/// that restarts under a tight limit waits for it, this often and this long.
const LATE_RETURNS_MAX: u32 = 10;
const LATE_RETURN: Duration = Duration::from_millis(30);

/// A ring that is ready to be driven.
pub(crate) struct Ring {
    pub(crate) ring: ring::Ring,
    pub(crate) pool: Rc<Pool>,
    without_array: bool,
}

/// Why there is no ring.
pub(crate) enum NoRing {
    Refused(Refusal),
    /// No descriptor is left. Epoll would need one too.
    Io(io::Error),
}

/// What the trial found. One answer for the process, so that all its shards agree.
static TRIAL: OnceLock<Result<Trial, Refusal>> = OnceLock::new();

/// Whether this is known of the kernel. Decided with the first ring.
#[inline]
fn is_known(says: impl Fn(&Trial) -> bool) -> bool {
    match ring::foreseen() {
        Some(trial) => says(&trial),
        None => matches!(TRIAL.get(), Some(Ok(trial)) if says(trial)),
    }
}

/// True if a send can be told to report failures only.
pub(crate) fn quiet_sends() -> bool {
    is_known(|trial| trial.quiet_sends)
}

/// True if the kernel has sends that do not copy.
pub(crate) fn zero_copy_sends() -> bool {
    is_known(|trial| trial.zero_copy_sends)
}

/// A receive into the pool that stays armed until it has brought so many bytes; without end where
/// the kernel cannot count. What crosses the bound is not cut.
pub(crate) fn multishot_receive(fd: RawFd, bytes_max: u32) -> squeue::Entry {
    if is_known(|trial| trial.bounded_receives) {
        bounded_receive(fd, bytes_max)
    } else {
        unbounded_receive(fd)
    }
}

/// Makes a ring of the configured size, or a smaller one where locked memory is short.
pub(crate) fn make_ring(config: &Config) -> Result<Ring, NoRing> {
    let mut sizes = Sizes::of(config);
    if let Some(made) = sizes.simulate() {
        return made.map_err(NoRing::Io);
    }
    if let Some(Err(refusal)) = TRIAL.get() {
        return Err(NoRing::Refused(refusal.clone()));
    }
    let mut late_returns_left = LATE_RETURNS_MAX;
    let mut ring = loop {
        match sizes.build() {
            Ok(ring) => break ring,
            Err((_, error)) if is_memory(&error) && sizes.entries > RING_ENTRIES_MIN => {
                sizes.halve();
            }
            Err((_, error)) if is_memory(&error) && late_returns_left > 0 => {
                late_returns_left -= 1;
                thread::sleep(LATE_RETURN);
            }
            Err((stage, error)) => return Err(no_ring(stage, error, config)),
        }
    };
    let trial = match TRIAL.get() {
        Some(trial) => trial.clone(),
        None => match try_out(&mut ring) {
            Err((_, error)) if is_shortage(&error) => return Err(NoRing::Io(error)),
            found => {
                // Diagnosed before, so that a child that is forked meanwhile does not find the
                // cell being filled, as good as never.
                let found = found.map_err(|(stage, error)| diagnose(stage, &error, config));
                match agree(&TRIAL, found) {
                    Some(trial) => trial,
                    None => {
                        drop(ring);
                        return make_ring(config);
                    }
                }
            }
        },
    };
    trial.map(|_| ring).map_err(NoRing::Refused)
}

/// What the process goes by, now that one more ring was tried. `None`: another's has passed
/// meanwhile, and this one has not. It may still hold entries of its trial, about descriptors and
/// memory that are gone.
fn agree(
    known: &OnceLock<Result<Trial, Refusal>>,
    found: Result<Trial, Refusal>,
) -> Option<Result<Trial, Refusal>> {
    let passed = found.is_ok();
    let known = known.get_or_init(|| found);
    (passed || known.is_err()).then(|| known.clone())
}

fn is_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOMEM)
}

/// Too few descriptors says nothing of io_uring.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn no_ring(stage: Stage, error: io::Error, config: &Config) -> NoRing {
    if is_shortage(&error) {
        return NoRing::Io(error);
    }
    NoRing::Refused(diagnose(stage, &error, config))
}

fn diagnose(stage: Stage, error: &io::Error, config: &Config) -> Refusal {
    Refusal::diagnose(stage, error.raw_os_error().unwrap_or(0), config.locked_bytes())
}

struct Sizes {
    entries: u32,
    completions: u32,
    buffers: u16,
    buffer_bytes: u32,
}

type Failure = (Stage, io::Error);

/// Trials that more than one place names.
const MULTISHOT_RECEIVE: Stage = Stage::Probe("a multishot receive");
const MULTISHOT_ACCEPT: Stage = Stage::Probe("a multishot accept");

impl Sizes {
    fn of(config: &Config) -> Sizes {
        Sizes {
            entries: config.ring_entries,
            completions: config.ring_completions,
            buffers: config.recv_pool_buffers as u16,
            buffer_bytes: config.recv_pool_buffer_bytes,
        }
    }

    fn halve(&mut self) {
        self.entries /= 2;
        self.completions = (self.completions / 2).max(2 * self.entries);
        self.buffers = (self.buffers / 2).max(1);
    }

    fn build(&self) -> Result<Ring, Failure> {
        let (ring, without_array) = match self.setup(true) {
            // Before 6.6 the kernel does not know NO_SQARRAY.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (self.setup(false), false),
            made => (made, true),
        };
        let ring = ring.map_err(|error| (Stage::Setup, error))?;
        check_features(&ring)?;
        let ring = ring::of_kernel(ring);
        let pool = self.register(&ring).map_err(|error| (Stage::Register, error))?;
        Ok(Ring { ring, pool, without_array })
    }

    /// The ring of the simulation that this thread lives in, if it does. Nothing is to be found out
    /// of that by trying.
    fn simulate(&self) -> Option<io::Result<Ring>> {
        let made = ring::simulated(self.entries, self.completions)?;
        Some(made.and_then(|ring| {
            let pool = self.register(&ring)?;
            Ok(Ring { ring, pool, without_array: true })
        }))
    }

    fn register(&self, ring: &ring::Ring) -> io::Result<Rc<Pool>> {
        Pool::registered(&ring.submitter(), GROUP, self.buffers, self.buffer_bytes)
    }

    fn setup(&self, without_array: bool) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(self.completions);
        if without_array {
            builder.setup_no_sqarray();
        }
        builder.build(self.entries)
    }
}

fn check_features(ring: &IoUring) -> Result<(), Failure> {
    let found = ring.params();
    let all = found.is_feature_nodrop()
        && found.is_feature_ext_arg()
        && found.is_feature_skip_cqe_on_success()
        && found.is_feature_fast_poll();
    if all { Ok(()) } else { Err((Stage::Features, io::Error::from_raw_os_error(libc::EINVAL))) }
}

/// Uses everything once, on sockets that nobody else sees.
fn try_out(ring: &mut Ring) -> Result<Trial, Failure> {
    round_trip(&mut ring.ring, &opcode::Nop::new().build())
        .map_err(|error| (Stage::Enter, error))
        .and_then(|answer| answered(Stage::Probe("a no-op"), answer))?;
    try_receive(ring)?;
    try_accept(&mut ring.ring)?;
    let quiet_sends = try_quiet_send(&mut ring.ring)?;
    let bounded_receives = try_bounded_receive(ring)?;
    let zero_copy_sends = has_zero_copy_sends(&ring.ring);
    Ok(Trial { quiet_sends, zero_copy_sends, bounded_receives })
}

fn try_receive(ring: &mut Ring) -> Result<(), Failure> {
    let stage = MULTISHOT_RECEIVE;
    let (ours, theirs) = UnixStream::pair().map_err(|error| (stage, error))?;
    io::Write::write_all(&mut &theirs, b"a").map_err(|error| (stage, error))?;
    let receive = unbounded_receive(ours.as_raw_fd());
    let answer = round_trip(&mut ring.ring, &receive).map_err(|error| (Stage::Enter, error))?;
    if let Some(buffer) = answer.buffer() {
        drop(ring.pool.lend(buffer, 1));
    }
    answered(stage, answer)?;
    if answer.more() {
        cancel_all(&mut ring.ring)?;
    }
    Ok(())
}

fn try_accept(ring: &mut IoUring) -> Result<(), Failure> {
    let stage = MULTISHOT_ACCEPT;
    let listener = unnamed_listener().map_err(|error| (stage, error))?;
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build();
    push(ring, &accept.user_data(TRIED));
    // Nobody connects: the only answer that can come is a refusal, or the cancel's.
    match cancel_all(ring)? {
        Some(answer) if answer.is_errno(libc::EINVAL) => answered(stage, answer),
        _ => Ok(()),
    }
}

/// True if the kernel ends a multishot receive that has brought as much as it was to bring.
fn try_bounded_receive(ring: &mut Ring) -> Result<bool, Failure> {
    let stage = MULTISHOT_RECEIVE;
    let (ours, theirs) = UnixStream::pair().map_err(|error| (stage, error))?;
    io::Write::write_all(&mut &theirs, b"a").map_err(|error| (stage, error))?;
    let receive = bounded_receive(ours.as_raw_fd(), 1);
    let answer = round_trip(&mut ring.ring, &receive).map_err(|error| (Stage::Enter, error))?;
    if let Some(buffer) = answer.buffer() {
        drop(ring.pool.lend(buffer, 1));
    }
    if answer.more() {
        cancel_all(&mut ring.ring)?;
    }
    Ok(answer.result().is_ok() && !answer.more())
}

/// True if datagrams can be received into the pool, each with a header. Asked for by surveys only:
/// a socket finds out when it receives.
fn try_messages(ring: &mut Ring) -> Result<bool, Failure> {
    let (ours, theirs) = UnixDatagram::pair().map_err(|error| (MULTISHOT_RECEIVE, error))?;
    theirs.send(b"a").map_err(|error| (MULTISHOT_RECEIVE, error))?;
    // SAFETY: all zeros is a message of no parts.
    let shape: libc::msghdr = unsafe { std::mem::zeroed() };
    let fd = Fd(ours.as_raw_fd());
    let receive = opcode::RecvMsgMulti::new(fd, &raw const shape, GROUP).build();
    let answer = round_trip(&mut ring.ring, &receive).map_err(|error| (Stage::Enter, error))?;
    if let Some(buffer) = answer.buffer() {
        drop(ring.pool.lend(buffer, 1));
    }
    if answer.more() {
        cancel_all(&mut ring.ring)?;
    }
    Ok(answer.result().is_ok() && answer.buffer().is_some())
}

fn unbounded_receive(fd: RawFd) -> squeue::Entry {
    opcode::RecvMulti::new(Fd(fd), GROUP).build()
}

fn bounded_receive(fd: RawFd, bytes_max: u32) -> squeue::Entry {
    /// Where `optlen` stands in a submission (`struct io_uring_sqe`), which the crate cannot set.
    const OPTLEN: usize = 44;
    let mut entry = unbounded_receive(fd);
    const { assert!(size_of::<squeue::Entry>() == 64) };
    let start = (&raw mut entry).cast::<u8>();
    // SAFETY: the field lies within the entry, which is 64 bytes of plain integers.
    let field = unsafe { start.add(OPTLEN) }.cast::<u32>();
    // SAFETY: as above; it is aligned as the entry is, which begins with 64-bit fields.
    unsafe { field.write(bytes_max) };
    entry
}

/// A listener at an address of the kernel's choice, in the abstract name space.
fn unnamed_listener() -> io::Result<UnixListener> {
    // An empty abstract name would be taken as a name; the process and the time make a fresh one.
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = time.map_or(0, |time| time.as_nanos());
    let name = format!("annulus-trial-{}-{nanos}", std::process::id());
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// True if a send that does not fit reports how much did, although success was to be skipped.
///
/// A kernel that stayed silent here would make us take a cut message for a whole one.
fn try_quiet_send(ring: &mut IoUring) -> Result<bool, Failure> {
    let stage = Stage::Probe("a send");
    let (ours, _theirs) = UnixStream::pair().map_err(|error| (stage, error))?;
    let small: libc::c_int = 4096;
    // SAFETY: the value and its length agree and outlive the call.
    unsafe {
        libc::setsockopt(
            ours.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const small).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    let large = vec![0u8; 1 << 20];
    let part = round_trip_or_silence(ring, &quiet_send(ours.as_raw_fd(), &large))?;
    let (fresh, _peer) = UnixStream::pair().map_err(|error| (stage, error))?;
    let whole = round_trip_or_silence(ring, &quiet_send(fresh.as_raw_fd(), b"a"))?;
    let partial = part.is_some_and(|answer| {
        answer.result().is_ok_and(|count| (1..large.len()).contains(&(count as usize)))
    });
    Ok(partial && whole.is_none())
}

/// Asked, not tried: only sockets of the network have such sends, and there may be no network.
fn has_zero_copy_sends(ring: &IoUring) -> bool {
    let mut probe = Probe::new();
    let answered = ring.submitter().register_probe(&mut probe).is_ok();
    answered && probe.is_supported(opcode::SendZc::CODE)
}

/// A send that ends while it is submitted and speaks only if it fell short.
pub(crate) fn quiet_send(fd: RawFd, bytes: &[u8]) -> squeue::Entry {
    opcode::Send::new(Fd(fd), bytes.as_ptr(), bytes.len() as u32)
        .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
        .build()
        .flags(squeue::Flags::SKIP_SUCCESS)
}

/// The user data of a trial, and of what only marks its end.
const TRIED: u64 = 1;
const MARK: u64 = 2;

fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    let patience = Patience::default();
    // SAFETY: what a trial's entry refers to outlives its round trip.
    while unsafe { ring.submission().push(entry) }.is_err() {
        // A queue of one entry is full with the trial itself. If it cannot be submitted, the wait
        // that follows fails as well and says why; until then the queue may not be left.
        if patience.weigh(ring.submit().map(drop)).is_err() {
            return;
        }
    }
}

fn round_trip(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<Completion> {
    push(ring, &entry.clone().user_data(TRIED));
    loop {
        wait_for_one(ring)?;
        if let Some(answer) = ring.completion().next() {
            return Ok(Completion::from_ring(&answer));
        }
    }
}

/// Submits what is queued and waits for an answer. A signal, or a kernel that is short of memory
/// for a moment, says nothing of io_uring: the answer holds for the life of this process.
fn wait_for_one(ring: &IoUring) -> io::Result<()> {
    let patience = Patience::default();
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => return Ok(()),
            failed => patience.weigh(failed.map(drop))?,
        }
    }
}

/// Submits an entry and a mark behind it; answers what the entry said before the mark came.
fn round_trip_or_silence(
    ring: &mut IoUring,
    entry: &squeue::Entry,
) -> Result<Option<Completion>, Failure> {
    push(ring, &entry.clone().user_data(TRIED));
    push(ring, &opcode::Nop::new().build().user_data(MARK));
    wait_for_mark(ring)
}

/// Ends whatever a trial has left armed; answers what it said last.
fn cancel_all(ring: &mut IoUring) -> Result<Option<Completion>, Failure> {
    let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
    push(ring, &cancel.user_data(MARK));
    let mut last = wait_for_mark(ring)?;
    while last.is_none_or(Completion::more) {
        // With deferred task work the cancelled operation may speak after its cancel.
        wait_for_one(ring).map_err(|error| (Stage::Enter, error))?;
        if let Some(answer) = ring.completion().next() {
            last = Some(Completion::from_ring(&answer));
        }
    }
    Ok(last)
}

fn wait_for_mark(ring: &mut IoUring) -> Result<Option<Completion>, Failure> {
    let mut said = None;
    loop {
        wait_for_one(ring).map_err(|error| (Stage::Enter, error))?;
        for answer in ring.completion() {
            match answer.user_data() {
                TRIED => said = Some(Completion::from_ring(&answer)),
                _ => return Ok(said),
            }
        }
    }
}

fn answered(stage: Stage, answer: Completion) -> Result<(), Failure> {
    answer.result().map(drop).map_err(|error| (stage, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_whose_trial_failed_is_not_used_where_another_has_passed() {
        let refusal = || Refusal::diagnose(Stage::Setup, libc::EPERM, 0);
        let trial = Trial { quiet_sends: true, zero_copy_sends: false, bounded_receives: false };
        let known = OnceLock::new();
        assert!(matches!(agree(&known, Ok(trial)), Some(Ok(_))));
        assert!(agree(&known, Err(refusal())).is_none());
        assert!(matches!(agree(&known, Ok(trial)), Some(Ok(_))));
        // Nobody has a ring then, whatever the next one would find.
        let known = OnceLock::new();
        assert!(matches!(agree(&known, Err(refusal())), Some(Err(_))));
        assert!(matches!(agree(&known, Ok(trial)), Some(Err(_))));
    }
}
