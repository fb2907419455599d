//! UDP sockets: datagrams whole and in order, none lost, and none kept from whoever waits.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use annulus::Driver;
use annulus::buf::IoBuf;
use annulus::net::{UdpOptions, UdpSocket};
use annulus::time::timeout;

use common::bytes::{Keyed, Numbers};
use common::each_driver;
use common::peer::{self, Peer, peer};
use common::steps::{Either, eventually, eventually_blocking, poll_once, race, settle};

mod common;

each_driver! {
    async fn datagrams_of_all_sizes_go_both_ways() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let (server, addr) = bind_to(local).await;
            let (client, client_addr) = bind_to(local).await;
            let mut buf = vec![0; 70_000];
            for len in [0, 1, 100, 1472, 1473, 4096, 9000, 60 * 1024, LONGEST] {
                let bytes = Keyed(len as u64).bytes(0, len);
                assert_eq!(client.send_to(&bytes, addr).await.unwrap(), len);
                assert_eq!(server.recv_from(&mut buf).await.unwrap(), (len, client_addr));
                assert!(buf[..len] == bytes, "other bytes of {len}");
                assert_eq!(server.send_to(&buf[..len], client_addr).await.unwrap(), len);
                assert_eq!(client.recv(&mut buf).await.unwrap(), len);
                assert!(buf[..len] == bytes, "other bytes of {len}");
            }
            let too_long = vec![0; 65_536];
            let error = client.send_to(&too_long, addr).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
            client.send_to(b"on", addr).await.unwrap();
            assert_eq!(server.recv(&mut buf).await.unwrap(), 2);
        }
    }

    async fn buffers_that_are_given_come_back() {
        let (server, addr) = bind().await;
        let (client, client_addr) = bind().await;
        for len in [0, 1, 1500, 60 * 1024] {
            let bytes = Keyed(9).bytes(0, len);
            let (sent, bytes) = client.send_to_owned(bytes, addr).await.unwrap();
            assert_eq!(sent, len);
            let given = Vec::with_capacity(70_000);
            let (answer, received) = server.recv_from_owned(given).await.unwrap();
            assert_eq!(answer, (len, client_addr));
            assert!(received == bytes, "other bytes of {len}");
            client.connect(addr).await.unwrap();
            assert_eq!(client.send_owned(received).await.unwrap().0, len);
            let (count, received) = server.recv_owned(vec![7; 70_000]).await.unwrap();
            assert_eq!((count, received.len()), (len, len));
        }
        // What has no room is lost, and what is beside the slice stays.
        for _ in 0..3 {
            client.send_owned("0123456789").await.unwrap();
            client.send_owned(b"0123456789".slice(3..5)).await.unwrap();
        }
        let (count, middle) = server.recv_owned(vec![9; 6].slice(2..4)).await.unwrap();
        assert_eq!((count, middle.into_inner()), (2, vec![9, 9, b'0', b'1', 9, 9]));
        let (count, boxed) = server.recv_owned(Box::new([9; 4])).await.unwrap();
        assert_eq!((count, *boxed), (2, [b'3', b'4', 9, 9]));
        assert_eq!(server.recv_owned(Vec::new()).await.unwrap(), (0, Vec::new()));
        assert_eq!(server.recv_owned(Vec::with_capacity(8)).await.unwrap().0, 2);
    }

    async fn an_error_brings_the_buffer_back() {
        let (socket, _) = bind().await;
        let failed = socket.send_owned(vec![1, 2]).await.unwrap_err();
        assert_eq!(failed.buffer, [1, 2]);
        let failed = socket.send_to_owned(vec![3], "no port").await.unwrap_err();
        assert_eq!((failed.error.kind(), failed.buffer), (ErrorKind::InvalidInput, vec![3]));
        socket.connect(free_addr()).await.unwrap();
        socket.send(b"anybody?").await.unwrap();
        let failed = socket.recv_owned(vec![4; 8]).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(failed.buffer, [4; 8]);
        socket.send(b"anybody?").await.unwrap();
        settle().await;
        let failed = socket.recv_from_owned(vec![5; 8]).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(failed.buffer, [5; 8]);
    }

    async fn names_and_texts_are_targets() {
        let (server, addr) = bind().await;
        let client = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
        let mut buf = [0; 16];
        client.send_to(b"text", addr.to_string()).await.unwrap();
        assert_eq!(server.recv(&mut buf).await.unwrap(), 4);
        client.send_to(b"list", &[addr, "127.0.0.1:1".parse().unwrap()][..]).await.unwrap();
        assert_eq!(server.recv(&mut buf).await.unwrap(), 4);
        let none: &[SocketAddr] = &[];
        assert_eq!(client.send_to(b"", none).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        let six: SocketAddr = "[::1]:9".parse().unwrap();
        client.send_to(b"", six).await.expect_err("another family");
        client.send_to(b"", "no port").await.expect_err("no address");
        client.send(b"").await.expect_err("no peer");
    }

    #[deadline_s(120)]
    async fn timed_out_receives_lose_no_datagram_and_keep_the_order() {
        let (socket, addr) = bind().await;
        let flood = Flood::start(addr, 5000);
        let mut buf = [0; 64];
        let mut timed_out = 0;
        let mut round = 0;
        while flood.received() < 5000 {
            round += 1;
            let patience = Duration::from_micros(round % 101);
            let answer = match round % 7 {
                0 => timeout(patience, socket.recv(&mut buf)).await,
                1 => {
                    drop(timeout(patience, socket.peek(&mut buf)).await);
                    continue;
                }
                2 => {
                    // The buffer is dropped with the future.
                    let given = Vec::with_capacity(64);
                    match timeout(patience, socket.recv_owned(given)).await {
                        Ok(answer) => flood.check(&answer.unwrap().1),
                        Err(_) => timed_out += 1,
                    }
                    continue;
                }
                _ => timeout(patience, socket.recv_from(&mut buf)).await.map(|it| Ok(it?.0)),
            };
            match answer {
                Ok(len) => flood.check(&buf[..len.unwrap()]),
                Err(_) => timed_out += 1,
            }
        }
        println!("{timed_out} of {round} receives were cut short");
        assert!(timed_out > 0, "no receive was ever cut short, so nothing was tested");
        flood.over().await;
    }

    #[deadline_s(60)]
    async fn receives_dropped_by_select_lose_no_datagram() {
        let (left, left_addr) = bind().await;
        let (right, right_addr) = bind().await;
        let left_flood = Flood::start(left_addr, 500);
        let right_flood = Flood::start(right_addr, 500);
        let (mut left_buf, mut right_buf) = ([0; 64], [0; 64]);
        let mut turn = false;
        while left_flood.received() + right_flood.received() < 1000 {
            turn = !turn;
            // The loser is dropped in flight every time.
            let first = if turn {
                race(left.recv(&mut left_buf), right.recv(&mut right_buf)).await
            } else {
                match race(right.recv(&mut right_buf), left.recv(&mut left_buf)).await {
                    Either::Left(it) => Either::Right(it),
                    Either::Right(it) => Either::Left(it),
                }
            };
            match first {
                Either::Left(len) => left_flood.check(&left_buf[..len.unwrap()]),
                Either::Right(len) => right_flood.check(&right_buf[..len.unwrap()]),
            }
        }
        left_flood.over().await;
        right_flood.over().await;
    }

    async fn a_receive_dropped_when_its_datagram_is_there_leaves_it() {
        let (socket, addr) = bind().await;
        let peer = std_socket();
        for round in 0..200u32 {
            let mut unused = [0xaa; 16];
            {
                let mut receiving = pin!(socket.recv(&mut unused));
                assert!(poll_once(receiving.as_mut()).await.is_pending());
                peer.send_to(&round.to_le_bytes(), addr).unwrap();
                if round % 2 == 0 {
                    annulus::task::yield_now().await;
                }
            }
            assert_eq!(unused, [0xaa; 16], "a dropped receive has written to its buffer");
            let mut buf = [0; 16];
            assert_eq!(socket.recv(&mut buf).await.unwrap(), 4);
            assert_eq!(buf[..4], round.to_le_bytes());
        }
    }

    async fn a_long_queue_comes_in_order() {
        let (socket, addr) = bind().await;
        let peer = std_socket();
        arm(&socket).await;
        for number in 0..200u64 {
            peer.send_to(&number.to_le_bytes(), addr).unwrap();
            if number % 50 == 20 {
                settle().await;
            }
        }
        expect_numbers(&socket, 0..200).await;
    }

    async fn what_the_buffer_does_not_take_is_lost_and_no_more() {
        let (socket, addr) = bind().await;
        let peer = std_socket();
        let neighbours = dry_pool().await;
        // First ahead of the reader, then, on a dry pool, straight to its memory.
        for socket_and_addr in [(socket, addr), bind().await] {
            let (socket, addr) = socket_and_addr;
            peer.send_to(&Keyed(1).bytes(0, 100), addr).unwrap();
            peer.send_to(b"lost", addr).unwrap();
            peer.send_to(b"next", addr).unwrap();
            let mut buf = [0; 10];
            assert_eq!(socket.recv(&mut buf).await.unwrap(), 10);
            Keyed(1).check(0, &buf);
            assert_eq!(socket.recv_from(&mut []).await.unwrap().0, 0);
            assert_eq!(socket.recv(&mut buf).await.unwrap(), 4);
            assert_eq!(&buf[..4], b"next");
        }
        drop(neighbours);
    }

    async fn a_buffer_without_room_waits_for_a_datagram_all_the_same() {
        let (socket, addr) = bind().await;
        let mut receiving = pin!(socket.recv(&mut []));
        assert!(poll_once(receiving.as_mut()).await.is_pending());
        settle().await;
        assert!(poll_once(receiving.as_mut()).await.is_pending());
        std_socket().send_to(b"gone", addr).unwrap();
        assert_eq!(receiving.await.unwrap(), 0);
    }

    async fn datagrams_without_bytes_are_datagrams() {
        let (socket, addr) = bind().await;
        let peer = std_socket();
        arm(&socket).await;
        let mut buf = [0; 16];
        for round in 0..100u32 {
            peer.send_to(&[], addr).unwrap();
            peer.send_to(&round.to_le_bytes(), addr).unwrap();
            peer.send_to(&[], addr).unwrap();
            for len in [0, 4, 0] {
                let from = peer.local_addr().unwrap();
                assert_eq!(socket.recv_from(&mut buf).await.unwrap(), (len, from));
            }
        }
        let (sender, _) = bind().await;
        assert_eq!(sender.send_to(&[], addr).await.unwrap(), 0);
        assert_eq!(socket.recv(&mut buf).await.unwrap(), 0);
    }

    async fn a_waiting_receive_hears_that_the_peer_refuses_and_the_socket_goes_on() {
        let (socket, addr) = bind().await;
        let nobody = free_addr();
        socket.connect(nobody).await.unwrap();
        for _ in 0..3 {
            let mut buf = [0; 16];
            let mut receiving = pin!(socket.recv(&mut buf));
            assert!(poll_once(receiving.as_mut()).await.is_pending());
            socket.send(b"anybody?").await.unwrap();
            assert_eq!(receiving.await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        let somebody = with_timeout(std::net::UdpSocket::bind(nobody).unwrap());
        socket.send(b"you?").await.unwrap();
        assert_eq!(somebody.recv(&mut [0; 16]).unwrap(), 4);
        somebody.send_to(b"me", addr).unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).await.unwrap(), 2);
        assert!(socket.take_error().unwrap().is_none());
    }

    async fn the_next_call_hears_that_the_peer_refuses_whichever_it_is() {
        for armed in [false, true] {
            let (socket, _) = bind().await;
            socket.connect(free_addr()).await.unwrap();
            for round in 0..6 {
                if armed {
                    // The kernel's receive is what meets the error then.
                    arm(&socket).await;
                }
                socket.send(b"anybody?").await.unwrap();
                settle().await;
                let error = match round % 3 {
                    0 => socket.send(b"and now?").await.unwrap_err(),
                    1 => socket.take_error().unwrap().expect("an error waits"),
                    _ => socket.recv(&mut [0; 8]).await.unwrap_err(),
                };
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                assert!(socket.take_error().unwrap().is_none(), "it is told once");
            }
        }
    }

    async fn datagrams_that_came_before_a_refusal_are_not_lost() {
        let (socket, addr) = bind().await;
        let peer = std_socket();
        let peer_addr = peer.local_addr().unwrap();
        socket.connect(peer_addr).await.unwrap();
        arm(&socket).await;
        for number in 0..5u64 {
            peer.send_to(&number.to_le_bytes(), addr).unwrap();
        }
        settle().await;
        drop(peer);
        socket.send(b"anybody?").await.unwrap();
        settle().await;
        socket.send(b"and now?").await.unwrap_err();
        expect_numbers(&socket, 0..5).await;
    }

    async fn a_peek_leaves_the_whole_datagram() {
        let (socket, addr) = bind().await;
        let peer = std_socket();
        let from = peer.local_addr().unwrap();
        for connected in [false, true] {
            if connected {
                socket.connect(from).await.unwrap();
            }
            peer.send_to(b"hello", addr).unwrap();
            peer.send_to(b"world!", addr).unwrap();
            let mut buf = [0; 16];
            for _ in 0..3 {
                assert_eq!(socket.peek_from(&mut buf).await.unwrap(), (5, from));
                assert_eq!(&buf[..5], b"hello");
                assert_eq!(socket.peek(&mut buf[..2]).await.unwrap(), 2);
                assert_eq!(socket.peek(&mut []).await.unwrap(), 0);
            }
            assert_eq!(socket.recv_from(&mut buf).await.unwrap(), (5, from));
            assert_eq!(socket.peek(&mut buf).await.unwrap(), 6);
            assert_eq!(socket.recv(&mut buf).await.unwrap(), 6);
            assert_eq!(&buf[..6], b"world!");
        }
    }

    async fn a_connected_socket_hears_its_peer_only() {
        let (socket, addr) = bind().await;
        let (friend, stranger) = (std_socket(), std_socket());
        assert_eq!(socket.peer_addr().unwrap_err().kind(), ErrorKind::NotConnected);
        arm(&socket).await;
        socket.connect(friend.local_addr().unwrap()).await.unwrap();
        assert_eq!(socket.peer_addr().unwrap(), friend.local_addr().unwrap());
        let mut buf = [0; 16];
        for _ in 0..50 {
            stranger.send_to(b"stranger", addr).unwrap();
            friend.send_to(b"friend", addr).unwrap();
            let from = friend.local_addr().unwrap();
            assert_eq!(socket.recv_from(&mut buf).await.unwrap(), (6, from));
        }
        assert_eq!(socket.send(b"you").await.unwrap(), 3);
        assert_eq!(friend.recv(&mut buf).unwrap(), 3);
    }

    async fn two_tasks_that_receive_both_go_on() {
        let (socket, addr) = bind().await;
        let socket = Rc::new(socket);
        let peer = std_socket();
        for round in 0..20u64 {
            let tasks: Vec<_> = (0..2)
                .map(|_| {
                    let socket = Rc::clone(&socket);
                    annulus::spawn(async move { recv_number(&socket).await })
                })
                .collect();
            if round % 2 == 0 {
                settle().await;
            }
            peer.send_to(&(2 * round).to_le_bytes(), addr).unwrap();
            if round % 3 == 0 {
                settle().await;
            }
            peer.send_to(&(2 * round + 1).to_le_bytes(), addr).unwrap();
            let mut got = Vec::new();
            for task in tasks {
                got.push(task.await.unwrap());
            }
            got.sort_unstable();
            assert_eq!(got, [2 * round, 2 * round + 1]);
        }
    }

    async fn a_task_that_goes_keeps_no_datagram_from_the_other() {
        let (socket, addr) = bind().await;
        let socket = Rc::new(socket);
        let peer = std_socket();
        for round in 0..50u64 {
            let receive = || {
                let socket = Rc::clone(&socket);
                annulus::spawn(async move { recv_number(&socket).await })
            };
            let (first, second) = (receive(), receive());
            settle().await;
            peer.send_to(&round.to_le_bytes(), addr).unwrap();
            let (goes, stays) = if round % 2 == 0 { (first, second) } else { (second, first) };
            // Whoever has been woken goes before it has looked.
            goes.abort();
            match goes.await {
                Ok(number) => {
                    // It was quicker than its abort: the other waits on.
                    assert_eq!(number, round);
                    stays.abort();
                }
                Err(_) => assert_eq!(stays.await.unwrap(), round),
            }
        }
    }

    async fn sending_goes_on_beside_a_waiting_receive() {
        let (socket, addr) = bind().await;
        let socket = Rc::new(socket);
        let (peer, peer_addr) = bind().await;
        let receiver = Rc::clone(&socket);
        let receiving = annulus::spawn(async move { recv_number(&receiver).await });
        for number in 0..100u64 {
            socket.send_to(&number.to_le_bytes(), peer_addr).await.unwrap();
            assert_eq!(recv_number(&peer).await, number);
        }
        peer.send_to(&7u64.to_le_bytes(), addr).await.unwrap();
        assert_eq!(receiving.await.unwrap(), 7);
    }

    async fn a_dry_pool_fails_nobody_and_keeps_the_order() {
        let mut sockets = Vec::new();
        for _ in 0..40 {
            sockets.push(bind().await);
        }
        for (socket, _) in &sockets {
            arm(socket).await;
        }
        let peer = std_socket();
        for number in 0..24u64 {
            for (_, addr) in &sockets {
                peer.send_to(&number.to_le_bytes(), addr).unwrap();
            }
            settle_briefly().await;
        }
        // One by one, and then in turns.
        let (first, rest) = sockets.split_at(20);
        for (socket, _) in first {
            expect_numbers(socket, 0..24).await;
        }
        for number in 0..24 {
            for (socket, _) in rest {
                assert_eq!(recv_number(socket).await, number);
            }
        }
        // The pool has recovered.
        for (socket, addr) in &sockets {
            peer.send_to(&99u64.to_le_bytes(), addr).unwrap();
            assert_eq!(recv_number(socket).await, 99);
        }
    }

    async fn a_socket_on_a_dry_pool_waits_and_loses_nothing() {
        let neighbours = dry_pool().await;
        let (socket, addr) = bind().await;
        let flood = Flood::start(addr, 500);
        let mut buf = [0; 64];
        let mut round = 0;
        while flood.received() < 500 {
            round += 1;
            let patience = Duration::from_micros(round % 101);
            if let Ok(len) = timeout(patience, socket.recv(&mut buf)).await {
                flood.check(&buf[..len.unwrap()]);
            }
        }
        flood.over().await;
        drop(neighbours);
    }

    async fn large_datagrams_are_received_past_the_pool_and_small_ones_ahead() {
        let (mut socket, _) = bind().await;
        let is_ahead = annulus::driver_info().driver() == Driver::Uring;
        let small = [&[100][..], &[20_000, 100], &[100, 20_000, 100]].map(|lens| (lens, is_ahead));
        let large = [&[20_000][..], &[100, 20_000]].map(|lens| (lens, false));
        for (lens, ahead) in small.into_iter().chain(large) {
            let held;
            (socket, held) = held_after(socket, lens).await;
            assert_eq!(held > 0, ahead, "{held} datagrams were received ahead after {lens:?}");
        }
    }

    #[deadline_s(60)]
    async fn datagrams_of_changing_size_keep_their_order() {
        let (socket, addr) = bind().await;
        let peer = std_socket();
        let mut numbers = Numbers(11);
        let (mut sent, mut received) = (Keyed(11).cursor(), Keyed(11).cursor());
        let mut lens = VecDeque::new();
        let mut large = false;
        let mut buf = vec![0; 70_000];
        for _ in 0..3000 {
            // Runs of one size, and now and then one of the other.
            large ^= numbers.below(8) == 0;
            while lens.len() < 4 {
                let one_large = large ^ (numbers.below(10) == 0);
                let len = if one_large { 16_384 + numbers.below(9000) } else { numbers.below(999) };
                peer.send_to(&sent.next(len as usize), addr).unwrap();
                lens.push_back(len as usize);
            }
            for _ in 0..numbers.below(6) {
                let patience = Duration::from_micros(numbers.below(60));
                let Ok(len) = timeout(patience, socket.recv(&mut buf)).await else { continue };
                let len = len.unwrap();
                assert_eq!(Some(len), lens.pop_front(), "lost or out of order");
                received.check(&buf[..len]);
                if lens.is_empty() {
                    break;
                }
            }
        }
    }

    async fn one_send_leaves_as_many_datagrams() {
        let (socket, _) = bind().await;
        let peer = std_socket();
        let to = peer.local_addr().unwrap();
        let bytes = Keyed(3).bytes(0, 10_500);
        let expect = |lens: &[usize]| {
            let mut received = Keyed(3).cursor();
            let mut buf = vec![0; 70_000];
            for &len in lens {
                assert_eq!(peer.recv(&mut buf).unwrap(), len);
                received.check(&buf[..len]);
            }
        };
        assert_eq!(socket.send_segments(&bytes, 1000, Some(to)).await.unwrap(), 10_500);
        expect(&[[1000; 10].as_slice(), &[500]].concat());
        socket.connect(to).await.unwrap();
        assert_eq!(socket.send_segments(&bytes, 1400, None).await.unwrap(), 10_500);
        expect(&[[1400; 7].as_slice(), &[700]].concat());
        // One datagram, cut from nothing, also where it is longer than the kernel would cut.
        socket.send_segments(&bytes, 10_500, None).await.unwrap();
        socket.send_segments(&bytes[..7], usize::MAX, None).await.unwrap();
        socket.send_segments(&[], 5, None).await.unwrap();
        expect(&[10_500]);
        expect(&[7]);
        expect(&[0]);
        let error = socket.send_segments(&bytes, 0, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        socket.send_segments(&vec![0; 70_000], 1400, None).await.expect_err("too much");
        socket.send_segments(&vec![0; 70_000], 66_000, None).await.expect_err("too long");
    }

    async fn joined_datagrams_tell_where_each_ends() {
        let (socket, addr) = bind().await;
        let (sender, from) = bind().await;
        assert!(!socket.receive_offload().unwrap());
        socket.set_receive_offload(true).unwrap();
        assert!(socket.receive_offload().unwrap());
        let mut buf = vec![0; 1 << 16];
        let mut joined = 0;
        for armed in [false, true] {
            if armed {
                arm(&socket).await;
            }
            let cuts = [(64_000, 1000), (10_500, 1000), (999, 1000), (1001, 1000), (3, 1)];
            for (len, segment) in cuts {
                sender.send_segments(&Keyed(4).bytes(0, len), segment, Some(addr)).await.unwrap();
                let mut received = Keyed(4).cursor();
                while (received.offset as usize) < len {
                    let got = socket.recv_segments(&mut buf).await.unwrap();
                    assert_eq!(got.peer, from);
                    received.check(&buf[..got.bytes]);
                    let datagrams = buf[..got.bytes].chunks(got.segment_bytes);
                    joined += usize::from(datagrams.len() > 1);
                    for datagram in datagrams {
                        assert!(datagram.len() == segment || received.offset as usize == len);
                    }
                }
            }
        }
        if kernel_joins() {
            assert!(joined >= 2, "the kernel has joined nothing, so nothing was tested");
        } else {
            let why = "this kernel joins nothing that is sent on the same machine";
            common::leave_out_part("joined_datagrams_tell_where_each_ends", why);
        }
        // Alone, and of no bytes.
        sender.send_to(b"single", addr).await.unwrap();
        let got = socket.recv_segments(&mut buf).await.unwrap();
        assert_eq!((got.bytes, got.segment_bytes), (6, 6));
        sender.send_to(b"", addr).await.unwrap();
        assert_eq!(socket.recv_segments(&mut buf).await.unwrap().bytes, 0);
        socket.set_receive_offload(false).unwrap();
        sender.send_segments(&[1; 20], 10, Some(addr)).await.unwrap();
        for _ in 0..2 {
            assert_eq!(socket.recv_segments(&mut buf).await.unwrap().bytes, 10);
        }
    }

    async fn a_group_reaches_its_members() {
        let (member, addr) = bind_to("0.0.0.0:0").await;
        // One that no other test has joined: what reaches a machine reaches all who have the port.
        let [high, low] = addr.port().to_be_bytes();
        let group = Ipv4Addr::new(239, 255, high, low);
        let to = SocketAddr::from((group, addr.port()));
        let (sender, _) = bind().await;
        sender.set_multicast_if_v4(Ipv4Addr::LOCALHOST).unwrap();
        assert_eq!(sender.multicast_if_v4().unwrap(), Ipv4Addr::LOCALHOST);
        member.join_multicast_v4(group, Ipv4Addr::LOCALHOST).unwrap();
        member.join_multicast_v4(group, Ipv4Addr::LOCALHOST).expect_err("joined already");
        arm(&member).await;
        let mut buf = [0; 16];
        sender.send_to(b"all", to).await.unwrap();
        assert_eq!(member.recv(&mut buf).await.unwrap(), 3);
        member.leave_multicast_v4(group, Ipv4Addr::LOCALHOST).unwrap();
        sender.send_to(b"not a member", to).await.unwrap();
        sender.send_to(b"you", ("127.0.0.1", addr.port())).await.unwrap();
        assert_eq!(member.recv(&mut buf).await.unwrap(), 3);
        assert_eq!(&buf[..3], b"you");
    }

    async fn a_group_of_ipv6_reaches_its_members() {
        let (member, addr) = bind_to("[::]:0").await;
        // Of interface scope: it leaves no machine.
        let group = Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, addr.port());
        let (sender, _) = bind_to("[::]:0").await;
        let mut buf = [0; 16];
        // The loopback interface has no route to groups everywhere.
        let mut reached = false;
        for interface in 1..=8 {
            if member.join_multicast_v6(&group, interface).is_err() {
                continue;
            }
            sender.set_multicast_if_v6(interface).unwrap();
            assert_eq!(sender.multicast_if_v6().unwrap(), interface);
            if sender.send_to(b"all", (group, addr.port())).await.is_ok() {
                assert_eq!(member.recv(&mut buf).await.unwrap(), 3);
                reached = true;
            }
            member.leave_multicast_v6(&group, interface).unwrap();
            member.leave_multicast_v6(&group, interface).expect_err("left already");
            // What comes after the leave is not seen before the last one.
            let _no_route = sender.send_to(b"not a member", (group, addr.port())).await;
            sender.send_to(b"you", (Ipv6Addr::LOCALHOST, addr.port())).await.unwrap();
            assert_eq!(member.recv(&mut buf).await.unwrap(), 3);
            assert_eq!(&buf[..3], b"you");
        }
        if !reached {
            let why = "no interface has a route to IPv6 groups";
            common::leave_out_part("a_group_of_ipv6_reaches_its_members", why);
        }
    }

    async fn broadcasts_must_be_allowed() {
        let (socket, addr) = bind_to("0.0.0.0:0").await;
        let (sender, _) = bind_to("0.0.0.0:0").await;
        let to = SocketAddr::from(([127, 255, 255, 255], addr.port()));
        assert!(!sender.broadcast().unwrap());
        let error = sender.send_to(b"all", to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        sender.set_broadcast(true).unwrap();
        assert!(sender.broadcast().unwrap());
        sender.send_to(b"all", to).await.unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).await.unwrap(), 3);
    }

    async fn options_are_kept() {
        let (four, _) = bind().await;
        four.set_ttl(17).unwrap();
        assert_eq!(four.ttl().unwrap(), 17);
        four.set_multicast_ttl_v4(7).unwrap();
        assert_eq!(four.multicast_ttl_v4().unwrap(), 7);
        four.set_multicast_loop_v4(false).unwrap();
        assert!(!four.multicast_loop_v4().unwrap());
        four.set_receive_buffer_bytes(40_000).unwrap();
        assert_eq!(four.receive_buffer_bytes().unwrap(), 80_000);
        four.set_send_buffer_bytes(30_000).unwrap();
        assert_eq!(four.send_buffer_bytes().unwrap(), 60_000);
        let (six, _) = bind_to("[::1]:0").await;
        six.set_multicast_loop_v6(false).unwrap();
        assert!(!six.multicast_loop_v6().unwrap());
        six.set_multicast_hops_v6(9).unwrap();
        assert_eq!(six.multicast_hops_v6().unwrap(), 9);
        let sizes = UdpOptions::new().receive_buffer_bytes(50_000).send_buffer_bytes(20_000);
        let sized = UdpSocket::bind_with("127.0.0.1:0", sizes).await.unwrap();
        assert_eq!(sized.receive_buffer_bytes().unwrap(), 100_000);
        assert_eq!(sized.send_buffer_bytes().unwrap(), 40_000);
    }

    async fn a_port_is_shared_only_by_those_who_ask() {
        let (first, addr) = bind().await;
        let error = UdpSocket::bind(addr).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains("port 0"), "{error}");
        drop(first);
        for options in [UdpOptions::new().reuse_port(true), UdpOptions::new().reuse_address(true)] {
            let first = UdpSocket::bind_with("127.0.0.1:0", options).await.unwrap();
            let addr = first.local_addr().unwrap();
            UdpSocket::bind(addr).await.expect_err("the second did not ask");
            UdpSocket::bind_with(addr, options).await.unwrap();
        }
        let six = UdpSocket::bind_with("[::]:0", UdpOptions::new().only_v6(true)).await.unwrap();
        let port = six.local_addr().unwrap().port();
        UdpSocket::bind(("0.0.0.0", port)).await.expect("the other family's port");
    }

    async fn a_dropped_socket_frees_its_port_at_once_though_a_receive_waits() {
        let (mut socket, addr) = bind().await;
        for _ in 0..50 {
            arm(&socket).await;
            drop(socket);
            socket = UdpSocket::bind(addr).await.expect("the port is free");
        }
        let neighbours = dry_pool().await;
        for _ in 0..50 {
            arm(&socket).await;
            drop(socket);
            socket = UdpSocket::bind(addr).await.expect("the port is free");
        }
        drop(neighbours);
    }

    async fn a_task_aborted_in_a_receive_frees_the_port() {
        let (socket, addr) = bind().await;
        let task = annulus::spawn(async move { socket.recv(&mut [0; 16]).await });
        settle().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        UdpSocket::bind(addr).await.expect("the port is free");
    }

    async fn a_socket_dropped_on_another_thread_frees_its_port() {
        for armed in [false, true] {
            let (socket, addr) = bind().await;
            if armed {
                arm(&socket).await;
            }
            let text = peer(move || {
                let error = socket.local_addr().expect_err("used away from its shard");
                drop(socket);
                error.to_string()
            });
            assert!(text.await.contains("another shard"));
            let free = || std::net::UdpSocket::bind(addr).is_ok();
            eventually("the port is free", free).await;
        }
    }

    async fn a_socket_comes_from_the_standard_library_and_goes_back() {
        let ours = with_timeout(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let addr = ours.local_addr().unwrap();
        let peer = std_socket();
        let socket = UdpSocket::from_std(ours).unwrap();
        arm(&socket).await;
        peer.send_to(b"in", addr).unwrap();
        assert_eq!(socket.recv(&mut [0; 8]).await.unwrap(), 2);
        let ours = socket.into_std().unwrap();
        assert_eq!(ours.local_addr().unwrap(), addr);
        assert_eq!(ours.read_timeout().unwrap(), Some(peer::patience()));
        // Blocking: the datagram comes after the call has begun, or before.
        let later = peer_sends_later(peer, addr);
        let received = peer::uninterrupted(|| ours.recv(&mut [0; 8]));
        assert_eq!(received.unwrap(), 5);
        later.await;
        // At once, with nothing received.
        UdpSocket::from_std(ours).unwrap().into_std().unwrap();
    }

    async fn a_socket_is_closed_on_exec() {
        let (socket, _) = bind().await;
        let ours = socket.into_std().unwrap();
        // SAFETY: the call takes no pointer.
        let flags = unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
    }

    async fn a_socket_that_holds_datagrams_is_not_given_away() {
        let (mut socket, addr) = bind().await;
        let peer = std_socket();
        arm(&socket).await;
        for number in 0..30u64 {
            peer.send_to(&number.to_le_bytes(), addr).unwrap();
        }
        settle().await;
        let mut next = 0;
        let std_socket = loop {
            match socket.into_std() {
                Ok(socket) => break socket,
                Err(error) => {
                    assert!(error.to_string().contains("receive them first"), "{error}");
                    socket = error.into_socket().expect("the socket");
                    assert_eq!(recv_number(&socket).await, next);
                    next += 1;
                }
            }
        };
        // The rest is still in the kernel.
        let std_socket = with_timeout(std_socket);
        for number in next..30 {
            let mut bytes = [0; 8];
            assert_eq!(std_socket.recv(&mut bytes).unwrap(), 8);
            assert_eq!(u64::from_le_bytes(bytes), number);
        }
    }

    async fn a_socket_that_nobody_reads_leaves_buffers_to_others() {
        let (mut slow, addr) = bind().await;
        let peer = std_socket();
        arm(&slow).await;
        for number in 0..150u64 {
            peer.send_to(&number.to_le_bytes(), addr).unwrap();
            if number % 30 == 29 {
                settle().await;
            }
        }
        // What it has beyond the kernel's socket tells how many buffers it has taken.
        let mut taken = 0;
        while let Err(error) = slow.into_std() {
            slow = error.into_socket().expect("the socket");
            assert_eq!(recv_number(&slow).await, taken);
            taken += 1;
        }
        // 16 by its own bound, and one visit of the kernel, of 32, that was under way.
        assert!(taken <= 48, "{taken} buffers of 64 were taken");
    }

    async fn futures_that_are_never_polled_do_nothing() {
        let (socket, addr) = bind().await;
        let (peer, peer_addr) = bind().await;
        drop(socket.send_to(b"not", peer_addr));
        drop(socket.recv(&mut [0; 8]));
        drop(socket.connect(peer_addr));
        let free = free_addr();
        drop(UdpSocket::bind(free));
        settle().await;
        std::net::UdpSocket::bind(free).expect("bind began before it was polled");
        assert!(socket.peer_addr().is_err());
        socket.send_to(b"this", peer_addr).await.unwrap();
        let mut buf = [0; 8];
        assert_eq!(peer.recv_from(&mut buf).await.unwrap(), (4, addr));
        assert_eq!(&buf[..4], b"this");
    }

    fn the_end_of_a_runtime_closes_its_sockets(driver: Driver) {
        let runtime = common::runtime(driver);
        let (held, addr) = runtime.block_on(async {
            let (socket, addr) = bind().await;
            arm(&socket).await;
            std_socket().send_to(b"unread", addr).unwrap();
            settle().await;
            (socket, addr)
        });
        drop(runtime);
        std::net::UdpSocket::bind(addr).expect("the port is free");
        assert!(held.local_addr().is_err());
        drop(held);
    }

    fn a_socket_waits_while_no_future_runs(driver: Driver) {
        let runtime = common::runtime(driver);
        let (socket, addr) = runtime.block_on(async {
            let (socket, addr) = bind().await;
            arm(&socket).await;
            (socket, addr)
        });
        let peer = std_socket();
        for number in 0..10u64 {
            peer.send_to(&number.to_le_bytes(), addr).unwrap();
        }
        runtime.block_on(expect_numbers(&socket, 0..10));
        // Gone between two futures.
        drop(socket);
        runtime.block_on(async {});
        let free = || std::net::UdpSocket::bind(addr).is_ok();
        eventually_blocking("the port is free", free);
    }

    fn a_panic_in_a_task_that_receives_costs_no_datagram(driver: Driver) {
        common::runtime(driver).block_on(async {
            let (socket, addr) = bind().await;
            let socket = Rc::new(socket);
            let peer = std_socket();
            let other = Rc::clone(&socket);
            let task = annulus::spawn(async move {
                let mut buf = [0; 8];
                let mut receiving = pin!(other.recv(&mut buf));
                assert!(poll_once(receiving.as_mut()).await.is_pending());
                settle().await;
                panic!("on purpose");
            });
            annulus::task::yield_now().await;
            peer.send_to(&5u64.to_le_bytes(), addr).unwrap();
            assert!(task.await.unwrap_err().is_panic());
            assert_eq!(recv_number(&socket).await, 5);
        });
    }
}

/// Handles and futures may travel; what they refer to stays.
#[test]
fn sockets_and_their_futures_are_send() {
    fn check<T: Send>(_: impl Fn(&'static UdpSocket) -> T) {}
    fn socket<T: Send + Sync + Unpin>() {}
    socket::<UdpSocket>();
    check(|socket| socket.send(b""));
    check(|socket| socket.recv(&mut []));
    check(|socket| socket.recv_owned(vec![]));
    check(|socket| socket.connect("127.0.0.1:1"));
    check(|socket| socket.send_segments(b"", 1, None));
}

/// A thread that sends numbers, never more than the receiver's socket can hold.
struct Flood {
    received: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    sender: Peer<u64>,
}

impl Flood {
    fn start(addr: SocketAddr, count: u64) -> Flood {
        let received = Arc::new(AtomicU64::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let (seen, end) = (Arc::clone(&received), Arc::clone(&over));
        let sender = peer(move || {
            let socket = std_socket();
            let mut pauses = Numbers(count);
            let mut sent = 0u64;
            while sent < count && !end.load(Ordering::Relaxed) {
                // In lumps, so that the receiver finds nothing, one, and many.
                let lump = 1 + pauses.below(40);
                let ahead_max = pauses.below(60);
                while sent - seen.load(Ordering::Relaxed) > ahead_max {
                    thread::yield_now();
                }
                if ahead_max < 20 {
                    thread::sleep(Duration::from_micros(300));
                }
                for _ in 0..lump.min(count - sent) {
                    socket.send_to(&sent.to_le_bytes(), addr).expect("a peer's send");
                    sent += 1;
                }
            }
            sent
        });
        Flood { received, over, sender }
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    #[track_caller]
    fn check(&self, bytes: &[u8]) {
        let number = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        assert_eq!(number, self.received(), "a datagram was lost or came out of order");
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    async fn over(self) {
        self.over.store(true, Ordering::Relaxed);
        assert_eq!(self.sender.await, self.received.load(Ordering::Relaxed));
    }
}

async fn bind() -> (UdpSocket, SocketAddr) {
    bind_to("127.0.0.1:0").await
}

async fn bind_to(local: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(local).await.expect("bind a socket");
    let addr = socket.local_addr().expect("address of the socket");
    (socket, addr)
}

/// A blocking socket whose every receive ends in time.
fn std_socket() -> std::net::UdpSocket {
    with_timeout(std::net::UdpSocket::bind("127.0.0.1:0").expect("bind a peer's socket"))
}

fn with_timeout(socket: std::net::UdpSocket) -> std::net::UdpSocket {
    socket.set_read_timeout(Some(peer::patience())).expect("set the peer's timeout");
    socket
}

/// Whether the kernel hands over together what was sent together on this machine. Before Linux 5.11
/// the loopback device has segments cut before it takes them.
fn kernel_joins() -> bool {
    let (sender, receiver) = (std_socket(), std_socket());
    let switch = |socket: &std::net::UdpSocket, option, value: libc::c_int| {
        let size = size_of_val(&value) as libc::socklen_t;
        let value = (&raw const value).cast();
        // SAFETY: the pointer is to one int, which the call reads.
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, option, value, size) == 0 }
    };
    assert!(switch(&receiver, libc::UDP_GRO, 1) && switch(&sender, libc::UDP_SEGMENT, 1000));
    sender.send_to(&[7; 3000], receiver.local_addr().unwrap()).expect("send segments");
    receiver.recv(&mut [0; 4096]).expect("receive them") == 3000
}

fn peer_sends_later(socket: std::net::UdpSocket, addr: SocketAddr) -> Peer<usize> {
    peer(move || socket.send_to(b"later", addr).expect("a peer's send"))
}

/// An address at which nobody is.
fn free_addr() -> SocketAddr {
    std_socket().local_addr().expect("address of a peer's socket")
}

/// Begins a receive and drops it, so that on io_uring the kernel's stays armed, or, where the pool
/// is dry, a poll.
async fn arm(socket: &UdpSocket) {
    let mut buf = [0; 16];
    let mut receiving = pin!(socket.recv(&mut buf));
    for _ in 0..2 {
        assert!(poll_once(receiving.as_mut()).await.is_pending(), "nothing was sent yet");
        settle_briefly().await;
    }
}

/// Lets the shard enter the kernel a few times.
async fn settle_briefly() {
    for _ in 0..3 {
        annulus::task::yield_now().await;
    }
}

/// Sockets that hold every buffer of the pool, where there is one.
async fn dry_pool() -> Vec<UdpSocket> {
    let peer = std_socket();
    let mut sockets = Vec::new();
    for _ in 0..8 {
        let (socket, addr) = bind().await;
        arm(&socket).await;
        for _ in 0..30 {
            peer.send_to(b"held", addr).expect("a peer's send");
        }
        settle().await;
        sockets.push(socket);
    }
    sockets
}

/// Receives datagrams of these lengths, each until the socket is used to it; then tells how many
/// more it has taken before anyone asked.
async fn held_after(mut socket: UdpSocket, lens: &[usize]) -> (UdpSocket, usize) {
    let addr = socket.local_addr().expect("address of the socket");
    let peer = std_socket();
    let mut buf = vec![0; 70_000];
    let mut len = 0;
    for &next in lens {
        len = next;
        for _ in 0..8 {
            peer.send_to(&vec![7; len], addr).expect("a peer's send");
            assert_eq!(socket.recv(&mut buf).await.expect("receive"), len);
        }
    }
    arm(&socket).await;
    for _ in 0..3 {
        peer.send_to(&vec![7; len], addr).expect("a peer's send");
    }
    settle().await;
    let mut held = 0;
    let rest = loop {
        match socket.into_std() {
            Ok(rest) => break rest,
            Err(error) => socket = error.into_socket().expect("the socket"),
        }
        assert_eq!(socket.recv(&mut buf).await.expect("receive what is held"), len);
        held += 1;
    };
    socket = UdpSocket::from_std(rest).expect("take the socket back");
    for _ in held..3 {
        assert_eq!(socket.recv(&mut buf).await.expect("receive the rest"), len);
    }
    (socket, held)
}

async fn recv_number(socket: &UdpSocket) -> u64 {
    let mut bytes = [0; 8];
    assert_eq!(socket.recv(&mut bytes).await.expect("receive a number"), 8);
    u64::from_le_bytes(bytes)
}

async fn expect_numbers(socket: &UdpSocket, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_eq!(recv_number(socket).await, number, "lost or out of order");
    }
}

/// The most that one datagram carries over IPv4: 65,535 less the headers of IP and UDP.
const LONGEST: usize = 65_507;
