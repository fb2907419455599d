//! Slices of buffers against ranges of a vector.

use std::fmt::Debug;
use std::ops::Bound;

use super::{IoBuf, IoBufMut, Slice};
use crate::choices::Choices;

/// The memory under all slices, and which part of it the last of them is.
#[derive(Clone, Debug)]
struct Known {
    /// What is written, from the beginning on.
    written: Vec<u8>,
    capacity: usize,
    begin: usize,
    end: usize,
}

/// A vector, a slice of it, and a slice of that, each received into.
pub(crate) fn slices(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let length = choices.below(40);
    let mut vector = Vec::with_capacity(length + choices.below(40));
    vector.extend((0..length).map(|at| at as u8));
    let capacity = vector.capacity();
    let mut known = Known { written: vector.clone(), capacity, begin: 0, end: usize::MAX };
    if choices.is_heads() {
        // All of a boxed slice is written.
        let boxed = vector.into_boxed_slice();
        known.capacity = boxed.len();
        let slice = cut(boxed, &mut known, &mut choices);
        let (slice, _) = use_it(slice, &mut known, &mut choices);
        assert_eq!(*slice.into_inner(), *known.written);
        return;
    }
    let first = cut(vector, &mut known, &mut choices);
    let (first, outer) = use_it(first, &mut known, &mut choices);
    let second = cut(first, &mut known, &mut choices);
    let (second, _) = use_it(second, &mut known, &mut choices);
    assert_eq!(second.clone().as_slice(), second.as_slice());
    let third = cut(second, &mut known, &mut choices);
    let (third, _) = use_it(third, &mut known, &mut choices);
    let first = third.into_inner().into_inner();
    let range = outer.begin..outer.end.min(known.written.len());
    assert_eq!(first.as_slice(), known.written.get(range).unwrap_or_default());
    assert_eq!(first.into_inner(), known.written);
}

/// A slice by a range that it must take. What it must refuse has tests of its own, as a fuzzer
/// takes every panic for a failure.
fn cut<B: IoBuf>(buffer: B, known: &mut Known, choices: &mut Choices<'_>) -> Slice<B> {
    let length = buffer.as_slice().len();
    let begin = choices.below(length + 1);
    let (from, begin) = match choices.byte() % 3 {
        0 => (Bound::Included(begin), begin),
        1 if begin > 0 => (Bound::Excluded(begin - 1), begin),
        _ => (Bound::Unbounded, 0),
    };
    let longer = choices.below(60);
    let (to, end) = match choices.byte() % 5 {
        0 => (Bound::Excluded(begin + longer), begin + longer),
        1 => (Bound::Included(begin + longer), begin + longer + 1),
        2 => (Bound::Included(usize::MAX), usize::MAX),
        3 => (Bound::Excluded(usize::MAX - longer), usize::MAX - longer),
        _ => (Bound::Unbounded, usize::MAX),
    };
    known.end = known.end.min(known.begin.saturating_add(end));
    known.begin += begin;
    buffer.slice((from, to))
}

/// Looks at a slice, receives into it or not, and looks again. Also answers what was known of it
/// in between.
fn use_it<B: IoBufMut + Debug>(
    mut slice: Slice<B>,
    known: &mut Known,
    choices: &mut Choices<'_>,
) -> (Slice<B>, Known) {
    let bytes_of = |known: &Known| {
        let range = known.begin..known.end.min(known.written.len());
        known.written.get(range).unwrap_or_default().to_vec()
    };
    assert_eq!(slice.as_slice(), bytes_of(known), "{known:?}");
    let before = slice.as_slice().as_ptr();
    // SAFETY: bytes are written to it.
    let memory = unsafe { slice.as_uninit() };
    let room = known.end.min(known.capacity) - known.begin;
    assert_eq!(memory.len(), room, "{known:?}");
    assert!(bytes_of(known).is_empty() || memory.as_ptr().cast() == before, "not where it begins");
    let byte = choices.byte();
    if choices.is_heads() {
        let count = choices.below(room + 1);
        memory[..count].fill(std::mem::MaybeUninit::new(byte));
        // SAFETY: so many bytes were just written.
        unsafe { slice.set_received(count) };
        known.end = known.begin + count;
        known.written.resize(known.written.len().max(known.end), byte);
        known.written[known.begin..known.end].fill(byte);
        assert_eq!(slice.as_slice(), bytes_of(known), "{known:?}");
    }
    (slice, known.clone())
}

#[cfg(test)]
mod tests {
    use super::slices;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn a_slice_of_a_slice_is_a_range_of_a_range() {
        with_kept("slices", slices);
        with_seeds(2000, slices);
    }
}
