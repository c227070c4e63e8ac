//! smoltcp's `TunTapInterface`, in a program of its own: this one, started anew.

use std::{convert::Infallible, os::fd::AsRawFd};

use memtun::{core::Mode, packet};
use smoltcp::{
    iface::{Config, Interface, SocketSet},
    phy::{Device, Medium, TunTapInterface, wait},
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr},
};

use super::{
    Run, Way, put,
    stacks::{arp_request, expect_arp_reply},
};
use crate::device::take;

/// By which this program is smoltcp's; what follows is the name of an interface.
const OPTION: &str = "--smoltcp";

const HOST: [u8; 4] = [192, 168, 69, 1];
const HWADDR: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Becomes a host that answers pings, if the arguments say so.
pub fn serve_if_asked() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [option, name] = &arguments[..]
        && option == OPTION
    {
        serve(name);
    }
}

fn serve(name: &str) -> Infallible {
    let (medium, hardware) = match name {
        "tun0" => (Medium::Ip, HardwareAddress::Ip),
        _ => (Medium::Ethernet, HardwareAddress::Ethernet(EthernetAddress(HWADDR))),
    };
    let mut device = TunTapInterface::new(name, medium).expect("it attaches");
    let mut interface = Interface::new(Config::new(hardware), &mut device, Instant::now());
    let address = IpCidr::new(IpAddress::Ipv4(HOST.into()), 24);
    interface.update_ip_addrs(|addresses| addresses.push(address).expect("there is room"));
    println!("{name} passes {} bytes", device.capabilities().max_transmission_unit);
    let mut sockets = SocketSet::new(Vec::new());
    loop {
        let now = Instant::now();
        interface.poll(now, &mut device, &mut sockets);
        let delay = interface.poll_delay(now, &sockets);
        wait(device.as_raw_fd(), delay).expect("it can be waited for");
    }
}

/// It takes the MTU of the interface that `ip` has made for it.
pub(super) fn smoltcp(way: Way) {
    let program = std::env::current_exe().expect("this program has a path");
    let run = Run::start(
        way,
        &format!(
            "for mode in tun tap; do
                ip tuntap add name ${{mode}}0 mode $mode
                ip link set ${{mode}}0 up mtu 1400; ip address add 192.168.69.100/24 dev ${{mode}}0
                {} {OPTION} ${{mode}}0 &
             done; wait",
            program.display()
        ),
    );
    let mut said = [(); 2].map(|()| run.program.line_with(" passes "));
    said.sort();
    assert_eq!(said, ["tap0 passes 1414 bytes", "tun0 passes 1400 bytes"]);
    for name in ["tun0", "tap0"] {
        run.expect_link(name, &["192.168.69.100/24", "mtu 1400", "persist on", ",UP"]);
    }
    run.wait_until_up(&["tun0", "tap0"]);

    let (own, host) = ([192, 168, 69, 100], HOST);
    let ping = packet::echo_request(own.into(), host.into(), packet::Echo::default())
        .expect("two IPv4 addresses");
    let mut client = run.client();
    put(&mut client, Mode::Tun, "tun0", &ping);
    expect_echo(&ping, &take(&mut client, "tun0"));

    put(&mut client, Mode::Tap, "tap0", &arp_request(own, host));
    let hwaddr = expect_arp_reply(&take(&mut client, "tap0"), host);
    assert_eq!(hwaddr, HWADDR);
    let frame = [&hwaddr[..], &[2, 0, 0, 0, 0, 9, 8, 0], &ping].concat();
    put(&mut client, Mode::Tap, "tap0", &frame);
    expect_echo(&ping, &take(&mut client, "tap0")[14..]);
}

/// The reply to a ping: its addresses swapped, what it carries the same.
#[track_caller]
fn expect_echo(request: &[u8], reply: &[u8]) {
    assert_eq!([&reply[16..20], &reply[12..16]], [&request[12..16], &request[16..20]]);
    assert_eq!((reply[9], reply[20]), (1, 0), "an ICMP echo reply: {reply:x?}");
    assert_eq!(reply[24..], request[24..], "id, number and data");
}
