//! From descriptors to the sockets of the world, and what drivers are told of them.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::line::Watch;
use super::moment::Moment;
use super::network::{Network, SocketId, errno};
use super::trace::{Call, Event};
use super::world::{State, World};
use crate::sys::EpollEvent;

impl World {
    pub(super) fn open_socket(&self) -> io::Result<OwnedFd> {
        let mut state = self.lock();
        let id = state.network.open();
        state.hand_out(id)
    }

    pub(super) fn finds(&self, fd: BorrowedFd<'_>) -> bool {
        self.lock().handles.find(fd).is_some()
    }

    /// Makes a call on the socket behind this descriptor, if there is one.
    pub(super) fn on_socket<R>(
        &self,
        fd: BorrowedFd<'_>,
        call: Call,
        weigh: impl FnOnce(&R) -> u64,
        act: impl FnOnce(&mut Network, &mut Moment<'_>, SocketId) -> io::Result<R>,
    ) -> Option<io::Result<R>> {
        let mut state = self.lock();
        let id = state.handles.find(fd)?;
        let before = state.network.figures.deliveries;
        let answer = state.on_network(|network, moment| act(network, moment, id));
        let weight = match &answer {
            Ok(answer) => weigh(answer),
            Err(error) => u64::MAX - error.raw_os_error().unwrap_or(0) as u64,
        };
        state.note(Event::Called(call), id, weight);
        if state.network.figures.deliveries != before {
            state.wake_all();
        }
        Some(answer)
    }

    pub(super) fn accept(self: &Arc<World>, fd: BorrowedFd<'_>) -> Option<io::Result<OwnedFd>> {
        let mut state = self.lock();
        let listener = state.handles.find(fd)?;
        let answer = state.accept(listener);
        state.note(Event::Called(Call::Accept), listener, u64::from(answer.is_ok()));
        Some(answer)
    }

    /// Notices what has been closed.
    pub(super) fn take_closed(&self) {
        self.lock().take_closed();
    }

    /// Has this shard told of what happens to a socket. False if it is not simulated.
    pub(super) fn watch(&self, fd: BorrowedFd<'_>, events: u32, token: u64) -> bool {
        let instance = World::seat();
        let mut state = self.lock();
        let Some(id) = state.handles.find(fd) else { return false };
        // What is so already is told as well.
        state.network.watch(id, Watch { instance, token, events, pending: true });
        true
    }

    pub(super) fn forget_watch(&self, fd: BorrowedFd<'_>) -> bool {
        let instance = World::seat();
        let mut state = self.lock();
        let Some(id) = state.handles.find(fd) else { return false };
        state.network.forget_watch(id, instance);
        true
    }

    /// Has somebody told of what happens to a socket who watches no other. `None` if it is not
    /// simulated.
    pub(super) fn watch_alone(&self, fd: BorrowedFd<'_>, events: u32) -> Option<u64> {
        let mut state = self.lock();
        let id = state.handles.find(fd)?;
        state.lone_watches += 1;
        // Never a seat's number.
        let instance = u64::MAX - state.lone_watches;
        state.network.watch(id, Watch { instance, token: 0, events, pending: true });
        Some(instance)
    }

    /// What such a one is to be told: nothing, or how things stand.
    pub(super) fn pending_alone(&self, fd: BorrowedFd<'_>, instance: u64) -> u32 {
        let state = self.lock();
        state.handles.find(fd).map_or(0, |id| state.network.pending_of(id, instance))
    }

    /// It has been told.
    pub(super) fn told_alone(&self, fd: BorrowedFd<'_>, instance: u64) {
        let mut state = self.lock();
        if let Some(id) = state.handles.find(fd) {
            state.network.told(id, instance);
        }
    }

    /// It watches no more.
    pub(super) fn forget_alone(&self, fd: BorrowedFd<'_>, instance: u64) {
        let mut state = self.lock();
        if let Some(id) = state.handles.find(fd) {
            state.network.forget_watch(id, instance);
        }
    }

    /// Takes in what the kernel has told, and draws what this shard is told now of all there is. If
    /// it waits, and anything is to be told, that is something.
    pub(super) fn choose_events(&self, real: Vec<EpollEvent>, waits: bool) -> Vec<EpollEvent> {
        let seat = World::seat();
        let mut state = self.lock();
        state.take_closed();
        let mut told = state.held.remove(&seat).unwrap_or_default();
        told.extend(real);
        let mut told: Vec<_> = told.into_iter().map(|event| (None, event)).collect();
        for (id, token, events) in state.network.pending(seat) {
            told.push((Some(id), EpollEvent { token, events }));
        }
        state.dice.shuffle(&mut told);
        let late = state.faults.late_events;
        if !told.is_empty() && state.dice.one_in(late) {
            let least = u64::from(waits);
            let kept = least + state.dice.below(told.len() as u64 + 1 - least);
            for (socket, event) in told.split_off(kept as usize) {
                // A socket stays pending by itself, and may have more to tell by then.
                if socket.is_none() {
                    state.held.entry(seat).or_default().push(event);
                }
            }
        }
        for (socket, event) in &told {
            state.note(Event::Told, event.token, u64::from(event.events));
            if let Some(id) = socket {
                state.network.told(*id, seat);
            }
        }
        told.into_iter().map(|(_, event)| event).collect()
    }
}

impl State {
    pub(super) fn on_network<R>(
        &mut self,
        act: impl FnOnce(&mut Network, &mut Moment<'_>) -> R,
    ) -> R {
        let mut moment = Moment { now: self.now, dice: &mut self.dice, faults: &self.faults };
        act(&mut self.network, &mut moment)
    }

    fn hand_out(&mut self, id: SocketId) -> io::Result<OwnedFd> {
        let made = self.handles.make(id);
        if made.is_err() {
            self.on_network(|network, moment| network.close(moment, id));
        }
        made
    }

    fn accept(&mut self, listener: SocketId) -> io::Result<OwnedFd> {
        // As the kernel does it: without a descriptor the connection goes on waiting.
        let server = self.network.first_waiting(listener)?.ok_or_else(|| errno(libc::EAGAIN))?;
        let fd = self.handles.make(server)?;
        self.network.take_waiting(listener);
        Ok(fd)
    }

    pub(super) fn take_closed(&mut self) {
        let closed = self.handles.take_closed();
        if !closed.is_empty() {
            self.wake_all();
        }
        for id in closed {
            self.note(Event::Closed, id, 0);
            self.on_network(|network, moment| network.close(moment, id));
        }
    }
}
