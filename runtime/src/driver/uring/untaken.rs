//! Answers that nobody had taken when their driver ended. The futures they are for may live on, and
//! what such an answer says may be theirs to close: an accepted socket, an opened file.
//!
//! A future is dropped on the thread on which its driver was, so the answers wait there.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use super::Uring;
use crate::driver::operation::Completion;
use crate::driver::slots::Key;

/// Whose answers: the operation's of this key, of the driver that was at this address. The address
/// is nobody else's before all futures have gone that know it. Those that are forgotten leave their
/// answers here until the thread ends.
type Whose = (usize, u64);

thread_local! {
    static UNTAKEN: RefCell<BTreeMap<Whose, VecDeque<Completion>>> = const {
        RefCell::new(BTreeMap::new())
    };
}

impl Uring {
    /// The driver at this address ends: keeps the answers for futures that live on.
    pub(crate) fn leave_untaken(&mut self, driver: *const ()) {
        let answers = self.inner.get_mut().slots.take_untaken();
        let answers = answers.map(|(key, answers)| ((driver.addr(), key.user_data()), answers));
        // At the end of the thread nobody comes for them any more.
        let _ended = UNTAKEN.try_with(|untaken| untaken.borrow_mut().extend(answers));
    }
}

/// Gives the answers to this operation to its future, which goes.
pub(crate) fn take(driver: *const (), key: Key) -> VecDeque<Completion> {
    let whose = (driver.addr(), key.user_data());
    let kept = UNTAKEN.try_with(|untaken| untaken.borrow_mut().remove(&whose));
    kept.ok().flatten().unwrap_or_default()
}
