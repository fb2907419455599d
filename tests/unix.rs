//! Unix sockets: what they share with TCP in short, what only they do at length.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{self, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use annulus::net::{Credentials, UnixListenOptions, UnixListener, UnixStream};
use annulus::time::{sleep, timeout};

use common::bytes::Keyed;
use common::each_driver;
use common::peer::{Peer, patience, peer};
use common::process::{Scratch, descriptors, open_descriptors};
use common::steps::{eventually, poll_once, settle};

mod common;

each_driver! {
    async fn bytes_go_both_ways_by_path() {
        let folder = Scratch::new();
        let path = folder.path("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).await.unwrap();
        let (served, from) = listener.accept().await.unwrap();
        assert!(from.is_unnamed());
        assert_eq!(listener.local_addr().unwrap().as_pathname(), Some(path.as_path()));
        assert_eq!(client.peer_addr().unwrap().as_pathname(), Some(path.as_path()));
        assert_eq!(served.local_addr().unwrap().as_pathname(), Some(path.as_path()));
        assert!(client.local_addr().unwrap().is_unnamed());
        assert!(served.peer_addr().unwrap().is_unnamed());
        exchange(client, served).await;
    }

    async fn bytes_go_both_ways_by_abstract_name() {
        let name = name();
        let listener = UnixListener::bind_addr(&name).unwrap();
        let client = UnixStream::connect_addr(&name).await.unwrap();
        let (served, from) = listener.accept().await.unwrap();
        assert!(from.is_unnamed());
        for address in [listener.local_addr(), client.peer_addr(), served.local_addr()] {
            assert_eq!(address.unwrap().as_abstract_name(), name.as_abstract_name());
        }
        exchange(client, served).await;
    }

    async fn a_pair_is_connected_and_has_no_names() {
        let (one, other) = UnixStream::pair().unwrap();
        for stream in [&one, &other] {
            assert!(stream.local_addr().unwrap().is_unnamed());
            assert!(stream.peer_addr().unwrap().is_unnamed());
        }
        exchange(one, other).await;
    }

    async fn an_unnamed_address_takes_a_free_abstract_name() {
        let listener = UnixListener::bind("").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(address.as_abstract_name().is_some_and(|name| !name.is_empty()), "{address:?}");
        UnixStream::connect_addr(&address).await.unwrap();
    }

    async fn the_peers_credentials_are_those_of_this_process() {
        // SAFETY: the call takes nothing and cannot fail.
        let uid = unsafe { libc::geteuid() };
        // SAFETY: as above.
        let gid = unsafe { libc::getegid() };
        let ours = Credentials { pid: Some(std::process::id() as i32), uid, gid };
        let (one, other) = UnixStream::pair().unwrap();
        assert_eq!(one.peer_cred().unwrap(), ours);
        assert_eq!(other.peer_cred().unwrap(), ours);
        let (served, client) = with_peer(|stream| stream).await;
        assert_eq!(served.peer_cred().unwrap(), ours);
        drop(client.await);
    }

    async fn a_named_client_is_told_apart() {
        let folder = Scratch::new();
        let listener = UnixListener::bind(folder.path("socket")).unwrap();
        for client_name in [folder.path("client"), full_name(&folder)] {
            let client = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
            let client = client.unwrap();
            bind_raw(&client, client_name.as_os_str().as_bytes());
            client.connect(&socket2::SockAddr::unix(folder.path("socket")).unwrap()).unwrap();
            let (_served, from) = listener.accept().await.unwrap();
            // A name of 108 bytes is more than the standard library can express: none is said.
            let fits = client_name.as_os_str().len() < 108;
            assert_eq!(from.as_pathname(), fits.then_some(client_name.as_path()));
        }
    }

    async fn paths_that_cannot_be_are_invalid_input() {
        let folder = Scratch::new();
        let missing = 107 - folder.path("").as_os_str().len();
        let longest = folder.path(&"x".repeat(missing));
        let listener = UnixListener::bind(&longest).unwrap();
        assert_eq!(listener.local_addr().unwrap().as_pathname(), Some(longest.as_path()));
        UnixStream::connect(&longest).await.unwrap();
        for path in [folder.path(&"x".repeat(missing + 1)), folder.path("a\0b")] {
            let bound = UnixListener::bind(&path).unwrap_err();
            assert_eq!(bound.kind(), ErrorKind::InvalidInput, "{bound}");
            let connected = UnixStream::connect(&path).await.unwrap_err();
            assert_eq!(connected.kind(), ErrorKind::InvalidInput, "{connected}");
        }
    }

    async fn a_path_stays_and_the_next_bind_says_what_to_do() {
        let folder = Scratch::new();
        let path = folder.path("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the drop has removed the path");
        let error = UnixListener::bind(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains("remove the file"), "{error}");
        let error = UnixStream::connect(&path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
        let error = UnixStream::connect(&path).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(UnixListener::bind(folder.path("a/b")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    async fn a_dropped_listener_frees_its_abstract_name_and_ends_its_queue() {
        let name = name();
        for _ in 0..20 {
            let listener = UnixListener::bind_addr(&name).unwrap();
            let mut clients = Vec::new();
            {
                let mut accepting = pin!(listener.accept());
                assert!(poll_once(accepting.as_mut()).await.is_pending());
                clients.push(net::UnixStream::connect_addr(&name).unwrap());
                sleep(Duration::from_millis(1)).await;
                clients.push(net::UnixStream::connect_addr(&name).unwrap());
            }
            let busy = UnixListener::bind_addr(&name).unwrap_err();
            assert_eq!(busy.kind(), ErrorKind::AddrInUse);
            drop(listener);
            drop(UnixListener::bind_addr(&name).expect("the name is free"));
            for mut client in clients {
                client.set_read_timeout(Some(patience())).unwrap();
                match client.read(&mut [0]) {
                    Ok(0) => {}
                    Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
                    other => panic!("the queued client is not over: {other:?}"),
                }
            }
        }
    }

    async fn a_half_closed_connection_works_the_other_way() {
        let (mut stream, peer) = with_peer(|mut stream| {
            expect_until_end(&stream, Keyed(1), 5000);
            stream.write_all(&Keyed(2).bytes(0, 200_000)).unwrap();
        })
        .await;
        stream.write_all(&Keyed(1).bytes(0, 5000)).await.unwrap();
        stream.shutdown().await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(stream.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        read_until_end(&mut stream, Keyed(2), 200_000).await;
        peer.await;
    }

    async fn after_the_peers_end_writes_go_on() {
        let (mut stream, peer) = with_peer(|stream| {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            expect_until_end(&stream, Keyed(3), 300_000);
        })
        .await;
        for _ in 0..3 {
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        }
        stream.write_all(&Keyed(3).bytes(0, 300_000)).await.unwrap();
        let (mut read, write) = stream.into_split();
        drop(write);
        assert_eq!(read.read(&mut [0; 8]).await.unwrap(), 0);
        peer.await;
    }

    async fn the_peer_sees_the_end_at_once_though_a_read_was_pending() {
        let (mut stream, peer) = with_peer(|mut stream| {
            assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
            Instant::now()
        })
        .await;
        let task = annulus::spawn(async move { stream.read(&mut [0; 100]).await });
        settle().await;
        let start = Instant::now();
        task.abort();
        let took = peer.await.duration_since(start);
        assert!(took < Duration::from_secs(1), "the end came after {took:?}");
    }

    async fn dropped_reads_lose_no_byte() {
        const TOTAL: usize = 3_000_000;
        let (mut stream, peer) = with_peer(|mut stream| {
            for (index, piece) in Keyed(4).bytes(0, TOTAL).chunks(3001).enumerate() {
                stream.write_all(piece).unwrap();
                if index % 4 == 0 {
                    thread::yield_now();
                }
            }
        })
        .await;
        let mut received = Keyed(4).cursor();
        let mut dropped = 0;
        for round in 0.. {
            let mut buf = vec![0; [10, 5000, 100_000][round % 3]];
            let patience = Duration::from_micros(round as u64 % 50);
            let outcome = if round % 2 == 0 {
                timeout(patience, stream.read(&mut buf)).await
            } else {
                timeout(patience, stream.read_exact(&mut buf)).await
            };
            match outcome {
                Ok(Ok(0)) => break,
                Ok(Ok(count)) => received.check(&buf[..count]),
                Ok(Err(e)) if e.kind() == ErrorKind::UnexpectedEof => {
                    let left = TOTAL - received.offset as usize;
                    received.check(&buf[..left]);
                }
                Ok(Err(error)) => panic!("{error}"),
                Err(_) => dropped += 1,
            }
        }
        assert_eq!(received.offset as usize, TOTAL);
        assert!(dropped > 0, "no read was ever cut short, so nothing was tested");
        peer.await;
    }

    async fn dropped_accepts_lose_no_connection() {
        const CLIENTS: u64 = 300;
        let name = name();
        let listener = UnixListener::bind_addr(&name).unwrap();
        let clients = peer(move || {
            for number in 0..CLIENTS {
                let mut client = net::UnixStream::connect_addr(&name).unwrap();
                // Gone before it is accepted, at times: it is handed out all the same.
                client.write_all(&number.to_le_bytes()).unwrap();
            }
        });
        let mut seen = Vec::new();
        let mut round = 0;
        while (seen.len() as u64) < CLIENTS {
            round += 1;
            let patience = Duration::from_micros(round % 50);
            if let Ok(accepted) = timeout(patience, listener.accept()).await {
                let mut number = [0; 8];
                accepted.unwrap().0.read_exact(&mut number).await.unwrap();
                seen.push(u64::from_le_bytes(number));
            }
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..CLIENTS), "connections were lost or came twice");
        clients.await;
    }

    async fn a_slow_reader_gets_every_byte_of_every_kind_of_write() {
        const ROUND: usize = 1_200_000;
        let (mut stream, peer) = with_peer(|mut stream| {
            let mut received = Keyed(5).cursor();
            let mut buf = vec![0; 7777];
            loop {
                let count = stream.read(&mut buf).unwrap();
                if count == 0 {
                    return received.offset;
                }
                received.check(&buf[..count]);
                thread::yield_now();
            }
        })
        .await;
        let mut sent = Keyed(5).cursor();
        for _ in 0..3 {
            for piece in sent.next(ROUND).chunks(900) {
                stream.write_all(piece).await.unwrap();
            }
            stream.write_all(&sent.next(ROUND)).await.unwrap();
            let (count, _) = stream.send_all(sent.next(ROUND)).await.unwrap();
            assert_eq!(count, ROUND);
        }
        stream.shutdown().await.unwrap();
        assert_eq!(peer.await, sent.offset);
    }

    async fn leases_and_owned_buffers_receive_megabytes() {
        const TOTAL: usize = 4_000_000;
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let sending = annulus::spawn(async move {
            one.send_all(Keyed(6).bytes(0, TOTAL)).await.unwrap();
        });
        let mut received = Keyed(6).cursor();
        loop {
            let lease = other.recv_lease().await.unwrap();
            if lease.is_empty() {
                break;
            }
            received.check(&lease);
            drop(lease);
            let (count, buffer) = other.recv(Vec::with_capacity(30_000)).await.unwrap();
            assert_eq!(count, buffer.len());
            received.check(&buffer);
        }
        assert_eq!(received.offset as usize, TOTAL);
        sending.await.unwrap();
    }

    async fn connects_wait_for_room_in_the_backlog() {
        let name = name();
        let options = UnixListenOptions::new().backlog(1);
        let listener = UnixListener::bind_addr_with(&name, options).unwrap();
        let queued = fill_backlog(&name);
        assert_eq!(queued.len(), 2, "the backlog option is not the kernel's");
        let late: Vec<_> = (0..5_u8)
            .map(|number| {
                let name = name.clone();
                annulus::spawn(async move {
                    let mut stream = UnixStream::connect_addr(&name).await.unwrap();
                    stream.write_all(&[number]).await.unwrap();
                })
            })
            .collect();
        settle().await;
        assert!(late.iter().all(|task| !task.is_finished()), "there was no room");
        for _ in &queued {
            listener.accept().await.unwrap();
        }
        let mut numbers = Vec::new();
        for _ in &late {
            let mut number = [0];
            listener.accept().await.unwrap().0.read_exact(&mut number).await.unwrap();
            numbers.push(number[0]);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
        for task in late {
            task.await.unwrap();
        }
    }

    #[alone]
    async fn a_connect_dropped_before_a_full_backlog_leaves_nothing() {
        let name = name();
        let listener = net::UnixListener::bind_addr(&name).unwrap();
        socket2::SockRef::from(&listener).listen(0).unwrap();
        let queued = fill_backlog(&name);
        let before = open_descriptors();
        for _ in 0..20 {
            let connecting = UnixStream::connect_addr(&name);
            assert!(timeout(Duration::from_millis(2), connecting).await.is_err());
        }
        drop(UnixStream::connect_addr(&name));
        assert_eq!(open_descriptors(), before);
        listener.set_nonblocking(true).unwrap();
        for _ in &queued {
            listener.accept().unwrap();
        }
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    async fn a_listener_that_goes_while_a_connect_waits_refuses_it() {
        let name = name();
        let listener = net::UnixListener::bind_addr(&name).unwrap();
        socket2::SockRef::from(&listener).listen(0).unwrap();
        let _queued = fill_backlog(&name);
        let connecting = annulus::spawn({
            let name = name.clone();
            async move { UnixStream::connect_addr(&name).await.map(drop) }
        });
        settle().await;
        drop(listener);
        let error = connecting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    fn a_stream_goes_on_in_another_runtime(driver: Driver) {
        let (mut near, far) = net::UnixStream::pair().unwrap();
        near.set_read_timeout(Some(patience())).unwrap();
        let (ready, wait) = std::sync::mpsc::channel();
        let first = peer(move || {
            common::runtime(driver).block_on(async {
                let mut stream = UnixStream::from_std(far).unwrap();
                let mut part = [0; 10];
                stream.read_exact(&mut part).await.unwrap();
                Keyed(7).check(0, &part);
                // More than the socket takes: the rest travels with the stream.
                let reply = Keyed(8).bytes(0, 600_000);
                let mut written = 0;
                while let Ok(count) =
                    timeout(Duration::from_millis(20), stream.write(&reply[written..])).await
                {
                    written += count.unwrap();
                }
                ready.send((stream.detach().unwrap(), written)).unwrap();
            });
        });
        near.write_all(&Keyed(7).bytes(0, 1000)).unwrap();
        let (detached, written) = wait.recv().unwrap();
        first.join();
        let second = peer(move || {
            common::runtime(driver).block_on(async {
                let mut stream = UnixStream::attach(detached).unwrap();
                let mut rest = [0; 990];
                stream.read_exact(&mut rest).await.unwrap();
                Keyed(7).check(10, &rest);
                let rest = Keyed(8).bytes(written as u64, 600_000 - written);
                stream.write_all(&rest).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        });
        expect_until_end(&near, Keyed(8), 600_000);
        second.join();
    }

    async fn streams_and_listeners_of_the_standard_library_come_and_go() {
        let name = name();
        let listener = UnixListener::from_std(net::UnixListener::bind_addr(&name).unwrap());
        let listener = listener.unwrap();
        timeout(Duration::from_millis(5), listener.accept()).await.map(drop).unwrap_err();
        let client = net::UnixStream::connect_addr(&name).unwrap();
        let mut client = UnixStream::from_std(client).unwrap();
        let (mut served, _) = listener.accept().await.unwrap();
        timeout(Duration::from_millis(5), client.read(&mut [0; 8])).await.unwrap_err();
        client.write_all(b"to std").await.unwrap();
        client.flush().await.unwrap();
        served.read_exact(&mut [0; 6]).await.unwrap();
        let (mut client, mut served) = (client.into_std().unwrap(), served.into_std().unwrap());
        let listener = listener.into_std().unwrap();
        peer(move || {
            // A socket that did not block would answer at once.
            let replying = peer(move || {
                thread::sleep(Duration::from_millis(10));
                served.write_all(b"reply").unwrap();
                served
            });
            let mut reply = [0; 5];
            client.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"reply");
            drop(replying.join());
            let connecting = peer(move || {
                thread::sleep(Duration::from_millis(10));
                net::UnixStream::connect_addr(&name).unwrap()
            });
            listener.accept().unwrap();
            drop(connecting.join());
        })
        .await;
    }

    #[alone]
    fn every_descriptor_closes_on_exec_and_does_not_block(driver: Driver) {
        let inherited = descriptors();
        let runtime = common::runtime(driver);
        runtime.block_on(async {
            let rest = descriptors();
            let listener = UnixListener::bind_addr(&name()).unwrap();
            let address = listener.local_addr().unwrap();
            let client = UnixStream::connect_addr(&address).await.unwrap();
            let (served, _) = listener.accept().await.unwrap();
            let pair = UnixStream::pair().unwrap();
            let mut sockets = 0;
            for fd in descriptors().into_iter().filter(|fd| !inherited.contains(fd)) {
                // SAFETY: the call takes no pointer; a closed descriptor is an error.
                let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
                assert!(flags < 0 || flags & libc::FD_CLOEXEC != 0, "{fd} is inherited");
                if !rest.contains(&fd) {
                    // SAFETY: as above.
                    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
                    assert!(flags & libc::O_NONBLOCK != 0, "{fd} blocks");
                    sockets += 1;
                }
            }
            assert_eq!(sockets, 5);
            drop((client, served, pair));
        });
    }

    // What unix(7) leaves unsaid: bytes first, then the reset.
    async fn a_close_with_unread_bytes_is_a_reset_for_the_peer() {
        let (stream, mut far) = with_std_end().await;
        far.write_all(b"unread").unwrap();
        drop(stream);
        let error = peer(move || far.read(&mut [0; 8]).unwrap_err()).await;
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);

        let (mut stream, mut far) = with_std_end().await;
        far.write_all(b"last words").unwrap();
        stream.write_all(b"unread").await.unwrap();
        stream.flush().await.unwrap();
        drop(far);
        let mut last = [0; 10];
        stream.read_exact(&mut last).await.unwrap();
        assert_eq!(&last, b"last words");
        let error = stream.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    }

    async fn writes_to_a_peer_that_has_gone_are_broken_pipes_and_no_signal() {
        // SAFETY: no handler is installed, only the default action restored; sockets of the
        // standard library never raise the signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        for len in [10, 100_000] {
            let (mut stream, far) = with_std_end().await;
            drop(far);
            // A small write is sent later, and the flush is told.
            let told = match stream.write_all(&vec![0; len]).await {
                Ok(()) => stream.flush().await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!(told.kind(), ErrorKind::BrokenPipe);
            let told = stream.send_all(vec![0; len]).await.map(drop);
            let told = match told {
                Ok(()) => stream.flush().await.unwrap_err(),
                Err(error) => error.error,
            };
            assert_eq!(told.kind(), ErrorKind::BrokenPipe);
            // Quietly, at the end of the turn.
            let _ = stream.write_all(b"quiet").await;
            settle().await;
            assert_eq!(stream.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        }
    }

    async fn a_linger_time_changes_nothing() {
        for linger in [Duration::ZERO, Duration::from_secs(5)] {
            for inherited in [false, true] {
                let (near, far) = net::UnixStream::pair().unwrap();
                far.set_read_timeout(Some(patience())).unwrap();
                if inherited {
                    socket2::SockRef::from(&near).set_linger(Some(linger)).unwrap();
                }
                let mut stream = UnixStream::from_std(near).unwrap();
                if !inherited {
                    stream.set_linger(Some(linger)).unwrap();
                }
                assert_eq!(stream.linger().unwrap(), Some(linger));
                stream.write_all(&Keyed(9).bytes(0, 3000)).await.unwrap();
                drop(stream);
                peer(move || expect_until_end(&far, Keyed(9), 3000)).await;
            }
        }
    }

    // A read ends behind such a message, however much lies behind it, and no edge follows.
    #[alone]
    async fn bytes_behind_a_message_with_descriptors_arrive() {
        let before = open_descriptors();
        let (mut stream, mut far) = with_std_end().await;
        for waiting in [false, true] {
            if waiting {
                let mut buf = [0; 64];
                let reading = stream.read(&mut buf);
                timeout(Duration::from_millis(5), reading).await.unwrap_err();
            }
            for _ in 0..3 {
                send_with_descriptor(&far, b"abc");
                far.write_all(b"def").unwrap();
            }
            let mut received = Vec::new();
            while received.len() < 18 {
                let mut buf = [0; 64];
                let outcome = timeout(Duration::from_secs(5), stream.read(&mut buf)).await;
                let count = outcome.expect("the bytes behind the descriptor are stuck").unwrap();
                received.extend_from_slice(&buf[..count]);
            }
            assert_eq!(received, b"abcdefabcdefabcdef");
        }
        drop((stream, far));
        eventually("the descriptors are closed", || open_descriptors() <= before).await;
    }

    async fn two_tasks_accept_on_one_listener() {
        let name = name();
        let listener = Rc::new(UnixListener::bind_addr(&name).unwrap());
        let accepting: Vec<_> = (0..2)
            .map(|_| {
                let listener = Rc::clone(&listener);
                annulus::spawn(async move { listener.accept().await.map(drop) })
            })
            .collect();
        settle().await;
        let clients = [(); 2].map(|()| net::UnixStream::connect_addr(&name).unwrap());
        for task in accepting {
            task.await.unwrap().unwrap();
        }
        drop(clients);
    }
}

#[test]
fn outside_of_a_runtime_there_are_no_sockets() {
    let folder = Scratch::new();
    let error = UnixListener::bind(folder.path("socket")).unwrap_err();
    assert!(error.to_string().contains("runtime"), "{error}");
    assert!(!folder.path("socket").exists(), "a path was left behind");
    assert!(UnixStream::pair().unwrap_err().to_string().contains("runtime"));
}

/// An abstract name that nobody else has.
fn name() -> SocketAddr {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("annulus-test-{}-{unique}", std::process::id());
    SocketAddr::from_abstract_name(name).unwrap()
}

/// Two ends, the far one of the standard library and with timeouts.
async fn with_std_end() -> (UnixStream, net::UnixStream) {
    let name = name();
    let listener = UnixListener::bind_addr(&name).unwrap();
    let far = net::UnixStream::connect_addr(&name).unwrap();
    far.set_read_timeout(Some(patience())).unwrap();
    far.set_write_timeout(Some(patience())).unwrap();
    (listener.accept().await.unwrap().0, far)
}

/// A connection to a blocking peer, which does this work with its end.
async fn with_peer<T: Send + 'static>(
    work: impl FnOnce(net::UnixStream) -> T + Send + 'static,
) -> (UnixStream, Peer<T>) {
    let (stream, far) = with_std_end().await;
    (stream, peer(move || work(far)))
}

/// Sends keyed bytes both ways at once, and ends both ways.
async fn exchange(one: UnixStream, other: UnixStream) {
    let sides = [(one, Keyed(100), Keyed(200)), (other, Keyed(200), Keyed(100))];
    let tasks = sides.map(|(stream, out, back)| {
        annulus::spawn(async move {
            let (mut read, mut write) = stream.into_split();
            let writing = annulus::spawn(async move {
                for piece in out.bytes(0, 500_000).chunks(40_001) {
                    write.write_all(piece).await.unwrap();
                }
            });
            let mut received = back.cursor();
            let mut buf = vec![0; 20_000];
            while let count @ 1.. = read.read(&mut buf).await.unwrap() {
                received.check(&buf[..count]);
            }
            assert_eq!(received.offset, 500_000);
            writing.await.unwrap();
        })
    });
    for task in tasks {
        task.await.unwrap();
    }
}

async fn read_until_end(stream: &mut UnixStream, key: Keyed, total: u64) {
    let mut received = key.cursor();
    let mut buf = vec![0; 30_000];
    while let count @ 1.. = stream.read(&mut buf).await.unwrap() {
        received.check(&buf[..count]);
    }
    assert_eq!(received.offset, total);
}

#[track_caller]
fn expect_until_end(mut stream: &net::UnixStream, key: Keyed, total: u64) {
    let mut received = key.cursor();
    let mut buf = vec![0; 10_000];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => break,
            Ok(count) => received.check(&buf[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}"),
        }
    }
    assert_eq!(received.offset, total);
}

/// Connects until there is no room left.
fn fill_backlog(name: &SocketAddr) -> Vec<socket2::Socket> {
    let address = [b"\0", name.as_abstract_name().unwrap()].concat();
    let address = socket2::SockAddr::unix(std::ffi::OsStr::from_bytes(&address)).unwrap();
    let connect = || {
        let kind = socket2::Type::STREAM.nonblocking();
        let socket = socket2::Socket::new(socket2::Domain::UNIX, kind, None).unwrap();
        match socket.connect(&address) {
            Ok(()) => Some(socket),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                None
            }
        }
    };
    std::iter::from_fn(connect).collect()
}

/// A path of 108 bytes: the whole field, without a NUL behind it.
fn full_name(folder: &Scratch) -> std::path::PathBuf {
    let missing = 108 - folder.path("").as_os_str().len();
    folder.path(&"y".repeat(missing))
}

fn bind_raw(socket: &socket2::Socket, path: &[u8]) {
    // SAFETY: zero is a value of all its fields.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + path.len();
    let length = length as libc::socklen_t;
    // SAFETY: the pointer is to a whole address, of which so many bytes are used.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
}

/// Sends bytes with a descriptor beside them.
fn send_with_descriptor(stream: &net::UnixStream, bytes: &[u8]) {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        fd: libc::c_int,
        padding: libc::c_int,
    }
    let header = libc::cmsghdr {
        cmsg_len: size_of::<libc::cmsghdr>() + size_of::<libc::c_int>(),
        cmsg_level: libc::SOL_SOCKET,
        cmsg_type: libc::SCM_RIGHTS,
    };
    let mut control = Control { header, fd: stream.as_raw_fd(), padding: 0 };
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: zero is a value of all its fields.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: the header, what it points to and their lengths are valid for the call.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, 0) };
    assert_eq!(sent, bytes.len() as isize, "{}", std::io::Error::last_os_error());
}
