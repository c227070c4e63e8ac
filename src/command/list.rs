//! `list`: the tunnels and the files behind them.

use std::{fmt, io::Write, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Method;
use crate::{
    abi::tun::IfFlags,
    client::{Client, ClientError},
    control::session::{Reply, Session},
    core::{Core, Count, File, Peer, Queue, Tunnel, TunnelId},
    frontend::opener,
    hub::{Description, Hub},
    render,
    terminal::{Styles, escaped_json},
};

/// Parameters on the wire: none.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listing {
    /// The tunnels, oldest first.
    pub tunnels: Vec<TunnelView>,
    /// Open files that are attached to no tunnel.
    pub unattached_files: Vec<FileView>,
}

/// One tunnel.
#[derive(Debug, Serialize, Deserialize)]
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
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// `tunnel`, `socket` or `host`.
    pub kind: String,
    /// What else there is to say: the id of a tunnel as `#2`, the addresses of a host.
    pub details: Vec<String>,
}

/// Counters of a tunnel.
#[derive(Debug, Serialize, Deserialize)]
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
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct CountView {
    /// How many.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A queue.
#[derive(Debug, Serialize, Deserialize)]
pub struct BufferView {
    /// How many datagrams it holds.
    pub datagrams: usize,
    /// Their bytes, without headers.
    pub bytes: usize,
    /// How many datagrams it can hold.
    pub capacity: usize,
}

/// One open file.
#[derive(Debug, Serialize, Deserialize)]
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

impl Method for List {
    const NAME: &'static str = "list";
    type Result = Listing;

    fn perform(self, session: &Arc<Session>, reply: Reply<Listing>) {
        let (mut listing, peers) = session.hub().view(|core| {
            let peers: Vec<Option<Peer>> = core.tunnels().map(Tunnel::peer).collect();
            (Listing::from(core), peers)
        });
        for (tunnel, peer) in listing.tunnels.iter_mut().zip(peers) {
            tunnel.peer = peer.and_then(|peer| PeerView::new(session.hub(), peer));
        }
        let attached = listing.tunnels.iter_mut().flat_map(|tunnel| &mut tunnel.files);
        let files: Vec<&mut FileView> = attached.chain(&mut listing.unattached_files).collect();
        // A process may have many of the files: its descriptors are looked through once.
        let pids: Vec<u32> = files.iter().map(|file| file.pid).collect();
        let hub = Arc::clone(session.hub());
        let known = opener::close_on_exec(pids, move |file| hub.owns(file));
        for file in files {
            file.close_on_exec = known.get(&file.pid).copied().flatten();
        }
        reply.send(Ok(listing));
    }
}

impl From<&Core> for Listing {
    fn from(core: &Core) -> Self {
        let files_of = |tunnel: &Tunnel| {
            tunnel.files().filter_map(|id| core.file(id)).map(FileView::from).collect()
        };
        Self {
            tunnels: core
                .tunnels()
                .map(|tunnel| TunnelView::new(tunnel, files_of(tunnel)))
                .collect(),
            unattached_files: core
                .files()
                .filter(|file| file.tunnel().is_none())
                .map(FileView::from)
                .collect(),
        }
    }
}

impl TunnelView {
    fn new(tunnel: &Tunnel, files: Vec<FileView>) -> Self {
        let (owner, group) = tunnel.owner();
        let counters = tunnel.counters();
        Self {
            id: tunnel.id().0,
            name: tunnel.name().to_string(),
            requested_name: tunnel.requested_name().to_string(),
            scope: tunnel.scope().0,
            mode: tunnel.mode().word().to_owned(),
            flags: if_flags(tunnel.flags()),
            persistent: tunnel.is_persistent(),
            owner,
            group,
            mtu: tunnel.mtu(),
            hwaddr: tunnel.hwaddr().map(|address| address.to_string()),
            ifindex: tunnel.ifindex(),
            carrier: tunnel.has_carrier(),
            txqueuelen: tunnel.tx_queue_length(),
            link: match (tunnel.is_gone(), tunnel.is_up()) {
                (true, _) => "gone",
                (false, true) => "up",
                (false, false) => "down",
            }
            .to_owned(),
            interface: tunnel.interface().word().to_owned(),
            counters: CountersView {
                to_client: counters.to_client.into(),
                from_client: counters.from_client.into(),
                to_client_dropped: counters.to_client_dropped.into(),
                from_client_dropped: counters.from_client_dropped.into(),
                memory_dropped: counters.memory_dropped.into(),
                to_link: counters.to_link.into(),
            },
            write_buffer: tunnel.written().into(),
            peer: None,
            files,
        }
    }
}

impl PeerView {
    /// What a peer is; `None` if it has left.
    pub(super) fn new(hub: &Hub, peer: Peer) -> Option<Self> {
        match peer {
            Peer::Tunnel(TunnelId(id)) => {
                Some(Self { kind: "tunnel".to_owned(), details: vec![format!("#{id}")] })
            }
            Peer::Outside(id) => hub
                .peer_description(id)
                .map(|Description { kind, details }| Self { kind: kind.to_owned(), details }),
        }
    }
}

impl fmt::Display for PeerView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        self.details.iter().try_for_each(|detail| write!(f, " {detail}"))
    }
}

impl From<Count> for CountView {
    fn from(count: Count) -> Self {
        Self { datagrams: count.datagrams, bytes: count.bytes }
    }
}

impl From<&Queue> for BufferView {
    fn from(queue: &Queue) -> Self {
        Self { datagrams: queue.len(), bytes: queue.bytes(), capacity: queue.capacity() }
    }
}

impl From<&File> for FileView {
    fn from(file: &File) -> Self {
        let opener = file.opener();
        Self {
            id: file.id().0,
            pid: opener.pid,
            command: opener.command.clone(),
            open_flags: open_flags(file.open_flags()),
            blocking: file.is_blocking(),
            close_on_exec: None,
            detached: file.is_detached(),
            read_buffer: file.queue().into(),
            parked_reads: file.parked_reads(),
            poll_armed: file.is_poll_armed(),
        }
    }
}

fn if_flags(flags: IfFlags) -> Vec<String> {
    flags.iter_names().map(|(name, _)| format!("IFF_{name}")).collect()
}

/// The flags of `open(2)` that a client may have given a device, by name; the rest as one octal number.
fn open_flags(flags: u32) -> Vec<String> {
    const NAMED: &[(i32, &str)] = &[
        (nix::libc::O_APPEND, "O_APPEND"),
        (nix::libc::O_NONBLOCK, "O_NONBLOCK"),
        (nix::libc::O_SYNC, "O_SYNC"),
        (nix::libc::O_ASYNC, "O_ASYNC"),
    ];
    let access = match flags & nix::libc::O_ACCMODE.unsigned_abs() {
        0 => "O_RDONLY",
        1 => "O_WRONLY",
        _ => "O_RDWR",
    };
    // The kernel sets O_LARGEFILE for every 64-bit program, which asked for nothing.
    const O_LARGEFILE: u32 = 0o100_000;
    let mut rest = flags & !nix::libc::O_ACCMODE.unsigned_abs() & !O_LARGEFILE;
    let mut names = vec![access.to_owned()];
    for (flag, name) in NAMED {
        let flag = flag.unsigned_abs();
        if rest & flag == flag {
            rest &= !flag;
            names.push((*name).to_owned());
        }
    }
    if rest != 0 {
        names.push(format!("{rest:#o}"));
    }
    names
}

/// Lists the tunnels and the clients that have them open.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object with all details.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says.
    pub fn run(
        self,
        client: &mut Client,
        out: &mut dyn Write,
        styles: Styles,
    ) -> Result<(), ClientError> {
        let listing = client.call(&List {})?;
        if self.json {
            let json = serde_json::to_string_pretty(&listing)?;
            writeln!(out, "{}", escaped_json(&json))?;
        } else {
            out.write_all(render::listing(&listing, styles).as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_flags_are_named() {
        let flags = nix::libc::O_RDWR | nix::libc::O_NONBLOCK | 0o100_000;
        assert_eq!(open_flags(flags.unsigned_abs()), ["O_RDWR", "O_NONBLOCK"]);
        assert_eq!(open_flags(0o10_000_001), ["O_WRONLY", "0o10000000"]);
    }
}
