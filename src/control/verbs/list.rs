//! `list`: the tunnels and the files behind them.

use std::sync::Arc;

use memtun_proto::list::{
    BufferView, CountView, CountersView, FileView, List, Listing, PeerView, TunnelView,
};

use super::Verb;
use crate::{
    abi::tun::IfFlags,
    control::session::{Reply, Session},
    core::{Core, Count, File, Peer, Queue, Tunnel, TunnelId},
    frontend::opener,
    hub::{Description, Hub},
};

impl Verb for List {
    type Parsed = ();

    fn parse(self) -> Result<(), String> {
        let Self {} = self;
        Ok(())
    }

    fn perform((): (), session: &Arc<Session>, reply: Reply<Listing>) {
        let (mut listing, peers) = session.hub().view(|core| {
            let peers: Vec<Option<Peer>> = core.tunnels().map(Tunnel::peer).collect();
            (view(core), peers)
        });
        for (tunnel, peer) in listing.tunnels.iter_mut().zip(peers) {
            tunnel.peer = peer.and_then(|peer| peer_view(session.hub(), peer));
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

fn view(core: &Core) -> Listing {
    let files_of =
        |tunnel: &Tunnel| tunnel.files().filter_map(|id| core.file(id)).map(file_view).collect();
    Listing {
        tunnels: core.tunnels().map(|tunnel| tunnel_view(tunnel, files_of(tunnel))).collect(),
        unattached_files: core
            .files()
            .filter(|file| file.tunnel().is_none())
            .map(file_view)
            .collect(),
    }
}

fn tunnel_view(tunnel: &Tunnel, files: Vec<FileView>) -> TunnelView {
    let (owner, group) = tunnel.owner();
    let counters = tunnel.counters();
    TunnelView {
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
            to_client: count_view(counters.to_client),
            from_client: count_view(counters.from_client),
            to_client_dropped: count_view(counters.to_client_dropped),
            from_client_dropped: count_view(counters.from_client_dropped),
            memory_dropped: count_view(counters.memory_dropped),
            to_link: count_view(counters.to_link),
        },
        write_buffer: buffer_view(tunnel.written()),
        peer: None,
        files,
    }
}

/// What a peer is; `None` if it has left.
pub(super) fn peer_view(hub: &Hub, peer: Peer) -> Option<PeerView> {
    match peer {
        Peer::Tunnel(TunnelId(id)) => {
            Some(PeerView { kind: "tunnel".to_owned(), details: vec![format!("#{id}")] })
        }
        Peer::Outside(id) => hub
            .peer_description(id)
            .map(|Description { kind, details }| PeerView { kind: kind.to_owned(), details }),
    }
}

fn count_view(count: Count) -> CountView {
    CountView { datagrams: count.datagrams, bytes: count.bytes }
}

fn buffer_view(queue: &Queue) -> BufferView {
    BufferView { datagrams: queue.len(), bytes: queue.bytes(), capacity: queue.capacity() }
}

fn file_view(file: &File) -> FileView {
    let opener = file.opener();
    FileView {
        id: file.id().0,
        pid: opener.pid,
        command: opener.command.clone(),
        open_flags: open_flags(file.open_flags()),
        blocking: file.is_blocking(),
        close_on_exec: None,
        detached: file.is_detached(),
        read_buffer: buffer_view(file.queue()),
        parked_reads: file.parked_reads(),
        poll_armed: file.is_poll_armed(),
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
