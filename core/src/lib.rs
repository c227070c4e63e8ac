//! The state machine: open files, tunnels, and the rules between them. Pure: no descriptor, no clock, no thread.
//!
//! # Theory of operation
//!
//! [`Core`] is driven from outside, by one function: [`Core::handle`] takes an [input](mod@input) and the time. An input is what
//! a client asks, what a harness wants, news of a network device, or that time has passed. It may leave work, which
//! [`Core::take_outputs`] hands out: requests to answer, pollers to wake, waits that are over. Whoever drives the core fetches that
//! after every input and performs it; the `Hub` of the crate `memtun` does. The same inputs give the same outputs.
//!
//! A read without a datagram is *parked*: its request simply stays unanswered until a datagram comes, the request is
//! cancelled, or the daemon ends. So no thread waits, however many readers do.
//!
//! Each request is answered exactly once. The behaviour is that of `drivers/net/tun.c`; where it cannot be, or should
//! not, a comment is tagged `DIFFERS:`.

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod abi;
mod address;
mod admission;
mod attach;
pub mod bpf;
mod budget;
pub mod datagram;
mod delivery;
pub mod errno;
mod event;
mod file;
mod filter;
mod flow;
mod harness;
mod headers;
pub mod input;
pub mod ioctl;
mod join;
mod keep;
#[cfg(test)]
mod model;
mod netdev;
pub mod offload;
#[cfg(test)]
mod replay;
mod request;
#[cfg(test)]
mod rig;
mod settings;
#[cfg(test)]
mod tests;
mod time;
mod tunnel;
mod wait;

use alloc::{
    boxed::Box,
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    vec::Vec,
};

use bytes::Bytes;

pub use self::{
    address::{Address, parse_name},
    admission::{Admission, NamePattern},
    budget::{Bound, Budget, Charge, Exhausted, Resource, User},
    datagram::{Datagram, MacAddress},
    delivery::Delivery,
    event::{DropReason, Event},
    file::{File, Queue},
    harness::{CommandError, Injection, Wrap},
    input::{Enter, Input},
    join::Peer,
    keep::Keeper,
    netdev::{
        Forward, Interface, Look, MadeNetdev, NetdevNews, NetdevPlan, NetdevRequest, NetdevSetting,
        NetdevState, Rights, Sent, Switch,
    },
    request::{
        Credentials, FileId, Head, IoctlCall, IoctlOutput, Op, Opener, Origin, Outcome, Output,
        ReadCall, Reply, Request, RequestId, Scope, UserRange, WakeHandle, WriteCall,
    },
    settings::{SettingError, Settings},
    time::Instant,
    tunnel::{Count, Counters, Mode, Tunnel, TunnelId},
    wait::{Answer, Condition, WaitId},
};
use self::{
    budget::Users,
    file::{FILE_MEMORY, FileCharges, Kept, ParkedRead},
};
use crate::{abi::tun, errno::Errno};

/// How much of everything there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of everything that grows. Beyond them datagrams are dropped, and open and TUNSETIFF get `ENOMEM`. What is kept of
    /// deleted tunnels makes room first.
    pub memory: Bound,
    /// Open files; the next open gets `EMFILE` for its user's limit, `ENFILE` for that of all.
    pub files: Bound,
    /// Tunnels, deleted ones with untaken datagrams included; the next TUNSETIFF gets `EMFILE` or `ENFILE`.
    pub tunnels: Bound,
    /// Deleted tunnels whose datagrams are kept; the oldest is given up for the next.
    pub gone_tunnels: Bound,
    /// Reads parked on one file; the next gets `ENOMEM`.
    pub parked_reads: usize,
    /// Reads parked on all files, likewise.
    pub all_parked_reads: Bound,
    /// Network namespaces from which files are open; the next open gets `EMFILE` or `ENFILE`.
    pub namespaces: Bound,
    /// The daemon's file descriptors for network devices and attached sockets; the next open gets `EMFILE` or `ENFILE`.
    pub descriptors: Bound,
    /// Connections to the control socket.
    pub connections: Bound,
    /// Bytes in one file's queue. Datagrams are limited too, as in the kernel: 500 on a tun, 1,000 on a tap.
    pub queue_bytes: usize,
    /// Datagrams that a tunnel keeps for the harness to take.
    pub written_datagrams: usize,
    /// Their bytes.
    pub written_bytes: usize,
    /// Datagrams of a bridged tunnel that the harness can take copies of: the latest.
    pub copied_datagrams: usize,
    /// Their bytes.
    pub copied_bytes: usize,
    /// Bytes of one injected datagram: the longest IP datagram with an Ethernet header and a VLAN tag.
    pub datagram: usize,
    /// Waits at one time.
    pub waits: Bound,
}

impl Limits {
    /// The limits of a resource.
    pub(crate) fn bound(&self, resource: Resource) -> Bound {
        match resource {
            Resource::Memory => self.memory,
            Resource::Files => self.files,
            Resource::Tunnels => self.tunnels,
            Resource::ParkedReads => self.all_parked_reads,
            Resource::Namespaces => self.namespaces,
            Resource::Descriptors => self.descriptors,
            Resource::Connections => self.connections,
            Resource::Waits => self.waits,
        }
    }
}

/// [`Limits::datagram`] of every daemon.
pub const MAX_DATAGRAM: usize = 65_535 + 18;

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: Bound::shared(256 << 20),
            files: Bound::shared(16_384),
            tunnels: Bound::shared(4_096),
            gone_tunnels: Bound::shared(64),
            parked_reads: 1_024,
            all_parked_reads: Bound::shared(65_536),
            namespaces: Bound::shared(1_024),
            descriptors: Bound::shared(16_384),
            connections: Bound { all: 160, user: 128 },
            queue_bytes: 80 << 20,
            written_datagrams: 4_096,
            written_bytes: 16 << 20,
            copied_datagrams: 1_024,
            copied_bytes: 4 << 20,
            datagram: MAX_DATAGRAM,
            waits: Bound { all: 2_048, user: 1_024 },
        }
    }
}

/// A peer outside of the core, as the hub numbers them: whatever takes a tunnel's from-client datagrams as soon as there
/// are any, instead of the harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u32);

/// The state machine; see the [module](self).
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    files: BTreeMap<FileId, File>,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    /// Tunnels that are not gone.
    names: BTreeMap<(Scope, tun::Name), TunnelId>,
    waits: wait::Waits,
    now: Instant,
    users: Users,
    /// How many files of a user are open from a namespace, and what holds the user's place for it.
    namespaces: BTreeMap<(u32, Scope), (usize, Charge)>,
    /// Tunnels that are gone but not taken empty, oldest first.
    gone: Vec<TunnelId>,
    netdevs: netdev::Netdevs,
    admission: Admission,
    outputs: Vec<Output>,
    observed: bool,
    random: fastrand::Rng,
    last_file: u64,
    last_tunnel: u32,
    last_ifindex: u32,
    last_kept: u64,
}

impl Core {
    /// A core without files; what is random in it (Ethernet addresses) follows from the seed.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            users: Users::new(&limits),
            namespaces: BTreeMap::new(),
            gone: Vec::new(),
            limits,
            files: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            names: BTreeMap::new(),
            waits: wait::Waits::default(),
            now: Instant::ORIGIN,
            netdevs: netdev::Netdevs::default(),
            admission: Admission::default(),
            outputs: Vec::new(),
            observed: false,
            random: fastrand::Rng::with_seed(seed),
            last_file: 0,
            last_tunnel: 0,
            last_ifindex: 0,
            last_kept: 0,
        }
    }

    // A. Getters.

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What all users have in use.
    #[must_use]
    pub fn budget(&self) -> &Arc<Budget> {
        self.users.budget()
    }

    /// The users that have something in use, or had lately.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.users.iter()
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
        let unknown = || CommandError::UnknownTunnel(address.clone());
        if let Address::Id(id) = address {
            return self.tunnels.contains_key(id).then_some(*id).ok_or_else(unknown);
        }
        let named = |tunnel: &&Tunnel| tunnel.is_at(address);
        let living = || self.tunnels.values().filter(|tunnel| !tunnel.gone).filter(named);
        match (living().next(), living().nth(1)) {
            (Some(tunnel), None) => Ok(tunnel.id),
            (None, _) => {
                self.tunnels.values().rfind(named).map(|tunnel| tunnel.id).ok_or_else(unknown)
            }
            (Some(first), Some(_)) => Err(CommandError::AmbiguousTunnel {
                name: first.name,
                scopes: living().map(|tunnel| tunnel.scope.0).collect(),
            }),
        }
    }

    // B. What goes in is in `input`. Work to hand out.

    /// Moves the work that is to be done into `into`, which must be empty; its storage is used in turn.
    pub fn take_outputs(&mut self, into: &mut Vec<Output>) {
        debug_assert!(into.is_empty(), "earlier outputs have been performed");
        core::mem::swap(&mut self.outputs, into);
    }

    /// When [`Timeout`](input::Timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waits.first_deadline()
    }
}

/// What clients ask.
impl Core {
    /// Answers a request, unless it is parked or the kernel is to be asked first.
    fn request(&mut self, request: Request) {
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
    fn perform(&mut self, request: Request) {
        let id = request.id;
        let outcome = match request.op {
            Op::Read(file, call) => self.read(id, file, call),
            Op::Write(file, call) => self.write(id, file, call),
            Op::Poll { file, arm } => Some(self.poll(file, arm)),
            Op::Ioctl(file, call) => self.ioctl(id, file, call),
            Op::Open { flags, opener } => Some(self.open(id, flags, opener)),
            Op::Close(file) => self.close_with_netdev(id, file),
        };
        if let Some(outcome) = outcome {
            self.outputs.push(Output::Complete(id, outcome));
        }
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        if self.is_waiting_for_netdev(id) {
            return true;
        }
        for file in self.files.values_mut().filter(|file| file.opened_by.origin == id.origin) {
            if let Some(at) = file.parked.iter().position(|read| read.id == id) {
                file.parked.remove(at);
                self.outputs.push(Output::Complete(id, Err(Errno::EINTR)));
                return true;
            }
        }
        false
    }

    /// Its client is dead: no close of what it opened will come.
    fn take_back(&mut self, request: RequestId) {
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
        self.event(|| Event::Opened { file: id, pid: opener.pid, command: opener.command.clone() });
        self.files.insert(id, File::new(id, by, flags, opener, charges));
        Ok(Reply::Opened(id))
    }

    /// What a file takes, its user's place for its namespace included.
    fn charge_file(&mut self, opener: &Opener) -> Result<FileCharges, Errno> {
        let user = self.users.get(opener.uid);
        let file = user.charge(Resource::Files, 1).map_err(too_many)?;
        let descriptor = match self.netdevs.is_in_use() {
            true => Some(user.charge(Resource::Descriptors, 1).map_err(too_many)?),
            false => None,
        };
        let memory = self.charge_memory(&user, FILE_MEMORY).map_err(|_| Errno::ENOMEM)?;
        match self.namespaces.entry((opener.uid, opener.scope)) {
            Entry::Occupied(mut held) => held.get_mut().0 += 1,
            Entry::Vacant(place) => {
                let charge = user.charge(Resource::Namespaces, 1).map_err(too_many)?;
                place.insert((1, charge));
            }
        }
        Ok(FileCharges { user, file, descriptor, memory })
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

    fn close(&mut self, id: FileId) -> Outcome {
        let file = self.files.remove(&id).ok_or(Errno::EBADF)?;
        // The kernel closes a file only when no call is under way on it; an answer is owed all the same.
        for read in &file.parked {
            self.outputs.push(Output::Complete(read.id, Err(Errno::EBADFD)));
        }
        if let Some(tunnel) = file.tunnel {
            self.detach(id, tunnel);
        }
        self.leave_namespace(&file.opener);
        self.event(|| Event::Closed { file: id });
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
        file.forget_rest();
        file.set_nonblocking(call.nonblock);
        if let Some(Kept { datagram, charge }) = file.queue.pop_kept() {
            let length = datagram.payload.len();
            let outcome = file.deliver(&datagram, Some(charge), tunnel.framing(), call.limit);
            if outcome.is_err() {
                let (tunnel, name) = (tunnel.id, tunnel.name);
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
        let Ok(charge) = file.user.charge(Resource::ParkedReads, 1) else {
            return Some(Err(Errno::ENOMEM));
        };
        file.parked.push_back(ParkedRead { id, limit: call.limit, _charge: charge });
        if tunnel.interface == Interface::Bridge {
            self.outputs.push(Output::Receive(tunnel.id, file_id));
        }
        None
    }

    /// `tun_chr_write_iter`; `None` if the kernel is to take the datagram first.
    fn write(&mut self, id: RequestId, file_id: FileId, call: WriteCall) -> Option<Outcome> {
        let length = call.data.len();
        match self.check_write(file_id, call) {
            Err(errno) => Some(Err(errno)),
            Ok(None) => Some(Ok(Reply::Written(length))),
            Ok(Some((tunnel, datagram))) => self.forward(id, file_id, tunnel, datagram, length),
        }
    }

    /// Takes a write, or returns what the kernel is to take, and for which tunnel.
    fn check_write(
        &mut self,
        file_id: FileId,
        call: WriteCall,
    ) -> Result<Option<(TunnelId, Datagram)>, Errno> {
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
            return Ok(None);
        }
        let datagram = datagram::parse_write(call.data, tunnel.framing())?;
        if tunnel.interface == Interface::Bridge {
            return Ok(Some((tunnel.id, datagram)));
        }
        if !tunnel.up {
            return Err(Errno::EIO);
        }
        if file.detached && tunnel.flags.contains(tun::IfFlags::NAPI) {
            return Err(Errno::EBUSY);
        }
        tunnel.learn_flow(file_id, &datagram);
        self.send_to_harness(file_id, datagram);
        Ok(None)
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
fn too_many(exhausted: Exhausted) -> Errno {
    match exhausted {
        Exhausted::Share => Errno::EMFILE,
        Exhausted::All => Errno::ENFILE,
    }
}

/// A write that the kernel split is joined up to this many bytes.
const MAX_JOINED_WRITE: usize = 8 << 20;

/// What the parts share.
impl Core {
    /// Tells the pollers of a file, whether or not it was ready before: an edge-triggered one counts every event. Several
    /// at once are one.
    fn wake(&mut self, file: FileId) {
        let woken =
            self.files.get(&file).and_then(|file| Some((file.opened_by.origin, file.waker?)));
        let Some((origin, handle)) = woken else { return };
        let is_told = matches!(
            self.outputs.last(),
            Some(Output::Wake(last, waker)) if (*last, *waker) == (origin, handle)
        );
        if !is_told {
            self.outputs.push(Output::Wake(origin, handle));
        }
    }

    fn event(&mut self, event: impl FnOnce() -> Event) {
        if self.observed {
            self.outputs.push(Output::Event(event()));
        }
    }

    /// Charges a user for memory. What is kept of deleted tunnels makes room: the user's, or anybody's where all is in use.
    fn charge_memory(&mut self, user: &Arc<User>, amount: usize) -> Result<Charge, Exhausted> {
        loop {
            match user.charge(Resource::Memory, amount) {
                Ok(charge) => return Ok(charge),
                Err(exhausted) => self.reclaim(user.uid(), exhausted)?,
            }
        }
    }

    /// Gives up the oldest of what is kept of deleted tunnels, where that makes room for a user.
    fn reclaim(&mut self, uid: u32, exhausted: Exhausted) -> Result<(), Exhausted> {
        let makes_room = |id: &&TunnelId| match exhausted {
            Exhausted::All => true,
            Exhausted::Share => self.tunnels.get(id).is_some_and(|tunnel| tunnel.user.uid() == uid),
        };
        let oldest = self.gone.iter().find(makes_room).copied().ok_or(exhausted)?;
        self.lose_gone(oldest);
        Ok(())
    }

    fn tunnel_of_mut(&mut self, file: FileId) -> Option<&mut Tunnel> {
        let tunnel = self.files.get(&file)?.tunnel?;
        self.tunnels.get_mut(&tunnel)
    }

    /// A tunnel that is not gone.
    fn living_mut(&mut self, id: TunnelId) -> Result<&mut Tunnel, CommandError> {
        self.tunnels
            .get_mut(&id)
            .filter(|tunnel| !tunnel.gone)
            .ok_or(CommandError::UnknownTunnel(Address::Id(id)))
    }

    fn tunnel_or_unknown(&self, id: TunnelId) -> Result<&Tunnel, CommandError> {
        self.tunnels.get(&id).ok_or(CommandError::UnknownTunnel(Address::Id(id)))
    }
}
