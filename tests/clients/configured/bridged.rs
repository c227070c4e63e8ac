//! Clients on a bridge, in two network namespaces joined by a cable: the kernel's own TCP goes through them and memtun.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use memtun::packet;
use memtun_client::proto::{
    event::What,
    list::{List, TunnelView},
    watch::Watch,
};

use super::{ConfiguredTest, Run, Way};
use crate::{
    clients::{IP, OPENVPN, WG, WIREGUARD_GO},
    device::{inject, take},
    support::{
        Background, daemon::Backend, network::Network, program::compiled, transfer::Transfer,
        until, within_deadline,
    },
};

#[rustfmt::skip]
pub const TESTS: &[ConfiguredTest] = &[
    ConfiguredTest::new("bridge_carries_tcp_of_openvpn",       &[OPENVPN, IP], openvpn_tun).with_tun(),
    ConfiguredTest::new("bridge_carries_tcp_of_openvpn_tap",   &[OPENVPN, IP], openvpn_tap).with_tun(),
    ConfiguredTest::new("bridge_carries_tcp_of_wireguard_go",  &[WIREGUARD_GO, WG, IP], wireguard_go).with_tun(),
    ConfiguredTest::new("bridge_keeps_tcp_of_a_tun_whole",     &[IP], whole_on_tun).with_tun(),
    ConfiguredTest::new("bridge_keeps_tcp_of_a_tap_whole",     &[IP], whole_on_tap).with_tun(),
    ConfiguredTest::new("bridge_taken_down_in_the_middle",     &[OPENVPN, IP], down_in_the_middle).with_tun(),
    ConfiguredTest::new("bridge_of_tcp_serves_its_harness",    &[OPENVPN, IP], harness_beside).with_tun(),
];

/// How much is transferred each way. Where there is CUSE that is most often an emulated machine.
fn length() -> usize {
    if Backend::Cuse.obstacle().is_none() { 512 << 10 } else { 4 << 20 }
}

/// The data of a segment, with timestamps: two are the least of what the kernel leaves whole, and with headers more than this.
const MSS: usize = 1_448;

/// Two namespaces of one `memtun run`, of which the script sees one, with `192.0.2.1`. In the other is what it runs by
/// `at_far`, with `192.0.2.2`.
struct Ends {
    run: Run,
    near: Network,
    far: Network,
}

impl Ends {
    /// The script ends with what stays.
    fn start(way: Way, script: &str) -> Self {
        let script = format!(
            r#"
            unshare -n tail -f /dev/null & far=/proc/$!/ns/net; echo $! > far
            until [ "$(readlink $far)" != "$(readlink /proc/self/ns/net)" ]; do :; done
            at_far() {{ nsenter --net=$far -- "$@"; }}
            ip link add cable type veth peer cable netns $!
            ip address add 192.0.2.1/24 dev cable; ip link set cable up
            at_far ip address add 192.0.2.2/24 dev cable; at_far ip link set cable up
            echo cabled
            {script}"#
        );
        let run = Run::start_with(way, &["--interface", "bridge"], &script);
        run.program.line_with("cabled");
        let far = fs::read_to_string(run.folder.path().join("far")).expect("it is written");
        let [near, far] = [Network::of(run.program.pid()), Network::of(far.trim())];
        Self { run, near, far }
    }

    /// Two openvpn, whose ends are 10.8.0.1 at `DEVICE0` and 10.8.0.2 at `DEVICE1`.
    fn openvpn(way: Way, device: &str, [near, far]: [&str; 2]) -> Self {
        let ends = Self::start(
            way,
            &format!(
                "options='--proto udp --ping 1 --auth none --cipher none'
                 openvpn $options --dev {device}0 --ifconfig {near} --local 192.0.2.1 --remote 192.0.2.2 &
                 at_far openvpn $options --dev {device}1 --ifconfig {far} --local 192.0.2.2 --remote 192.0.2.1"
            ),
        );
        for _ in 0..2 {
            ends.run.program.line_with("Initialization Sequence Completed");
        }
        ends
    }

    fn openvpn_on_tun(way: Way) -> Self {
        let ends = Self::openvpn(way, "tun", ["10.8.0.1 10.8.0.2", "10.8.0.2 10.8.0.1"]);
        ends.run.wait_until_up(&["tun0", "tun1"]);
        ends
    }

    fn connect(&self) -> Transfer {
        Transfer::start(&self.near, &self.far, "10.8.0.2")
    }
}

fn openvpn_tun(way: Way) {
    let ends = Ends::openvpn_on_tun(way);
    let transfer = ends.connect();
    transfer.wait_for(length());
    transfer.finish();
}

fn openvpn_tap(way: Way) {
    let ends = Ends::openvpn(way, "tap", ["10.8.0.1 255.255.255.0", "10.8.0.2 255.255.255.0"]);
    ends.run.wait_until_up(&["tap0", "tap1"]);
    let transfer = ends.connect();
    transfer.wait_for(length());
    transfer.finish();
}

/// Since 2023 it has vnet headers, and takes whole what the kernel leaves whole.
fn wireguard_go(way: Way) {
    let ends = Ends::start(
        way,
        r#"
        mount -t tmpfs tmpfs /run; mkdir /run/wireguard
        export LOG_LEVEL=verbose WG_PROCESS_FOREGROUND=1
        wireguard-go -f wg0 & at_far wireguard-go -f wg1 &
        for name in wg0 wg1; do
           until wg show $name >/dev/null 2>&1; do :; done
           wg genkey > $name; wg pubkey < $name > $name.pub
        done
        wg set wg0 private-key wg0 listen-port 51820 peer $(cat wg1.pub) \
           allowed-ips 10.8.0.2/32 endpoint 192.0.2.2:51820
        wg set wg1 private-key wg1 listen-port 51820 peer $(cat wg0.pub) \
           allowed-ips 10.8.0.1/32 endpoint 192.0.2.1:51820
        ip address add 10.8.0.1/24 dev wg0; ip link set wg0 up
        at_far ip address add 10.8.0.2/24 dev wg1; at_far ip link set wg1 up
        wait"#,
    );
    for _ in 0..2 {
        ends.run.program.line_with("Interface state was Down, requested Up, now Up");
    }
    ends.run.wait_until_up(&["wg0", "wg1"]);
    let transfer = ends.connect();
    transfer.wait_for(length());
    if tunnel(&ends.run, "wg0").flags.iter().any(|flag| flag == "IFF_VNET_HDR") {
        expect_whole(&ends.run, &["wg0", "wg1"]);
    }
    transfer.finish();
}

fn whole_on_tun(way: Way) {
    whole(way, "tun", &["tun0", "tun1"]);
}

fn whole_on_tap(way: Way) {
    whole(way, "tap", &["tap0", "tap1"]);
}

/// A client that only forwards.
fn whole(way: Way, mode: &str, tunnels: &'static [&'static str; 2]) {
    let [near, far] = tunnels;
    let program = compiled("forward");
    let program = program.display();
    let ends = Ends::start(way, &format!("{program} {mode} {near} $far {far}"));
    ends.run.program.line_with("attached");
    for (network, name, address) in
        [(&ends.near, near, "10.8.0.1/24"), (&ends.far, far, "10.8.0.2/24")]
    {
        network.ip(&["address", "add", address, "dev", name]);
        network.ip(&["link", "set", name, "up"]);
    }
    ends.run.wait_until_up(tunnels);
    let transfer = ends.connect();
    transfer.wait_for(length());
    expect_whole(&ends.run, tunnels);
    transfer.finish();
}

/// Through both tunnels go datagrams that the kernel has left whole, both ways.
#[track_caller]
fn expect_whole(run: &Run, tunnels: &[&str; 2]) {
    for tunnel in tunnels {
        let mut watcher = run.client();
        watcher.call(&Watch { tunnel: Some(tunnel.parse().expect("an address")) }).expect("watch");
        within_deadline("datagrams of several segments", move || {
            let (mut to_client, mut from_client) = (false, false);
            while !(to_client && from_client) {
                let what = watcher.next_event().expect("something passes").what;
                if let What::ToClient(passed) = &what {
                    to_client |= passed.datagram.len() > 2 * MSS;
                } else if let What::FromClient(passed) = &what {
                    from_client |= passed.datagram.len() > 2 * MSS;
                }
            }
        });
    }
}

/// While the near link is down the kernel sends in vain; then the transfer goes on.
fn down_in_the_middle(way: Way) {
    let ends = Ends::openvpn_on_tun(way);
    let transfer = ends.connect();
    for _ in 0..3 {
        transfer.wait_for(length() / 4);
        ends.near.ip(&["link", "set", "tun0", "down"]);
        until(|| tunnel(&ends.run, "tun0").link == "down");
        until(|| resends(&ends.near) > 0);
        ends.near.ip(&["link", "set", "tun0", "up"]);
    }
    transfer.wait_for(length() / 4);
    transfer.finish();
    assert_eq!(tunnel(&ends.run, "tun0").link, "up");
}

#[track_caller]
fn tunnel(run: &Run, name: &str) -> TunnelView {
    let tunnels = run.client().call(&List {}).expect("list").tunnels;
    tunnels.into_iter().find(|tunnel| tunnel.name == name).expect("it is listed")
}

/// How often in a row the one connection of a namespace has sent the same again.
fn resends(network: &Network) -> u32 {
    let shown = network.command().args(["cat", "/proc/net/tcp"]).output().expect("nsenter runs");
    let shown = String::from_utf8_lossy(&shown.stdout);
    let connection = shown.lines().nth(1).expect("there is one");
    let resends = connection.split_whitespace().nth(6).expect("the seventh column: retrnsmt");
    u32::from_str_radix(resends, 16).expect("a number in hex")
}

/// What the harness injects arrives among what the kernel sends, and copies of both can be taken.
fn harness_beside(way: Way) {
    const MANY: u8 = 30;
    let ends = Ends::openvpn_on_tun(way);
    let [near, far] = ["10.8.0.1:4000", "10.8.0.2:4000"]
        .map(|address| address.parse::<SocketAddr>().expect("an address"));
    let socket = ends.far.inside(|| UdpSocket::bind(far)).expect("an address there");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time");
    let mut client = ends.run.client();
    // Queues on the way may be full of what TCP has sent, so one that does not arrive is sent again.
    let mut send = |number| {
        let datagram = packet::udp(near, far, &[number; 100]).expect("two IPv4 addresses");
        let arrived = (0..5).any(|_| {
            inject(&mut client, "tun0", &datagram);
            let mut received = [0; 200];
            let come = std::iter::repeat_with(|| {
                socket.recv(&mut received).map(|length| received[..length].to_vec())
            });
            come.map_while(Result::ok).any(|data| data == [number; 100])
        });
        assert!(arrived, "{number}");
        datagram
    };

    let transfer = ends.connect();
    transfer.wait_for(length() / 4);
    let taking = Background::start({
        let mut client = ends.run.client();
        move || {
            // The kernel speaks IPv6 with its neighbours too.
            let copies = std::iter::repeat_with(|| take(&mut client, "tun1"));
            for copy in copies.filter(|copy| copy[0] >> 4 == 4).take(MANY.into()) {
                assert_eq!(copy[12..20], [10, 8, 0, 1, 10, 8, 0, 2], "{copy:x?}");
                assert!(matches!(copy[9], 6 | 17), "{copy:x?}");
            }
        }
    });
    (0..MANY).for_each(|number| drop(send(number)));
    taking.join("copies");
    transfer.wait_for(length() / 4);
    transfer.finish();
    let last = send(MANY);
    let mut client = ends.run.client();
    while take(&mut client, "tun1") != last {}
}
