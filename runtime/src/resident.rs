//! Values that live on one shard, with handles that may travel.
//!
//! A stream's state is made of `Rc`s and cells and must stay on its thread; the stream itself is
//! `Send`. So the state is a resident of the shard, and the stream holds a [`Homed`]: two numbers.
//! At home they find the state, elsewhere they give an error, and dropped elsewhere they send word
//! home.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::rc::Rc;

use slab::Slab;

use crate::contain::contain;
use crate::driver::{Batch, ShortSend};
use crate::executor::ShardId;
use crate::fd::Fd;
use crate::fork::{NO_RUNTIME_SURVIVES, Process};
pub use crate::resident_key::ResidentKey;
use crate::shard;

/// A value that lives on a shard.
pub trait Resident: 'static {
    /// Called once at the end of the turn in which [`mark_dirty`] named the value.
    fn write_out(self: Rc<Self>) {}

    /// The handle is gone. A value that still has something to do answers [`Release::Linger`] and
    /// calls [`depart`] later.
    fn release(self: Rc<Self>) -> Release {
        Release::Depart
    }

    /// A send made by [`send_quietly`] did not send all of its buffer, which comes back.
    fn send_fell_short(self: Rc<Self>, _buffer: Vec<u8>, _result: io::Result<usize>) {}
}

/// What becomes of a resident whose handle is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It is dropped now.
    Depart,
    /// It stays until it departs by itself, or the shard ends.
    Linger,
}

/// A handle to a [`Resident`]. It can be sent to other threads, where it can only be dropped.
pub struct Homed<T: Resident> {
    key: ResidentKey,
    _value: PhantomData<fn() -> T>,
}

impl<T: Resident> Homed<T> {
    /// Makes the value a resident of the current shard. The closure is told its key.
    ///
    /// # Errors
    ///
    /// If no runtime runs on this thread.
    pub fn new(make: impl FnOnce(ResidentKey) -> T) -> io::Result<Homed<T>> {
        check_runtime()?;
        let shard = shard::current();
        let key = shard.residents.reserve(shard.id);
        let value = Rc::new(make(key));
        shard.residents.settle(key, value);
        Ok(Homed { key, _value: PhantomData })
    }

    /// The value, on its own shard.
    ///
    /// # Errors
    ///
    /// Elsewhere, and after the shard's end.
    #[inline]
    pub fn get(&self) -> io::Result<Rc<T>> {
        match at_home(self.key, |residents| residents.get(self.key)) {
            // SAFETY: `new` made the key for a value of this type. The place is the value's as long
            // as this handle lives, and generations tell it from later ones.
            Some(Some(value)) => Ok(unsafe { downcast(value) }),
            _ => Err(self.away()),
        }
    }

    /// Runs a closure with the value on its shard: now at home, by mail from elsewhere, not at all
    /// after the shard's end.
    pub fn visit(&self, f: impl FnOnce(Rc<T>) + Send + 'static) {
        if let Ok(value) = self.get() {
            return f(value);
        }
        let key = self.key;
        let call = move || {
            if let Some(value) = at_home(key, |residents| residents.get(key)).flatten() {
                // SAFETY: the key was made by `new` for a value of this type.
                f(unsafe { downcast(value) });
            }
        };
        shard::mail_to(key.shard, Box::new(call));
    }

    /// Takes the value out of the shard, without releasing it.
    ///
    /// # Errors
    ///
    /// As [`get`](Homed::get); the handle is given back.
    pub fn take(self) -> Result<Rc<T>, (Homed<T>, io::Error)> {
        match self.get() {
            Ok(value) => {
                depart(self.key);
                Ok(value)
            }
            Err(error) => Err((self, error)),
        }
    }

    #[cold]
    fn away(&self) -> io::Error {
        io::Error::other(if at_home(self.key, |_| ()).is_some() {
            "this socket has been taken apart already"
        } else if !self.key.shard.is_ours() {
            NO_RUNTIME_SURVIVES
        } else {
            "this socket belongs to another shard, or to a runtime that has ended: use it on the \
             shard where it was made"
        })
    }
}

/// # Safety
///
/// The value must be a `T`.
unsafe fn downcast<T: Resident>(value: Rc<dyn Resident>) -> Rc<T> {
    // SAFETY: the pointer came from an Rc of a `T`, as the caller says.
    unsafe { Rc::from_raw(Rc::into_raw(value).cast::<T>()) }
}

impl<T: Resident> Drop for Homed<T> {
    fn drop(&mut self) {
        let key = self.key;
        let release = move || at_home(key, |residents| residents.release(key));
        if release().is_none() {
            shard::mail_to(key.shard, Box::new(move || release().unwrap_or_default()));
        }
    }
}

impl<T: Resident> fmt::Debug for Homed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Homed").field("key", &self.key).finish()
    }
}

/// Whether a runtime runs on this thread, which sockets need.
///
/// # Errors
///
/// If none does.
pub fn check_runtime() -> io::Result<()> {
    match shard::try_with(|_| ()) {
        Some(()) => Ok(()),
        None if Process::current().is_forked() => Err(io::Error::other(NO_RUNTIME_SURVIVES)),
        None => Err(io::Error::other(
            "no annulus runtime on this thread: make this within Runtime::block_on, \
             #[annulus::main] or a task spawned there",
        )),
    }
}

/// Has [`Resident::write_out`] called at the end of this turn, once however often this is called.
///
/// Does nothing on another shard than the resident's.
pub fn mark_dirty(key: ResidentKey) {
    at_home(key, |residents| residents.mark_dirty(key));
}

/// Hands over a send that is over when this turn has ended, and is heard of, by
/// [`Resident::send_fell_short`], only if it does not send everything. One at a time for each
/// descriptor, or bytes may overtake each other: see [`is_settled`].
///
/// # Errors
///
/// Gives the buffer back where the driver has no such sends.
///
/// # Panics
///
/// Outside of a runtime.
pub fn send_quietly(fd: &Rc<Fd>, buffer: Vec<u8>, owner: ResidentKey) -> Result<Batch, Vec<u8>> {
    shard::with(|shard| shard.driver.send_quietly(fd, buffer, owner))
}

/// True when the quiet sends of that batch are over.
///
/// # Panics
///
/// Outside of a runtime.
#[must_use]
#[inline]
pub fn is_settled(batch: Batch) -> bool {
    shard::with(|shard| shard.driver.is_settled(batch))
}

/// An empty buffer to send from: one given back, or one of a quiet send that is over.
///
/// # Panics
///
/// Outside of a runtime.
#[must_use]
#[inline]
pub fn spare_buffer() -> Vec<u8> {
    shard::with(|shard| shard.spare.take())
}

/// Gives a send buffer back.
pub fn give_back(buffer: Vec<u8>) {
    shard::try_with(|shard| shard.spare.put(buffer));
}

/// Drops a resident that lingered.
pub fn depart(key: ResidentKey) {
    at_home(key, |residents| drop(residents.remove(key)));
}

/// The residents among which the key's value lives, if this thread runs their shard now.
#[inline]
fn at_home<R>(key: ResidentKey, look: impl FnOnce(&Residents) -> R) -> Option<R> {
    shard::try_with(|shard| (shard.id == key.shard).then(|| look(&shard.residents))).flatten()
}

struct Place {
    generation: u64,
    dirty: bool,
    /// Empty while the value is being made.
    value: Option<Rc<dyn Resident>>,
}

/// All residents of a shard. No borrow is held while their code runs.
#[derive(Default)]
pub(crate) struct Residents {
    places: RefCell<Slab<Place>>,
    dirty: RefCell<Vec<ResidentKey>>,
    generation: Cell<u64>,
}

impl Residents {
    fn reserve(&self, shard: ShardId) -> ResidentKey {
        let generation = self.generation.get() + 1;
        self.generation.set(generation);
        let place = Place { generation, dirty: false, value: None };
        let index = self.places.borrow_mut().insert(place) as u32;
        ResidentKey { shard, index, generation }
    }

    fn settle(&self, key: ResidentKey, value: Rc<dyn Resident>) {
        self.with(key, |place| place.value = Some(value));
    }

    #[inline]
    fn with<R>(&self, key: ResidentKey, f: impl FnOnce(&mut Place) -> R) -> Option<R> {
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(key.index as usize)?;
        (place.generation == key.generation).then(|| f(place))
    }

    #[inline]
    fn get(&self, key: ResidentKey) -> Option<Rc<dyn Resident>> {
        self.with(key, |place| place.value.clone()).flatten()
    }

    fn remove(&self, key: ResidentKey) -> Option<Rc<dyn Resident>> {
        let value = self.with(key, |place| place.value.take())?;
        self.places.borrow_mut().remove(key.index as usize);
        value
    }

    fn release(&self, key: ResidentKey) {
        let Some(value) = self.get(key) else { return };
        let mut next = Release::Depart;
        contain(|| next = value.release());
        // What that has run may have forked; then this child has but a copy.
        if next == Release::Depart && key.shard.is_ours() {
            drop(self.remove(key));
        }
    }

    fn mark_dirty(&self, key: ResidentKey) {
        let fresh = self.with(key, |place| !std::mem::replace(&mut place.dirty, true));
        if fresh == Some(true) {
            self.dirty.borrow_mut().push(key);
        }
    }

    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.borrow().is_empty()
    }

    pub(crate) fn send_fell_short(&self, short: ShortSend) {
        let ShortSend { owner, buffer, result } = short;
        if let Some(value) = self.get(owner) {
            value.send_fell_short(buffer, result);
        }
    }

    /// Lets those marked dirty write out. Who is marked meanwhile has to wait for the next turn.
    pub(crate) fn write_out(&self) {
        let mut marked = self.dirty.take();
        for key in marked.drain(..) {
            let value = self.with(key, |place| {
                place.dirty = false;
                place.value.clone()
            });
            if let Some(value) = value.flatten() {
                // It may wake tasks, and a panic of a waker must not cost the others their turn.
                contain(|| value.write_out());
            }
        }
        // The capacity is used again.
        let mut dirty = self.dirty.borrow_mut();
        if dirty.is_empty() {
            *dirty = marked;
        }
    }

    /// At the shard's end: as if every handle had been dropped.
    pub(crate) fn release_all(&self, shard: ShardId) {
        let keys = self.keys(shard).into_iter().take_while(|_| shard.is_ours());
        keys.for_each(|key| self.release(key));
    }

    pub(crate) fn mark_all(&self, shard: ShardId) {
        self.keys(shard).into_iter().for_each(|key| self.mark_dirty(key));
    }

    fn keys(&self, shard: ShardId) -> Vec<ResidentKey> {
        let places = self.places.borrow();
        let key = |(index, place): (usize, &Place)| ResidentKey {
            shard,
            index: index as u32,
            generation: place.generation,
        };
        places.iter().map(key).collect()
    }

    pub(crate) fn any(&self) -> bool {
        self.places.borrow().iter().any(|(_, place)| place.value.is_some())
    }

    pub(crate) fn clear(&self) {
        let places = self.places.take();
        for (_, place) in places {
            contain(|| drop(place));
        }
        self.dirty.take();
    }
}
