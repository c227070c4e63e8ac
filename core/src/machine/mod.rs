//! The state machine itself: [`Core`], and its parts, which know each other.
//!
//! What comes in is in `input`. A part is a file: it adds methods to `Core` for what it is about.

mod address;
mod admission;
mod attach;
mod budget;
mod calls;
mod event;
mod file;
mod filter;
mod flow;
mod from_client;
mod harness;
pub mod input;
pub mod ioctl;
mod join;
mod keep;
mod limits;
#[cfg(test)]
mod model;
mod netdev;
mod queue;
#[cfg(test)]
mod replay;
mod request;
mod reserved;
#[cfg(test)]
mod rig;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod to_client;
mod tunnel;
mod wait;

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};

pub use self::{
    address::{Address, parse_name},
    admission::{Admission, NamePattern},
    budget::{Bound, Budget, Charge, Exhausted, Resource, User},
    event::{DropReason, Event},
    file::File,
    harness::CommandError,
    input::{Enter, Input},
    join::Peer,
    keep::Keeper,
    limits::{Limits, MAX_DATAGRAM},
    netdev::{
        Forward, Interface, Look, MadeNetdev, NetdevNews, NetdevPlan, NetdevRequest, NetdevSetting,
        NetdevState, Rights, Sent, Switch,
    },
    queue::Queue,
    request::{
        Credentials, FileId, IoctlCall, IoctlOutput, Op, Opener, Origin, Outcome, Output, ReadCall,
        Reply, Request, RequestId, Scope, UserRange, WakeHandle, WriteCall,
    },
    settings::{SettingError, Settings},
    to_client::{Delivery, Injection, Wrap},
    tunnel::{Count, Counters, Tunnel, TunnelId},
    wait::{Answer, Condition, WaitId},
};
use self::{budget::Users, calls::too_many, table::Table};
use crate::{
    abi::tun,
    bpf,
    datagram::{self, Datagram, Head, MacAddress, Mode, offload},
    time::Instant,
};

/// A peer outside of the core, as the hub numbers them: whatever takes a tunnel's from-client datagrams as soon as there
/// are any, instead of the harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct PeerId(pub u32);

/// The state machine; see the [crate].
#[derive(Debug)]
pub struct Core {
    limits: Limits,
    files: Table<FileId, File>,
    tunnels: Table<TunnelId, Tunnel>,
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
    reservations: reserved::Reservations,
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
            files: Table::default(),
            tunnels: Table::default(),
            names: BTreeMap::new(),
            waits: wait::Waits::default(),
            now: Instant::ORIGIN,
            netdevs: netdev::Netdevs::default(),
            reservations: reserved::Reservations::default(),
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
        self.files.values().filter(|file| file.is_shown)
    }

    /// The tunnels, oldest first; with those that are gone but not taken empty.
    pub fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.values().filter(|tunnel| tunnel.is_shown)
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
            let known = self.tunnels.get(id).filter(|tunnel| tunnel.is_shown);
            return known.map(|tunnel| tunnel.id).ok_or_else(unknown);
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
