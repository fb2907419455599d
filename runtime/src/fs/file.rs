//! An open file: what users hold.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::metadata::Metadata;
use super::operations::{Read, Stat, Sync, Write, check_position, close, seekable, set_len};
use super::options::OpenOptions;
use crate::buf::{BufError, BufResult, IoBuf, IoBufMut};
use crate::fd::set_nonblocking;
use crate::io::{carry, offload};

/// An open file.
///
/// It belongs to no shard: share it by reference, `Rc` or `Arc`, with any number of tasks on any of
/// them. Every call names its position, so that nobody moves another's.
///
/// A dropped file is closed at once, on the thread that drops it, or when the last operation under
/// way on it has ended. [`close`](File::close) does that without holding up the shard, and tells
/// errors.
#[derive(Debug)]
pub struct File {
    fd: Arc<OwnedFd>,
    /// Whether there are positions. The ring would read a FIFO at any.
    seekable: bool,
}

impl File {
    /// Opens a file to be read: [`OpenOptions`] for all else.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// use annulus_runtime::fs::File;
    ///
    /// let file = File::open("/proc/self/comm").await?;
    /// let (count, name) = file.read_at(Vec::with_capacity(64), 0).await?;
    /// assert_eq!(name.len(), count);
    ///
    /// let error = File::open("/no/such/file").await.unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    /// assert!(error.to_string().starts_with(r#"cannot open "/no/such/file": "#));
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`OpenOptions::open`].
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// As [`OpenOptions::open`].
    pub async fn open(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).open(path).await
    }

    /// Makes a file to be written, or empties the one that is there.
    ///
    /// # Errors
    ///
    /// As [`OpenOptions::open`].
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// As [`OpenOptions::open`]: the file may have been made or emptied.
    pub async fn create(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(path).await
    }

    /// Takes over a file of the standard library. Its position is left alone and not used; the
    /// descriptor is set to block, as those of this module are.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)`.
    pub fn from_std(file: std::fs::File) -> io::Result<File> {
        File::adopt(file.into())
    }

    /// Gives the file to the standard library: the descriptor itself, or a duplicate where an
    /// operation that was dropped still holds it.
    ///
    /// # Errors
    ///
    /// `EMFILE` or `ENFILE` where a duplicate would be one descriptor too many.
    pub fn into_std(self) -> io::Result<std::fs::File> {
        match Arc::try_unwrap(self.fd) {
            Ok(owned) => Ok(owned.into()),
            Err(shared) => shared.try_clone().map(std::fs::File::from),
        }
    }

    pub(super) fn adopt(fd: OwnedFd) -> io::Result<File> {
        // Only the open must not wait. Reads of devices are to, and so is whoever gets the file.
        set_nonblocking(fd.as_fd(), false)?;
        let seekable = seekable(fd.as_fd());
        Ok(File { fd: Arc::new(fd), seekable })
    }

    /// Reads into the buffer, from its beginning and up to its capacity, what is in the file from
    /// `offset` on, and gives it back with the number of bytes. A `Vec` then has that length.
    ///
    /// 0 means that the file ends there, or that the buffer has no room. Fewer bytes than would
    /// fit are not an end: files of `/proc`, a signal, and reads of more than 2 GiB bring them.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// let file = annulus_runtime::fs::File::open("/proc/version").await?;
    /// let (count, text) = file.read_at(Vec::with_capacity(5), 0).await?;
    /// assert_eq!((count, &*text), (5, &b"Linux"[..]));
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `pread(2)`: `NotSeekable` where there are no positions, `IsADirectory`, `EBADF` if
    /// the file was not opened to be read. The error has the buffer.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// A dropped read changes nothing. The buffer is dropped when nobody writes to it any more.
    pub async fn read_at<B>(&self, buffer: B, offset: u64) -> BufResult<usize, B>
    where
        B: IoBufMut + Send,
    {
        let (result, mut buffer) = self.read(buffer, 0, offset).await;
        if let Ok(count) = result {
            // SAFETY: so many bytes have been read.
            unsafe { buffer.set_received(count) };
        }
        with_buffer(result, buffer)
    }

    /// Reads from `offset` on until the buffer is full to its capacity; a
    /// [`slice`](IoBuf::slice) of it says otherwise. Answers how much that is.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before that; otherwise as [`read_at`](File::read_at). The
    /// error's buffer has what was read: a `Vec` or a slice is as long as that, and empty if
    /// nothing was. What was in it before does not count.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// As [`read_at`](File::read_at).
    pub async fn read_exact_at<B>(&self, mut buffer: B, offset: u64) -> BufResult<usize, B>
    where
        B: IoBufMut + Send,
    {
        // SAFETY: nothing is written.
        let wanted = unsafe { buffer.as_uninit() }.len();
        let mut filled = 0;
        let result = loop {
            if filled == wanted {
                break Ok(filled);
            }
            let result;
            (result, buffer) = self.read(buffer, filled, offset + filled as u64).await;
            match result {
                Ok(0) => {
                    let text = "the file ends before the buffer is full";
                    break Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                Ok(count) => filled += count,
                Err(error) => break Err(error),
            }
        };
        // SAFETY: so many bytes have been read. Only here: a slice then ends behind them.
        unsafe { buffer.set_received(filled) };
        with_buffer(result, buffer)
    }

    /// Writes bytes of the buffer to the file, from `offset` on, and gives it back with their
    /// number. A file that was opened to append takes them at its end, whatever `offset` is.
    ///
    /// # Errors
    ///
    /// Those of `pwrite(2)`: `NotSeekable`, `StorageFull`, `EFBIG`, `EBADF` if the file was not
    /// opened to be written. The error has the buffer.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// A dropped write may have written all of the buffer, a first part, or nothing, and may still
    /// do so; what is written later to the same place can be overtaken by it. The buffer is dropped
    /// when nobody reads it any more.
    pub async fn write_at<B>(&self, buffer: B, offset: u64) -> BufResult<usize, B>
    where
        B: IoBuf + Send,
    {
        let (result, buffer) = self.write(buffer, 0, offset).await;
        with_buffer(result, buffer)
    }

    /// Writes the whole buffer to the file, from `offset` on, and gives it back.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// # let path = std::env::temp_dir().join(format!("annulus-all-{}", std::process::id()));
    /// let file = annulus_runtime::fs::File::create(&path).await?;
    /// file.write_all_at("world", 7).await?;
    /// file.write_all_at("hello, ", 0).await?;
    /// file.close().await?;
    /// assert_eq!(std::fs::read(&path)?, b"hello, world");
    /// # std::fs::remove_file(&path)
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `WriteZero` if the file takes nothing more; otherwise as [`write_at`](File::write_at). Some
    /// first part may be written.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// As [`write_at`](File::write_at).
    pub async fn write_all_at<B>(&self, mut buffer: B, offset: u64) -> BufResult<usize, B>
    where
        B: IoBuf + Send,
    {
        let wanted = buffer.as_slice().len();
        let mut written = 0;
        while written < wanted {
            let result;
            (result, buffer) = self.write(buffer, written, offset + written as u64).await;
            match result {
                Ok(0) => {
                    let error = io::Error::new(io::ErrorKind::WriteZero, "the file took nothing");
                    return Err(BufError { error, buffer });
                }
                Ok(count) => written += count,
                Err(error) => return Err(BufError { error, buffer }),
            }
        }
        Ok((written, buffer))
    }

    async fn read<B>(&self, buffer: B, begin: usize, offset: u64) -> (io::Result<usize>, B)
    where
        B: IoBufMut + Send,
    {
        let mut read = Read { fd: Arc::clone(&self.fd), buffer, begin, offset };
        match check_position(self.seekable, offset) {
            Err(error) => (Err(error), read.buffer),
            Ok(()) if read.room() == 0 => (Ok(0), read.buffer),
            Ok(()) => carry(read).await,
        }
    }

    async fn write<B>(&self, buffer: B, begin: usize, offset: u64) -> (io::Result<usize>, B)
    where
        B: IoBuf + Send,
    {
        let write = Write { fd: Arc::clone(&self.fd), buffer, begin, offset };
        match check_position(self.seekable, offset) {
            Err(error) => (Err(error), write.buffer),
            Ok(()) if write.bytes().is_empty() => (Ok(0), write.buffer),
            Ok(()) => carry(write).await,
        }
    }

    /// Returns when what was written has reached the device, with as much of the metadata as is
    /// needed to read it again: `fdatasync(2)`.
    ///
    /// # Errors
    ///
    /// Those of `fdatasync(2)`: an earlier write may have failed, and this is where it is told,
    /// once.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// A dropped sync may have been done, or go on.
    pub async fn sync_data(&self) -> io::Result<()> {
        carry(Sync { fd: Arc::clone(&self.fd), all: false }).await
    }

    /// Returns when what was written and all metadata have reached the device: `fsync(2)`. The
    /// entry of a new file in its directory is the directory's: open that, and sync it too.
    ///
    /// # Errors
    ///
    /// As [`sync_data`](File::sync_data).
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// As [`sync_data`](File::sync_data).
    pub async fn sync_all(&self) -> io::Result<()> {
        carry(Sync { fd: Arc::clone(&self.fd), all: true }).await
    }

    /// What the file system knows of the file: its length, its kind, its times. `statx(2)`.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// let folder = annulus_runtime::fs::File::open("/").await?;
    /// assert!(folder.metadata().await?.is_dir());
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `statx(2)`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// Nothing is changed by it.
    pub async fn metadata(&self) -> io::Result<Metadata> {
        carry(Stat::new(Arc::clone(&self.fd))).await
    }

    /// Cuts the file to this length, or lengthens it by zeros: `ftruncate(2)`, on both drivers on a
    /// thread of the blocking pool, as rings have it since 6.9 only.
    ///
    /// # Errors
    ///
    /// Those of `ftruncate(2)`; `InvalidInput` for more than `i64::MAX`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have been done, or go on.
    pub async fn set_len(&self, length: u64) -> io::Result<()> {
        let fd = Arc::clone(&self.fd);
        offload(move || set_len(fd.as_fd(), length)).await
    }

    /// Closes the file, without holding up the shard: network file systems write what they still
    /// hold, and the last close of a file that was removed frees its blocks. On both drivers on a
    /// thread of the blocking pool, as a ring without a thread for it may leave a file open and not
    /// say so; at once where no thread can be made. A read or write that was dropped and is still
    /// under way keeps it open until it has ended; then errors are not told.
    ///
    /// # Errors
    ///
    /// Those of `close(2)`. The file is closed all the same.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// The file is closed, whatever becomes of the future.
    pub async fn close(self) -> io::Result<()> {
        match Arc::try_unwrap(self.fd) {
            Ok(owned) => close(owned).await,
            Err(_held) => Ok(()),
        }
    }

    pub(super) fn shared(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }
}

fn with_buffer<B>(result: io::Result<usize>, buffer: B) -> BufResult<usize, B> {
    match result {
        Ok(count) => Ok((count, buffer)),
        Err(error) => Err(BufError { error, buffer }),
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}
