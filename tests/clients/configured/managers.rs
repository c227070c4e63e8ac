//! Daemons that manage a system's network, and make tunnels for it.

use super::{Run, Way};

pub(super) fn networkd(way: Way) {
    let run = Run::start(
        way,
        // Where /sys is read-only it does not wait for udev.
        "set -e
         mount -o remount,bind,ro /sys; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /etc/systemd/network
         mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
         chown -R systemd-network: /run/systemd/netif
         cat > /etc/systemd/network/nd0.netdev <<END
[NetDev]
Name=nd0
Kind=tun
[Tun]
User=root
Group=root
MultiQueue=yes
END
         cat > /etc/systemd/network/nd0.network <<END
[Match]
Name=nd0
[Link]
MTUBytes=1400
[Network]
Address=10.4.0.1/24
ConfigureWithoutCarrier=yes
LinkLocalAddressing=no
[Route]
Destination=10.5.0.0/16
END
         export SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=debug
         /usr/lib/systemd/systemd-networkd &
         until grep -qs ADMIN_STATE=configured /run/systemd/netif/links/*; do :; done
         ip route show dev nd0 proto static; wait",
    );
    run.program.line_with("nd0: Created");
    run.program.line_with("nd0: State changed: configuring -> configured");
    run.program.line_with("10.5.0.0/16 scope link");
    let kind = "tun type tun pi off vnet_hdr off multi_queue";
    let owner = format!("persist on user {}", way.root());
    let wanted = [kind, &owner, "10.4.0.1/24", "mtu 1400", ",UP"];
    run.expect_link("nd0", &wanted);
}

/// On a message bus of its own.
pub(super) fn network_manager(way: Way) {
    let run = Run::start(
        way,
        "set -e
         for at in /run /etc/NetworkManager /var/lib/NetworkManager; do mount -t tmpfs tmpfs $at; done
         # Where it is read-only it does not wait for udev.
         mount -o remount,bind,ro /sys
         cat > bus <<END
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context=\"default\">
    <allow send_destination=\"*\" eavesdrop=\"true\"/>
    <allow eavesdrop=\"true\"/>
    <allow own=\"*\"/>
  </policy>
</busconfig>
END
         cat > settings <<END
[main]
plugins=keyfile
auth-polkit=false
dns=none
[keyfile]
path=/run/connections
END
         export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/bus
         dbus-daemon --config-file=$FOLDER/bus --nofork --nopidfile &
         until [ -S /run/bus ]; do :; done
         NetworkManager --no-daemon --config=$FOLDER/settings --config-dir=/run/none &
         until nmcli general status >/dev/null 2>&1; do :; done
         nmcli connection add type tun ifname nm0 con-name test mode tap owner 0 group 0 vnet-hdr yes \
            ipv4.method manual ipv4.addresses 10.6.0.1/24 ipv6.method disabled
         nmcli connection up test; nmcli --terse device
         until [ -e deleted ]; do :; done
         nmcli connection delete test
         while ip link show dev nm0 >/dev/null 2>&1; do :; done
         ip -brief link; echo end",
    );
    run.program.line_with("successfully added");
    run.program.line_with("Connection successfully activated");
    run.program.line_with("nm0:tun:connected:test");
    let kind = format!("tun type tap pi off vnet_hdr on persist on user {}", way.root());
    run.expect_link("nm0", &[&kind, "10.6.0.1/24", ",UP"]);
    std::fs::write(run.folder.path().join("deleted"), "").expect("a file");
    run.program.line_with("successfully deleted");
    assert!(run.program.line().starts_with("lo "), "nothing else is left");
    run.program.expect_line("end");
}
