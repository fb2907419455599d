//! `AsyncRead` and `AsyncWrite` of `futures-io`, which futures, smol and their like share.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_io::{AsyncRead, AsyncWrite};

use crate::family::Family;
use crate::memory::memory_of;
use crate::stream::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, Stream, Take, WriteHalf};

macro_rules! reads {
    ($type:ty) => {
        impl<F: Family> AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                self.home().get()?.poll_read(cx, memory_of(buffer), Take::Some)
            }
        }
    };
}

macro_rules! writes {
    ($type:ty) => {
        /// A flush is the stream's, a close its shutdown: ready when the kernel has everything.
        impl<F: Family> AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.home().get()?.poll_write(cx, &[IoSlice::new(buffer)])
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffers: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.home().get()?.poll_write(cx, buffers)
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.home().get()?.poll_flush(cx)
            }

            fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.home().get()?.poll_shutdown(cx)
            }
        }
    };
}

reads!(Stream<F>);
reads!(ReadHalf<'_, F>);
reads!(OwnedReadHalf<F>);
writes!(Stream<F>);
writes!(WriteHalf<'_, F>);
writes!(OwnedWriteHalf<F>);
