//! Removing devices and queues, by the remover.

use std::sync::Arc;

use super::{
    super::{Kind, Then, device::Device, queue::Queue, remover::Removal},
    Message, Owner,
};
use crate::{
    abi::tun::Name,
    core::{FileId, TunnelId},
};

/// What the remover is about to do, as long as it matters to others.
pub(super) struct Going {
    pub(super) tunnel: TunnelId,
    /// Of a device: where it is, and its name.
    pub(super) place: Option<(u64, Name)>,
    what: Then,
}

impl Owner {
    pub(super) fn close_queue(&mut self, tunnel: TunnelId, file: FileId) {
        let Some(device) = self.devices.get_mut(&tunnel) else { return };
        let Some(queue) = device.queues.remove(&file) else { return };
        self.publish(tunnel);
        self.forget_queues([&queue]);
        self.going.push_back(Going { tunnel, place: None, what: Box::new(drop) });
        self.remover.remove(Removal { tunnel, device: None, queues: vec![queue] });
    }

    /// Removes a device, or leaves it behind if it is persistent and not deleted by somebody, and calls `then` when that is done. The
    /// listener hears no more of it.
    pub(super) fn remove(&mut self, tunnel: TunnelId, is_deleted: bool, then: Then) {
        let Some(device) = self.forget(tunnel) else { return then(Ok(())) };
        // A device of which others may have queues is theirs too, and goes with the last.
        let is_ours = device.kind != Kind::Tun || !device.is_shared;
        let goes = is_deleted || is_ours && !device.persistent;
        let (inode, name) = (device.namespace.network.inode(), device.state.name);
        self.going.push_back(Going { tunnel, place: Some((inode, name)), what: then });
        let queues = device.queues.into_values().collect();
        let device = goes.then_some((device.namespace, device.index));
        self.remover.remove(Removal { tunnel, device, queues });
    }

    /// Closes the queues of a device that is gone, or somewhere where it cannot be followed.
    pub(super) fn let_go(&mut self, tunnel: TunnelId) {
        let Some(device) = self.forget(tunnel) else { return };
        let queues = device.queues.into_values().collect();
        self.going.push_back(Going { tunnel, place: None, what: Box::new(drop) });
        self.remover.remove(Removal { tunnel, device: None, queues });
    }

    fn forget(&mut self, tunnel: TunnelId) -> Option<Device> {
        let device = self.devices.remove(&tunnel)?;
        device.namespace.leave(device.index, tunnel);
        self.table.set(tunnel, None);
        self.forget_queues(device.queues.values());
        Some(device)
    }

    fn forget_queues<'a>(&mut self, queues: impl IntoIterator<Item = &'a Arc<Queue>>) {
        for queue in queues {
            queue.unwatch(&self.table.epoll);
            self.sources.remove(&queue.source());
        }
    }

    pub(super) fn removed(&mut self, tunnel: TunnelId) {
        let Some(at) = self.going.iter().position(|going| going.tunnel == tunnel) else { return };
        if let Some(Going { what, .. }) = self.going.remove(at) {
            what(Ok(()));
        }
        self.start_jobs();
    }

    pub(super) fn stop(&mut self) {
        self.jobs.clear();
        let tunnels: Vec<TunnelId> = self.devices.keys().copied().collect();
        tunnels.into_iter().for_each(|tunnel| self.remove(tunnel, false, Box::new(drop)));
        while !self.going.is_empty() {
            match self.messages.recv() {
                Ok(Message::Removed(tunnel)) => {
                    let at = self.going.iter().position(|going| going.tunnel == tunnel);
                    at.map(|at| self.going.remove(at));
                }
                // The daemon's clients are gone.
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}
