//! Programs that speak a protocol of their own on a tunnel, and are answered.

use std::io::{Write, pipe};

use etherparse::{SlicedPacket, TransportSlice};
use memtun::packet;
use memtun_client::{
    Client,
    proto::{
        Vnet,
        take::{Take, TakenDatagram},
        wait::Until,
    },
};

use super::{Host, PATIENCE, PYTHON, QEMU, expect_gone};
use crate::{
    device::inject,
    support::{
        daemon::{Backend, Daemon},
        program::Program,
    },
};

pub(super) fn scapy(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/scapy_tuntap.py");
    let program = host.start(PYTHON, &["-W", "ignore", script]);
    let mut client = daemon.client();
    let ping =
        packet::echo_request([10, 1, 1, 1].into(), [10, 1, 1, 2].into(), packet::Echo::default())
            .unwrap();

    // A tun has a PI header, which scapy puts on and takes off.
    let sent = program.line_with("sent ");
    let TakenDatagram { datagram, protocol, vnet, .. } = take_one(&mut client, "tun0");
    assert_eq!(
        (sent, protocol, vnet),
        (format!("sent {}", hex::encode(datagram)), Some(0x0800), None)
    );
    inject(&mut client, "tun0", &ping);
    program.expect_line(&format!(
        "sniffed {} IP / ICMP 10.1.1.1 > 10.1.1.2 echo-request 0 / Raw",
        hex::encode(&ping)
    ));
    program.expect_line("closed");

    let sent = program.line_with("sent ");
    let TakenDatagram { datagram, protocol, vnet, .. } = take_one(&mut client, "tap0");
    assert_eq!((sent, protocol, vnet), (format!("sent {}", hex::encode(datagram)), None, None));
    let tunnels = host.tunnels();
    let tap = tunnels.iter().find(|tunnel| tunnel.name == "tap0").expect("it is open");
    let hwaddr = tap.hwaddr.as_ref().expect("a tap has an address").replace(':', "");
    inject(&mut client, "tap0", &ping);
    program.expect_line(&format!(
        "sniffed {}{hwaddr}0800{} Ether / IP / ICMP 10.1.1.1 > 10.1.1.2 echo-request 0 / Raw",
        "ff".repeat(6),
        hex::encode(&ping)
    ));
    program.expect_line("closed");
    assert!(program.wait().success());
    expect_gone(&daemon, &["tun0", "tap0"]);
}

/// The boot ROM of its network card asks for an address, is offered one, and wants it.
pub(super) fn qemu(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let (monitor, mut commands) = pipe().expect("a pipe");
    let arguments = "-M pc -m 32 -display none -nodefaults -accel tcg -monitor stdio \
        -netdev tap,id=n0,ifname=tap0,script=no,downscript=no -device virtio-net-pci,netdev=n0 -boot n";
    let mut command = host.command(QEMU, &arguments.split_whitespace().collect::<Vec<_>>());
    let program = Program::start_with_stderr(command.stdin(monitor)).with_deadline(PATIENCE);
    commands.write_all(b"info network\n").expect("it reads its monitor");
    program.line_with("index=0,type=tap,ifname=tap0");

    let mut client = daemon.client();
    let discover = take_dhcp(&mut client, DISCOVER);
    inject(&mut client, "tap0", &discover.offer());
    let request = take_dhcp(&mut client, REQUEST);
    assert_eq!(request.option(50), Some(&OFFERED[..]), "it wants the address it was offered");
    let flags = &host.tunnels()[0].flags;
    assert_eq!(*flags, ["IFF_NO_PI", "IFF_ONE_QUEUE", "IFF_VNET_HDR"]);

    commands.write_all(b"quit\n").expect("it reads its monitor");
    assert!(program.wait().success());
    // What else it wrote can still be taken.
    daemon.wait_until("tap0", Until::Detached);
}

/// Two queues of one tap: the second, which the ROM's driver does not know of, is detached.
pub(super) fn qemu_queues(backend: Backend) {
    let daemon = Daemon::start(backend);
    let host = Host::new(&daemon);
    let (monitor, mut commands) = pipe().expect("a pipe");
    let arguments = "-M pc -m 32 -display none -nodefaults -accel tcg -monitor stdio \
        -netdev tap,id=n0,ifname=tap0,script=no,downscript=no,queues=2,sndbuf=1048576 \
        -device virtio-net-pci,netdev=n0,mq=on -boot n";
    let mut command = host.command(QEMU, &arguments.split_whitespace().collect::<Vec<_>>());
    let program = Program::start_with_stderr(command.stdin(monitor)).with_deadline(PATIENCE);
    commands.write_all(b"info network\n").expect("it reads its monitor");
    program.line_with("index=1,type=tap,ifname=tap0");

    let mut client = daemon.client();
    let discover = take_dhcp(&mut client, DISCOVER);
    inject(&mut client, "tap0", &discover.offer());
    assert_eq!(take_dhcp(&mut client, REQUEST).option(50), Some(&OFFERED[..]));
    let [tunnel] = &host.tunnels()[..] else { panic!("one tunnel") };
    assert_eq!(
        tunnel.flags,
        ["IFF_MULTI_QUEUE", "IFF_NO_PI", "IFF_ONE_QUEUE", "IFF_VNET_HDR"],
        "the order of the header's names"
    );
    let detached: Vec<bool> = tunnel.files.iter().map(|file| file.detached).collect();
    assert_eq!(detached, [false, true]);

    commands.write_all(b"quit\n").expect("it reads its monitor");
    assert!(program.wait().success());
    daemon.wait_until("tap0", Until::Detached);
}

pub(super) const DISCOVER: u8 = 1;
pub(super) const REQUEST: u8 = 3;
pub(super) const OFFERED: [u8; 4] = [10, 0, 2, 15];
const SERVER: [u8; 4] = [10, 0, 2, 2];

/// A DHCP message of RFC 2131.
pub(super) struct Dhcp(Vec<u8>);

impl Dhcp {
    /// Where the options begin, behind the magic number.
    const OPTIONS: usize = 240;

    pub(super) fn option(&self, wanted: u8) -> Option<&[u8]> {
        let mut rest = &self.0[Self::OPTIONS..];
        while let [code @ 1..=254, length, tail @ ..] = rest {
            let (value, tail) = tail.split_at_checked((*length).into())?;
            if *code == wanted {
                return Some(value);
            }
            rest = tail;
        }
        None
    }

    /// The datagram with an offer in answer to this.
    pub(super) fn offer(&self) -> Vec<u8> {
        let mut offer = self.0[..Self::OPTIONS].to_vec();
        offer[0] = 2;
        offer[16..20].copy_from_slice(&OFFERED);
        offer[20..24].copy_from_slice(&SERVER);
        // Code, length, value: an offer; from whom; for an hour; the mask.
        offer.extend([53, 1, 2]);
        offer.extend([&[54, 4][..], &SERVER].concat());
        offer.extend([51, 4, 0, 0, 14, 16]);
        offer.extend([1, 4, 255, 255, 255, 0]);
        offer.push(255);
        packet::udp((SERVER, 67).into(), ([255; 4], 68).into(), &offer).unwrap()
    }
}

/// The next DHCP message of a kind, behind an empty vnet header; the ROM also speaks IPv6.
pub(super) fn take_dhcp(client: &mut Client, kind: u8) -> Dhcp {
    loop {
        let TakenDatagram { datagram, vnet, .. } = take_one(client, "tap0");
        let empty = Vnet::default();
        assert_eq!(vnet, Some(empty));
        let frame = SlicedPacket::from_ethernet(&datagram).expect("a valid frame");
        if let Some(TransportSlice::Udp(udp)) = frame.transport
            && udp.destination_port() == 67
        {
            let message = Dhcp(udp.payload().to_vec());
            if message.option(53) == Some(&[kind]) {
                return message;
            }
        }
    }
}

/// The next datagram with its headers.
fn take_one(client: &mut Client, tunnel: &str) -> TakenDatagram {
    let timeout_ms = u64::try_from(PATIENCE.as_millis()).expect("a short time");
    let call = Take {
        tunnel: tunnel.parse().expect("an address"),
        count: 1,
        timeout_ms,
        segment: false,
        keep: false,
    };
    let mut taken = client.call(&call).unwrap_or_else(|error| panic!("take: {error}"));
    taken.datagrams.remove(0)
}
