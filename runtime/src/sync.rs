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
            Arc,
            atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence},
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
    use loom::sync::{Mutex, atomic::AtomicUsize};
    use std::collections::VecDeque;

    pub(crate) use loom::{
        cell::{Cell, UnsafeCell},
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence},
        },
    };

    /// Loom's macro, for `std`'s constant form.
    macro_rules! constant_thread_local {
        (static $name:ident: $type:ty = const { $start:expr };) => {
            loom::thread_local! { static $name: $type = $start; }
        };
    }
    pub(crate) use constant_thread_local as thread_local;

    /// Stands in for crossbeam's queue. `len` is an atomic of its own, because a look at it must not
    /// order more than a look at the real queue does: a lock would hide a missing fence.
    #[derive(Debug)]
    pub(crate) struct SegQueue<T> {
        len: AtomicUsize,
        items: Mutex<VecDeque<T>>,
    }

    impl<T> SegQueue<T> {
        pub(crate) fn new() -> Self {
            Self { len: AtomicUsize::new(0), items: Mutex::new(VecDeque::new()) }
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
            self.len.load(Ordering::Acquire)
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.len() == 0
        }
    }
}

pub(crate) use primitives::*;

/// Counters that order nothing and outlive every loom model, such as those that hand out names.
pub(crate) mod counter {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}
