//! Signals of the process, and the token that follows them. Each runs in a process of its own: a
//! handler stays for as long as its process lives.

use std::cell::Cell;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::pin::{Pin, pin};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use annulus::signal::{Kind, Signal, ctrl_c, terminate};
use annulus::time::{Duration, timeout};
use annulus::{Driver, Runtime, ShutdownToken};

use common::process::{
    self, READY, Running, descriptor_limit, leave_descriptors, open_descriptors, resident_bytes,
    set_descriptor_limit,
};
use common::steps::{poll_once, settle};
use common::{each_driver, say};

mod common;

each_driver! {
    fn the_first_signal_asks_to_end_and_the_second_tells_to(driver: Driver) {
        for [first, second] in [[libc::SIGINT, libc::SIGTERM], [libc::SIGTERM, libc::SIGTERM]] {
            let mut child = Running::start(role("role_follows_signals", driver));
            child.line_after(READY);
            child.signal(first);
            child.line_after("@requested");
            child.signal(second);
            child.line_after("@forced");
            expect_success(child);
        }
    }

    fn two_signals_that_come_at_once_force(driver: Driver) {
        play("role_gets_two_signals_at_once", driver);
    }

    fn the_default_action_holds_until_signals_are_used(driver: Driver) {
        let mut child = Running::start(role("role_uses_no_signals", driver));
        child.line_after(READY);
        child.signal(libc::SIGTERM);
        let (status, output, errors) = child.finish();
        assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}: {output}{errors}");
    }

    fn a_signal_before_the_first_poll_is_not_lost(driver: Driver) {
        play("role_polls_late", driver);
    }

    fn each_waiter_sees_what_came_after_it_was_made(driver: Driver) {
        play("role_makes_waiters_between_signals", driver);
    }

    fn a_dropped_recv_loses_no_signal(driver: Driver) {
        play("role_drops_recvs", driver);
    }

    fn one_signal_wakes_all_waiters_of_all_runtimes(driver: Driver) {
        play("role_waits_on_many_threads", driver);
    }

    fn a_burst_harms_nobody_and_its_last_signal_is_seen(driver: Driver) {
        let mut child = Running::start(role("role_counts_a_burst", driver));
        child.line_after(READY);
        for _ in 0..2000 {
            child.signal(libc::SIGUSR1);
        }
        child.line_after("@seen");
        child.signal(libc::SIGTERM);
        expect_success(child);
    }

    #[alone]
    fn after_a_signal_nobody_is_busy(driver: Driver) {
        play("role_idles_after_a_signal", driver);
    }

    #[alone]
    fn dropped_waiters_and_tokens_leave_nothing(driver: Driver) {
        play("role_drops_waiters_and_tokens", driver);
    }

    fn no_descriptor_left_is_an_error_and_the_next_call_tries_again(driver: Driver) {
        play("role_has_no_descriptors", driver);
    }

    fn no_thread_is_an_error_that_leaves_nothing_behind(driver: Driver) {
        let mut role = role("role_has_no_threads", driver);
        let calls = [libc::SYS_clone, libc::SYS_clone3].map(|call| (call as u32, libc::EAGAIN));
        process::refuse(&mut role, &calls);
        expect_success(Running::start(role));
    }
}

#[test]
fn a_token_follows_signals_without_a_runtime() {
    common::Test::named("a_token_follows_signals_without_a_runtime").plain(|| {
        expect_success(Running::start(process::role("role_has_no_runtime")));
    });
}

#[test]
fn role_follows_signals() {
    in_runtime(async || {
        let token = ShutdownToken::on_signals().unwrap();
        println!("{READY}");
        token.requested().await;
        assert!(!token.is_forced());
        println!("@requested");
        token.forced().await;
        println!("@forced");
    });
}

#[test]
fn role_gets_two_signals_at_once() {
    in_runtime(async || {
        let token = ShutdownToken::on_signals().unwrap();
        raise(Kind::Interrupt);
        raise(Kind::Interrupt);
        token.forced().await;
        assert!(token.is_requested());
        // Beyond the last level there is nothing.
        raise(Kind::Terminate);
        settle().await;
    });
}

#[test]
fn role_uses_no_signals() {
    in_runtime(async || {
        println!("{READY}");
        std::future::pending::<()>().await;
    });
}

#[test]
fn role_polls_late() {
    in_runtime(async || {
        let (interrupted, terminated) = (ctrl_c(), terminate());
        raise(Kind::Interrupt);
        settle().await;
        interrupted.await.unwrap();
        let mut terminated = pin!(terminated);
        assert!(poll_once(terminated.as_mut()).await.is_pending(), "SIGINT passed for SIGTERM");
        raise(Kind::Terminate);
        terminated.await.unwrap();
    });
}

#[test]
fn role_makes_waiters_between_signals() {
    in_runtime(async || {
        let mut before = Signal::new(Kind::Hangup).unwrap();
        raise(Kind::Hangup);
        let mut after = Signal::new(Kind::Hangup).unwrap();
        before.recv().await;
        settle().await;
        assert!(poll_once(pin!(after.recv())).await.is_pending(), "it came before the waiter");
        raise(Kind::Hangup);
        before.recv().await;
        after.recv().await;
        assert!(poll_once(pin!(before.recv())).await.is_pending(), "one signal was seen twice");
    });
}

#[test]
fn role_drops_recvs() {
    in_runtime(async || {
        let mut signal = Signal::new(Kind::User2).unwrap();
        timeout(Duration::from_millis(1), signal.recv()).await.unwrap_err();
        raise(Kind::User2);
        signal.recv().await;
        {
            let mut woken_and_dropped = pin!(signal.recv());
            assert!(poll_once(woken_and_dropped.as_mut()).await.is_pending());
            raise(Kind::User2);
            settle().await;
        }
        signal.recv().await;
        // It belongs to no runtime.
        raise(Kind::User2);
        let elsewhere = move || Runtime::new().unwrap().block_on(async { signal.recv().await });
        thread::spawn(elsewhere).join().unwrap();
    });
}

#[test]
fn role_waits_on_many_threads() {
    const THREADS: usize = 4;
    const WAITERS: usize = 300;
    if !plays() {
        return;
    }
    let token = ShutdownToken::on_signals().unwrap();
    let waiting = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                Runtime::new().unwrap().block_on(async {
                    let waiters = Rc::new(Cell::new(0));
                    let mut tasks = Vec::new();
                    for number in 0..WAITERS {
                        let (waiters, token) = (Rc::clone(&waiters), token.clone());
                        tasks.push(annulus::spawn(async move {
                            let interrupted = ctrl_c();
                            waiters.set(waiters.get() + 1);
                            match number % 2 {
                                0 => interrupted.await.unwrap(),
                                _ => token.requested().await,
                            }
                        }));
                    }
                    while waiters.get() < WAITERS {
                        annulus::task::yield_now().await;
                    }
                    waiting.wait();
                    for task in tasks {
                        task.await.unwrap();
                    }
                });
            });
        }
        waiting.wait();
        raise(Kind::Interrupt);
    });
    assert_eq!(threads_named("annulus-signals"), 1);
}

#[test]
fn role_counts_a_burst() {
    in_runtime(async || {
        let mut terminated = pin!(terminate());
        let mut burst = Signal::new(Kind::User1).unwrap();
        println!("{READY}");
        burst.recv().await;
        println!("@seen");
        // A second burst from within, which ends only by its last signal.
        let over = Arc::new(AtomicBool::new(false));
        let last = Arc::clone(&over);
        let raising = thread::spawn(move || {
            for _ in 0..10_000 {
                raise(Kind::User1);
            }
            last.store(true, Ordering::Release);
            raise(Kind::User1);
        });
        while !over.load(Ordering::Acquire) {
            burst.recv().await;
        }
        raising.join().unwrap();
        terminated.as_mut().await.unwrap();
    });
}

#[test]
fn role_idles_after_a_signal() {
    in_runtime(async || {
        let mut signal = Signal::new(Kind::Interrupt).unwrap();
        raise(Kind::Interrupt);
        signal.recv().await;
        let before = process::cpu_ms();
        timeout(Duration::from_millis(500), signal.recv()).await.unwrap_err();
        let used = process::cpu_ms() - before;
        assert!(used < 100, "{used} ms of processor time for nothing");
    });
}

#[test]
fn role_drops_waiters_and_tokens() {
    in_runtime(async || {
        drop(ShutdownToken::on_signals().unwrap());
        let mut signal = Signal::new(Kind::Interrupt).unwrap();
        let count = Arc::new(Nobody);
        let waker = Waker::from(Arc::clone(&count));
        let rounds = |signal: &mut Signal| {
            for _ in 0..20_000 {
                let token = ShutdownToken::on_signals().unwrap();
                let mut requested = token.requested();
                let mut cx = Context::from_waker(&waker);
                assert!(Pin::new(&mut requested).poll(&mut cx).is_pending());
                assert!(pin!(signal.recv()).poll(&mut cx).is_pending());
                assert!(pin!(ctrl_c()).poll(&mut cx).is_pending());
            }
        };
        rounds(&mut signal);
        let (memory, descriptors) = (resident_bytes(), open_descriptors());
        rounds(&mut signal);
        assert_eq!(Arc::strong_count(&count), 2, "wakers were kept");
        assert_eq!(open_descriptors(), descriptors);
        let grown = resident_bytes().saturating_sub(memory);
        assert!(grown < 1 << 20, "20,000 tokens left {grown} bytes");
        assert_eq!(threads_named("annulus-signals"), 1);
        raise(Kind::Interrupt);
        signal.recv().await;
    });
}

#[test]
fn role_has_no_descriptors() {
    in_runtime(async || {
        let limit = descriptor_limit();
        leave_descriptors(0);
        let refused = [
            Signal::new(Kind::Interrupt).map(drop),
            ShutdownToken::on_signals().map(drop),
            ctrl_c().await,
            terminate().await,
        ];
        set_descriptor_limit(limit).unwrap();
        for refused in refused {
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EMFILE));
        }
        let token = ShutdownToken::on_signals().unwrap();
        raise(Kind::Interrupt);
        token.requested().await;
    });
}

#[test]
fn role_has_no_threads() {
    in_runtime(async || {
        let descriptors = open_descriptors();
        let refused = Signal::new(Kind::Interrupt).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WouldBlock, "{refused}");
        assert_eq!(open_descriptors(), descriptors);
    });
}

#[test]
fn role_has_no_runtime() {
    if !plays() {
        return;
    }
    let token = ShutdownToken::on_signals().unwrap();
    let waits = [token.requested(), token.forced()].map(|waiting| thread::spawn(|| block(waiting)));
    raise(Kind::Terminate);
    block(token.requested());
    raise(Kind::Interrupt);
    for wait in waits {
        wait.join().unwrap();
    }
}

struct Nobody;

impl Wake for Nobody {
    fn wake(self: Arc<Self>) {}
}

/// Blocks this thread, with nothing but the standard library.
fn block<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Whether this process plays a role. One that hangs ends, also when nobody is left to end it.
fn plays() -> bool {
    let plays = process::in_role();
    if plays {
        // SAFETY: alarm takes no pointer; nothing else here uses it.
        unsafe { libc::alarm(HANGS_S) };
    }
    plays
}

/// The body of a role, on the driver that the environment names.
fn in_runtime(body: impl AsyncFnOnce()) {
    if plays() {
        Runtime::new().expect("build a runtime").block_on(body());
    }
}

fn role(name: &str, driver: Driver) -> Command {
    let mut role = process::role(name);
    role.env("ANNULUS_DRIVER", driver.to_string());
    role
}

fn play(name: &str, driver: Driver) {
    expect_success(Running::start(role(name, driver)));
}

#[track_caller]
fn expect_success(mut child: Running) {
    let (status, output, errors) = child.finish();
    if !status.success() {
        say(&format!("{output}{errors}"));
    }
    assert!(status.success(), "{status}");
}

/// Sends this thread a signal, whose handler has run when this returns.
fn raise(kind: Kind) {
    // SAFETY: raise takes no pointer; a handler is installed.
    assert_eq!(unsafe { libc::raise(kind.number()) }, 0, "raise failed");
}

fn threads_named(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("read /proc/self/task");
    let named = |task: &fs::DirEntry| {
        // A thread may end meanwhile.
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    tasks.filter_map(Result::ok).filter(named).count()
}

/// Longer than a role takes, and shorter than its test may.
const HANGS_S: u32 = 25;
