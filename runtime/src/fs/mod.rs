//! Files, read and written at positions.
//!
//! A [`File`] is an open file. Its methods take `&self` and a position, so that any number of reads
//! and writes can be under way at a time, from any shard. Buffers are given and come back:
//! see [`BufResult`](crate::buf::BufResult).
//!
//! ```
//! use annulus_runtime::fs::{File, OpenOptions};
//!
//! # fn main() -> std::io::Result<()> {
//! # let folder = std::env::temp_dir().join(format!("annulus-fs-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let path = folder.join("notes");
//! # annulus_runtime::Runtime::new()?.block_on(async {
//! let file = OpenOptions::new().read(true).write(true).create(true).open(&path).await?;
//! file.write_all_at("hello, file", 0).await?;
//! file.sync_data().await?;
//! let (count, bytes) = file.read_at(Vec::with_capacity(1024), 7).await?;
//! assert_eq!((count, &*bytes), (4, &b"file"[..]));
//! file.close().await
//! # })?;
//! # std::fs::remove_dir_all(&folder)
//! # }
//! ```
//!
//! # How
//!
//! On io_uring each call is an entry of the ring: what is in the page cache is answered at once,
//! and the kernel's own threads wait for the rest. Opens that may create, `sync_data`, `sync_all`
//! and `metadata` always go by way of such a thread. On epoll each is a system call on a thread of
//! the blocking pool, because a file is always "ready" (`epoll(7)`). Buffers must be `Send` for
//! that. What the kernel or a thread works on keeps file and buffer alive, whatever becomes of the
//! future.
//!
//! # What is not a file
//!
//! Directories can be opened, for [`OpenOptions::open_beneath`] and [`File::metadata`]. FIFOs and
//! terminals have no positions: reads and writes there fail with `NotSeekable`, as `pread(2)` does,
//! and their open never waits for another end (see [`OpenOptions::open`]). Reads of devices that
//! wait for something, as `/dev/kmsg` does, hold a thread until it comes.

mod file;
mod metadata;
mod operations;
mod options;

pub use file::File;
pub use metadata::Metadata;
#[cfg(fuzzing)]
pub(crate) use operations::fuzz::entries;
pub use options::{OpenError, OpenOptions};
