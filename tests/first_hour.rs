//! The errors that everybody meets first: each says what happened and what to do.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use annulus::net::{ListenerGroup, TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};
use annulus::{Driver, Runtime, Shard};
use common::each_driver;
use common::steps::{listen, pair};

mod common;

/// The error's text has all of these words, and its kind is this.
#[track_caller]
fn says<T>(result: io::Result<T>, kind: io::ErrorKind, words: &[&str]) {
    let error = result.err().expect("an error");
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

/// What a call panics with.
#[track_caller]
fn panic_of(call: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(call)).expect_err("a panic");
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().expect("a panic with a text")).to_owned(),
    }
}

#[test]
fn outside_of_a_runtime_panics_say_where_to_call() {
    let calls: [(&str, fn()); 4] = [
        ("spawn", || drop(annulus::spawn(async {}))),
        ("spawn_blocking", || drop(annulus::task::spawn_blocking(|| ()))),
        ("Shard::current", || drop(Shard::current())),
        ("metrics", || _ = annulus::metrics()),
    ];
    for (name, call) in calls {
        let text = panic_of(call);
        for word in ["no annulus runtime on this thread", "block_on", "#[annulus::main]"] {
            assert!(text.contains(word), "{name}: {text:?} does not say {word:?}");
        }
    }
}

#[test]
fn outside_of_a_runtime_sockets_say_where_to_make_them() {
    let words = ["no annulus runtime on this thread", "block_on"];
    says(ListenerGroup::bind("127.0.0.1:0"), io::ErrorKind::Other, &words);
    says(UnixListener::bind("/tmp/annulus-never-made"), io::ErrorKind::Other, &words);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    says(TcpListener::from_std(listener), io::ErrorKind::Other, &words);
}

each_driver! {
    async fn a_taken_port_is_named_with_the_way_out() {
        let (_listener, addr) = listen().await;
        let words = [&addr.to_string(), "in use", "another socket has the port", "port 0"];
        says(TcpListener::bind(addr).await, io::ErrorKind::AddrInUse, &words);
        says(ListenerGroup::bind(addr), io::ErrorKind::AddrInUse, &words);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        says(UdpSocket::bind(addr).await, io::ErrorKind::AddrInUse, &words[1..]);
    }

    async fn a_text_that_is_no_address_is_shown_one() {
        for text in ["127.0.0.1", "localhost", "127.0.0.1:99999", ":80", ""] {
            let words = [&format!("{text:?}"), "HOST:PORT", "127.0.0.1:7000"];
            says(TcpListener::bind(text).await, io::ErrorKind::InvalidInput, &words);
            says(TcpStream::connect(text).await, io::ErrorKind::InvalidInput, &words);
        }
        says(ListenerGroup::bind("localhost"), io::ErrorKind::InvalidInput, &["HOST:PORT"]);
    }

    async fn an_address_of_another_machine_is_named() {
        // Reserved for documents (RFC 5737).
        let foreign: SocketAddr = "192.0.2.1:0".parse().unwrap();
        let words = ["192.0.2.1", "no interface of this machine has the address"];
        says(TcpListener::bind(foreign).await, io::ErrorKind::AddrNotAvailable, &words);
        says(ListenerGroup::bind(foreign), io::ErrorKind::AddrNotAvailable, &words);
    }

    async fn a_path_that_cannot_be_bound_is_named() {
        let path = "/proc/annulus/socket";
        let words = [path, "the directory does not exist"];
        says(UnixListener::bind(path), io::ErrorKind::NotFound, &words);
        // As the standard library has it, for programs that look at the errno.
        let error = UnixStream::connect(path).await.expect_err("nobody listens");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    fn a_socket_on_the_wrong_shard_says_where_it_works(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).shards(2).build().unwrap();
        runtime.block_on(async {
            let (mut ours, _theirs) = pair().await;
            let far = Shard::all().pop().expect("two shards");
            let away = far.spawn_with(move || async move {
                says(
                    ours.read(&mut [0; 8]).await,
                    io::ErrorKind::Other,
                    &["belongs to another shard", "use it on the shard where it was made"],
                );
            });
            away.await.unwrap();
        });
    }

    fn a_runtime_within_a_runtime_says_what_to_do_instead(driver: Driver) {
        let outer = Runtime::builder().driver(driver).build().unwrap();
        outer.block_on(async {
            let inner = Runtime::builder().driver(driver).build().unwrap();
            let text = panic_of(|| inner.block_on(async {}));
            for word in ["within a runtime", ".await", "spawn", "another thread"] {
                assert!(text.contains(word), "{text:?} does not say {word:?}");
            }
        });
    }
}

#[test]
fn a_driver_that_is_no_driver_is_told_the_names() {
    let error = "kqueue".parse::<Driver>().expect_err("no driver of Linux");
    let text = error.to_string();
    for word in ["\"kqueue\"", "auto", "uring", "epoll"] {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}
