//! memtun with a link beside each tunnel. The far side is the kernel's, in the namespace of the program: it changes links, and
//! where they are bridged it sends and receives by them.

use std::fs::File;

use memtun::core::Interface;
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
    interface: Interface,
}

impl Linked {
    /// With the links of a `memtun run`, by its process.
    pub fn new(memtun: Memtun, pid: u32, interface: Interface) -> Self {
        let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("it is running");
        let kernel = Kernel::of(move || setns(namespace, CloneFlags::CLONE_NEWNET));
        Self { kernel, memtun, interface }
    }

    /// Sends. Another thread wakes a sleeping reader, and has done so when a verb answers.
    fn send(&mut self, tunnel: &str, datagram: &[u8], times: u32) {
        self.kernel.send(tunnel, datagram, times);
        let _woken = self.memtun.find(tunnel);
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
