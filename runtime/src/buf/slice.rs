//! Buffers that are given to an operation and come back with its answer.
//!
//! While the kernel may touch a buffer, nobody else may, and it may not move: so the operation owns
//! it. What can be owned that way is an [`IoBuf`]; what can be received into, an [`IoBufMut`].

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Bound, Deref, RangeBounds};
use std::rc::Rc;
use std::sync::Arc;

/// Bytes with an owner, which can be sent from where they lie.
///
/// # Safety
///
/// The slice must stay valid, unchanged and at its address while the value is alive and nobody
/// calls a method that takes it by `&mut`, *also when the value itself is moved*: on the heap or in
/// static memory, never within the value. Each call must give the same slice.
pub unsafe trait IoBuf: 'static {
    /// The bytes.
    fn as_slice(&self) -> &[u8];

    /// A part of the buffer, to send that part, or to receive into it.
    ///
    /// The range counts from the buffer's beginning. It may reach beyond the bytes that are there,
    /// into a `Vec`'s capacity, to be received into; what is sent ends where the bytes do.
    ///
    /// # Panics
    ///
    /// If the range begins behind the bytes that are there, or ends before it begins.
    ///
    /// # Examples
    ///
    /// ```
    /// use annulus_runtime::buf::IoBuf;
    ///
    /// let hello = "hello, world".slice(..5);
    /// assert_eq!(&hello[..], b"hello");
    /// assert_eq!(hello.into_inner(), "hello, world");
    /// ```
    fn slice(self, range: impl RangeBounds<usize>) -> Slice<Self>
    where
        Self: Sized,
    {
        Slice::new(self, range)
    }
}

/// A buffer that can be received into.
///
/// # Safety
///
/// As [`IoBuf`], for the memory that [`as_uninit`](IoBufMut::as_uninit) gives, which must begin
/// where [`as_slice`](IoBuf::as_slice) does.
pub unsafe trait IoBufMut: IoBuf {
    /// All of the buffer's memory, written or not.
    ///
    /// # Safety
    ///
    /// Only bytes may be written to it, never `MaybeUninit::uninit()`: a part may be in use as
    /// written memory.
    unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>];

    /// Notes that at least the first `count` bytes are written now. Shortens nothing.
    ///
    /// # Safety
    ///
    /// The first `count` bytes of [`as_uninit`](IoBufMut::as_uninit) must have been written.
    unsafe fn set_init(&mut self, count: usize);

    /// Notes that `count` bytes were received, from the beginning of the buffer. A buffer that has
    /// a length takes it.
    ///
    /// # Safety
    ///
    /// As [`set_init`](IoBufMut::set_init).
    unsafe fn set_received(&mut self, count: usize) {
        // SAFETY: as the caller says.
        unsafe { self.set_init(count) };
    }
}

// SAFETY: a vector's bytes are on the heap, and stay there until the vector is changed.
unsafe impl IoBuf for Vec<u8> {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above; the spare capacity follows the bytes.
unsafe impl IoBufMut for Vec<u8> {
    unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        let capacity = self.capacity();
        // SAFETY: a vector owns `capacity` bytes from its pointer on, and `MaybeUninit` asks
        // nothing of what they hold.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), capacity) }
    }

    unsafe fn set_init(&mut self, count: usize) {
        if count > self.len() {
            // SAFETY: the bytes were written, as the caller says.
            unsafe { self.set_len(count) };
        }
    }

    unsafe fn set_received(&mut self, count: usize) {
        // SAFETY: as above.
        unsafe { self.set_len(count) };
    }
}

// SAFETY: the bytes are on the heap.
unsafe impl IoBuf for Box<[u8]> {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above; all of them are written.
unsafe impl IoBufMut for Box<[u8]> {
    unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        written(self)
    }

    unsafe fn set_init(&mut self, _count: usize) {}
}

// SAFETY: the bytes are on the heap.
unsafe impl<const N: usize> IoBuf for Box<[u8; N]> {
    fn as_slice(&self) -> &[u8] {
        &self[..]
    }
}

// SAFETY: as above; all of them are written.
unsafe impl<const N: usize> IoBufMut for Box<[u8; N]> {
    unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        written(&mut self[..])
    }

    unsafe fn set_init(&mut self, _count: usize) {}
}

/// Bytes seen as memory to be written: by `as_uninit`, whose callers write bytes only.
fn written(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    let length = bytes.len();
    // SAFETY: the layout is the same, and only bytes are written there.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), length) }
}

// SAFETY: a string's bytes are on the heap.
unsafe impl IoBuf for String {
    fn as_slice(&self) -> &[u8] {
        self.as_bytes()
    }
}

// SAFETY: static memory stays.
unsafe impl IoBuf for &'static [u8] {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: static memory stays.
unsafe impl<const N: usize> IoBuf for &'static [u8; N] {
    fn as_slice(&self) -> &[u8] {
        &self[..]
    }
}

// SAFETY: static memory stays.
unsafe impl IoBuf for &'static str {
    fn as_slice(&self) -> &[u8] {
        self.as_bytes()
    }
}

// SAFETY: shared bytes are on the heap and do not change: who holds a share has no `&mut`.
unsafe impl IoBuf for Arc<[u8]> {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above.
unsafe impl IoBuf for Rc<[u8]> {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: the bytes are on the heap or static, reached through a pointer.
#[cfg(feature = "bytes")]
unsafe impl IoBuf for bytes::Bytes {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above; nobody else may write to what a `BytesMut` holds.
#[cfg(feature = "bytes")]
unsafe impl IoBuf for bytes::BytesMut {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: as above; the spare capacity follows the bytes.
#[cfg(feature = "bytes")]
unsafe impl IoBufMut for bytes::BytesMut {
    unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        let capacity = self.capacity();
        // SAFETY: a `BytesMut` owns `capacity` bytes from its pointer on.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), capacity) }
    }

    unsafe fn set_init(&mut self, count: usize) {
        if count > self.len() {
            // SAFETY: the bytes were written, as the caller says.
            unsafe { self.set_len(count) };
        }
    }

    unsafe fn set_received(&mut self, count: usize) {
        // SAFETY: as above.
        unsafe { self.set_len(count) };
    }
}

/// A part of a buffer: see [`IoBuf::slice`]. After a receive it is what was received.
#[derive(Debug)]
pub struct Slice<B> {
    buffer: B,
    begin: usize,
    end: usize,
}

impl<B: IoBuf> Slice<B> {
    fn new(buffer: B, range: impl RangeBounds<usize>) -> Slice<B> {
        let begin = match range.start_bound() {
            Bound::Included(&begin) => begin,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => usize::MAX,
        };
        let length = buffer.as_slice().len();
        assert!(begin <= length, "a slice begins at {begin}, behind a buffer of {length} bytes");
        assert!(begin <= end, "a slice ends at {end}, before its beginning at {begin}");
        Slice { buffer, begin, end }
    }

    /// The whole buffer.
    pub fn into_inner(self) -> B {
        self.buffer
    }
}

impl<B: IoBuf + Clone> Clone for Slice<B> {
    /// # Panics
    ///
    /// If the clone of the buffer is shorter than where the slice begins.
    fn clone(&self) -> Slice<B> {
        // Checked once more: what lies before the slice counts as written.
        Slice::new(self.buffer.clone(), self.begin..self.end)
    }
}

impl<B: IoBuf> Deref for Slice<B> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

// SAFETY: a part of a slice that stays where it is. The bounds change by `&mut` only.
unsafe impl<B: IoBuf> IoBuf for Slice<B> {
    fn as_slice(&self) -> &[u8] {
        let all = self.buffer.as_slice();
        // A buffer whose length went down below the beginning has nothing here.
        all.get(self.begin..self.end.min(all.len())).unwrap_or_default()
    }
}

// SAFETY: as above.
unsafe impl<B: IoBufMut> IoBufMut for Slice<B> {
    unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: as the caller says.
        let all = unsafe { self.buffer.as_uninit() };
        let end = self.end.min(all.len());
        &mut all[self.begin..end]
    }

    unsafe fn set_init(&mut self, count: usize) {
        // SAFETY: the bytes before the slice are written since it was made, those within it as
        // the caller says.
        unsafe { self.buffer.set_init(self.begin + count) };
    }

    unsafe fn set_received(&mut self, count: usize) {
        // SAFETY: as the caller says.
        unsafe { self.set_init(count) };
        self.end = self.begin + count;
    }
}

/// The answer to an operation that was given a buffer: with the buffer, also when it failed.
///
/// `?` works where the error is an [`io::Error`]; the buffer of a failed operation is then dropped.
pub type BufResult<T, B> = Result<(T, B), BufError<B>>;

/// Why an operation failed, and its buffer.
pub struct BufError<B> {
    /// Why.
    pub error: io::Error,
    /// What was given to the operation. Of what was received nothing is lost: see the operation.
    pub buffer: B,
}

impl<B> fmt::Debug for BufError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<B> fmt::Display for BufError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<B> std::error::Error for BufError<B> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl<B> From<BufError<B>> for io::Error {
    fn from(failed: BufError<B>) -> io::Error {
        failed.error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes bytes as a receive does.
    fn receive<B: IoBufMut>(mut buffer: B, bytes: &[u8]) -> B {
        // SAFETY: bytes are written.
        let memory = unsafe { buffer.as_uninit() };
        for (place, byte) in memory.iter_mut().zip(bytes) {
            place.write(*byte);
        }
        let count = memory.len().min(bytes.len());
        // SAFETY: just written.
        unsafe { buffer.set_received(count) };
        buffer
    }

    #[test]
    fn a_vector_takes_the_length_of_what_was_received() {
        assert_eq!(receive(Vec::with_capacity(8), b"abc"), b"abc");
        assert_eq!(receive(vec![9; 8], b"abc"), b"abc");
        assert_eq!(receive(Vec::new(), b"abc"), b"");
    }

    #[test]
    fn a_boxed_slice_keeps_its_length() {
        assert_eq!(&*receive(vec![9; 5].into_boxed_slice(), b"abc"), [b'a', b'b', b'c', 9, 9]);
        assert_eq!(&receive(Box::new([9; 2]), b"abc")[..], b"ab");
    }

    #[test]
    fn a_slice_is_received_into_between_its_bounds_only() {
        let middle = receive(vec![9; 6].slice(2..4), b"abc");
        assert_eq!(&middle[..], b"ab");
        assert_eq!(middle.into_inner(), [9, 9, b'a', b'b', 9, 9]);
    }

    #[test]
    fn a_slice_reaches_into_the_spare_capacity() {
        let mut buffer = Vec::with_capacity(16);
        buffer.extend_from_slice(b"head ");
        let filled = receive(buffer.slice(5..8), b"tail");
        assert_eq!(&filled[..], b"tai");
        assert_eq!(filled.into_inner(), b"head tai");
    }

    #[test]
    fn slices_nest() {
        let inner = "0123456789".slice(2..8).slice(1..3);
        assert_eq!(&inner[..], b"34");
        let nested = receive(vec![0; 8].slice(2..6).slice(1..), b"xyz...");
        assert_eq!(nested.into_inner().into_inner(), [0, 0, 0, b'x', b'y', b'z', 0, 0]);
    }

    #[test]
    #[should_panic(expected = "begins at 3, behind a buffer of 2 bytes")]
    fn a_slice_over_bytes_that_are_not_written_is_refused() {
        let _refused = Vec::from([1, 2]).slice(3..);
    }

    #[test]
    #[should_panic(expected = "ends at 1, before its beginning at 2")]
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is tested")]
    fn a_slice_that_ends_before_it_begins_is_refused() {
        let _refused = "abc".slice(2..1);
    }

    #[test]
    #[should_panic(expected = "begins at 2, behind a buffer of 0 bytes")]
    fn a_clone_that_is_shorter_is_refused() {
        struct Fresh(Vec<u8>);

        impl Clone for Fresh {
            fn clone(&self) -> Fresh {
                Fresh(Vec::with_capacity(self.0.capacity()))
            }
        }

        // SAFETY: as for the vector.
        unsafe impl IoBuf for Fresh {
            fn as_slice(&self) -> &[u8] {
                &self.0
            }
        }

        let _refused = Fresh(vec![1, 2, 3]).slice(2..).clone();
    }

    #[test]
    fn an_error_gives_its_text_and_its_buffer() {
        let failed = BufError { error: io::ErrorKind::BrokenPipe.into(), buffer: vec![1] };
        assert_eq!(failed.to_string(), "broken pipe");
        assert_eq!(failed.buffer, [1]);
        let asked: fn() -> io::Result<()> = || {
            let answer: BufResult<usize, Vec<u8>> =
                Err(BufError { error: io::ErrorKind::TimedOut.into(), buffer: vec![] });
            let (_count, _buffer) = answer?;
            Ok(())
        };
        assert_eq!(asked().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[cfg(feature = "bytes")]
    #[test]
    fn bytes_are_sent_and_received_into() {
        assert_eq!(IoBuf::as_slice(&bytes::Bytes::from(vec![1, 2])), [1, 2]);
        assert_eq!(receive(bytes::BytesMut::with_capacity(8), b"abc"), b"abc"[..]);
    }
}
