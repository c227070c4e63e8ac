//! Programs that speak a protocol of their own on a tunnel, and are answered.

use std::{fs, net::Ipv4Addr};

use memtun::{core::Mode, packet};

use super::{Run, Way, expect_link_of, put, udp};
use crate::{
    clients::stacks::{DISCOVER, OFFERED, REQUEST, take_dhcp},
    device::{inject, take},
};

pub(super) fn socat(way: Way) {
    let run =
        Run::start(way, "exec socat -d -d TUN:10.77.0.1/24,tun-name=tun77,iff-up,iff-no-pi PIPE");
    run.program.line_with("starting data transfer loop");
    run.expect_link("tun77", &["10.77.0.1/24", ",UP"]);
    run.wait_until_up(&["tun77"]);
    run.expect_to_pass(Mode::Tun, ["tun77", "tun77"], ["10.77.0.2", "10.77.0.1"]);
}

/// It opens the device in a namespace that it enters for that, and in which it configures the interface.
pub(super) fn slirp4netns(way: Way) {
    let run = Run::start(
        way,
        "unshare -n sleep 1000 & echo $! > $FOLDER/pid
         until [ \"$(readlink /proc/$!/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; do :; done
         exec slirp4netns --configure --mtu=65520 --disable-host-loopback --ready-fd=3 $! tap0 3>$FOLDER/ready",
    );
    run.wait_until_attached("tap0");
    let pid = fs::read_to_string(run.folder.path().join("pid")).expect("it is written");
    expect_link_of(pid.trim(), "tap0", &["10.0.2.100/24", "mtu 65520", ",UP"]);
    // Who has 10.0.2.2? The host that it emulates.
    run.wait_until_up(&["tap0"]);
    let mut client = run.client();
    put(&mut client, Mode::Tap, "tap0", &arp_request([10, 0, 2, 100], [10, 0, 2, 2]));
    expect_arp_reply(&take(&mut client, "tap0"), [10, 0, 2, 2]);
}

/// The daemon attaches to what `--mktun` left, and translates between hosts of IPv6 and of IPv4.
pub(super) fn tayga(way: Way) {
    let run = Run::start(
        way,
        "cat > settings <<END
tun-device nat64
ipv4-addr 192.168.255.1
ipv6-addr 2001:db8:2::1
prefix 2001:db8:1:ffff::/96
map 192.168.255.5 2001:db8::1
END
         tayga --config settings --mktun
         ip link set nat64 up; ip address add 192.168.255.254 dev nat64
         ip route add 192.168.255.0/24 dev nat64; ip route add 2001:db8:1:ffff::/96 dev nat64
         # Else its lines would wait in a buffer for more.
         exec stdbuf -oL tayga --config settings -d",
    );
    run.program.line_with("Created persistent tun device nat64");
    run.program.line_with("Using tun device nat64 with MTU 1500");
    run.program.line_with("NAT64 prefix: 2001:db8:1:ffff::/96");
    let wanted = ["192.168.255.254/32", "tun type tun pi on", "persist on", ",UP"];
    run.expect_link("nat64", &wanted);
    run.wait_until_attached("nat64");
    run.wait_until_up(&["nat64"]);

    let mut client = run.client();
    let (address, mapped) = ("2001:db8::1", "192.168.255.5");
    let (other, translated) = ("192.0.2.1", "2001:db8:1:ffff::c000:201");
    inject(&mut client, "nat64", &udp([address, translated]));
    let taken = take(&mut client, "nat64");
    let expected = udp([mapped, other]);
    assert_eq!(taken[12..], expected[12..], "addresses, UDP header with its checksum, and data");
    inject(&mut client, "nat64", &udp([other, mapped]));
    let taken = take(&mut client, "nat64");
    let expected = udp([translated, address]);
    assert_eq!(taken[..7], expected[..7], "all but the hop limit");
    assert_eq!(taken[8..], expected[8..]);
}

pub(super) fn scapy(way: Way) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/scapy_tuntap.py");
    let run = Run::start(
        way,
        &format!(
            "printf '#!/bin/sh\\nip address add 10.1.1.1/24 dev $1 && ip link set $1 up\\n' > up; chmod 755 up
             exec /usr/bin/python3 -W ignore {script} ./up"
        ),
    );
    let ping =
        packet::echo_request([10, 1, 1, 1].into(), [10, 1, 1, 2].into(), packet::Echo::default())
            .expect("two addresses");
    let frame = [&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0][..], &ping].concat();
    let mut client = run.client();
    for (name, mode, bytes, layers) in
        [("tun0", Mode::Tun, ping, ""), ("tap0", Mode::Tap, frame, "Ether / ")]
    {
        let sent = run.program.line_with("sent ");
        run.expect_link(name, &["10.1.1.1/24", ",UP"]);
        assert_eq!(sent, format!("sent {}", hex::encode(take(&mut client, name))));
        put(&mut client, mode, name, &bytes);
        run.program.expect_line(&format!(
            "sniffed {} {layers}IP / ICMP 10.1.1.1 > 10.1.1.2 echo-request 0 / Raw",
            hex::encode(&bytes)
        ));
        run.program.expect_line("closed");
    }
    assert!(run.program.wait().success());
}

/// Its own script brings the interface up.
pub(super) fn qemu(way: Way) {
    let run = Run::start(
        way,
        "printf '#!/bin/sh\\nip link set $1 up mtu 1480\\n' > up; chmod 755 up
         (echo info network; exec sleep 1000) | qemu-system-x86_64 -M pc -m 32 -display none -nodefaults -accel tcg \
            -monitor stdio -netdev tap,id=n0,ifname=tap0,script=$FOLDER/up,downscript=no \
            -device virtio-net-pci,netdev=n0 -boot n",
    );
    run.program.line_with("index=0,type=tap,ifname=tap0,script=");
    run.expect_link("tap0", &["mtu 1480", "tun type tap pi off vnet_hdr on", ",UP"]);
    run.wait_until_up(&["tap0"]);
    expect_boot(&run);
}

/// qemu-bridge-helper makes the tap, adds it to a bridge, and passes it on.
pub(super) fn qemu_bridge(way: Way) {
    let run = Run::start(
        way,
        "ip link add br0 type bridge && ip link set br0 up
         # Where the helper looks up what it may do.
         mount -t tmpfs tmpfs /etc; mkdir /etc/qemu; echo allow br0 > /etc/qemu/bridge.conf
         (echo info network; exec sleep 1000) | qemu-system-x86_64 -M pc -m 32 -display none -nodefaults -accel tcg \
            -monitor stdio -netdev bridge,id=n0,br=br0 -device virtio-net-pci,netdev=n0 -boot n",
    );
    run.program.line_with("index=0,type=tap,helper=");
    run.expect_link("tap0", &["master br0", "tun type tap pi off vnet_hdr on", ",UP"]);
    run.wait_until_up(&["tap0"]);
    expect_boot(&run);
}

/// The boot ROM of the network card asks for an address, is offered one, and wants it.
#[track_caller]
fn expect_boot(run: &Run) {
    let mut client = run.client();
    let discover = take_dhcp(&mut client, DISCOVER);
    inject(&mut client, "tap0", &discover.offer());
    assert_eq!(take_dhcp(&mut client, REQUEST).option(50), Some(&OFFERED[..]));
}

/// Where the host of [`arp_request`] is.
const HWADDR: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A frame by which one host asks where another is.
pub(super) fn arp_request(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let kind = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    [&[0xff; 6][..], &HWADDR, &kind, &HWADDR, &from, &[0; 6], &to].concat()
}

/// The host answers, which is the address that it has.
#[track_caller]
pub(super) fn expect_arp_reply(frame: &[u8], host: [u8; 4]) -> [u8; 6] {
    assert_eq!(frame[..6], HWADDR, "{frame:x?}");
    let is_reply = frame[12..14] == [8, 6] && frame[21] == 2;
    assert!(is_reply && frame[28..32] == host, "from {}: {frame:x?}", Ipv4Addr::from(host));
    frame[6..12].try_into().expect("six bytes")
}
