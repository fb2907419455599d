//! The example of axum, asked by curl, by hyper and tungstenite on annulus, and by plain sockets.

use std::io::{Read as _, Write as _};
use std::process::Command;

use annulus::hyper::LocalExecutor;
use annulus::net::TcpStream;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper::{Request, StatusCode, Version};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::{Error, Message};

use common::bytes::Keyed;
use common::peer::{self, peer};
use common::{each_driver, http};
use server::Server;

#[path = "../../../tests/common/mod.rs"]
mod common;
mod server;

each_driver! {
    async fn curl_is_answered_by_both_versions_of_http() {
        let server = start();
        let addr = server.addr;
        for (option, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
            for (path, answer, code) in [("/", "hello, world\n", 200), ("/no/where", "", 404)] {
                let output = peer(move || {
                    let told = "%{http_version} %{http_code} %header{server}";
                    let mut curl = Command::new("curl");
                    curl.args(["-sS", "--max-time", "10", option, "-w", told]);
                    curl.arg(format!("http://{}{path}", addr)).output().expect("run curl")
                })
                .await;
                let told = String::from_utf8_lossy(&output.stdout);
                assert_eq!(told, format!("{answer}{version} {code} annulus"), "{output:?}");
            }
        }
    }

    async fn bodies_come_back_side_by_side_by_http_2() {
        let server = start();
        let stream = TcpStream::connect(server.addr).await.unwrap();
        let (requests, connection) = http2::handshake(LocalExecutor, stream).await.unwrap();
        let connection = annulus::spawn(connection);
        let tasks: Vec<_> = (0..8)
            .map(|key| {
                let mut requests = requests.clone();
                annulus::spawn(async move {
                    let body = Bytes::from(Keyed(key).bytes(0, 1 << 20));
                    let request = Request::post("/echo").body(Full::new(body.clone())).unwrap();
                    let answer = requests.send_request(request).await.unwrap();
                    assert_eq!(answer.version(), Version::HTTP_2);
                    assert_eq!(answer.status(), StatusCode::OK);
                    let received = answer.into_body().collect().await.unwrap().to_bytes();
                    assert!(received == body, "of the body {key} something else came back");
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        drop(requests);
        connection.await.unwrap().unwrap();
    }

    async fn an_upgrade_becomes_a_web_socket() {
        let server = start();
        let stream = TcpStream::connect(server.addr).await.unwrap();
        let url = format!("ws://{}/socket", server.addr);
        let (mut socket, _answer) = client_async(url, stream).await.unwrap();
        for len in [0, 125, 126, 65_536, 1 << 20] {
            let message = Message::binary(Keyed(1).bytes(0, len));
            socket.send(message.clone()).await.unwrap();
            let received = socket.next().await.unwrap().unwrap();
            assert!(received == message, "of {len} bytes something else came back");
        }
        socket.close(None).await.unwrap();
        while let Some(message) = socket.next().await {
            match message {
                Ok(message) => assert!(message.is_close(), "{message:?}"),
                Err(error) => assert!(matches!(error, Error::ConnectionClosed), "{error}"),
            }
        }
    }

    async fn what_is_no_handshake_and_what_takes_too_long_are_told_so() {
        let server = start();
        let addr = server.addr;
        peer(move || {
            let mut stream = peer::connect(addr);
            let status = |path: &str| {
                let mut stream = peer::connect(addr);
                http::ask(&mut stream, path, "");
                let mut start = [0; 12];
                stream.read_exact(&mut start).unwrap();
                String::from_utf8_lossy(&start).into_owned()
            };
            assert_eq!(status("/socket"), "HTTP/1.1 400");
            stream.write_all(b"GET /sleep/60000 HTTP/1.1\r\n\r\n").unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).unwrap();
            assert_eq!(&start, b"HTTP/1.1 504");
        })
        .await;
    }

    async fn what_requests_share_is_shared_by_all_shards() {
        let server = start();
        let addr = server.addr;
        peer(move || {
            for number in 1..=6 {
                // Each by a connection of its own, on either shard.
                let mut stream = peer::connect(addr);
                stream.write_all(b"GET /ada HTTP/1.1\r\n\r\n").unwrap();
                let greeting = format!("hello, ada, number {number}\n");
                assert_eq!(http::answer(&mut stream), greeting);
            }
        })
        .await;
    }

    async fn a_signal_ends_those_that_wait_and_lets_others_finish() {
        let mut server = start();
        let addr = server.addr;
        peer(move || {
            let mut idle = peer::connect(addr);
            idle.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            assert_eq!(http::answer(&mut idle), "hello, world\n");
            let mut asleep = peer::connect(addr);
            let both = b"GET / HTTP/1.1\r\n\r\nGET /sleep/500 HTTP/1.1\r\n\r\n";
            asleep.write_all(both).unwrap();
            // The second has come with the first.
            assert_eq!(http::answer(&mut asleep), "hello, world\n");
            server.process.signal(libc::SIGTERM);
            peer::expect_end(&idle);
            assert_eq!(http::answer(&mut asleep), "awake\n");
            peer::expect_end(&asleep);
            let (status, _, errors) = server.process.finish();
            assert!(status.success(), "{status}: {errors}");
        })
        .await;
    }
}

fn start() -> Server {
    Server::start(env!("CARGO_BIN_EXE_axum"), &[])
}
