//! The traits of `futures-io` on streams and their halves, and the stream of what comes in.

use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use annulus::net::{TcpStream, UnixStream};
use futures_core::Stream;
use futures_io::{AsyncRead, AsyncWrite};

use common::contract::{self, CountingAllocator, Traits};
use common::each_driver;
use common::peer;
use common::steps::{listen, with_peer};

mod common;

each_driver! {
    async fn every_byte_passes() {
        contract::every_byte_passes::<Futures>().await;
    }

    async fn slices_are_taken_in_their_order() {
        contract::slices_are_taken_in_their_order::<Futures>().await;
    }

    async fn a_reset_is_an_error_and_no_end() {
        contract::a_reset_is_an_error_and_no_end::<Futures>().await;
    }

    async fn a_reset_that_a_send_has_met_is_no_end() {
        contract::a_reset_that_a_send_has_met_is_no_end::<Futures>().await;
    }

    async fn a_write_that_waits_has_taken_nothing() {
        contract::a_write_that_waits_has_taken_nothing::<Futures>().await;
    }

    async fn what_waits_wakes_the_latest_waker_only() {
        contract::what_waits_wakes_the_latest_waker_only::<Futures>().await;
    }

    async fn after_a_flush_the_kernel_has_everything() {
        contract::after_a_flush_the_kernel_has_everything::<Futures>().await;
    }

    async fn a_shutdown_sends_everything_and_then_the_end() {
        contract::a_shutdown_sends_everything_and_then_the_end::<Futures>().await;
    }

    async fn what_a_send_failed_with_is_told_by_the_next_call() {
        contract::what_a_send_failed_with_is_told_by_the_next_call::<Futures>().await;
    }

    async fn elsewhere_it_is_an_error_that_says_so() {
        contract::elsewhere_it_is_an_error_that_says_so::<Futures>().await;
    }

    async fn a_round_allocates_nothing() {
        contract::a_round_allocates_nothing::<Futures>().await;
    }

    async fn halves_of_every_kind_carry_the_traits() {
        let (mut stream, peer) = with_peer(|stream| {
            for key in [1, 2] {
                peer::echo(&stream, common::bytes::Keyed(key), SOME);
            }
        })
        .await;
        let (read, write) = stream.split();
        echo_some(read, write).await;
        let (read, write) = stream.into_split();
        echo_some(read, write).await;
        peer.await;
    }

    async fn unix_streams_carry_the_traits() {
        let (mut stream, mut other) = UnixStream::pair().unwrap();
        let both = annulus::spawn(async move {
            let (read, write) = other.split();
            echo_some(read, write).await;
            let (read, write) = other.into_split();
            echo_some(read, write).await;
        });
        for _ in 0..2 {
            let (read, write) = stream.split();
            send_and_receive(read, write).await;
        }
        both.await.unwrap();
    }

    async fn connections_that_come_in_are_a_stream() {
        let (listener, addr) = listen().await;
        let peers = [peer::connect(addr), peer::connect(addr)];
        let mut incoming = pin!(listener.incoming());
        for peer in &peers {
            let next = poll_fn(|cx| incoming.as_mut().poll_next(cx)).await;
            let stream = next.expect("no end").unwrap();
            assert_eq!(stream.peer_addr().unwrap(), peer.local_addr().unwrap());
        }
    }
}

const SOME: usize = 30_000;

async fn echo_some(mut read: impl AsyncRead + Unpin, mut write: impl AsyncWrite + Unpin) {
    let mut bytes = vec![0; SOME];
    receive(&mut read, &mut bytes).await;
    send(&mut write, &bytes).await;
}

async fn send_and_receive(mut read: impl AsyncRead + Unpin, mut write: impl AsyncWrite + Unpin) {
    send(&mut write, &[7; SOME]).await;
    let mut back = vec![0; SOME];
    receive(&mut read, &mut back).await;
    assert!(back == [7; SOME]);
}

async fn receive(read: &mut (impl AsyncRead + Unpin), mut buffer: &mut [u8]) {
    while !buffer.is_empty() {
        let count = poll_fn(|cx| Pin::new(&mut *read).poll_read(cx, buffer)).await.unwrap();
        assert!(count > 0, "an early end");
        buffer = &mut buffer[count..];
    }
}

async fn send(write: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let count = poll_fn(|cx| Pin::new(&mut *write).poll_write(cx, bytes)).await.unwrap();
        bytes = &bytes[count..];
    }
    poll_fn(|cx| Pin::new(&mut *write).poll_flush(cx)).await.unwrap();
}

/// A stream by the traits of futures.
struct Futures(TcpStream);

impl Traits for Futures {
    fn of(stream: TcpStream) -> Futures {
        Futures(stream)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut self.0), cx, buffer)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            [only] => AsyncWrite::poll_write(Pin::new(&mut self.0), cx, only),
            _ => AsyncWrite::poll_write_vectored(Pin::new(&mut self.0), cx, slices),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.0), cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_close(Pin::new(&mut self.0), cx)
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
