//! Programs that make persistent tunnels and delete them, while `ip` configures the interface.

use super::{Run, Way};

pub(super) fn ip_tuntap(way: Way) {
    let run = Run::start(
        way,
        "set -e
         ip tuntap add dev tt0 mode tun user 0 group 0
         ip tuntap add dev tt1 mode tap multi_queue vnet_hdr pi
         ip address add 10.1.0.1/24 dev tt0; ip link set tt0 up mtu 1400
         # The kernel tells of a carrier some time after it has changed.
         until ip -brief link show dev tt0 | grep NO-CARRIER; do :; done
         ip route get 10.1.0.9
         ip -details link show dev tt1 | grep 'tun type'
         ip tuntap show
         ip link set tt1 name other; ip link delete tt0
         ip tuntap del dev other mode tap multi_queue
         # The close of a file does not wait for what it does.
         while ip link show dev other >/dev/null 2>&1; do :; done
         ip -brief link; echo end",
    );
    let tt0 = run.program.line_with("tt0");
    assert!(tt0.contains("POINTOPOINT") && tt0.contains(",UP"), "{tt0}");
    assert!(run.program.line().contains("10.1.0.9 dev tt0 src 10.1.0.1"));
    let tt1 = run.program.line_with("tun type");
    assert!(tt1.contains("tun type tap pi on vnet_hdr on multi_queue"), "{tt1}");
    run.program.expect_line("tt0: tun persist user 0 group 0");
    run.program.expect_line("tt1: tap pi multi_queue vnet_hdr persist filter");
    assert!(run.program.line().starts_with("lo "), "nothing else is left");
    run.program.expect_line("end");
    assert_eq!(run.program.wait().code(), Some(0));
}

pub(super) fn ifconfig(way: Way) {
    let run = Run::start(
        way,
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

pub(super) fn tunctl(way: Way) {
    let said = ["Set 'tt0' persistent and owned by uid 0", "Set 'tt0' nonpersistent"];
    made_and_deleted(way, "tunctl -u root -t tt0", "tunctl -d tt0", "tap", said);
}

pub(super) fn vde_tunctl(way: Way) {
    let said = ["Set 'tt0' persistent and owned by uid 0", "Set 'tt0' nonpersistent"];
    made_and_deleted(way, "vde_tunctl -t tt0", "vde_tunctl -d tt0", "tap", said);
}

pub(super) fn busybox_tunctl(way: Way) {
    made_and_deleted(
        way,
        "busybox tunctl -t tt0",
        "busybox tunctl -d tt0",
        "tap",
        ["tt0", "Set 'tt0' nonpersistent"],
    );
}

pub(super) fn openvpn_mktun(way: Way) {
    let said = ["Persist state set to: ON", "Persist state set to: OFF"];
    let [make, delete] =
        ["--mktun", "--rmtun"].map(|verb| format!("openvpn {verb} --dev tt0 --dev-type tun"));
    made_and_deleted(way, &make, &delete, "tun", said);
}

/// One command makes `tt0`, which `ip` configures, and another deletes it; `said` by them.
#[track_caller]
fn made_and_deleted(way: Way, make: &str, delete: &str, mode: &str, said: [&str; 2]) {
    let run = Run::start(
        way,
        &format!(
            "set -e
             {make}
             ip address add 10.1.0.1/24 dev tt0; ip link set tt0 up mtu 1400; echo configured
             until [ -e deleted ]; do :; done
             {delete}
             while ip link show dev tt0 >/dev/null 2>&1; do :; done
             ip -brief link; echo end"
        ),
    );
    let [made, deleted] = said;
    run.program.line_with(made);
    run.program.line_with("configured");
    let kind = format!("tun type {mode} pi off");
    run.expect_link("tt0", &[&kind, "persist on", "10.1.0.1/24", "mtu 1400", "NO-CARRIER", ",UP"]);
    std::fs::write(run.folder.path().join("deleted"), "").expect("a file");
    run.program.line_with(deleted);
    assert!(run.program.line().starts_with("lo "), "nothing else is left");
    run.program.expect_line("end");
    assert_eq!(run.program.wait().code(), Some(0));
}

pub(super) fn pyroute2(way: Way) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/pyroute2_tuntap.py");
    let run = Run::start(way, &format!("mkfifo go; exec /usr/bin/python3 {script} <>go"));
    run.program.line_with("made");
    let owner = format!("persist on user {}", way.root());
    let wanted = ["tun type tap pi on", &owner, "10.3.0.1/24", "mtu 1300", ",UP"];
    run.expect_link("pr0", &wanted);
    std::fs::write(run.folder.path().join("go"), "\n").expect("it reads");
    run.program.expect_line("left []");
    assert_eq!(run.program.wait().code(), Some(0));
}
