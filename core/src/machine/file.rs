//! One open file of the device (kernel: `struct tun_file`): what it is attached to, its queue, and who waits on it.
//!
//! Invariant: a file with a parked read has an empty queue.

use alloc::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{
    Charge, FileId, Opener, Outcome, ReadCall, Reply, RequestId, Resource, TunnelId, User,
    WakeHandle,
    filter::Filter,
    queue::{Queue, cost},
};
use crate::{
    abi::tun,
    datagram::{self, Datagram, Framing, Part},
};

/// One open file description of the device.
#[derive(Debug)]
pub struct File {
    pub(super) id: FileId,
    /// The request that it was opened by, and so the front end that it is known to.
    pub(super) opened_by: RequestId,
    pub(super) opener: Opener,
    pub(super) user: Arc<User>,
    _charges: [Charge; 2],
    pub(super) flags: u32,
    pub(super) tunnel: Option<TunnelId>,
    /// TUNSETQUEUE has detached its queue: no datagram joins it.
    pub(super) detached: bool,
    /// `sk_sndbuf`; the file's own, so that it outlives a tunnel that was deleted.
    pub(super) send_buffer: i32,
    /// `sk_filter`: which datagrams its queue gets.
    pub(super) packet_filter: Option<Arc<Filter>>,
    /// What TUNSETIFINDEX asked for; 0: any.
    pub(super) wanted_ifindex: u32,
    pub(super) queue: Queue,
    pub(super) parked: VecDeque<ParkedRead>,
    pub(super) waker: Option<WakeHandle>,
    rest: Option<Rest>,
    /// Outcomes that are not known to have reached their clients.
    pub(super) reserved: usize,
    /// Requests wait for one of them.
    pub(super) is_held: bool,
    /// Its client knows of it; the harness may.
    pub(super) is_shown: bool,
}

/// What an open file takes of its user's share.
#[derive(Debug)]
pub(super) struct FileCharges {
    pub(super) user: Arc<User>,
    pub(super) file: Charge,
    pub(super) memory: Charge,
}

/// Bytes that a file takes without datagrams: itself, its places in maps, its opener's name, and an empty queue.
pub(super) const FILE_MEMORY: usize = 1024;

/// A read that waits for a datagram; no thread of ours waits with it.
#[derive(Debug)]
pub(super) struct ParkedRead {
    pub(super) id: RequestId,
    pub(super) limit: usize,
    /// Its outcome is reserved.
    pub(super) reports: bool,
    pub(super) _charge: Charge,
}

/// What a read left of its datagram: due to the next part of the same system call, and to nobody else.
#[derive(Debug)]
struct Rest {
    offset: u64,
    bytes: Bytes,
    _charge: Charge,
}

impl File {
    pub(super) fn new(
        id: FileId,
        opened_by: RequestId,
        flags: u32,
        opener: Opener,
        charges: FileCharges,
    ) -> Self {
        let FileCharges { user, file, memory } = charges;
        Self {
            user,
            _charges: [file, memory],
            id,
            opened_by,
            opener,
            flags,
            tunnel: None,
            detached: false,
            send_buffer: i32::MAX,
            packet_filter: None,
            wanted_ifindex: 0,
            queue: Queue::default(),
            parked: VecDeque::new(),
            waker: None,
            rest: None,
            reserved: 0,
            is_held: false,
            is_shown: true,
        }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Who opened it.
    #[must_use]
    pub fn opener(&self) -> &Opener {
        &self.opener
    }

    /// In whose share it is.
    #[must_use]
    pub fn user(&self) -> &Arc<User> {
        &self.user
    }

    /// The flags of `open(2)`; `O_NONBLOCK` as it was at the last read or write.
    #[must_use]
    pub fn open_flags(&self) -> u32 {
        self.flags
    }

    /// Reads without a datagram wait for one.
    #[must_use]
    pub fn is_blocking(&self) -> bool {
        self.flags & tun::O_NONBLOCK == 0
    }

    /// The tunnel it is attached to.
    #[must_use]
    pub fn tunnel(&self) -> Option<TunnelId> {
        self.tunnel
    }

    /// TUNSETQUEUE has detached its queue.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.detached
    }

    /// Datagrams waiting to be read.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// How many reads wait for a datagram.
    #[must_use]
    pub fn parked_reads(&self) -> usize {
        self.parked.len()
    }

    /// Somebody polled it and is woken at every event.
    #[must_use]
    pub fn is_poll_armed(&self) -> bool {
        self.waker.is_some()
    }

    pub(super) fn set_nonblocking(&mut self, nonblock: bool) {
        self.flags =
            if nonblock { self.flags | tun::O_NONBLOCK } else { self.flags & !tun::O_NONBLOCK };
    }

    /// Its tunnel is gone; what belongs to the file itself stays.
    pub(super) fn leave_tunnel(&mut self) {
        self.tunnel = None;
        self.detached = false;
        self.queue = Queue::default();
        self.rest = None;
    }

    /// `sock_writeable`: half of the send buffer is more than the one byte that is always charged.
    pub(super) fn has_room_to_send(&self) -> bool {
        self.send_buffer >> 1 > 1
    }

    /// What one read gets of a datagram; what did not fit stays for the continuation of that read, if there is memory for it.
    /// `charge`: for a datagram that has been kept.
    pub(super) fn deliver(
        &mut self,
        datagram: &Datagram,
        charge: Option<Charge>,
        framing: Framing,
        limit: usize,
    ) -> Outcome {
        let Part { head, body, rest: bytes } = datagram::read_part(datagram, framing, limit)?;
        if !bytes.is_empty() {
            let charge = charge.or_else(|| self.user.charge(Resource::Memory, cost(datagram)).ok());
            self.rest = charge.map(|_charge| Rest { offset: limit as u64, bytes, _charge });
        }
        Ok(Reply::Read { head, body })
    }

    /// The part of a datagram that is due to the continuation of a read; empty if there is none.
    pub(super) fn continue_read(&mut self, call: ReadCall) -> Bytes {
        match self.rest.take_if(|rest| rest.offset == call.offset) {
            Some(mut rest) => {
                let part = rest.bytes.split_to(rest.bytes.len().min(call.limit));
                rest.offset += part.len() as u64;
                self.rest = (!rest.bytes.is_empty()).then_some(rest);
                part
            }
            None => Bytes::new(),
        }
    }

    /// What the rest of a datagram takes.
    #[cfg(test)]
    pub(super) fn rest_memory(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest._charge.amount())
    }

    pub(super) fn forget_rest(&mut self) {
        self.rest = None;
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::super::{
        Delivery,
        rig::{Rig, bytes_read},
    };
    use crate::{abi::tun::IfFlags, errno::Errno};

    #[test]
    fn read_of_nothing_takes_nothing_and_never_waits() {
        let mut rig = Rig::new();
        let file = rig.open();
        assert_eq!(
            (rig.read(file, 0), rig.write(file, &[])),
            (Err(Errno::EBADFD), Err(Errno::EBADFD))
        );
        let (file, tunnel) = rig.attached("t", (IfFlags::TUN | IfFlags::NO_PI).bits());
        let read = rig.read_later(file, 0);
        assert_eq!(rig.outcome(read).map(bytes_read), Some(Ok(vec![])));
        assert_eq!(rig.inject(tunnel, &[0x45]), Ok(Delivery::Queued(1)));
        assert_eq!((rig.read(file, 0), rig.read(file, 9)), (Ok(vec![]), Ok(vec![0x45])));
        assert_eq!(rig.write(file, &[]), Err(Errno::EINVAL));
    }
}
