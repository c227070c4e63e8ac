//! What passes between the core and the owner of network devices: what it wants of one, and what it is told.

use alloc::{boxed::Box, vec::Vec};

use super::super::{Credentials, Datagram, FileId, Head, MacAddress, RequestId, Scope, TunnelId};
use super::Interface;
use crate::{
    abi::tun::{IfFlags, Name},
    errno::Errno,
};

/// How a network device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct NetdevState {
    /// The network namespace that it is in by now.
    pub scope: Scope,
    /// Its index.
    pub index: u32,
    /// Its name by now.
    pub name: Name,
    /// Somebody brought it up.
    pub up: bool,
    /// It has a carrier.
    pub carrier: bool,
    /// Its MTU.
    pub mtu: u32,
    /// Its Ethernet address, if it has one.
    pub address: Option<MacAddress>,
    /// The length of its queue.
    pub queue_length: u32,
}

/// What can be set on a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub enum NetdevSetting {
    /// Up or down.
    Up(bool),
    /// The MTU.
    Mtu(u32),
    /// The Ethernet address.
    Address(MacAddress),
    /// The length of the queue.
    QueueLength(u32),
    /// The name.
    Name(Name),
    /// The carrier.
    Carrier(bool),
    /// It stays when nobody uses it.
    Persistent(bool),
    /// The user who may use it.
    Owner(u32),
    /// The group who may.
    Group(u32),
    /// `ARPHRD_*`.
    LinkType(u16),
    /// `TUN_F_*`: how the kernel may leave what it sends.
    Offload(u64),
}

/// What the core wants of a network device; answered by [`Netdev`](crate::input::Netdev).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub enum NetdevRequest {
    /// Make one, with a queue for a file; answered with [`NetdevNews::Made`].
    Make {
        /// The tunnel that it will stand beside.
        tunnel: TunnelId,
        /// The file.
        file: FileId,
        /// The namespace.
        scope: Scope,
        /// As TUNSETIFF has it.
        name: Name,
        /// As TUNSETIFF has them.
        flags: IfFlags,
        /// As TUNSETIFINDEX has it; 0 leaves it to the kernel.
        index: u32,
        /// What for.
        interface: Interface,
        /// What the client may do.
        rights: Rights,
    },
    /// Give a further file a queue; answered with [`NetdevNews::Done`].
    Open {
        /// The tunnel.
        tunnel: TunnelId,
        /// The file.
        file: FileId,
        /// As TUNSETIFF has them.
        flags: IfFlags,
        /// What the client may do.
        rights: Rights,
        /// The client's call.
        asker: RequestId,
    },
    /// A file's queue is not used any more.
    Close {
        /// The tunnel.
        tunnel: TunnelId,
        /// The file.
        file: FileId,
    },
    /// A file's queue gets datagrams from now on, or none; answered with [`NetdevNews::Done`].
    SetQueue {
        /// The tunnel.
        tunnel: TunnelId,
        /// The file.
        file: FileId,
        /// As TUNSETQUEUE has it.
        attached: bool,
        /// The client's call.
        asker: RequestId,
    },
    /// Set something; answered with [`NetdevNews::Done`] if somebody asked.
    Set {
        /// The tunnel.
        tunnel: TunnelId,
        /// What.
        setting: NetdevSetting,
        /// The client's call.
        asker: Option<RequestId>,
    },
    /// Remove it; answered with [`NetdevNews::Removed`].
    Remove {
        /// The tunnel.
        tunnel: TunnelId,
        /// Somebody deletes it. Else it is only not used any more, and stays if it is persistent.
        is_deleted: bool,
    },
}

/// Whose rights count where the kernel is asked for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub enum Rights {
    /// The caller has CAP_NET_ADMIN in the network namespace, and may do what whoever asks for it may.
    Admin,
    /// The kernel is to judge whether this caller may attach to a device that is there.
    Of {
        /// The caller.
        caller: Box<Credentials>,
        /// If there is no device of that name, one is made for it all the same.
        may_make: bool,
    },
}

/// What is to be known before a request can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub struct Look {
    /// How the network device beside this tunnel is, by [`NetdevNews::Changed`] or [`NetdevNews::Gone`].
    pub tunnel: TunnelId,
    /// What the kernel has sent, by [`NetdevDatagram`](crate::input::NetdevDatagram).
    pub sent: Sent,
}

/// What of that which the kernel has sent is to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub enum Sent {
    /// Nothing.
    Nothing,
    /// What there is for this file, as much as is wanted.
    To(FileId),
    /// All that there is.
    All,
}

/// What the core is told about a network device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum NetdevNews {
    /// It was made; or the tunnel is to do without (`None`); or the client's call ends with an error.
    Made(TunnelId, Result<Option<MadeNetdev>, Errno>),
    /// What was asked for a client's call was done, or not.
    Done(RequestId, Result<(), Errno>),
    /// It is no more.
    Removed(TunnelId),
    /// It has changed.
    Changed(TunnelId, NetdevState),
    /// Somebody deleted it.
    Gone(TunnelId),
    /// The kernel has sent something by the queue of a file.
    Readable(TunnelId, FileId),
    /// A tunnel that was there has got one, as planned; or it has not (`None`).
    Added(TunnelId, Option<Interface>),
    /// The kernel took a datagram, or not.
    Forwarded(Box<Forward>, Result<(), Errno>),
}

/// What a network device must have to stand beside a tunnel that was without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetdevPlan {
    /// The tunnel.
    pub tunnel: TunnelId,
    /// What for.
    pub to: Interface,
    /// The tunnel's name.
    pub name: Name,
    /// Its namespace.
    pub scope: Scope,
    /// As TUNSETIFF would have them.
    pub flags: IfFlags,
    /// The files that are attached to it.
    pub files: Vec<FileId>,
    /// Those among them whose queue gets nothing.
    pub detached: Vec<FileId>,
    /// What it has, in the order in which it is set.
    pub settings: Vec<NetdevSetting>,
}

/// What it takes to give a tunnel another interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Nothing: it has it.
    Done,
    /// It is being given another one.
    Busy,
    /// No client has it open.
    Unused,
    /// Its network device is to be removed.
    Remove,
    /// Its network device is to be used in another way.
    Turn,
    /// It is to get a network device; [`NetdevNews::Added`] tells how that ended.
    Add(Box<NetdevPlan>),
}

/// A network device that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct MadeNetdev {
    /// How it is.
    pub state: NetdevState,
    /// It outlives its files: somebody has made it persistent.
    pub persistent: bool,
    /// It was there before, and the kernel let the client attach to it.
    pub was_there: bool,
}

/// A datagram that a client wrote, on its way to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Forward {
    /// The client's call.
    pub asker: RequestId,
    /// The tunnel.
    pub tunnel: TunnelId,
    /// The file.
    pub file: FileId,
    /// The headers that the device wants before it.
    pub head: Head,
    /// The datagram.
    pub datagram: Datagram,
    /// What the call returns if the kernel takes it.
    pub length: usize,
    /// The call has returned that. What the kernel does not take is lost.
    pub is_answered: bool,
}
