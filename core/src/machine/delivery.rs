//! The two ways of a datagram: into a client's queue or blocked read, and from a client to whoever is at the far side.

use super::{
    Address, CommandError, Core, Datagram, DropReason, Event, FileId, Interface, Limits, Output,
    Peer, TunnelId, file::Refused, filter::filtered, offload,
};
use crate::abi::tun;

/// What became of an injected datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A blocked read got it.
    Read,
    /// It waits in a queue of so many datagrams, itself included.
    Queued(usize),
}

impl Core {
    /// All segments go their way; if some are refused, the first of them says why.
    pub(super) fn perform_and_send_to_client(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
    ) -> Result<Delivery, CommandError> {
        let tunnel = self.tunnel_or_unknown(to)?;
        offload::perform(datagram, tunnel.mode, tunnel.offload)?
            .map(|datagram| self.send_to_client(to, datagram))
            .reduce(Result::and)
            .unwrap_or(Err(CommandError::EmptyDatagram))
    }

    pub(super) fn send_to_client(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
    ) -> Result<Delivery, CommandError> {
        let tunnel = self.tunnel_or_unknown(to)?;
        let file = tunnel.select_queue(&datagram).ok_or(CommandError::NoQueue(tunnel.name))?;
        let delivery = self.send_to_file(to, file, datagram)?;
        if let Delivery::Queued(_) = delivery {
            self.wake(file);
        }
        Ok(delivery)
    }

    /// The pollers of the file are the caller's matter.
    pub(super) fn send_to_file(
        &mut self,
        to: TunnelId,
        file_id: FileId,
        datagram: Datagram,
    ) -> Result<Delivery, CommandError> {
        // Not the method, so that only this field is borrowed.
        let tunnel = self.tunnels.get(&to).ok_or(CommandError::UnknownTunnel(Address::Id(to)))?;
        let (name, mode, framing) = (tunnel.name, tunnel.mode, tunnel.framing());
        let file = self.files.get_mut(&file_id).ok_or(CommandError::NoQueue(name))?;
        let length = datagram.payload.len();
        let Some(datagram) = filtered(datagram, tunnel, file) else {
            self.count_to_client_drop(to, name, DropReason::Filtered, length);
            return Err(CommandError::Filtered(name));
        };
        let payload = self.observed.then(|| datagram.payload.clone());

        // A queue of nothing passes nothing, not even to a blocked reader: tun_net_xmit puts it there first.
        let parked = if file.queue.capacity() > 0 { file.parked.pop_front() } else { None };
        let delivery = if let Some(read) = parked {
            let outcome = file.deliver(&datagram, None, framing, read.limit);
            let was_read = outcome.is_ok();
            self.outputs.push(Output::Complete(read.id, outcome));
            if !was_read {
                self.count_to_client_drop(to, name, DropReason::ReadTooShort, length);
                return Err(CommandError::ReadTooShort(name));
            }
            Delivery::Read
        } else {
            self.send_to_queue(to, name, file_id, datagram)?
        };
        if let Some(tunnel) = self.tunnels.get_mut(&to) {
            tunnel.counters.to_client.add(length);
        }
        if let Some(payload) = payload {
            self.outputs.push(Output::Event(Event::ToClient { tunnel: to, name, mode, payload }));
        }
        Ok(delivery)
    }

    fn send_to_queue(
        &mut self,
        to: TunnelId,
        name: tun::Name,
        file_id: FileId,
        mut datagram: Datagram,
    ) -> Result<Delivery, CommandError> {
        let length = datagram.payload.len();
        loop {
            let file = self.files.get_mut(&file_id).ok_or(CommandError::NoQueue(name))?;
            let uid = file.user.uid();
            match file.queue.push(datagram, &file.user) {
                Ok(()) => return Ok(Delivery::Queued(file.queue.len())),
                Err(Refused::Full) => {
                    let datagrams = file.queue.len();
                    self.count_to_client_drop(to, name, DropReason::QueueFull, length);
                    return Err(CommandError::QueueFull { name, datagrams });
                }
                Err(Refused::Memory(refused, exhausted)) => {
                    datagram = refused;
                    if self.reclaim(uid, exhausted).is_err() {
                        self.count_to_client_drop(to, name, DropReason::Memory, length);
                        return Err(CommandError::NoMemory { name, uid });
                    }
                }
            }
        }
    }

    /// Keeps what a client wrote, in the memory of the user who opened the file.
    fn keep_written(&mut self, file_id: FileId, mut datagram: Datagram) -> Result<(), DropReason> {
        loop {
            let kept = self.files.get(&file_id).and_then(|file| {
                let tunnel = self.tunnels.get_mut(&file.tunnel?)?;
                Some((file.user.uid(), tunnel.written.push(datagram, &file.user)))
            });
            let Some((uid, kept)) = kept else { return Err(DropReason::Refused) };
            match kept {
                Ok(()) => return Ok(()),
                Err(Refused::Full) => return Err(DropReason::WriteBufferFull),
                Err(Refused::Memory(refused, exhausted)) => {
                    datagram = refused;
                    self.reclaim(uid, exhausted).map_err(|_| DropReason::Memory)?;
                }
            }
        }
    }

    /// Keeps a copy of what the kernel has; the oldest make room for it.
    fn copy_written(&mut self, file_id: FileId, datagram: Datagram) {
        let Limits { copied_datagrams: datagrams, copied_bytes: bytes, .. } = self.limits;
        let Some(file) = self.files.get(&file_id) else { return };
        if let Some(tunnel) = file.tunnel.and_then(|tunnel| self.tunnels.get_mut(&tunnel)) {
            tunnel.written.push_over(datagram, &file.user, datagrams, bytes);
        }
    }

    pub(super) fn send_to_harness(&mut self, file: FileId, datagram: Datagram) {
        let length = datagram.payload.len();
        let payload = self.observed.then(|| datagram.payload.clone());
        let Some(tunnel) = self.tunnel_of_mut(file) else { return };
        let (id, name, mode) = (tunnel.id, tunnel.name, tunnel.mode);
        tunnel.counters.from_client.add(length);
        if let Some(Peer::Tunnel(other)) = tunnel.peer {
            if let Some(payload) = payload {
                let event = Event::FromClient { tunnel: id, name, mode, payload };
                self.outputs.push(Output::Event(event));
            }
            return self.send_across(other, datagram);
        }
        if tunnel.interface == Interface::Bridge {
            // The kernel has it. The harness may look at the latest.
            self.copy_written(file, datagram);
        } else {
            let kept = self.keep_written(file, datagram);
            let Some(tunnel) = self.tunnel_of_mut(file) else { return };
            match kept {
                Ok(()) => {
                    tunnel.last_writer = Some(file);
                    if let Some(Peer::Outside(peer)) = tunnel.peer {
                        self.outputs.push(Output::Notify(peer));
                    }
                }
                Err(reason) => {
                    tunnel.last_writer = None;
                    tunnel.counters.from_client_dropped.add(length);
                    if reason == DropReason::Memory {
                        tunnel.counters.memory_dropped.add(length);
                    }
                    self.event(|| Event::Dropped { tunnel: id, name, reason, length });
                }
            }
        }
        if let Some(payload) = payload {
            self.outputs.push(Output::Event(Event::FromClient { tunnel: id, name, mode, payload }));
        }
    }

    pub(super) fn count_to_client_drop(
        &mut self,
        id: TunnelId,
        name: tun::Name,
        reason: DropReason,
        length: usize,
    ) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.counters.to_client_dropped.add(length);
            if reason == DropReason::Memory {
                tunnel.counters.memory_dropped.add(length);
            }
        }
        self.event(|| Event::Dropped { tunnel: id, name, reason, length });
    }
}
