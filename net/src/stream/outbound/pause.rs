//! The pause behind a send that has failed for a shortage.
//!
//! What was accepted is kept and has to go out, also where no call follows that would try again: a
//! task may only read from now on, or have dropped the write half. At once the send would fail
//! again.

use std::time::Duration;

use annulus_runtime::io::{ResidentKey, mark_dirty};
use annulus_runtime::spawn;
use annulus_runtime::task::AbortHandle;
use annulus_runtime::time::sleep;

const PAUSE: Duration = Duration::from_secs(1);

/// When it ends, the connection is let write out.
#[derive(Default)]
pub(super) struct Pause(Option<AbortHandle>);

impl Pause {
    pub(super) fn begin(&mut self, key: ResidentKey) {
        if self.is_on() {
            return;
        }
        // A runtime that is at its end keeps no task: then there is no pause.
        let task = spawn(async move {
            sleep(PAUSE).await;
            mark_dirty(key);
        });
        self.0 = Some(task.abort_handle());
    }

    /// A send has gone well, or somebody was told who may have freed something.
    pub(super) fn end(&mut self, key: ResidentKey) {
        if let Some(task) = self.0.take() {
            task.abort();
            mark_dirty(key);
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.as_ref().is_some_and(|task| !task.is_finished())
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
