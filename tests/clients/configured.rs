//! Programs that configure their interface, with their ordinary command lines: `memtun run --net` gives them one.
//!
//! Each runs as root and as an ordinary user. What it printed, what it configured and what passed is checked.

pub mod bridged;
pub mod vpn;

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use memtun::{
    client::Client,
    command::{
        inject::Inject,
        list::{List, TunnelView},
        wait::{Until, Wait},
    },
    packet,
};
use nix::{
    poll::{PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{
    IFCONFIG, IP, Installed, OPENVPN, PATIENCE, SLIRP4NETNS, SOCAT, VTUN, WG, WIREGUARD_GO,
};
use crate::{
    device::{inject, take},
    run::User,
    support::{DEADLINE, program::Program, within_deadline},
};

/// A test: its name, what it needs, and what it does as a user.
pub struct ConfiguredTest {
    pub name: &'static str,
    pub run: fn(User),
    needs: &'static [Installed],
}

impl ConfiguredTest {
    /// What is not installed that it needs.
    pub fn obstacle(&self) -> Option<String> {
        super::missing(self.needs)
    }
}

#[rustfmt::skip]
pub const TESTS: &[ConfiguredTest] = {
    const fn test(
        name: &'static str, needs: &'static [Installed], run: fn(User),
    ) -> ConfiguredTest {
        ConfiguredTest { name, run, needs }
    }
    &[
        test("openvpn",      &[OPENVPN, IP],          openvpn),
        test("wireguard_go", &[WIREGUARD_GO, WG, IP], wireguard_go),
        test("socat",        &[SOCAT, IP],            socat),
        test("vtun",         &[VTUN, IFCONFIG, IP],   vtun),
        test("slirp4netns",  &[SLIRP4NETNS, IP],      slirp4netns),
        test("ip_tuntap",    &[IP],                   ip_tuntap),
        test("ifconfig",     &[IFCONFIG, IP],         ifconfig),
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
    fn start(user: User, script: &str) -> Self {
        Self::start_with(user, &[], script)
    }

    /// The same with more options of `memtun run`.
    fn start_with(user: User, options: &[&str], script: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        let control = folder.path().join("control");
        let script = format!(
            "export PATH=/usr/sbin:/usr/bin:/sbin:/bin
             echo $$ > $FOLDER/group; ip link set lo up
             {script}"
        );
        let shell = ["--", "setsid", "sh", "-c", &script];
        let arguments = [&["--net", "--map-root"], options, &shell].concat();
        let mut command = user.memtun_run(&control, &arguments);
        command.env("LC_ALL", "C").env("FOLDER", folder.path()).current_dir(folder.path());
        let program = Program::start_with_stderr(&mut command).with_deadline(PATIENCE);
        Self { program, control, folder }
    }

    fn client(&self) -> Client {
        Client::connect_within(&self.control, DEADLINE).expect("the control socket is there")
    }

    /// What runs the program that is added to it in the namespaces of the script, as the user that the script runs as.
    fn command(&self, user: User) -> Command {
        let namespaces = match user {
            User::Root => &["net"][..],
            User::Ordinary => &["user", "net"],
        };
        let pid = self.program.pid();
        let mut command = Command::new("nsenter");
        command.args(namespaces.iter().map(|name| format!("--{name}=/proc/{pid}/ns/{name}")));
        command.arg("--").env("LC_ALL", "C");
        command
    }

    /// What `ip` shows in the program's network namespace.
    #[track_caller]
    fn ip(&self, arguments: &[&str]) -> String {
        let namespace = format!("--net=/proc/{}/ns/net", self.program.pid());
        let output = Command::new("nsenter")
            .arg(namespace)
            .args(["--", IP.path])
            .args(arguments)
            .output()
            .expect("nsenter runs");
        assert!(output.status.success(), "ip {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn wait_until_attached(&self, tunnel: &str) {
        let timeout_ms = u64::try_from(PATIENCE.as_millis()).expect("a short time");
        let tunnel = tunnel.parse().expect("an address");
        let call = Wait { tunnel, until: Until::Attached, timeout_ms };
        self.client().call(&call).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits until the links of these tunnels are up.
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

    /// Puts a datagram into one tunnel, and expects it to come out of another.
    #[track_caller]
    fn expect_to_pass(&self, tunnels: [&str; 2], addresses: [&str; 2]) {
        let [from, to] = tunnels;
        let [source, destination] =
            addresses.map(|address| SocketAddr::new(address.parse().expect("an address"), 9));
        let datagram = packet::udp(source, destination, &[0x5a; 600]).expect("two IPv4 addresses");
        let mut client = self.client();
        inject(&mut client, from, &datagram);
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

/// Looks at the addresses in a process's network namespace again and again, until these are there.
#[track_caller]
fn addresses_with(pid: impl std::fmt::Display, wanted: &'static [&str]) -> String {
    let namespace = format!("--net=/proc/{pid}/ns/net");
    within_deadline(&format!("{wanted:?}"), move || {
        loop {
            let arguments = [&namespace, "--", IP.path, "address"];
            let output = Command::new("nsenter").args(arguments).output().expect("nsenter runs");
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            if wanted.iter().all(|address| shown.contains(address)) {
                return shown;
            }
            assert_eq!(poll(&mut [], PollTimeout::from(50_u16)), Ok(0));
        }
    })
}

fn openvpn(user: User) {
    let run = Run::start(
        user,
        "peer() { openvpn --dev $1 --ifconfig $2 $3 --local 127.0.0.1 --lport $4 --remote 127.0.0.1 --rport $5 \
            --proto udp --auth none --cipher none --verb 3 --ping 1 --tun-mtu 1400 --txqueuelen 700; }
         peer tun0 10.8.0.1 10.8.0.2 1194 1195 &
         peer tun1 10.8.0.2 10.8.0.1 1195 1194",
    );
    for _ in 0..2 {
        run.program.line_with("Initialization Sequence Completed");
    }
    for (name, address) in
        [("tun0", "10.8.0.1 peer 10.8.0.2/32"), ("tun1", "10.8.0.2 peer 10.8.0.1/32")]
    {
        let shown = run.ip(&["address", "show", "dev", name]);
        // SIOCSIFTXQLEN asks for the capability in the initial user namespace.
        let length = if user == User::Root { "qlen 700" } else { "qlen 500" };
        for configured in [address, "mtu 1400", length, "UP"] {
            assert!(shown.contains(configured), "{configured}: {shown}");
        }
    }
    run.wait_until_up(&["tun0", "tun1"]);
    run.expect_to_pass(["tun0", "tun1"], ["10.8.0.1", "10.8.0.2"]);
    run.expect_to_pass(["tun1", "tun0"], ["10.8.0.2", "10.8.0.1"]);
}

/// It is up when rtnetlink says so, and reads as much as the interface's MTU says.
fn wireguard_go(user: User) {
    let run = Run::start(
        user,
        "mount -t tmpfs tmpfs /run
         export LOG_LEVEL=verbose WG_PROCESS_FOREGROUND=1
         wireguard-go -f wg0 & wireguard-go -f wg1 &
         for name in wg0 wg1; do
            until wg show $name >/dev/null 2>&1; do :; done
            wg genkey > $FOLDER/$name; wg pubkey < $FOLDER/$name > $FOLDER/$name.pub
         done
         wg set wg0 private-key $FOLDER/wg0 listen-port 51820 peer $(cat $FOLDER/wg1.pub) \
            allowed-ips 10.77.0.2/32 endpoint 127.0.0.1:51821
         wg set wg1 private-key $FOLDER/wg1 listen-port 51821 peer $(cat $FOLDER/wg0.pub) \
            allowed-ips 10.77.0.1/32 endpoint 127.0.0.1:51820
         ip address add 10.77.0.1/24 dev wg0; ip link set wg0 up; ip link set wg1 up; wait",
    );
    for _ in 0..2 {
        run.program.line_with("Interface state was Down, requested Up, now Up");
    }
    let shown = addresses_with(run.program.pid(), &["10.77.0.1/24"]);
    assert!(shown.contains("mtu 1420"), "{shown}");
    run.wait_until_up(&["wg0", "wg1"]);
    run.expect_to_pass(["wg0", "wg1"], ["10.77.0.1", "10.77.0.2"]);
    run.expect_to_pass(["wg1", "wg0"], ["10.77.0.2", "10.77.0.1"]);
}

fn socat(user: User) {
    let run =
        Run::start(user, "exec socat -d -d TUN:10.77.0.1/24,tun-name=tun77,iff-up,iff-no-pi PIPE");
    run.program.line_with("starting data transfer loop");
    let shown = run.ip(&["address", "show", "dev", "tun77"]);
    assert!(shown.contains("10.77.0.1/24") && shown.contains("UP"), "{shown}");
    run.wait_until_up(&["tun77", "tun77"]);
    run.expect_to_pass(["tun77", "tun77"], ["10.77.0.2", "10.77.0.1"]);
}

fn vtun(user: User) {
    let run = Run::start(
        user,
        "settings() { cat <<END
options { port 5000; syslog daemon; ifconfig /sbin/ifconfig; }
default { compress no; speed 0; multi yes; }
tt { passwd x; type tun; proto tcp; encrypt no; keepalive no; up { ifconfig \"%% $1 pointopoint $2 mtu 1450\"; }; }
END
         }
         settings 10.50.0.1 10.50.0.2 > $FOLDER/server; settings 10.50.0.2 10.50.0.1 > $FOLDER/client
         vtund -n -s -f $FOLDER/server &
         until grep -q ':1388 .* 0A ' /proc/net/tcp; do :; done
         # A host whose addresses are all of 127.0.0.0/8 looks up no other.
         ip address add 192.0.2.1/32 dev lo
         vtund -n -f $FOLDER/client tt 192.0.2.1",
    );
    // ifconfig runs beside.
    let shown = addresses_with(run.program.pid(), &["10.50.0.1 peer", "10.50.0.2 peer"]);
    assert_eq!(shown.matches("mtu 1450").count(), 2, "{shown}");
    let is_servers = run.ip(&["address", "show", "dev", "tun0"]).contains("inet 10.50.0.1");
    let [left, right] = if is_servers { ["tun0", "tun1"] } else { ["tun1", "tun0"] };
    run.wait_until_up(&["tun0", "tun1"]);
    run.expect_to_pass([left, right], ["10.50.0.1", "10.50.0.2"]);
}

/// It opens the device in a namespace that it enters for that, and in which it configures the interface.
fn slirp4netns(user: User) {
    let run = Run::start(
        user,
        "unshare -n sleep 1000 & echo $! > $FOLDER/pid
         until [ \"$(readlink /proc/$!/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; do :; done
         exec slirp4netns --configure --mtu=65520 --disable-host-loopback --ready-fd=3 $! tap0 3>$FOLDER/ready",
    );
    run.wait_until_attached("tap0");
    let pid = fs::read_to_string(run.folder.path().join("pid")).expect("it is written");
    let shown = addresses_with(pid.trim().to_owned(), &["10.0.2.100/24", "tap0: ", "mtu 65520"]);
    assert!(shown.contains("UP"), "{shown}");
    // Who has 10.0.2.2? The host that it emulates.
    let mut request = vec![0xff; 6];
    request.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9]);
    request.extend([10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    run.wait_until_up(&["tap0"]);
    let mut client = run.client();
    let call = Inject {
        tunnel: "tap0".parse().expect("an address"),
        datagram: request.into(),
        frame: true,
        source: None,
        destination: None,
        vnet: None,
    };
    client.call(&call).expect("inject");
    let reply = take(&mut client, "tap0");
    assert_eq!(&reply[..6], &[2, 0, 0, 0, 0, 9], "{reply:x?}");
    assert_eq!((&reply[12..14], reply[21], &reply[28..32]), (&[8, 6][..], 2, &[10, 0, 2, 2][..]));
}

fn ip_tuntap(user: User) {
    let run = Run::start(
        user,
        "set -e
         ip tuntap add dev tt0 mode tun user 0 group 0
         ip tuntap add dev tt1 mode tap multi_queue vnet_hdr pi
         ip address add 10.1.0.1/24 dev tt0; ip link set tt0 up mtu 1400
         ip -details -brief link show dev tt0; ip route get 10.1.0.9
         ip -details link show dev tt1 | grep 'tun type'
         ip link set tt1 name other; ip link delete tt0
         ip tuntap del dev other mode tap multi_queue
         # The close of a file does not wait for what it does.
         while ip link show dev other >/dev/null 2>&1; do :; done
         ip -brief link; echo end",
    );
    let tt0 = run.program.line_with("tt0");
    assert!(
        tt0.contains("NO-CARRIER") && tt0.contains("POINTOPOINT") && tt0.contains("UP"),
        "{tt0}"
    );
    assert!(run.program.line().contains("10.1.0.9 dev tt0 src 10.1.0.1"));
    let tt1 = run.program.line_with("tun type");
    assert!(tt1.contains("tun type tap pi on vnet_hdr on multi_queue"), "{tt1}");
    assert!(run.program.line_with("").starts_with("lo"), "nothing else is left");
    run.program.expect_line("end");
    assert_eq!(run.program.wait().code(), Some(0));
}

fn ifconfig(user: User) {
    let run = Run::start(
        user,
        "set -e
         ip tuntap add dev tap0 mode tap
         ifconfig tap0 hw ether 02:00:00:00:00:05
         ifconfig tap0 10.2.0.1 netmask 255.255.255.0 mtu 1300 up
         ifconfig tap0",
    );
    let shown = run.program.line_with("tap0: flags=");
    assert!(shown.contains("UP,BROADCAST") && shown.contains("mtu 1300"), "{shown}");
    run.program.line_with("inet 10.2.0.1  netmask 255.255.255.0");
    run.program.line_with("ether 02:00:00:00:00:05");
    assert_eq!(run.program.wait().code(), Some(0));
}
