//! Programs that make persistent tunnels and delete them.

use nix::unistd::geteuid;

use super::{BUSYBOX, Host, IP, OPENVPN, TUNCTL, VDE_TUNCTL};
use crate::support::daemon::{Backend, Daemon};

pub(super) fn ip_tuntap(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let ip = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        host.run(IP, &arguments)
    };
    assert_eq!(ip("tuntap add dev tt0 mode tun").succeeded(), "");
    assert_eq!(shown(&host), ["tt0 tun IFF_NO_PI, persistent"]);
    let all = "user 65534 group 65534 multi_queue vnet_hdr pi one_queue";
    assert_eq!(ip(&format!("tuntap add dev tt1 mode tap {all}")).succeeded(), "");
    assert_eq!(
        shown(&host),
        [
            "tt0 tun IFF_NO_PI, persistent",
            "tt1 tap IFF_MULTI_QUEUE IFF_ONE_QUEUE IFF_VNET_HDR, persistent, user 65534, group 65534"
        ]
    );
    // They are not the kernel's.
    assert_eq!(ip("tuntap show").succeeded(), "");
    assert_eq!(ip("-brief link").succeeded().lines().count(), 1, "the loopback interface");

    let busy = ip("tuntap add dev tt0 mode tun").failed(1);
    assert_eq!(busy, "ioctl(TUNSETIFF): Device or resource busy");
    let other_kind = ip("tuntap del dev tt0 mode tap").failed(1);
    assert_eq!(other_kind, "ioctl(TUNSETIFF): Invalid argument");
    assert_eq!(host.tunnels().len(), 2);

    assert_eq!(ip("tuntap del dev tt0 mode tun").succeeded(), "");
    assert_eq!(host.tunnels().len(), 1);
    assert_eq!(ip("tuntap del dev tt1 mode tap multi_queue").succeeded(), "");
    assert_eq!(host.tunnels().len(), 0);
}

pub(super) fn tunctl(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let tunctl = |arguments: &[&str]| host.run(TUNCTL, arguments).succeeded();
    let uid = geteuid();
    assert_eq!(tunctl(&["-t", "tc0"]), format!("Set 'tc0' persistent and owned by uid {uid}\n"));
    assert_eq!(tunctl(&["-b"]), "tap0\n", "the name that the device chose");
    assert_eq!(
        shown(&host),
        ["tc0", "tap0"].map(|name| format!("{name} tap IFF_NO_PI, persistent, user {uid}"))
    );
    assert_eq!(tunctl(&["-d", "tc0"]), "Set 'tc0' nonpersistent\n");
    assert_eq!(tunctl(&["-d", "tap0"]), "Set 'tap0' nonpersistent\n");
    assert_eq!(host.tunnels().len(), 0);
}

pub(super) fn vde_tunctl(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let made = host.run(VDE_TUNCTL, &["-n", "-t", "vt0", "-u", "nobody"]).succeeded();
    assert_eq!(made, "Set 'vt0' persistent and owned by uid 65534\n");
    assert_eq!(shown(&host), ["vt0 tun IFF_NO_PI, persistent, user 65534"]);
    // It takes vt0 for a tap when it deletes.
    let refused = host.run(VDE_TUNCTL, &["-d", "vt0"]).failed(1);
    assert_eq!(refused, "TUNSETIFF: Invalid argument");
    assert_eq!(host.tunnels().len(), 1);

    let made = host.run(VDE_TUNCTL, &["-t", "tun9"]).succeeded();
    let uid = geteuid();
    assert_eq!(made, format!("Set 'tun9' persistent and owned by uid {uid}\n"));
    assert_eq!(shown(&host)[1], format!("tun9 tun IFF_NO_PI, persistent, user {uid}"));
    let deleted = host.run(VDE_TUNCTL, &["-d", "tun9"]).succeeded();
    assert_eq!(deleted, "Set 'tun9' nonpersistent\n");
    assert_eq!(host.tunnels().len(), 1);
}

pub(super) fn busybox_tunctl(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let tunctl = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["tunctl"].iter().chain(arguments).copied().collect();
        host.run(BUSYBOX, &arguments).succeeded()
    };
    assert_eq!(tunctl(&["-t", "bb0"]), "bb0\n");
    assert_eq!(shown(&host), ["bb0 tap IFF_NO_PI, persistent"]);
    assert_eq!(tunctl(&["-d", "bb0"]), "Set 'bb0' nonpersistent\n");
    assert_eq!(host.tunnels().len(), 0);
}

pub(super) fn openvpn_mktun(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let openvpn = |arguments: &[&str]| host.run(OPENVPN, arguments).succeeded();
    let made = openvpn(&["--mktun", "--dev", "tun7", "--user", "nobody", "--group", "nogroup"]);
    assert!(made.contains("TUN/TAP device tun7 opened\n"), "{made}");
    assert!(made.contains("Persist state set to: ON\n"), "{made}");
    assert_eq!(
        shown(&host),
        ["tun7 tun IFF_NO_PI IFF_ONE_QUEUE, persistent, user 65534, group 65534"]
    );
    let deleted = openvpn(&["--rmtun", "--dev", "tun7"]);
    assert!(deleted.contains("Persist state set to: OFF\n"), "{deleted}");
    assert_eq!(host.tunnels().len(), 0);
}

/// What a program that has ended left of each tunnel.
#[track_caller]
fn shown(host: &Host<'_>) -> Vec<String> {
    let tunnels = host.tunnels();
    tunnels
        .iter()
        .map(|tunnel| {
            assert!(tunnel.files.is_empty(), "{tunnel:?}");
            let mut text = format!("{} {} {}", tunnel.name, tunnel.mode, tunnel.flags.join(" "));
            text += if tunnel.persistent { ", persistent" } else { "" };
            let ids = [("user", tunnel.owner), ("group", tunnel.group)];
            for (what, id) in ids.iter().filter_map(|(what, id)| id.map(|id| (what, id))) {
                text += &format!(", {what} {id}");
            }
            text
        })
        .collect()
}
