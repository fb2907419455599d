//! Which driver runs, how a program learns it, and what happens where io_uring is refused.

use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use annulus::{Driver, Runtime};

use common::bytes::Keyed;
use common::peer;
use common::process::{
    self, IO_URING_ENTER, IO_URING_REGISTER, IO_URING_SETUP, READY, Running, Scratch,
    open_descriptors, refuse, unprivileged,
};
use common::{Test, each_driver};

mod common;

each_driver! {
    fn a_driver_asked_for_is_the_one_that_runs(driver: Driver) {
        let runtime = common::runtime(driver);
        assert_eq!(runtime.driver().driver(), driver);
        runtime.block_on(async {
            let info = annulus::driver_info();
            assert_eq!(info.driver(), driver);
            let name = if driver == Driver::Uring { "io_uring" } else { "epoll" };
            assert!(info.to_string().contains(name), "the text {info} does not name {name}");
        });
    }
}

#[test]
fn auto_takes_a_driver_and_says_which() {
    Test::named("auto_takes_a_driver_and_says_which").plain(|| {
        let runtime = Runtime::builder().driver(Driver::Auto).build().expect("build a runtime");
        let info = runtime.driver();
        assert_ne!(info.driver(), Driver::Auto);
        runtime.block_on(async {
            assert_eq!(annulus::driver_info().to_string(), info.to_string());
        });
    });
}

#[test]
fn an_unparsable_variable_is_an_error_that_names_it() {
    Test::named("an_unparsable_variable_is_an_error_that_names_it").plain(|| {
        for (name, value) in [
            ("ANNULUS_DRIVER", "banana"),
            ("ANNULUS_DRIVER", ""),
            ("ANNULUS_RING_ENTRIES", "many"),
            ("ANNULUS_RING_ENTRIES", "0"),
            ("ANNULUS_RING_ENTRIES", "-1"),
            ("ANNULUS_SPIN_US", "1ms"),
        ] {
            let mut command = process::role(ROLE_BUILDS);
            command.env(name, value);
            let mut child = Running::start(command);
            let said = child.line_after(READY);
            assert!(said.starts_with("error: "), "{name}={value:?} was taken: {said}");
            assert!(said.contains(name), "the error does not name {name}: {said}");
            assert!(
                said.contains(&format!("{value:?}")),
                "the error does not say {value:?}: {said}"
            );
        }
    });
}

// In a process of its own, whose first ring it is: that one is tried out.
#[test]
fn the_smallest_ring_is_tried_out_and_used() {
    Test::named("the_smallest_ring_is_tried_out_and_used").with_uring(|| {
        let mut command = process::role(ROLE_BUILDS);
        command.env("ANNULUS_DRIVER", "uring").env("ANNULUS_RING_ENTRIES", "1");
        let mut child = Running::start(command);
        let said = child.line_after(READY);
        let (status, _, errors) = child.finish();
        assert!(status.success() && said.starts_with("io_uring"), "{said}{errors}");
    });
}

#[test]
fn the_environment_chooses_the_driver() {
    Test::named("the_environment_chooses_the_driver").plain(|| {
        let mut command = process::role(ROLE_BUILDS);
        command.env("ANNULUS_DRIVER", "epoll");
        let mut child = Running::start(command);
        let said = child.line_after(READY);
        assert!(said.starts_with("epoll"), "{said}");
        let (_, _, errors) = child.finish();
        assert!(!errors.contains("annulus:"), "a notice although epoll was asked for: {errors}");
    });
}

#[test]
fn where_setup_is_refused_the_example_serves_on_epoll_and_says_why() {
    Test::named("where_setup_is_refused").deadline_s(60).with_uring(|| {
        let refusals = [
            (libc::EPERM, "EPERM"),
            (libc::ENOSYS, "ENOSYS"),
            (libc::EINVAL, "EINVAL"),
            (libc::EACCES, "EACCES"),
        ];
        for (errno, name) in refusals {
            serves_on_epoll(&[(IO_URING_SETUP, errno)], &["io_uring_setup", name, "seccomp"]);
        }
    });
}

#[test]
fn where_only_enter_is_refused_the_example_serves_on_epoll_and_says_why() {
    Test::named("where_only_enter_is_refused").deadline_s(60).with_uring(|| {
        for (errno, name) in [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")] {
            serves_on_epoll(&[(IO_URING_ENTER, errno)], &["io_uring_enter", name, "seccomp"]);
        }
    });
}

#[test]
fn where_only_register_is_refused_the_example_serves_on_epoll_and_says_why() {
    Test::named("where_only_register_is_refused").deadline_s(60).with_uring(|| {
        for (errno, name) in [(libc::EPERM, "EPERM"), (libc::EINVAL, "EINVAL")] {
            serves_on_epoll(&[(IO_URING_REGISTER, errno)], &["io_uring_register", name, "seccomp"]);
        }
    });
}

#[test]
fn a_user_with_little_lockable_memory_is_served_and_told_which_driver() {
    Test::named("a_user_with_little_lockable_memory").alone().deadline_s(60).plain(|| {
        let scratch = Scratch::new();
        let mut command = echo_at(scratch.program(&process::example("echo")));
        unprivileged(&mut command, 64 << 10);
        let said = serves(command);
        assert!(said.contains("io_uring") || said.contains("epoll"), "no driver in: {said}");
    });
}

#[test]
fn a_user_without_lockable_memory_is_served_and_told_which_driver() {
    Test::named("a_user_without_lockable_memory").alone().deadline_s(60).plain(|| {
        let scratch = Scratch::new();
        let mut command = echo_at(scratch.program(&process::example("echo")));
        unprivileged(&mut command, 0);
        let said = serves(command);
        assert!(said.contains("io_uring") || said.contains("epoll"), "no driver in: {said}");
    });
}

#[test]
fn io_uring_asked_for_and_refused_ends_with_an_error_that_names_the_cause() {
    Test::named("io_uring_asked_for_and_refused").deadline_s(60).with_uring(|| {
        for (errno, name) in [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")] {
            for call in [IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER] {
                let mut command = echo_example();
                command.env("ANNULUS_DRIVER", "uring");
                refuse(&mut command, &[(call, errno)]);
                let (status, output, errors) = Running::start(command).finish();
                assert!(!status.success(), "it ran, although refused: {output}{errors}");
                for part in ["seccomp", name, "ANNULUS_DRIVER=epoll"] {
                    assert!(errors.contains(part), "{part} is missing in: {errors}");
                }
                assert!(!errors.contains("panicked"), "a panic instead of an error: {errors}");
            }
        }
    });
}

#[test]
fn the_error_of_a_refusal_has_a_type() {
    Test::named("the_error_of_a_refusal_has_a_type").plain(|| {
        let mut command = process::role(ROLE_BUILDS);
        command.env("ANNULUS_DRIVER", "uring");
        refuse(&mut command, &[(IO_URING_SETUP, libc::EPERM)]);
        let said = Running::start(command).line_after(READY);
        assert!(said.starts_with("error: refused: "), "{said}");
    });
}

#[test]
fn every_runtime_of_a_process_has_the_same_driver_and_there_is_one_notice() {
    Test::named("every_runtime_of_a_process_has_the_same_driver").plain(|| {
        let mut command = process::role(ROLE_BUILDS);
        refuse(&mut command, &[(IO_URING_SETUP, libc::EPERM)]);
        let mut child = Running::start(command);
        let said = child.line_after(READY);
        let (status, _, errors) = child.finish();
        assert!(status.success(), "{errors}");
        assert!(said.starts_with("epoll"), "{said}");
        assert_eq!(errors.matches("annulus:").count(), 1, "not one notice but: {errors}");
    });
}

// The first take what there is; the others run all the same, and say why on what.
#[test]
fn runtimes_beyond_the_lockable_memory_run_on_epoll_and_say_so() {
    let test = Test::named("runtimes_beyond_the_lockable_memory_run_on_epoll_and_say_so");
    test.alone().deadline_s(60).with_uring(|| {
        let scratch = Scratch::new();
        let role = process::role("role_builds_many_runtimes");
        let program = scratch.program(role.get_program().as_ref());
        let mut command = process::moved(&role, &program);
        unprivileged(&mut command, 200 << 10);
        let (status, output, errors) = Running::start(command).finish();
        assert!(status.success(), "{output}{errors}");
        assert!(errors.matches("annulus:").count() <= 1, "more than one notice: {errors}");
    });
}

#[test]
fn a_full_descriptor_table_is_an_error_of_the_builder() {
    Test::named("a_full_descriptor_table_is_an_error_of_the_builder").plain(|| {
        for driver in ["auto", "uring", "epoll"] {
            if driver == "uring" && common::uring_left_out() {
                continue;
            }
            let mut command = process::role("role_builds_with_few_descriptors");
            command.env("ANNULUS_DRIVER", driver);
            let (status, output, errors) = Running::start(command).finish();
            assert!(status.success(), "{driver}: {output}{errors}");
        }
    });
}

// Builds two runtimes and says which driver they have, or what the error is.
#[test]
fn role_builds_runtimes() {
    if !process::in_role() {
        return;
    }
    match Runtime::new() {
        Ok(runtime) => {
            let info = runtime.driver().to_string();
            drop(runtime);
            let again = Runtime::new().expect("a second runtime");
            assert_eq!(again.driver().to_string(), info);
            let here = std::thread::spawn(|| {
                Runtime::new().expect("a runtime on another thread").driver().to_string()
            });
            assert_eq!(here.join().expect("no panic"), info);
            println!("{READY}{info}");
        }
        Err(error) => {
            let refused = matches!(error, annulus::BuildError::Refused(_));
            let kind = if refused { "refused: " } else { "" };
            println!("{READY}error: {kind}{error}");
        }
    }
    std::io::stdin().read_to_string(&mut String::new()).expect("wait for the order to end");
}

#[test]
fn role_builds_many_runtimes() {
    if !process::in_role() {
        return;
    }
    let runtimes: Vec<_> = (0..8).map(|_| Runtime::new().expect("build a runtime")).collect();
    for runtime in &runtimes {
        let info = runtime.driver();
        println!("{info}");
        if info.driver() == Driver::Epoll {
            let why = info.refusal().expect("a reason for epoll").to_string();
            assert!(why.contains("RLIMIT_MEMLOCK"), "the reason does not name the limit: {why}");
        }
        runtime.block_on(async {
            let addr = common::steps::serve_echo().await;
            peer::peer(move || peer::echo(&peer::connect(addr), Keyed(1), 50_000)).await;
        });
    }
}

#[test]
fn role_builds_with_few_descriptors() {
    if !process::in_role() {
        return;
    }
    let unlimited = process::descriptor_limit();
    // The file of the figures comes with a process's first shard, and stays.
    drop(Runtime::new().expect("a runtime with descriptors to spare"));
    let before = open_descriptors();
    let mut failures = 0;
    for free in (0..12).chain((0..12).rev()) {
        process::leave_descriptors(free);
        let built = Runtime::new();
        process::set_descriptor_limit(unlimited).expect("raise the limit again");
        match built {
            Ok(runtime) => runtime.block_on(async { common::steps::settle().await }),
            Err(error) => {
                failures += 1;
                let text = error.to_string();
                assert!(text.contains("descriptor"), "the error does not say what lacks: {text}");
            }
        }
        assert_eq!(open_descriptors(), before, "a failed runtime left descriptors open");
    }
    assert!(failures > 0, "no build ever failed, so nothing was tested");
}

fn echo_example() -> Command {
    echo_at(process::example("echo"))
}

fn echo_at(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.arg("127.0.0.1:0").env_remove("ANNULUS_DRIVER");
    command
}

/// Runs the example with these calls refused, and checks what it says.
fn serves_on_epoll(refused: &[(u32, i32)], parts: &[&str]) {
    let mut command = echo_example();
    refuse(&mut command, refused);
    let said = serves(command);
    assert!(said.contains("epoll"), "no word of epoll in: {said}");
    for part in parts {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
}

/// Has the program echo, and returns all that it said.
fn serves(command: Command) -> String {
    let mut child = Running::start(command);
    let line = child.line_after("127.0.0.1:");
    let port = line.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let addr = format!("127.0.0.1:{port}").parse().expect("the address it printed");
    let stream = peer::connect(addr);
    peer::echo(&stream, Keyed(1), 200_000);
    peer::echo(&peer::connect(addr), Keyed(2), 1);
    drop(stream);
    let (output, errors) = child.kill();
    format!("{line}\n{output}\n{errors}")
}

const ROLE_BUILDS: &str = "role_builds_runtimes";
