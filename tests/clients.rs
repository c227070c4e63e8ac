//! Third-party programs, unmodified, as clients: what each prints on a good device, and a datagram each way where it
//! passes one on.
//!
//! They are Debian's packages, listed in `tests/clients/packages`, and run as their users run them, less what configures
//! a network interface: memtun has none, and its tunnels start up. A program that is not installed leaves its tests out,
//! with a line that says so; `MEMTUN_TEST_REQUIRE=clients` makes that a failure.

mod admin;
pub mod configured;
pub mod containers;
mod others;
mod stacks;
mod tunnels;

use std::{path::Path, process::Command, time::Duration};

use memtun_client::{
    Client,
    proto::{
        list::{FileView, List, Listing, TunnelView},
        wait::Until,
    },
};

use crate::support::{
    daemon::{Backend, Daemon, MEMTUN, Run, run},
    network::Network,
    program::Program,
    within_deadline,
};

/// A test of the device by programs that may not be installed.
pub struct ClientTest {
    pub name: &'static str,
    pub run: fn(Backend),
    needs: &'static [Installed],
}

/// The word in `MEMTUN_TEST_REQUIRE` by which a program that is not installed is a failure.
pub const WORD: &str = "clients";

#[rustfmt::skip]
pub const TESTS: &[ClientTest] = {
    const fn test(name: &'static str, needs: &'static [Installed], run: fn(Backend)) -> ClientTest {
        ClientTest { name, run, needs }
    }
    &[
        test("client_ip_tuntap",      &[IP],                    admin::ip_tuntap),
        test("client_tunctl",         &[TUNCTL],                admin::tunctl),
        test("client_vde_tunctl",     &[VDE_TUNCTL],            admin::vde_tunctl),
        test("client_busybox_tunctl", &[BUSYBOX],               admin::busybox_tunctl),
        test("client_openvpn_mktun",  &[OPENVPN],               admin::openvpn_mktun),
        test("client_openvpn",         &[OPENVPN],               tunnels::openvpn_tun),
        test("client_openvpn_tap",     &[OPENVPN],               tunnels::openvpn_tap),
        test("client_tinc",            &[TINC],                  tunnels::tinc),
        test("client_vtun",            &[VTUN, IP],              tunnels::vtun),
        test("client_ssh",             &[SSH, SSH_KEYGEN, SSHD], tunnels::ssh),
        test("client_scapy",           &[PYTHON, SCAPY],         stacks::scapy),
        test("client_qemu",            &[QEMU, QEMU_ROM],        stacks::qemu),
        test("client_qemu_queues",     &[QEMU, QEMU_ROM],        stacks::qemu_queues),
        test("client_wireguard_go",    &[WIREGUARD_GO],          others::wireguard_go),
        test("client_wireguard_go_up", &[WIREGUARD_GO, IP],      others::wireguard_go_up),
        test("client_in_bubblewrap",   &[BWRAP],                 others::bubblewrap),
        test("client_in_podman",       &[PODMAN, CRUN],          others::podman),
    ]
};

/// How long such a program may take to start, on an emulated machine that also does other things.
const PATIENCE: Duration = Duration::from_secs(90);

/// What scripts/test installs.
const PACKAGES: &str = include_str!("clients/packages");

/// A file of a Debian package, by a path of its own: another program of that name may come first in `PATH`.
#[derive(Clone, Copy)]
struct Installed {
    path: &'static str,
    package: &'static str,
}

const BUSYBOX: Installed = Installed { path: "/bin/busybox", package: "busybox-static" };
const BWRAP: Installed = Installed { path: "/usr/bin/bwrap", package: "bubblewrap" };
const DBUS: Installed = Installed { path: "/usr/bin/dbus-daemon", package: "dbus-daemon" };
const IFCONFIG: Installed = Installed { path: "/sbin/ifconfig", package: "net-tools" };
const CRUN: Installed = Installed { path: "/usr/bin/crun", package: "crun" };
const IP: Installed = Installed { path: "/sbin/ip", package: "iproute2" };
const OPENSSL: Installed = Installed { path: "/usr/bin/openssl", package: "openssl" };
const NETWORKD: Installed =
    Installed { path: "/usr/lib/systemd/systemd-networkd", package: "systemd" };
const NETWORK_MANAGER: Installed =
    Installed { path: "/usr/sbin/NetworkManager", package: "network-manager" };
const OPENVPN: Installed = Installed { path: "/usr/sbin/openvpn", package: "openvpn" };
const PING: Installed = Installed { path: "/bin/ping", package: "iputils-ping" };
const PODMAN: Installed = Installed { path: "/usr/bin/podman", package: "podman" };
const PYROUTE2: Installed =
    Installed { path: "/usr/lib/python3/dist-packages/pyroute2", package: "python3-pyroute2" };
const PYTHON: Installed = Installed { path: "/usr/bin/python3", package: "python3-scapy" };
const QEMU: Installed =
    Installed { path: "/usr/bin/qemu-system-x86_64", package: "qemu-system-x86" };
const QEMU_ROM: Installed =
    Installed { path: "/usr/lib/ipxe/qemu/efi-virtio.rom", package: "ipxe-qemu" };
const SCAPY: Installed = Installed {
    path: "/usr/lib/python3/dist-packages/scapy/layers/tuntap.py",
    package: "python3-scapy",
};
const SLIRP4NETNS: Installed = Installed { path: "/usr/bin/slirp4netns", package: "slirp4netns" };
const SOCAT: Installed = Installed { path: "/usr/bin/socat", package: "socat" };
const SSH: Installed = Installed { path: "/usr/bin/ssh", package: "openssh-client" };
const SSH_KEYGEN: Installed = Installed { path: "/usr/bin/ssh-keygen", package: "openssh-client" };
const SSHD: Installed = Installed { path: "/usr/sbin/sshd", package: "openssh-server" };
const TAYGA: Installed = Installed { path: "/usr/sbin/tayga", package: "tayga" };
const TINC: Installed = Installed { path: "/usr/sbin/tincd", package: "tinc" };
const TUNCTL: Installed = Installed { path: "/usr/bin/tunctl", package: "uml-utilities" };
const VDE_TUNCTL: Installed = Installed { path: "/usr/sbin/vde_tunctl", package: "vde2" };
const WG: Installed = Installed { path: "/usr/bin/wg", package: "wireguard-tools" };
const WIREGUARD_GO: Installed =
    Installed { path: "/usr/bin/wireguard-go", package: "wireguard-go" };
const VTUN: Installed = Installed { path: "/usr/sbin/vtund", package: "vtun" };

impl ClientTest {
    /// What neither a device of the kind nor this user can do that it needs.
    pub fn limit(&self, backend: Backend) -> Option<&'static str> {
        let is_root = nix::unistd::geteuid().is_root();
        match self.name {
            "client_ssh" if !is_root => Some("sshd makes tunnels for root alone"),
            "client_in_podman" if backend == Backend::Cuse => {
                Some("a device node takes a device rule, and control groups for it")
            }
            "client_in_podman" if !is_root => Some("a container without root takes ids of its own"),
            "client_wireguard_go_up" if backend == Backend::Cuse => {
                Some("a write of nothing does not reach a character device")
            }
            "client_wireguard_go_up" if !is_root => Some("it has a socket in /var/run"),
            _ => None,
        }
    }

    /// What is not installed that it needs.
    pub fn obstacle(&self) -> Option<String> {
        missing(self.needs)
    }
}

/// What is not installed of what a test needs.
fn missing(needs: &[Installed]) -> Option<String> {
    let listed = |package: &str| PACKAGES.lines().any(|line| line == package);
    for Installed { package, .. } in needs {
        assert!(listed(package), "{package} is missing in tests/clients/packages");
    }
    let missing = needs.iter().find(|needed| !Path::new(needed.path).exists());
    missing.map(|Installed { path, package }| {
        format!("{path} is not installed (apt-get install {package})")
    })
}

/// Where programs find the daemon's device, and nobody of another test in their network.
struct Host<'a> {
    daemon: &'a Daemon,
    network: Network,
}

impl<'a> Host<'a> {
    fn new(daemon: &'a Daemon) -> Self {
        Self { daemon, network: Network::new() }
    }

    /// Two hosts, at `192.0.2.1` and `192.0.2.2`.
    fn pair(daemon: &'a Daemon) -> [Self; 2] {
        Network::pair().map(|network| Self { daemon, network })
    }

    fn command(&self, program: Installed, arguments: &[&str]) -> Command {
        let mut command = self.network.command();
        command
            .args([MEMTUN, "run", "--use"])
            .args([&self.daemon.device, Path::new("--"), Path::new(program.path)])
            .args(arguments)
            .env("MEMTUN_CONTROL", &self.daemon.control)
            .env("LC_ALL", "C");
        command
    }

    /// Runs a program to its end, and until the daemon has heard of it: of a file it hears after `close` has returned.
    #[track_caller]
    fn run(&self, program: Installed, arguments: &[&str]) -> Run {
        let ended = run(&mut self.command(program, arguments), b"");
        let control = self.daemon.control.clone();
        within_deadline("the files of ended programs to be closed", move || {
            let mut client = Client::connect(&control).expect("the daemon runs");
            let is_left = |file: &FileView| !Path::new(&format!("/proc/{}", file.pid)).exists();
            loop {
                let Listing { tunnels, unattached_files } = client.call(&List {}).expect("list");
                let attached = tunnels.iter().flat_map(|tunnel| &tunnel.files);
                if !attached.chain(&unattached_files).any(is_left) {
                    break;
                }
            }
        });
        ended
    }

    /// Starts a program that stays.
    #[track_caller]
    fn start(&self, program: Installed, arguments: &[&str]) -> Program {
        Program::start_with_stderr(&mut self.command(program, arguments)).with_deadline(PATIENCE)
    }

    /// The address of the tunnel of that name in this network namespace; another may have one too.
    fn tunnel(&self, name: &str) -> String {
        format!("{name}@{}", self.network.scope())
    }

    /// What `memtun list` says.
    #[track_caller]
    fn tunnels(&self) -> Vec<TunnelView> {
        let json = self.daemon.memtun(&["list", "--json"]).succeeded();
        let listing: Listing = serde_json::from_str(&json).expect("what --json prints can be read");
        let Listing { tunnels, unattached_files } = listing;
        assert!(unattached_files.is_empty(), "nobody left a file open: {unattached_files:?}");
        assert!(tunnels.iter().all(|tunnel| tunnel.scope == self.network.scope()), "{tunnels:?}");
        tunnels
    }
}

/// Waits until the clients of these tunnels have closed them, and checks that they took the tunnels with them.
#[track_caller]
fn expect_gone(daemon: &Daemon, tunnels: &[&str]) {
    for tunnel in tunnels {
        daemon.wait_until(tunnel, Until::Detached);
    }
    assert_eq!(
        daemon.memtun(&["list"]).succeeded(),
        "no tunnels; a client makes one by TUNSETIFF\n"
    );
}
