//! The WebSocket example, its clients by tungstenite on annulus as well.

use std::io::Write as _;

use annulus::net::TcpStream;
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use common::bytes::Keyed;
use common::steps::eventually;
use common::{each_driver, peer};
use server::Server;

#[path = "../../../tests/common/mod.rs"]
mod common;
mod server;

each_driver! {
    async fn messages_of_every_length_come_back() {
        let server = start();
        let mut socket = connect(&server).await;
        // Around the lengths at which a frame's head grows, and one that no socket holds.
        for len in [0, 1, 125, 126, 65_535, 65_536, 8 << 20] {
            let message = Message::binary(Keyed(1).bytes(0, len));
            socket.send(message.clone()).await.unwrap();
            let received = socket.next().await.unwrap().unwrap();
            assert!(received == message, "of {len} bytes something else came back");
        }
        socket.send(Message::text("grüße")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("grüße"));
    }

    async fn many_messages_at_once_come_back_in_their_order() {
        let server = start();
        let mut tasks = Vec::new();
        for client in 0..20 {
            let (mut sending, mut receiving) = connect(&server).await.split();
            tasks.push(annulus::spawn(async move {
                let sent = annulus::spawn(async move {
                    for number in 0..500 {
                        sending.feed(Message::text(format!("{client}: {number}"))).await.unwrap();
                    }
                    sending.flush().await.unwrap();
                });
                for number in 0..500 {
                    let received = receiving.next().await.unwrap().unwrap();
                    assert_eq!(received, Message::text(format!("{client}: {number}")));
                }
                sent.await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    }

    async fn a_ping_is_answered_also_between_the_parts_of_a_message() {
        let server = start();
        let mut socket = connect(&server).await;
        let ping = Message::Ping(Bytes::from_static(b"are you there"));
        let pong = Message::Pong(Bytes::from_static(b"are you there"));
        socket.send(ping.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), pong);

        let part = |bytes: &'static [u8], data, is_last| {
            Message::Frame(Frame::message(bytes, OpCode::Data(data), is_last))
        };
        socket.send(part(b"one ", Data::Text, false)).await.unwrap();
        socket.send(ping).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), pong);
        socket.send(part(b"two ", Data::Continue, false)).await.unwrap();
        socket.send(part(b"three", Data::Continue, true)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("one two three"));
    }

    async fn a_close_is_answered_and_then_the_connection_ends() {
        let server = start();
        let mut socket = connect(&server).await;
        let close = CloseFrame { code: CloseCode::Away, reason: "for lunch".into() };
        socket.send(Message::text("the last")).await.unwrap();
        socket.close(Some(close.clone())).await.unwrap();
        // What was sent before the close is answered before it.
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("the last"));
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::Close(Some(close)));
        assert!(socket.next().await.is_none());
    }

    async fn what_breaks_the_protocol_ends_its_own_connection_only() {
        let server = start();
        let mut other = connect(&server).await;
        let before = server.open_sockets();
        for _ in 0..10 {
            let mut plain = peer::connect(server.addr);
            plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            // More than a message may have, told in advance.
            let mut head = vec![0x82, 0xff];
            head.extend_from_slice(&(1_u64 << 40).to_be_bytes());
            head.extend_from_slice(&[0; 4]);
            let mut huge = connect(&server).await.into_inner();
            huge.write_all(&head).await.unwrap();
            assert_ended(&mut huge).await;
            // A frame that is not masked, as a client's must be.
            let mut bare = connect(&server).await.into_inner();
            bare.write_all(b"\x81\x05hello").await.unwrap();
            assert_ended(&mut bare).await;
            let gone = connect(&server).await.into_inner().into_std().unwrap();
            peer::reset(gone);
        }
        other.send(Message::text("still here")).await.unwrap();
        assert_eq!(other.next().await.unwrap().unwrap(), Message::text("still here"));
        eventually("all connections are closed", || server.open_sockets() <= before).await;
    }
}

fn start() -> Server {
    Server::start(env!("CARGO_BIN_EXE_websocket"), &[])
}

async fn connect(server: &Server) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(server.addr).await.expect("connect");
    let (socket, _response) = client_async("ws://localhost/", stream).await.expect("handshake");
    socket
}

/// The server ends the connection, with or without a last word.
async fn assert_ended(stream: &mut TcpStream) {
    let mut buffer = [0; 256];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}
