//! What clients ask: open, read, poll and close, after `tun_fops` in `drivers/net/tun.c`. Writes are in `from_client`, the
//! ioctls in `ioctl`.

use alloc::{boxed::Box, collections::btree_map::Entry};

use bytes::Bytes;

use super::{
    Core, DropReason, Event, Exhausted, FileId, Interface, Op, Opener, Outcome, Output, ReadCall,
    Reply, Request, RequestId, Resource, WakeHandle,
    file::{FILE_MEMORY, File, FileCharges, ParkedRead},
    queue::{Holder, Kept},
    reserved::Reserved,
};
use crate::{
    abi::tun,
    datagram::{self, Head, Part},
    errno::Errno,
};

impl Core {
    /// Answers a request, unless it is parked or the kernel is to be asked first.
    pub(super) fn request(&mut self, request: Request) {
        if self.netdevs.is_in_use() || self.reservations.is_in_use() {
            self.request_in_turn(request);
        } else {
            self.perform(request);
        }
    }

    /// The same, where there are network devices, or outcomes that may not reach their clients.
    fn request_in_turn(&mut self, request: Request) {
        if self.must_wait_for_outcome(&request) {
            return self.wait_for_outcome(request);
        }
        match self.look_before(&request) {
            Some(look) => {
                if let Op::Poll { file, arm } = request.op
                    && let Some(file) = self.files.get_mut(&file)
                {
                    // Before it is looked at, so that nothing comes in between.
                    file.waker = arm.or(file.waker);
                }
                self.outputs.push(Output::Refresh(look, Box::new(request)));
            }
            None => self.perform(request),
        }
    }

    /// The same, of a client whose tunnel's link has been looked at.
    pub(super) fn perform_in_turn(&mut self, request: Request) {
        if self.must_wait_for_outcome(&request) {
            self.wait_for_outcome(request);
        } else {
            self.perform(request);
        }
    }

    fn perform(&mut self, request: Request) {
        let id = request.id;
        let outcome = match request.op {
            Op::Read(file, call) => self.read(id, file, call),
            Op::Write(file, call) => self.send_from_client(id, file, call),
            Op::Poll { file, arm } => Some(self.poll(file, arm)),
            Op::Ioctl(file, call) => self.ioctl(id, file, call),
            Op::Open { flags, opener } => Some(self.open(id, flags, opener)),
            Op::Close(file) => self.close_with_netdev(id, file),
        };
        if let Some(outcome) = outcome {
            self.outputs.push(Output::Complete(id, outcome));
        }
    }

    pub(super) fn cancel(&mut self, id: RequestId) -> bool {
        if self.is_waiting_for_netdev(id) || self.cancel_waiting(id) {
            return true;
        }
        // Several front ends may serve one file.
        let is_it = |read: &ParkedRead| read.id == id;
        let parked = self
            .files
            .values()
            .find_map(|file| file.parked.iter().position(is_it).map(|at| (file.id, at)));
        let Some((file, at)) = parked else { return false };
        if let Some(file) = self.files.get_mut(&file) {
            file.parked.remove(at);
        }
        self.outputs.push(Output::Complete(id, Err(Errno::EINTR)));
        true
    }

    /// Its client is dead: no close of what it opened will come.
    pub(super) fn take_back(&mut self, request: RequestId) {
        let opened = self.files.values().find(|file| file.opened_by == request);
        if let Some(file) = opened.map(|file| file.id) {
            // Nobody waits for the answer.
            let _closed = self.close(file);
        }
    }

    fn open(&mut self, by: RequestId, flags: u32, opener: Opener) -> Outcome {
        let charges = match self.charge_file(&opener) {
            Ok(charges) => charges,
            Err(errno) => {
                self.outputs.push(Output::Left(opener.scope));
                return Err(errno);
            }
        };
        self.last_file += 1;
        let id = FileId(self.last_file);
        let mut file = File::new(id, by, flags, opener, charges);
        file.is_shown = false;
        self.files.insert(id, file);
        if self.reports(by) {
            self.reserve(by, Reserved::Open(id));
        } else {
            self.show_opened(id);
        }
        Ok(Reply::Opened(id))
    }

    /// From now on harnesses see the file.
    pub(super) fn show_opened(&mut self, id: FileId) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.is_shown = true;
        let (pid, command) = (file.opener.pid, file.opener.command.clone());
        self.event(|| Event::Opened { file: id, pid, command });
    }

    /// What a file takes, its user's place for its namespace included.
    fn charge_file(&mut self, opener: &Opener) -> Result<FileCharges, Errno> {
        let user = self.users.get(opener.uid);
        let file = user.charge(Resource::Files, 1).map_err(too_many)?;
        let memory = self.charge_memory(&user, FILE_MEMORY).map_err(|_| Errno::ENOMEM)?;
        match self.namespaces.entry((opener.uid, opener.scope)) {
            Entry::Occupied(mut held) => held.get_mut().0 += 1,
            Entry::Vacant(place) => {
                let charge = user.charge(Resource::Namespaces, 1).map_err(too_many)?;
                place.insert((1, charge));
            }
        }
        Ok(FileCharges { user, file, memory })
    }

    fn leave_namespace(&mut self, opener: &Opener) {
        if let Entry::Occupied(mut held) = self.namespaces.entry((opener.uid, opener.scope)) {
            held.get_mut().0 -= 1;
            if held.get().0 == 0 {
                held.remove();
            }
        }
        self.outputs.push(Output::Left(opener.scope));
    }

    pub(super) fn close(&mut self, id: FileId) -> Outcome {
        let file = self.files.remove(&id).ok_or(Errno::EBADF)?;
        // The kernel closes a file only when no call is under way on it; an answer is owed all the same.
        for read in &file.parked {
            self.outputs.push(Output::Complete(read.id, Err(Errno::EBADFD)));
        }
        if let Some(tunnel) = file.tunnel {
            self.detach(id, tunnel);
        }
        self.leave_namespace(&file.opener);
        if file.is_shown {
            self.event(|| Event::Closed { file: id });
        }
        Ok(Reply::Closed)
    }

    /// `tun_chr_read_iter`; `None` if the read was parked.
    fn read(&mut self, id: RequestId, file_id: FileId, call: ReadCall) -> Option<Outcome> {
        let Some(file) = self.files.get_mut(&file_id) else { return Some(Err(Errno::EBADF)) };
        let Some(tunnel) = file.tunnel.and_then(|tunnel| self.tunnels.get_mut(&tunnel)) else {
            return Some(Err(Errno::EBADFD));
        };
        if call.limit == 0 {
            // tun_do_read: before there is a datagram, so that none is lost.
            return Some(Ok(Reply::Read { head: Head::default(), body: Bytes::new() }));
        }
        if call.offset > 0 {
            return Some(Ok(Reply::Read { head: Head::default(), body: file.continue_read(call) }));
        }
        file.set_nonblocking(call.nonblock);
        let reports = self.reservations.reports(id);
        if reports && file.queue.available() > 0 {
            return self.read_reserved(id, file_id, call.limit);
        }
        file.forget_rest();
        if let Some(Kept { datagram, charge }) = file.queue.pop_kept() {
            let length = datagram.payload.len();
            let outcome = file.deliver(&datagram, Some(charge), tunnel.framing(), call.limit);
            if outcome.is_err() {
                let tunnel = tunnel.id;
                self.count_to_client_drop(tunnel, DropReason::ReadTooShort, length);
            }
            return Some(outcome);
        }
        if call.nonblock {
            return Some(Err(Errno::EAGAIN));
        }
        if file.parked.len() >= self.limits.parked_reads {
            return Some(Err(Errno::ENOMEM));
        }
        let Ok(charge) = file.user.charge(Resource::ParkedReads, 1) else {
            return Some(Err(Errno::ENOMEM));
        };
        file.parked.push_back(ParkedRead { id, limit: call.limit, reports, _charge: charge });
        if tunnel.interface == Interface::Bridge {
            self.outputs.push(Output::Receive(tunnel.id, file_id));
        }
        None
    }

    /// The oldest datagram, for a read whose outcome may not reach its client; `None` if there is none.
    #[cold]
    fn read_reserved(&mut self, id: RequestId, file_id: FileId, limit: usize) -> Option<Outcome> {
        let file = self.files.get_mut(&file_id)?;
        let tunnel = file.tunnel.and_then(|tunnel| self.tunnels.get(&tunnel))?;
        let (number, datagram) = file.queue.reserve(Holder::Read, &mut self.last_kept)?;
        let read = datagram::read_part(&datagram, tunnel.framing(), limit);
        let lost = read.is_err().then_some((tunnel.id, datagram.payload.len()));
        self.reserve(id, Reserved::Read { file: file_id, number, lost });
        Some(read.map(|Part { head, body, .. }| Reply::Read { head, body }))
    }

    /// Parked reads get what has come to be in the queue; whether there was one.
    #[cold]
    pub(super) fn serve_parked(&mut self, file_id: FileId) -> bool {
        let mut any = false;
        while let Some(file) = self.files.get_mut(&file_id)
            && file.queue.available() > 0
            && let Some(ParkedRead { id, limit, .. }) = file.parked.pop_front()
        {
            let call = ReadCall { limit, offset: 0, nonblock: !file.is_blocking() };
            let outcome = self.read(id, file_id, call);
            self.outputs.extend(outcome.map(|outcome| Output::Complete(id, outcome)));
            any = true;
        }
        any
    }

    /// `tun_chr_poll`.
    fn poll(&mut self, id: FileId, arm: Option<WakeHandle>) -> Outcome {
        let file = self.files.get_mut(&id).ok_or(Errno::EBADF)?;
        // It stays armed as long as the file is open: the kernel does not say when the last poller leaves, and an
        // edge-triggered one polls once only.
        file.waker = arm.or(file.waker);
        let Some(tunnel) = file.tunnel.and_then(|tunnel| self.tunnels.get(&tunnel)) else {
            return Ok(Reply::Ready(tun::POLL_ERROR));
        };
        let mut ready = 0;
        if !file.queue.is_empty() {
            ready |= tun::POLL_READABLE;
        }
        if tunnel.up && file.has_room_to_send() {
            ready |= tun::POLL_WRITABLE;
        }
        Ok(Reply::Ready(ready))
    }
}

/// What the client gets that finds too many of something.
pub(super) fn too_many(exhausted: Exhausted) -> Errno {
    match exhausted {
        Exhausted::Share => Errno::EMFILE,
        Exhausted::All => Errno::ENFILE,
    }
}
