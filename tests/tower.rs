//! `annulus::hyper::serve`: services of tower's on every shard, in both versions of HTTP, and their
//! end.

use std::future::poll_fn;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use annulus::hyper::{LocalExecutor, serve, serve_connection};
use annulus::net::{ListenerGroup, Placement, TcpStream};
use annulus::time::{self, Instant};
use annulus::{JoinHandle, Shard, ShutdownToken};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::rt::Executor;
use hyper::{Request, Response, StatusCode, Version};
use tower_service::Service;

use common::bytes::Keyed;
use common::each_driver;
use common::http::{answer, ask, read_head};
use common::peer::{self, peer};
use common::steps::{eventually, pair};

mod common;

each_driver! {
    fn each_shard_answers(driver: Driver) {
        let runtime = annulus::Runtime::builder().driver(driver).shards(2).build().unwrap();
        runtime.block_on(async {
            let group = ListenerGroup::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let addr = group.local_addr();
            let _server = annulus::spawn(serve(
                group.placement(Placement::RoundRobin),
                Paths::default(),
            ));
            let mut shards = peer(move || {
                let mut streams = [peer::connect(addr), peer::connect(addr)];
                streams.each_mut().map(|stream| {
                    let answers = [(); 3].map(|()| {
                        ask(stream, "/shard", "");
                        answer(stream)
                    });
                    assert!(answers.iter().all(|shard| *shard == answers[0]), "{answers:?}");
                    answers[0].clone()
                })
            })
            .await;
            shards.sort();
            assert_eq!(shards, ["0", "1"]);
        });
    }

    async fn each_request_has_a_service_of_its_own_that_is_ready() {
        let service = Paths { readiness: 3, ..Paths::default() };
        let calls = Arc::clone(&service.calls);
        let server = Server::start(service);
        let addr = server.addr;
        peer(move || {
            let mut stream = peer::connect(addr);
            for _ in 0..3 {
                ask(&mut stream, "/readiness", "");
                // One that has answered would be asked no more.
                assert_eq!(answer(&mut stream), "asked 3 times");
            }
        })
        .await;
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }

    async fn http2_is_spoken_with_clients_that_begin_with_it() {
        let server = Server::start(Paths::default());
        let sender = http2_client(server.addr).await;
        let asking: Vec<_> = (0..20)
            .map(|number| {
                let mut sender = sender.clone();
                annulus::spawn(async move {
                    let body = Bytes::from(Keyed(number).bytes(0, 100_000));
                    let request = Request::post("/echo").body(Full::new(body)).unwrap();
                    let answer = sender.send_request(request).await.unwrap();
                    assert_eq!(answer.version(), Version::HTTP_2);
                    let back = answer.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(back.len(), 100_000);
                    Keyed(number).check(0, &back);
                })
            })
            .collect();
        for task in asking {
            task.await.unwrap();
        }
    }

    async fn what_a_client_speaks_may_come_byte_by_byte() {
        let server = Server::start(Paths::default());
        let addr = server.addr;
        peer(move || {
            // A method that begins as HTTP/2 does.
            let mut stream = peer::connect(addr);
            drip(&mut stream, b"PRIVATE /method HTTP/1.1\r\nhost: a\r\n\r\n");
            assert_eq!(answer(&mut stream), "PRIVATE");
            let mut stream = peer::connect(addr);
            drip(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            let mut head = [0; 9];
            stream.read_exact(&mut head).unwrap();
            assert_eq!(head[3], SETTINGS_FRAME, "{head:?}");
        })
        .await;
    }

    async fn an_end_within_the_first_bytes_ends_the_connection() {
        let server = Server::start(Paths::default());
        let addr = server.addr;
        peer(move || {
            for start in [&b""[..], b"P", b"PRI"] {
                let mut stream = peer::connect(addr);
                stream.write_all(start).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).unwrap();
                assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400"), "{rest:?}");
            }
        })
        .await;
    }

    async fn what_ends_one_connection_ends_no_other() {
        let server = Server::start(Paths::default());
        let addr = server.addr;
        peer(move || {
            let mut witness = peer::connect(addr);
            ask(&mut witness, "/before", "");
            assert_eq!(answer(&mut witness), "/before");
            for end in ["/error", "/panic"] {
                let mut stream = peer::connect(addr);
                ask(&mut stream, end, "");
                peer::expect_closed(&stream);
            }
            let mut stream = peer::connect(addr);
            stream.write_all(&Keyed(1).bytes(0, 1000)).unwrap();
            let mut rest = Vec::new();
            let _closed = stream.read_to_end(&mut rest);
            let stream = peer::connect(addr);
            peer::reset(stream);
            ask(&mut witness, "/after", "");
            assert_eq!(answer(&mut witness), "/after");
            let mut stream = peer::connect(addr);
            ask(&mut stream, "/new", "");
            assert_eq!(answer(&mut stream), "/new");
        })
        .await;
        assert!(!server.task.is_finished());
    }

    async fn an_upgraded_connection_is_the_stream_and_outlives_the_end() {
        let server = Server::start(Paths::default());
        let (addr, token) = (server.addr, server.token.clone());
        let asked = token.clone();
        let upgraded = peer(move || {
            let mut stream = peer::connect(addr);
            stream
                .write_all(
                    b"GET /upgrade HTTP/1.1\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nearly",
                )
                .unwrap();
            let mut reader = BufReader::with_capacity(1, stream.try_clone().unwrap());
            assert_eq!(read_head(&mut reader), 0);
            let mut early = [0; 5];
            stream.read_exact(&mut early).unwrap();
            assert_eq!(&early, b"early");
            asked.shutdown();
            peer::echo(&stream, Keyed(7), 200_000);
            stream
        });
        server.task.await.unwrap().unwrap();
        let stream = upgraded.await;
        peer(move || peer::echo(&stream, Keyed(8), 1000)).await;
    }

    async fn at_the_end_those_that_wait_end_and_what_has_come_is_answered() {
        let server = Server::start(Paths::default());
        let (addr, service) = (server.addr, server.service.clone());
        let (begun, token) = (Arc::clone(&service.calls), server.token.clone());
        let clients = peer(move || {
            let silent = peer::connect(addr);
            let mut idle = peer::connect(addr);
            ask(&mut idle, "/idle", "");
            assert_eq!(answer(&mut idle), "/idle");
            let mut held = peer::connect(addr);
            ask(&mut held, "/held", "");
            for waits in [silent, idle] {
                peer::expect_end(&waits);
            }
            // Those two have ended, so that only now.
            service.release.shutdown();
            let mut reader = BufReader::new(&held);
            let length = read_head(&mut reader);
            let mut body = String::new();
            reader.read_to_string(&mut body).unwrap();
            assert_eq!((length, body.as_str()), (5, "/held"));
        });
        eventually("two requests have come", || begun.load(Ordering::Relaxed) == 2).await;
        token.shutdown();
        clients.await;
        server.task.await.unwrap().unwrap();
    }

    async fn at_the_end_streams_of_http2_are_answered() {
        let server = Server::start(Paths::default());
        let idle = http2_client(server.addr).await;
        let mut sender = http2_client(server.addr).await;
        let request = Request::post("/held").body(Full::default()).unwrap();
        let answering = annulus::spawn(sender.send_request(request));
        let calls = Arc::clone(&server.service.calls);
        eventually("the request has come", || calls.load(Ordering::Relaxed) == 1).await;
        server.token.shutdown();
        eventually("the idle one ends", || idle.is_closed()).await;
        server.service.release.shutdown();
        let answer = answering.await.unwrap().unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "/held");
        server.task.await.unwrap().unwrap();
    }

    async fn after_the_grace_time_what_is_left_is_dropped() {
        let server = Server::start_with(Paths::default(), Duration::from_millis(10));
        let request = || Request::post("/held").body(Full::default()).unwrap();
        let mut sender = http2_client(server.addr).await;
        let answering = annulus::spawn(sender.send_request(request()));
        let addr = server.addr;
        let cut = peer(move || {
            let mut stream = peer::connect(addr);
            ask(&mut stream, "/held", "");
            peer::expect_closed(&stream);
        });
        let Paths { calls, held, .. } = server.service;
        eventually("both requests have come", || calls.load(Ordering::Relaxed) == 2).await;
        server.token.shutdown();
        server.task.await.unwrap().unwrap();
        cut.await;
        answering.await.unwrap().unwrap_err();
        eventually("what waited is dropped", || held.load(Ordering::Relaxed) == 0).await;
    }

    async fn a_client_that_takes_too_long_for_a_head_is_shown_out() {
        for start in ["", "P", "GET / HTTP/1.1\r\n"] {
            let (mut client, mut server) = pair().await;
            client.write_all(start.as_bytes()).await.unwrap();
            client.flush().await.unwrap();
            if !start.is_empty() {
                // They have come before the clock stands.
                server.peek(&mut [0]).await.unwrap();
            }
            time::pause();
            let before = Instant::now();
            let served = serve_connection(server, Paths::default(), &ShutdownToken::new()).await;
            let error = served.unwrap_err();
            assert_eq!(before.elapsed().as_secs(), 30, "{start:?}: {error}");
            time::resume();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        }
    }

    async fn a_client_that_begins_with_http2_and_says_no_more_is_shown_out() {
        for (start, seconds) in [("PRI ", 30), ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 50)] {
            let (mut client, mut server) = pair().await;
            client.write_all(start.as_bytes()).await.unwrap();
            client.flush().await.unwrap();
            server.peek(&mut [0]).await.unwrap();
            time::pause();
            let before = Instant::now();
            let token = ShutdownToken::new();
            let serving = serve_connection(server, Paths::default(), &token);
            let served = time::timeout(Duration::from_secs(3600), serving).await;
            let error = served.expect("an end").unwrap_err();
            assert_eq!(before.elapsed().as_secs(), seconds, "{start:?}: {error}");
            time::resume();
        }
    }

    async fn a_dropped_serve_goes_on_with_what_it_serves() {
        let server = Server::start(Paths::default());
        let addr = server.addr;
        let (mut stream, before) = peer(move || {
            let mut stream = peer::connect(addr);
            ask(&mut stream, "/before", "");
            let before = answer(&mut stream);
            (stream, before)
        })
        .await;
        assert_eq!(before, "/before");
        server.task.abort();
        assert!(server.task.await.unwrap_err().is_cancelled());
        peer(move || {
            ask(&mut stream, "/after", "");
            assert_eq!(answer(&mut stream), "/after");
        })
        .await;
    }
}

/// A server on a task of its own.
struct Server {
    addr: SocketAddr,
    token: ShutdownToken,
    service: Paths,
    task: JoinHandle<io::Result<()>>,
}

impl Server {
    fn start(service: Paths) -> Server {
        Server::start_with(service, peer::patience())
    }

    fn start_with(service: Paths, grace: Duration) -> Server {
        let token = ShutdownToken::new();
        let group = ListenerGroup::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = group.local_addr();
        let group = group.with_shutdown(token.clone(), grace);
        let task = annulus::spawn(serve(group, service.clone()));
        Server { addr, token, service, task }
    }
}

/// A service whose futures are not `Send`; what they do is in the path.
#[derive(Clone, Default)]
struct Paths {
    /// How many polls it takes to be ready.
    readiness: u32,
    polled: u32,
    calls: Arc<AtomicU32>,
    /// Requests that wait for the release.
    held: Arc<AtomicU32>,
    release: ShutdownToken,
}

impl Service<Request<Incoming>> for Paths {
    type Response = Response<Full<Bytes>>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.polled < self.readiness {
            self.polled += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        assert_eq!(self.polled, self.readiness, "called before it was ready");
        self.calls.fetch_add(1, Ordering::Relaxed);
        let service = Rc::new(self.clone());
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let body = match path.as_str() {
                "/shard" => Shard::current().index().to_string().into(),
                "/readiness" => format!("asked {} times", service.polled).into(),
                "/method" => request.method().to_string().into(),
                "/echo" => request.into_body().collect().await?.to_bytes(),
                "/error" => return Err("an error of the service".into()),
                "/panic" => panic!("a panic of the service"),
                "/upgrade" => {
                    annulus::spawn(echo_upgraded(hyper::upgrade::on(&mut request)));
                    let answer = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
                    let answer = answer.header(CONNECTION, "upgrade").header(UPGRADE, "echo");
                    return Ok(answer.body(Full::default())?);
                }
                "/held" => {
                    let _held = Held::new(&service.held);
                    service.release.requested().await;
                    path.into()
                }
                _ => path.into(),
            };
            Ok(Response::new(Full::new(body)))
        })
    }
}

/// Counts itself for as long as it lives.
struct Held(Arc<AtomicU32>);

impl Held {
    fn new(count: &Arc<AtomicU32>) -> Held {
        count.fetch_add(1, Ordering::Relaxed);
        Held(Arc::clone(count))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn echo_upgraded(upgrading: hyper::upgrade::OnUpgrade) {
    let upgraded = upgrading.await.expect("an upgrade");
    let parts = upgraded.downcast::<TcpStream>().expect("the stream that was served");
    let mut stream = parts.io;
    stream.write_all(&parts.read_buf).await.expect("a write");
    drop(common::steps::echo(stream).await);
}

async fn http2_client(addr: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(addr).await.expect("connect");
    let (mut sender, connection) = handshake(LocalExecutor, stream).await.expect("a handshake");
    // How it ends is told by the sender too.
    LocalExecutor.execute(async move { drop(connection.await) });
    poll_fn(|cx| sender.poll_ready(cx)).await.expect("a connection");
    sender
}

/// Sends bytes one by one, slowly enough at first that they are looked at one by one, mostly.
fn drip(stream: &mut StdStream, bytes: &[u8]) {
    for (index, byte) in bytes.iter().enumerate() {
        stream.write_all(&[*byte]).expect("a peer's write");
        std::thread::sleep(Duration::from_millis(if index < 4 { 10 } else { 1 }));
    }
}

/// The type of the frame by which both sides of HTTP/2 begin (RFC 9113, 6.5).
const SETTINGS_FRAME: u8 = 4;
