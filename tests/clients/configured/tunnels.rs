//! Programs that join two tunnels by a network: what is put into one comes out of the other.

use memtun::core::Mode;

use super::{Run, Way};
use crate::run::User;

pub(super) fn openvpn_tun(way: Way) {
    openvpn(way, Mode::Tun);
}

pub(super) fn openvpn_tap(way: Way) {
    openvpn(way, Mode::Tap);
}

fn openvpn(way: Way, mode: Mode) {
    let (names, seconds, shown) = match mode {
        Mode::Tun => (
            &["tun0", "tun1"],
            ["10.8.0.2", "10.8.0.1"],
            ["10.8.0.1 peer 10.8.0.2/32", "10.8.0.2 peer 10.8.0.1/32"],
        ),
        Mode::Tap => (&["tap0", "tap1"], ["255.255.255.0"; 2], ["10.8.0.1/24", "10.8.0.2/24"]),
    };
    let [left, right] = *names;
    let [first, second] = seconds;
    let run = Run::start(
        way,
        &format!(
            "peer() {{ openvpn --dev $1 --ifconfig $2 $3 --local 127.0.0.1 --lport $4 --remote 127.0.0.1 --rport $5 \
                --proto udp --auth none --cipher none --verb 3 --ping 1 --tun-mtu 1400 --txqueuelen 700; }}
             peer {left} 10.8.0.1 {first} 1194 1195 &
             peer {right} 10.8.0.2 {second} 1195 1194"
        ),
    );
    for _ in 0..2 {
        run.program.line_with("Initialization Sequence Completed");
    }
    // SIOCSIFTXQLEN asks for the capability in the initial user namespace.
    let length = match (way.user(), mode) {
        (User::Root, _) => "qlen 700",
        (User::Ordinary, Mode::Tun) => "qlen 500",
        (User::Ordinary, Mode::Tap) => "qlen 1000",
    };
    for (name, address) in names.iter().zip(shown) {
        run.expect_link(name, &[address, "mtu 1400", length, ",UP"]);
    }
    run.wait_until_up(names);
    run.expect_both_ways(mode, *names, ["10.8.0.1", "10.8.0.2"]);
}

/// It is up when rtnetlink says so, and reads as much as the interface's MTU says.
pub(super) fn wireguard_go(way: Way) {
    let run = Run::start(
        way,
        "mount -t tmpfs tmpfs /run; mkdir /run/wireguard
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
    run.expect_link("wg0", &["10.77.0.1/24", "mtu 1420", ",UP"]);
    run.wait_until_up(&["wg0", "wg1"]);
    run.expect_both_ways(Mode::Tun, ["wg0", "wg1"], ["10.77.0.1", "10.77.0.2"]);
}

pub(super) fn vtun(way: Way) {
    let run = Run::start(
        way,
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
    run.program.line_with("Session tt[192.0.2.1] opened");
    // ifconfig runs beside.
    let shown = ["tun0", "tun1"].map(|name| run.expect_link(name, &["peer 10.50.0.", "mtu 1450"]));
    let is_servers = shown[0].contains("inet 10.50.0.1 peer 10.50.0.2");
    let [server, client] = if is_servers { ["tun0", "tun1"] } else { ["tun1", "tun0"] };
    run.expect_link(client, &["inet 10.50.0.2 peer 10.50.0.1", ",UP"]);
    run.wait_until_up(&["tun0", "tun1"]);
    run.expect_both_ways(Mode::Tun, [server, client], ["10.50.0.1", "10.50.0.2"]);
}

/// Its script configures the interface.
pub(super) fn tinc(way: Way) {
    let run = Run::start(
        way,
        "node() { # NAME ADDRESS INSIDE MORE
            mkdir -p $1/hosts
            printf \"Name = $1\\nAddressFamily = ipv4\\nInterface = tinc_$1\\nBindToAddress = $2\\n\
                DeviceType = tun\\nMode = router\\n$4\" > $1/tinc.conf
            printf \"Address = $2\\nSubnet = $3/32\\n\" > $1/hosts/$1
            printf '#!/bin/sh\\nip address add %s/24 dev $INTERFACE && ip link set $INTERFACE up mtu 1430\\n' $3 > $1/tinc-up
            chmod 755 $1/tinc-up
            tincd -c $1 -K1024 </dev/null
         }
         node a 127.0.0.1 10.77.0.1; node b 127.0.0.2 10.77.0.2 'ConnectTo = a\\n'
         cp a/hosts/a b/hosts; cp b/hosts/b a/hosts
         tincd -c a -D -d3 --pidfile=a.pid &
         # It listens once it is ready.
         until grep -q ':028F .* 0A ' /proc/net/tcp; do :; done
         exec tincd -c b -D -d3 --pidfile=b.pid",
    );
    for _ in 0..2 {
        run.program.line_with("/dev/net/tun is a Linux tun/tap device (tun mode)");
    }
    // The other's subnet came before, and a node looks at its device when it has done with this.
    for _ in 0..2 {
        run.program.line_with("Got ADD_EDGE from ");
    }
    run.expect_link("tinc_a", &["10.77.0.1/24", "mtu 1430", ",UP"]);
    run.expect_link("tinc_b", &["10.77.0.2/24", "mtu 1430", ",UP"]);
    run.wait_until_up(&["tinc_a", "tinc_b"]);
    run.expect_both_ways(Mode::Tun, ["tinc_a", "tinc_b"], ["10.77.0.1", "10.77.0.2"]);
}

/// Each end is configured by a command that ssh runs there.
pub(super) fn ssh(way: Way) {
    let run = Run::start(
        way,
        "for key in host user; do ssh-keygen -q -t ed25519 -N '' -f $key; done
         mount -t tmpfs tmpfs /run; mkdir -m 755 /run/sshd
         cat > settings <<END
Port 2222
ListenAddress 127.0.0.1
HostKey $FOLDER/host
AuthorizedKeysFile $FOLDER/user.pub
PermitRootLogin yes
PermitTunnel yes
StrictModes no
UsePAM no
PidFile none
END
         /usr/sbin/sshd -D -e -f settings &
         until grep -q ':08AE .* 0A ' /proc/net/tcp; do :; done
         ssh -n -v -F none -p 2222 -i user -o BatchMode=yes -o StrictHostKeyChecking=no \
            -o UserKnownHostsFile=/dev/null -o PermitLocalCommand=yes \
            -o LocalCommand='ip address add 10.0.0.5 peer 10.0.0.6 dev %T && ip link set %T up' \
            -w 5:6 root@127.0.0.1 \
            'ip address add 10.0.0.6 peer 10.0.0.5 dev tun6 && ip link set tun6 up && echo configured && exec sleep 1000'",
    );
    run.program.line_with("Tunnel forwarding using interface tun5");
    run.program.line_with("configured");
    run.expect_link("tun5", &["10.0.0.5 peer 10.0.0.6/32", "mtu 1500", ",UP"]);
    run.expect_link("tun6", &["10.0.0.6 peer 10.0.0.5/32", "mtu 1500", ",UP"]);
    run.wait_until_up(&["tun5", "tun6"]);
    run.expect_both_ways(Mode::Tun, ["tun5", "tun6"], ["10.0.0.5", "10.0.0.6"]);
}
