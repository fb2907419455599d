//! Lines by a codec of tokio-util: the example at one end, a whole stream in a frame at the other.

use annulus::net::TcpStream;
use futures_util::{SinkExt, StreamExt};
use tokio_util::codec::{Framed, LinesCodec};

use common::bytes::Numbers;
use common::each_driver;
use server::Server;

#[path = "../../../tests/common/mod.rs"]
mod common;
mod server;

each_driver! {
    async fn lines_of_any_length_come_back_in_order() {
        let server = start();
        let stream = TcpStream::connect(server.addr).await.unwrap();
        let (mut sending, mut receiving) = Framed::new(stream, LinesCodec::new()).split();
        let mut numbers = Numbers(1);
        let lens: Vec<_> = (0..5000).map(|_| numbers.below(300) as usize).collect();
        let sent = lens.clone();
        let sending = annulus::spawn(async move {
            for len in sent {
                // Of two bytes each, so that reads end within letters.
                sending.feed("ä".repeat(len)).await.unwrap();
            }
            sending.flush().await.unwrap();
        });
        for len in lens {
            let line = receiving.next().await.unwrap().unwrap();
            assert_eq!(line, "Ä".repeat(len));
        }
        sending.await.unwrap();
    }

    async fn what_is_before_the_end_is_a_line_too() {
        let server = start();
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"whole\r\n\nand not").await.unwrap();
        stream.shutdown().await.unwrap();
        let lines = Framed::new(stream, LinesCodec::new());
        let lines: Vec<_> = lines.map(Result::unwrap).collect().await;
        assert_eq!(lines, ["WHOLE", "", "AND NOT"]);
    }

    async fn a_line_without_an_end_ends_its_connection() {
        let server = start();
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"short\n").await.unwrap();
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"SHORT\n");
        // Read as a whole before it is refused, so that the end is no reset.
        stream.write_all(&[b'x'; 1030]).await.unwrap();
        assert_eq!(stream.read(&mut answer).await.unwrap(), 0);
    }
}

fn start() -> Server {
    Server::start(env!("CARGO_BIN_EXE_lines"), &[])
}
