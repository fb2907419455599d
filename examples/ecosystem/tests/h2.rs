//! HTTP/2 by the crate h2 alone, both ends on annulus: its flow control and its many streams.

use std::future::poll_fn;

use annulus::net::TcpStream;
use h2::{Reason, RecvStream, SendStream, client, server};
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};

use common::bytes::Keyed;
use common::each_driver;
use common::steps::pair;

#[path = "../../../tests/common/mod.rs"]
mod common;

each_driver! {
    async fn bodies_of_many_streams_pass_both_ways_at_once() {
        let mut requests = connect().await;
        let mut tasks = Vec::new();
        for key in 0..20 {
            requests = requests.ready().await.unwrap();
            let request = Request::post("https://localhost/").body(()).unwrap();
            let (response, body) = requests.send_request(request, false).unwrap();
            let sending = annulus::spawn(async move {
                send(body, Keyed(key).bytes(0, BODY_LEN).into()).await.unwrap();
            });
            tasks.push(annulus::spawn(async move {
                let mut body = response.await.unwrap().into_body();
                let mut received = Vec::new();
                while let Some(bytes) = receive(&mut body).await {
                    received.extend_from_slice(&bytes.unwrap());
                }
                assert!(received == Keyed(key).bytes(0, BODY_LEN), "stream {key} is not whole");
                sending.await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    }

    async fn a_stream_that_is_not_read_holds_up_no_other() {
        let mut requests = connect().await.ready().await.unwrap();
        let post = || Request::post("https://localhost/").body(()).unwrap();
        let (response, body) = requests.send_request(post(), false).unwrap();
        let idle = annulus::spawn(send(body, Keyed(1).bytes(0, BODY_LEN).into()));
        // Its answer is there, and its body is left to lie.
        let unread = response.await.unwrap();
        for key in 2..10 {
            requests = requests.ready().await.unwrap();
            let (response, body) = requests.send_request(post(), false).unwrap();
            send(body, Keyed(key).bytes(0, 1000).into()).await.unwrap();
            let mut body = response.await.unwrap().into_body();
            let mut received = Vec::new();
            while let Some(bytes) = receive(&mut body).await {
                received.extend_from_slice(&bytes.unwrap());
            }
            assert_eq!(received, Keyed(key).bytes(0, 1000));
        }
        drop(unread);
        idle.abort();
    }

    async fn a_reset_ends_its_stream_only() {
        let mut requests = connect().await.ready().await.unwrap();
        let post = || Request::post("https://localhost/").body(()).unwrap();
        let (response, mut body) = requests.send_request(post(), false).unwrap();
        body.send_data(Bytes::from_static(b"half"), false).unwrap();
        let mut answer = response.await.unwrap().into_body();
        assert_eq!(receive(&mut answer).await.unwrap().unwrap(), "half");
        body.send_reset(Reason::CANCEL);
        assert!(receive(&mut answer).await.is_none_or(|bytes| bytes.is_err()));

        requests = requests.ready().await.unwrap();
        let (response, _) = requests.send_request(post(), true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    }
}

/// A client whose server sends back each body.
async fn connect() -> client::SendRequest<Bytes> {
    let (near, far) = pair().await;
    annulus::spawn(serve(far));
    let mut http = client::Builder::new();
    let connecting = http.initial_connection_window_size(CONNECTION_BYTES_MAX).handshake(near);
    let (requests, connection) = connecting.await.expect("the client's handshake");
    annulus::spawn(async move { connection.await.expect("the client's connection") });
    requests
}

async fn serve(stream: TcpStream) {
    let mut http = server::Builder::new();
    let accepting = http.initial_connection_window_size(CONNECTION_BYTES_MAX).handshake(stream);
    let mut connection = accepting.await.expect("the server's handshake");
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request.expect("a request");
        let mut echoing = respond.send_response(Response::new(()), false).expect("an answer");
        annulus::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(bytes)) = receive(&mut body).await {
                if send_part(&mut echoing, bytes).await.is_err() {
                    return;
                }
            }
            // The client may have gone.
            let _ = echoing.send_data(Bytes::new(), true);
        });
    }
}

async fn send(mut body: SendStream<Bytes>, bytes: Bytes) -> Result<(), h2::Error> {
    send_part(&mut body, bytes).await?;
    body.send_data(Bytes::new(), true)
}

/// Sends as the other end has room.
async fn send_part(body: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        body.reserve_capacity(bytes.len());
        let room = poll_fn(|cx| body.poll_capacity(cx)).await.ok_or(Reason::CANCEL)??;
        body.send_data(bytes.split_to(room.min(bytes.len())), false)?;
    }
    Ok(())
}

/// Receives a part, and makes room for as much.
async fn receive(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let bytes = body.data().await?;
    if let Ok(bytes) = &bytes {
        // Fails when the stream has ended meanwhile, which the next receive tells.
        let _ = body.flow_control().release_capacity(bytes.len());
    }
    Some(bytes)
}

/// Room for several streams of which nobody takes anything.
const CONNECTION_BYTES_MAX: u32 = 1 << 20;
/// Twenty times what HTTP/2 lets anybody send unasked.
const BODY_LEN: usize = 20 * 65_535;
