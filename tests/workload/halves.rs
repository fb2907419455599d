//! What can be read from and written to, whole or by halves: the same methods under one name.

use std::io;
use std::io::IoSlice;

use annulus::buf::{BufResult, Lease};
use annulus::net::TcpStream;
use annulus::net::tcp::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};

pub(crate) trait Source {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    async fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    async fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    async fn recv(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>>;
    async fn recv_exact(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>>;
    async fn recv_lease(&mut self) -> io::Result<Lease>;
}

pub(crate) trait Sink {
    async fn write(&mut self, buffer: &[u8]) -> io::Result<usize>;
    async fn write_all(&mut self, buffer: &[u8]) -> io::Result<()>;
    async fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize>;
    async fn send(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>>;
    async fn send_all(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>>;
    async fn send_zc(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>>;
    async fn send_vectored(&mut self, buffers: Vec<Vec<u8>>) -> BufResult<usize, Vec<Vec<u8>>>;
    async fn flush(&mut self) -> io::Result<()>;
    async fn shutdown(&mut self) -> io::Result<()>;
}

/// Each method is that of the type itself, which comes before the trait's.
macro_rules! source {
    ($($source:ty),*) => {$(
        impl Source for $source {
            async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                <$source>::read(self, buffer).await
            }

            async fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                <$source>::read_exact(self, buffer).await
            }

            async fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                <$source>::peek(self, buffer).await
            }

            async fn recv(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>> {
                <$source>::recv(self, buffer).await
            }

            async fn recv_exact(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>> {
                <$source>::recv_exact(self, buffer).await
            }

            async fn recv_lease(&mut self) -> io::Result<Lease> {
                <$source>::recv_lease(self).await
            }
        }
    )*};
}

macro_rules! sink {
    ($($sink:ty),*) => {$(
        impl Sink for $sink {
            async fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
                <$sink>::write(self, buffer).await
            }

            async fn write_all(&mut self, buffer: &[u8]) -> io::Result<()> {
                <$sink>::write_all(self, buffer).await
            }

            async fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
                <$sink>::write_vectored(self, buffers).await
            }

            async fn send(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>> {
                <$sink>::send(self, buffer).await
            }

            async fn send_all(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>> {
                <$sink>::send_all(self, buffer).await
            }

            async fn send_zc(&mut self, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>> {
                <$sink>::send_zc(self, buffer).await
            }

            async fn send_vectored(
                &mut self,
                buffers: Vec<Vec<u8>>,
            ) -> BufResult<usize, Vec<Vec<u8>>> {
                <$sink>::send_vectored(self, buffers).await
            }

            async fn flush(&mut self) -> io::Result<()> {
                <$sink>::flush(self).await
            }

            async fn shutdown(&mut self) -> io::Result<()> {
                <$sink>::shutdown(self).await
            }
        }
    )*};
}

source!(TcpStream, ReadHalf<'_>, OwnedReadHalf);
sink!(TcpStream, WriteHalf<'_>, OwnedWriteHalf);
