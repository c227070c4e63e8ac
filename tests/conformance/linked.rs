//! memtun with a link beside each tunnel. The far side is the kernel's, in the namespace of the program: it changes links, and
//! where they are bridged it sends and receives by them.

use std::fs::File;

use memtun::{
    command::list::{CountersView, TunnelView},
    core::Interface,
};
use nix::sched::{CloneFlags, setns};

use super::{
    kernel::Kernel,
    memtun::Memtun,
    script::Change,
    subject::{Far, Program, describe},
};

pub struct Linked {
    kernel: Kernel,
    memtun: Memtun,
    /// Of `memtun run`, which is in the namespace.
    pid: u32,
    interface: Interface,
}

impl Linked {
    /// With the links of a `memtun run`.
    pub fn new(memtun: Memtun, pid: u32, interface: Interface) -> Self {
        let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("it is running");
        let kernel = Kernel::of(move || setns(namespace, CloneFlags::CLONE_NEWNET));
        Self { kernel, memtun, pid, interface }
    }

    /// Sends, and waits until memtun has what the link took: another thread reads from it.
    fn send(&mut self, tunnel: &str, datagram: &[u8], times: u32) {
        let Some(before) = self.memtun.find(tunnel) else { return };
        let dropped = self.dropped(tunnel);
        let accepted = self.kernel.send(tunnel, datagram, times);
        if !before.carrier {
            // The kernel throws away what is sent then, and does not count it.
            return;
        }
        // A reader whose file is closed may have got it, and the link has gone with the file.
        let Some(dropped) = self.dropped(tunnel).zip(dropped).map(|(now, then)| now - then) else {
            return;
        };
        let wanted = arrived(&before) + accepted - dropped;
        self.memtun.wait_until(|listing| {
            let now = listing.tunnels.iter().find(|tunnel| tunnel.id == before.id);
            now.is_none_or(|tunnel| arrived(tunnel) >= wanted)
        });
    }

    /// What a link took from the kernel and threw away; `None` if there is no link.
    fn dropped(&self, tunnel: &str) -> Option<u64> {
        let path = format!("/proc/{}/net/dev", self.pid);
        let links = std::fs::read_to_string(path).expect("it is running");
        let mut links = links.lines().filter_map(|line| line.trim().split_once(':'));
        let (_, counters) = links.find(|(name, _)| *name == tunnel)?;
        // Eight are of what was received; then bytes, packets, errs, drop.
        let dropped = counters.split_whitespace().nth(8 + 3).expect("it is a column");
        Some(dropped.parse().expect("a number"))
    }
}

impl Far for Linked {
    fn change(&mut self, tunnel: &str, change: &Change) {
        self.kernel.change(tunnel, change);
    }

    fn inject(&mut self, tunnel: &str, datagram: &[u8], times: u32) {
        match self.interface {
            Interface::Bridge => self.send(tunnel, datagram, times),
            Interface::Shadow | Interface::None => self.memtun.inject(tunnel, datagram, times),
        }
    }

    fn take(&mut self, tunnel: &str) -> Option<Vec<u8>> {
        match self.interface {
            Interface::Bridge => self.kernel.take(tunnel),
            Interface::Shadow | Interface::None => self.memtun.take(tunnel),
        }
    }

    /// The kernel and memtun must say the same.
    fn show(&mut self, tunnel: &str) -> String {
        let link = describe(self.kernel.seen(tunnel));
        let tunnel = describe(self.memtun.seen(tunnel));
        if link == tunnel { link } else { format!("{link}; memtun says {tunnel}") }
    }

    fn is_late(&self) -> bool {
        true
    }

    fn is_waited_for(&mut self) -> bool {
        self.memtun.is_waited_for()
    }

    fn clear(&mut self, _: &[&str], _: &mut Program) {
        for tunnel in self.memtun.wait_for_closes() {
            self.kernel.change(&tunnel.name, &Change::Delete);
        }
        self.memtun.forget();
        self.kernel.forget();
    }
}

/// What has come to memtun by a link.
fn arrived(tunnel: &TunnelView) -> u64 {
    let CountersView { to_client, to_client_dropped, to_link, .. } = &tunnel.counters;
    to_client.datagrams + to_client_dropped.datagrams + to_link.datagrams
}
