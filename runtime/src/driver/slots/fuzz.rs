//! The slots against a table of what is known of each key.

use std::collections::HashMap;
use std::task::Waker;

use super::{Arrival, GENERATION_MAX, IGNORED_KEY, Key, Multishot, Slots, State, WAKE_KEY};
use crate::choices::Choices;
use crate::driver::operation::Completion;

/// What is known of an operation in flight.
enum Known {
    Waiting { waker: bool },
    Done(i32),
    Multishot { awaited: bool, armed: bool, stopping: bool, queue: Vec<i32>, queued_max: usize },
}

/// What a completion should ask for.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Stale,
    Quiet,
    Wake,
    Stop { wake: bool },
}

/// Some slots, and whatever the bytes say happens to them.
pub(crate) fn slots(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    // Generations come round after two thousand million operations.
    let generation = match choices.byte() % 4 {
        0 => GENERATION_MAX - u32::from(choices.byte()),
        _ => u32::from(choices.byte()),
    };
    let mut slots = Slots { generation, ..Slots::default() };
    let mut known = HashMap::<u64, Known>::new();
    let mut keys = vec![WAKE_KEY.user_data(), IGNORED_KEY.user_data()];
    while !choices.is_over() {
        match choices.byte() % 8 {
            0 => {
                let waker = choices.is_heads();
                let key = slots.insert(State::Waiting(waker.then(|| Waker::noop().clone())));
                note(&mut known, &mut keys, key, Known::Waiting { waker });
            }
            1 => {
                let queued_max = 1 + choices.below(4);
                let multishot = Multishot::new(Waker::noop().clone(), queued_max);
                let key = slots.insert(State::Multishot(multishot));
                let (armed, awaited, stopping, queue) = (true, true, false, Vec::new());
                let multishot = Known::Multishot { awaited, armed, stopping, queue, queued_max };
                note(&mut known, &mut keys, key, multishot);
            }
            2 => {
                let key = choose(&mut choices, &keys);
                assert_eq!(slots.remove(key).is_some(), known.remove(&key.user_data()).is_some());
                assert!(slots.remove(key).is_none(), "removed twice");
            }
            3 => take(&mut slots, &mut known, choose(&mut choices, &keys)),
            4 => name_a_quiet_send(&mut choices, &keys),
            _ => {
                let key = choose(&mut choices, &keys);
                let completion = completion(&mut choices);
                let expected = arrive(known.get_mut(&key.user_data()), completion);
                let arrival = match slots.arrive(key, completion) {
                    Arrival::Stale => Expected::Stale,
                    Arrival::Quiet => Expected::Quiet,
                    Arrival::Wake(_) => Expected::Wake,
                    Arrival::Stop(waker) => Expected::Stop { wake: waker.is_some() },
                    Arrival::Orphaned => unreachable!("nothing here is an orphan"),
                };
                assert_eq!(arrival, expected, "{key:?} {completion:?}");
            }
        }
        compare(&mut slots, &known, &keys);
    }
}

fn note(known: &mut HashMap<u64, Known>, keys: &mut Vec<u64>, key: Key, new: Known) {
    assert!(!key.is_quiet_send(), "an operation with the key of a quiet send");
    assert!(known.insert(key.user_data(), new).is_none(), "one key, two operations");
    keys.push(key.user_data());
}

/// A key that was given, or what a kernel that is out of its mind would make of one.
fn choose(choices: &mut Choices<'_>, keys: &[u64]) -> Key {
    let given = keys[choices.below(keys.len())];
    Key::from_user_data(match choices.byte() % 16 {
        0 => choices.number(),
        1 => given ^ 1 << (choices.byte() % 64),
        2 => given.wrapping_add(1 << 32),
        _ => given,
    })
}

/// The owner takes an answer, and waits for the next.
fn take(slots: &mut Slots, known: &mut HashMap<u64, Known>, key: Key) {
    match (slots.get_mut(key), known.get_mut(&key.user_data())) {
        (Some(State::Multishot(real)), Some(Known::Multishot { awaited, queue, .. })) => {
            let taken = real.queue.pop_front().map(raw);
            assert_eq!(taken, (!queue.is_empty()).then(|| queue.remove(0)));
            if taken.is_none() {
                *awaited = true;
                if !real.await_by(Waker::noop()) {
                    drop(real.replace_waker(Waker::noop().clone()));
                }
            }
        }
        (Some(State::Done(real)), Some(Known::Done(result))) => assert_eq!(raw(*real), *result),
        _ => {}
    }
}

/// Keys of sends say to which batch they belong, and are nobody else's.
fn name_a_quiet_send(choices: &mut Choices<'_>, keys: &[u64]) {
    let batch = choices.number() as u32 & GENERATION_MAX;
    let index = choices.below(1 << 15);
    let key = Key::of_quiet_send(batch, index);
    assert!(key.is_quiet_send());
    assert_eq!(key.quiet_send_of(batch), Some(index));
    assert_eq!(key.quiet_send_of(batch.wrapping_add(1)), None);
    assert!(!keys.contains(&key.user_data()));
}

fn completion(choices: &mut Choices<'_>) -> Completion {
    match choices.byte() % 4 {
        0 => Completion::from_error(&std::io::Error::from_raw_os_error(libc::ECANCELED)),
        1 => Completion::from_error(&std::io::Error::from_raw_os_error(
            1 + i32::from(choices.byte() % 100),
        )),
        2 => Completion::with_buffer(choices.number() as u32 >> 1, choices.number() as u16),
        _ => Completion::from_call(choices.number() as u32 >> 1),
    }
}

/// The result as the ring has it.
fn raw(completion: Completion) -> i32 {
    match completion.result() {
        Ok(count) => count as i32,
        Err(error) => -error.raw_os_error().expect("an errno"),
    }
}

fn arrive(known: Option<&mut Known>, completion: Completion) -> Expected {
    let cancelled = completion.is_errno(libc::ECANCELED);
    match known {
        None | Some(Known::Done(_)) => Expected::Stale,
        Some(waiting @ Known::Waiting { .. }) => {
            let wake = matches!(waiting, Known::Waiting { waker: true });
            *waiting = Known::Done(raw(completion));
            if wake { Expected::Wake } else { Expected::Quiet }
        }
        Some(Known::Multishot { awaited, armed, stopping, queue, queued_max }) => {
            *armed = completion.more();
            let was_stopping = *stopping;
            *stopping &= *armed;
            if !(was_stopping && !*armed && cancelled) {
                queue.push(raw(completion));
            }
            let wake = std::mem::take(awaited);
            if *armed && !*stopping && queue.len() >= *queued_max {
                *stopping = true;
                return Expected::Stop { wake };
            }
            if wake { Expected::Wake } else { Expected::Quiet }
        }
    }
}

fn compare(slots: &mut Slots, known: &HashMap<u64, Known>, keys: &[u64]) {
    for &user_data in keys {
        let state = slots.get_mut(Key::from_user_data(user_data));
        match (state, known.get(&user_data)) {
            (None, None)
            | (Some(State::Waiting(_)), Some(Known::Waiting { .. }))
            | (Some(State::Done(_)), Some(Known::Done(_))) => {}
            (Some(State::Multishot(real)), Some(Known::Multishot { armed, queue, .. })) => {
                assert_eq!((real.armed, real.queue.len()), (*armed, queue.len()));
            }
            _ => panic!("{user_data:#x} is not what it should be"),
        }
    }
    let in_flight = known.values().any(|known| match known {
        Known::Waiting { .. } => true,
        Known::Done(_) => false,
        Known::Multishot { armed, .. } => *armed,
    });
    assert_eq!(slots.any_in_flight(), in_flight);
}

#[cfg(test)]
mod tests {
    use super::slots;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn an_answer_reaches_its_operation_and_no_other() {
        with_kept("slots", slots);
        with_seeds(1000, slots);
    }
}
