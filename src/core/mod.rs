//! The state machine: open files, tunnels, and the rules between them. Pure: no descriptor, no clock, no thread.
//!
//! # Theory of operation
//!
//! [`Core`] is driven from outside. What clients do comes in through [`Core::handle_request`] and
//! [`Core::handle_cancel`], the passing of time through [`Core::handle_timeout`], and what the harness does through the
//! commands: [`inject`](Core::inject), [`take`](Core::take), [`wait`](Core::wait), [`set_link`](Core::set_link) and so
//! on. Each may leave work, which [`Core::take_outputs`] hands out: requests to answer, pollers to wake, waits that are
//! over. Whoever drives the core fetches that after every call and performs it; `Hub` does.
//!
//! A read without a datagram is *parked*: its request simply stays unanswered until a datagram comes, the request is
//! cancelled, or the daemon ends. So no thread waits, however many readers do.
//!
//! Each request is answered exactly once. The behaviour is that of `drivers/net/tun.c`; where it cannot be, or should
//! not, a comment is tagged `DIFFERS:`.

mod address;
mod attach;
pub mod datagram;
mod event;
mod file;
pub mod ioctl;
mod request;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;
mod tunnel;
mod wait;

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;

pub use self::{
    address::Address,
    datagram::{Datagram, MacAddress},
    event::{DropReason, Event},
    file::{File, Queue},
    request::{
        FileId, Head, IoctlCall, IoctlOutput, Op, Opener, Origin, Outcome, Output, ReadCall, Reply,
        Request, RequestId, Scope, WakeHandle, WriteCall,
    },
    tunnel::{Count, Counters, Mode, Tunnel, TunnelId},
    wait::{Answer, Condition, WaitId},
};
use self::{file::ParkedRead, wait::Wait};
use crate::{abi::tun, errno::Errno};

/// How much of everything there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open files; the next open gets `ENFILE`.
    pub files: usize,
    /// Tunnels, deleted ones with untaken datagrams included; the next TUNSETIFF gets `ENFILE`.
    pub tunnels: usize,
    /// Deleted tunnels whose datagrams are kept; the oldest is given up for the next.
    pub gone_tunnels: usize,
    /// Reads parked on one file; the next gets `ENOMEM`.
    pub parked_reads: usize,
    /// Bytes in one file's queue. Datagrams are limited too, as in the kernel: 500 on a tun, 1,000 on a tap.
    pub queue_bytes: usize,
    /// Datagrams that a tunnel keeps for the harness to take.
    pub written_datagrams: usize,
    /// Their bytes.
    pub written_bytes: usize,
    /// Bytes of one injected datagram: the longest IP datagram with an Ethernet header and a VLAN tag.
    pub datagram: usize,
    /// Waits at one time.
    pub waits: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            files: 16_384,
            tunnels: 4_096,
            gone_tunnels: 64,
            parked_reads: 1_024,
            queue_bytes: 80 << 20,
            written_datagrams: 4_096,
            written_bytes: 64 << 20,
            datagram: 65_535 + 18,
            waits: 1_024,
        }
    }
}

/// A peer, as the hub numbers them: whatever takes a tunnel's from-client datagrams at once, instead of the queue that
/// the harness takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// Why the harness does not get what it asked of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No tunnel answers to the address.
    #[error("no tunnel {0}; 'memtun list' shows those there are")]
    UnknownTunnel(Address),
    /// Several scopes have a tunnel of that name.
    #[error(
        "tunnel {name} is ambiguous; say {name}@SCOPE with one of the scopes {scopes:?}, or #ID"
    )]
    AmbiguousTunnel {
        /// The name.
        name: tun::Name,
        /// The scopes that have it.
        scopes: Vec<u64>,
    },
    /// No client has the tunnel open.
    #[error("tunnel {0} has no open file: no client would read the datagram")]
    NotAttached(tun::Name),
    /// The tunnel is down.
    #[error("tunnel {0} is down; bring it up with 'memtun set {0} up'")]
    Down(tun::Name),
    /// The client does not read fast enough.
    #[error(
        "the queue of tunnel {name} is full with {datagrams} datagrams; wait until the client has read some"
    )]
    QueueFull {
        /// The tunnel.
        name: tun::Name,
        /// How many datagrams wait.
        datagrams: usize,
    },
    /// The datagram has no bytes.
    #[error("the datagram is empty; give at least one byte")]
    EmptyDatagram,
    /// The datagram is too long.
    #[error("the datagram has {length} bytes; at most {limit} can be injected")]
    OversizedDatagram {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A tap takes frames, and this is not something an Ethernet header can be made for.
    #[error(
        "tunnel {0} is a tap and the datagram is neither IPv4 nor IPv6; inject a whole frame with --frame"
    )]
    NotIp(tun::Name),
    /// A tun takes no frames.
    #[error(
        "tunnel {0} is a tun, which carries no frames; leave out --frame and the Ethernet addresses"
    )]
    NotTap(tun::Name),
    /// A client read the datagram with less room than its headers take, and lost it, as on the kernel's tun.
    #[error(
        "the client's read on tunnel {0} had no room for the headers and got EINVAL; the datagram is lost"
    )]
    ReadTooShort(tun::Name),
    /// Somebody else takes the tunnel's datagrams.
    #[error("tunnel {0} has a peer already; close that one first")]
    HasPeer(tun::Name),
    /// More was asked for than the tunnel ever keeps.
    #[error("{count} datagrams can never be there at once; ask for 1 to {limit}")]
    BadCount {
        /// What was asked for.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many waits.
    #[error("{0} waits are open, the limit; end some first")]
    TooManyWaits(usize),
}

/// How bytes become a datagram on their way to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wrap {
    /// Untouched.
    #[default]
    Raw,
    /// Untouched, and only to a tap.
    Frame,
    /// On a tap, an Ethernet header is put before an IP datagram; on a tun, untouched.
    Ethernet {
        /// Default: the tunnel's own address.
        source: Option<MacAddress>,
        /// Default: broadcast.
        destination: Option<MacAddress>,
    },
}

/// What became of an injected datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A blocked read got it.
    Read,
    /// It waits in a queue of so many datagrams, itself included.
    Queued(usize),
}

/// The state machine; see the [module](self).
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    files: BTreeMap<FileId, File>,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    /// Tunnels that are not gone.
    names: BTreeMap<(Scope, tun::Name), TunnelId>,
    waits: Vec<Wait>,
    outputs: Vec<Output>,
    observed: bool,
    random: fastrand::Rng,
    last_file: u64,
    last_tunnel: u32,
}

impl Core {
    /// A core without files; what is random in it (Ethernet addresses) follows from the seed.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            files: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            names: BTreeMap::new(),
            waits: Vec::new(),
            outputs: Vec::new(),
            observed: false,
            random: fastrand::Rng::with_seed(seed),
            last_file: 0,
            last_tunnel: 0,
        }
    }

    // A. Getters.

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The open files, oldest first.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.files.values()
    }

    /// The tunnels, oldest first; with those that are gone but not taken empty.
    pub fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.values()
    }

    /// An open file.
    #[must_use]
    pub fn file(&self, id: FileId) -> Option<&File> {
        self.files.get(&id)
    }

    /// A tunnel.
    #[must_use]
    pub fn tunnel(&self, id: TunnelId) -> Option<&Tunnel> {
        self.tunnels.get(&id)
    }

    /// The tunnel at an address. A name means a living tunnel first, else the youngest of those that are gone.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`], or [`CommandError::AmbiguousTunnel`] if several scopes have the name.
    pub fn find(&self, address: &Address) -> Result<TunnelId, CommandError> {
        let named = |tunnel: &&Tunnel| match address {
            Address::Id(id) => tunnel.id == *id,
            Address::Name(name) => tunnel.name == *name,
            Address::Scoped(name, scope) => tunnel.name == *name && tunnel.scope == *scope,
        };
        let living: Vec<&Tunnel> =
            self.tunnels.values().filter(|tunnel| !tunnel.gone).filter(named).collect();
        match living[..] {
            [tunnel] => Ok(tunnel.id),
            [] => self
                .tunnels
                .values()
                .rfind(named)
                .map(|tunnel| tunnel.id)
                .ok_or_else(|| CommandError::UnknownTunnel(address.clone())),
            [first, ..] => Err(CommandError::AmbiguousTunnel {
                name: first.name,
                scopes: living.iter().map(|tunnel| tunnel.scope.0).collect(),
            }),
        }
    }

    // B. Things that happened.

    /// A client asks something. The answer is among the outputs, unless the request was parked.
    pub fn handle_request(&mut self, request: Request) {
        let id = request.id;
        let outcome = match request.op {
            Op::Read(file, call) => match self.read(id, file, call) {
                Some(outcome) => outcome,
                None => {
                    self.settle_waits();
                    return;
                }
            },
            Op::Write(file, call) => self.write(file, call),
            Op::Poll { file, arm } => self.poll(file, arm),
            Op::Ioctl(file, call) => ioctl::perform(self, file, &call),
            Op::Open { flags, opener } => self.open(id.origin, flags, opener),
            Op::Close(file) => self.close(file),
        };
        self.outputs.push(Output::Complete(id, outcome));
        self.settle_waits();
    }

    /// The caller of a request got a signal: a parked read ends with `EINTR`. False if the request is not known here:
    /// it has been answered, or is still to come.
    pub fn handle_cancel(&mut self, id: RequestId) -> bool {
        for file in self.files.values_mut().filter(|file| file.origin == id.origin) {
            if let Some(at) = file.parked.iter().position(|read| read.id == id) {
                file.parked.remove(at);
                self.outputs.push(Output::Complete(id, Err(Errno::EINTR)));
                return true;
            }
        }
        false
    }

    /// A file whose opener died before it learnt of it: closed without anybody asking.
    pub fn forget(&mut self, file: FileId) {
        // Nobody waits for the answer.
        let _closed = self.close(file);
        self.settle_waits();
    }

    /// It is so late: waits whose deadline has come end.
    pub fn handle_timeout(&mut self, now: Instant) {
        let (due, waits) = std::mem::take(&mut self.waits)
            .into_iter()
            .partition(|wait| wait.deadline.is_some_and(|at| at <= now));
        self.waits = waits;
        for Wait { id, condition, .. } in due {
            let available = match condition {
                Condition::Take(tunnel, _) => {
                    self.tunnels.get(&tunnel).map_or(0, |tunnel| tunnel.written.len())
                }
                Condition::Attached(_)
                | Condition::Detached(_)
                | Condition::Reading(_)
                | Condition::Written(_) => 0,
            };
            self.outputs.push(Output::Answer(id, Answer::TimedOut(available)));
        }
    }

    // C. Commands of the harness.

    /// Puts a datagram on its way to the client.
    ///
    /// # Errors
    ///
    /// Says why nothing was delivered; a full queue and a read without room for the headers are counted as drops.
    pub fn inject(
        &mut self,
        to: TunnelId,
        bytes: Bytes,
        wrap: Wrap,
    ) -> Result<Delivery, CommandError> {
        let tunnel = self.tunnel_or_unknown(to)?;
        let name = tunnel.name;
        if tunnel.files.is_empty() {
            return Err(CommandError::NotAttached(name));
        }
        if !tunnel.up {
            return Err(CommandError::Down(name));
        }
        let payload = wrapped(tunnel, bytes, wrap)?;
        let (length, limit) = (payload.len(), self.limits.datagram);
        if length > limit {
            return Err(CommandError::OversizedDatagram { length, limit });
        }
        let delivery = self.send_to_client(to, payload.into());
        self.settle_waits();
        delivery
    }

    /// Removes the oldest datagram that clients wrote.
    pub fn take(&mut self, from: TunnelId) -> Option<Datagram> {
        let tunnel = self.tunnels.get_mut(&from)?;
        let datagram = tunnel.written.pop();
        if tunnel.gone && tunnel.written.is_empty() {
            self.tunnels.remove(&from);
        }
        datagram
    }

    /// Brings a tunnel up or down. Down, writes get `EIO` and polls no `POLLOUT`; what is queued can still be read.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`].
    pub fn set_link(&mut self, of: TunnelId, up: bool) -> Result<(), CommandError> {
        self.tunnel_or_unknown(of)?;
        let Some(tunnel) = self.tunnels.get_mut(&of) else { return Ok(()) };
        if std::mem::replace(&mut tunnel.up, up) != up {
            let name = tunnel.name;
            if up {
                let files = tunnel.files.clone();
                files.iter().for_each(|file| self.wake(*file));
            }
            self.event(|| Event::Link { tunnel: of, name, up });
        }
        Ok(())
    }

    /// Gives a tunnel a peer, which is sent what clients wrote so far and all they write from now on.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`], [`CommandError::HasPeer`].
    pub fn set_peer(&mut self, of: TunnelId, peer: PeerId) -> Result<(), CommandError> {
        self.tunnel_or_unknown(of)?;
        let Some(tunnel) = self.tunnels.get_mut(&of) else { return Ok(()) };
        if tunnel.peer.is_some() {
            return Err(CommandError::HasPeer(tunnel.name));
        }
        tunnel.peer = Some(peer);
        while let Some(datagram) = tunnel.written.pop() {
            self.outputs.push(Output::Forward(peer, datagram));
        }
        Ok(())
    }

    /// The peer has left; what clients write is kept for the harness again.
    pub fn clear_peer(&mut self, peer: PeerId) {
        for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.peer == Some(peer)) {
            tunnel.peer = None;
        }
    }

    /// A peer could not take a datagram that a client wrote.
    pub fn count_peer_drop(&mut self, peer: PeerId, length: usize) {
        let Some(tunnel) = self.tunnels.values_mut().find(|tunnel| tunnel.peer == Some(peer))
        else {
            return;
        };
        tunnel.counters.from_client_dropped.add(length);
        let (id, name) = (tunnel.id, tunnel.name);
        self.event(|| Event::Dropped { tunnel: id, name, reason: DropReason::PeerFull, length });
    }

    /// Answers when the condition holds, or at the deadline; at once if it holds now.
    ///
    /// # Errors
    ///
    /// [`CommandError::BadCount`], [`CommandError::TooManyWaits`], [`CommandError::UnknownTunnel`] for a tunnel to take
    /// from, and [`CommandError::AmbiguousTunnel`].
    pub fn wait(
        &mut self,
        id: WaitId,
        condition: Condition,
        deadline: Option<Instant>,
    ) -> Result<(), CommandError> {
        match &condition {
            Condition::Take(tunnel, count) => {
                self.tunnel_or_unknown(*tunnel)?;
                let (count, limit) = (*count, self.limits.written_datagrams);
                if !(1..=limit).contains(&count) {
                    return Err(CommandError::BadCount { count, limit });
                }
            }
            Condition::Attached(address)
            | Condition::Detached(address)
            | Condition::Reading(address)
            | Condition::Written(address) => {
                if let Err(error @ CommandError::AmbiguousTunnel { .. }) = self.find(address) {
                    return Err(error);
                }
            }
        }
        if self.waits.len() >= self.limits.waits {
            return Err(CommandError::TooManyWaits(self.limits.waits));
        }
        self.waits.push(Wait { id, condition, deadline });
        self.settle_waits();
        Ok(())
    }

    /// Nobody waits any more.
    pub fn cancel_wait(&mut self, id: WaitId) {
        self.waits.retain(|wait| wait.id != id);
    }

    /// Whether events are wanted.
    pub fn set_observed(&mut self, observed: bool) {
        self.observed = observed;
    }

    // D. Work to hand out.

    /// Moves the work that is to be done into `into`, which must be empty; its storage is used in turn.
    pub fn take_outputs(&mut self, into: &mut Vec<Output>) {
        debug_assert!(into.is_empty(), "earlier outputs have been performed");
        std::mem::swap(&mut self.outputs, into);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waits.iter().filter_map(|wait| wait.deadline).min()
    }
}

/// What clients ask.
impl Core {
    fn open(&mut self, origin: Origin, flags: u32, opener: Opener) -> Outcome {
        if self.files.len() >= self.limits.files {
            return Err(Errno::ENFILE);
        }
        self.last_file += 1;
        let id = FileId(self.last_file);
        let (pid, command) = (opener.pid, &opener.command);
        if self.observed {
            self.outputs.push(Output::Event(Event::Opened {
                file: id,
                pid,
                command: command.clone(),
            }));
        }
        self.files.insert(id, File::new(id, origin, flags, opener));
        Ok(Reply::Opened(id))
    }

    fn close(&mut self, id: FileId) -> Outcome {
        let file = self.files.remove(&id).ok_or(Errno::EBADF)?;
        // The kernel closes a file only when no call is under way on it; an answer is owed all the same.
        for read in &file.parked {
            self.outputs.push(Output::Complete(read.id, Err(Errno::EBADFD)));
        }
        if let Some(tunnel) = file.tunnel {
            self.detach(id, tunnel);
        }
        self.event(|| Event::Closed { file: id });
        Ok(Reply::Closed)
    }

    /// `tun_chr_read_iter`; `None` if the read was parked.
    fn read(&mut self, id: RequestId, file_id: FileId, call: ReadCall) -> Option<Outcome> {
        let Some(file) = self.files.get_mut(&file_id) else { return Some(Err(Errno::EBADF)) };
        let Some(tunnel) = file.tunnel.and_then(|tunnel| self.tunnels.get_mut(&tunnel)) else {
            return Some(Err(Errno::EBADFD));
        };
        if call.offset > 0 {
            return Some(Ok(Reply::Read { head: Head::default(), body: file.continue_read(call) }));
        }
        file.forget_rest();
        file.set_nonblocking(call.nonblock);
        if let Some(datagram) = file.queue.pop() {
            let outcome = file.deliver(&datagram, tunnel.framing(), call.limit);
            if outcome.is_err() {
                let (tunnel, name, length) = (tunnel.id, tunnel.name, datagram.payload.len());
                self.count_to_client_drop(tunnel, name, DropReason::ReadTooShort, length);
            }
            return Some(outcome);
        }
        if call.nonblock {
            return Some(Err(Errno::EAGAIN));
        }
        if file.parked.len() >= self.limits.parked_reads {
            return Some(Err(Errno::ENOMEM));
        }
        file.parked.push_back(ParkedRead { id, limit: call.limit });
        None
    }

    /// `tun_chr_write_iter`.
    fn write(&mut self, file_id: FileId, call: WriteCall) -> Outcome {
        let file = self.files.get_mut(&file_id).ok_or(Errno::EBADF)?;
        let tunnel =
            file.tunnel.and_then(|tunnel| self.tunnels.get_mut(&tunnel)).ok_or(Errno::EBADFD)?;
        file.set_nonblocking(call.nonblock);
        let length = call.data.len();
        if call.offset > 0 {
            let (id, name) = (tunnel.id, tunnel.name);
            if tunnel.last_writer == Some(file_id)
                && tunnel.written.append_to_newest(&call.data, MAX_JOINED_WRITE)
            {
                tunnel.counters.from_client.bytes += length as u64;
            } else {
                tunnel.counters.from_client_dropped.bytes += length as u64;
                self.event(|| Event::Dropped {
                    tunnel: id,
                    name,
                    reason: DropReason::Continuation,
                    length,
                });
            }
            return Ok(Reply::Written(length));
        }
        let datagram = datagram::parse_write(call.data, tunnel.framing())?;
        if !tunnel.up {
            return Err(Errno::EIO);
        }
        self.send_to_harness(file_id, datagram);
        Ok(Reply::Written(length))
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
        if tunnel.is_writable() {
            ready |= tun::POLL_WRITABLE;
        }
        Ok(Reply::Ready(ready))
    }
}

/// A write that the kernel split is joined up to this many bytes.
const MAX_JOINED_WRITE: usize = 8 << 20;

/// The two ways of a datagram.
impl Core {
    fn send_to_client(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
    ) -> Result<Delivery, CommandError> {
        let tunnel = self.tunnel_or_unknown(to)?;
        let (name, mode, framing) = (tunnel.name, tunnel.mode, tunnel.framing());
        let file_id = select_file(tunnel, &datagram).ok_or(CommandError::NotAttached(name))?;
        let file = self.files.get_mut(&file_id).ok_or(CommandError::NotAttached(name))?;
        let length = datagram.payload.len();
        let payload = self.observed.then(|| datagram.payload.clone());

        let delivery = if let Some(read) = file.parked.pop_front() {
            let outcome = file.deliver(&datagram, framing, read.limit);
            let was_read = outcome.is_ok();
            self.outputs.push(Output::Complete(read.id, outcome));
            if !was_read {
                self.count_to_client_drop(to, name, DropReason::ReadTooShort, length);
                return Err(CommandError::ReadTooShort(name));
            }
            Delivery::Read
        } else if file.queue.push(datagram) {
            let queued = file.queue.len();
            self.wake(file_id);
            Delivery::Queued(queued)
        } else {
            let datagrams = file.queue.len();
            self.count_to_client_drop(to, name, DropReason::QueueFull, length);
            return Err(CommandError::QueueFull { name, datagrams });
        };
        if let Some(tunnel) = self.tunnels.get_mut(&to) {
            tunnel.counters.to_client.add(length);
        }
        if let Some(payload) = payload {
            self.outputs.push(Output::Event(Event::ToClient { tunnel: to, name, mode, payload }));
        }
        Ok(delivery)
    }

    fn send_to_harness(&mut self, file: FileId, datagram: Datagram) {
        let Some(tunnel) = self.tunnel_of_mut(file) else { return };
        let (id, name, mode) = (tunnel.id, tunnel.name, tunnel.mode);
        let payload = datagram.payload.clone();
        tunnel.counters.from_client.add(payload.len());
        if let Some(peer) = tunnel.peer {
            self.outputs.push(Output::Forward(peer, datagram));
        } else if tunnel.written.push(datagram) {
            tunnel.last_writer = Some(file);
        } else {
            tunnel.last_writer = None;
            tunnel.counters.from_client_dropped.add(payload.len());
            let length = payload.len();
            self.event(|| Event::Dropped {
                tunnel: id,
                name,
                reason: DropReason::WriteBufferFull,
                length,
            });
        }
        self.event(|| Event::FromClient { tunnel: id, name, mode, payload });
    }

    fn count_to_client_drop(
        &mut self,
        id: TunnelId,
        name: tun::Name,
        reason: DropReason,
        length: usize,
    ) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.counters.to_client_dropped.add(length);
        }
        self.event(|| Event::Dropped { tunnel: id, name, reason, length });
    }
}

/// What the parts share.
impl Core {
    /// Tells the pollers of a file, whether or not it was ready before: an edge-triggered one counts every event.
    fn wake(&mut self, file: FileId) {
        if let Some((origin, handle)) =
            self.files.get(&file).and_then(|file| Some((file.origin, file.waker?)))
        {
            self.outputs.push(Output::Wake(origin, handle));
        }
    }

    fn event(&mut self, event: impl FnOnce() -> Event) {
        if self.observed {
            self.outputs.push(Output::Event(event()));
        }
    }

    fn tunnel_of_mut(&mut self, file: FileId) -> Option<&mut Tunnel> {
        let tunnel = self.files.get(&file)?.tunnel?;
        self.tunnels.get_mut(&tunnel)
    }

    fn tunnel_or_unknown(&self, id: TunnelId) -> Result<&Tunnel, CommandError> {
        self.tunnels.get(&id).ok_or(CommandError::UnknownTunnel(Address::Id(id)))
    }

    /// Answers the waits whose condition holds. Costs nothing while nobody waits.
    fn settle_waits(&mut self) {
        let mut at = 0;
        while let Some(wait) = self.waits.get(at) {
            match self.check(&wait.condition) {
                None => at += 1,
                Some(met) => {
                    let Wait { id, condition, .. } = self.waits.remove(at);
                    let answer = match (met, condition) {
                        (Answer::Met(Some(tunnel)), Condition::Take(_, count)) => {
                            Answer::Taken((0..count).filter_map(|_| self.take(tunnel)).collect())
                        }
                        (met, _) => met,
                    };
                    self.outputs.push(Output::Answer(id, answer));
                }
            }
        }
    }

    fn check(&self, condition: &Condition) -> Option<Answer> {
        let living = |address| {
            self.find(address)
                .ok()
                .and_then(|id| self.tunnels.get(&id))
                .filter(|tunnel| !tunnel.gone)
        };
        let met = |tunnel: &Tunnel| Answer::Met(Some(tunnel.id));
        match condition {
            Condition::Attached(address) => {
                living(address).filter(|tunnel| !tunnel.files.is_empty()).map(met)
            }
            Condition::Detached(address) => match living(address) {
                Some(tunnel) if tunnel.files.is_empty() => Some(met(tunnel)),
                Some(_) => None,
                None => Some(Answer::Met(None)),
            },
            Condition::Reading(address) => {
                living(address).filter(|tunnel| self.has_parked_read(tunnel)).map(met)
            }
            Condition::Written(address) => {
                let tunnel = self.tunnels.get(&self.find(address).ok()?)?;
                (!tunnel.written.is_empty()).then(|| met(tunnel))
            }
            Condition::Take(id, count) => match self.tunnels.get(id) {
                Some(tunnel) if tunnel.written.len() >= *count => Some(met(tunnel)),
                Some(tunnel) if !tunnel.gone => None,
                Some(_) | None => Some(Answer::Gone),
            },
        }
    }

    fn has_parked_read(&self, tunnel: &Tunnel) -> bool {
        tunnel.files.iter().filter_map(|id| self.files.get(id)).any(|file| !file.parked.is_empty())
    }
}

/// The bytes a client is to get.
fn wrapped(tunnel: &Tunnel, bytes: Bytes, wrap: Wrap) -> Result<Bytes, CommandError> {
    if bytes.is_empty() {
        return Err(CommandError::EmptyDatagram);
    }
    match (wrap, tunnel.mode) {
        (Wrap::Raw, _) | (Wrap::Frame, Mode::Tap) => Ok(bytes),
        (
            Wrap::Frame
            | Wrap::Ethernet { source: Some(_), .. }
            | Wrap::Ethernet { destination: Some(_), .. },
            Mode::Tun,
        ) => Err(CommandError::NotTap(tunnel.name)),
        (Wrap::Ethernet { .. }, Mode::Tun) => Ok(bytes),
        (Wrap::Ethernet { source, destination }, Mode::Tap) => {
            let (source, destination) =
                (source.unwrap_or(tunnel.hwaddr), destination.unwrap_or(MacAddress::BROADCAST));
            datagram::ethernet_frame(source, destination, &bytes)
                .ok_or(CommandError::NotIp(tunnel.name))
        }
    }
}

/// The queue a to-client datagram goes to: that of its flow, if there are several.
fn select_file(tunnel: &Tunnel, datagram: &Datagram) -> Option<FileId> {
    match tunnel.files[..] {
        [only] => Some(only),
        [] => None,
        ref several => {
            let hash = datagram::flow_hash(&datagram.payload, tunnel.mode);
            let index = hash % several.len() as u64;
            usize::try_from(index).ok().and_then(|index| several.get(index)).copied()
        }
    }
}
