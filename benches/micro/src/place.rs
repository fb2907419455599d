//! Which processors threads run on.

use std::io;
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};

use bench_support::process::{allowed_cpus, pin};

/// The processors of the process, before anything was bound.
static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();

/// Binds this thread to the first processor: what drifts from one to another is no cost of a row.
///
/// # Errors
///
/// Those of the system.
pub fn settle() -> io::Result<()> {
    let allowed = ALLOWED.get_or_init(|| allowed_cpus().unwrap_or_default());
    allowed.first().map_or(Ok(()), |&first| pin(&[first]))
}

/// Starts a thread on the last processor.
pub(crate) fn elsewhere<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::spawn(move || {
        if let Some(&last) = ALLOWED.get().and_then(|allowed| allowed.last()) {
            pin(&[last]).expect("bind a thread to a processor of the process");
        }
        body()
    })
}
