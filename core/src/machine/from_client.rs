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
//! A datagram whose outcome may not reach its client waits before the third step, and so does each behind it (`reserved`).
//!
//! A rule that loses, changes or delays datagrams belongs between the checks and the account.

use alloc::{boxed::Box, sync::Arc};

use super::{
    Core, DropReason, Event, FileId, Forward, Interface, Limits, Outcome, Output, Peer, Reply,
    RequestId, TunnelId, WriteCall,
    queue::{Kept, Refused, cost},
    reserved::Reserved,
    to_client::Sender,
};
use crate::{
    abi::tun::IfFlags,
    datagram::{self, Datagram},
    errno::Errno,
};

/// A write that passed the checks.
#[derive(Clone, Copy, Debug)]
struct Written {
    by: RequestId,
    file: FileId,
    /// What the call returns.
    length: usize,
    /// It has returned that.
    is_answered: bool,
}

/// A write that is not passed on yet.
#[derive(Debug)]
pub(super) struct Withheld {
    written: Written,
    /// Or why it is lost, and how long it was.
    kept: Result<Kept, (DropReason, usize)>,
    /// Its outcome reached the client; `None`: that is not known.
    delivered: Option<bool>,
}

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
        let reports = self.reports(id);
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
        // Without a reservation the kernel itself tells the client.
        let is_answered = tunnel.interface != Interface::Bridge || reports;
        if is_answered && !tunnel.up {
            return Err(Errno::EIO);
        }
        if is_answered && file.detached && tunnel.flags.contains(IfFlags::NAPI) {
            return Err(Errno::EBUSY);
        }
        let tunnel_id = tunnel.id;
        if reports || !tunnel.withheld.is_empty() {
            let written = Written { by: id, file: file_id, length, is_answered };
            self.withhold(tunnel_id, written, datagram, reports);
        } else if is_answered {
            self.pass_to_far_side(tunnel_id, file_id, datagram);
        } else {
            self.pass_on(
                tunnel_id,
                Written { by: id, file: file_id, length, is_answered },
                datagram,
            );
        }
        Ok(is_answered)
    }

    /// A datagram that passed the checks: to the kernel behind a bridge, or to the far side.
    fn pass_on(&mut self, id: TunnelId, written: Written, datagram: Datagram) {
        let Written { by, file, length, is_answered } = written;
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        if tunnel.interface == Interface::Bridge {
            let head = datagram::write_head(&datagram, tunnel.netdev_framing());
            let forward =
                Forward { asker: by, tunnel: id, file, head, datagram, length, is_answered };
            self.outputs.push(Output::Forward(Box::new(forward)));
            return;
        }
        self.pass_to_far_side(id, file, datagram);
        self.answer(written);
    }

    /// Keeps a datagram until it is known whether the outcome reached the client, and that of each write before it.
    #[cold]
    fn withhold(&mut self, id: TunnelId, written: Written, datagram: Datagram, reports: bool) {
        let length = datagram.payload.len();
        let Some(user) = self.files.get(&written.file).map(|file| Arc::clone(&file.user)) else {
            return;
        };
        let kept = match self.charge_memory(&user, cost(&datagram)) {
            Ok(charge) => Ok(Kept { datagram, charge }),
            Err(_) => Err((DropReason::Memory, length)),
        };
        let limit = self.limits.written_datagrams;
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        if !reports && tunnel.withheld.len() >= limit {
            return self.lose_unseen(id, written, DropReason::WriteBufferFull, length);
        }
        let delivered = (!reports).then_some(true);
        tunnel.withheld.push_back(Withheld { written, kept, delivered });
        if reports {
            self.reserve(written.by, Reserved::Write(id, written.file));
        }
    }

    /// It is known whether the outcome of a write reached its client.
    pub(super) fn decide_write(&mut self, id: TunnelId, request: RequestId, delivered: bool) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let mut withheld = tunnel.withheld.iter_mut();
        if let Some(it) = withheld.find(|it| it.written.by == request) {
            it.delivered = Some(delivered);
        }
        while let Some(tunnel) = self.tunnels.get_mut(&id)
            && tunnel.withheld.front().is_some_and(|it| it.delivered.is_some())
            && let Some(Withheld { written, kept, delivered }) = tunnel.withheld.pop_front()
        {
            match kept {
                _ if delivered != Some(true) => {}
                Ok(Kept { datagram, charge }) => {
                    // Where it goes it is charged for anew.
                    drop(charge);
                    self.pass_on(id, written, datagram);
                }
                Err((reason, length)) => self.lose_unseen(id, written, reason, length),
            }
        }
        self.end_if_spent_and_tell(id);
    }

    /// A write of which nothing is left, though the client is told that it was taken.
    fn lose_unseen(&mut self, id: TunnelId, written: Written, reason: DropReason, length: usize) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.counters.from_client.add(length);
        }
        self.lose_written(id, reason, length);
        self.answer(written);
    }

    /// The client of a write is told that it was taken, unless it has been.
    fn answer(&mut self, Written { by, length, is_answered, .. }: Written) {
        if !is_answered {
            self.outputs.push(Output::Complete(by, Ok(Reply::Written(length))));
        }
    }

    /// A further part of a write that the kernel split.
    fn continue_write(&mut self, id: TunnelId, file: FileId, data: &[u8]) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let (name, length) = (tunnel.name, data.len());
        if let Some(newest) = tunnel.withheld.back_mut() {
            if newest.written.file == file
                && let Ok(kept) = &mut newest.kept
                && kept.append(data, MAX_JOINED_WRITE)
            {
                return;
            }
        } else if tunnel.last_writer == Some(file)
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
        let Forward { asker, tunnel, file, datagram, length, is_answered, .. } = forward;
        let is_there = self.files.get(&file).is_some_and(|file| file.tunnel == Some(tunnel));
        if taken.is_ok() && is_there {
            self.pass_to_far_side(tunnel, file, datagram);
        } else if taken.is_err() && is_answered {
            let written = Written { by: asker, file, length, is_answered };
            self.lose_unseen(tunnel, written, DropReason::Refused, datagram.payload.len());
        }
        if !is_answered {
            self.outputs.push(Output::Complete(asker, taken.map(|()| Reply::Written(length))));
        }
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
