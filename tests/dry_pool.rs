//! A pool that is dry: nobody fails, nobody waits for a neighbour, and the metrics tell.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use annulus::net::{TcpListener, TcpStream, UnixStream};
use annulus::time::timeout;
use annulus::{Driver, Runtime};

use common::bytes::{Keyed, Numbers};
use common::each_driver;
use common::peer::{self, peer};
use common::process::{kernel, need_descriptors};
use common::steps::{poll_once, serve_echo, settle, with_peer};

mod common;

each_driver! {
    #[alone]
    #[deadline_s(120)]
    fn a_thousand_busy_connections_share_four_buffers(driver: Driver) {
        need_descriptors(2500);
        for way in Way::ALL {
            small_pool(driver).block_on(async {
                let addr = serve(way).await;
                let dry = annulus::metrics().pool_dry;
                let clients: Vec<_> = (0..20)
                    .map(|key| peer(move || peer::echo_interleaved(addr, key)))
                    .collect();
                for client in clients {
                    client.await;
                }
                let dry = annulus::metrics().pool_dry - dry;
                println!("{way:?} on {driver:?}: the pool was dry {dry} times");
                match (driver, way) {
                    (Driver::Uring, _) => assert!(dry > 0, "{way:?}: nothing was tested"),
                    // Reads go to the caller's memory; the pool is for leases.
                    (_, Way::Lease) => {}
                    _ => assert_eq!(dry, 0, "{way:?}"),
                }
            });
        }
    }

    #[deadline_s(120)]
    fn cut_short_reads_on_a_dry_pool_lose_no_byte(driver: Driver) {
        small_pool(driver).block_on(async {
            let over = Arc::new(AtomicBool::new(false));
            let mut readers = Vec::new();
            for index in 0..60 {
                let key = Keyed(300 + index);
                let (mut stream, peer) = common::cut::streaming_peer(key, &over).await;
                let over = Arc::clone(&over);
                readers.push(annulus::spawn(async move {
                    let (mut received, mut numbers) = (key.cursor(), Numbers(index));
                    while received.offset < 200_000 {
                        let patience = Duration::from_micros(numbers.below(2000));
                        let capacity = [50, 3000, 20_000][numbers.below(3) as usize];
                        match numbers.below(4) {
                            0 => {
                                let exact = stream.recv_exact(vec![0; capacity]);
                                if let Ok(answer) = timeout(patience, exact).await {
                                    received.check(&answer.unwrap().1);
                                }
                            }
                            1 => {
                                if let Ok(lease) = timeout(patience, stream.recv_lease()).await {
                                    received.check(&lease.unwrap());
                                }
                            }
                            2 => {
                                let mut shown = vec![0; capacity];
                                let peek = stream.peek(&mut shown);
                                if let Ok(count) = timeout(patience, peek).await {
                                    key.check(received.offset, &shown[..count.unwrap()]);
                                }
                            }
                            _ => {
                                let receiving = stream.recv(vec![0; capacity]);
                                if let Ok(answer) = timeout(patience, receiving).await {
                                    received.check(&answer.unwrap().1);
                                }
                            }
                        }
                    }
                    // The last of all ends them all, and only then does anyone read to its end.
                    (over, stream, received, peer)
                }));
            }
            let mut ends = Vec::new();
            for reader in readers {
                ends.push(within_s(90, reader).await.unwrap());
            }
            for (over, ..) in &ends {
                over.store(true, Ordering::Relaxed);
            }
            for (_, mut stream, mut received, peer) in ends {
                let mut buffer = vec![0; 30_000];
                while let count @ 1.. = within(stream.read(&mut buffer)).await.unwrap() {
                    received.check(&buffer[..count]);
                }
                assert_eq!(received.offset, peer.await);
            }
        });
    }

    // Each fills its queue, and with it the pool, and does not read.
    #[alone]
    #[deadline_s(120)]
    fn streams_that_are_full_and_not_read_slow_nobody_down(driver: Driver) {
        for buffers in [4, 64] {
            let builder = Runtime::builder().driver(driver).recv_pool(buffers, 1024);
            builder.build().unwrap().block_on(async {
                let (listener, addr) = narrow_listener();
                let listener = TcpListener::from_std(listener).unwrap();
                let mut full = Vec::new();
                for key in 0..100 {
                    let connected = narrow_connect(addr);
                    let (mut stream, _) = listener.accept().await.unwrap();
                    // Armed, and left alone; every third has taken leases and keeps them.
                    let shown = poll_once(pin!(stream.peek(&mut [0; 1])).as_mut()).await;
                    assert!(shown.is_pending());
                    full.push((key, stream, peer(move || push_until_stuck(connected, key))));
                }
                let mut stuck = Vec::new();
                let mut kept = Vec::new();
                for (key, mut stream, pushed) in full {
                    let (connected, sent) = within(pushed).await;
                    let mut received = Keyed(key).cursor();
                    if key % 3 == 0 {
                        let lease = within(stream.recv_lease()).await.unwrap();
                        received.check(&lease);
                        kept.push(lease);
                    }
                    stuck.push((stream, connected, sent, received));
                }
                // The flow control of the kernel has reached the peers.
                for (stream, connected, sent, received) in &stuck {
                    let with_kernel = unread_in_kernel(fd_of(stream)) + unsent_in_kernel(connected);
                    let queued = *sent - received.offset - with_kernel;
                    assert!(queued <= 64 * 1024, "{queued} bytes wait in one stream");
                    assert!(*sent <= 1 << 20, "the peer has sent {sent} bytes");
                }
                let addr = serve_echo().await;
                let started = Instant::now();
                peer(move || peer::echo_interleaved(addr, 5)).await;
                let (mut one, echo) =
                    with_peer(|stream| peer::echo(&stream, Keyed(9), 500_000)).await;
                let mut buffer = vec![0; 5000];
                while let count @ 1.. = within(one.read(&mut buffer)).await.unwrap() {
                    one.write_all(&buffer[..count]).await.unwrap();
                }
                echo.await;
                let took = started.elapsed();
                println!("{buffers} buffers on {driver:?}: others took {took:?}");
                assert!(took < Duration::from_secs(10), "others were held up for {took:?}");
                // Every byte is there when they are read after all.
                drop(kept);
                for (mut stream, connected, sent, mut received) in stuck {
                    drop(connected);
                    let mut buffer = vec![0; 20_000];
                    while let count @ 1.. = within(stream.read(&mut buffer)).await.unwrap() {
                        received.check(&buffer[..count]);
                    }
                    assert_eq!(received.offset, sent);
                }
            });
        }
    }

    // A stream that was stuck behind a dry pool goes on without a push from anybody.
    #[deadline_s(60)]
    fn a_dry_pool_recovers(driver: Driver) {
        small_pool(driver).block_on(async {
            let mut hoarders = Vec::new();
            for key in 0..8 {
                let (mut stream, peer) = with_peer(move |stream| {
                    peer::send(&stream, &mut Keyed(key).cursor(), 5000);
                    stream
                })
                .await;
                let _ = poll_once(pin!(stream.peek(&mut [0; 1])).as_mut()).await;
                hoarders.push((stream, peer.await));
            }
            settle().await;
            let (mut stream, peer) = with_peer(|stream| peer::echo(&stream, Keyed(50), 3000)).await;
            let mut buffer = [0; 700];
            let count = within(stream.read(&mut buffer)).await.unwrap();
            stream.write_all(&buffer[..count]).await.unwrap();
            drop(hoarders);
            settle().await;
            while let count @ 1.. = within(stream.read(&mut buffer)).await.unwrap() {
                stream.write_all(&buffer[..count]).await.unwrap();
            }
            peer.await;
            // Back to the pool for good: nobody finds it dry any more.
            let (mut stream, peer) = with_peer(|stream| peer::echo(&stream, Keyed(51), 3000)).await;
            let mut count = within(stream.read(&mut buffer)).await.unwrap();
            let dry = annulus::metrics().pool_dry;
            while count > 0 {
                stream.write_all(&buffer[..count]).await.unwrap();
                count = within(stream.read(&mut buffer)).await.unwrap();
            }
            assert!(annulus::metrics().pool_dry - dry <= 2, "the pool did not recover");
            peer.await;
        });
    }

    async fn the_peer_of_a_stream_that_is_not_read_can_give_up() {
        let (mut stream, peer) = with_peer(|stream| push_until_stuck(stream, 7)).await;
        let _ = poll_once(pin!(stream.peek(&mut [0; 1])).as_mut()).await;
        let (connected, _) = peer.await;
        peer::reset(connected);
        let mut buffer = vec![0; 3000];
        let mut received = Keyed(7).cursor();
        // What was queued may come first; then the error, and never an end.
        let error = loop {
            match within(stream.read(&mut buffer)).await {
                Ok(0) => panic!("a reset has become an end"),
                Ok(count) => received.check(&buffer[..count]),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    // Linux bounds that since 6.17; before, all that has come may be taken at once.
    async fn what_one_call_takes_ahead_is_bounded() {
        const MANY: usize = 150_000;
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        let fd = ours.as_raw_fd();
        theirs.write_all(&Keyed(1).bytes(0, MANY)).unwrap();
        let mut stream = UnixStream::from_std(ours).unwrap();
        let mut first = [0; 1];
        stream.read(&mut first).await.unwrap();
        settle().await;
        let taken = MANY as u64 - unread_in_kernel(fd);
        if kernel() >= (6, 17) {
            assert!(taken <= 64 * 1024 + 4096, "{taken} bytes were taken ahead at once");
        } else {
            println!("before Linux 6.17: {taken} bytes were taken ahead at once");
        }
        let mut rest = vec![0; MANY - 1];
        stream.read_exact(&mut rest).await.unwrap();
        Keyed(1).check(0, &first);
        Keyed(1).check(1, &rest);
    }
}

fn small_pool(driver: Driver) -> Runtime {
    Runtime::builder().driver(driver).recv_pool(4, 1024).build().expect("a small pool")
}

/// How a server reads what it echoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    Recv,
    RecvLarge,
    Lease,
    Mixed,
}

impl Way {
    const ALL: [Way; 5] = [Way::Read, Way::Recv, Way::RecvLarge, Way::Mixed, Way::Lease];
}

/// An echo server that reads in this way.
async fn serve(way: Way) -> SocketAddr {
    let (listener, addr) = common::steps::listen().await;
    annulus::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            annulus::spawn(async move { echo(stream, way).await.expect("no error for anybody") });
        }
    });
    addr
}

async fn echo(mut stream: TcpStream, way: Way) -> std::io::Result<()> {
    let mut buffer = vec![0; 4096];
    for round in 0.. {
        let way = match (way, round % 2) {
            (Way::Mixed, 0) => Way::Read,
            (Way::Mixed, _) => Way::RecvLarge,
            _ => way,
        };
        let count = match way {
            Way::Lease => {
                let lease = stream.recv_lease().await?;
                stream.send_all(lease).await?.0
            }
            Way::Read | Way::Mixed => {
                let count = stream.read(&mut buffer).await?;
                stream.write_all(&buffer[..count]).await?;
                count
            }
            Way::Recv => {
                let (_, bytes) = stream.recv(Vec::with_capacity(3000)).await?;
                stream.send_all(bytes).await?.0
            }
            Way::RecvLarge => {
                let (_, bytes) = stream.recv(Vec::with_capacity(40_000)).await?;
                stream.send_all(bytes).await?.0
            }
        };
        if count == 0 {
            break;
        }
    }
    Ok(())
}

/// Sends until neither the kernel nor the runtime takes more, and says how much that was.
fn push_until_stuck(mut stream: std::net::TcpStream, key: u64) -> (std::net::TcpStream, u64) {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = Keyed(key).cursor();
    loop {
        let mut piece = sent.next(10_000);
        while !piece.is_empty() {
            match stream.write(&piece) {
                Ok(n) => drop(piece.drain(..n)),
                Err(_) => {
                    let sent = sent.offset - piece.len() as u64;
                    return (stream, sent);
                }
            }
        }
        assert!(sent.offset < 64 << 20, "unread bytes have no bound");
    }
}

/// A listener whose connections have small socket buffers, so that bounds can be told.
fn narrow_listener() -> (StdListener, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(SOCKET_BYTES).unwrap();
    socket.set_send_buffer_size(SOCKET_BYTES).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(1024).unwrap();
    let listener: StdListener = socket.into();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn narrow_connect(addr: SocketAddr) -> std::net::TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(SOCKET_BYTES).unwrap();
    socket.set_send_buffer_size(SOCKET_BYTES).unwrap();
    socket.connect(&addr.into()).unwrap();
    socket.into()
}

/// The descriptor, which the stream shows when it is printed.
fn fd_of(stream: &TcpStream) -> RawFd {
    let text = format!("{stream:?}");
    let number = text.split_once("fd: ").expect("a descriptor").1;
    number.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().expect("a descriptor")
}

/// Bytes that have come and that nobody has received.
fn unread_in_kernel(fd: RawFd) -> u64 {
    ask(fd, libc::FIONREAD)
}

/// Bytes that the peer's kernel has not yet brought over.
fn unsent_in_kernel(stream: &std::net::TcpStream) -> u64 {
    ask(stream.as_raw_fd(), libc::TIOCOUTQ)
}

fn ask(fd: RawFd, request: libc::c_ulong) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: both requests write one int.
    let answer = unsafe { libc::ioctl(fd, request, &raw mut count) };
    assert_eq!(answer, 0, "the kernel does not say: {}", std::io::Error::last_os_error());
    count as u64
}

/// Fails rather than waits for ever.
async fn within<T>(future: impl Future<Output = T>) -> T {
    within_s(10, future).await
}

async fn within_s<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(seconds) * common::slower(), future).await.expect("it hangs")
}

const SOCKET_BYTES: usize = 32 * 1024;
