//! Every limit of the runtime by name, with its default, its range and the reason for both.
//!
//! The builder fills a [`Config`]; the environment of the process overrides it; what then stands
//! outside its range is an error that names the setting, the value and what is allowed. The pool of
//! blocking threads, which belongs to the process and to no runtime, names its own in `blocking`.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// Which side of the kernel the shards talk to.
///
/// ```
/// use annulus_runtime::Driver;
///
/// assert_eq!("epoll".parse::<Driver>()?, Driver::Epoll);
/// assert_eq!(Driver::Uring.to_string(), "uring");
/// # Ok::<(), annulus_runtime::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Driver {
    /// io_uring where the kernel offers it and nothing forbids it, else epoll with a notice that
    /// says why.
    ///
    /// What the kernel can do is decided once per process. Locked memory is asked for by each
    /// runtime: one that finds none left runs on epoll beside others on io_uring, and its
    /// [`DriverInfo`](crate::DriverInfo) says so.
    #[default]
    Auto,
    /// io_uring, or an error that says what refused it and what to do about it.
    Uring,
    /// epoll, also where io_uring is there.
    Epoll,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

impl FromStr for Driver {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        driver_named(text).ok_or_else(|| ConfigError::new(format!("driver {text:?}"), DRIVERS))
    }
}

const DRIVERS: &str = "auto, uring or epoll";

fn driver_named(text: &str) -> Option<Driver> {
    [Driver::Auto, Driver::Uring, Driver::Epoll].into_iter().find(|it| it.to_string() == text)
}

/// What a runtime is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) driver: Driver,

    /// Threads, each with all of the following of its own. None: as many as can run at a time.
    pub(crate) shards: Option<u32>,

    /// Whether shards are bound to processors. None: those on threads of ours.
    pub(crate) pin: Option<bool>,

    /// Submissions that wait for the next `io_uring_enter`. A full queue is flushed and filled
    /// again, so this bounds memory and not what is in flight; batches gain little past 32.
    pub(crate) ring_entries: u32,

    /// Completions that wait to be reaped. Multishot operations complete without being submitted
    /// again, so these outnumber the submissions: 4096 let each of a thousand streams complete
    /// four times between two turns before the kernel must keep some aside. With 256 submissions
    /// and the pool they lock 100 KiB; a user's processes may often lock 8 MiB in all.
    pub(crate) ring_completions: u32,

    /// Receive buffers that all streams of a shard share. Idle streams hold none, so 1024 serve
    /// as many streams as have unread bytes at one time; past that, reads use their own memory.
    pub(crate) recv_pool_buffers: u32,

    /// Size of one such buffer: a page, most requests in one piece. 1024 of them are 4 MiB for a
    /// shard, touched only as they are used.
    pub(crate) recv_pool_buffer_bytes: u32,

    /// Task polls between two looks at the ring, the timers and the mailbox, and so the most that
    /// one turn runs: bounds how long I/O waits behind a full run queue.
    pub(crate) event_interval: u32,

    /// Operations that one task may finish in one poll before it lets the others run: bounds what
    /// a stream that is always ready takes from its neighbours.
    pub(crate) task_budget: u32,

    /// How long a shard looks for work without a system call before it sleeps. Off: an idle
    /// runtime is silent.
    pub(crate) spin: Duration,

    /// How long something may hold a shard before that is reported. Zero: nobody looks.
    pub(crate) stall: Duration,

    /// The most that the end of a runtime waits for unsent bytes to leave and for the kernel to
    /// give back what it was lent. What is not back by then is leaked, never freed.
    pub(crate) drain_timeout: Duration,

    /// The clock stands still while anything can run. For tests.
    pub(crate) start_paused: bool,
}

/// How long tasks run, all together, before sockets, timers and the mailbox are looked at, however
/// few polls that were. A turn's own work takes some microseconds, so that less would cost much for
/// little; and no event waits for more than this and one poll.
pub(crate) const RUN_TIME_MAX: Duration = Duration::from_millis(1);

/// The bounds of listeners and streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Received bytes that a stream holds before anyone reads them; then the kernel's flow
    /// control holds the peer. 64 KiB is a full default socket window: a reader that comes late
    /// finds work, a peer that floods cannot take the pool.
    pub recv_queue_bytes_max: usize,
    /// Written bytes that a stream holds before the kernel took them; then `write` waits. The
    /// same measure as for receiving: one window in flight, one being filled.
    pub unsent_bytes_max: usize,
    /// Writes up to this size are copied and leave in one send per stream and turn; larger ones
    /// leave at once from the caller's memory. Copying 8 KiB costs less than the send it saves.
    pub small_write_bytes_max: usize,
    /// A read that must bring at least this much receives straight into the caller's memory, past
    /// the pool; so does a stream that keeps bringing this much without a pause. Below, a copy
    /// costs less than the second system call.
    pub direct_recv_bytes_min: usize,
    /// Buffers that are handed over to be sent are copied up to this size, to leave with the
    /// stream's other small writes; larger ones are sent from where they lie.
    pub copied_send_bytes_max: usize,
    /// A zero-copy send of less is an ordinary one: the kernel's notice costs more than the copy.
    pub zero_copy_bytes_min: usize,
    /// Connections that wait in the kernel before a listener takes them; then clients have to
    /// try again. As many as the listener holds itself. The sysctl `net.core.somaxconn` cuts it.
    pub backlog: u32,
    /// Accepted connections that a listener holds before anyone takes them; then the kernel's
    /// backlog holds the rest. Each is a descriptor, and 1024 is the usual limit of a process.
    pub accept_queue_max: usize,
    /// Datagrams that a socket holds before anyone takes them; then the socket's own buffer holds
    /// the rest (`SO_RCVBUF`). A quarter of the pool, so that one socket that nobody reads leaves
    /// most of it to the others.
    pub datagram_queue_max: usize,
    /// How often a listener without descriptors reports so, and tries again.
    pub accept_error_interval: Duration,
}

/// Pieces of mail that a shard takes in one turn: with some 50 ns for each that is about as long as
/// the tasks of a turn take. The rest waits for the next, behind a look at sockets and timers.
pub(crate) const MAIL_PER_TURN_MAX: usize = 1024;

/// Memory of ended tasks that a shard keeps for new ones: 2,000 small tasks, or as many of 512
/// bytes as may come and go in a turn or two.
pub(crate) const SPARE_TASKS_BYTES_MAX: usize = 256 << 10;

/// Tasks that are larger than this are left to the allocator, whose part in what they cost is
/// small.
pub(crate) const SPARE_TASK_BYTES_MAX: usize = 2 << 10;

/// Buffers that all datagram sockets of a shard share: twice what one visit of the kernel receives
/// for a socket (32, `MULTISHOT_MAX_RETRY`). Past that, receives use their own memory.
pub(crate) const DATAGRAM_BUFFERS: u16 = 64;

/// Size of one such buffer: the largest datagram, or batch of datagrams, is 64 KiB, and what comes
/// with it has a page. The pages that a small datagram leaves alone cost nothing.
pub(crate) const DATAGRAM_BUFFER_BYTES: u32 = 68 * 1024;

/// The bounds that hold for every socket.
pub const LIMITS: Limits = Limits {
    recv_queue_bytes_max: 64 * 1024,
    unsent_bytes_max: 64 * 1024,
    small_write_bytes_max: 8 * 1024,
    direct_recv_bytes_min: 16 * 1024,
    copied_send_bytes_max: 1024,
    zero_copy_bytes_min: 16 * 1024,
    backlog: 1024,
    accept_queue_max: 1024,
    datagram_queue_max: 16,
    accept_error_interval: Duration::from_millis(100),
};

impl Default for Config {
    fn default() -> Self {
        Self {
            driver: Driver::Auto,
            shards: None,
            pin: None,
            ring_entries: 256,
            ring_completions: 4096,
            recv_pool_buffers: 1024,
            recv_pool_buffer_bytes: 4096,
            event_interval: 64,
            task_budget: 128,
            spin: Duration::ZERO,
            stall: Duration::ZERO,
            drain_timeout: Duration::from_secs(1),
            start_paused: false,
        }
    }
}

/// As many processors as a set of them has bits for (`cpu_set_t`).
const SHARDS: RangeInclusive<u32> = 1..=1024;
/// The kernel's own bound on a ring.
const RING_ENTRIES: RangeInclusive<u32> = 1..=32_768;
/// The kernel's bound on the completions of a ring.
const RING_COMPLETIONS: RangeInclusive<u32> = 1..=65_536;
/// The kernel's bound on a ring of buffers, whose names have 16 bits.
const RECV_POOL_BUFFERS: RangeInclusive<u32> = 1..=32_768;
/// Below, a buffer costs more than it carries; above, one slow reader pins too much.
const RECV_POOL_BUFFER_BYTES: RangeInclusive<u32> = 256..=1_048_576;
/// The pool of one shard as a whole.
const RECV_POOL_BYTES_MAX: u64 = 1 << 30;
/// Buffers start on cache lines of their own.
const RECV_POOL_BUFFER_ALIGN: u32 = 64;
/// Zero would never run a task; past the upper end I/O would wait for milliseconds.
const EVENT_INTERVAL: RangeInclusive<u32> = 1..=65_536;
/// In microseconds. A whole second of spinning is a way to burn a processor, not to save a wake.
const SPIN_US: RangeInclusive<u64> = 0..=1_000_000;
/// In milliseconds; 0 is off. Less is what a busy machine does to every thread, and whatever holds
/// a shard for a minute has been noticed long before.
const STALL_MS: RangeInclusive<u64> = 0..=60_000;

/// What the environment may say, each by the name of its variable.
pub(crate) const VARIABLES: [&str; 5] = [
    "ANNULUS_DRIVER",
    "ANNULUS_SHARDS",
    "ANNULUS_RING_ENTRIES",
    "ANNULUS_SPIN_US",
    "ANNULUS_STALL_MS",
];

impl Config {
    /// This configuration with the environment of the process over it, checked.
    ///
    /// The [`VARIABLES`] win over the builder: who runs a program knows its machine, who wrote it
    /// does not.
    pub(crate) fn with_environment(self) -> Result<Self, ConfigError> {
        self.with_variables(|name| std::env::var_os(name))
    }

    pub(crate) fn with_variables(
        mut self,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        // The builder's own values first: an override hides no mistake in the program.
        self = self.checked()?;
        let read = |name: &'static str| {
            debug_assert!(VARIABLES.contains(&name), "{name} is not in the list");
            variable(name).map(|value| Variable { name, value })
        };
        if let Some(variable) = read("ANNULUS_DRIVER") {
            self.driver = variable.driver()?;
        }
        if let Some(variable) = read("ANNULUS_SHARDS") {
            self.shards = Some(variable.whole_number(SHARDS)?);
        }
        if let Some(variable) = read("ANNULUS_RING_ENTRIES") {
            self.ring_entries = variable.whole_number(RING_ENTRIES)?;
        }
        if let Some(variable) = read("ANNULUS_SPIN_US") {
            self.spin = Duration::from_micros(variable.whole_number(SPIN_US)?);
        }
        if let Some(variable) = read("ANNULUS_STALL_MS") {
            self.stall = Duration::from_millis(variable.whole_number(STALL_MS)?);
        }
        self.checked()
    }

    /// Refuses what is out of range and rounds up what the kernel would round up: rings and pools
    /// to powers of two, completions to twice the submissions, buffers to whole cache lines.
    fn checked(mut self) -> Result<Self, ConfigError> {
        let pool = format!(
            "Builder::recv_pool({}, {})",
            self.recv_pool_buffers, self.recv_pool_buffer_bytes
        );
        if let Some(shards) = self.shards {
            in_range("Builder::shards", shards, SHARDS)?;
        }
        in_range("Builder::ring_entries", self.ring_entries, RING_ENTRIES)?;
        in_range("Builder::ring_completions", self.ring_completions, RING_COMPLETIONS)?;
        in_range("Builder::event_interval", self.event_interval, EVENT_INTERVAL)?;
        if !SPIN_US.contains(&u64::try_from(self.spin.as_micros()).unwrap_or(u64::MAX)) {
            let expected = format!("at most {:?}", Duration::from_micros(*SPIN_US.end()));
            return Err(ConfigError::new(format!("Builder::spin({:?})", self.spin), expected));
        }
        let stall_max = Duration::from_millis(*STALL_MS.end());
        let is_brief = !self.stall.is_zero() && self.stall < Duration::from_millis(1);
        if is_brief || self.stall > stall_max {
            let expected = format!("zero, or 1ms to {stall_max:?}");
            return Err(ConfigError::new(format!("Builder::stall({:?})", self.stall), expected));
        }
        if !RECV_POOL_BUFFERS.contains(&self.recv_pool_buffers)
            || !RECV_POOL_BUFFER_BYTES.contains(&self.recv_pool_buffer_bytes)
        {
            let expected = format!(
                "{} to {} buffers of {} to {} bytes",
                RECV_POOL_BUFFERS.start(),
                RECV_POOL_BUFFERS.end(),
                RECV_POOL_BUFFER_BYTES.start(),
                RECV_POOL_BUFFER_BYTES.end()
            );
            return Err(ConfigError::new(pool, expected));
        }

        self.ring_entries = self.ring_entries.next_power_of_two();
        self.ring_completions =
            self.ring_completions.max(2 * self.ring_entries).next_power_of_two();
        self.recv_pool_buffers = self.recv_pool_buffers.next_power_of_two();
        self.recv_pool_buffer_bytes =
            self.recv_pool_buffer_bytes.next_multiple_of(RECV_POOL_BUFFER_ALIGN);
        if u64::from(self.recv_pool_buffers) * u64::from(self.recv_pool_buffer_bytes)
            > RECV_POOL_BYTES_MAX
        {
            let expected = format!("at most {RECV_POOL_BYTES_MAX} bytes in all for a shard");
            return Err(ConfigError::new(pool, expected));
        }
        Ok(self)
    }

    /// What the ring counts against the limit on locked memory.
    ///
    /// Entries, completions with their header, and the ring of buffers, each in whole pages; the
    /// buffers themselves do not count. Agrees with what Linux 6.18 charges, to 1 KiB.
    pub(crate) fn locked_bytes(&self) -> u64 {
        const SUBMISSION_BYTES: u64 = 64;
        const COMPLETION_BYTES: u64 = 16;
        const BUFFER_ENTRY_BYTES: u64 = 16;
        const HEADER_BYTES: u64 = 64;
        let pages = |bytes: u64| bytes.next_multiple_of(4096);
        pages(SUBMISSION_BYTES * u64::from(self.ring_entries))
            + pages(HEADER_BYTES + COMPLETION_BYTES * u64::from(self.ring_completions))
            + pages(BUFFER_ENTRY_BYTES * u64::from(self.recv_pool_buffers))
    }
}

fn in_range<T>(setting: &str, value: T, range: RangeInclusive<T>) -> Result<(), ConfigError>
where
    T: PartialOrd + fmt::Display,
{
    if range.contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(format!("{setting}({value})"), whole_number_in(&range)))
}

fn whole_number_in<T: fmt::Display>(range: &RangeInclusive<T>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

/// A variable of the environment that is set. An empty one is set, too.
struct Variable {
    name: &'static str,
    value: OsString,
}

impl Variable {
    fn driver(&self) -> Result<Driver, ConfigError> {
        self.value.to_str().and_then(driver_named).ok_or_else(|| self.refused(DRIVERS))
    }

    fn whole_number<T>(&self, range: RangeInclusive<T>) -> Result<T, ConfigError>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let number = self.value.to_str().and_then(|text| text.parse().ok());
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.refused(whole_number_in(&range)))
    }

    fn refused(&self, expected: impl Into<String>) -> ConfigError {
        ConfigError::new(format!("{}={:?}", self.name, self.value), expected)
    }
}

/// A setting, of the builder or of the environment, that cannot be used.
///
/// Its text names the setting, the value and what is allowed:
/// `ANNULUS_RING_ENTRIES="many" cannot be used: expected a whole number from 1 to 32768`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The setting with its value, as the user wrote it.
    setting: String,
    expected: String,
}

impl ConfigError {
    fn new(setting: String, expected: impl Into<String>) -> Self {
        Self { setting, expected: expected.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be used: expected {}", self.setting, self.expected)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::default().with_variables(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    fn refusal(config: Config) -> String {
        config.with_variables(|_| None).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_in_range_and_already_rounded() {
        assert_eq!(with(&[]), Ok(Config::default()));
    }

    #[test]
    fn every_variable_of_the_list_is_read() {
        for name in VARIABLES {
            let text = with(&[(name, "?")]).unwrap_err().to_string();
            assert!(text.starts_with(&format!("{name}=\"?\" cannot be used")), "{text}");
        }
    }

    #[test]
    fn the_environment_overrides_the_builder() {
        let built = Config { driver: Driver::Uring, event_interval: 3, ..Config::default() };
        let found = built.with_variables(|name| match name {
            "ANNULUS_DRIVER" => Some("epoll".into()),
            "ANNULUS_RING_ENTRIES" => Some("512".into()),
            "ANNULUS_SPIN_US" => Some("50".into()),
            "ANNULUS_STALL_MS" => Some("250".into()),
            _ => None,
        });
        let found = found.unwrap();
        assert_eq!(found.driver, Driver::Epoll);
        assert_eq!(found.event_interval, 3);
        assert_eq!(found.ring_entries, 512);
        assert_eq!(found.spin, Duration::from_micros(50));
        assert_eq!(found.stall, Duration::from_millis(250));
        let off = Config { stall: Duration::from_secs(1), ..Config::default() };
        let off = off.with_variables(|it| (it == "ANNULUS_STALL_MS").then(|| "0".into()));
        assert_eq!(off.unwrap().stall, Duration::ZERO);
    }

    #[test]
    fn an_unusable_variable_is_named_with_its_value_and_what_is_allowed() {
        let cases = [
            ("ANNULUS_DRIVER", "kqueue", "auto, uring or epoll"),
            ("ANNULUS_DRIVER", "", "auto, uring or epoll"),
            ("ANNULUS_DRIVER", "Uring", "auto, uring or epoll"),
            ("ANNULUS_RING_ENTRIES", "two", "a whole number from 1 to 32768"),
            ("ANNULUS_RING_ENTRIES", "0", "a whole number from 1 to 32768"),
            ("ANNULUS_RING_ENTRIES", "32769", "a whole number from 1 to 32768"),
            ("ANNULUS_RING_ENTRIES", "99999999999999999999", "a whole number from 1 to 32768"),
            ("ANNULUS_SPIN_US", "-1", "a whole number from 0 to 1000000"),
            ("ANNULUS_SPIN_US", "10us", "a whole number from 0 to 1000000"),
            ("ANNULUS_STALL_MS", "60001", "a whole number from 0 to 60000"),
            ("ANNULUS_STALL_MS", "1.5", "a whole number from 0 to 60000"),
        ];
        for (name, value, expected) in cases {
            let text = with(&[(name, value)]).unwrap_err().to_string();
            assert_eq!(text, format!("{name}={value:?} cannot be used: expected {expected}"));
        }
    }

    #[test]
    fn a_variable_that_is_not_text_is_refused() {
        let broken = || OsString::from_vec(vec![b'2', 0xff]);
        for name in ["ANNULUS_DRIVER", "ANNULUS_RING_ENTRIES"] {
            let found = Config::default().with_variables(|it| (it == name).then(broken));
            let text = found.unwrap_err().to_string();
            assert!(text.starts_with(&format!("{name}=\"2\\xFF\"")), "{text}");
        }
    }

    #[test]
    fn the_builder_is_held_to_the_same_ranges() {
        let entries = refusal(Config { ring_entries: 32_769, ..Config::default() });
        assert!(entries.starts_with("Builder::ring_entries(32769)"), "{entries}");
        let completions = refusal(Config { ring_completions: 0, ..Config::default() });
        assert!(completions.starts_with("Builder::ring_completions(0)"), "{completions}");
        let interval = refusal(Config { event_interval: 0, ..Config::default() });
        assert!(interval.starts_with("Builder::event_interval(0)"), "{interval}");
        let spin = refusal(Config { spin: Duration::MAX, ..Config::default() });
        assert!(spin.ends_with("expected at most 1s"), "{spin}");
        for limit in [Duration::from_nanos(999_999), Duration::from_millis(60_001)] {
            let stall = refusal(Config { stall: limit, ..Config::default() });
            assert!(stall.ends_with("expected zero, or 1ms to 60s"), "{stall}");
        }
    }

    #[test]
    fn an_override_hides_no_mistake_of_the_builder() {
        let built = Config { ring_entries: 0, ..Config::default() };
        let found = built.with_variables(|it| (it == "ANNULUS_RING_ENTRIES").then(|| "2".into()));
        assert!(found.is_err());
    }

    #[test]
    fn a_pool_of_no_buffers_too_many_or_too_much_memory_is_refused() {
        for (buffers, bytes) in [(0, 4096), (32_769, 4096), (1024, 0), (1024, 255), (1, 1_048_577)]
        {
            let text = refusal(Config {
                recv_pool_buffers: buffers,
                recv_pool_buffer_bytes: bytes,
                ..Config::default()
            });
            let start = format!("Builder::recv_pool({buffers}, {bytes}) cannot be used");
            assert!(text.starts_with(&start), "{text}");
            assert!(text.ends_with("1 to 32768 buffers of 256 to 1048576 bytes"), "{text}");
        }
        let whole = Config {
            recv_pool_buffers: 32_768,
            recv_pool_buffer_bytes: 65_536,
            ..Config::default()
        };
        assert!(refusal(whole).ends_with("at most 1073741824 bytes in all for a shard"));
    }

    #[test]
    fn sizes_are_rounded_up_as_the_kernel_wants_them() {
        let built = Config {
            ring_entries: 3000,
            recv_pool_buffers: 1000,
            recv_pool_buffer_bytes: 1500,
            ..Config::default()
        };
        let found = built.with_variables(|_| None).unwrap();
        assert_eq!(found.ring_entries, 4096);
        assert_eq!(found.ring_completions, 8192);
        assert_eq!(found.recv_pool_buffers, 1024);
        assert_eq!(found.recv_pool_buffer_bytes, 1536);

        let largest = with(&[("ANNULUS_RING_ENTRIES", "32768")]).unwrap();
        assert_eq!(largest.ring_completions, *RING_COMPLETIONS.end());
    }

    #[test]
    fn locked_memory_is_what_the_kernel_was_seen_to_charge() {
        for (entries, completions, buffers, kib) in
            [(64, 512, 256, 20), (128, 1024, 256, 32), (256, 4096, 512, 92), (256, 4096, 1024, 100)]
        {
            let config = Config {
                ring_entries: entries,
                ring_completions: completions,
                recv_pool_buffers: buffers,
                ..Config::default()
            };
            assert_eq!(config.locked_bytes(), kib * 1024, "{entries}/{completions}");
        }
    }

    #[test]
    fn drivers_are_read_as_they_are_printed() {
        for driver in [Driver::Auto, Driver::Uring, Driver::Epoll] {
            assert_eq!(driver.to_string().parse(), Ok(driver));
        }
        let text = "io_uring".parse::<Driver>().unwrap_err().to_string();
        assert_eq!(text, "driver \"io_uring\" cannot be used: expected auto, uring or epoll");
    }
}
