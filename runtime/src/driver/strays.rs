//! Answers that nobody waits for, on their way to the operations that were left here.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::operation::Completion;
use super::slots::Key;

/// Those that a turn has brought and that were not yet handed over, in the order of the kernel.
///
/// Whoever is handed one may turn the driver, as the drop of a listener does, and what that brings
/// comes behind what is still here: an operation must not see its last answer first.
#[derive(Default)]
pub(crate) struct Strays(RefCell<VecDeque<(Key, Completion)>>);

impl Strays {
    pub(crate) fn add(&self, arrived: impl Iterator<Item = (Key, Completion)>) {
        self.0.borrow_mut().extend(arrived);
    }

    pub(crate) fn next(&self) -> Option<(Key, Completion)> {
        self.0.borrow_mut().pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_while_one_is_handed_over_comes_behind_the_others() {
        let (one, other) = (Key::from_user_data(1), Key::from_user_data(2));
        let answer = Completion::from_call;
        let strays = Strays::default();
        strays.add([(one, answer(1)), (other, answer(2))].into_iter());
        let mut order = Vec::new();
        // As a turn does, and the turn that whoever is handed the first one makes.
        while let Some((key, completion)) = strays.next() {
            order.push((key, completion.count()));
            if key == one {
                strays.add([(other, answer(3))].into_iter());
                while let Some((key, completion)) = strays.next() {
                    order.push((key, completion.count()));
                }
            }
        }
        assert_eq!(order, [(one, 1), (other, 2), (other, 3)]);
    }
}
