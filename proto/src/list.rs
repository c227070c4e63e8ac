//! `list`: the tunnels and the files behind them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Method;

/// Parameters: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct List {}

impl Method for List {
    const NAME: &'static str = "list";
    type Result = Listing;
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Listing {
    /// The tunnels, oldest first.
    pub tunnels: Vec<TunnelView>,
    /// Open files that are attached to no tunnel.
    pub unattached_files: Vec<FileView>,
}

/// One tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct TunnelView {
    /// Its number, never used twice.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The name that was asked for: perhaps empty, or a template such as `tun%d`.
    pub requested_name: String,
    /// The network namespace it is named in, by inode number; 0 if that could not be read.
    pub scope: u64,
    /// `tun` or `tap`.
    pub mode: String,
    /// The flags given to TUNSETIFF, without the mode, as `IFF_NO_PI`.
    pub flags: Vec<String>,
    /// It outlives its files.
    pub persistent: bool,
    /// Set by TUNSETOWNER.
    pub owner: Option<u32>,
    /// Set by TUNSETGROUP.
    pub group: Option<u32>,
    /// In bytes.
    pub mtu: u32,
    /// The Ethernet address of a tap.
    pub hwaddr: Option<String>,
    /// Its number among the interfaces of its scope.
    #[serde(default)]
    pub ifindex: u32,
    /// Datagrams reach the client.
    #[serde(default)]
    pub carrier: bool,
    /// How many datagrams a queue holds.
    #[serde(default)]
    pub txqueuelen: usize,
    /// `up`, `down`, or `gone`: deleted, and kept until its datagrams are taken.
    pub link: String,
    /// The kernel link beside it: `none`, `shadow` or `bridge`.
    pub interface: String,
    /// Since it was made.
    pub counters: CountersView,
    /// What clients wrote and nobody has taken.
    pub write_buffer: BufferView,
    /// What gets what clients write, if it is not the harness by `take`.
    pub peer: Option<PeerView>,
    /// The attached files: first those whose queue gets datagrams, by its index.
    pub files: Vec<FileView>,
}

/// A tunnel's peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct PeerView {
    /// `tunnel`, `socket` or `host`.
    pub kind: String,
    /// What else there is to say: the id of a tunnel as `#2`, the addresses of a host.
    pub details: Vec<String>,
}

/// Counters of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct CountersView {
    /// Given to a reader or to a file's queue.
    pub to_client: CountView,
    /// Written by clients.
    pub from_client: CountView,
    /// Injected and lost.
    pub to_client_dropped: CountView,
    /// Written and lost.
    pub from_client_dropped: CountView,
    /// Lost for want of memory, in either direction; counted as injected or written and lost, too.
    #[serde(default)]
    pub memory_dropped: CountView,
    /// Sent by the kernel into the link beside it, and given to nobody.
    pub to_link: CountView,
}

/// Datagrams and their bytes, without headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct CountView {
    /// How many.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct BufferView {
    /// How many datagrams it holds.
    pub datagrams: usize,
    /// Their bytes, without headers.
    pub bytes: usize,
    /// How many datagrams it can hold.
    pub capacity: usize,
}

/// One open file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct FileView {
    /// Its number, never used twice.
    pub id: u64,
    /// The process that opened it; 0 if it could not be seen.
    pub pid: u32,
    /// Its command name.
    pub command: String,
    /// As `O_RDWR`; `O_NONBLOCK` as it was at the last read or write.
    pub open_flags: Vec<String>,
    /// A read without a datagram waits.
    pub blocking: bool,
    /// Its descriptors in that process have `FD_CLOEXEC`. Null if it cannot be seen, or if some of the process's
    /// descriptors of the device have it and some have not.
    pub close_on_exec: Option<bool>,
    /// TUNSETQUEUE has detached its queue.
    #[serde(default)]
    pub detached: bool,
    /// Datagrams waiting to be read.
    pub read_buffer: BufferView,
    /// Reads waiting for a datagram.
    pub parked_reads: usize,
    /// Somebody polled it, and is woken at each event.
    pub poll_armed: bool,
}

impl fmt::Display for PeerView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        self.details.iter().try_for_each(|detail| write!(f, " {detail}"))
    }
}
