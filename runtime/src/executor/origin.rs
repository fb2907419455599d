//! Where a task comes from: the place in the source that spawned it, and its name if it has one.
//!
//! One word a task, as most tasks have no name and their place is a constant of the program.

use std::marker::PhantomData;
use std::panic::Location;
use std::ptr::NonNull;

/// A `&'static Location`, or a `Box<Named>` whose address carries [`NAMED`].
pub(super) struct Origin {
    word: NonNull<()>,
    _owns: PhantomData<Box<Named>>,
}

struct Named {
    place: &'static Location<'static>,
    name: Box<str>,
}

/// Set in the address of what is boxed. Both kinds are aligned, so that the bit is free.
const NAMED: usize = 1;

const _: () = assert!(align_of::<Location<'static>>() > NAMED && align_of::<Named>() > NAMED);

// SAFETY: it stands for a static reference or a box of what is `Send` and `Sync`.
unsafe impl Send for Origin {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Origin {}

impl Origin {
    /// That of who calls, or of whom it was called for.
    #[track_caller]
    pub(super) fn here() -> Origin {
        Origin { word: NonNull::from(Location::caller()).cast(), _owns: PhantomData }
    }

    #[track_caller]
    pub(super) fn named(name: &str) -> Origin {
        let named = Box::new(Named { place: Location::caller(), name: name.into() });
        let word = NonNull::from(Box::leak(named)).cast::<()>();
        Origin { word: word.map_addr(|address| address | NAMED), _owns: PhantomData }
    }

    pub(super) fn place(&self) -> &'static Location<'static> {
        match self.boxed() {
            // SAFETY: the box is this value's until it is dropped.
            Some(named) => unsafe { named.as_ref() }.place,
            // SAFETY: without the bit the word is the address of a static.
            None => unsafe { self.word.cast().as_ref() },
        }
    }

    pub(super) fn name(&self) -> Option<&str> {
        // SAFETY: the box is this value's until it is dropped.
        self.boxed().map(|named| &*unsafe { named.as_ref() }.name)
    }

    fn boxed(&self) -> Option<NonNull<Named>> {
        let address = self.word.addr().get();
        let named = self.word.as_ptr().map_addr(|address| address & !NAMED);
        if address & NAMED == 0 { None } else { NonNull::new(named.cast()) }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(named) = self.boxed() {
            // SAFETY: `named` leaked this box for the value that goes now.
            drop(unsafe { Box::from_raw(named.as_ptr()) });
        }
    }
}
