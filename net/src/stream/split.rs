//! The two directions of a stream, held apart.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use annulus_runtime::buf::{BufResult, IoBuf, IoBufMut, Lease};
use annulus_runtime::io::Homed;

use super::{Connection, Stream, Take, ZeroCopy};
use crate::family::Family;

/// The reading half of a borrowed stream: [`Stream::split`].
#[derive(Debug)]
pub struct ReadHalf<'a, F: Family>(&'a Stream<F>);

/// The writing half of a borrowed stream: [`Stream::split`].
#[derive(Debug)]
pub struct WriteHalf<'a, F: Family>(&'a Stream<F>);

/// The reading half of an owned stream: [`Stream::into_split`].
#[derive(Debug)]
pub struct OwnedReadHalf<F: Family>(Arc<Stream<F>>);

/// The writing half of an owned stream: [`Stream::into_split`].
///
/// Dropping it sends what is unsent, then FIN. [`forget`](OwnedWriteHalf::forget) does not.
#[derive(Debug)]
pub struct OwnedWriteHalf<F: Family>(Arc<Stream<F>>);

impl<'a, F: Family> ReadHalf<'a, F> {
    pub(super) fn new(stream: &'a Stream<F>) -> ReadHalf<'a, F> {
        ReadHalf(stream)
    }
}

impl<'a, F: Family> WriteHalf<'a, F> {
    pub(super) fn new(stream: &'a Stream<F>) -> WriteHalf<'a, F> {
        WriteHalf(stream)
    }
}

pub(super) fn split_owned<F: Family>(stream: Stream<F>) -> (OwnedReadHalf<F>, OwnedWriteHalf<F>) {
    let stream = Arc::new(stream);
    (OwnedReadHalf(Arc::clone(&stream)), OwnedWriteHalf(stream))
}

macro_rules! addresses {
    () => {
        /// As [`Stream::local_addr`].
        ///
        /// # Errors
        ///
        /// As there.
        pub fn local_addr(&self) -> io::Result<F::Address> {
            self.0.local_addr()
        }

        /// As [`Stream::peer_addr`].
        ///
        /// # Errors
        ///
        /// As there.
        pub fn peer_addr(&self) -> io::Result<F::Address> {
            self.0.peer_addr()
        }

        pub(crate) fn home(&self) -> &Homed<Connection> {
            self.0.home()
        }
    };
}

/// The methods of both reading halves and of both writing halves; documented on the stream.
macro_rules! reads {
    ($half:ty) => {
        impl<F: Family> $half {
            /// As [`Stream::read`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                poll_fn(|cx| self.0.poll_read(cx, buffer, Take::Some)).await
            }

            /// As [`Stream::read_exact`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.fill_exactly(buffer).await
            }

            /// As [`Stream::peek`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                poll_fn(|cx| self.0.poll_read(cx, buffer, Take::Peek)).await
            }

            /// As [`Stream::recv`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn recv<B: IoBufMut>(&mut self, buffer: B) -> BufResult<usize, B> {
                self.0.receive(buffer).await
            }

            /// As [`Stream::recv_exact`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn recv_exact<B: IoBufMut>(&mut self, buffer: B) -> BufResult<usize, B> {
                self.0.receive_exact(buffer).await
            }

            /// As [`Stream::recv_lease`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn recv_lease(&mut self) -> io::Result<Lease> {
                poll_fn(|cx| self.0.poll_lease(cx)).await
            }

            addresses!();
        }
    };
}

macro_rules! writes {
    ($half:ty) => {
        impl<F: Family> $half {
            /// As [`Stream::write`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
                poll_fn(|cx| self.0.poll_write(cx, &[IoSlice::new(buffer)])).await
            }

            /// As [`Stream::write_all`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn write_all(&mut self, buffer: &[u8]) -> io::Result<()> {
                self.0.write_whole(buffer).await
            }

            /// As [`Stream::write_vectored`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
                poll_fn(|cx| self.0.poll_write(cx, buffers)).await
            }

            /// As [`Stream::send`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn send<B: IoBuf>(&mut self, buffer: B) -> BufResult<usize, B> {
                self.0.transmit(buffer).await
            }

            /// As [`Stream::send_all`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn send_all<B: IoBuf>(&mut self, buffer: B) -> BufResult<usize, B> {
                self.0.transmit_all(buffer).await
            }

            /// As [`Stream::send_zc`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn send_zc<B: IoBuf>(&mut self, buffer: B) -> BufResult<usize, B> {
                self.0.transmit_zero_copy(buffer).await
            }

            /// As [`Stream::zero_copy`].
            ///
            /// # Errors
            ///
            /// As there.
            pub fn zero_copy(&self) -> io::Result<ZeroCopy> {
                self.0.zero_copy()
            }

            /// As [`Stream::send_vectored`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn send_vectored<B: IoBuf>(
                &mut self,
                buffers: Vec<B>,
            ) -> BufResult<usize, Vec<B>> {
                self.0.transmit_vectored(buffers).await
            }

            /// As [`Stream::flush`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn flush(&mut self) -> io::Result<()> {
                poll_fn(|cx| self.0.poll_flush(cx)).await
            }

            /// As [`Stream::shutdown`].
            ///
            /// # Errors
            ///
            /// As there.
            ///
            /// # Cancel safety
            ///
            /// As there.
            pub async fn shutdown(&mut self) -> io::Result<()> {
                poll_fn(|cx| self.0.poll_shutdown(cx)).await
            }

            addresses!();
        }
    };
}

reads!(ReadHalf<'_, F>);
reads!(OwnedReadHalf<F>);
writes!(WriteHalf<'_, F>);
writes!(OwnedWriteHalf<F>);

impl<F: Family> OwnedReadHalf<F> {
    /// Makes one stream of two halves again.
    ///
    /// # Errors
    ///
    /// If they were not halves of the same stream. The error holds both.
    pub fn reunite(self, write: OwnedWriteHalf<F>) -> Result<Stream<F>, ReuniteError<F>> {
        if !Arc::ptr_eq(&self.0, &write.0) {
            return Err(ReuniteError(self, write));
        }
        drop(write.into_stream());
        Ok(Arc::into_inner(self.0).expect("two halves, one of them dropped just now"))
    }
}

impl<F: Family> OwnedWriteHalf<F> {
    /// As [`OwnedReadHalf::reunite`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn reunite(self, read: OwnedReadHalf<F>) -> Result<Stream<F>, ReuniteError<F>> {
        read.reunite(self)
    }

    /// Drops the half without sending FIN; the read half, or the end of both, decides.
    pub fn forget(self) {
        drop(self.into_stream());
    }

    fn into_stream(self) -> Arc<Stream<F>> {
        let this = ManuallyDrop::new(self);
        // SAFETY: the half is never dropped, so that this is the only owner of its share.
        unsafe { std::ptr::read(&raw const this.0) }
    }
}

impl<F: Family> Drop for OwnedWriteHalf<F> {
    fn drop(&mut self) {
        self.0.shutdown_when_sent();
    }
}

/// Two halves that do not belong together.
#[derive(Debug)]
pub struct ReuniteError<F: Family>(
    /// The reading half.
    pub OwnedReadHalf<F>,
    /// The writing half.
    pub OwnedWriteHalf<F>,
);

impl<F: Family> fmt::Display for ReuniteError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("these are halves of two different streams")
    }
}

impl<F: Family> std::error::Error for ReuniteError<F> {}
