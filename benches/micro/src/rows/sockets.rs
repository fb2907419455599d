//! Descriptors within one runtime.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::timed;
use crate::subject::{Subject, on_task};

/// What goes to and fro.
const MESSAGE_BYTES: usize = 64;

/// An eventfd that gives one at each read, and has more than any row takes.
const COUNT: u32 = u32::MAX;

/// Reads from a descriptor that is always ready; `None` where the runtime cannot.
pub fn counter<R: Subject>(operations: u64) -> Option<f64> {
    on_task::<R, _>(async move {
        let counter = R::counter(eventfd().expect("an eventfd")).expect("take it over")?;
        let reads = async |reads| {
            for _ in 0..reads {
                R::take(&counter).await.expect("read");
            }
        };
        Some(timed(operations, reads).await)
    })
}

fn eventfd() -> io::Result<OwnedFd> {
    let flags = libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK | libc::EFD_CLOEXEC;
    // SAFETY: takes two numbers and touches no memory of ours.
    let eventfd = unsafe { libc::eventfd(COUNT - 1, flags) };
    if eventfd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(eventfd) })
}

/// Both ends of each pair are in one runtime, and a message goes to and fro: a round trip.
pub fn round_trips<R: Subject>(operations: u64, pairs: u64) -> f64 {
    on_task::<R, _>(timed(operations, async move |round_trips| {
        let each = round_trips.div_ceil(pairs);
        let mut handles = Vec::with_capacity(2 * pairs as usize);
        for _ in 0..pairs {
            let (mut near, mut far) = R::pair().expect("a pair of sockets");
            handles.push(R::spawn(async move {
                let mut buffer = vec![0; MESSAGE_BYTES];
                for _ in 0..each {
                    buffer = R::receive(&mut far, buffer).await.expect("receive");
                    buffer = R::send(&mut far, buffer).await.expect("answer");
                }
            }));
            handles.push(R::spawn(async move {
                let mut buffer = vec![7; MESSAGE_BYTES];
                for _ in 0..each {
                    buffer = R::send(&mut near, buffer).await.expect("send");
                    buffer = R::receive(&mut near, buffer).await.expect("receive the answer");
                }
            }));
        }
        for handle in handles {
            R::value(handle.await);
        }
    }))
}
