//! A completion-based async runtime for Linux servers.
//!
//! Each thread owns an io_uring, an executor, timers and buffers, and shares nothing with others on
//! the hot path. Where io_uring is missing or refused, the same program runs on epoll, with the
//! same semantics, and says so.
//!
//! ```no_run
//! use annulus::net::TcpListener;
//!
//! #[annulus::main]
//! async fn main() -> std::io::Result<()> {
//!     let listener = TcpListener::bind("127.0.0.1:7000").await?;
//!     loop {
//!         let (mut stream, _peer) = listener.accept().await?;
//!         annulus::spawn(async move {
//!             let mut buf = [0u8; 4096];
//!             loop {
//!                 match stream.read(&mut buf).await? {
//!                     0 => return Ok::<_, std::io::Error>(()),
//!                     n => stream.write_all(&buf[..n]).await?,
//!                 }
//!             }
//!         });
//!     }
//! }
//! ```
//!
//! # Where things are
//!
//! - [`spawn`], [`task`]: tasks of this thread, which need not be `Send`; handles, sets of tasks
//!   ([`JoinSet`](task::JoinSet)), yielding, work that blocks; with the feature `tracing`, how to
//!   watch them in tokio-console.
//! - [`Shard`], [`on_each_shard`]: the threads of the runtime, and running something on another;
//!   [`net::ListenerGroup`] serves on all of them by one call.
//! - [`net`] has TCP, Unix sockets and UDP; [`io`] copies from one connection to another.
//! - [`fs`]: files, read and written at positions, by the ring or by threads that may block.
//! - [`time`]: sleeping, deadlines, intervals, and a clock that tests can stop.
//! - [`ShutdownToken`]: asks all parts of a program to end, and tells them to end at once.
//! - [`Runtime`]: what [`main`](macro@main) makes for you, with its settings; what holds when the
//!   process forks. A loop that is not its own drives it by [`Runtime::turn`].
//! - [`driver_info`]: which driver runs, and why.
//! - [`Builder::stall`]: names the task that does not yield, with a backtrace; [`stall`] has the
//!   report.
//! - [`doctor()`]: what would run here, what stands in its way, and what to do about it.
//! - [`runtime`]: the pieces, for crates that add operations or socket types.
//!
//! The guide, `docs/guide` in the repository, goes through it from `quickstart.md` to
//! `deployment.md`, with code that runs as tests; `docs/from-tokio.md` is for ports.
//!
//! # Other crates
//!
//! What they need is behind features, none of which is on by default:
//!
//! - `tokio-io`, `futures-io`, `hyper`: the traits by which they read and write, on streams and
//!   their halves; what else hyper asks of a runtime.
//! - `bytes`: `Bytes` and `BytesMut` as buffers that are given and come back.
//! - `tower`, `http2`: `hyper::serve`, for axum's routers and other services, on every shard.
//! - `sync`: tokio's channels and locks, which know no runtime, as `annulus::sync`.
//! - `sim`: programs in a simulated world that a seed gives, for tests, as `annulus::sim`.
//! - `tokio-context`: crates that insist on tokio's reactor, such as reqwest and sqlx.
//!
//! # Dropping futures
//!
//! A future may be dropped at any await, by `timeout`, by a `select!`, or with its task: no
//! received byte and no accepted connection is lost, and the kernel writes to no memory that has
//! been freed. Each method says under "Cancel safety" what else holds.
//!
//! # The environment
//!
//! `ANNULUS_DRIVER` (`auto`, `uring`, `epoll`), `ANNULUS_SHARDS`, `ANNULUS_RING_ENTRIES`,
//! `ANNULUS_SPIN_US` and `ANNULUS_STALL_MS` override the settings of every program. A value that
//! cannot be used is an error that names it.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(doctest)]
mod guide;

pub use annulus_macros::{main, test};
pub use annulus_net as net;
#[cfg(feature = "hyper")]
pub use annulus_net::hyper;
pub use annulus_net::io;
#[doc(no_inline)]
pub use annulus_runtime::shutdown::ShutdownToken;
#[cfg(feature = "sim")]
pub use annulus_runtime::simulation as sim;
#[cfg(feature = "tokio-context")]
pub use annulus_runtime::tokio_context;
pub use annulus_runtime::{
    BuildError, Builder, ConfigError, Driver, DriverInfo, JoinError, JoinHandle, Metrics, Outlook,
    Refusal, Runtime, Shard, buf, doctor, driver_info, fs, metrics, on_each_shard, shutdown,
    signal, spawn, stall, task, time,
};

/// tokio's channels and locks, which know no runtime: they work between tasks of one shard, between
/// shards, and with other threads. A feature; nothing of tokio's runtime comes with it.
#[cfg(feature = "sync")]
pub mod sync {
    #[doc(no_inline)]
    pub use tokio::sync::{
        Barrier, Mutex, MutexGuard, Notify, OnceCell, OwnedMutexGuard, OwnedSemaphorePermit,
        RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit, broadcast, mpsc,
        oneshot, watch,
    };
}

/// The pieces of the runtime, for crates that add operations or socket types.
pub mod runtime {
    pub use annulus_runtime::io::*;
    pub use annulus_runtime::{Cause, LIMITS, Limits, Stage};
}
