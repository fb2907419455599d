//! The two directions of a stream, held apart.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::sync::Arc;

use super::inbound::Take;
use super::stream::{Source, TcpStream, read_exact, write_all};

/// The reading half of a borrowed stream: [`TcpStream::split`].
#[derive(Debug)]
pub struct ReadHalf<'a>(&'a TcpStream);

/// The writing half of a borrowed stream: [`TcpStream::split`].
#[derive(Debug)]
pub struct WriteHalf<'a>(&'a TcpStream);

/// The reading half of an owned stream: [`TcpStream::into_split`].
#[derive(Debug)]
pub struct OwnedReadHalf(Arc<TcpStream>);

/// The writing half of an owned stream: [`TcpStream::into_split`].
///
/// Dropping it sends what is unsent, then FIN. [`forget`](OwnedWriteHalf::forget) does not.
#[derive(Debug)]
pub struct OwnedWriteHalf(Arc<TcpStream>);

impl<'a> ReadHalf<'a> {
    pub(super) fn new(stream: &'a TcpStream) -> ReadHalf<'a> {
        ReadHalf(stream)
    }
}

impl<'a> WriteHalf<'a> {
    pub(super) fn new(stream: &'a TcpStream) -> WriteHalf<'a> {
        WriteHalf(stream)
    }
}

pub(super) fn split_owned(stream: TcpStream) -> (OwnedReadHalf, OwnedWriteHalf) {
    let stream = Arc::new(stream);
    (OwnedReadHalf(Arc::clone(&stream)), OwnedWriteHalf(stream))
}

macro_rules! addresses {
    () => {
        /// As [`TcpStream::local_addr`].
        ///
        /// # Errors
        ///
        /// As there.
        pub fn local_addr(&self) -> io::Result<SocketAddr> {
            self.0.local_addr()
        }

        /// As [`TcpStream::peer_addr`].
        ///
        /// # Errors
        ///
        /// As there.
        pub fn peer_addr(&self) -> io::Result<SocketAddr> {
            self.0.peer_addr()
        }
    };
}

/// The methods of both reading halves and of both writing halves; documented on the stream.
macro_rules! reads {
    ($half:ty) => {
        impl $half {
            /// As [`TcpStream::read`].
            ///
            /// # Errors
            ///
            /// As there.
            pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                poll_fn(|cx| self.0.poll_read(cx, buffer, Take::Away)).await
            }

            /// As [`TcpStream::read_exact`].
            ///
            /// # Errors
            ///
            /// As there.
            pub async fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                read_exact(&*self.0, buffer).await
            }

            /// As [`TcpStream::peek`].
            ///
            /// # Errors
            ///
            /// As there.
            pub async fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                poll_fn(|cx| self.0.poll_read(cx, buffer, Take::Peek)).await
            }

            addresses!();
        }
    };
}

macro_rules! writes {
    ($half:ty) => {
        impl $half {
            /// As [`TcpStream::write`].
            ///
            /// # Errors
            ///
            /// As there.
            pub async fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
                poll_fn(|cx| self.0.poll_write(cx, &[IoSlice::new(buffer)])).await
            }

            /// As [`TcpStream::write_all`].
            ///
            /// # Errors
            ///
            /// As there.
            pub async fn write_all(&mut self, buffer: &[u8]) -> io::Result<()> {
                write_all(&*self.0, buffer).await
            }

            /// As [`TcpStream::write_vectored`].
            ///
            /// # Errors
            ///
            /// As there.
            pub async fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
                poll_fn(|cx| self.0.poll_write(cx, buffers)).await
            }

            /// As [`TcpStream::flush`].
            ///
            /// # Errors
            ///
            /// As there.
            pub async fn flush(&mut self) -> io::Result<()> {
                poll_fn(|cx| self.0.poll_flush(cx)).await
            }

            /// As [`TcpStream::shutdown`].
            ///
            /// # Errors
            ///
            /// As there.
            pub async fn shutdown(&mut self) -> io::Result<()> {
                poll_fn(|cx| self.0.poll_shutdown(cx)).await
            }

            addresses!();
        }
    };
}

reads!(ReadHalf<'_>);
reads!(OwnedReadHalf);
writes!(WriteHalf<'_>);
writes!(OwnedWriteHalf);

impl OwnedReadHalf {
    /// Makes one stream of two halves again.
    ///
    /// # Errors
    ///
    /// If they were not halves of the same stream. The error holds both.
    pub fn reunite(self, write: OwnedWriteHalf) -> Result<TcpStream, ReuniteError> {
        if !Arc::ptr_eq(&self.0, &write.0) {
            return Err(ReuniteError(self, write));
        }
        drop(write.into_stream());
        Ok(Arc::into_inner(self.0).expect("two halves, one of them dropped just now"))
    }
}

impl OwnedWriteHalf {
    /// As [`OwnedReadHalf::reunite`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn reunite(self, read: OwnedReadHalf) -> Result<TcpStream, ReuniteError> {
        read.reunite(self)
    }

    /// Drops the half without sending FIN; the read half, or the end of both, decides.
    pub fn forget(self) {
        drop(self.into_stream());
    }

    fn into_stream(self) -> Arc<TcpStream> {
        let this = ManuallyDrop::new(self);
        // SAFETY: the half is never dropped, so that this is the only owner of its share.
        unsafe { std::ptr::read(&raw const this.0) }
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        self.0.shutdown_when_sent();
    }
}

/// Two halves that do not belong together.
#[derive(Debug)]
pub struct ReuniteError(
    /// The reading half.
    pub OwnedReadHalf,
    /// The writing half.
    pub OwnedWriteHalf,
);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("these are halves of two different streams")
    }
}

impl std::error::Error for ReuniteError {}
