//! UDP at its limits: a send buffer that is full, and no memory for receiving ahead.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use annulus::net::{UdpOptions, UdpSocket};
use io_uring::IoUring;

use common::peer::{Peer, peer};
use common::process::{self, Running, is_root};
use common::steps::{poll_once, settle};
use common::{Test, each_driver, leave_out, say};

mod common;

each_driver! {
    fn sends_wait_for_room_and_go_on(driver: Driver) {
        if !is_root() {
            return leave_out("sends_wait_for_room_and_go_on", "a network needs root");
        }
        // A network belongs to a thread: to one that ends with this test.
        let test = thread::spawn(move || match Network::enter() {
            Ok(network) => common::runtime(driver).block_on(fill_and_drain(network)),
            Err(error) => leave_out("sends_wait_for_room_and_go_on", &error.to_string()),
        });
        test.join().expect("the thread of the network");
    }
}

async fn fill_and_drain(network: Network) {
    // The kernel makes it its least, 4608 bytes: a handful of datagrams.
    let options = UdpOptions::new().send_buffer_bytes(1);
    let socket = UdpSocket::bind_with(SocketAddr::from((OURS, 0)), options).await;
    let socket = Rc::new(socket.expect("bind a socket"));
    let target = SocketAddr::from((THEIRS, 9));
    let (tell, told) = channel();
    let wire = network.watch(told);
    // The neighbour is not yet known, so that what is sent waits for it and takes up room.
    let mut sent = 0u64;
    loop {
        let bytes = sent.to_le_bytes();
        let mut sending = pin!(socket.send_to(&bytes, target));
        if poll_once(sending.as_mut()).await.is_pending() {
            break;
        }
        sent += 1;
        assert!(sent < 1000, "the buffer is never full");
    }
    let over = Rc::new(Cell::new(0));
    let send_later = |number: u64| {
        let (socket, over) = (Rc::clone(&socket), Rc::clone(&over));
        annulus::spawn(async move {
            assert_eq!(socket.send_to(&number.to_le_bytes(), target).await.unwrap(), 8);
            over.set(over.get() + 1);
        })
    };
    let tasks = [send_later(sent), send_later(sent + 1)];
    settle().await;
    assert_eq!(over.get(), 0, "a send found room in a full buffer");
    tell.send(sent + 2).expect("the watcher waits");
    for task in tasks {
        task.await.unwrap();
    }
    let mut numbers = wire.await;
    // The last two raced each other.
    numbers[sent as usize..].sort_unstable();
    assert!(numbers.into_iter().eq(0..sent + 2), "a dropped send has sent something");
}

#[test]
fn without_memory_for_a_pool_datagrams_are_received_all_the_same() {
    const NAME: &str = "without_memory_for_a_pool_datagrams_are_received_all_the_same";
    Test::named(NAME).with_uring(|| {
        if !process::rings_are_counted() {
            return leave_out(NAME, "this kernel does not count rings as locked memory");
        }
        let command = process::role("role_receives_without_memory_for_a_pool");
        let (status, output, errors) = Running::start(command).finish();
        println!("{output}\n{errors}");
        assert!(status.success(), "the role has failed");
    });
}

// Started by the test above: what is locked counts for all processes of a user.
#[test]
fn role_receives_without_memory_for_a_pool() {
    if !process::in_role() {
        return;
    }
    become_a_user_with_little_memory().expect("give up rights");
    common::runtime(annulus::Driver::Uring).block_on(async {
        let hoard = Hoard::take_all();
        for _ in 0..3 {
            let (socket, held) = receive_some().await;
            assert_eq!(held, 0, "datagrams were received ahead, into what memory?");
            drop(socket);
        }
        let (early, _) = receive_some().await;
        drop(hoard);
        // The kernel gives it back a moment later.
        let mut held = 0;
        while held == 0 {
            settle().await;
            held = receive_some().await.1;
        }
        drop(early);
    });
}

/// One of whom no other test has processes.
fn become_a_user_with_little_memory() -> io::Result<()> {
    const USER: u32 = 65_533;
    let limit = libc::rlimit { rlim_cur: 512 << 10, rlim_max: 512 << 10 };
    // SAFETY: the pointer is to a whole rlimit, which the call reads.
    check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) })?;
    if is_root() {
        // SAFETY: no pointers; the group goes first, while we still may.
        check(unsafe { libc::setgid(USER) })?;
        // SAFETY: no pointers.
        check(unsafe { libc::setuid(USER) })?;
    }
    Ok(())
}

/// A socket that has received all that was sent to it, and how much of that was received ahead.
async fn receive_some() -> (UdpSocket, u64) {
    let mut socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind a socket");
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind a peer's socket");
    let mut buf = [0; 8];
    for _ in 0..2 {
        assert!(poll_once(pin!(socket.recv(&mut buf))).await.is_pending());
        settle().await;
    }
    for number in 0..5u64 {
        sender.send_to(&number.to_le_bytes(), socket.local_addr().unwrap()).unwrap();
    }
    settle().await;
    let mut held = 0;
    loop {
        match socket.into_std() {
            Ok(rest) => {
                // What was not received ahead is still in the kernel.
                let socket = UdpSocket::from_std(rest).expect("take the socket back");
                for number in held..5 {
                    socket.recv(&mut buf).await.expect("receive the rest");
                    assert_eq!(u64::from_le_bytes(buf), number);
                }
                return (socket, held);
            }
            Err(error) => {
                socket = error.into_socket().expect("the socket");
                socket.recv(&mut buf).await.expect("receive what is held");
                assert_eq!(u64::from_le_bytes(buf), held);
                held += 1;
            }
        }
    }
}

/// All the memory that this user may lock.
struct Hoard {
    _rings: Vec<IoUring>,
    _page: Box<Page>,
}

/// What a ring of buffers is registered from.
#[repr(align(4096))]
struct Page([u8; 4096]);

impl Hoard {
    fn take_all() -> Hoard {
        let rings: Vec<_> = std::iter::from_fn(|| IoUring::new(8).ok()).take(10_000).collect();
        let last = rings.last().expect("memory for one more ring");
        let page = Box::new(Page([0; 4096]));
        let address = page.0.as_ptr() as u64;
        // What is left is less than a ring's: a page at a time.
        // SAFETY: the page lives as long as the rings, which never use it.
        let take =
            |group| unsafe { last.submitter().register_buf_ring_with_flags(address, 1, group, 0) };
        let groups = (0..10_000).take_while(|&group| take(group).is_ok()).count();
        say(&format!("{} rings and {groups} pages locked", rings.len()));
        assert!(groups < 10_000, "memory has no end here");
        Hoard { _rings: rings, _page: page }
    }
}

/// A network of this thread's own with one wire, whose other end is this file.
struct Network(File);

impl Network {
    fn enter() -> io::Result<Network> {
        // SAFETY: the call takes no pointer; only this thread changes its network.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        let wire = File::options().read(true).write(true).open("/dev/net/tun")?;
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        let flags = |flags: libc::c_int| libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags as libc::c_short,
        };
        let address = |ip| libc::__c_anonymous_ifr_ifru { ifru_addr: address(ip) };
        request(&wire, libc::TUNSETIFF, flags(libc::IFF_TAP | libc::IFF_NO_PI))?;
        request(&socket, libc::SIOCSIFADDR, address(OURS))?;
        request(&socket, libc::SIOCSIFNETMASK, address([255, 255, 255, 0]))?;
        request(&socket, libc::SIOCSIFFLAGS, flags(libc::IFF_UP | libc::IFF_RUNNING))?;
        Ok(Network(wire))
    }

    /// Makes the neighbour known once told how many datagrams will come, and takes them.
    fn watch(self, told: Receiver<u64>) -> Peer<Vec<u64>> {
        let Network(wire) = self;
        peer(move || {
            let question = next_frame(&wire, is_question);
            let count = told.recv().expect("the test goes on");
            (&wire).write_all(&answer(&question)).expect("write to the wire");
            let datagram = || next_frame(&wire, is_datagram);
            // Behind the headers of Ethernet, IP and UDP.
            let number = |frame: Vec<u8>| frame[42..50].try_into().map(u64::from_le_bytes);
            (0..count).map(|_| number(datagram()).expect("eight bytes")).collect()
        })
    }
}

fn request(
    at: &impl AsRawFd,
    code: libc::Ioctl,
    value: libc::__c_anonymous_ifr_ifru,
) -> io::Result<()> {
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: value };
    request.ifr_name[..4].copy_from_slice(&[b'w', b'i', b'r', b'e'].map(|c| c as libc::c_char));
    // SAFETY: each of the codes used here reads and writes no more than a whole request.
    check(unsafe { libc::ioctl(at.as_raw_fd(), code, &raw mut request) })
}

fn address(ip: [u8; 4]) -> libc::sockaddr {
    let mut bytes = [0; 14];
    bytes[2..6].copy_from_slice(&ip);
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: bytes.map(|byte| byte as libc::c_char),
    }
}

fn next_frame(mut wire: &File, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut frame = [0; 2048];
    loop {
        let len = wire.read(&mut frame).expect("read from the wire");
        if wanted(&frame[..len]) {
            return frame[..len].to_vec();
        }
    }
}

/// Whether a frame asks for the neighbour's address (ARP).
fn is_question(frame: &[u8]) -> bool {
    frame[12..14] == [8, 6] && frame[38..42] == THEIRS
}

fn answer(question: &[u8]) -> Vec<u8> {
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
    let asker = &question[22..32];
    [&asker[..6], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &MAC, &THEIRS, asker].concat()
}

/// Whether a frame is a UDP datagram of IPv4.
fn is_datagram(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0] && frame[23] == 17
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const OURS: [u8; 4] = [10, 99, 0, 1];
const THEIRS: [u8; 4] = [10, 99, 0, 2];
