//! The one place where atomics and shared pointers come from, so that loom can drive them.
//!
//! The cells are here for the same reason: under loom they report every access that is not ordered
//! after the one before it.

#[cfg(not(loom))]
mod primitives {
    pub(crate) use crossbeam_queue::SegQueue;
    pub(crate) use std::{
        cell::Cell,
        sync::{
            Arc, Condvar, Mutex, MutexGuard,
            atomic::{
                AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
            },
        },
        thread_local,
    };

    /// `std`'s cell with loom's interface: the pointer is only reached through a closure.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

#[cfg(loom)]
mod primitives {
    use loom::alloc::Track;
    use std::{collections::VecDeque, ops::Deref, sync::LockResult, time::Duration};

    pub(crate) use loom::{
        cell::{Cell, UnsafeCell},
        sync::atomic::{
            AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        },
        sync::{Mutex, MutexGuard},
    };

    /// Loom's macro, for `std`'s constant form.
    macro_rules! constant_thread_local {
        (static $name:ident: $type:ty = const { $start:expr };) => {
            loom::thread_local! { static $name: $type = $start; }
        };
    }
    pub(crate) use constant_thread_local as thread_local;

    /// Stands in for the pointer that loom has. That one takes it that who adds to a count has one,
    /// and does not try every order of an addition and the last subtraction; whether that holds is
    /// one of the things to be shown here. The memory is never freed, so that a late use is seen.
    #[derive(Debug)]
    pub(crate) struct Arc<T: 'static>(&'static Counted<T>);

    #[derive(Debug)]
    #[repr(C)]
    struct Counted<T> {
        /// First, so that its address is that of the whole.
        value: std::cell::UnsafeCell<T>,
        strong: AtomicUsize,
        /// Read by every use, written by the last drop: loom reports the two if nothing orders
        /// them.
        used: UnsafeCell<()>,
        /// By this loom reports a value that is never dropped.
        tracked: std::cell::UnsafeCell<Track<()>>,
    }

    // SAFETY: as for `std`'s pointer; `used` guards nothing.
    unsafe impl<T: Send + Sync> Send for Arc<T> {}
    // SAFETY: as above.
    unsafe impl<T: Send + Sync> Sync for Arc<T> {}

    impl<T> Arc<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(Box::leak(Box::new(Counted {
                value: std::cell::UnsafeCell::new(value),
                strong: AtomicUsize::new(1),
                used: UnsafeCell::new(()),
                tracked: std::cell::UnsafeCell::new(Track::new(())),
            })))
        }

        pub(crate) fn as_ptr(this: &Self) -> *const T {
            std::ptr::from_ref(this.0).cast()
        }

        /// # Safety
        /// As for `std`'s pointer.
        pub(crate) unsafe fn from_raw(value: *const T) -> Self {
            // SAFETY: `as_ptr` gave the address of the whole, which is never freed.
            Self(unsafe { &*value.cast::<Counted<T>>() })
        }

        /// # Safety
        /// As for `std`'s pointer.
        pub(crate) unsafe fn increment_strong_count(value: *const T) {
            // SAFETY: `as_ptr` gave the address of the whole, which is never freed.
            let counted = unsafe { &*value.cast::<Counted<T>>() };
            let before = counted.strong.fetch_add(1, Ordering::Relaxed);
            assert_ne!(before, 0, "a count was taken of what is gone");
        }
    }

    impl<T> Clone for Arc<T> {
        fn clone(&self) -> Self {
            // SAFETY: this pointer has a count.
            unsafe { Self::increment_strong_count(Self::as_ptr(self)) };
            Self(self.0)
        }
    }

    impl<T> Deref for Arc<T> {
        type Target = T;

        fn deref(&self) -> &T {
            // SAFETY: this pointer has a count, so the value is there, and nobody writes it.
            self.0.used.with(|_| unsafe { &*self.0.value.get() })
        }
    }

    impl<T> Drop for Arc<T> {
        fn drop(&mut self) {
            if self.0.strong.fetch_sub(1, Ordering::Release) > 1 {
                return;
            }
            fence(Ordering::Acquire);
            self.0.used.with_mut(|_| {
                // SAFETY: this was the last pointer, and the memory is not given back to its box.
                unsafe { self.0.value.get().drop_in_place() };
                // SAFETY: as above.
                unsafe { self.0.tracked.get().drop_in_place() };
            });
        }
    }

    /// Loom's, with waits that end by time when a model says that the time is over.
    #[derive(Debug)]
    pub(crate) struct Condvar {
        waiting: loom::sync::Condvar,
        /// Written and read under the mutex that is waited with only, so not one of loom's.
        is_over: std::sync::atomic::AtomicBool,
    }

    #[derive(Clone, Copy, Debug)]
    pub(crate) struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        pub(crate) fn timed_out(self) -> bool {
            self.0
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            let is_over = std::sync::atomic::AtomicBool::new(false);
            Self { waiting: loom::sync::Condvar::new(), is_over }
        }

        pub(crate) fn notify_one(&self) {
            self.waiting.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.waiting.notify_all();
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            _limit: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
            let guard = if self.is_over() { guard } else { self.waiting.wait(guard).unwrap() };
            Ok((guard, WaitTimeoutResult(self.is_over())))
        }

        /// The time of all waits is over, of those to come as well.
        pub(crate) fn let_time_pass<T>(&self, mutex: &Mutex<T>) {
            let guard = mutex.lock().unwrap();
            self.is_over.store(true, Ordering::Relaxed);
            drop(guard);
            self.waiting.notify_all();
        }

        fn is_over(&self) -> bool {
            self.is_over.load(Ordering::Relaxed)
        }
    }

    /// Stands in for crossbeam's queue. `len` is an atomic of its own, because a look at it must
    /// not order more than a look at the real queue does: a lock would hide a missing fence.
    #[derive(Debug)]
    pub(crate) struct SegQueue<T> {
        len: AtomicUsize,
        items: Mutex<VecDeque<T>>,
        /// Not loom's, so that asking costs it no more orders to try.
        gone: std::sync::atomic::AtomicBool,
    }

    impl<T> SegQueue<T> {
        pub(crate) fn new() -> Self {
            Self {
                len: AtomicUsize::new(0),
                items: Mutex::new(VecDeque::new()),
                gone: std::sync::atomic::AtomicBool::new(false),
            }
        }

        pub(crate) fn push(&self, item: T) {
            self.items.lock().unwrap().push_back(item);
            self.len.fetch_add(1, Ordering::Release);
        }

        pub(crate) fn pop(&self) -> Option<T> {
            if self.is_empty() {
                return None;
            }
            let item = self.items.lock().unwrap().pop_front()?;
            self.len.fetch_sub(1, Ordering::Relaxed);
            Some(item)
        }

        pub(crate) fn len(&self) -> usize {
            assert!(!self.gone.load(Ordering::Relaxed), "the queue is gone");
            self.len.load(Ordering::Acquire)
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }

    impl<T> Drop for SegQueue<T> {
        fn drop(&mut self) {
            self.gone.store(true, Ordering::Relaxed);
        }
    }
}

pub(crate) use primitives::*;

/// Counters that order nothing and outlive every loom model, such as those that hand out names.
pub(crate) mod counter {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}
