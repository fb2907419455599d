//! `tokio::io::AsyncRead` and `AsyncWrite`. They need no runtime of tokio's.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use annulus_runtime::io::Homed;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::family::Family;
use crate::stream::{Connection, OwnedReadHalf, OwnedWriteHalf, ReadHalf, Stream, Take, WriteHalf};

fn poll_read(
    home: &Homed<Connection>,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    // SAFETY: receives write bytes, and nothing that has been written is unwritten.
    let memory = unsafe { buffer.unfilled_mut() };
    let count = ready!(home.get()?.poll_read(cx, memory, Take::Some))?;
    // SAFETY: the bytes that a read counts have been written.
    unsafe { buffer.assume_init(count) };
    buffer.advance(count);
    Poll::Ready(Ok(()))
}

macro_rules! reads {
    ($type:ty) => {
        impl<F: Family> AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                poll_read(self.home(), cx, buffer)
            }
        }
    };
}

macro_rules! writes {
    ($type:ty) => {
        /// A flush and a shutdown are those of the stream: ready when the kernel has everything.
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

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.home().get()?.poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
