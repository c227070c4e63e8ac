//! Programs that configure their interface, with their ordinary command lines: `memtun run --net` gives them one.
//!
//! Each runs in every [`Way`]. What it printed, what it configured and what passed is checked.

mod admin;
mod bridged;
mod managers;
mod smoltcp;
mod stacks;
mod tunnels;
mod vpn;

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use memtun::{core::Mode, packet};
use memtun_client::{
    Client,
    proto::{
        inject::Inject,
        list::{List, TunnelView},
        wait::{Until, Wait},
    },
};
use nix::{
    poll::{PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

pub use self::smoltcp::serve_if_asked;
use super::{
    BUSYBOX, DBUS, IFCONFIG, IP, Installed, NETWORK_MANAGER, NETWORKD, OPENVPN, PATIENCE, PYROUTE2,
    PYTHON, QEMU, QEMU_ROM, SCAPY, SLIRP4NETNS, SOCAT, SSH, SSH_KEYGEN, SSHD, TAYGA, TINC, TUNCTL,
    VDE_TUNCTL, VTUN, WG, WIREGUARD_GO,
};
use crate::{
    device::take,
    netdev,
    run::User,
    support::{DEADLINE, daemon::Backend, program::Program, within_deadline},
};

/// As whom a client runs, and on what kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As root, on a kernel with CUSE, where `memtun run` takes it.
    Cuse,
    /// As root, on a file.
    Root,
    /// As an ordinary user, on a file.
    User,
}

impl Way {
    pub const ALL: &[Self] = &[Self::Cuse, Self::Root, Self::User];

    pub fn word(self) -> &'static str {
        match self {
            Self::Cuse => "cuse",
            Self::Root => "root",
            Self::User => "user",
        }
    }

    /// Why it cannot be tried here, and the word by which that is a failure.
    fn obstacle(self) -> Option<(&'static str, String)> {
        let of_run = self.user().obstacle().map(|obstacle| ("run", obstacle));
        let cuse = Backend::Cuse;
        let of_device = || cuse.obstacle().map(|obstacle| (cuse.word(), obstacle));
        match self {
            Self::Cuse => of_device().or(of_run),
            Self::Root | Self::User => of_run,
        }
    }

    fn user(self) -> User {
        match self {
            Self::Cuse | Self::Root => User::Root,
            Self::User => User::Ordinary,
        }
    }

    /// Who is root to the client, as root sees it from outside.
    fn root(self) -> &'static str {
        match self {
            Self::Cuse | Self::Root => "root",
            Self::User => "nobody",
        }
    }

    /// Of `memtun run`.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Cuse | Self::User => &["--net", "--map-root"],
            Self::Root => &["--net", "--map-root", "--front-end", "fuse"],
        }
    }

    /// The device, as `stat` calls it.
    fn device(self) -> &'static str {
        match self {
            Self::Cuse => "character special file",
            Self::Root | Self::User => "regular file",
        }
    }
}

/// A test: its name, what it needs, and what it does in each way.
pub struct ConfiguredTest {
    pub name: &'static str,
    pub run: fn(Way),
    needs: &'static [Installed],
    link: Link,
    /// Why an ordinary user cannot run it.
    root_only: Option<&'static str>,
}

/// What kind of link a client must have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Any,
    /// The kernel's tun or tap, not one that stands in for it.
    Tun,
}

impl ConfiguredTest {
    const fn new(name: &'static str, needs: &'static [Installed], run: fn(Way)) -> Self {
        Self { name, run, needs, link: Link::Any, root_only: None }
    }

    const fn with_tun(self) -> Self {
        Self { link: Link::Tun, ..self }
    }

    const fn root_only(self, reason: &'static str) -> Self {
        Self { root_only: Some(reason), ..self }
    }

    /// What is missing here, and the word by which that is a failure.
    pub fn obstacle(&self, way: Way) -> Option<(&'static str, String)> {
        let programs = || super::missing(self.needs).map(|missing| (super::WORD, missing));
        let tun = || Some(("links", netdev::obstacle().filter(|_| self.link == Link::Tun)?));
        way.obstacle().or_else(programs).or_else(tun)
    }

    /// What cannot be done anywhere.
    pub fn limit(&self, way: Way) -> Option<&'static str> {
        self.root_only.filter(|_| way == Way::User)
    }
}

/// The tests that run in a way.
pub fn tests(way: Way) -> impl Iterator<Item = &'static ConfiguredTest> {
    // Of what transfers much one is enough on an emulated machine, where CUSE mostly is.
    let bridged = bridged::TESTS.iter().take(if way == Way::Cuse { 1 } else { usize::MAX });
    TESTS.iter().chain(vpn::TESTS).chain(bridged)
}

#[rustfmt::skip]
const TESTS: &[ConfiguredTest] = {
    use ConfiguredTest as Test;
    &[
        Test::new("openvpn",         &[OPENVPN, IP],          tunnels::openvpn_tun),
        Test::new("openvpn_tap",     &[OPENVPN, IP],          tunnels::openvpn_tap),
        Test::new("wireguard_go",    &[WIREGUARD_GO, WG, IP], tunnels::wireguard_go),
        Test::new("vtun",            &[VTUN, IFCONFIG, IP],   tunnels::vtun),
        Test::new("tinc",            &[TINC, IP],             tunnels::tinc),
        Test::new("ssh",             &[SSH, SSH_KEYGEN, SSHD, IP], tunnels::ssh)
            .root_only("sshd needs the ids of several users"),
        Test::new("socat",           &[SOCAT, IP],            stacks::socat),
        Test::new("slirp4netns",     &[SLIRP4NETNS, IP],      stacks::slirp4netns),
        Test::new("tayga",           &[TAYGA, IP],            stacks::tayga).with_tun(),
        Test::new("scapy",           &[PYTHON, SCAPY, IP],    stacks::scapy),
        Test::new("qemu",            &[QEMU, QEMU_ROM, IP],   stacks::qemu).with_tun(),
        Test::new("qemu_bridge",     &[QEMU, QEMU_ROM, IP],   stacks::qemu_bridge).with_tun(),
        Test::new("smoltcp",         &[IP],                   smoltcp::smoltcp).with_tun(),
        Test::new("ip_tuntap",       &[IP],                   admin::ip_tuntap).with_tun(),
        Test::new("ifconfig",        &[IFCONFIG, IP],         admin::ifconfig).with_tun(),
        Test::new("tunctl",          &[TUNCTL, IP],           admin::tunctl).with_tun(),
        Test::new("vde_tunctl",      &[VDE_TUNCTL, IP],       admin::vde_tunctl).with_tun(),
        Test::new("busybox_tunctl",  &[BUSYBOX, IP],          admin::busybox_tunctl).with_tun(),
        Test::new("openvpn_mktun",   &[OPENVPN, IP],          admin::openvpn_mktun).with_tun(),
        Test::new("pyroute2",        &[PYTHON, PYROUTE2, IP], admin::pyroute2).with_tun(),
        Test::new("networkd",        &[NETWORKD, IP],         managers::networkd).with_tun()
            .root_only("systemd-networkd needs the ids of two users"),
        Test::new("network_manager", &[NETWORK_MANAGER, DBUS, IP], managers::network_manager).with_tun(),
    ]
};

/// `memtun run --net -- sh -c SCRIPT`, running.
struct Run {
    program: Program,
    control: PathBuf,
    /// Where the script may put things.
    folder: TempDir,
}

impl Run {
    #[track_caller]
    fn start(way: Way, script: &str) -> Self {
        Self::start_with(way, &[], script)
    }

    /// The same with more options of `memtun run`.
    #[track_caller]
    fn start_with(way: Way, options: &[&str], script: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        let control = folder.path().join("control");
        let script = format!(
            "export PATH=/usr/sbin:/usr/bin:/sbin:/bin
             echo $$ > $FOLDER/group; ip link set lo up
             stat --format 'device: %F' /dev/net/tun
             {script}"
        );
        let shell = ["--", "setsid", "sh", "-c", &script];
        let arguments = [way.options(), options, &shell].concat();
        let mut command = way.user().memtun_run(&control, &arguments);
        command.env("LC_ALL", "C").env("FOLDER", folder.path()).current_dir(folder.path());
        let program = Program::start_with_stderr(&mut command).with_deadline(PATIENCE);
        let run = Self { program, control, folder };
        assert_eq!(run.program.line_with("device: "), format!("device: {}", way.device()));
        run
    }

    fn client(&self) -> Client {
        Client::connect_within(&self.control, DEADLINE).expect("the control socket is there")
    }

    /// What runs the program that is added to it in the namespaces of the script, as the user that the script runs as.
    fn command(&self, way: Way) -> Command {
        let namespaces = match way.user() {
            User::Root => &["net"][..],
            User::Ordinary => &["user", "net"],
        };
        let pid = self.program.pid();
        let mut command = Command::new("nsenter");
        command.args(namespaces.iter().map(|name| format!("--{name}=/proc/{pid}/ns/{name}")));
        command.arg("--").env("LC_ALL", "C");
        command
    }

    /// Looks at a link with `ip` in the program's network namespace until all this shows, which it returns.
    #[track_caller]
    fn expect_link(&self, name: &str, wanted: &[&str]) -> String {
        expect_link_of(self.program.pid(), name, wanted)
    }

    #[track_caller]
    fn wait_until_attached(&self, tunnel: &str) {
        let timeout_ms = u64::try_from(PATIENCE.as_millis()).expect("a short time");
        let tunnel = tunnel.parse().expect("an address");
        let call = Wait { tunnel, until: Until::Attached, timeout_ms };
        self.client().call(&call).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits until memtun knows that the links of these tunnels are up.
    #[track_caller]
    fn wait_until_up(&self, names: &'static [&str]) {
        let mut client = self.client();
        within_deadline("links to come up", move || {
            let is_up = |tunnels: &[TunnelView], name: &str| {
                tunnels.iter().any(|tunnel| tunnel.name == name && tunnel.link == "up")
            };
            loop {
                let tunnels = client.call(&List {}).expect("list").tunnels;
                if names.iter().all(|name| is_up(&tunnels, name)) {
                    return;
                }
                assert_eq!(poll(&mut [], PollTimeout::from(20_u16)), Ok(0));
            }
        });
    }

    /// Puts a datagram into each tunnel, and expects it to come out of the other.
    #[track_caller]
    fn expect_both_ways(&self, mode: Mode, tunnels: [&str; 2], addresses: [&str; 2]) {
        self.expect_to_pass(mode, tunnels, addresses);
        let [left, right] = tunnels;
        let [address, other] = addresses;
        self.expect_to_pass(mode, [right, left], [other, address]);
    }

    /// Puts a datagram into one tunnel, and expects it to come out of another.
    #[track_caller]
    fn expect_to_pass(&self, mode: Mode, tunnels: [&str; 2], addresses: [&str; 2]) {
        let [from, to] = tunnels;
        let mut datagram = udp(addresses);
        if mode == Mode::Tap {
            let header = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
            datagram.splice(..0, header);
        }
        let mut client = self.client();
        put(&mut client, mode, from, &datagram);
        assert_eq!(take(&mut client, to), datagram, "from {from} to {to}");
    }
}

impl Drop for Run {
    /// Ends whatever the script started, before its device goes: not all programs notice that.
    fn drop(&mut self) {
        let group = fs::read_to_string(self.folder.path().join("group")).unwrap_or_default();
        if let Ok(group) = group.trim().parse() {
            // Nothing is left of it where this fails.
            let _gone = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// The same as [`Run::expect_link`], in a process's network namespace.
#[track_caller]
fn expect_link_of(pid: impl std::fmt::Display, name: &str, wanted: &[&str]) -> String {
    const TICK_MS: u16 = 50;
    let namespace = format!("--net=/proc/{pid}/ns/net");
    let mut shown = String::new();
    for _ in 0..DEADLINE.as_millis() / u128::from(TICK_MS) {
        let arguments = [&namespace, "--", IP.path, "-details", "address", "show", "dev", name];
        let output = Command::new("nsenter").args(arguments).output().expect("nsenter runs");
        shown = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if wanted.iter().all(|text| shown.contains(text)) {
            return shown;
        }
        assert_eq!(poll(&mut [], PollTimeout::from(TICK_MS)), Ok(0));
    }
    panic!("link {name} never had all of {wanted:?}: {shown}");
}

/// A datagram of some length from one host to another.
fn udp(addresses: [&str; 2]) -> Vec<u8> {
    let [source, destination] =
        addresses.map(|address| SocketAddr::new(address.parse().expect("an address"), 9));
    packet::udp(source, destination, &[0x5a; 600]).expect("addresses of one kind")
}

/// Injects what the client of a tunnel of that mode is to read, as it is.
#[track_caller]
fn put(client: &mut Client, mode: Mode, tunnel: &str, bytes: &[u8]) {
    let call = Inject {
        tunnel: tunnel.parse().expect("an address"),
        datagram: bytes.to_vec().into(),
        frame: mode == Mode::Tap,
        source: None,
        destination: None,
        vnet: None,
        timeout_ms: 0,
    };
    client.call(&call).unwrap_or_else(|error| panic!("inject: {error}"));
}
