//! Programs that join two tunnels by a network: what is put into one comes out of the other, be it by the harness or by a
//! client and a host beyond them.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use memtun::{core::Mode, packet};
use memtun_client::proto::{inject::Inject, list::List, wait::Until};
use nix::{sys::signal::Signal, unistd::geteuid};

use super::{Host, OPENVPN, SSH, SSH_KEYGEN, SSHD, TINC, VTUN};
use crate::{
    device::take,
    support::{
        daemon::{Backend, Daemon},
        device::{NO_PI, TAP, TUN, TunFile},
        program::Program,
        stack::StackClient,
        within_deadline,
    },
};

pub(super) fn openvpn_tun(backend: Backend) {
    openvpn(backend, Mode::Tun);
}

pub(super) fn openvpn_tap(backend: Backend) {
    openvpn(backend, Mode::Tap);
}

fn openvpn(backend: Backend, mode: Mode) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let names = [0, 1].map(|number| format!("{}{number}", mode.word()));
    let [left, right] = &names;
    let peer = |device: &str, from: &str, to: &str, port: &str, remote_port: &str| {
        let second = if mode == Mode::Tun { to } else { "255.255.255.0" };
        let arguments = format!(
            "--dev {device} --ifconfig {from} {second} --ifconfig-noexec --route-noexec \
             --local 127.0.0.1 --lport {port} --remote 127.0.0.1 {remote_port} --proto udp \
             --auth none --cipher none --verb 3 --ping 1 --txqueuelen 1000"
        );
        host.start(OPENVPN, &arguments.split_whitespace().collect::<Vec<_>>())
    };
    let peers = [
        peer(left, "10.8.0.1", "10.8.0.2", "1194", "1195"),
        peer(right, "10.8.0.2", "10.8.0.1", "1195", "1194"),
    ];
    for (peer, name) in peers.iter().zip(&names) {
        peer.line_with(&format!("TUN/TAP device {name} opened"));
        // There is no interface; an ordinary user is not even told that.
        let obstacle =
            if geteuid().is_root() { "No such device" } else { "Operation not permitted" };
        peer.line_with(&format!("Note: Cannot set tx queue length on {name}: {obstacle}"));
        peer.line_with("Initialization Sequence Completed");
    }
    expect_both_ways(&daemon, mode, [left, right], ["10.8.0.1", "10.8.0.2"]);
    let user = expect_service_beyond(&daemon, mode, [left, right], ["10.8.0.1/24", "10.8.0.2/24"]);
    for peer in peers {
        assert_eq!(end(&peer), Some(0));
    }
    expect_end(&daemon, &[left, right], user);
}

pub(super) fn tinc(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let folder = tempfile::tempdir().expect("a folder");
    let nodes =
        [("a", "127.0.0.1", "10.77.0.1", ""), ("b", "127.0.0.2", "10.77.0.2", "ConnectTo = a\n")];
    for (name, address, inside, connect) in nodes {
        let node = folder.path().join(name);
        fs::create_dir_all(node.join("hosts")).expect("a folder");
        let settings = format!(
            "Name = {name}\nAddressFamily = ipv4\nInterface = tinc_{name}\nBindToAddress = {address}\n\
             {connect}DeviceType = tun\nMode = router\n"
        );
        fs::write(node.join("tinc.conf"), settings).expect("a file");
        let about = format!("Address = {address}\nSubnet = {inside}/32\n");
        fs::write(node.join("hosts").join(name), about).expect("a file");
        // Appends the public key to what the others are to know.
        let keys = host.run(TINC, &["-c", text(&node), "-K1024"]);
        assert_eq!(keys.status, 0, "{keys:?}");
    }
    for (from, to) in [("a", "b"), ("b", "a")] {
        let about = |node: &str| folder.path().join(node).join("hosts").join(from);
        fs::copy(about(from), about(to)).expect("a file");
    }
    let [a, b] = nodes.map(|(name, ..)| {
        let node = folder.path().join(name);
        let pid_file = folder.path().join(format!("{name}.pid"));
        let pid_file = format!("--pidfile={}", text(&pid_file));
        let node = host.start(TINC, &["-c", text(&node), "-D", "-d3", &pid_file]);
        node.line_with("/dev/net/tun is a Linux tun/tap device (tun mode)");
        // Before the other one connects to it.
        node.line_with("Ready");
        node
    });
    for (node, other) in [(&a, "b"), (&b, "a")] {
        node.line_with(&format!("Connection with {other} "));
        // The other's subnet came before, and it looks at its device when it has done with this.
        node.line_with(&format!("Got ADD_EDGE from {other} "));
    }
    let tunnels = ["tinc_a", "tinc_b"];
    expect_both_ways(&daemon, Mode::Tun, tunnels, ["10.77.0.1", "10.77.0.2"]);
    let user = expect_service_beyond(&daemon, Mode::Tun, tunnels, ["10.77.0.1/24", "10.77.0.2/24"]);
    assert_eq!((end(&a), end(&b)), (Some(0), Some(0)));
    expect_end(&daemon, &tunnels, user);
}

/// Both ends let the device choose a name, and get the same one: each has a network of its own.
pub(super) fn vtun(backend: Backend) {
    let daemon = Daemon::start(backend);
    let [left, right] = Host::pair(&daemon);
    let folder = tempfile::tempdir().expect("a folder");
    let settings = folder.path().join("vtund.conf");
    // multi: without a lock file, which would be shared with other tests.
    let text_of_settings = "options { port 5000; syslog daemon; }\n\
        default { compress no; speed 0; multi yes; }\n\
        tt { passwd x; type tun; proto tcp; encrypt no; keepalive no; }\n";
    fs::write(&settings, text_of_settings).expect("a file");
    let server = left.start(VTUN, &["-n", "-s", "-f", text(&settings)]);
    // It does not say when it is ready.
    left.network.wait_until_listening(5000);
    let client = right.start(VTUN, &["-n", "-f", text(&settings), "tt", "192.0.2.1"]);
    server.line_with("Session tt[192.0.2.2:");
    client.line_with("Session tt[192.0.2.1] opened");
    let [left, right] = [left.tunnel("tun0"), right.tunnel("tun0")];
    for tunnel in [&left, &right] {
        daemon.wait_until(tunnel, Until::Attached);
    }
    expect_both_ways(&daemon, Mode::Tun, [&left, &right], ["10.50.0.1", "10.50.0.2"]);
    let user = expect_service_beyond(
        &daemon,
        Mode::Tun,
        [&left, &right],
        ["10.50.0.1/24", "10.50.0.2/24"],
    );
    end(&client);
    expect_end(&daemon, &[&left, &right], user);
    end(&server);
}

pub(super) fn ssh(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| text(&folder.path().join(name)).to_owned();
    for key in ["host", "user"] {
        host.run(SSH_KEYGEN, &["-q", "-t", "ed25519", "-N", "", "-f", &path(key)]).succeeded();
    }
    let settings = format!(
        "Port 2222\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\n\
         PermitRootLogin yes\nPermitTunnel yes\nStrictModes no\nUsePAM no\nLogLevel DEBUG1\nPidFile none\n",
        path("host"),
        path("user.pub"),
    );
    fs::write(path("settings"), settings).expect("a file");
    // Its service unit would make it.
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/sshd");
    made.expect("root may make a folder in /run");
    let server = host.start(SSHD, &["-D", "-e", "-f", &path("settings")]);
    server.line_with("Server listening on 127.0.0.1 port 2222");

    let user = path("user");
    let options = "-v -F none -p 2222 -o BatchMode=yes -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null -w 5:6 -N root@127.0.0.1";
    let arguments: Vec<&str> =
        ["-i", &user].into_iter().chain(options.split_whitespace()).collect();
    let client = host.start(SSH, &arguments);
    client.line_with("Tunnel forwarding using interface tun5");
    server.line_with("Tunnel forwarding using interface tun6");
    client.line_with("ssh_tun_confirm: tunnel forward established");
    expect_both_ways(&daemon, Mode::Tun, ["tun5", "tun6"], ["10.0.0.5", "10.0.0.6"]);
    let user =
        expect_service_beyond(&daemon, Mode::Tun, ["tun5", "tun6"], ["10.0.0.5/24", "10.0.0.6/24"]);
    end(&client);
    expect_end(&daemon, &["tun5", "tun6"], user);
    end(&server);
}

/// A small and a large datagram go unchanged from each tunnel to the other, and nothing else does.
#[track_caller]
fn expect_both_ways(daemon: &Daemon, mode: Mode, tunnels: [&str; 2], hosts: [&str; 2]) {
    let [left, right] = tunnels;
    let [host, other] = hosts.map(|host| host.parse::<IpAddr>().expect("an address"));
    let mut client = daemon.client();
    for (from, to, source, destination) in [(left, right, host, other), (right, left, other, host)]
    {
        let ping = packet::echo_request(source, destination, packet::Echo::default());
        let [source, destination] = [source, destination].map(|host| SocketAddr::new(host, 9));
        let large = packet::udp(source, destination, &[0x5a; 1_200]);
        for datagram in [ping, large] {
            let mut datagram = datagram.expect("two IPv4 addresses");
            if mode == Mode::Tap {
                let header = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
                datagram.splice(..0, header);
            }
            let call = Inject {
                tunnel: from.parse().expect("an address"),
                datagram: datagram.clone().into(),
                frame: mode == Mode::Tap,
                source: None,
                destination: None,
                vnet: None,
                timeout_ms: 0,
            };
            client.call(&call).unwrap_or_else(|error| panic!("inject: {error}"));
            assert_eq!(take(&mut client, to), datagram, "from {from} to {to}");
        }
    }
    for tunnel in daemon.list().tunnels {
        let counters = &tunnel.counters;
        assert_eq!(
            (counters.to_client.datagrams, counters.from_client.datagrams),
            (2, 2),
            "{tunnel:?}"
        );
    }
}

/// A client of a third tunnel, joined to the left one, talks TCP to a host at the right one: through both programs.
#[track_caller]
fn expect_service_beyond(
    daemon: &Daemon,
    mode: Mode,
    tunnels: [&str; 2],
    hosts: [&str; 2],
) -> StackClient {
    let [left, right] = tunnels;
    let (flags, hwaddr) = match mode {
        Mode::Tun => (TUN, None),
        Mode::Tap => (TAP, Some([2, 0, 0, 0, 0, 9])),
    };
    let file = TunFile::attached(&daemon.device, "user", flags | NO_PI);
    daemon.memtun(&["join", "user", left]).succeeded();
    daemon.memtun(&["host", right, "--addr", hosts[1]]).succeeded();
    let mut client = StackClient::new(file, &hosts[..1], hwaddr);
    let (host, _) = hosts[1].split_once('/').expect("an address with a prefix");
    let socket = client.connect(host, 7, 5_000);
    let data: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    assert!(client.exchange(socket, &data) == data, "what the host echoes is what was sent");
    client
}

/// The programs have closed their tunnels, and taken them with them. Until then something may be on its way through them,
/// such as a segment that was sent twice: the client that used them stays to get it.
#[track_caller]
fn expect_end(daemon: &Daemon, tunnels: &[&str], user: StackClient) {
    for tunnel in tunnels {
        daemon.wait_until(tunnel, Until::Detached);
    }
    drop(user);
    let mut harness = daemon.client();
    within_deadline("every tunnel to be gone, and its last datagrams with the host", move || {
        while !harness.call(&List {}).unwrap().tunnels.is_empty() {}
    });
}

/// Ends a program as a service manager would, and returns its exit status if it has one.
#[track_caller]
fn end(program: &Program) -> Option<i32> {
    program.signal(Signal::SIGTERM);
    program.wait().code()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}
