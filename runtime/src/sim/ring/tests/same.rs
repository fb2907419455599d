//! With nothing left to chance, the simulated ring answers what the kernel's answers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

use io_uring::squeue::Flags;
use io_uring::types::{CancelBuilder, Fd, FsyncFlags};
use io_uring::{cqueue, opcode};

use super::{Machine, cancel, in_world, quiet_send, receive_many, send};
use crate::sim::Faults;
use crate::sim::ring::entry::{BUFFER, MORE};
use crate::sim::ring::nature::Nature;
use crate::sys::EventFd;

type Answers = BTreeMap<u64, Vec<(i32, u32)>>;

/// Runs the program on both, and compares what each operation was answered.
fn same(program: impl Fn(&mut Machine)) -> Answers {
    let run = |mut machine: Machine| {
        program(&mut machine);
        machine.answers
    };
    let simulated =
        in_world(1, Faults::none(), |world| run(Machine::simulated(world, Nature::plain())));
    if let Some(real) = Machine::real() {
        assert_eq!(simulated, run(real), "the simulated ring (left) and the kernel's (right)");
    }
    simulated
}

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (ours, theirs)
}

/// A pair with room for little, so that sends fall short.
fn narrow_pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = pair();
    let small: libc::c_int = 4096;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_SNDBUF);
    // SAFETY: the value and its length agree and outlive the call.
    let set = unsafe {
        libc::setsockopt(ours.as_raw_fd(), level, option, (&raw const small).cast(), length)
    };
    assert_eq!(set, 0);
    (ours, theirs)
}

fn listener(name: &str) -> (UnixListener, SocketAddr) {
    let name =
        format!("annulus-same-{name}-{}-{:?}", std::process::id(), std::thread::current().id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    listener.set_nonblocking(true).unwrap();
    (listener, address)
}

const FIRST: u64 = 1;
const SECOND: u64 = 2;
const THIRD: u64 = 3;

#[test]
fn what_is_not_known_is_refused() {
    let answers = same(|machine| {
        let (ours, _theirs) = pair();
        let fd = Fd(ours.as_raw_fd());
        machine.push(FIRST, opcode::Nop::new().build());
        machine.push(SECOND, opcode::Nop::new().build().flags(Flags::SKIP_SUCCESS));
        machine.push(THIRD, receive_many(-1));
        machine.push(4, opcode::RecvMulti::new(fd, 0).flags(libc::MSG_WAITALL).build());
        machine.push(5, opcode::RecvMulti::new(fd, 7).build());
        machine.push(6, opcode::Recv::new(fd, std::ptr::null_mut(), 1 << 31).build());
        machine.settle();
    });
    assert_eq!(answers[&FIRST], [(0, 0)]);
    assert!(!answers.contains_key(&SECOND));
    in_world(1, Faults::none(), |world| {
        let mut machine = Machine::simulated(world, Nature::plain());
        machine.push(FIRST, opcode::Timeout::new(std::ptr::null()).build());
        machine.settle();
        assert_eq!(machine.answers(FIRST), [(-libc::EINVAL, 0)]);
        let kernel = machine.ring.simulated.as_ref().unwrap();
        assert_eq!(kernel.borrow().unknown(), 1);
    });
}

#[test]
fn bytes_are_received_into_the_pool_until_the_end() {
    let answers = same(|machine| {
        let (ours, mut theirs) = pair();
        machine.push(FIRST, receive_many(ours.as_raw_fd()));
        machine.settle();
        theirs.write_all(b"one").unwrap();
        machine.settle();
        theirs.write_all(&[7; 100]).unwrap();
        machine.settle();
        let bytes: Vec<u8> =
            machine.answers(FIRST).iter().flat_map(|&answer| machine.take(answer)).collect();
        assert_eq!(bytes, [b"one".as_slice(), &[7; 100]].concat());
        drop(theirs);
        machine.settle();
    });
    assert_eq!(answers[&FIRST].last(), Some(&(0, 0)));
}

#[test]
fn a_dry_pool_ends_a_receive() {
    let answers = same(|machine| {
        let (ours, mut theirs) = pair();
        theirs.write_all(&[7; 300]).unwrap();
        machine.push(FIRST, receive_many(ours.as_raw_fd()));
        machine.settle();
        machine.push(SECOND, receive_many(ours.as_raw_fd()));
        machine.settle();
        let all = machine.answers(FIRST).to_vec();
        all.iter().filter(|it| it.0 > 0).for_each(|&answer| drop(machine.take(answer)));
        machine.push(THIRD, receive_many(ours.as_raw_fd()));
        machine.settle();
    });
    assert_eq!(answers[&FIRST].last(), Some(&(-libc::ENOBUFS, 0)));
    assert_eq!(answers[&SECOND], [(-libc::ENOBUFS, 0)]);
    assert_eq!(answers[&THIRD][0].0, 44);
}

#[test]
fn quiet_sends_speak_only_of_failures() {
    let large = vec![7; 1 << 20];
    let answers = same(|machine| {
        let ((ours, theirs), (narrow, _peer), (lonely, gone)) = (pair(), narrow_pair(), pair());
        drop(gone);
        machine.push(FIRST, quiet_send(ours.as_raw_fd(), b"whole"));
        machine.push(SECOND, quiet_send(narrow.as_raw_fd(), &large));
        machine.push(THIRD, quiet_send(lonely.as_raw_fd(), b"nobody"));
        machine.enter(0).unwrap();
        let mut got = [0; 5];
        (&theirs).read_exact(&mut got).unwrap();
        assert_eq!(&got, b"whole");
        machine.push(4, quiet_send(narrow.as_raw_fd(), &large));
        machine.enter(0).unwrap();
    });
    assert!(!answers.contains_key(&FIRST));
    assert!((1..1 << 20).contains(&answers[&SECOND][0].0));
    assert_eq!(answers[&THIRD], [(-libc::EPIPE, 0)]);
    assert_eq!(answers[&4], [(-libc::EAGAIN, 0)]);
}

#[test]
fn a_send_of_all_goes_on_as_there_is_room() {
    let large = vec![7; 1 << 18];
    let answers = same(|machine| {
        let (ours, theirs) = narrow_pair();
        let whole = send(ours.as_raw_fd(), &large).flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL);
        machine.push(FIRST, whole.build());
        machine.settle();
        assert!(machine.answers(FIRST).is_empty());
        theirs.set_nonblocking(true).unwrap();
        let mut left = large.len();
        let mut piece = [0; 4096];
        while left > 0 {
            match (&theirs).read(&mut piece) {
                Ok(count) => left -= count,
                Err(_) => drop(machine.enter(0)),
            }
        }
        machine.settle();
        let (narrow, _peer) = narrow_pair();
        machine.push(SECOND, send(narrow.as_raw_fd(), &large).build());
        machine.settle();
        machine.push(THIRD, send(narrow.as_raw_fd(), b"").build());
        machine.settle();
    });
    assert_eq!(answers[&FIRST], [(1 << 18, 0)]);
    assert!((1..1 << 18).contains(&answers[&SECOND][0].0), "without WAITALL a part is all");
}

#[test]
fn a_send_that_is_cancelled_tells_what_was_sent() {
    let large = vec![7; 1 << 18];
    let answers = same(|machine| {
        let (ours, _theirs) = narrow_pair();
        let whole = send(ours.as_raw_fd(), &large).flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL);
        machine.push(FIRST, whole.build());
        machine.settle();
        machine.push(SECOND, cancel(FIRST));
        machine.settle();
    });
    assert!((1..1 << 18).contains(&answers[&FIRST][0].0));
    assert_eq!(answers[&SECOND], [(0, 0)]);
}

#[test]
fn cancels_find_what_waits_and_nothing_else() {
    let answers = same(|machine| {
        let (ours, mut theirs) = pair();
        let fd = ours.as_raw_fd();
        machine.push(FIRST, receive_many(fd));
        machine.settle();
        machine.push(10, cancel(77));
        machine.push(11, cancel(FIRST));
        machine.settle();
        machine.push(12, cancel(FIRST));
        machine.push(13, cancel(FIRST).flags(Flags::SKIP_SUCCESS));
        machine.settle();
        machine.push(SECOND, opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).build());
        machine.push(THIRD, receive_many(fd));
        machine.settle();
        machine.push(14, opcode::AsyncCancel2::new(CancelBuilder::any()).build());
        machine.settle();
        machine.push(15, opcode::AsyncCancel2::new(CancelBuilder::any()).build());
        machine.push(4, receive_many(fd));
        machine.settle();
        machine.push(16, cancel(4).flags(Flags::SKIP_SUCCESS));
        machine.settle();
        machine.push(5, receive_many(fd));
        machine.settle();
        machine.push(17, opcode::AsyncCancel2::new(CancelBuilder::fd(Fd(fd))).build());
        machine.settle();
        theirs.write_all(b"kept").unwrap();
        let mut got = [0; 4];
        (&ours).read_exact(&mut got).unwrap();
        assert_eq!(&got, b"kept");
    });
    assert_eq!(answers[&FIRST], [(-libc::ECANCELED, 0)]);
    assert_eq!(answers[&10], [(-libc::ENOENT, 0)]);
    assert_eq!(answers[&14], [(2, 0)]);
    assert!(!answers.contains_key(&16));
}

#[test]
fn polls_tell_once_or_each_time() {
    let answers = same(|machine| {
        let bell = EventFd::new().unwrap();
        let fd = Fd(bell.raw_fd());
        machine.push(FIRST, opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build());
        machine.push(SECOND, opcode::PollAdd::new(fd, libc::POLLIN as u32).build());
        machine.settle();
        for _ in 0..3 {
            bell.signal();
            machine.settle();
        }
        let (ours, theirs) = pair();
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        machine.push(THIRD, opcode::PollAdd::new(Fd(ours.as_raw_fd()), events).multi(true).build());
        machine.settle();
        (&theirs).write_all(b"a").unwrap();
        machine.settle();
        (&theirs).write_all(b"b").unwrap();
        machine.settle();
        theirs.shutdown(Shutdown::Write).unwrap();
        machine.settle();
        drop(theirs);
        machine.settle();
        let writable = opcode::PollAdd::new(Fd(ours.as_raw_fd()), libc::POLLOUT as u32);
        machine.push(4, writable.build());
        machine.settle();
    });
    assert_eq!(answers[&FIRST], [(1, MORE); 3]);
    assert_eq!(answers[&SECOND], [(1, 0)]);
}

#[test]
fn connections_are_accepted_and_made() {
    same(|machine| {
        let (listener, address) = listener("connect");
        let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        machine.push(FIRST, accept.build());
        machine.settle();
        let clients: Vec<_> = (0..3).map(|_| UnixStream::connect_addr(&address).unwrap()).collect();
        machine.settle();
        drop(clients);
        let mut accepted = machine.answers.remove(&FIRST).unwrap();
        // The numbers are not the same, and everything else is.
        for (fd, flags) in &mut accepted {
            // SAFETY: the descriptor was made for whoever submitted the entry.
            let socket = unsafe { OwnedFd::from_raw_fd(*fd) };
            // SAFETY: the call takes integers and touches no memory of ours.
            *fd = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK };
            assert_eq!(*flags, MORE);
        }
        machine.answers.insert(FIRST, accepted);
        machine.push(SECOND, cancel(FIRST));
        machine.settle();
        drop(listener);
    });
}

#[test]
fn descriptors_are_held_while_requests_are_in_flight() {
    let answers = same(|machine| {
        let (ours, theirs) = pair();
        machine.push(FIRST, receive_many(ours.as_raw_fd()));
        machine.settle();
        drop(ours);
        // No end is seen: the request has the file.
        (&theirs).write_all(b"late").unwrap();
        machine.settle();
        machine.push(SECOND, cancel(FIRST));
        machine.settle();
        assert_eq!((&theirs).read(&mut [0; 1]).unwrap(), 0);
    });
    assert_eq!(answers[&FIRST].len(), 2);
}

#[test]
fn completions_without_room_wait_until_they_are_asked_for() {
    let answers = same(|machine| {
        for round in 0..3 {
            for number in 0..16 {
                machine.push(round * 16 + number, opcode::Nop::new().build());
            }
            let queued = machine.ring.submission().len() as u32;
            // SAFETY: no entry refers to memory, and there is no argument.
            let entered =
                unsafe { machine.ring.submitter().enter::<libc::sigset_t>(queued, 0, 0, None) };
            assert_eq!(entered.unwrap(), 16);
        }
        assert!(machine.ring.submission().cq_overflow());
        let first: Vec<u64> = machine.ring.completion().map(|it| it.user_data()).collect();
        assert_eq!(first, (0..16).collect::<Vec<_>>());
        machine.settle();
        assert!(!machine.ring.submission().cq_overflow());
    });
    assert_eq!(answers.len(), 32);
}

#[test]
fn a_multishot_without_room_for_more_says_its_last() {
    let answers = same(|machine| {
        let (ours, mut theirs) = pair();
        machine.push(FIRST, receive_many(ours.as_raw_fd()));
        machine.settle();
        theirs.write_all(b"a").unwrap();
        for number in 10..26 {
            machine.push(number, opcode::Nop::new().build());
        }
        machine.enter(0).unwrap();
        machine.settle();
    });
    let (count, flags) = answers[&FIRST][0];
    assert_eq!((count, flags & (MORE | BUFFER)), (1, BUFFER));
}

/// Beyond all limits of open files.
const NUMBER_OF_NOBODY: i32 = 1 << 30;

#[test]
fn files_are_read_and_written() {
    same(|machine| {
        let path = std::env::temp_dir().join(format!("annulus-same-{}", std::process::id()));
        let path = std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC;
        let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).flags(flags).mode(0o600);
        machine.push(FIRST, open.build());
        machine.enter(1).unwrap();
        let (fd, _) = machine.answers.remove(&FIRST).unwrap()[0];
        let (mut back, mut stat) = ([0; 3], Box::new([0u8; size_of::<libc::statx>()]));
        machine.push(SECOND, opcode::Write::new(Fd(fd), b"abcdef".as_ptr(), 6).build());
        machine.enter(1).unwrap();
        machine.push(THIRD, opcode::Read::new(Fd(fd), back.as_mut_ptr(), 3).offset(2).build());
        machine.enter(1).unwrap();
        assert_eq!(&back, b"cde");
        machine.push(4, opcode::Fsync::new(Fd(fd)).flags(FsyncFlags::DATASYNC).build());
        machine.enter(1).unwrap();
        let answer = stat.as_mut_ptr().cast();
        let statx = opcode::Statx::new(Fd(fd), c"".as_ptr(), answer).flags(libc::AT_EMPTY_PATH);
        machine.push(5, statx.mask(libc::STATX_SIZE).build());
        machine.enter(1).unwrap();
        machine.push(6, opcode::Close::new(Fd(fd)).build());
        machine.enter(1).unwrap();
        // Not the same number again: by now it may be another test's.
        machine.push(7, opcode::Close::new(Fd(NUMBER_OF_NOBODY)).build());
        machine.enter(1).unwrap();
        machine
            .push(8, opcode::OpenAt::new(Fd(libc::AT_FDCWD), c"/nowhere/at/all".as_ptr()).build());
        machine.enter(1).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(fs::read(path).unwrap(), b"abcdef");
        fs::remove_file(path).unwrap();
    });
}

#[test]
fn datagrams_come_with_their_headers() {
    // SAFETY: all zeros is a message of no parts.
    let shape: libc::msghdr = unsafe { std::mem::zeroed() };
    let answers = same(|machine| {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        machine.push(
            FIRST,
            opcode::RecvMsgMulti::new(Fd(ours.as_raw_fd()), &raw const shape, 0).build(),
        );
        machine.settle();
        theirs.send(b"one").unwrap();
        theirs.send(b"second").unwrap();
        machine.settle();
        let bytes: Vec<Vec<u8>> =
            machine.answers(FIRST).iter().map(|&answer| machine.take(answer)).collect();
        assert_eq!(&bytes[0][16..], b"one");
        assert_eq!(&bytes[1][16..], b"second");
        assert_eq!(bytes[1][8..12], 6u32.to_ne_bytes());
    });
    assert_eq!(answers[&FIRST].len(), 2);
    assert!(answers[&FIRST].iter().all(|&(_, flags)| cqueue::more(flags)));
}

#[test]
fn single_receives_wait_for_what_they_were_told() {
    let (mut some, mut all) = ([0u8; 8], [0u8; 8]);
    let (some, all) = (some.as_mut_ptr(), all.as_mut_ptr());
    let answers = same(|machine| {
        let (ours, mut theirs) = pair();
        let fd = Fd(ours.as_raw_fd());
        machine.push(FIRST, opcode::Recv::new(fd, some, 8).build());
        machine.settle();
        theirs.write_all(b"abc").unwrap();
        machine.settle();
        machine.push(SECOND, opcode::Recv::new(fd, all, 8).flags(libc::MSG_WAITALL).build());
        machine.settle();
        theirs.write_all(b"abc").unwrap();
        machine.settle();
        theirs.write_all(b"defghi").unwrap();
        machine.settle();
        machine.push(THIRD, opcode::Shutdown::new(fd, libc::SHUT_RDWR).build());
        machine.enter(1).unwrap();
        machine.settle();
        machine.push(4, receive_many(ours.as_raw_fd()));
        machine.settle();
    });
    assert_eq!(answers[&SECOND], [(8, 0)]);
}
