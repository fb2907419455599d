//! What the doctor says where all is well, and where io_uring is forbidden, filtered or short of
//! memory: each in words of its own, and with what to do.

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::process::Command;

use annulus::Driver;

use common::process::{
    self, IO_URING_SETUP, READY, Running, Scratch, is_root, open_descriptors, refuse, unprivileged,
};
use common::{Test, each_driver, leave_out, say};

mod common;

/// What only the report of this situation says.
const ALL_IS_WELL: &str = "\nall is well\n";
const SYSCTL: &str = "the sysctl kernel.io_uring_disabled is 1";
const SECCOMP: &str = "a seccomp filter forbids it";
const MEMLOCK: &str = "RLIMIT_MEMLOCK";
const SITUATIONS: [&str; 4] = [ALL_IS_WELL, SYSCTL, SECCOMP, MEMLOCK];

#[test]
fn where_all_is_well_it_says_so_and_ends_with_success() {
    Test::named("where_all_is_well_it_says_so").with_uring(|| {
        let (status, report) = report_of(doctor());
        assert_eq!(status, 0, "{report}");
        tells(&report, ALL_IS_WELL, &["run on   io_uring", "works, with 256 entries"]);
        // Every line of the columns has a value.
        assert!(!report.lines().any(|line| line.ends_with(' ')), "{report}");
    });
}

#[test]
fn a_seccomp_filter_is_told_with_what_to_do() {
    Test::named("a_seccomp_filter_is_told_with_what_to_do").with_uring(|| {
        let mut command = doctor();
        refuse(&mut command, &[(IO_URING_SETUP, libc::EPERM)]);
        let (status, report) = report_of(command);
        assert_eq!(status, 1, "{report}");
        let parts = [
            "run on   epoll (io_uring_setup was refused with EPERM (seccomp filter))",
            "seccomp                a filter is set",
            "what to do\n  - no io_uring: io_uring_setup was refused with EPERM",
            "run with a profile that allows io_uring_setup",
        ];
        tells(&report, SECCOMP, &parts);
    });
}

#[test]
fn a_sysctl_is_told_with_what_to_do() {
    Test::named("a_sysctl_is_told_with_what_to_do").alone().with_uring(|| {
        let scratch = Scratch::new();
        let mut command = doctor_at(&scratch);
        // More than the ring needs: memory is not what is missing.
        unprivileged(&mut command, 8 << 20);
        let Some(forbidden) = Forbidden::to_the_unprivileged() else { return };
        let (status, report) = report_of(command);
        drop(forbidden);
        assert_eq!(status, 1, "{report}");
        let parts = [
            "run on   epoll (io_uring_setup was refused with EPERM (kernel.io_uring_disabled is",
            "io_uring_disabled      1, allowed to kernel.io_uring_group and the privileged",
            "what to do\n  - no io_uring",
            "set the sysctl to 0",
        ];
        tells(&report, SYSCTL, &parts);
    });
}

#[test]
fn little_lockable_memory_is_told_with_how_much_is_needed() {
    Test::named("little_lockable_memory_is_told").alone().with_uring(|| {
        let scratch = Scratch::new();
        let mut command = doctor_at(&scratch);
        unprivileged(&mut command, 64 << 10);
        let (status, report) = report_of(command);
        if !process::rings_are_counted() {
            assert_eq!(status, 0, "{report}");
            return tells(&report, ALL_IS_WELL, &["a ring locks           nothing (Linux "]);
        }
        let parts = [
            "locked memory          64 KiB (hard limit 64 KiB)",
            "a ring locks           100 KiB: this user may have 0 such rings",
            "what to do",
            "ulimit -l",
        ];
        tells(&report, MEMLOCK, &parts);
        // Whether a small ring fits depends on what else this user has locked just now.
        let found = match status {
            0 => "locked memory is short: the ring has ",
            _ => "run on   epoll (io_uring_setup was refused with ENOMEM (locked memory",
        };
        assert!(report.contains(found), "{found:?} is missing in:\n{report}");
    });
}

#[test]
fn a_variable_that_cannot_be_used_is_an_error_of_the_report_and_no_panic() {
    Test::named("a_variable_that_cannot_be_used_is_an_error_of_the_report").with_uring(|| {
        let mut command = doctor();
        command.env("ANNULUS_RING_ENTRIES", "many").env("ANNULUS_SPIN_US", "5");
        let (status, report) = report_of(command);
        assert_eq!(status, 2, "{report}");
        for part in [
            "no runtime               ANNULUS_RING_ENTRIES=\"many\" cannot be used",
            "ANNULUS_RING_ENTRIES   \"many\" cannot be used\n",
            "ANNULUS_SPIN_US        \"5\"\n",
            "- ANNULUS_RING_ENTRIES=\"many\" cannot be used: expected a whole number",
            // The rest of the report is that of the defaults.
            "works, with 256 entries",
        ] {
            assert!(report.contains(part), "{part:?} is missing in:\n{report}");
        }
    });
}

#[test]
fn who_asks_for_epoll_gets_it_and_no_advice_on_io_uring() {
    Test::named("who_asks_for_epoll_gets_it").plain(|| {
        let mut command = doctor();
        command.env("ANNULUS_DRIVER", "epoll");
        refuse(&mut command, &[(IO_URING_SETUP, libc::EPERM)]);
        let (status, report) = report_of(command);
        assert_eq!(status, 1, "{report}");
        assert!(report.contains("run on   epoll (asked for)"), "{report}");
        assert!(!report.contains("no io_uring"), "{report}");
    });
}

#[test]
fn without_descriptors_it_still_reports() {
    Test::named("without_descriptors_it_still_reports").plain(|| {
        let (status, output, errors) =
            Running::start(process::role("role_asks_without_descriptors")).finish();
        assert!(status.success(), "{output}{errors}");
    });
}

each_driver! {
    #[alone]
    fn within_a_runtime_it_leaves_nothing_behind(driver: Driver) {
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let before = open_descriptors();
            for _ in 0..8 {
                drop(annulus::doctor());
            }
            // Fewer, where a thread of an earlier test has only now let go of its last one.
            let after = open_descriptors();
            assert!(after <= before, "{after} descriptors are open, {before} were");
            let diagnosis = annulus::doctor();
            if driver == Driver::Uring {
                assert_eq!(diagnosis.uring.ring_entries.ok(), Some(256));
                assert!(diagnosis.uring.needed.iter().all(|it| it.present == Some(true)));
                assert!(diagnosis.uring.optional.iter().all(|it| it.present.is_some()));
            }
            // The shard's own ring and pool are as they were.
            let addr = common::steps::serve_echo().await;
            common::peer::peer(move || {
                let stream = common::peer::connect(addr);
                common::peer::echo(&stream, common::bytes::Keyed(1), 50_000);
            })
            .await;
        });
    }
}

#[test]
fn role_asks_without_descriptors() {
    if !process::in_role() {
        return;
    }
    let unlimited = process::descriptor_limit();
    for free in 0..8 {
        process::leave_descriptors(free);
        let report = annulus::doctor().to_string();
        process::set_descriptor_limit(unlimited).expect("raise the limit again");
        assert!(report.contains("processors"), "{free} descriptors: {report}");
        if free == 0 {
            assert!(report.contains("cannot be read"), "{report}");
        }
    }
}

// Holds the sysctl while its input is open, so that it is set back whatever ends the test.
#[test]
fn role_forbids_io_uring_to_the_unprivileged() {
    if !process::in_role() {
        return;
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: to ignore a signal installs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let path = "/proc/sys/kernel/io_uring_disabled";
    let mut sysctl = match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) => return println!("{READY}{path}: {error}"),
    };
    // Another run of this test must not take our value for the machine's.
    // SAFETY: the call takes no pointer.
    assert_eq!(unsafe { libc::flock(sysctl.as_raw_fd(), libc::LOCK_EX) }, 0, "lock the sysctl");
    let mut before = String::new();
    sysctl.read_to_string(&mut before).expect("read the sysctl");
    let mut set = |value: &str| {
        sysctl.rewind().and_then(|()| sysctl.write_all(value.as_bytes())).expect("set the sysctl");
    };
    // Privileged processes, such as those of other tests, are let through at 1.
    set("1");
    println!("{READY}{FORBIDDEN}");
    let ordered = std::io::stdin().read_to_string(&mut String::new());
    set(&before);
    ordered.expect("wait for the order to end");
}

/// A child that has set `kernel.io_uring_disabled` to 1, and sets it back when this is dropped.
struct Forbidden(Running);

impl Forbidden {
    /// `None` where this process may not change the sysctl, or the kernel has none.
    fn to_the_unprivileged() -> Option<Forbidden> {
        let role = process::role("role_forbids_io_uring_to_the_unprivileged");
        let mut forbidden = Forbidden(Running::start(role));
        let said = forbidden.0.line_after(READY);
        if said == FORBIDDEN && is_root() {
            return Some(forbidden);
        }
        leave_out("a_sysctl_is_told_with_what_to_do", &said);
        None
    }
}

impl Drop for Forbidden {
    fn drop(&mut self) {
        let (status, output, errors) = self.0.finish();
        if !status.success() {
            say(&format!("kernel.io_uring_disabled may not be set back: {output}{errors}"));
        }
    }
}

fn doctor() -> Command {
    without_settings(Command::new(process::example("doctor")))
}

/// A copy that any user may run.
fn doctor_at(scratch: &Scratch) -> Command {
    without_settings(Command::new(scratch.program(&process::example("doctor"))))
}

fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ANNULUS_") {
            command.env_remove(name);
        }
    }
    command
}

/// The exit status of the doctor and what it printed.
fn report_of(command: Command) -> (i32, String) {
    let (status, report, errors) = Running::start(command).finish();
    assert!(errors.is_empty(), "it said on standard error: {errors}");
    (status.code().expect("an exit status"), report)
}

/// Fails unless the report tells this situation, and no other, and has all of these parts.
fn tells(report: &str, situation: &str, parts: &[&str]) {
    for known in SITUATIONS {
        let told = report.contains(known);
        assert_eq!(told, known == situation, "{known:?} is in the wrong report:\n{report}");
    }
    for part in parts {
        assert!(report.contains(part), "{part:?} is missing in:\n{report}");
    }
}

const FORBIDDEN: &str = "forbidden";
