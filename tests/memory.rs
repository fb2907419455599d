//! What connections cost in the program's memory, counted by its allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use annulus::JoinHandle;
use annulus::net::{TcpListener, TcpStream};
use annulus::runtime::LIMITS;

use common::each_driver;
use common::peer::peer;
use common::process::{self, Running, need_descriptors};
use common::steps::settle;

mod common;

each_driver! {
    #[alone]
    #[deadline_s(120)]
    async fn ten_thousand_streams_that_wait_for_leases_cost_little() {
        need_descriptors(IDLE as u64 + 300);
        let (listener, addr) = narrow_listener();
        let listener = TcpListener::from_std(listener).unwrap();
        let mut clients = process::role("role_connects_and_is_silent");
        clients.env(ADDR, addr.to_string());
        let mut clients = Running::start(clients);
        let (mut tasks, mut before) = (Vec::with_capacity(IDLE), 0);
        for accepted in 0..IDLE {
            if accepted == FEW {
                // The shard's tables are there, as far as a few streams need them.
                settle().await;
                before = live_bytes();
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            let receiving = async move { stream.recv_lease().await.map(|lease| lease.len()) };
            tasks.push(annulus::spawn(receiving));
        }
        settle().await;
        let each = live_bytes().saturating_sub(before) / (IDLE - FEW);
        println!("{each} bytes for each idle connection");
        assert!(each <= 1536, "{each} bytes for each idle connection");
        clients.tell("send");
        for task in tasks {
            assert_eq!(task.await.unwrap().unwrap(), 4);
        }
        peer(move || {
            let (status, output, errors) = clients.finish();
            assert!(status.success(), "{output}{errors}");
        })
        .await;
    }

    #[alone]
    #[deadline_s(120)]
    async fn a_thousand_peers_that_never_read_cost_what_is_unsent_at_most() {
        for owned in [true, false] {
            let shared: Arc<[u8]> = vec![7; 100 << 20].into();
            let (streams, peers) = streams(STUCK).await;
            let mut sends = Vec::with_capacity(STUCK);
            let before = live_bytes();
            for mut stream in streams {
                let shared = Arc::clone(&shared);
                sends.push(annulus::spawn(async move {
                    if owned {
                        drop(stream.send_all(shared).await);
                    } else {
                        drop(stream.write_all(&shared).await);
                    }
                }));
            }
            let mut most = 0;
            loop {
                settle().await;
                let now = live_bytes();
                if now <= most {
                    break;
                }
                most = now;
            }
            assert!(!sends.iter().any(JoinHandle::is_finished), "a peer took it all");
            let each = most.saturating_sub(before) / STUCK;
            println!("{each} bytes for each peer that never reads; owned: {owned}");
            let bound = OVERHEAD + if owned { 0 } else { LIMITS.unsent_bytes_max };
            assert!(each <= bound, "{each} bytes for each, of {bound} allowed; owned: {owned}");
            sends.iter().for_each(JoinHandle::abort);
            for sending in sends {
                assert!(sending.await.unwrap_err().is_cancelled());
            }
            drop(peers);
        }
    }
}

// Started by ten_thousand_streams_that_wait_for_leases_cost_little.
#[test]
fn role_connects_and_is_silent() {
    if !process::in_role() {
        return;
    }
    need_descriptors(IDLE as u64 + 300);
    let addr = std::env::var(ADDR).expect("the server's address").parse().expect("an address");
    let connections: Vec<_> = (0..IDLE).map(|_| narrow_connect(addr)).collect();
    let mut order = String::new();
    std::io::stdin().read_line(&mut order).expect("wait for the order to send");
    for mut connection in &connections {
        connection.write_all(b"four").expect("send");
    }
    std::io::stdin().read_to_string(&mut order).expect("wait for the order to end");
}

/// So many connections, and their other ends.
async fn streams(count: usize) -> (Vec<TcpStream>, Vec<StdStream>) {
    need_descriptors(2 * count as u64 + 200);
    let (listener, addr) = narrow_listener();
    let listener = TcpListener::from_std(listener).unwrap();
    let (mut streams, mut peers) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        peers.push(narrow_connect(addr));
        streams.push(listener.accept().await.unwrap().0);
    }
    (streams, peers)
}

/// A listener whose connections have small socket buffers, so that the kernel's memory suffices.
fn narrow_listener() -> (StdListener, SocketAddr) {
    let socket = narrow_socket();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(1024).unwrap();
    let listener: StdListener = socket.into();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn narrow_connect(addr: SocketAddr) -> StdStream {
    let socket = narrow_socket();
    socket.connect(&addr.into()).unwrap();
    socket.into()
}

fn narrow_socket() -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(SOCKET_BYTES).unwrap();
    socket.set_send_buffer_size(SOCKET_BYTES).unwrap();
    socket
}

/// Bytes that are allocated now.
fn live_bytes() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// The system's allocator, which counts.
struct Counting;

// SAFETY: every call is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static LIVE: AtomicUsize = AtomicUsize::new(0);
const IDLE: usize = 10_000;
const FEW: usize = 100;
const STUCK: usize = 1000;
/// The task and the operation, for each connection.
const OVERHEAD: usize = 1024;
const ADDR: &str = "ANNULUS_TEST_ADDR";
const SOCKET_BYTES: usize = 8 * 1024;
