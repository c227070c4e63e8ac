//! The way of a datagram from a client: one function, [`Core::send_from_client`], wherever the datagram goes.
//!
//! # Theory of operation
//!
//! The steps are, in this order:
//!
//! 1. *Framing*: the headers are taken off and checked, as in `tun_get_user`.
//! 2. *Checks*: the tunnel is up, and its queue may be written to. With a bridge the kernel checks, and the datagram goes on when the
//!    kernel has taken it ([`Core::forwarded`]).
//! 3. *Account*: counters, events, and the flow that the answer will follow.
//! 4. *Far side*: the queue of what the harness takes, another tunnel's client, or a peer that is told that there is something.
//!
//! A rule that loses, changes or delays datagrams belongs between the checks and the account.

use alloc::boxed::Box;

use super::{
    Core, DropReason, Event, FileId, Forward, Interface, Limits, Outcome, Output, Peer, Reply,
    RequestId, TunnelId, WriteCall, file::Refused, to_client::Sender,
};
use crate::{
    abi::tun::IfFlags,
    datagram::{self, Datagram},
    errno::Errno,
};

/// A write that the kernel split is joined up to this many bytes.
const MAX_JOINED_WRITE: usize = 8 << 20;

impl Core {
    /// `tun_chr_write_iter`; `None` if the kernel is to take the datagram first.
    pub(super) fn send_from_client(
        &mut self,
        id: RequestId,
        file_id: FileId,
        call: WriteCall,
    ) -> Option<Outcome> {
        let length = call.data.len();
        match self.pass_from_client(id, file_id, call) {
            Ok(true) => Some(Ok(Reply::Written(length))),
            Ok(false) => None,
            Err(errno) => Some(Err(errno)),
        }
    }

    /// False if the kernel is to take the datagram first.
    fn pass_from_client(
        &mut self,
        id: RequestId,
        file_id: FileId,
        call: WriteCall,
    ) -> Result<bool, Errno> {
        let file = self.files.get_mut(&file_id).ok_or(Errno::EBADF)?;
        let tunnel =
            file.tunnel.and_then(|tunnel| self.tunnels.get(&tunnel)).ok_or(Errno::EBADFD)?;
        file.set_nonblocking(call.nonblock);
        if call.offset > 0 {
            self.continue_write(tunnel.id, file_id, &call.data);
            return Ok(true);
        }
        let length = call.data.len();
        let datagram = datagram::parse_write(call.data, tunnel.framing())?;
        if tunnel.interface == Interface::Bridge {
            let head = datagram::write_head(&datagram, tunnel.netdev_framing());
            let forward =
                Forward { asker: id, tunnel: tunnel.id, file: file_id, head, datagram, length };
            self.outputs.push(Output::Forward(Box::new(forward)));
            return Ok(false);
        }
        if !tunnel.up {
            return Err(Errno::EIO);
        }
        if file.detached && tunnel.flags.contains(IfFlags::NAPI) {
            return Err(Errno::EBUSY);
        }
        self.pass_to_far_side(tunnel.id, file_id, datagram);
        Ok(true)
    }

    /// A further part of a write that the kernel split.
    fn continue_write(&mut self, id: TunnelId, file: FileId, data: &[u8]) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let (name, length) = (tunnel.name, data.len());
        if tunnel.last_writer == Some(file)
            && tunnel.written.append_to_newest(data, MAX_JOINED_WRITE)
        {
            tunnel.counters.from_client.bytes += length as u64;
            return;
        }
        tunnel.counters.from_client_dropped.bytes += length as u64;
        let reason = DropReason::Continuation;
        self.event(|| Event::Dropped { tunnel: id, name, reason, length });
    }

    /// The kernel took a datagram of a bridge, or not.
    pub(super) fn forwarded(&mut self, forward: Forward, taken: Result<(), Errno>) {
        let Forward { asker, tunnel, file, datagram, length, .. } = forward;
        let is_there = self.files.get(&file).is_some_and(|file| file.tunnel == Some(tunnel));
        if taken.is_ok() && is_there {
            self.pass_to_far_side(tunnel, file, datagram);
        }
        self.outputs.push(Output::Complete(asker, taken.map(|()| Reply::Written(length))));
    }

    /// A datagram that passed the checks: to whatever stands at the far side of the tunnel.
    fn pass_to_far_side(&mut self, id: TunnelId, file: FileId, datagram: Datagram) {
        let length = datagram.payload.len();
        let payload = self.observed.then(|| datagram.payload.clone());
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let (name, mode) = (tunnel.name, tunnel.mode);
        tunnel.counters.from_client.add(length);
        let is_bridge = tunnel.interface == Interface::Bridge;
        if !is_bridge {
            tunnel.learn_flow(file, &datagram);
        }
        let event = payload.map(|payload| Event::FromClient { tunnel: id, name, mode, payload });
        if let Some(Peer::Tunnel(other)) = tunnel.peer {
            self.outputs.extend(event.map(Output::Event));
            // What is refused has been counted where it was noticed.
            let _counted = self.send_to_client(other, datagram, Sender::Peer);
            return;
        }
        match is_bridge {
            // The kernel has it. The harness may look at the latest.
            true => self.copy_written(id, file, datagram),
            false => self.keep_written(id, file, datagram),
        }
        self.outputs.extend(event.map(Output::Event));
    }

    /// Keeps what a client wrote, in the memory of the user who opened the file.
    fn keep_written(&mut self, id: TunnelId, file_id: FileId, mut datagram: Datagram) {
        let length = datagram.payload.len();
        loop {
            let (Some(file), Some(tunnel)) = (self.files.get(&file_id), self.tunnels.get_mut(&id))
            else {
                return;
            };
            let reason = match tunnel.written.push(datagram, &file.user) {
                Ok(()) => {
                    tunnel.last_writer = Some(file_id);
                    if let Some(Peer::Outside(peer)) = tunnel.peer {
                        self.outputs.push(Output::Notify(peer));
                    }
                    return;
                }
                Err(Refused::Full) => DropReason::WriteBufferFull,
                Err(Refused::Memory(refused, exhausted)) => {
                    let uid = file.user.uid();
                    datagram = refused;
                    if self.reclaim(uid, exhausted).is_ok() {
                        continue;
                    }
                    DropReason::Memory
                }
            };
            return self.lose_written(id, reason, length);
        }
    }

    /// Keeps a copy of what the kernel has; the oldest make room for it.
    fn copy_written(&mut self, id: TunnelId, file: FileId, datagram: Datagram) {
        let Limits { copied_datagrams: datagrams, copied_bytes: bytes, .. } = self.limits;
        if let (Some(file), Some(tunnel)) = (self.files.get(&file), self.tunnels.get_mut(&id)) {
            tunnel.written.push_over(datagram, &file.user, datagrams, bytes);
        }
    }

    fn lose_written(&mut self, id: TunnelId, reason: DropReason, length: usize) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let name = tunnel.name;
        tunnel.last_writer = None;
        tunnel.counters.from_client_dropped.add(length);
        if reason == DropReason::Memory {
            tunnel.counters.memory_dropped.add(length);
        }
        self.event(|| Event::Dropped { tunnel: id, name, reason, length });
    }
}
