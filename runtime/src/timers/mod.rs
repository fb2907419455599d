//! Timers of one shard: a hierarchical wheel that is told the time, and the clock that tells it.
//!
//! The wheel is a plain data structure: it reads no clock, calls no waker and knows no task. The
//! shard asks it for the next deadline before it sleeps, hands it the time once a turn, and wakes
//! what it returns after the wheel is no longer borrowed, because a waker may be anybody's code.

mod arena;
mod clock;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
mod wheel;

use std::task::Waker;

use crate::contain::contain;

pub(crate) use arena::TimerKey;
pub(crate) use clock::{Clock, ClockHold};
pub(crate) use wheel::{NEVER, Registration, Timers};

/// Wakes all, in order. A waker that panics does not keep the others from being woken.
pub(crate) fn wake_all(woken: &mut Vec<Waker>) {
    for waker in woken.drain(..) {
        contain(|| waker.wake());
    }
}

/// Drops all. One that panics does not keep its shard from its end.
pub(crate) fn drop_all(wakers: Vec<Waker>) {
    wakers.into_iter().for_each(|waker| contain(|| drop(waker)));
}
