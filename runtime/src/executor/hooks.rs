//! What a program wants to be told of its tasks.

use super::info::TaskInfo;
use crate::contain::contain;
use std::fmt;
use std::sync::Arc;

/// Code of the user's, called on the task's own shard.
pub(super) type Hook = Arc<dyn Fn(&TaskInfo<'_>) + Send + Sync>;

/// One hook for each occasion. What they panic with is caught: a panic is reported by the panic
/// hook, and harms neither the task nor the shard.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) spawn: Option<Hook>,
    pub(crate) before_poll: Option<Hook>,
    pub(crate) after_poll: Option<Hook>,
    pub(crate) terminate: Option<Hook>,
}

impl Hooks {
    /// Boxed, so that a shard without hooks has one word to look at. `None` if there are none.
    pub(super) fn into_word(self) -> Option<Box<Hooks>> {
        let Hooks { spawn, before_poll, after_poll, terminate } = &self;
        let any = [spawn, before_poll, after_poll, terminate].iter().any(|hook| hook.is_some());
        any.then(|| Box::new(self))
    }
}

/// Calls the hook, if there is one.
pub(super) fn call(hook: &Option<Hook>, task: TaskInfo<'_>) {
    if let Some(hook) = hook {
        contain(|| hook(&task));
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("spawn", &self.spawn.is_some())
            .field("before_poll", &self.before_poll.is_some())
            .field("after_poll", &self.after_poll.is_some())
            .field("terminate", &self.terminate.is_some())
            .finish()
    }
}
