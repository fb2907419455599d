//! What the test binaries share: the `each_driver!` macro with its watchdog, peers on threads of
//! their own, keyed bytes, and child processes.
//!
//! A test that hangs fails: a watchdog prints its name and aborts the process.

#![allow(dead_code, reason = "each test binary uses its own part of what is here")]

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use annulus::{Driver, Runtime};

pub(crate) mod asked;
pub(crate) mod bytes;
pub(crate) mod contract;
pub(crate) mod cut;
pub(crate) mod faults;
pub(crate) mod http;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod steps;
pub(crate) mod storm;

/// Makes a module with one test per driver from each function in it.
///
/// An `async fn name()` runs inside a runtime on that driver; a `fn name(driver: Driver)` builds
/// its own. `#[deadline_s(n)]` moves the watchdog; `#[alone]` keeps the other tests of the binary
/// away while it runs, for tests that count descriptors or memory.
macro_rules! each_driver {
    () => {};
    (
        $(#[$option:ident $(($value:expr))?])*
        async fn $name:ident() $body:block
        $($rest:tt)*
    ) => {
        async fn $name() $body
        each_driver! { @tests $name, block_on, $(#[$option $(($value))?])* }
        each_driver! { $($rest)* }
    };
    (
        $(#[$option:ident $(($value:expr))?])*
        fn $name:ident($driver:ident: Driver) $body:block
        $($rest:tt)*
    ) => {
        fn $name($driver: annulus::Driver) $body
        each_driver! { @tests $name, call, $(#[$option $(($value))?])* }
        each_driver! { $($rest)* }
    };
    (@tests $name:ident, $run:ident, $(#[$option:ident $(($value:expr))?])*) => {
        mod $name {
            #[test]
            fn uring() {
                crate::common::Test::named(concat!(stringify!($name), "::uring"))
                    $(.$option($($value)?))*
                    .$run(annulus::Driver::Uring, super::$name);
            }

            #[test]
            fn epoll() {
                crate::common::Test::named(concat!(stringify!($name), "::epoll"))
                    $(.$option($($value)?))*
                    .$run(annulus::Driver::Epoll, super::$name);
            }
        }
    };
}
pub(crate) use each_driver;

/// One run of one test on one driver.
pub(crate) struct Test {
    name: &'static str,
    deadline: Duration,
    alone: bool,
}

impl Test {
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, deadline: DEADLINE, alone: false }
    }

    /// Moves the time after which the watchdog takes the test for hung.
    pub(crate) fn deadline_s(mut self, seconds: u64) -> Self {
        self.deadline = Duration::from_secs(seconds);
        self
    }

    /// Lets no other test of this binary run meanwhile.
    pub(crate) fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Runs an async body on a runtime with this driver.
    pub(crate) fn block_on<F: Future<Output = ()>>(self, driver: Driver, body: fn() -> F) {
        self.guarded(driver, || {
            let runtime = runtime(driver);
            runtime.block_on(async {
                assert_eq!(
                    annulus::driver_info().driver(),
                    driver,
                    "the test runs on another driver than it asked for; is ANNULUS_DRIVER set?"
                );
                body().await;
            });
        });
    }

    /// Runs a body that builds its own runtimes with this driver.
    pub(crate) fn call(self, driver: Driver, body: fn(Driver)) {
        self.guarded(driver, || body(driver));
    }

    /// Runs a test that no driver has a part in.
    pub(crate) fn plain(self, body: fn()) {
        self.watched(body);
    }

    /// Runs a test that needs io_uring to be there, be it to have it refused.
    pub(crate) fn with_uring(self, body: fn()) {
        self.guarded(Driver::Uring, body);
    }

    fn guarded(self, driver: Driver, body: impl FnOnce()) {
        if driver == Driver::Uring && uring_left_out() {
            return leave_out(self.name, &format!("{NO_URING}=1 is set"));
        }
        self.watched(body);
    }

    fn watched(self, body: impl FnOnce()) {
        process::raise_descriptor_limit();
        storm::start_if_asked();
        // Waiting for the turn is no part of the test's time.
        let _turn = Turn::take(self.alone);
        let _watchdog = Watchdog::start(self.name, self.deadline * slower());
        body();
    }
}

/// A runtime on this driver; the test fails where the kernel refuses it.
pub(crate) fn runtime(driver: Driver) -> Runtime {
    match Runtime::builder().driver(driver).build() {
        Ok(runtime) => runtime,
        Err(error) => panic!(
            "no runtime on {driver:?}: {error}\n\
             (where io_uring cannot be had, set {NO_URING}=1 to leave its tests out)"
        ),
    }
}

/// Whether the user told us that there is no io_uring on this machine.
pub(crate) fn uring_left_out() -> bool {
    asked::is_on(NO_URING)
}

/// How many times longer everything takes than on an ordinary machine, as under emulation. Times
/// after which a test is taken for hung are multiplied by it, and some that tell soon from late.
pub(crate) fn slower() -> u32 {
    asked::number(SLOWER, 1).unwrap_or(1)
}

/// Says that a test does nothing, and why, in words that `.ci/kernels` counts.
pub(crate) fn leave_out(test: &str, why: &str) {
    say(&format!("{test}: left out, {why}"));
}

/// Says which part of a test is not done, and why.
pub(crate) fn leave_out_part(test: &str, why: &str) {
    say(&format!("{test}: partly left out, {why}"));
}

/// Writes a line that the test harness does not capture.
pub(crate) fn say(line: &str) {
    // A closed stderr is no reason to fail a test.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The right to run: shared by most tests, exclusive for those that count.
enum Turn {
    Shared { _guard: std::sync::RwLockReadGuard<'static, ()> },
    Alone { _guard: std::sync::RwLockWriteGuard<'static, ()> },
}

impl Turn {
    fn take(alone: bool) -> Self {
        // A failed test poisons the lock, which guards no data.
        if alone {
            Self::Alone { _guard: TURN.write().unwrap_or_else(PoisonError::into_inner) }
        } else {
            Self::Shared { _guard: TURN.read().unwrap_or_else(PoisonError::into_inner) }
        }
    }
}

/// Aborts the process when its test is not over in time.
struct Watchdog {
    // Dropped at the end of the test, which the watching thread sees as a disconnect.
    _running: Sender<()>,
}

impl Watchdog {
    fn start(name: &'static str, deadline: Duration) -> Self {
        let (running, over) = channel();
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || Self::watch(name, deadline, &over))
            .expect("spawn the watchdog");
        Self { _running: running }
    }

    fn watch(name: &str, deadline: Duration, over: &Receiver<()>) {
        if over.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
            say(&format!("watchdog: {name} still runs after {deadline:?}, so it hangs; aborting"));
            std::process::abort();
        }
    }
}

static TURN: RwLock<()> = RwLock::new(());

// Long enough for every ordinary test in a debug build on a loaded two-core machine.
const DEADLINE: Duration = Duration::from_secs(30);
const NO_URING: &str = "ANNULUS_TEST_NO_URING";
const SLOWER: &str = "ANNULUS_TEST_SLOWER";
