//! What turns signals of the process into calls of `shutdown`.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use super::{ShutdownToken, State};
use crate::signal::{Kind, Signal};
use crate::waiters::Place;

/// Waits for the signals in the token's place: its waker shuts down and waits again.
pub(super) struct Relay {
    token: Weak<State>,
    /// `None` once the token is gone.
    signals: Mutex<Option<[(Signal, Place<'static>); 2]>>,
}

impl Relay {
    pub(super) fn install(token: &ShutdownToken) -> io::Result<()> {
        let waiting = |kind| Signal::new(kind).map(|signal| (signal.place(), signal));
        let (interrupt_place, interrupt) = waiting(Kind::Interrupt)?;
        let (terminate_place, terminate) = waiting(Kind::Terminate)?;
        let signals = [(interrupt, interrupt_place), (terminate, terminate_place)];
        let relay =
            Arc::new(Relay { token: Arc::downgrade(&token.0), signals: Mutex::new(Some(signals)) });
        relay.follow(token);
        let first = token.0.relay.set(relay);
        assert!(first.is_ok(), "a token follows the signals once");
        Ok(())
    }

    fn follow(self: &Arc<Self>, token: &ShutdownToken) {
        for _ in 0..self.count().min(LEVELS) {
            token.shutdown();
        }
    }

    /// How many signals have come since the last time. Waits for more.
    fn count(self: &Arc<Self>) -> u64 {
        let waker = Waker::from(Arc::clone(self));
        let mut cx = Context::from_waker(&waker);
        let mut count = 0;
        let mut signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        for (signal, place) in signals.iter_mut().flatten() {
            while let Poll::Ready(come) = signal.poll(place, &mut cx) {
                count += come;
            }
        }
        count
    }

    /// Leaves the lists, which would keep it for as long as the process lives.
    pub(super) fn end(&self) {
        let ended = self.signals.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(ended);
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        if let Some(state) = self.token.upgrade() {
            self.follow(&ShutdownToken(state));
        }
    }
}

/// What there is to reach: signals beyond that change nothing.
const LEVELS: u64 = 2;
