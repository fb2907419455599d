//! Sending and receiving with buffers that are given and come back.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;

use annulus_runtime::buf::{BufError, BufResult, IoBuf, IoBufMut};
use socket2::SockAddr;

use super::inbound::{Received, Take};
use super::outbound::Outgoing;
use super::socket::{UdpSocket, peer_of};
use crate::addr::{ToSocketAddrs, resolve_first};

/// No buffer ever stays with the kernel: what is received is copied to it when it is there, what is
/// sent is copied from it at once.
impl UdpSocket {
    /// As [`send`](UdpSocket::send), from a buffer that comes back.
    ///
    /// # Errors
    ///
    /// As [`send`](UdpSocket::send). The error has the buffer.
    ///
    /// # Cancel safety
    ///
    /// As [`send`](UdpSocket::send). The buffer is dropped with the future.
    pub async fn send_owned<B: IoBuf>(&self, buffer: B) -> BufResult<usize, B> {
        self.transmit(buffer, None).await
    }

    /// As [`send_to`](UdpSocket::send_to), from a buffer that comes back.
    ///
    /// # Errors
    ///
    /// As [`send_to`](UdpSocket::send_to). The error has the buffer.
    ///
    /// # Panics
    ///
    /// As [`send_to`](UdpSocket::send_to).
    ///
    /// # Cancel safety
    ///
    /// As [`send`](UdpSocket::send). The buffer is dropped with the future.
    pub async fn send_to_owned<B: IoBuf>(
        &self,
        buffer: B,
        target: impl ToSocketAddrs,
    ) -> BufResult<usize, B> {
        match resolve_first(target).await {
            Ok(target) => self.transmit(buffer, Some(target.into())).await,
            Err(error) => Err(BufError { error, buffer }),
        }
    }

    async fn transmit<B: IoBuf>(&self, buffer: B, target: Option<SockAddr>) -> BufResult<usize, B> {
        let bytes = buffer.as_slice();
        let outgoing = Outgoing { bytes, target: target.as_ref(), segment_bytes: None };
        match self.send_out(outgoing).await {
            Ok(count) => Ok((count, buffer)),
            Err(error) => Err(BufError { error, buffer }),
        }
    }

    /// As [`recv`](UdpSocket::recv), into a buffer that comes back: from its beginning and up to
    /// its capacity. A `Vec` then has the datagram's length; what it has no room for is lost.
    ///
    /// ```
    /// # use annulus_net::UdpSocket;
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// # let server = UdpSocket::bind("127.0.0.1:0").await?;
    /// # let client = UdpSocket::bind("127.0.0.1:0").await?;
    /// client.send_to_owned("hello", server.local_addr()?).await?;
    /// let (count, buffer) = server.recv_owned(Vec::with_capacity(1500)).await?;
    /// assert_eq!(buffer, b"hello");
    /// assert_eq!(count, 5);
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`recv`](UdpSocket::recv). The error has the buffer.
    ///
    /// # Cancel safety
    ///
    /// A dropped receive loses no datagram: the next one gets it. The buffer is dropped with the
    /// future.
    pub async fn recv_owned<B: IoBufMut>(&self, buffer: B) -> BufResult<usize, B> {
        let (received, buffer) = self.receive_owned(buffer).await?;
        Ok((received.bytes, buffer))
    }

    /// As [`recv_owned`](UdpSocket::recv_owned), and tells who sent the datagram.
    ///
    /// # Errors
    ///
    /// As [`recv_owned`](UdpSocket::recv_owned).
    ///
    /// # Cancel safety
    ///
    /// As [`recv_owned`](UdpSocket::recv_owned).
    pub async fn recv_from_owned<B: IoBufMut>(
        &self,
        buffer: B,
    ) -> BufResult<(usize, SocketAddr), B> {
        let (received, buffer) = self.receive_owned(buffer).await?;
        match peer_of(&received) {
            Ok(peer) => Ok(((received.bytes, peer), buffer)),
            Err(error) => Err(BufError { error, buffer }),
        }
    }

    async fn receive_owned<B: IoBufMut>(&self, mut buffer: B) -> BufResult<Received, B> {
        let mut place = self.receiver();
        let answer: io::Result<Received> = poll_fn(|cx| {
            // SAFETY: receiving writes bytes.
            let memory = unsafe { buffer.as_uninit() };
            self.poll_receive(cx, &mut place, memory, Take::Away)
        })
        .await;
        drop(place);
        match answer {
            Ok(received) => {
                // SAFETY: so many bytes have been written from the beginning on.
                unsafe { buffer.set_received(received.bytes) };
                Ok((received, buffer))
            }
            Err(error) => Err(BufError { error, buffer }),
        }
    }
}
