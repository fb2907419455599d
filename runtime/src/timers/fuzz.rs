//! The wheel against a sorted list.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

use super::{NEVER, Registration, TimerKey, Timers, wake_all};
use crate::choices::Choices;

/// As fine as the wheel waits where several timers are due together.
const TICK_NS: u64 = 1 << 16;

/// Writes its number into a log when it is woken.
struct Numbered {
    number: u64,
    log: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Numbered {
    fn wake(self: Arc<Self>) {
        self.log.lock().expect("no waker panics").push(self.number);
    }
}

/// What is known of a timer that waits. The numbers that wakers write are those of the insertion
/// or, where it came later, of the reset or of the new waker.
struct Known {
    key: TimerKey,
    waker: Waker,
}

#[derive(Default)]
struct Model {
    /// By deadline, then by when they came there.
    waiting: BTreeMap<(u64, u64), Known>,
    gone: Vec<TimerKey>,
    came: u64,
    now: u64,
    /// A minimum may be out of date.
    removed: bool,
}

/// One wheel, and whatever the bytes say is done with it.
pub(crate) fn wheel(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let (mut timers, mut model) = (Timers::new(), Model::default());
    let log = Arc::<Mutex<Vec<u64>>>::default();
    let waker = |number| Waker::from(Arc::new(Numbered { number, log: Arc::clone(&log) }));
    while !choices.is_over() {
        match choices.byte() % 8 {
            0..=2 => {
                let place = (model.deadline(&mut choices), model.next_number());
                let waker = waker(place.1);
                let key = timers.insert(place.0, waker.clone());
                model.waiting.insert(place, Known { key, waker });
            }
            3 => {
                if let Some((_, known)) = model.take(&mut choices) {
                    let waker = timers.remove(known.key).expect("it waits");
                    assert!(waker.will_wake(&known.waker), "another timer's waker");
                    model.gone.push(known.key);
                    model.removed = true;
                }
            }
            4 => {
                if let Some((_, known)) = model.take(&mut choices) {
                    let place = (model.deadline(&mut choices), model.next_number());
                    assert!(timers.reset(known.key, place.0));
                    let Known { key, waker: before } = known;
                    let waker = waker(place.1);
                    assert_eq!(timers.registration(key, &before), Registration::Current);
                    assert_eq!(timers.registration(key, &waker), Registration::Other);
                    let replaced = timers.replace_waker(key, waker.clone());
                    assert!(replaced.is_ok_and(|replaced| replaced.will_wake(&before)));
                    model.waiting.insert(place, Known { key, waker });
                    model.removed = true;
                }
            }
            5 => {
                if let Some(&key) = model.gone.get(choices.below(model.gone.len())) {
                    assert!(timers.remove(key).is_none(), "a timer that had gone");
                    assert!(!timers.reset(key, 0));
                    let nobody = waker(0);
                    assert_eq!(timers.registration(key, &nobody), Registration::Gone);
                    assert!(timers.replace_waker(key, nobody).is_err());
                }
            }
            6 if choices.byte() == 7 => {
                let mut wakers = Vec::new();
                timers.drain(&mut wakers);
                assert_eq!(wakers.len(), model.waiting.len());
                model
                    .gone
                    .extend(std::mem::take(&mut model.waiting).into_values().map(|it| it.key));
            }
            _ => {
                model.now = match (choices.byte() % 4, timers.next_deadline(), timers.next_wake()) {
                    (0, Some(deadline), _) => deadline.max(model.now),
                    (1, _, Some(wake)) => wake.max(model.now),
                    (2, Some(deadline), _) => deadline.saturating_sub(1).max(model.now),
                    _ => model.now.saturating_add(choices.magnitude()),
                };
                let due = model.take_due();
                let mut woken = Vec::new();
                timers.expire(model.now, &mut woken);
                wake_all(&mut woken);
                assert_eq!(std::mem::take(&mut *log.lock().expect("no waker panics")), due);
                assert!(timers.next_deadline().is_none_or(|next| next > model.now), "would spin");
            }
        }
        model.compare(&timers);
    }
}

impl Model {
    fn next_number(&mut self) -> u64 {
        self.came += 1;
        self.came
    }

    /// Near and far, past and never.
    fn deadline(&self, choices: &mut Choices<'_>) -> u64 {
        match choices.byte() % 8 {
            0 => choices.magnitude(),
            1 => NEVER,
            2 => self.now,
            3 => (self.now | (TICK_NS - 1)).saturating_add(u64::from(choices.byte() % 3)),
            4 => NEVER - u64::from(choices.byte()),
            _ => self.now.saturating_add(choices.magnitude()),
        }
    }

    fn take(&mut self, choices: &mut Choices<'_>) -> Option<((u64, u64), Known)> {
        let place = *self.waiting.keys().nth(choices.below(self.waiting.len()))?;
        Some((place, self.waiting.remove(&place)?))
    }

    fn take_due(&mut self) -> Vec<u64> {
        let first_later = (self.now.saturating_add(1), 0);
        let later = self.waiting.split_off(&first_later);
        let due = std::mem::replace(&mut self.waiting, later);
        self.gone.extend(due.values().map(|known| known.key));
        due.into_keys().map(|(_, number)| number).collect()
    }

    fn compare(&self, timers: &Timers) {
        assert_eq!(timers.len(), self.waiting.len());
        let deadlines = self.waiting.keys().map(|&(deadline, _)| deadline);
        let first = deadlines.clone().next().filter(|&first| first != NEVER);
        let next = timers.next_deadline();
        assert_eq!(next.is_some(), first.is_some());
        assert!(next <= first, "sleeps past a deadline");
        assert!(self.removed || next == first, "wakes for nothing");
        let wake = timers.next_wake();
        assert_eq!(wake.is_some(), next.is_some());
        let late = wake.zip(first).map_or(0, |(wake, first)| wake.saturating_sub(first));
        assert!(next <= wake && late <= TICK_NS, "sleeps a tick too long");
    }
}

#[cfg(test)]
mod tests {
    use super::wheel;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn whatever_is_done_the_wheel_is_a_sorted_list() {
        with_kept("wheel", wheel);
        with_seeds(1000, wheel);
    }
}
