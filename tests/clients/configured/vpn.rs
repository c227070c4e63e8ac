//! Two instances of a VPN in one network namespace, over loopback sockets: a ping enters at the near tunnel, and a host at
//! the far one answers.
//!
//! The host is all there is of the far network. Its addresses of [`BEYOND`] are no interface's in the namespace, so the
//! kernel sends what is for them into the near tunnel, which is a bridge by then.

use std::{net::IpAddr, process::Command};

use memtun::{core::Mode, packet, render};

use super::{ConfiguredTest, Run, Way};
use crate::{
    clients::{IP, OPENSSL, OPENVPN, PING, TINC},
    device::{inject, take},
    support::daemon::{MEMTUN, run},
};

#[rustfmt::skip]
pub const TESTS: &[ConfiguredTest] = &[
    ConfiguredTest::new("vpn_openvpn_static_key", &[OPENVPN, IP, PING], openvpn_static_key).with_tun(),
    ConfiguredTest::new("vpn_openvpn_tls",        &[OPENVPN, OPENSSL, IP, PING], openvpn_tls).with_tun(),
    ConfiguredTest::new("vpn_tinc",               &[TINC, IP, PING], tinc).with_tun(),
    ConfiguredTest::new("vpn_joined_to_another",  &[OPENVPN, IP, PING], joined_to_another).with_tun(),
];

/// In the network behind the far end, to which the near one has routes.
const BEYOND: [&str; 2] = ["10.9.0.77", "fd09::77"];

/// A tunnel, and what its end of the VPN has for addresses.
struct End {
    tunnel: &'static str,
    addresses: [&'static str; 2],
}

/// The shell's `peer DEVICE NETWORK OWN OTHER [OPTION...]`: one end of a VPN without certificates. openvpn 2.7 wants to be
/// told that this is meant, 2.6 does not know the option.
///
/// The gateway of `--route` would be the other end, whose address is of this namespace too; so a script adds that route.
const STATIC_KEY: &str = r#"
    openvpn --genkey secret key
    peer() {
        device=$1 net=$2 own=$3 other=$4; shift 4
        openvpn --dev $device --ifconfig 10.$net.0.$own 10.$net.0.$other \
            --ifconfig-ipv6 fd$net::$own/64 fd$net::$other --local 127.0.0.1 --remote 127.0.0.1 \
            --lport 1${net}0$own --rport 1${net}0$other --proto udp --ping 1 --cipher AES-256-CBC \
            --secret key --setenv opt allow-deprecated-insecure-static-crypto "$@"
    }
    near() { peer "$@" --route-ipv6 fd09::/64 --script-security 2 --route-up '/sbin/ip route add 10.9.0.0/24 dev tun0'; }
"#;

fn openvpn_static_key(way: Way) {
    let run = Run::start(way, &format!("{STATIC_KEY} near tun0 18 1 2 & peer tun1 18 2 1"));
    for _ in 0..2 {
        run.program.line_with("Initialization Sequence Completed");
    }
    let near = End { tunnel: "tun0", addresses: ["10.18.0.1", "fd18::1"] };
    let far = End { tunnel: "tun1", addresses: ["10.18.0.2", "fd18::2"] };
    run.wait_until_up(&["tun0", "tun1"]);
    expect_answers(&run, way, &near, &far);
}

/// A server, and a client that it gives addresses and a route. A kernel that has a driver for openvpn is not to be asked.
fn openvpn_tls(way: Way) {
    let run = Run::start(
        way,
        r#"
        certificate() {
            name=$1; shift
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                -subj /CN=$name -keyout $name.key -out $name.crt "$@" 2>/dev/null
        }
        certificate ca
        for name in server client; do
            certificate $name -CA ca.crt -CAkey ca.key -addext basicConstraints=CA:FALSE \
                -addext keyUsage=digitalSignature -addext extendedKeyUsage=${name}Auth
        done
        cat > server.conf <<END
dev tun1
disable-dco
local 127.0.0.1
proto udp
ca ca.crt
cert server.crt
key server.key
dh none
topology subnet
server 10.8.0.0 255.255.255.0
server-ipv6 fd08::/64
push "route-ipv6 fd09::/64"
keepalive 10 60
END
        cat > client.conf <<END
client
dev tun0
disable-dco
remote 127.0.0.1
nobind
ca ca.crt
cert client.crt
key client.key
remote-cert-tls server
script-security 2
route-up "/sbin/ip route add 10.9.0.0/24 dev tun0"
END
        openvpn server.conf & openvpn client.conf"#,
    );
    for _ in 0..2 {
        run.program.line_with("Initialization Sequence Completed");
    }
    let near = End { tunnel: "tun0", addresses: ["10.8.0.2", "fd08::1000"] };
    let far = End { tunnel: "tun1", addresses: ["10.8.0.1", "fd08::1"] };
    run.wait_until_up(&["tun0", "tun1"]);
    expect_answers(&run, way, &near, &far);
}

fn tinc(way: Way) {
    let run = Run::start(
        way,
        r#"
        node() { # NAME NUMBER SUBNET...
            name=$1 number=$2; shift 2; mkdir -p $name/hosts
            printf '%s\n' "Name = $name" "AddressFamily = ipv4" "Interface = tinc_$name" \
                "BindToAddress = 127.0.0.$number" "DeviceType = tun" > $name/tinc.conf
            echo Address = 127.0.0.$number > $name/hosts/$name
            printf 'Subnet = %s\n' 10.8.0.$number fd08::$number "$@" >> $name/hosts/$name
            cat > $name/tinc-up <<END
#!/bin/sh
ip address add 10.8.0.$number/24 dev \$INTERFACE
ip address add fd08::$number/64 dev \$INTERFACE
ip link set \$INTERFACE up
END
            chmod +x $name/tinc-up
            tincd -c $name -K1024 </dev/null >/dev/null 2>&1
        }
        node a 1
        node b 2 10.9.0.0/24 fd09::/64
        echo 'ip route add 10.9.0.0/24 dev $INTERFACE; ip route add fd09::/64 dev $INTERFACE' >> a/tinc-up
        echo ConnectTo = a >> b/tinc.conf
        cp a/hosts/a b/hosts/; cp b/hosts/b a/hosts/
        tincd -c a -D -d3 --pidfile=a.pid & tincd -c b -D -d3 --pidfile=b.pid"#,
    );
    // Each has got the other's subnets before that, and either may be the first.
    let mut awaited = vec!["Got ADD_EDGE from a ", "Got ADD_EDGE from b "];
    while !awaited.is_empty() {
        let line = run.program.line();
        awaited.retain(|text| !line.contains(text));
    }
    let near = End { tunnel: "tinc_a", addresses: ["10.8.0.1", "fd08::1"] };
    let far = End { tunnel: "tinc_b", addresses: ["10.8.0.2", "fd08::2"] };
    run.wait_until_up(&["tinc_a", "tinc_b"]);
    expect_answers(&run, way, &near, &far);
}

/// Two VPNs, of which one ends where the other begins.
fn joined_to_another(way: Way) {
    let script = "near tun0 18 1 2 & peer tun1 18 2 1 & peer tun2 19 1 2 & peer tun3 19 2 1";
    let run = Run::start(way, &format!("{STATIC_KEY} {script}"));
    for _ in 0..4 {
        run.program.line_with("Initialization Sequence Completed");
    }
    let near = End { tunnel: "tun0", addresses: ["10.18.0.1", "fd18::1"] };
    let far = End { tunnel: "tun3", addresses: ["10.19.0.2", "fd19::2"] };
    run.wait_until_up(&["tun0", "tun1", "tun2", "tun3"]);
    memtun(&run, &["join", "tun1", "tun2"]);
    expect_answers(&run, way, &near, &far);
}

/// A host at the far end answers the harness, and `ping` once the near end is a bridge.
#[track_caller]
fn expect_answers(run: &Run, way: Way, near: &End, far: &End) {
    let address =
        |address: &&str| format!("--addr={address}/{}", if is_v4(address) { 24 } else { 64 });
    let addresses: Vec<String> = far.addresses.iter().chain(&BEYOND).map(address).collect();
    let host = ["host", far.tunnel].into_iter().chain(addresses.iter().map(String::as_str));
    memtun(run, &host.collect::<Vec<_>>());

    let mut client = run.client();
    for (from, to) in near.addresses.into_iter().zip(far.addresses) {
        let [source, destination] = [from, to].map(|address| address.parse().expect("an address"));
        let request = packet::echo_request(source, destination, packet::Echo::default())
            .expect("addresses of one kind");
        inject(&mut client, near.tunnel, &request);
        let reply = take(&mut client, near.tunnel);
        expect_reply(&reply, to, from, 1);
        assert!(reply.ends_with(&request[request.len() - 56..]), "its data come back");
    }

    memtun(run, &["interface", near.tunnel, "bridge"]);
    for (from, to) in near.addresses.into_iter().zip(BEYOND) {
        // Without a deadline it does not wait for the last reply longer than the others took; with one it may ask once more.
        let arguments = [PING.path, "-i", "0.2", "-c", "3", "-w", "30", to];
        let pinged = run.command(way).args(arguments).output().expect("nsenter runs");
        let said = String::from_utf8_lossy(&pinged.stdout);
        assert!(pinged.status.success(), "{pinged:?}");
        assert!(said.contains(" packets transmitted, 3 received, "), "{said}");
        let version = if is_v4(to) { 4 } else { 6 };
        let copies = std::iter::repeat_with(|| take(&mut client, near.tunnel));
        let copies = copies.filter(|copy| copy[0] >> 4 == version);
        (1..=3).zip(copies).for_each(|(sequence, copy)| expect_reply(&copy, to, from, sequence));
    }
}

#[track_caller]
fn expect_reply(datagram: &[u8], from: &str, to: &str, sequence: u32) {
    let shown = render::datagram(datagram, Mode::Tun);
    let kind = if is_v4(from) { "ICMP" } else { "ICMP6" };
    let start = format!("{from} > {to}: {kind} echo reply, id ");
    let end = format!(", seq {sequence}, length 64");
    assert!(shown.starts_with(&start) && shown.ends_with(&end), "{start}, {end}: {shown}");
}

fn is_v4(address: &str) -> bool {
    address.parse::<IpAddr>().expect("an address").is_ipv4()
}

/// The program as its user runs it, which must succeed.
#[track_caller]
fn memtun(of: &Run, arguments: &[&str]) {
    run(Command::new(MEMTUN).args(arguments).env("MEMTUN_CONTROL", &of.control), b"").succeeded();
}
