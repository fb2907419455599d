//! Where a shard takes in the connections that were placed there.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use annulus_runtime::io::Resident;
use annulus_runtime::shutdown::ShutdownToken;
use annulus_runtime::task::AbortHandle;
use annulus_runtime::time::sleep;
use slab::Slab;

use super::placement::{Counted, Loads};
use crate::family::Tcp;
use crate::listener::Accepted;
use crate::tcp::TcpStream;

/// Spawns the task of a connection, which keeps what it is given until its end.
pub(super) type Begin = Box<dyn Fn(TcpStream, SocketAddr, Served) -> AbortHandle>;

pub(super) struct Station {
    begin: Begin,
    /// The connections that are served.
    tasks: RefCell<Slab<AbortHandle>>,
    /// Who waits until there are none.
    draining: RefCell<Option<Waker>>,
    loads: Arc<Loads>,
    shard: usize,
}

impl Station {
    pub(super) fn new(begin: Begin, loads: Arc<Loads>, shard: usize) -> Station {
        let (tasks, draining) = (RefCell::default(), RefCell::default());
        Station { begin, tasks, draining, loads, shard }
    }

    /// Takes a connection to this shard and has it served.
    pub(super) fn take_in(self: Rc<Self>, accepted: Accepted<Tcp>, counted: Counted) {
        // Without a runtime there are no stations either.
        let Ok((stream, peer)) = accepted.settle() else { return };
        let place = self.tasks.borrow().vacant_key();
        let served = Served { station: Rc::clone(&self), place, _counted: counted };
        let task = (self.begin)(stream, peer, served);
        let _same = self.tasks.borrow_mut().insert(task);
    }

    /// Waits until the connections have been served, for so long, or until that is forced; then
    /// drops those that are left.
    pub(super) async fn drain(self: Rc<Self>, token: ShutdownToken, grace: Duration) {
        let mut forced = token.forced();
        let mut over = pin!(sleep(grace));
        poll_fn(|cx| {
            let at_once = Pin::new(&mut forced).poll(cx).is_ready();
            if at_once || over.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            self.poll_empty(cx.waker())
        })
        .await;
        self.tasks.borrow().iter().for_each(|(_, task)| task.abort());
        poll_fn(|cx| self.poll_empty(cx.waker())).await;
    }

    fn poll_empty(&self, waker: &Waker) -> Poll<()> {
        if self.tasks.borrow().is_empty() {
            return Poll::Ready(());
        }
        *self.draining.borrow_mut() = Some(waker.clone());
        Poll::Pending
    }

    fn ended(&self, place: usize) {
        let task = self.tasks.borrow_mut().try_remove(place);
        drop(task);
        if self.tasks.borrow().is_empty() {
            let waiting = self.draining.take();
            if let Some(waker) = waiting {
                waker.wake();
            }
        }
    }
}

impl Resident for Station {}

impl Drop for Station {
    fn drop(&mut self) {
        self.loads.retire(self.shard);
    }
}

/// A connection that is served, for as long as its task keeps this.
pub(super) struct Served {
    station: Rc<Station>,
    place: usize,
    _counted: Counted,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.station.ended(self.place);
    }
}
