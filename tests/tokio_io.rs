//! The traits of `tokio::io` on streams and their halves.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use annulus::net::unix;
use annulus::net::{TcpStream, UnixStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use common::contract::{self, CountingAllocator, Traits};
use common::each_driver;
use common::peer;
use common::steps::with_peer;

mod common;

each_driver! {
    async fn every_byte_passes() {
        contract::every_byte_passes::<Tokio>().await;
    }

    async fn slices_are_taken_in_their_order() {
        contract::slices_are_taken_in_their_order::<Tokio>().await;
    }

    async fn a_reset_is_an_error_and_no_end() {
        contract::a_reset_is_an_error_and_no_end::<Tokio>().await;
    }

    async fn a_reset_that_a_send_has_met_is_no_end() {
        contract::a_reset_that_a_send_has_met_is_no_end::<Tokio>().await;
    }

    async fn a_write_that_waits_has_taken_nothing() {
        contract::a_write_that_waits_has_taken_nothing::<Tokio>().await;
    }

    async fn what_waits_wakes_the_latest_waker_only() {
        contract::what_waits_wakes_the_latest_waker_only::<Tokio>().await;
    }

    async fn after_a_flush_the_kernel_has_everything() {
        contract::after_a_flush_the_kernel_has_everything::<Tokio>().await;
    }

    async fn a_shutdown_sends_everything_and_then_the_end() {
        contract::a_shutdown_sends_everything_and_then_the_end::<Tokio>().await;
    }

    async fn what_a_send_failed_with_is_told_by_the_next_call() {
        contract::what_a_send_failed_with_is_told_by_the_next_call::<Tokio>().await;
    }

    async fn elsewhere_it_is_an_error_that_says_so() {
        contract::elsewhere_it_is_an_error_that_says_so::<Tokio>().await;
    }

    async fn a_round_allocates_nothing() {
        contract::a_round_allocates_nothing::<Tokio>().await;
    }

    async fn halves_of_every_kind_carry_the_traits() {
        let (mut stream, peer) = with_peer(echoed_twice).await;
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
            let (read, write): (unix::OwnedReadHalf, unix::OwnedWriteHalf) = other.into_split();
            echo_some(read, write).await;
        });
        for _ in 0..2 {
            AsyncWriteExt::write_all(&mut stream, &[7; SOME]).await.unwrap();
            let mut back = vec![0; SOME];
            AsyncReadExt::read_exact(&mut stream, &mut back).await.unwrap();
            assert!(back == [7; SOME]);
        }
        both.await.unwrap();
    }
}

const SOME: usize = 30_000;

fn echoed_twice(stream: std::net::TcpStream) {
    for key in [1, 2] {
        peer::echo(&stream, common::bytes::Keyed(key), SOME);
    }
}

async fn echo_some(mut read: impl AsyncRead + Unpin, mut write: impl AsyncWrite + Unpin) {
    assert!(write.is_write_vectored());
    let mut bytes = vec![0; SOME];
    read.read_exact(&mut bytes).await.unwrap();
    write.write_all(&bytes).await.unwrap();
    write.flush().await.unwrap();
}

/// A stream by the traits of tokio.
struct Tokio(TcpStream);

impl Traits for Tokio {
    fn of(stream: TcpStream) -> Tokio {
        Tokio(stream)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(AsyncRead::poll_read(Pin::new(&mut self.0), cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
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
        AsyncWrite::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
