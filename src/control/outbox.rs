//! Lines on their way out of a socket. They are sent at once if the socket takes them, otherwise by a thread of the outbox.
//!
//! The reader of a socket may be slow or gone. The threads that send must not wait for it: one of them serves the device. So
//! [`Outbox::send`] never blocks, and queues what the socket does not take at once.

use std::{
    collections::VecDeque,
    io::IoSlice,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf, Bytes};
use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, Shutdown, sendmsg, shutdown},
};

use crate::{
    core::{Charge, Resource, User},
    planted,
};

/// Something to send: bytes in two pieces, of which the second may be shared with other outboxes, and perhaps a descriptor.
#[derive(Debug)]
struct Item {
    pieces: [Bytes; 2],
    descriptor: Option<OwnedFd>,
    /// The memory it takes while it waits.
    _charge: Charge,
}

impl Item {
    fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Takes off what was sent.
    fn advance(&mut self, sent: usize) {
        let of_first = sent.min(self.pieces[0].len());
        self.pieces[0].advance(of_first);
        self.pieces[1].advance(sent - of_first);
        // It goes with the first byte.
        self.descriptor = None;
    }
}

/// What will be sent, and counts already.
#[derive(Debug)]
pub(crate) struct Announced(Item);

/// The sending half of a stream or packet socket.
#[derive(Debug)]
pub(crate) struct Outbox {
    socket: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes that may be queued.
    limit: usize,
    /// Whose memory what is queued is in.
    user: Arc<User>,
}

/// Bytes that an item takes beside its own.
const ITEM_MEMORY: usize = 128;

/// Places that an empty queue may hold on to.
const SPARE_PLACES: usize = 32;

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Item>,
    bytes: usize,
    /// The thread is in a blocking send; what follows must queue up behind it.
    sending: bool,
    /// Nothing more will come.
    finished: bool,
    closed: bool,
}

/// Something was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The queue is full, or there is no memory.
    Full,
    /// The other end is gone.
    Closed,
}

impl Outbox {
    /// An outbox for a socket, in the memory of a user; [`run`](Self::run) must be running.
    #[must_use]
    pub(crate) fn new(socket: OwnedFd, limit: usize, user: Arc<User>) -> Arc<Self> {
        Arc::new(Self { socket, state: Mutex::default(), changed: Condvar::new(), limit, user })
    }

    /// Sends bytes, or drops them if too many wait.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub(crate) fn try_send(&self, pieces: [Bytes; 2]) -> Result<(), Refused> {
        let state = self.lock();
        if state.bytes > self.limit {
            return Err(Refused::Full);
        }
        let length = pieces.iter().map(Bytes::len).sum::<usize>();
        let memory = self.user.charge_outside(Resource::Memory, ITEM_MEMORY + length);
        let charge = memory.map_err(|_| Refused::Full)?;
        self.send_locked(state, Item { pieces, descriptor: None, _charge: charge })
    }

    /// [`try_send`](Self::try_send) would refuse.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        self.lock().bytes > self.limit
    }

    /// Counts as queued what will come by [`send_announced`](Self::send_announced).
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub(crate) fn announce(
        &self,
        bytes: Bytes,
        descriptor: Option<OwnedFd>,
    ) -> Result<Announced, Refused> {
        let item = self.answer(bytes, descriptor)?;
        self.lock().bytes += item.len();
        Ok(Announced(item))
    }

    /// Sends what was announced.
    ///
    /// # Errors
    ///
    /// [`Refused::Closed`].
    pub(crate) fn send_announced(&self, Announced(item): Announced) -> Result<(), Refused> {
        let mut state = self.lock();
        state.bytes -= item.len();
        self.changed.notify_all();
        self.send_locked(state, item)
    }

    /// Sends bytes and perhaps a descriptor, however many wait: for what was asked for, once. If there is no memory even for
    /// answers, the outbox closes: its reader has asked for a lot, and reads nothing.
    ///
    /// # Errors
    ///
    /// [`Refused::Closed`].
    pub(crate) fn send(&self, bytes: Bytes, descriptor: Option<OwnedFd>) -> Result<(), Refused> {
        let item = self.answer(bytes, descriptor)?;
        self.send_locked(self.lock(), item)
    }

    /// Waits until less than the limit is queued: for whoever can be made to slow down.
    pub(crate) fn wait_for_room(&self) {
        let mut state = self.lock();
        while state.bytes > self.limit && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends what is queued, until the outbox is finished or its reader gone; the body of its thread.
    pub(crate) fn run(&self) {
        let mut state = self.lock();
        loop {
            if state.closed {
                return;
            }
            let Some(mut item) = state.queue.pop_front() else {
                if state.finished {
                    state.closed = true;
                    // The reader sees the end, behind all that was sent. It fails only where the reader is gone.
                    let _gone = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.bytes -= item.len();
            if state.queue.capacity() > SPARE_PLACES && state.queue.is_empty() {
                state.queue = VecDeque::new();
            }
            state.sending = true;
            drop(state);
            planted::panic_at("outbox");
            let sent = self.send_all(&mut item);
            state = self.lock();
            state.sending = false;
            state.closed |= sent.is_err();
            self.changed.notify_all();
        }
    }

    /// Ends [`run`](Self::run) when all that is queued has been sent, and refuses what comes. A reader that neither reads nor
    /// closes its end holds it up.
    pub(crate) fn finish(&self) {
        self.lock().finished = true;
        self.changed.notify_all();
    }

    /// Ends [`run`](Self::run) and refuses what comes; what is queued is lost.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        // Ends a blocked send too. It fails only where the other end has closed already.
        let _already_closed = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        self.changed.notify_all();
    }

    fn answer(&self, bytes: Bytes, descriptor: Option<OwnedFd>) -> Result<Item, Refused> {
        let Ok(charge) = self.user.charge_answer(ITEM_MEMORY + bytes.len()) else {
            tracing::warn!(
                uid = self.user.uid(),
                "no memory is left for answers, closing a connection"
            );
            self.close();
            return Err(Refused::Closed);
        };
        Ok(Item { pieces: [bytes, Bytes::new()], descriptor, _charge: charge })
    }

    fn send_locked(&self, mut state: MutexGuard<'_, State>, mut item: Item) -> Result<(), Refused> {
        if state.closed || state.finished {
            return Err(Refused::Closed);
        }
        if state.queue.is_empty() && !state.sending {
            match self.send_some(&mut item, MsgFlags::MSG_DONTWAIT) {
                Ok(()) if item.len() == 0 => return Ok(()),
                Ok(()) | Err(Errno::EAGAIN) => {}
                Err(_) => {
                    state.closed = true;
                    self.changed.notify_all();
                    return Err(Refused::Closed);
                }
            }
        }
        state.bytes += item.len();
        state.queue.push_back(item);
        self.changed.notify_all();
        Ok(())
    }

    fn send_all(&self, item: &mut Item) -> Result<(), Errno> {
        while item.len() > 0 {
            self.send_some(item, MsgFlags::empty())?;
        }
        Ok(())
    }

    /// One send; what was sent is taken off the item.
    fn send_some(&self, item: &mut Item, flags: MsgFlags) -> Result<(), Errno> {
        let descriptor = item.descriptor.as_ref().map(|fd| [fd.as_fd().as_raw_fd()]);
        let rights = descriptor.as_ref().map(|fds| ControlMessage::ScmRights(fds));
        let sent = loop {
            let pieces = [IoSlice::new(&item.pieces[0]), IoSlice::new(&item.pieces[1])];
            let control = rights.as_slice();
            match sendmsg::<()>(
                self.socket.as_raw_fd(),
                &pieces,
                control,
                flags | MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Err(Errno::EINTR) => {}
                sent => break sent?,
            }
        };
        item.advance(sent);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream, thread};

    use super::*;
    use crate::core::{Bound, Core, Instant, Limits, input};

    fn user(memory: usize) -> Arc<User> {
        let limits = Limits { memory: Bound::unshared(memory), ..Limits::default() };
        Core::new(limits, 1).handle(Instant::ORIGIN, input::FindUser { uid: 1 })
    }

    #[test]
    fn what_waits_is_in_the_memory_of_a_user() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let user = user(1 << 20);
        let outbox = Outbox::new(writer.into(), 64 << 20, Arc::clone(&user));
        let piece = Bytes::from(vec![0; 100 << 10]);
        let sent =
            (0..100).take_while(|_| outbox.try_send([piece.clone(), Bytes::new()]).is_ok()).count();
        assert!((10..100).contains(&sent), "{sent} pieces");
        assert!(user.used(Resource::Memory) > 900 << 10);
        outbox.send(piece.clone(), None).unwrap();
        assert!(user.used(Resource::Memory) > 1 << 20, "an answer has more room");
        let answers = (0..100).take_while(|_| outbox.send(piece.clone(), None).is_ok()).count();
        assert!(answers < 11, "{answers} more");
        assert_eq!(outbox.send(Bytes::from_static(b"x"), None), Err(Refused::Closed));
        drop((reader, outbox));
        assert_eq!(user.used(Resource::Memory), 0);
    }

    #[test]
    fn a_slow_reader_gets_everything_in_order_and_holds_nobody_up() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let outbox = Outbox::new(writer.into(), 1 << 20, user(1 << 30));
        let runner = thread::spawn({
            let outbox = Arc::clone(&outbox);
            move || outbox.run()
        });
        let mut sent = Vec::new();
        let mut number = 0_u32;
        while sent.len() <= 2 << 20 {
            let piece = Bytes::from(number.to_ne_bytes().repeat(100));
            // Cut somewhere.
            let cut = usize::try_from(number).unwrap() % piece.len();
            if outbox.try_send([piece.slice(..cut), piece.slice(cut..)]).is_err() {
                break;
            }
            sent.extend_from_slice(&piece);
            number += 1;
        }
        assert!(sent.len() > 1 << 20, "the limit was reached after {} bytes", sent.len());
        assert!(outbox.is_full());
        assert_eq!(outbox.try_send([Bytes::from_static(b"x"), Bytes::new()]), Err(Refused::Full));
        let mut received = vec![0; sent.len()];
        reader.read_exact(&mut received).unwrap();
        assert!(received == sent, "bytes came in another order");
        outbox.wait_for_room();
        outbox.finish();
        assert_eq!(outbox.send(Bytes::from_static(b"x"), None), Err(Refused::Closed));
        runner.join().unwrap();
    }

    #[test]
    fn finished_outbox_sends_what_is_queued_or_ends_with_its_reader() {
        for reads in [true, false] {
            let (mut reader, writer) = UnixStream::pair().unwrap();
            let outbox = Outbox::new(writer.into(), 1 << 20, user(1 << 30));
            let sent = vec![7; 3 << 20];
            outbox.send(sent.clone().into(), None).unwrap();
            let runner = thread::spawn({
                let outbox = Arc::clone(&outbox);
                move || outbox.run()
            });
            outbox.finish();
            if reads {
                let mut received = Vec::new();
                reader.read_to_end(&mut received).unwrap();
                assert!(received == sent, "{} bytes, then the end", received.len());
            } else {
                drop(reader);
            }
            runner.join().unwrap();
        }
    }
}
