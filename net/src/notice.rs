//! A waker that wakes no task: it marks a resident dirty, which then goes on by itself.

use std::sync::Arc;
use std::task::Wake;

use annulus_runtime::io::{ResidentKey, mark_dirty};

pub(crate) struct Notice(pub(crate) ResidentKey);

impl Wake for Notice {
    fn wake(self: Arc<Self>) {
        mark_dirty(self.0);
    }
}
