//! Descriptors: one owner each, closed once, seen by no child, and never taken for another.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use annulus::net::{TcpListener, TcpStream, UdpSocket};
use annulus::runtime::{Fd, Interest, Op, Ready, not_ready};
use annulus::task::yield_now;
use annulus::time::{sleep, timeout};
use annulus::{Driver, Runtime};

use common::bytes::Keyed;
use common::each_driver;
use common::peer::{self, peer};
use common::process::{self, READY, Running, Scratch, cpu_ms, need_strace, resident_bytes};
use common::steps::{listen, pair, poll_once, serve_echo, settle, with_peer};

mod common;

each_driver! {
    #[alone]
    fn a_child_program_sees_no_descriptor_of_the_runtime(driver: Driver) {
        let without = inherited();
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let (listener, addr) = listen().await;
            let _waiting = poll_once(pin!(listener.accept()).as_mut()).await;
            let (mut connected, mut accepted) = pair().await;
            for stream in [&mut connected, &mut accepted] {
                let _waiting = poll_once(pin!(stream.read(&mut [0; 8])).as_mut()).await;
            }
            // Accepted, and in nobody's hands yet.
            let _client = peer(move || peer::connect(addr)).await;
            settle().await;
            let of_driver = match driver {
                Driver::Uring => "anon_inode:[io_uring]",
                _ => "anon_inode:[eventpoll]",
            };
            let ours = targets();
            for kind in [of_driver, "anon_inode:[eventfd]", "socket:["] {
                let found = ours.iter().any(|target| target.starts_with(kind));
                assert!(found, "nothing to be inherited: no {kind} in {ours:?}");
            }
            let child = peer(inherited).await;
            let more: Vec<_> = child.iter().filter(|fd| !without.contains(fd)).collect();
            assert!(more.is_empty(), "a child program has inherited {more:?}");
        });
    }

    // A duplicate keeps the socket, and with it whatever was left registered, alive.
    #[alone]
    async fn events_of_a_duplicate_reach_nobody_when_the_stream_is_gone() {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let (mut stream, peer) = with_peer(move |mut stream| {
            while told.recv().is_ok() {
                stream.write_all(&[7; 100]).unwrap();
            }
        })
        .await;
        timeout(Duration::from_millis(5), stream.read(&mut [0; 8])).await.unwrap_err();
        let (listener, addr) = listen().await;
        let number = number_of(&stream);
        let duplicate = duplicate(number);
        drop(stream);
        settle().await;
        assert!(!is_registered(number), "the closed stream is still waited for");
        // Its number belongs to another stream now, which waits for bytes of its own.
        let mut taken = Vec::new();
        let (mut later, mut other) = loop {
            let connecting = annulus::spawn(TcpStream::connect(addr));
            let (accepted, _) = listener.accept().await.unwrap();
            let connected = connecting.await.unwrap().unwrap();
            if number_of(&connected) == number {
                break (connected, accepted);
            }
            if number_of(&accepted) == number {
                break (accepted, connected);
            }
            taken.push((connected, accepted));
            assert!(taken.len() < 100, "the number {number} is never used again");
        };
        let polls = Rc::<Cell<u32>>::default();
        let counted = Rc::clone(&polls);
        let reading = annulus::spawn(async move {
            let mut bytes = [0; 3];
            {
                let mut reading = pin!(later.read(&mut bytes));
                let counting = poll_fn(|cx| {
                    counted.set(counted.get() + 1);
                    reading.as_mut().poll(cx)
                });
                assert_eq!(counting.await.unwrap(), 3);
            }
            bytes
        });
        let before = cpu_ms();
        for _ in 0..20 {
            tell.send(()).unwrap();
            sleep(Duration::from_millis(20)).await;
        }
        let spent = cpu_ms() - before;
        assert!(spent < 150, "{spent} ms of processor time over another socket's bytes");
        assert_eq!(polls.get(), 1, "a read was woken for another socket's bytes");
        other.write_all(b"own").await.unwrap();
        assert_eq!(&reading.await.unwrap(), b"own");
        // What the duplicate's owner was sent is all there.
        let mut bytes = Vec::new();
        let mut theirs = std::net::TcpStream::from(duplicate);
        drop(tell);
        peer.await;
        theirs.set_nonblocking(false).unwrap();
        theirs.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 2000]);
    }

    // The kernel forgets a registration when the file behind the number is closed by somebody
    // else; to end it is an error then, and no reason to keep what belongs to it.
    #[alone]
    #[deadline_s(60)]
    async fn a_registration_that_cannot_be_ended_is_freed_all_the_same() {
        let (spare, _spare_other) = UnixStream::pair().unwrap();
        let mut grown = Vec::new();
        for _ in 0..3 {
            let before = resident_bytes();
            for round in 0..20_000 {
                let (ours, _other) = UnixStream::pair().unwrap();
                let fd = Fd::new(OwnedFd::from(ours));
                not_ready(&fd, Interest::Read).unwrap();
                let mut waiting = Op::new(Ready::new(Rc::clone(&fd), Interest::Read));
                assert!(poll_once(Pin::new(&mut waiting)).await.is_pending());
                // SAFETY: both numbers are open and this test's own; the call takes no pointer.
                let result = unsafe { libc::dup2(spare.as_raw_fd(), fd.raw()) };
                assert_eq!(result, fd.raw());
                drop((waiting, fd));
                // The descriptors go with the answers to the cancels.
                if round % 100 == 0 {
                    yield_now().await;
                }
            }
            settle().await;
            grown.push(resident_bytes().saturating_sub(before));
        }
        // A hundred bytes a round would be two megabytes.
        assert!(grown[2] < 1 << 20, "memory grew in the three rounds by {grown:?} bytes");
        let addr = serve_echo().await;
        peer(move || peer::echo(&peer::connect(addr), Keyed(1), 1000)).await;
    }

    #[alone]
    #[deadline_s(60)]
    fn no_descriptor_is_closed_twice(driver: Driver) {
        need_strace();
        let scratch = Scratch::new();
        let log = scratch.path("strace.log");
        let mut role = process::role("role_closes_in_every_way");
        role.env("ANNULUS_DRIVER", driver.to_string());
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "trace=close,close_range", "-o"]).arg(&log).arg("--");
        let mut child = Running::start(process::behind(strace, &role));
        child.line_after(READY);
        let (status, _, errors) = child.finish();
        assert!(status.success(), "{status}: {errors}");
        let log = std::fs::read_to_string(&log).unwrap();
        let closes = log.lines().filter(|line| line.contains("close(")).count();
        assert!(closes > 100, "{closes} descriptors were closed, so little was tested");
        let twice: Vec<_> = log.lines().filter(|line| line.contains("EBADF")).collect();
        assert!(twice.is_empty(), "closed though not open:\n{}", twice.join("\n"));
    }

    // The bytes are on their way out when their stream's number is another's already.
    async fn bytes_of_a_dropped_stream_go_where_they_were_meant_to() {
        for round in 0..100 {
            let len = [10, 5000, 60_000][round % 3];
            let key = Keyed(round as u64);
            let (mut stream, peer) =
                with_peer(move |stream| peer::expect_until_end(&stream, &mut key.cursor())).await;
            stream.write_all(&key.bytes(0, len)).await.unwrap();
            drop(stream);
            // In the same poll: these take whatever numbers are free.
            let later: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
            assert_eq!(peer.await, len as u64);
            for mut end in later.iter().flat_map(|(one, other)| [one, other]) {
                end.set_nonblocking(true).unwrap();
                let came = end.read(&mut [0; 8]);
                assert!(!came.is_ok_and(|n| n > 0), "bytes came to a stranger");
            }
        }
    }

    async fn into_std_refuses_while_bytes_are_unsent_and_gives_the_stream_back() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (mut stream, peer) = with_peer(move |stream| {
            wait.recv().unwrap();
            peer::expect_until_end(&stream, &mut Keyed(1).cursor())
        })
        .await;
        let mut offset = 0;
        loop {
            let bytes = Keyed(1).bytes(offset, 1 << 20);
            match timeout(Duration::from_millis(50), stream.write(&bytes)).await {
                Ok(n) => offset += n.unwrap() as u64,
                Err(_) => break,
            }
        }
        let refused = stream.into_std().unwrap_err();
        assert!(refused.to_string().contains("not sent"), "unclear: {refused}");
        let mut stream = refused.into_stream().expect("the stream is whole");
        go.send(()).unwrap();
        stream.write_all(&Keyed(1).bytes(offset, 1000)).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await, offset + 1000);
    }

    #[alone]
    #[deadline_s(60)]
    async fn a_udp_socket_beside_thousands_of_answers_is_given_away_or_back() {
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for bytes in [100, 10_000] {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let addr = socket.local_addr().unwrap();
            let (datagram, mut buffer) = (Keyed(2).bytes(0, bytes), vec![0; bytes]);
            // Where they are so large, the kernel is soon left with a poll instead of a receive.
            for _ in 0..10 {
                let mut receiving = pin!(socket.recv(&mut buffer));
                assert!(poll_once(receiving.as_mut()).await.is_pending());
                peer.send_to(&datagram, addr).unwrap();
                assert_eq!(receiving.await.unwrap(), bytes);
            }
            assert!(poll_once(pin!(socket.recv(&mut buffer)).as_mut()).await.is_pending());
            let left = beside_thousands_of_answers(|| socket.into_std()).await;
            let socket = match left {
                Ok(socket) => UdpSocket::from_std(socket).unwrap(),
                Err(refused) => {
                    assert!(refused.to_string().contains("try again"), "unclear: {refused}");
                    refused.into_socket().expect("the socket is whole")
                }
            };
            peer.send_to(&datagram, addr).unwrap();
            assert_eq!(within(socket.recv(&mut buffer)).await.unwrap(), bytes);
            assert_eq!(buffer, datagram);
            let socket = socket.into_std().expect("an idle socket");
            assert_eq!(socket.local_addr().unwrap(), addr);
        }
    }

    #[alone]
    #[deadline_s(60)]
    async fn a_listener_beside_thousands_of_answers_is_given_away_or_back() {
        let (listener, addr) = listen().await;
        assert!(poll_once(pin!(listener.accept()).as_mut()).await.is_pending());
        let left = beside_thousands_of_answers(|| listener.into_std()).await;
        let listener = match left {
            Ok(listener) => TcpListener::from_std(listener).unwrap(),
            Err(refused) => {
                assert!(refused.to_string().contains("try again"), "unclear: {refused}");
                refused.into_socket().expect("the listener is whole")
            }
        };
        let client = peer(move || peer::connect(addr)).await;
        let (stream, from) = within(listener.accept()).await.unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        drop((stream, client));
        let listener = listener.into_std().expect("an idle listener");
        assert_eq!(listener.local_addr().unwrap(), addr);
    }

    fn a_listener_is_given_back_where_it_does_not_live(driver: Driver) {
        let home = common::runtime(driver);
        let (listener, addr) = home.block_on(listen());
        let refused = listener.into_std().unwrap_err();
        let listener = refused.into_socket().expect("the listener is whole");
        let client = peer::connect(addr);
        home.block_on(async { listener.accept().await.map(drop).unwrap() });
        drop(client);
    }

    async fn sockets_given_to_the_standard_library_block_and_close_on_exec() {
        let (mut stream, peer) = with_peer(|stream| stream).await;
        let _peer = peer.await;
        timeout(Duration::from_millis(5), stream.read(&mut [0; 8])).await.unwrap_err();
        let (listener, _) = listen().await;
        timeout(Duration::from_millis(5), listener.accept()).await.map(drop).unwrap_err();
        let stream = stream.into_std().expect("an idle stream");
        let listener = listener.into_std().expect("an idle listener");
        for fd in [stream.as_fd(), listener.as_fd()] {
            // SAFETY: the call takes no pointer.
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
            assert_eq!(flags & libc::O_NONBLOCK, 0, "the standard library expects it to block");
            // SAFETY: as above.
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
            assert_ne!(flags & libc::FD_CLOEXEC, 0, "a child program would inherit it");
        }
    }
}

/// Does this while thousands of answers wait in the kernel, which hands out some 20 at a time: what
/// it is asked now it answers last.
async fn beside_thousands_of_answers<T>(work: impl FnOnce() -> T) -> T {
    let (mut streams, far): (Vec<_>, Vec<_>) = (0..3000)
        .map(|_| UnixStream::pair().unwrap())
        .map(|(near, far)| (annulus::net::UnixStream::from_std(near).unwrap(), far))
        .unzip();
    for stream in &mut streams {
        assert!(poll_once(pin!(stream.read(&mut [0; 8])).as_mut()).await.is_pending());
    }
    settle().await;
    // In one poll with the work, so that none is taken before it.
    let writing = peer(move || {
        far.iter().for_each(|mut far| far.write_all(b"some").unwrap());
        far
    });
    let _far = writing.join();
    work()
}

/// Fails rather than waits for ever.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(peer::patience(), future).await.expect("it hangs")
}

// Started under strace by no_descriptor_is_closed_twice.
#[test]
fn role_closes_in_every_way() {
    if !process::in_role() {
        return;
    }
    let runtime = Runtime::new().expect("build a runtime");
    let kept = runtime.block_on(async {
        for round in 0..24 {
            close_one_way(round).await;
        }
        // A listener with connections in its queue, and a stream that outlives the runtime.
        let (listener, addr) = listen().await;
        let _waiting = poll_once(pin!(listener.accept()).as_mut()).await;
        let clients = peer(move || (0..10).map(|_| peer::connect(addr)).collect::<Vec<_>>()).await;
        settle().await;
        drop(listener);
        peer(move || clients.iter().for_each(peer::expect_closed)).await;
        let full = peer::full_listener();
        let addr = full.0.local_addr().unwrap();
        for _ in 0..5 {
            let connecting = timeout(Duration::from_millis(2), TcpStream::connect(addr));
            drop(connecting.await);
        }
        let mut kept = pair().await;
        let _waiting = poll_once(pin!(kept.0.read(&mut [0; 8])).as_mut()).await;
        drop(annulus::spawn(async {
            let _held = pair().await;
            sleep(Duration::from_secs(3600)).await;
        }));
        settle().await;
        kept
    });
    drop(runtime);
    drop(kept);
    println!("{READY}over");
}

async fn close_one_way(round: u32) {
    let (mut one, mut other) = pair().await;
    match round % 6 {
        0 => drop(poll_once(pin!(one.read(&mut [0; 8])).as_mut()).await),
        1 => {
            one.set_linger(Some(Duration::ZERO)).unwrap();
            one.write_all(&[1; 5000]).await.unwrap();
            drop(one);
            while other.read(&mut [0; 500]).await.is_ok_and(|n| n > 0) {}
        }
        2 => {
            let (mut read, write) = one.into_split();
            let task = annulus::spawn(async move { read.read(&mut [0; 8]).await });
            settle().await;
            drop(write);
            task.abort();
        }
        3 => {
            one.set_linger(Some(Duration::from_secs(1))).unwrap();
            one.write_all(&[1; 500]).await.unwrap();
        }
        4 => {
            let bytes = vec![0; 8 << 20];
            let writing = pin!(one.write_all(&bytes));
            timeout(Duration::from_millis(5), writing).await.unwrap_err();
        }
        _ => {
            let _waiting = poll_once(pin!(one.read(&mut [0; 8])).as_mut()).await;
            let one = one.into_std().expect("an idle stream");
            drop(TcpStream::from_std(one).unwrap());
            let listener = listen().await.0.into_std().expect("an idle listener");
            drop(TcpListener::from_std(listener).unwrap());
        }
    }
}

/// What the descriptors of a child program stand for.
fn inherited() -> Vec<String> {
    // The shell expands the pattern itself: nothing but its own descriptors is open.
    let list = "for fd in /proc/$$/fd/*; do readlink $fd; done";
    let output = Command::new("sh").args(["-c", list]).output().expect("run a shell");
    let text = String::from_utf8(output.stdout).expect("paths are text here");
    // The pipes between it and us have new numbers each time.
    text.lines().filter(|line| !line.starts_with("pipe:")).map(str::to_owned).collect()
}

/// Whether an epoll instance of this process waits for this number.
fn is_registered(number: i32) -> bool {
    let is_epoll = |fd: &i32| {
        std::fs::read_link(format!("/proc/self/fd/{fd}"))
            .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]")
    };
    process::descriptors().into_iter().filter(is_epoll).any(|epoll| {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap();
        let targets = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
        targets.into_iter().any(|line| line.split_whitespace().next() == Some(&number.to_string()))
    })
}

/// What the descriptors of this process stand for.
fn targets() -> Vec<String> {
    let link = |fd| std::fs::read_link(format!("/proc/self/fd/{fd}"));
    let links = process::descriptors().into_iter().filter_map(|fd| link(fd).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

/// The number of a stream's descriptor, which only its debug text tells.
fn number_of(stream: &TcpStream) -> i32 {
    let text = format!("{stream:?}");
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number in {text:?}"))
}

fn duplicate(number: i32) -> OwnedFd {
    // SAFETY: the stream is open, and borrowed for as long as the call takes.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned().expect("duplicate a descriptor")
}
