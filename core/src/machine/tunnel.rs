//! One emulated interface (kernel: `struct tun_struct` and its `net_device`).

use alloc::{collections::VecDeque, sync::Arc, vec::Vec};

use super::{
    Address, Charge, FileId, Interface, Limits, MacAddress, Mode, Peer, Scope, User,
    datagram::Framing,
    filter::{PacketFilter, TxFilter},
    flow::FlowTable,
    from_client::Withheld,
    queue::Queue,
};
use crate::abi::{
    tun::{ARPHRD_ETHER, ARPHRD_NONE, IfFlags, Name, Offload},
    virtio_net::VnetHeader,
};

/// A tunnel's number; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct TunnelId(pub u32);

/// What was counted, in datagrams and bytes since the tunnel was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Given to a reader or to a file's queue.
    pub to_client: Count,
    /// Written by a client.
    pub from_client: Count,
    /// Sent to a client and lost; [`DropReason`](super::DropReason) has the causes.
    pub to_client_dropped: Count,
    /// Written and lost, likewise.
    pub from_client_dropped: Count,
    /// Lost for want of memory, in either direction: counted in one of the two above, too.
    pub memory_dropped: Count,
    /// Sent by the kernel into the link beside the tunnel, and not given to a client.
    pub to_link: Count,
}

/// Datagrams and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub datagrams: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
}

impl Count {
    pub(super) fn add(&mut self, bytes: usize) {
        self.datagrams += 1;
        self.bytes += bytes as u64;
    }
}

/// Bytes that a tunnel takes without datagrams: itself, its places in maps, and an empty queue.
pub(super) const TUNNEL_MEMORY: usize = 2048;

/// By what a tunnel is known.
pub(super) struct Identity {
    pub(super) id: TunnelId,
    pub(super) name: Name,
    pub(super) requested_name: Name,
    pub(super) scope: Scope,
    pub(super) ifindex: u32,
    /// Who made it.
    pub(super) user: Arc<User>,
}

/// One emulated interface.
#[derive(Debug)]
pub struct Tunnel {
    pub(super) id: TunnelId,
    pub(super) name: Name,
    pub(super) requested_name: Name,
    pub(super) scope: Scope,
    pub(super) mode: Mode,
    pub(super) flags: IfFlags,
    pub(super) persistent: bool,
    pub(super) owner: Option<u32>,
    pub(super) group: Option<u32>,
    pub(super) ifindex: u32,
    pub(super) up: bool,
    /// Off, nothing reaches the client.
    pub(super) carrier: bool,
    pub(super) mtu: u32,
    /// How many datagrams a queue holds.
    pub(super) tx_queue_length: usize,
    pub(super) hwaddr: MacAddress,
    pub(super) link_type: u16,
    pub(super) vnet_header_size: i32,
    pub(super) vnet_little_endian: bool,
    pub(super) offload: Offload,
    pub(super) tx_filter: TxFilter,
    pub(super) packet_filter: PacketFilter,
    pub(super) flows: FlowTable,
    /// Files whose queue gets datagrams, by the index of the queue (kernel: `tfiles`).
    pub(super) queues: Vec<FileId>,
    /// Files whose queue TUNSETQUEUE has detached (kernel: `disabled`).
    pub(super) detached: Vec<FileId>,
    /// What clients wrote and the harness has not taken.
    pub(super) written: Queue,
    /// The file whose write is the newest in `written`.
    pub(super) last_writer: Option<FileId>,
    pub(super) peer: Option<Peer>,
    pub(super) interface: Interface,
    pub(super) counters: Counters,
    /// Deleted; kept only until the harness has taken what was written.
    pub(super) gone: bool,
    /// Clients know of it; the harness may.
    pub(super) is_shown: bool,
    /// Files whose TUNSETIFF is not known to have reached its client.
    pub(super) expected_files: usize,
    /// What clients wrote and is not passed on, for it is not known whether an outcome reached its client: oldest first.
    pub(super) withheld: VecDeque<Withheld>,
    /// Who made it.
    pub(super) user: Arc<User>,
    _charges: [Charge; 2],
}

impl Tunnel {
    /// A tunnel as TUNSETIFF makes it, except that it is up.
    ///
    /// DIFFERS: a tunnel without an interface starts up. The kernel's tun starts down, but here nobody could bring it up.
    pub(super) fn new(
        identity: Identity,
        mode: Mode,
        hwaddr: MacAddress,
        charges: [Charge; 2],
        limits: &Limits,
    ) -> Self {
        let Identity { id, name, requested_name, scope, ifindex, user } = identity;
        Self {
            flows: FlowTable::new(&user),
            user,
            _charges: charges,
            id,
            name,
            requested_name,
            scope,
            ifindex,
            mode,
            flags: IfFlags::empty(),
            persistent: false,
            owner: None,
            group: None,
            up: true,
            carrier: true,
            mtu: 1500,
            tx_queue_length: mode.tx_queue_length(),
            hwaddr,
            link_type: match mode {
                Mode::Tun => ARPHRD_NONE,
                Mode::Tap => ARPHRD_ETHER,
            },
            vnet_header_size: 10,
            vnet_little_endian: false,
            offload: Offload::empty(),
            tx_filter: TxFilter::default(),
            packet_filter: PacketFilter::default(),
            queues: Vec::new(),
            detached: Vec::new(),
            written: Queue::new(limits.written_datagrams, limits.written_bytes),
            last_writer: None,
            peer: None,
            interface: Interface::None,
            counters: Counters::default(),
            gone: false,
            is_shown: true,
            expected_files: 0,
            withheld: VecDeque::new(),
        }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> TunnelId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The name that was asked for: perhaps empty, or a template such as `tun%d`.
    #[must_use]
    pub fn requested_name(&self) -> &Name {
        &self.requested_name
    }

    /// The network namespace its name is in.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Layer 3 or layer 2.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The flags that TUNSETIFF gave it, without the mode.
    #[must_use]
    pub fn flags(&self) -> IfFlags {
        self.flags
    }

    /// It outlives its files.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// The user and the group that TUNSETOWNER and TUNSETGROUP set.
    #[must_use]
    pub fn owner(&self) -> (Option<u32>, Option<u32>) {
        (self.owner, self.group)
    }

    /// Clients can write to it.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Datagrams reach the client.
    #[must_use]
    pub fn has_carrier(&self) -> bool {
        self.carrier
    }

    /// Its number among the interfaces of its scope.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Maximum transmission unit in bytes.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Its Ethernet address, in tap mode.
    #[must_use]
    pub fn hwaddr(&self) -> Option<MacAddress> {
        (self.mode == Mode::Tap).then_some(self.hwaddr)
    }

    /// The attached files: first those whose queue gets datagrams, by its index.
    pub fn files(&self) -> impl Iterator<Item = FileId> {
        self.queues.iter().chain(&self.detached).copied()
    }

    /// Those among them whose queue TUNSETQUEUE has detached.
    pub(crate) fn detached_files(&self) -> impl Iterator<Item = FileId> {
        self.detached.iter().copied()
    }

    /// How many datagrams a queue holds.
    #[must_use]
    pub fn tx_queue_length(&self) -> usize {
        self.tx_queue_length
    }

    /// What clients wrote and the harness has not taken.
    #[must_use]
    pub fn written(&self) -> &Queue {
        &self.written
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What gets what clients write, if it is not the harness.
    #[must_use]
    pub fn peer(&self) -> Option<Peer> {
        self.peer
    }

    /// In whose share it is.
    #[must_use]
    pub fn user(&self) -> &Arc<User> {
        &self.user
    }

    /// The tunnel was deleted; it is kept until the harness has taken what was written.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// How its datagrams are framed.
    #[must_use]
    pub fn framing(&self) -> Framing {
        Framing::new(
            self.mode,
            self.flags,
            usize::try_from(self.vnet_header_size).unwrap_or(VnetHeader::SIZE),
        )
    }

    /// What its clients accept: nothing in a UDP tunnel unless the vnet header has room for that.
    pub(super) fn accepted(&self) -> Offload {
        let is_short = |size| size < VnetHeader::TUNNEL_SIZE;
        if self.framing().vnet.is_some_and(is_short) {
            self.offload - (Offload::UDP_TUNNEL_GSO | Offload::UDP_TUNNEL_GSO_CSUM)
        } else {
            self.offload
        }
    }

    /// Whether an address means it; a name may mean others too.
    pub(super) fn is_at(&self, address: &Address) -> bool {
        self.is_shown
            && match address {
                Address::Id(id) => self.id == *id,
                Address::Name(name) => self.name == *name,
                Address::Scoped(name, scope) => self.name == *name && self.scope == *scope,
            }
    }

    /// How many files are attached.
    pub(super) fn file_count(&self) -> usize {
        self.queues.len() + self.detached.len()
    }

    /// No file is attached, and none is about to be.
    pub(super) fn is_unused(&self) -> bool {
        self.file_count() == 0 && self.expected_files == 0
    }

    /// `tun_queue_resize`, of a queue that is empty.
    pub(super) fn new_queue(&self, limits: &Limits) -> Queue {
        Queue::new(self.tx_queue_length, limits.queue_bytes)
    }
}
