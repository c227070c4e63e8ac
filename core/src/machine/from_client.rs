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
    RequestId, Tunnel, TunnelId, User, WriteCall,
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
#[derive(Clone, Debug)]
struct Written {
    by: RequestId,
    file: FileId,
    /// Who opened the file, in whose memory the datagram is kept. The file may be closed by then.
    user: Arc<User>,
    /// What the call returns.
    length: usize,
    /// It has returned that.
    is_answered: bool,
}

/// A write that is not passed on yet.
#[derive(Debug)]
pub(super) struct Withheld {
    written: Written,
    /// Or how long the datagram was for which there was no memory.
    kept: Result<Kept, usize>,
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
        let user = Arc::clone(&file.user);
        let written = Written { by: id, file: file_id, user, length, is_answered };
        let (tunnel, is_first) = (tunnel.id, tunnel.withheld.is_empty());
        if reports || !is_first {
            self.withhold(tunnel, written, datagram, reports);
        } else if is_answered {
            self.pass_to_far_side(tunnel, file_id, &written.user, datagram);
        } else {
            self.pass_on(tunnel, written, datagram);
        }
        Ok(is_answered)
    }

    /// A datagram that passed the checks: to the kernel behind a bridge, or to the far side.
    fn pass_on(&mut self, id: TunnelId, written: Written, datagram: Datagram) {
        let Written { by, file, length, is_answered, .. } = written;
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        if tunnel.interface == Interface::Bridge {
            let head = datagram::write_head(&datagram, tunnel.netdev_framing());
            let forward =
                Forward { asker: by, tunnel: id, file, head, datagram, length, is_answered };
            self.outputs.push(Output::Forward(Box::new(forward)));
            return;
        }
        self.pass_to_far_side(id, file, &written.user, datagram);
        self.answer(&written);
    }

    /// Keeps a datagram until it is known whether the outcome reached the client, and that of each write before it.
    #[cold]
    fn withhold(&mut self, id: TunnelId, written: Written, datagram: Datagram, reports: bool) {
        let length = datagram.payload.len();
        let is_full = |tunnel: &Tunnel| tunnel.withheld.len() >= self.limits.written_datagrams;
        if !reports && self.tunnels.get(&id).is_some_and(is_full) {
            return self.lose_unseen(id, &written, DropReason::WriteBufferFull, length);
        }
        let charged = self.charge_memory(&written.user, cost(&datagram));
        let kept = charged.map(|charge| Kept { datagram, charge }).map_err(|_| length);
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        let (by, file) = (written.by, written.file);
        let delivered = (!reports).then_some(true);
        tunnel.withheld.push_back(Withheld { written, kept, delivered });
        if reports {
            self.reserve(by, Reserved::Write(id, file));
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
                Err(length) => self.lose_unseen(id, &written, DropReason::Memory, length),
            }
        }
        self.end_if_spent_and_tell(id);
    }

    /// A write of which nothing is left, though the client is told that it was taken.
    fn lose_unseen(&mut self, id: TunnelId, written: &Written, reason: DropReason, length: usize) {
        self.lose_passed(id, reason, length);
        self.answer(written);
    }

    /// A datagram that passed the checks and came no further.
    fn lose_passed(&mut self, id: TunnelId, reason: DropReason, length: usize) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.counters.from_client.add(length);
        }
        self.lose_written(id, reason, length);
    }

    /// The client of a write is told that it was taken, unless it has been.
    fn answer(&mut self, Written { by, length, is_answered, .. }: &Written) {
        if !is_answered {
            self.outputs.push(Output::Complete(*by, Ok(Reply::Written(*length))));
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
        let user = self.files.get(&file).filter(|file| file.tunnel == Some(tunnel));
        match (&taken, user.map(|file| Arc::clone(&file.user))) {
            (Ok(()), Some(user)) => self.pass_to_far_side(tunnel, file, &user, datagram),
            (Err(_), _) if is_answered => {
                self.lose_passed(tunnel, DropReason::Refused, datagram.payload.len());
            }
            (Ok(()), None) | (Err(_), _) => {}
        }
        if !is_answered {
            self.outputs.push(Output::Complete(asker, taken.map(|()| Reply::Written(length))));
        }
    }

    /// A datagram that passed the checks: to whatever stands at the far side of the tunnel.
    fn pass_to_far_side(
        &mut self,
        id: TunnelId,
        file: FileId,
        user: &Arc<User>,
        datagram: Datagram,
    ) {
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
            true => self.copy_written(id, user, datagram),
            false => self.keep_written(id, file, user, datagram),
        }
        self.outputs.extend(event.map(Output::Event));
    }

    /// Keeps what a client wrote, in the memory of the user who opened the file.
    fn keep_written(
        &mut self,
        id: TunnelId,
        file: FileId,
        user: &Arc<User>,
        mut datagram: Datagram,
    ) {
        let length = datagram.payload.len();
        loop {
            let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
            let reason = match tunnel.written.push(datagram, user) {
                Ok(()) => {
                    tunnel.last_writer = Some(file);
                    if let Some(Peer::Outside(peer)) = tunnel.peer {
                        self.outputs.push(Output::Notify(peer));
                    }
                    return;
                }
                Err(Refused::Full) => DropReason::WriteBufferFull,
                Err(Refused::Memory(refused, exhausted)) => {
                    datagram = refused;
                    if self.reclaim(user.uid(), exhausted).is_ok() {
                        continue;
                    }
                    DropReason::Memory
                }
            };
            return self.lose_written(id, reason, length);
        }
    }

    /// Keeps a copy of what the kernel has; the oldest make room for it.
    fn copy_written(&mut self, id: TunnelId, user: &Arc<User>, datagram: Datagram) {
        let Limits { copied_datagrams: datagrams, copied_bytes: bytes, .. } = self.limits;
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.written.push_over(datagram, user, datagrams, bytes);
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
