//! Futures that are dropped, forgotten or let go on at random.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use annulus::task::yield_now;
use annulus::time::{sleep, timeout};

use crate::common::bytes::Numbers;
use crate::common::steps::{Either, poll_once, race};

/// How a future may be ended before it is ready.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// It may be dropped.
    Dropped,
    /// It may be forgotten as well, as nothing that it has taken is given back by its drop.
    Forgotten,
    /// It is waited for.
    Never,
}

/// Awaits a future, or ends it at a random time: then there is no answer.
pub(crate) async fn cut<T>(
    numbers: &mut Numbers,
    ends: Ends,
    future: impl Future<Output = T>,
) -> Option<T> {
    match (ends, numbers.below(8)) {
        (Ends::Never, _) => Some(future.await),
        (Ends::Forgotten, 0) => {
            let mut future = Box::pin(future);
            match poll_once(future.as_mut()).await {
                Poll::Ready(output) => Some(output),
                Poll::Pending => {
                    std::mem::forget(future);
                    None
                }
            }
        }
        (_, 1) => match poll_once(pin!(future).as_mut()).await {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        },
        (_, 2) => first(race(future, yield_now()).await),
        (_, 3) => first(race(future, sleep(Duration::from_micros(numbers.below(50)))).await),
        (_, 4 | 5) => timeout(Duration::from_micros(numbers.below(400)), future).await.ok(),
        // Long enough for a slow peer, and not for ever: it may wait for the other direction.
        _ => timeout(PATIENCE, future).await.ok(),
    }
}

fn first<A, B>(either: Either<A, B>) -> Option<A> {
    match either {
        Either::Left(output) => Some(output),
        Either::Right(_) => None,
    }
}

const PATIENCE: Duration = Duration::from_millis(20);
