//! Who is told of what happens to simulated sockets: epoll instances, each that of a shard.
//!
//! As in the kernel, an event is only a mark; what is told is how things stand when it is told.

use super::line::Watch;
use super::network::{Network, SocketId};

impl Network {
    /// Has an epoll instance told of what happens to a socket.
    pub(super) fn watch(&mut self, id: SocketId, watch: Watch) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.watches.push(watch);
        }
    }

    pub(super) fn forget_watch(&mut self, id: SocketId, instance: u64) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.watches.retain(|watch| watch.instance != instance);
        }
    }

    /// Something has happened to a socket.
    pub(super) fn notify(&mut self, id: SocketId, events: i32) {
        for watch in self.sockets.get_mut(&id).into_iter().flat_map(|it| &mut it.watches) {
            let always = libc::EPOLLERR | libc::EPOLLHUP;
            watch.pending |= (watch.events | always as u32) & events as u32 != 0;
        }
    }

    /// What an instance is to be told: tokens, and how things stand now.
    pub(super) fn pending(&self, instance: u64) -> Vec<(SocketId, u64, u32)> {
        let mut pending = Vec::new();
        for (id, socket) in &self.sockets {
            for watch in socket.watches.iter().filter(|it| it.pending && it.instance == instance) {
                let always = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
                let events = socket.events() & (watch.events | always);
                if events != 0 {
                    pending.push((*id, watch.token, events));
                }
            }
        }
        pending
    }

    /// What a watcher of this socket alone is to be told.
    pub(super) fn pending_of(&self, id: SocketId, instance: u64) -> u32 {
        let Some(socket) = self.sockets.get(&id) else { return 0 };
        let always = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        let own = socket.watches.iter().filter(|it| it.pending && it.instance == instance);
        own.fold(0, |told, watch| told | socket.events() & (watch.events | always))
    }

    /// It has been told.
    pub(super) fn told(&mut self, id: SocketId, instance: u64) {
        for watch in self.sockets.get_mut(&id).into_iter().flat_map(|it| &mut it.watches) {
            watch.pending &= watch.instance != instance;
        }
    }
}
