//! A notice that nobody can read is lost, and nothing else: standard error is a pipe whose reader
//! has gone, as it is for a server whose log collector has ended.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use annulus::net::ListenerGroup;
use annulus::{Driver, Runtime};

use common::process::{self, Running, in_own_process, in_role, leave_descriptors, role};
use common::steps::end_beside_a_task_that_does_not_yield;
use common::{Test, each_driver};

mod common;

each_driver! {
    #[deadline_s(60)]
    fn a_thread_that_is_left_behind_does_not_make_the_end_panic(driver: Driver) {
        let name = "a_thread_that_is_left_behind_does_not_make_the_end_panic";
        in_own_process(name, driver, || {
            close_standard_error();
            end_beside_a_task_that_does_not_yield(runtime(driver, 2));
        });
    }

    fn a_group_that_cannot_accept_goes_on(driver: Driver) {
        in_own_process("a_group_that_cannot_accept_goes_on", driver, || {
            close_standard_error();
            runtime(driver, 1).block_on(async {
                let group = ListenerGroup::bind("127.0.0.1:0").unwrap();
                let client = std::net::TcpStream::connect(group.local_addr()).unwrap();
                leave_descriptors(0);
                let serving = group.serve(async |_, _| ());
                let served = annulus::time::timeout(Duration::from_millis(350), serving).await;
                assert!(served.is_err(), "{served:?}");
                drop(client);
            });
        });
    }

    fn a_shard_that_is_not_bound_runs_all_the_same(driver: Driver) {
        if in_role() {
            close_standard_error();
            let runtime = runtime(driver, 2);
            let answer = runtime.shards()[1].spawn_with(|| async { 42 });
            assert_eq!(runtime.block_on(answer).unwrap(), 42);
            return;
        }
        let name = "a_shard_that_is_not_bound_runs_all_the_same";
        let mut command = role(&format!("{name}::{driver}"));
        process::refuse(&mut command, &[(libc::SYS_sched_setaffinity as u32, libc::EPERM)]);
        expect_success(command);
    }
}

#[test]
fn a_runtime_on_the_other_driver_is_built() {
    Test::named("a_runtime_on_the_other_driver_is_built").plain(|| {
        let name = "a_runtime_on_the_other_driver_is_built";
        if in_role() {
            close_standard_error();
            let runtime = Runtime::builder().driver(Driver::Auto).build().unwrap();
            assert_eq!(runtime.driver().driver(), Driver::Epoll);
            return;
        }
        let mut command = role(name);
        process::refuse(&mut command, &[(process::IO_URING_SETUP, libc::EPERM)]);
        expect_success(command);
    });
}

fn runtime(driver: Driver, shards: u32) -> Runtime {
    Runtime::builder().driver(driver).shards(shards).build().unwrap()
}

#[track_caller]
fn expect_success(command: std::process::Command) {
    let (status, output, errors) = Running::start(command).finish();
    assert!(status.success() && output.contains("1 passed"), "{status}\n{output}\n{errors}");
}

/// From here on a write to it fails with EPIPE.
fn close_standard_error() {
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    // SAFETY: the call takes two descriptors that are open.
    assert_eq!(unsafe { libc::dup2(near.as_raw_fd(), 2) }, 2);
}
