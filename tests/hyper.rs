//! hyper on annulus: the traits, and HTTP as servers and clients speak it.

use std::cell::Cell;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::io::{BufReader, ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream as StdStream};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use annulus::hyper::{LocalExecutor, ShardTimer};
use annulus::net::TcpStream;
use annulus::time::{self, Instant};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::rt::{Executor, Read, ReadBuf, Timer, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, client};

use common::bytes::Keyed;
use common::contract::{self, CountingAllocator, Traits, Wakes};
use common::each_driver;
use common::http::{answer, ask, read_head, request};
use common::peer::{self, peer};
use common::steps::{eventually, listen, pair, settle, with_peer};

mod common;

each_driver! {
    async fn every_byte_passes() {
        contract::every_byte_passes::<Hyper>().await;
    }

    async fn slices_are_taken_in_their_order() {
        contract::slices_are_taken_in_their_order::<Hyper>().await;
    }

    async fn a_reset_is_an_error_and_no_end() {
        contract::a_reset_is_an_error_and_no_end::<Hyper>().await;
    }

    async fn a_reset_that_a_send_has_met_is_no_end() {
        contract::a_reset_that_a_send_has_met_is_no_end::<Hyper>().await;
    }

    async fn a_write_that_waits_has_taken_nothing() {
        contract::a_write_that_waits_has_taken_nothing::<Hyper>().await;
    }

    async fn what_waits_wakes_the_latest_waker_only() {
        contract::what_waits_wakes_the_latest_waker_only::<Hyper>().await;
    }

    async fn a_shutdown_sends_everything_and_then_the_end() {
        contract::a_shutdown_sends_everything_and_then_the_end::<Hyper>().await;
    }

    async fn what_a_send_failed_with_is_told_by_the_next_call() {
        contract::what_a_send_failed_with_is_told_by_the_next_call::<Hyper>().await;
    }

    async fn elsewhere_it_is_an_error_that_says_so() {
        contract::elsewhere_it_is_an_error_that_says_so::<Hyper>().await;
    }

    async fn a_round_allocates_nothing() {
        contract::a_round_allocates_nothing::<Hyper>().await;
    }

    async fn a_flush_is_ready_at_once_and_the_bytes_leave_with_the_turn() {
        let (mut io, peer) = contract::beside::<Hyper>().await;
        contract::write_all(&mut io, &Keyed(1).bytes(0, 100)).await;
        assert!(contract::once(|cx| io.poll_flush(cx)).is_ready());
        peer.set_nonblocking(true).unwrap();
        let error = (&peer).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "it was sent within the turn");
        peer.set_nonblocking(false).unwrap();
        // Nobody polls the stream any more.
        annulus::task::yield_now().await;
        settle().await;
        peer::expect(&peer, &mut Keyed(1).cursor(), 100);
    }

    async fn a_flush_waits_while_there_is_no_room() {
        let (go, wait) = channel::<()>();
        let (stream, peer) = with_peer(move |stream| {
            wait.recv().unwrap();
            peer::expect_until_end(&stream, &mut Keyed(1).cursor())
        })
        .await;
        let mut io = Hyper(stream);
        let mut sent = 0;
        loop {
            let bytes = Keyed(1).bytes(sent, 50_000);
            match contract::once(|cx| io.poll_write(cx, &[IoSlice::new(&bytes)])) {
                Poll::Ready(count) => sent += count.unwrap() as u64,
                Poll::Pending => {
                    // The kernel may find room yet.
                    settle().await;
                    if contract::once(|cx| io.poll_flush(cx)).is_pending() {
                        break;
                    }
                }
            }
        }
        let wakes = Wakes::new();
        assert!(io.poll_flush(&mut wakes.context()).is_pending());
        go.send(()).unwrap();
        eventually("everything is sent", || wakes.count() > 0).await;
        poll_fn(|cx| io.poll_flush(cx)).await.unwrap();
        poll_fn(|cx| io.poll_shutdown(cx)).await.unwrap();
        assert_eq!(peer.await, sent);
    }

    async fn a_connection_is_kept_alive() {
        let addr = serve(|http| {
            http.keep_alive(true);
        })
        .await;
        peer(move || {
            let mut stream = peer::connect(addr);
            for number in 1..=5 {
                ask(&mut stream, "/", "");
                assert_eq!(answer(&mut stream), format!("/ {number}"));
            }
        })
        .await;
    }

    async fn an_answer_leaves_by_one_send() {
        let addr = serve(|_| ()).await;
        peer(move || {
            let mut stream = peer::connect(addr);
            for number in 1..=3 {
                ask(&mut stream, "/", "");
                assert_eq!(answer(&mut stream), format!("/ {number}"));
                assert_eq!(segments_received(&stream), number);
            }
        })
        .await;
    }

    async fn pipelined_requests_are_answered_in_order_by_one_send() {
        for together in [true, false] {
            let addr = serve(move |http| {
                http.pipeline_flush(together);
            })
            .await;
            peer(move || {
                let mut stream = peer::connect(addr);
                let requests: String =
                    (0..10).map(|number| request(&format!("/{number}"), "")).collect();
                stream.write_all(requests.as_bytes()).unwrap();
                for number in 0..10 {
                    assert_eq!(answer(&mut stream), format!("/{number} {}", number + 1));
                }
                assert_eq!(segments_received(&stream), 1);
            })
            .await;
        }
    }

    async fn a_body_may_come_slowly() {
        let addr = serve(|_| ()).await;
        peer(move || {
            let mut stream = peer::connect(addr);
            stream.write_all(b"POST /echo HTTP/1.1\r\ncontent-length: 10\r\n\r\n").unwrap();
            for byte in b"0123456789" {
                std::thread::sleep(Duration::from_millis(2));
                stream.write_all(&[*byte]).unwrap();
            }
            assert_eq!(answer(&mut stream), "0123456789");
            ask(&mut stream, "/echo", &"x".repeat(300_000));
            assert_eq!(answer(&mut stream).len(), 300_000);
        })
        .await;
    }

    async fn a_large_answer_waits_for_its_reader() {
        let addr = serve(|_| ()).await;
        peer(move || {
            let mut stream = peer::connect(addr);
            ask(&mut stream, "/large", "");
            let mut reader = BufReader::with_capacity(8192, &mut stream);
            assert_eq!(read_head(&mut reader), LARGE);
            let mut cursor = Keyed(9).cursor();
            let mut rest = LARGE;
            while rest > 0 {
                let mut piece = vec![0; rest.min(50_000)];
                reader.read_exact(&mut piece).unwrap();
                cursor.check(&piece);
                rest -= piece.len();
                if rest % 1_000_000 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        })
        .await;
    }

    async fn a_peer_that_has_finished_is_answered() {
        let addr = serve(|http| {
            http.half_close(true);
        })
        .await;
        peer(move || {
            let mut stream = peer::connect(addr);
            ask(&mut stream, "/slow", "");
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(answer(&mut stream), "/slow 1");
            peer::expect_end(&stream);
        })
        .await;
    }

    async fn a_reset_within_a_request_is_an_error_of_the_connection() {
        let (stream, peer) = with_peer(|mut stream| {
            stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\n012").unwrap();
            std::thread::sleep(Duration::from_millis(5));
            peer::reset(stream);
        })
        .await;
        let service = service_fn(async |request: Request<Incoming>| {
            let body = request.into_body().collect().await?;
            Ok::<_, hyper::Error>(Response::new(Full::new(body.to_bytes())))
        });
        let error = http1::Builder::new().serve_connection(stream, service).await.unwrap_err();
        let first: &(dyn Error + 'static) = &error;
        let causes = std::iter::successors(Some(first), |&error| error.source());
        let kind = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()).last();
        let kind = kind.map(io::Error::kind);
        assert_eq!(kind, Some(ErrorKind::ConnectionReset), "{error:?}");
        peer.await;
    }

    async fn an_upgraded_connection_is_the_stream_itself() {
        let (stream, peer) = with_peer(|mut stream| {
            stream
                .write_all(b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nearly")
                .unwrap();
            let mut reader = BufReader::with_capacity(1, stream.try_clone().unwrap());
            assert_eq!(read_head(&mut reader), 0);
            drop(reader);
            let mut early = [0; 5];
            stream.read_exact(&mut early).unwrap();
            assert_eq!(&early, b"early");
            peer::echo(&stream, Keyed(7), 200_000);
        })
        .await;
        serve_upgrade(stream).await.unwrap();
        peer.await;
    }

    async fn both_sides_of_an_upgrade_have_their_stream() {
        let (client, server) = pair().await;
        let serving = annulus::spawn(serve_upgrade(server));
        let (mut sender, connection) = client::conn::http1::handshake(client).await.unwrap();
        let connection = annulus::spawn(connection.with_upgrades());
        let request = Request::get("/").header(CONNECTION, "upgrade").header(UPGRADE, "echo");
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upgraded = hyper::upgrade::on(answer).await.unwrap();
        let parts = upgraded.downcast::<TcpStream>().expect("the stream that was connected");
        assert!(parts.read_buf.is_empty(), "{:?}", parts.read_buf);
        let mut stream = parts.io;
        stream.write_all(&Keyed(3).bytes(0, 50_000)).await.unwrap();
        let mut back = vec![0; 50_000];
        stream.read_exact(&mut back).await.unwrap();
        Keyed(3).check(0, &back);
        serving.await.unwrap().unwrap();
        connection.await.unwrap().unwrap();
    }

    async fn a_client_asks_a_blocking_server() {
        let (stream, peer) = with_peer(|mut stream| {
            for number in 0..3 {
                let mut reader = BufReader::with_capacity(1, stream.try_clone().unwrap());
                assert_eq!(read_head(&mut reader), 4);
                let mut body = [0; 4];
                reader.read_exact(&mut body).unwrap();
                assert_eq!(&body, b"ping");
                let text = format!("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npong {number}");
                stream.write_all(text.as_bytes()).unwrap();
            }
            peer::expect_end(&stream);
        })
        .await;
        let (mut sender, connection) = client::conn::http1::handshake(stream).await.unwrap();
        let connection = annulus::spawn(connection);
        for number in 0..3 {
            sender.ready().await.unwrap();
            let request = Request::post("/").body(Full::new(Bytes::from("ping"))).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(text(answer).await, format!("pong {number}"));
        }
        drop(sender);
        connection.await.unwrap().unwrap();
        peer.await;
    }

    async fn http2_is_spoken_by_futures_that_are_not_send() {
        let (client, server) = pair().await;
        let answered = Rc::new(Cell::new(0));
        let counted = Rc::clone(&answered);
        annulus::spawn(async move {
            let service = service_fn(move |request| respond(request, Rc::clone(&counted)));
            let http = http2::Builder::new(LocalExecutor).timer(ShardTimer).clone();
            http.serve_connection(server, service).await
        });
        let (sender, connection) =
            client::conn::http2::handshake(LocalExecutor, client).await.unwrap();
        LocalExecutor.execute(async move { connection.await.unwrap() });
        let asking: Vec<_> = (0..20)
            .map(|number| {
                let mut sender = sender.clone();
                annulus::spawn(async move {
                    let body = Keyed(number).bytes(0, 100_000);
                    let request = Request::post("/echo").body(Full::new(Bytes::from(body)));
                    let answer = sender.send_request(request.unwrap()).await.unwrap();
                    let back = answer.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(back.len(), 100_000);
                    Keyed(number).check(0, &back);
                })
            })
            .collect();
        for task in asking {
            task.await.unwrap();
        }
        assert_eq!(answered.get(), 20);
    }

    async fn a_head_that_does_not_come_in_time_ends_the_connection() {
        let addr = serve(|http| {
            http.timer(ShardTimer).header_read_timeout(Duration::from_millis(30));
        })
        .await;
        peer(move || {
            let mut stream = peer::connect(addr);
            ask(&mut stream, "/", "");
            assert_eq!(answer(&mut stream), "/ 1");
            stream.write_all(b"GET / HT").unwrap();
            peer::expect_closed(&stream);
        })
        .await;
    }

    async fn a_sleep_of_hypers_is_reset_in_its_place() {
        time::pause();
        let start = ShardTimer.now();
        let mut sleep = ShardTimer.sleep(Duration::from_secs(3600));
        let place: *const _ = &raw const *sleep;
        assert!(contract::once(|cx| sleep.as_mut().poll(cx)).is_pending());
        ShardTimer.reset(&mut sleep, start + Duration::from_secs(5));
        assert!(std::ptr::addr_eq(place, &raw const *sleep), "it was made anew");
        sleep.await;
        assert_eq!(ShardTimer.now(), start + Duration::from_secs(5));
        ShardTimer.sleep_until(start + Duration::from_secs(7)).await;
        assert_eq!(Instant::now().into_std(), start + Duration::from_secs(7));
    }
}

/// A server on tasks of its own; it lives as long as the runtime.
async fn serve(set: impl Fn(&mut http1::Builder) + 'static) -> SocketAddr {
    let (listener, addr) = listen().await;
    annulus::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            let mut http = http1::Builder::new();
            set(&mut http);
            // What all requests of a connection share need not be `Send`.
            let answered = Rc::new(Cell::new(0));
            let service = service_fn(move |request| respond(request, Rc::clone(&answered)));
            annulus::spawn(http.serve_connection(stream, service));
        }
    });
    addr
}

/// `/echo` gives the body back, `/large` a large one, all others their path and a number.
async fn respond(
    request: Request<Incoming>,
    answered: Rc<Cell<u32>>,
) -> hyper::Result<Response<Full<Bytes>>> {
    answered.set(answered.get() + 1);
    let path = request.uri().path().to_owned();
    let body = match path.as_str() {
        "/echo" => request.into_body().collect().await?.to_bytes(),
        "/large" => Bytes::from(Keyed(9).bytes(0, LARGE)),
        _ => Bytes::from(format!("{path} {}", answered.get())),
    };
    if path == "/slow" {
        time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Response::new(Full::new(body)))
}

/// Serves a request for an upgrade, after which the stream echoes.
async fn serve_upgrade(stream: TcpStream) -> hyper::Result<()> {
    let service = service_fn(async |request: Request<Incoming>| {
        annulus::spawn(echo_upgraded(hyper::upgrade::on(request)));
        let answer = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
        let answer = answer.header(CONNECTION, "upgrade").header(UPGRADE, "echo");
        answer.body(Full::<Bytes>::default())
    });
    http1::Builder::new().serve_connection(stream, service).with_upgrades().await
}

async fn echo_upgraded(upgrading: hyper::upgrade::OnUpgrade) {
    let upgraded = upgrading.await.expect("an upgrade");
    let parts = upgraded.downcast::<TcpStream>().expect("the stream that was served");
    let mut stream = parts.io;
    stream.write_all(&parts.read_buf).await.expect("a write");
    drop(common::steps::echo(stream).await);
}

async fn text(answer: Response<Incoming>) -> String {
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8(body.to_vec()).expect("a body of text")
}

/// How many segments with data have come. With `TCP_NODELAY` a small send is one.
fn segments_received(stream: &StdStream) -> u32 {
    // SAFETY: an all-zero value of this struct of numbers is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    let to = (&raw mut info).cast();
    let fd = stream.as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes, which are the struct's.
    let status =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &mut length) };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
    info.tcpi_data_segs_in
}

/// A stream by the traits of hyper.
struct Hyper(TcpStream);

impl Traits for Hyper {
    fn of(stream: TcpStream) -> Hyper {
        Hyper(stream)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Read::poll_read(Pin::new(&mut self.0), cx, buffer.unfilled()))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            [only] => Write::poll_write(Pin::new(&mut self.0), cx, only),
            _ => Write::poll_write_vectored(Pin::new(&mut self.0), cx, slices),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Write::poll_flush(Pin::new(&mut self.0), cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Write::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const LARGE: usize = 10_000_000;
