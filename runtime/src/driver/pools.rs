//! The receive buffers of a ring: a pool for streams, and one for datagrams once one is needed.

use std::cell::OnceCell;
use std::rc::Rc;

use crate::buf::{DATAGRAM_GROUP, Pool};
use crate::config::{DATAGRAM_BUFFER_BYTES, DATAGRAM_BUFFERS};
use crate::ring::Submitter;

pub(super) struct Pools {
    streams: Rc<Pool>,
    datagrams: OnceCell<Rc<Pool>>,
}

impl Pools {
    pub(super) fn new(streams: Rc<Pool>) -> Pools {
        Pools { streams, datagrams: OnceCell::new() }
    }

    pub(super) fn streams(&self) -> &Rc<Pool> {
        &self.streams
    }

    /// Made when it is first asked for. `None` while memory for it cannot be had.
    pub(super) fn datagrams(&self, submitter: &Submitter<'_>) -> Option<Rc<Pool>> {
        if self.datagrams.get().is_none() {
            let (count, bytes_each) = (DATAGRAM_BUFFERS, DATAGRAM_BUFFER_BYTES);
            let made = Pool::registered(submitter, DATAGRAM_GROUP, count, bytes_each).ok()?;
            let _fresh = self.datagrams.set(made);
        }
        self.datagrams.get().cloned()
    }

    /// Shows the kernel the buffers returned since the last call.
    pub(super) fn publish(&self) {
        self.streams.publish();
        if let Some(datagrams) = self.datagrams.get() {
            datagrams.publish();
        }
    }

    /// How often somebody found no buffer.
    pub(super) fn dry(&self) -> u64 {
        self.streams.dry() + self.datagrams.get().map_or(0, |datagrams| datagrams.dry())
    }

    /// Keeps the memory for ever, because the kernel may still write there.
    pub(super) fn leak(&self) {
        std::mem::forget(Rc::clone(&self.streams));
        std::mem::forget(self.datagrams.get().cloned());
    }
}
