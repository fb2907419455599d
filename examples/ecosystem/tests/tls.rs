//! The TLS example, its clients by tokio-rustls on annulus as well.

use std::io::{ErrorKind, Write as _};
use std::sync::Arc;

use annulus::hyper::LocalExecutor;
use annulus::net::TcpStream;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use common::bytes::Keyed;
use common::steps::eventually;
use common::{each_driver, peer};
use server::Server;

#[path = "../../../tests/common/mod.rs"]
mod common;
mod server;

each_driver! {
    async fn a_request_is_answered_and_the_end_is_told_both_ways() {
        let server = Https::start();
        let mut stream = server.connect(&[]).await;
        stream.write_all(b"GET /ada HTTP/1.0\r\n\r\n").await.unwrap();
        // An end that TLS has not told would be an error.
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello, ada\n"), "{answer}");
        stream.shutdown().await.unwrap();

        let mut silent = server.connect(&[]).await;
        silent.shutdown().await.unwrap();
        assert_eq!(silent.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    }

    async fn a_large_body_comes_back_by_http_1() {
        let server = Https::start();
        let stream = TokioIo::new(server.connect(&[b"http/1.1"]).await);
        let (mut requests, connection) = http1::handshake(stream).await.unwrap();
        let connection = annulus::spawn(connection);
        for key in [1, 2] {
            let sent = Keyed(key).bytes(0, BODY_LEN);
            let request = post(sent.clone());
            let answer = requests.send_request(request).await.unwrap();
            let received = answer.into_body().collect().await.unwrap().to_bytes();
            assert!(received == sent, "of the body {key} something else came back");
        }
        drop(requests);
        connection.await.unwrap().unwrap();
    }

    async fn large_bodies_come_back_side_by_side_by_http_2() {
        let server = Https::start();
        let stream = server.connect(&[b"h2", b"http/1.1"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let stream = TokioIo::new(stream);
        let (requests, connection) = http2::handshake(LocalExecutor, stream).await.unwrap();
        let connection = annulus::spawn(connection);
        let tasks: Vec<_> = (0..8)
            .map(|key| {
                let mut requests = requests.clone();
                annulus::spawn(async move {
                    let sent = Keyed(key).bytes(0, BODY_LEN / 8);
                    let answer = requests.send_request(post(sent.clone())).await.unwrap();
                    let received = answer.into_body().collect().await.unwrap().to_bytes();
                    assert!(received == sent, "of the body {key} something else came back");
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        drop(requests);
        connection.await.unwrap().unwrap();
    }

    async fn clients_that_break_off_leave_nothing_behind() {
        let server = Https::start();
        // All shards have served: what they need themselves is open.
        for _ in 0..16 {
            server.greet().await;
        }
        let before = server.0.open_sockets();
        for round in 0..20 {
            // Within the handshake: the start of a record that never ends.
            let mut half = peer::connect(server.0.addr);
            half.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
            // Something that is no TLS at all.
            let mut other = peer::connect(server.0.addr);
            other.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            // Within a request, without a word, and within a body that comes back.
            let mut request = server.connect(&[]).await;
            request.write_all(b"GET /ada HT").await.unwrap();
            let mut body = server.connect(&[]).await;
            body.write_all(b"POST / HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n").await.unwrap();
            body.write_all(&[b'x'; 100_000]).await.unwrap();
            let body = body.into_inner().0.into_std().unwrap();
            if round % 2 == 0 {
                peer::reset(half);
                peer::reset(body);
            }
        }
        server.greet().await;
        eventually("all connections are closed", || server.0.open_sockets() <= before).await;
    }

    async fn a_server_that_is_gone_is_an_error_and_no_end() {
        let server = Https::start();
        let mut stream = server.connect(&[]).await;
        server.0.process.kill();
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        let kinds = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{error}");
    }

    async fn a_certificate_that_is_not_known_ends_the_handshake() {
        let server = Https::start();
        let other = Https::start();
        let stream = TcpStream::connect(server.0.addr).await.unwrap();
        let trust = connector(&other.0.preface, &[]);
        let refused = trust.connect(ServerName::try_from("localhost").unwrap(), stream).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidData);
        server.greet().await;
    }
}

/// The example, whose certificate its clients trust.
struct Https(Server);

impl Https {
    fn start() -> Https {
        Https(Server::start(env!("CARGO_BIN_EXE_tls"), &[]))
    }

    async fn connect(&self, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.0.addr).await.expect("connect");
        let name = ServerName::try_from("localhost").expect("a name");
        let connecting = connector(&self.0.preface, protocols).connect(name, stream);
        connecting.await.expect("the handshake")
    }

    async fn greet(&self) {
        let mut stream = self.connect(&[]).await;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("send a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("receive the answer");
        assert!(answer.ends_with("hello, world\n"), "{answer}");
    }
}

/// Trusts this certificate alone.
fn connector(certificate: &str, protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
    roots.add(certificate.expect("a certificate in PEM")).expect("a certificate to trust");
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

fn post(body: Vec<u8>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(Method::POST).uri("https://localhost/");
    request.body(Full::from(body)).expect("a request")
}

/// Far more than sockets and TLS hold.
const BODY_LEN: usize = 4 << 20;
