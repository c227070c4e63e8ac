//! memtun, and the harness's side of its tunnels.

use std::{iter, os::unix::fs::PermissionsExt, path::Path, process::Command};

use memtun::core::Interface;
use memtun_client::{
    Client, ClientError,
    proto::{
        delete::Delete,
        inject::Inject,
        list::{List, Listing, TunnelView},
        set::Set,
        take::Take,
    },
};
use nix::poll::{PollTimeout, poll};
use serde_json::json;

use super::{
    linked::Linked,
    script::{Change, bytes},
    subject::{Far, Program, Seen, Subject, describe},
};
use crate::{
    run::User,
    support::{
        DEADLINE,
        daemon::{Backend, Daemon},
    },
};

/// memtun in one of the ways in which it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontEnd {
    pub device: Device,
    /// What stands beside each tunnel.
    pub interface: Interface,
}

/// How the program's calls get to memtun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A character device.
    Cuse,
    /// A file, by `memtun run`.
    Fuse(User),
    /// Notifications, by `memtun run`.
    Notify(User),
}

impl Device {
    /// Who runs the program, and the word for the front end.
    fn parts(self) -> (User, &'static str) {
        match self {
            Self::Cuse => (User::Root, "cuse"),
            Self::Fuse(user) => (user, "fuse"),
            Self::Notify(user) => (user, "notify"),
        }
    }
}

impl FrontEnd {
    /// Without interfaces.
    pub const fn plain(device: Device) -> Self {
        Self { device, interface: Interface::None }
    }

    /// The program on memtun, with tunnels of its own.
    pub fn subject(self, program: &Path) -> Subject {
        if self == Self::plain(Device::Cuse) {
            let daemon = Daemon::start_with(Backend::Cuse, &[PERMITTED]);
            let far = Memtun { client: daemon.client() };
            let program = Program::start(Command::new(program).arg(&daemon.device));
            return Subject::new(program, far, daemon);
        }
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), everybody).expect("it is ours");
        let control = folder.path().join("control");
        let (user, device) = self.device.parts();
        let mut command = user.memtun_run(&control, &["--front-end", device]);
        if user == User::Root {
            command.arg(PERMITTED);
        }
        if self.interface != Interface::None {
            // Each name that scripts cannot have would be a line.
            command.env("MEMTUN_LOG", "error");
            command.args(["--net", "--interface", self.interface.word()]);
        }
        command.arg("--");
        let mut program = Program::start(command.arg(program).arg("/dev/net/tun"));
        // It answers when everything is there.
        program.ask("reset").expect("memtun run starts the program");
        if self.device == Device::Cuse {
            // As udev has the kernel's.
            let node = format!("/dev/memtun-run-{}", program.pid());
            let everybody = std::fs::Permissions::from_mode(0o666);
            std::fs::set_permissions(node, everybody).expect("the device has a node");
        }
        let client = Client::connect(&control).expect("the control socket takes connections");
        let memtun = Memtun { client };
        if self.interface == Interface::None {
            Subject::new(program, memtun, folder)
        } else {
            let far = Linked::new(memtun, program.pid(), self.interface);
            Subject::new(program, far, folder)
        }
    }

    /// What scripts may need, and this has not.
    pub fn lacks(self, need: &str) -> bool {
        match need {
            "interfaces" => self.interface == Interface::None,
            "32" | "64" => false,
            "root" => self.device.parts().0 == User::Ordinary,
            // The kernel gives a link only to somebody who has a number in the namespace of `memtun run`.
            "ids" => self.interface != Interface::None && self.device.parts().0 == User::Ordinary,
            _ => panic!("scripts cannot need {need}"),
        }
    }
}

/// The option that makes TUNSETIFF ask who may. An ordinary user could do nothing then.
const PERMITTED: &str = "--require-net-admin";

pub struct Memtun {
    client: Client,
}

impl Memtun {
    /// Waits until something is the case.
    pub fn wait_until(&mut self, is_so: impl Fn(&Listing) -> bool) -> Listing {
        for _ in 0..DEADLINE.as_millis() {
            let listing = self.client.call(&List {}).expect("list");
            if is_so(&listing) {
                return listing;
            }
            let tick = poll(&mut [], PollTimeout::from(1_u16));
            assert_eq!(tick, Ok(0));
        }
        let listing = self.client.call(&List {}).expect("list");
        panic!("memtun does not come to rest: {listing:#?}")
    }

    pub fn find(&mut self, name: &str) -> Option<TunnelView> {
        let listing = self.client.call(&List {}).expect("list");
        listing.tunnels.into_iter().find(|tunnel| tunnel.name == name && tunnel.link != "gone")
    }

    fn try_change(&mut self, tunnel: &str, change: &Change) -> Result<(), ClientError> {
        let (key, value) = match change {
            Change::Up => ("link", json!("up")),
            Change::Down => ("link", json!("down")),
            Change::Rename(name) => ("name", json!(name)),
            Change::Mtu(number) => ("mtu", json!(number)),
            Change::QueueLength(number) => ("txqueuelen", json!(number)),
            Change::Address(address) => {
                let pairs: Vec<String> =
                    bytes(address).iter().map(|byte| format!("{byte:02x}")).collect();
                ("mac", json!(pairs.join(":")))
            }
            Change::Delete => {
                let call = Delete { tunnel: tunnel.parse().expect("an address") };
                return self.client.call(&call).map(drop);
            }
        };
        let call = json!({ "tunnel": tunnel, key: value });
        let call: Set = serde_json::from_value(call).expect("these are its parameters");
        self.client.call(&call).map(drop)
    }

    /// The oldest that is not empty: the kernel's packet sockets show none that are.
    fn take_from(&mut self, tunnel: &str) -> Option<Vec<u8>> {
        let call = json!({ "tunnel": tunnel, "timeout_ms": 0 });
        let call: Take = serde_json::from_value(call).expect("these are its parameters");
        iter::from_fn(|| self.client.call(&call).ok())
            .map(|taken| taken.datagrams[0].datagram.to_vec())
            .find(|datagram| !datagram.is_empty())
    }

    pub fn seen(&mut self, tunnel: &str) -> Option<Seen> {
        let tunnel = self.find(tunnel)?;
        let number = |id: Option<u32>| id.map_or("none".to_owned(), |id| id.to_string());
        Some(Seen {
            mode: tunnel.mode,
            up: tunnel.link == "up",
            mtu: tunnel.mtu.into(),
            persistent: tunnel.persistent,
            owner: number(tunnel.owner),
            group: number(tunnel.group),
        })
    }

    /// Waits until all files are closed, which on FUSE is heard of some time after; the tunnels that have outlived theirs.
    pub fn wait_for_closes(&mut self) -> Vec<TunnelView> {
        let listing = self.wait_until(|listing| {
            listing.unattached_files.is_empty()
                && listing.tunnels.iter().all(|tunnel| tunnel.files.is_empty())
        });
        listing.tunnels.into_iter().filter(|tunnel| tunnel.link != "gone").collect()
    }

    /// Waits until all tunnels are gone, and takes what they kept.
    pub fn forget(&mut self) {
        let listing =
            self.wait_until(|listing| listing.tunnels.iter().all(|tunnel| tunnel.link == "gone"));
        // So that they do not become many; the time that a take needs grows with the square of the bytes.
        for tunnel in listing.tunnels.iter().filter(|tunnel| tunnel.write_buffer.bytes < 1 << 20) {
            while self.take_from(&format!("#{}", tunnel.id)).is_some() {}
        }
    }
}

impl Far for Memtun {
    fn change(&mut self, tunnel: &str, change: &Change) {
        let _refused = self.try_change(tunnel, change);
    }

    fn inject(&mut self, tunnel: &str, datagram: &[u8], times: u32) {
        let frame = self.find(tunnel).is_some_and(|tunnel| tunnel.mode == "tap");
        let call = json!({ "tunnel": tunnel, "datagram": hex::encode(datagram), "frame": frame });
        let call: Inject = serde_json::from_value(call).expect("these are its parameters");
        for _ in 0..times {
            let _refused = self.client.call(&call);
        }
    }

    /// From a tunnel that is there: one that is gone keeps what the client wrote, but the kernel has no interface then.
    fn take(&mut self, name: &str) -> Option<Vec<u8>> {
        let tunnel = self.find(name)?;
        self.take_from(&format!("#{}", tunnel.id))
    }

    fn show(&mut self, tunnel: &str) -> String {
        describe(self.seen(tunnel))
    }

    fn is_late(&self) -> bool {
        true
    }

    fn is_waited_for(&mut self) -> bool {
        let listing = self.client.call(&List {}).expect("list");
        let mut files = listing.tunnels.iter().flat_map(|tunnel| &tunnel.files);
        files.any(|file| file.parked_reads > 0 || file.poll_armed)
    }

    fn clear(&mut self, _: &[&str], program: &mut Program) {
        for tunnel in self.wait_for_closes() {
            let mode = if tunnel.mode == "tun" { 1 } else { 2 };
            let queues = tunnel.flags.iter().any(|flag| flag == "IFF_MULTI_QUEUE");
            let flags = mode | if queues { 0x100 } else { 0 };
            for step in [
                "open z rdwr",
                &format!("ioctl z TUNSETIFF ifreq:{}:{flags}", tunnel.name),
                "ioctl z TUNSETPERSIST val:0",
                "close z",
            ] {
                program.ask(step).expect("the program answers");
            }
        }
        self.forget();
    }
}
