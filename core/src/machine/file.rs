//! One open file of the device (kernel: `struct tun_file`): what it is attached to, its queue, and who waits on it.
//!
//! Invariant: a file with a parked read has an empty queue.

use alloc::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Charge, Exhausted, FileId, Keeper, Opener, Outcome, ReadCall, Reply, RequestId, Resource,
    TunnelId, User, WakeHandle, filter::Filter,
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

/// A datagram in a queue, and what it takes of a user's memory.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) datagram: Datagram,
    pub(super) charge: Charge,
}

/// Bytes that a datagram takes at most beside its own: its place in a queue, which is up to half empty; headers that were taken
/// off; and what the allocator adds to two blocks. Measured with glibc where no place is empty, for datagrams of 1 byte: 97 bytes; of
/// 1,400 bytes: 74.
pub(super) const DATAGRAM_MEMORY: usize = 208;
const _COVERED: () = assert!(DATAGRAM_MEMORY >= 2 * size_of::<Kept>() + 2 * 32);

/// The memory that a datagram takes in a queue.
pub(super) fn cost(datagram: &Datagram) -> usize {
    DATAGRAM_MEMORY + datagram.payload.len()
}

/// Places that an empty queue may hold on to.
const SPARE_PLACES: usize = 32;

/// Why a datagram does not join a queue.
#[derive(Debug)]
pub(super) enum Refused {
    /// The queue is full.
    Full,
    /// There is no memory for it, the datagram.
    Memory(Datagram, Exhausted),
}

/// A bounded FIFO of datagrams; what does not fit is refused, so the oldest are kept (kernel: `ptr_ring`).
///
/// Of a tunnel's `written`, the oldest may be reserved: a harness was given them, and has not said that it has them.
#[derive(Debug, Default)]
pub struct Queue {
    /// Those that have ever been reserved, by number. All are older than those in `kept`.
    reserved: BTreeMap<u64, Reserved>,
    kept: VecDeque<Kept>,
    bytes: usize,
    max_datagrams: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Reserved {
    kept: Kept,
    /// `None`: it has been given back.
    by: Option<Keeper>,
}

impl Queue {
    pub(super) fn new(max_datagrams: usize, max_bytes: usize) -> Self {
        let (reserved, kept) = (BTreeMap::new(), VecDeque::new());
        Self { reserved, kept, bytes: 0, max_datagrams, max_bytes }
    }

    /// How many datagrams there are, reserved ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.reserved.len() + self.kept.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many datagrams nobody has reserved.
    #[must_use]
    pub fn available(&self) -> usize {
        let given_back = self.reserved.values().filter(|reserved| reserved.by.is_none());
        given_back.count() + self.kept.len()
    }

    /// Their bytes, without headers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many datagrams it holds at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.max_datagrams
    }

    /// The datagrams, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Datagram> {
        self.all().map(|kept| &kept.datagram)
    }

    /// There is room for a datagram of so many bytes, if there is memory.
    pub(super) fn has_room_for(&self, length: usize) -> bool {
        self.len() < self.max_datagrams && self.bytes + length <= self.max_bytes
    }

    /// Appends a datagram, in a user's memory; or nothing is changed.
    pub(super) fn push(&mut self, datagram: Datagram, user: &Arc<User>) -> Result<(), Refused> {
        let length = datagram.payload.len();
        if !self.has_room_for(length) {
            return Err(Refused::Full);
        }
        match user.charge(Resource::Memory, cost(&datagram)) {
            Ok(charge) => {
                self.bytes += length;
                self.kept.push_back(Kept { datagram, charge });
                Ok(())
            }
            Err(exhausted) => Err(Refused::Memory(datagram, exhausted)),
        }
    }

    /// Appends a datagram; the oldest make room for it, within tighter limits than the queue's own.
    pub(super) fn push_over(
        &mut self,
        datagram: Datagram,
        user: &Arc<User>,
        datagrams: usize,
        bytes: usize,
    ) {
        let length = datagram.payload.len();
        let (datagrams, bytes) = (datagrams.min(self.max_datagrams), bytes.min(self.max_bytes));
        while (self.len() >= datagrams || self.bytes + length > bytes) && self.pop().is_some() {}
        // One that is longer than all may be, or that there is no memory for, is not kept.
        let _kept = self.push(datagram, user);
    }

    /// `tun_queue_purge`.
    pub(super) fn clear(&mut self) {
        self.reserved = BTreeMap::new();
        self.kept = VecDeque::new();
        self.bytes = 0;
    }

    /// `ptr_ring_resize`: the oldest datagrams are kept.
    pub(super) fn resize(&mut self, max_datagrams: usize) {
        self.max_datagrams = max_datagrams;
        for lost in self.kept.drain(max_datagrams.min(self.kept.len())..) {
            self.bytes -= lost.datagram.payload.len();
        }
        self.give_up_places();
    }

    /// Removes the oldest that nobody has reserved.
    pub(super) fn pop(&mut self) -> Option<Datagram> {
        self.pop_kept().map(|kept| kept.datagram)
    }

    /// Puts back what was popped last, in a user's memory; false if there is none.
    #[must_use]
    pub(super) fn unpop(&mut self, datagram: Datagram, user: &Arc<User>) -> bool {
        let Ok(charge) = user.charge(Resource::Memory, cost(&datagram)) else { return false };
        self.bytes += datagram.payload.len();
        self.kept.push_front(Kept { datagram, charge });
        true
    }

    /// Reserves the oldest that nobody has reserved. It gets a number, the next after `last`, if it has none yet.
    pub(super) fn reserve(&mut self, by: Keeper, last: &mut u64) -> Option<(u64, Datagram)> {
        let number = match self.given_back() {
            Some(number) => number,
            None => {
                let kept = self.kept.pop_front()?;
                self.give_up_places();
                *last += 1;
                self.reserved.insert(*last, Reserved { kept, by: None });
                *last
            }
        };
        let reserved = self.reserved.get_mut(&number)?;
        reserved.by = Some(by);
        Some((number, reserved.kept.datagram.clone()))
    }

    /// There is a datagram with a number.
    pub(super) fn has_reserved(&self) -> bool {
        !self.reserved.is_empty()
    }

    /// Removes a datagram that somebody has reserved; false if it is not there, or another's.
    pub(super) fn remove_reserved(&mut self, by: Keeper, number: u64) -> bool {
        if self.reserved.get(&number).is_none_or(|reserved| reserved.by != Some(by)) {
            return false;
        }
        if let Some(Reserved { kept, .. }) = self.reserved.remove(&number) {
            self.bytes -= kept.datagram.payload.len();
        }
        true
    }

    /// Gives back all that somebody has reserved; whether there was any.
    pub(super) fn release(&mut self, by: Keeper) -> bool {
        let mut any = false;
        for reserved in self.reserved.values_mut().filter(|reserved| reserved.by == Some(by)) {
            reserved.by = None;
            any = true;
        }
        any
    }

    fn given_back(&self) -> Option<u64> {
        let mut reserved = self.reserved.iter();
        reserved.find(|(_, reserved)| reserved.by.is_none()).map(|(number, _)| *number)
    }

    fn all(&self) -> impl Iterator<Item = &Kept> {
        self.reserved.values().map(|reserved| &reserved.kept).chain(&self.kept)
    }

    /// How many datagrams fit without more memory.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.kept.capacity()
    }

    /// Each datagram's user, and what it takes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> impl Iterator<Item = (u32, usize)> {
        self.all().map(|kept| (kept.charge.user().uid(), kept.charge.amount()))
    }

    /// The oldest datagram that nobody has reserved; it is still charged for.
    pub(super) fn pop_kept(&mut self) -> Option<Kept> {
        let kept = match self.given_back() {
            Some(number) => self.reserved.remove(&number)?.kept,
            None => self.kept.pop_front()?,
        };
        self.bytes -= kept.datagram.payload.len();
        self.give_up_places();
        Some(kept)
    }

    /// Places that have not been used for a while are memory too, which nobody is charged for.
    fn give_up_places(&mut self) {
        let (length, capacity) = (self.kept.len(), self.kept.capacity());
        if capacity > SPARE_PLACES && length < capacity / 4 {
            self.kept.shrink_to((2 * length).max(SPARE_PLACES));
        }
    }

    /// Lengthens the newest datagram; false, and nothing changed, if there is none, it would be too long, or there is no memory.
    #[must_use]
    pub(super) fn append_to_newest(&mut self, more: &[u8], max_length: usize) -> bool {
        let Some(Kept { datagram: newest, charge }) = self.kept.back_mut() else { return false };
        let length = newest.payload.len() + more.len();
        if length > max_length
            || self.bytes + more.len() > self.max_bytes
            || charge.grow(more.len()).is_err()
        {
            return false;
        }
        newest.payload = [&newest.payload, more].concat().into();
        self.bytes += more.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use super::super::{
        Core, Delivery, Limits,
        rig::{Rig, bytes_read},
    };
    use super::*;
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

    fn user() -> Arc<User> {
        Core::new(Limits::default(), 1).users.get(1)
    }

    #[test]
    fn queue_refuses_the_newest_by_count_and_by_bytes() {
        let datagram = |length: usize| Datagram::from(Bytes::from(vec![0; length]));
        let (mut queue, user) = (Queue::new(2, 10), user());
        queue.push(datagram(4), &user).unwrap();
        assert!(matches!(queue.push(datagram(7), &user), Err(Refused::Full)), "by bytes");
        queue.push(datagram(6), &user).unwrap();
        assert!(matches!(queue.push(datagram(0), &user), Err(Refused::Full)), "by count");
        assert_eq!((queue.len(), queue.bytes()), (2, 10));
        assert_eq!(queue.pop().map(|d| d.payload.len()), Some(4));
        assert_eq!((queue.len(), queue.bytes()), (1, 6));
        assert!(queue.append_to_newest(&[1, 2], 8));
        assert!(!queue.append_to_newest(&[1], 8), "too long");
        assert!(queue.pop().is_some());
        assert!(queue.pop().is_none());
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn queue_lets_the_oldest_go_if_it_must() {
        let (mut queue, user) = (Queue::new(2, 10), user());
        for length in [3, 4, 5, 11, 6] {
            queue.push_over(Datagram::from(Bytes::from(vec![0; length])), &user, 3, 10);
        }
        let lengths: Vec<usize> = queue.iter().map(|datagram| datagram.payload.len()).collect();
        assert_eq!((lengths, queue.bytes()), (vec![6], 6));
    }

    #[test]
    fn reserved_datagrams_come_back_in_order_and_count_meanwhile() {
        let datagram = |length: usize| Datagram::from(Bytes::from(vec![0; length]));
        let (mut queue, user) = (Queue::new(4, 100), user());
        (1..=4).for_each(|length| queue.push(datagram(length), &user).unwrap());
        let (first, second, mut last) = (Keeper(1), Keeper(2), 0);
        let mut reserve = |queue: &mut Queue, by| {
            queue.reserve(by, &mut last).map(|(number, datagram)| (number, datagram.payload.len()))
        };
        assert_eq!(reserve(&mut queue, first), Some((1, 1)));
        assert_eq!(reserve(&mut queue, second), Some((2, 2)));
        assert_eq!(reserve(&mut queue, first), Some((3, 3)));
        assert_eq!((queue.len(), queue.available(), queue.bytes()), (4, 1, 10));
        assert!(matches!(queue.push(datagram(1), &user), Err(Refused::Full)), "they count");
        assert!(!queue.remove_reserved(second, 1), "it is another's");
        assert!(queue.release(first) && !queue.release(first));
        assert_eq!(queue.available(), 3);
        assert_eq!(reserve(&mut queue, second), Some((1, 1)), "by the number it has");
        assert_eq!(queue.pop().map(|datagram| datagram.payload.len()), Some(3));
        assert!(queue.remove_reserved(second, 2) && !queue.remove_reserved(second, 2));
        assert!(queue.release(second));
        queue.push_over(datagram(5), &user, 2, 100);
        let lengths: Vec<usize> = queue.iter().map(|datagram| datagram.payload.len()).collect();
        assert_eq!((lengths, queue.bytes()), (vec![4, 5], 9));
    }

    #[test]
    fn resized_queue_keeps_the_oldest() {
        let datagram = |length: usize| Datagram::from(Bytes::from(vec![0; length]));
        let (mut queue, user) = (Queue::new(3, 100), user());
        assert!((1..=3).all(|length| queue.push(datagram(length), &user).is_ok()));
        queue.resize(2);
        assert_eq!((queue.len(), queue.bytes()), (2, 3));
        assert!(queue.push(datagram(4), &user).is_err());
        queue.resize(3);
        queue.push(datagram(4), &user).unwrap();
        assert_eq!(queue.iter().map(|d| d.payload.len()).collect::<Vec<_>>(), [1, 2, 4]);
        queue.resize(0);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }
}
