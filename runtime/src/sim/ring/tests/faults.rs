//! What a simulated ring does to a driver, and what it never does.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use io_uring::opcode;
use io_uring::types::{CancelBuilder, Fd};

use super::{Machine, cancel, in_world, quiet_send, receive_many, send};
use crate::sim::ring::entry::{BUFFER, MORE, NOTICE};
use crate::sim::ring::nature::Nature;
use crate::sim::{Faults, World};

/// What was met, by name.
type Met = BTreeSet<&'static str>;

const SEEDS: u64 = 300;

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

fn enter(machine: &mut Machine, want: u32, met: &mut Met) {
    let queued = machine.ring.submission().len();
    let answer = machine.enter(want);
    // What was delayed comes while time passes.
    let world = World::current().unwrap();
    world.park(Some(world.now() + Duration::from_micros(100)));
    if machine.ring.submission().cq_overflow() {
        met.insert("completions aside");
    }
    match answer {
        Ok(taken) if taken < queued => drop(met.insert("taken in part")),
        Ok(_) => {}
        Err(error) => drop(met.insert(match error.raw_os_error() {
            Some(libc::EAGAIN) => "EAGAIN",
            Some(libc::EBUSY) => "EBUSY",
            Some(libc::EINTR) => "EINTR",
            Some(libc::ENOMEM) => "ENOMEM",
            _ => panic!("an enter without a time answered {error}"),
        })),
    }
}

/// Reads a stream of known bytes by a multishot that is armed again whenever it has ended.
fn bytes_in_order(machine: &mut Machine, met: &mut Met) {
    let (ours, mut theirs) = pair();
    let sent: Vec<u8> = (0..2000u32).map(|at| (at % 251) as u8).collect();
    let (mut received, mut number, mut written) = (Vec::new(), 0, 0);
    machine.push(number, receive_many(ours.as_raw_fd()));
    while received.len() < sent.len() {
        let until = sent.len().min(written + 97);
        written += theirs.write(&sent[written..until]).unwrap();
        enter(machine, 0, met);
        for answer in machine.answers.remove(&number).unwrap_or_default() {
            let (result, flags) = answer;
            match result {
                1.. => received.extend(machine.take(answer)),
                _ if result == -libc::ENOBUFS => drop(met.insert("ENOBUFS")),
                _ => panic!("a receive answered {result}"),
            }
            if flags & MORE == 0 {
                if result > 0 {
                    met.insert("ended early");
                }
                number += 1;
                machine.push(number, receive_many(ours.as_raw_fd()));
            }
        }
        assert!(machine.answers.is_empty(), "{:?}", machine.answers);
    }
    assert_eq!(received, sent);
    end_all(machine, met);
}

/// Cancels what is left, until each request has said its last.
fn end_all(machine: &mut Machine, met: &mut Met) {
    let any = || opcode::AsyncCancel2::new(CancelBuilder::any()).build();
    machine.push(u64::MAX, any());
    while machine.in_flight() > 0 {
        enter(machine, 0, met);
        if machine.ring.submission().is_empty() && !machine.answers(u64::MAX).is_empty() {
            machine.answers.remove(&u64::MAX);
            machine.push(u64::MAX, any());
        }
    }
    while !machine.ring.submission().is_empty() || machine.ring.submission().cq_overflow() {
        enter(machine, 0, met);
    }
    machine.answers.clear();
}

/// Sends of both kinds, of which each byte arrives that was counted, and no other.
fn sends_counted(machine: &mut Machine, met: &mut Met) {
    let (ours, mut theirs) = pair();
    let bytes = vec![7; 3000];
    let (mut counted, mut got) = (0, 0);
    for number in 0..20 {
        let quiet = number % 2 == 0;
        let whole = send(ours.as_raw_fd(), &bytes).flags(libc::MSG_WAITALL);
        let entry = if quiet { quiet_send(ours.as_raw_fd(), &bytes) } else { whole.build() };
        machine.push(number, entry);
        while !machine.ring.submission().is_empty() || machine.in_flight() > 0 {
            enter(machine, 0, met);
            let mut room = [0; 10_000];
            got += theirs.read(&mut room).unwrap_or(0);
        }
        while machine.ring.submission().cq_overflow() {
            enter(machine, 0, met);
        }
        // Once the entry is taken and all is reaped, the silence of a quiet send is success.
        let answers = machine.answers.remove(&number).unwrap_or_default();
        counted += match answers[..] {
            [] if quiet => bytes.len(),
            [(count @ 0.., 0)] => {
                met.insert(if quiet { "quiet send cut short" } else { "send" });
                count as usize
            }
            [(failed, 0)] => {
                met.insert(if failed == -libc::EINTR { "interrupted" } else { "no room" });
                0
            }
            _ => panic!("a send answered {answers:?}"),
        };
    }
    let mut room = vec![0; 1 << 20];
    got += theirs.read(&mut room).unwrap_or(0);
    assert_eq!(got, counted);
    machine.answers.clear();
}

/// Cancels of what could answer and of what could not.
fn cancels(machine: &mut Machine, met: &mut Met) {
    for round in 0..20 {
        let (ours, mut theirs) = pair();
        let (target, canceller) = (2 * round, 2 * round + 1);
        let ready = round % 2 == 0;
        let single = round % 4 < 2;
        let poll = opcode::PollAdd::new(Fd(ours.as_raw_fd()), libc::POLLIN as u32).build();
        machine.push(target, if single { poll } else { receive_many(ours.as_raw_fd()) });
        while !machine.ring.submission().is_empty() {
            enter(machine, 0, met);
        }
        if ready {
            theirs.write_all(b"now").unwrap();
        }
        machine.push(canceller, cancel(target));
        while machine.in_flight() > 0 || !machine.ring.submission().is_empty() {
            enter(machine, 0, met);
        }
        while machine.ring.submission().cq_overflow() {
            enter(machine, 0, met);
        }
        let answers = machine.answers.remove(&target).unwrap();
        for &answer in answers.iter().filter(|it| it.1 & BUFFER != 0) {
            drop(machine.take(answer));
        }
        let ends = answers.iter().filter(|it| it.1 & MORE == 0).count();
        assert!(ends == 1 && answers.last().unwrap().1 & MORE == 0, "{answers:?}");
        let last = answers.last().unwrap().0;
        let [(said, 0)] = machine.answers.remove(&canceller).unwrap()[..] else { panic!("one") };
        met.insert(match (said, last) {
            (0, 0..) => "cancelled and answered",
            (0, _) => "cancelled",
            (said, _) if said == -libc::ENOENT && ready => "not found",
            (said, 0..) if said == -libc::EALREADY => "too late, and answered",
            (said, _) if said == -libc::EALREADY && last == -libc::EINTR => "too late, interrupted",
            (said, _) if said == -libc::EALREADY => "too late, and cancelled",
            other => panic!("a cancel answered {other:?}, ready: {ready}"),
        });
    }
}

fn meet(program: impl Fn(&mut Machine, &mut Met)) -> Met {
    let mut met = Met::new();
    for seed in 0..SEEDS {
        in_world(seed, Faults::harsh(), |world| {
            let mut machine = Machine::simulated(world, Nature::of(world));
            program(&mut machine, &mut met);
        });
    }
    met
}

fn assert_met(met: &Met, all: &[&'static str]) {
    for name in all {
        assert!(met.contains(name), "{SEEDS} seeds do not meet {name:?}, but {met:?}");
    }
}

#[test]
fn a_stream_keeps_its_order_whatever_happens_to_its_receives() {
    let met = meet(bytes_in_order);
    assert_met(&met, &["ended early", "ENOBUFS", "EAGAIN", "ENOMEM", "taken in part"]);
}

#[test]
fn every_byte_that_a_send_counts_is_sent_and_no_other() {
    let met = meet(sends_counted);
    assert_met(&met, &["quiet send cut short", "send", "interrupted", "no room"]);
}

#[test]
fn a_cancel_finds_finds_not_or_is_too_late_and_each_request_ends_once() {
    let met = meet(cancels);
    let all = [
        "cancelled and answered",
        "cancelled",
        "not found",
        "too late, and answered",
        "too late, interrupted",
        "too late, and cancelled",
    ];
    assert_met(&met, &all);
}

#[test]
fn an_enter_fails_in_every_way_it_may_and_loses_nothing() {
    let met = meet(|machine, met| {
        let mut number = 0;
        while number < 64 {
            while number < 64 && !machine.ring.submission().is_full() {
                machine.push(number, opcode::Nop::new().build());
                number += 1;
            }
            // More completions than there is room for, and nobody reaps them.
            machine.reaps = number > 40;
            enter(machine, 1, met);
        }
        machine.reaps = true;
        while machine.answers.len() < 64 {
            enter(machine, 1, met);
        }
    });
    let all = ["EAGAIN", "EBUSY", "EINTR", "ENOMEM", "taken in part", "completions aside"];
    assert_met(&met, &all);
}

#[test]
fn the_memory_of_a_zero_copy_send_may_not_change_before_its_notice() {
    in_world(1, Faults::none(), |world| {
        let mut machine = Machine::simulated(world, Nature::plain());
        let (ours, _theirs) = pair();
        let mut bytes = vec![7u8; 100];
        let start = bytes.as_mut_ptr();
        let entry = || opcode::SendZc::new(Fd(ours.as_raw_fd()), start, 100).build();
        machine.push(1, entry());
        machine.settle();
        assert_eq!(machine.answers(1), [(100, MORE), (0, NOTICE)]);
        machine.push(2, entry());
        machine.enter_without_looking();
        assert_eq!(machine.answers(2), [(100, MORE)]);
        // SAFETY: the vector is there; nobody borrows it.
        unsafe { start.write(8) };
        let seen = catch_unwind(AssertUnwindSafe(|| machine.settle()));
        assert!(seen.is_err(), "the change was not seen");
    });
}

#[test]
fn a_seed_is_one_run() {
    let run = |seed| {
        in_world(seed, Faults::harsh(), |world| {
            let mut machine = Machine::simulated(world, Nature::of(world));
            bytes_in_order(&mut machine, &mut Met::new());
            world.report().fingerprint
        })
    };
    let prints: BTreeSet<u64> = (0..20).map(run).collect();
    assert_eq!(prints, (0..20).map(run).collect());
    assert_eq!(prints.len(), 20);
}
