//! Datagrams that wait: for a read, or for the harness.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    sync::Arc,
};

use super::{Charge, Exhausted, Keeper, Resource, User};
use crate::datagram::Datagram;

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
/// The oldest may be reserved, and come back. Of a tunnel's `written` a harness was given them, and has not said that it has them: they
/// count. Of a file's queue a read was given them, and it is not known whether its client has them: they do not count.
#[derive(Debug, Default)]
pub struct Queue {
    /// Those that have ever been reserved; they are older than those in `kept`.
    reserved: Option<Box<ReservedPart>>,
    kept: VecDeque<Kept>,
    bytes: usize,
    max_datagrams: usize,
    max_bytes: usize,
}

/// Datagrams that have been reserved. In most queues there is none.
#[derive(Debug, Default)]
struct ReservedPart {
    /// By number.
    all: BTreeMap<u64, Reserved>,
    /// Those that have been given back.
    given_back: BTreeSet<u64>,
    /// How many reads were given. Their bytes are not among those of the queue.
    being_read: usize,
}

#[derive(Debug)]
struct Reserved {
    kept: Kept,
    by: Holder,
}

/// Who has reserved a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A harness.
    Keeper(Keeper),
    /// A read.
    Read,
    /// Nobody: it has been given back.
    Nobody,
}

impl Queue {
    pub(super) fn new(max_datagrams: usize, max_bytes: usize) -> Self {
        Self { max_datagrams, max_bytes, ..Self::default() }
    }

    /// How many datagrams there are; those that a harness keeps are among them.
    #[must_use]
    pub fn len(&self) -> usize {
        let counted = |part: &ReservedPart| part.all.len() - part.being_read;
        self.reserved.as_deref().map_or(0, counted) + self.kept.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many datagrams nobody has reserved.
    #[must_use]
    pub fn available(&self) -> usize {
        self.reserved.as_ref().map_or(0, |part| part.given_back.len()) + self.kept.len()
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
        let reserved = self.reserved.iter().flat_map(|part| part.all.values());
        let reserved = reserved.filter(|reserved| reserved.by != Holder::Read);
        reserved.map(|reserved| &reserved.kept).chain(&self.kept).map(|kept| &kept.datagram)
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
        *self = Self::new(self.max_datagrams, self.max_bytes);
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
    pub(super) fn reserve(&mut self, by: Holder, last: &mut u64) -> Option<(u64, Datagram)> {
        if self.available() == 0 {
            return None;
        }
        let part = self.reserved.get_or_insert_default();
        let number = match part.given_back.pop_first() {
            Some(number) => number,
            None => {
                *last += 1;
                part.all.insert(*last, Reserved { kept: self.kept.pop_front()?, by });
                *last
            }
        };
        let reserved = part.all.get_mut(&number)?;
        reserved.by = by;
        let datagram = reserved.kept.datagram.clone();
        if by == Holder::Read {
            part.being_read += 1;
            self.bytes -= datagram.payload.len();
        }
        self.give_up_places();
        Some((number, datagram))
    }

    /// What a read was given comes back, to its place among the oldest; false if it was lost.
    pub(super) fn give_back(&mut self, number: u64) -> bool {
        let Some(part) = &mut self.reserved else { return false };
        let Some(reserved) = part.all.get_mut(&number) else { return false };
        reserved.by = Holder::Nobody;
        part.given_back.insert(number);
        part.being_read -= 1;
        self.bytes += reserved.kept.datagram.payload.len();
        true
    }

    /// What a read was given is its client's; false if it was lost.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        let Some(part) = &mut self.reserved else { return false };
        let was_there = part.all.remove(&number).is_some();
        part.being_read -= usize::from(was_there);
        was_there
    }

    /// Some datagram is reserved and still here.
    pub(super) fn has_reserved(&self) -> bool {
        self.reserved.as_ref().is_some_and(|part| !part.all.is_empty())
    }

    /// Removes a datagram that a harness keeps; false if it is not there, or another's.
    pub(super) fn remove_reserved(&mut self, by: Keeper, number: u64) -> bool {
        let Some(part) = &mut self.reserved else { return false };
        let Entry::Occupied(reserved) = part.all.entry(number) else { return false };
        if reserved.get().by != Holder::Keeper(by) {
            return false;
        }
        self.bytes -= reserved.remove().kept.datagram.payload.len();
        true
    }

    /// Gives back all that a harness keeps; whether there was any.
    pub(super) fn release(&mut self, by: Keeper) -> bool {
        let Some(part) = &mut self.reserved else { return false };
        let mut any = false;
        for (number, reserved) in &mut part.all {
            if reserved.by == Holder::Keeper(by) {
                reserved.by = Holder::Nobody;
                part.given_back.insert(*number);
                any = true;
            }
        }
        any
    }

    #[cfg(test)]
    fn all(&self) -> impl Iterator<Item = &Kept> {
        let reserved = self.reserved.iter().flat_map(|part| part.all.values());
        reserved.map(|reserved| &reserved.kept).chain(&self.kept)
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
        let given_back = self.reserved.as_mut().and_then(|part| {
            let number = part.given_back.pop_first()?;
            part.all.remove(&number)
        });
        let kept = match given_back {
            Some(reserved) => reserved.kept,
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
        let is_appended = self.bytes + more.len() <= self.max_bytes
            && self.kept.back_mut().is_some_and(|newest| newest.append(more, max_length));
        if is_appended {
            self.bytes += more.len();
        }
        is_appended
    }
}

impl Kept {
    /// Lengthens it; false, and nothing changed, if it would be too long, or there is no memory.
    #[must_use]
    pub(super) fn append(&mut self, more: &[u8], max_length: usize) -> bool {
        let payload = &mut self.datagram.payload;
        if payload.len() + more.len() > max_length || self.charge.grow(more.len()).is_err() {
            return false;
        }
        *payload = [payload, more].concat().into();
        true
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use bytes::Bytes;

    use super::*;
    use crate::{Core, Limits};

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
            queue
                .reserve(Holder::Keeper(by), &mut last)
                .map(|(number, datagram)| (number, datagram.payload.len()))
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
