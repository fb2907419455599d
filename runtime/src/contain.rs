//! Running what may be anybody's code where no panic may get out.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs the user's code where there is nobody to tell of its panic. The panic hook has told
/// already.
pub(crate) fn contain(code: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
        bury(payload);
    }
}

/// What a panic said, where its payload is a text.
pub(crate) fn text_of(payload: &(dyn Any + Send)) -> Option<&str> {
    let literal = payload.downcast_ref::<&'static str>().copied();
    literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// Drops a panic's payload. That may panic too, and so on: somewhere it has to end in a leak.
fn bury(mut payload: Box<dyn Any + Send>) {
    for _ in 0..BURIALS_MAX {
        match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return,
            Err(next) => payload = next,
        }
    }
    mem::forget(payload);
}

/// Payloads that panic one out of another. Nobody means one; more than a few never end.
const BURIALS_MAX: u32 = 8;
