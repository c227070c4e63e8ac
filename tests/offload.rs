//! Datagrams with work left to be done, between a client with `IFF_VNET_HDR` and its harness.

use std::os::fd::{AsRawFd, OwnedFd};

use memtun::{
    abi::{
        tun::{IfFlags, Offload, ioctl},
        virtio_net::{Gso, VnetHeader},
    },
    core::{Datagram, Mode, offload},
    packet,
};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use serde_json::{Value, json};

use crate::{
    DeviceTest,
    support::{
        daemon::{Backend, Daemon},
        device::{NO_PI, TAP, TUN, TunFile},
        within_deadline,
    },
};

pub const TESTS: &[DeviceTest] = &[
    ("injected_gso_is_done_unless_accepted", injected_gso_is_done_unless_accepted),
    ("written_gso_is_taken_whole_or_segmented", written_gso_is_taken_whole_or_segmented),
    ("attached_socket_carries_vnet_headers", attached_socket_carries_vnet_headers),
    ("tunnelled_gso_is_carried_or_cut", tunnelled_gso_is_carried_or_cut),
];

const VNET_HDR: u16 = IfFlags::VNET_HDR.bits();
const FROM: &str = "10.0.0.1:1000";
const TO: &str = "10.0.0.2:2000";

fn udp(data: &[u8]) -> Datagram {
    let [from, to] = [FROM, TO].map(|end| end.parse().expect("an address"));
    packet::udp(from, to, data)
        .map(|bytes| Datagram::from(bytes::Bytes::from(bytes)))
        .expect("it is short")
}

/// A UDP datagram in segments of 1,000 bytes: as it is written, and the segments.
fn gso() -> (Vec<u8>, Vec<Vec<u8>>) {
    let datagram = offload::defer(udp(&[b'x'; 2_500]), Mode::Tun, Gso::Udp, false, 1_000);
    let datagram = datagram.expect("it is UDP");
    let header = datagram.vnet().expect("it is deferred");
    let written = [&header.to_short_bytes()[..], &datagram.payload].concat();
    let segments = offload::finish(datagram, Mode::Tun).expect("it can be cut");
    (written, segments.map(|segment| segment.payload.to_vec()).collect())
}

fn injected_gso_is_done_unless_accepted(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI | VNET_HDR);
    let (whole, segments) = gso();
    let data = "x".repeat(2_500);
    let from_to = ["--udp", "--from", FROM, "--to", TO, "--data", &data];
    let inject = |tunnel: &str, options: &[&str]| {
        daemon.memtun(&[&["inject", tunnel][..], &from_to, options].concat())
    };
    let said = inject("tun0", &["--gso", "udp:1000"]).succeeded();
    assert_eq!(said, "1 datagram injected, 3 queued\n");
    for segment in &segments {
        assert_eq!(file.read().unwrap(), [&[0; 10][..], segment].concat());
    }

    // A tap's vnet header counts from the Ethernet header on.
    let tap = TunFile::attached(&daemon.device, "tap0", TAP | NO_PI);
    inject("tap0", &["--gso", "udp:1000"]).succeeded();
    assert_eq!(tap.read().unwrap()[14..], segments[0]);

    let sum_alone = inject("tun0", &["--csum", "20:6"]);
    assert_eq!(sum_alone.succeeded(), "1 datagram injected, 1 queued\n");
    let header = hex::encode(&whole[..10]);
    assert!(inject("tun0", &["--vnet", &header]).succeeded().contains("4 queued"));
    let said = inject("tun0", &["--gso", "tcp4:1000"]).failed(1);
    assert!(said.contains("--gso: the datagram's headers are not those of its gso_type"), "{said}");
    let said = inject("tun0", &["--vnet", "00020000010000000000"]).failed(1);
    assert!(
        said.contains("memtun cannot do what the vnet header asks for: it does not fit"),
        "{said}"
    );
    (0..4).for_each(|_| assert!(file.read().is_ok()));

    let accepted = (Offload::CSUM | Offload::USO4 | Offload::USO6).bits();
    let accepted = usize::try_from(accepted).expect("it is small");
    let accepting = file.ioctl_value(ioctl::TUNSETOFFLOAD, accepted);
    match backend {
        // The kernel takes the value for an address.
        Backend::Fuse => assert_eq!(accepting, Err(Errno::EFAULT)),
        Backend::Cuse => {
            assert_eq!(accepting, Ok(0));
            let said = inject("tun0", &["--gso", "udp:1000"]).succeeded();
            assert_eq!(said, "1 datagram injected, 1 queued\n");
            let mut read = file.read().unwrap();
            assert_eq!(read[2..4], [28, 0], "the hint is the length of the headers");
            read[2..4].fill(0);
            assert_eq!(read, whole);
        }
    }
}

fn written_gso_is_taken_whole_or_segmented(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI | VNET_HDR);
    let (whole, segments) = gso();
    let take = |options: &[&str]| {
        assert_eq!(file.write(&whole), Ok(whole.len()));
        daemon.memtun(&[&["take", "tun0"][..], options].concat()).succeeded()
    };
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let in_hex = |several: &[Vec<u8>]| several.iter().map(hex::encode).collect::<Vec<_>>();

    let shown = format!("{FROM} > {TO}: UDP, length 2500");
    assert_eq!(take(&[]), format!("{shown} [gso udp:1000, csum 20:6]\n"));
    assert_eq!(lines(take(&["--hex"])), [hex::encode(&whole[10..])]);
    assert_eq!(lines(take(&["--hex", "--vnet"])), [hex::encode(&whole)]);
    let object: Value = serde_json::from_str(&take(&["--json"])).unwrap();
    let header =
        json!({"flags":1,"gso_type":5,"hdr_len":0,"gso_size":1000,"csum_start":20,"csum_offset":6});
    assert_eq!(object, json!({"datagram": hex::encode(&whole[10..]), "vnet": header}));

    let shown = |length: usize| format!("{FROM} > {TO}: UDP, length {length}");
    assert_eq!(lines(take(&["--segment"])), [shown(1_000), shown(1_000), shown(500)]);
    assert_eq!(lines(take(&["--segment", "--hex"])), in_hex(&segments));

    // What cannot be cut comes whole, with its vnet header.
    let broken = [&whole[..10], &[0x45], &[0; 2_000]].concat();
    file.write(&broken).unwrap();
    let taken = daemon.memtun(&["take", "tun0", "--segment", "--hex", "--vnet"]).succeeded();
    assert_eq!(taken, format!("{}\n", hex::encode(broken)));
    assert_eq!(file.write(&[&[0, 2][..], &whole[2..]].concat()), Err(Errno::EINVAL));
}

fn attached_socket_carries_vnet_headers(backend: Backend) {
    let daemon = Daemon::start(backend);
    let file = TunFile::attached(&daemon.device, "tun0", TUN | NO_PI | VNET_HDR);
    let mut client = daemon.client();
    let (whole, segments) = gso();
    let receive = |socket: &OwnedFd| {
        let socket = socket.try_clone().unwrap();
        within_deadline("a message", move || {
            let mut buffer = [0; 10_000];
            let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
            buffer[..length].to_vec()
        })
    };

    let plain = client.attach("tun0").unwrap();
    // The second cannot be cut, and is dropped.
    for written in [&whole, &[&whole[..10], &[0x45], &[0; 2_000]].concat(), &whole] {
        assert_eq!(file.write(written), Ok(written.len()));
    }
    for segment in segments.iter().chain(&segments) {
        assert_eq!(receive(&plain), *segment);
    }
    let dropped = daemon.list().tunnels[0].counters.from_client_dropped.datagrams;
    assert_eq!(dropped, 1);
    drop(plain);
    within_deadline("the peer to leave", {
        let mut client = daemon.client();
        move || {
            while client.call(&memtun_client::proto::list::List {}).unwrap().tunnels[0]
                .peer
                .is_some()
            {}
        }
    });

    let socket = client.attach_with_vnet("tun0").unwrap();
    file.write(&whole).unwrap();
    assert_eq!(receive(&socket), whole);
    let send = |message: &[u8]| send(socket.as_raw_fd(), message, MsgFlags::empty()).unwrap();
    // Too short for a header, then nothing behind one, then one that is wrong: all are dropped.
    for message in [&[0; 9][..], &[0; 10], &[&[0, 2], &whole[2..]].concat()] {
        send(message);
    }
    send(&whole);
    for segment in &segments {
        assert_eq!(
            file.read().unwrap(),
            [&VnetHeader::default().to_short_bytes()[..], segment].concat()
        );
    }
    let ordinary = [&[0; 10][..], &segments[2]].concat();
    send(&ordinary);
    assert_eq!(file.read(), Ok(ordinary));
    assert_eq!(daemon.list().tunnels[0].counters.to_client_dropped.datagrams, 3);
}

/// The vnet header and the frame of a VXLAN tunnel, with UDP in segments of 1,000 bytes inside.
fn tunnelled_gso() -> (VnetHeader, Vec<u8>) {
    let deferred = offload::defer(udp(&[b'x'; 2_500]), Mode::Tun, Gso::Udp, false, 1_000);
    let deferred = deferred.expect("it is UDP");
    let inner = deferred.vnet().expect("it is deferred");
    let outer = udp(&[&[8, 0, 0, 0, 0, 0, 1, 0][..], &deferred.payload].concat());
    let ethernet = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let mut frame = [&ethernet[..], &outer.payload].concat();
    let (outer_th, inner_nh) = (14 + 20, 14 + 20 + 8 + 8);
    // The sum of the pseudo-header, as whoever asks for the checksum leaves it.
    let length = frame.len() - outer_th;
    let addresses: u32 = frame[26..34]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum::<u32>();
    let sum = addresses + 17 + u32::try_from(length).expect("it is short");
    let sum = u16::try_from(sum % 0xffff).expect("it is a remainder");
    frame[outer_th + 6..][..2].copy_from_slice(&sum.to_be_bytes());
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM | VnetHeader::UDP_TUNNEL_CSUM,
        gso_type: inner.gso_type | VnetHeader::GSO_UDP_TUNNEL_IPV4,
        csum_start: (inner.csum_start.get() + inner_nh).into(),
        outer_th_offset: u16::try_from(outer_th).expect("it is small").into(),
        inner_nh_offset: inner_nh.into(),
        ..inner
    };
    (header, frame)
}

/// The IP header and what follows has a good checksum, of a UDP datagram with so much data.
fn assert_good_udp(ip: &[u8], data: usize) {
    let packet = etherparse::SlicedPacket::from_ip(ip).expect("it is IP");
    let Some(etherparse::TransportSlice::Udp(udp)) = &packet.transport else {
        panic!("{packet:?}")
    };
    assert_eq!(udp.payload().len(), data);
    let Some(etherparse::NetSlice::Ipv4(ipv4)) = &packet.net else { panic!("{packet:?}") };
    let header = ipv4.header().to_header();
    assert_eq!(header.calc_header_checksum(), header.header_checksum);
    let checksum = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
    assert_eq!(checksum, Ok(udp.checksum()));
}

fn tunnelled_gso_is_carried_or_cut(backend: Backend) {
    let daemon = Daemon::start(backend);
    let open = |name: &str| {
        let file = TunFile::attached(&daemon.device, name, TAP | NO_PI | VNET_HDR);
        let mut size = 24_i32.to_ne_bytes();
        file.ioctl(ioctl::TUNSETVNETHDRSZ, &mut size).expect("TUNSETVNETHDRSZ");
        file
    };
    let (one, two) = (open("tap0"), open("tap1"));
    let (header, frame) = tunnelled_gso();
    let whole = [&header.to_bytes()[..], &frame].concat();
    let take = |options: &[&str]| {
        assert_eq!(one.write(&whole), Ok(whole.len()));
        daemon.memtun(&[&["take", "tap0"][..], options].concat()).succeeded()
    };
    assert!(take(&[]).contains("[gso udp:1000, udp-tunnel+csum 34:50, csum 70:6]"));
    assert_eq!(take(&["--hex", "--vnet=24"]), format!("{}\n", hex::encode(&whole)));
    let object: Value = serde_json::from_str(&take(&["--json"])).unwrap();
    assert_eq!(object["vnet"]["outer_th_offset"], 34);
    assert_eq!(object["vnet"]["inner_nh_offset"], 50);
    let check = |cut: &[u8], data: usize| {
        assert_good_udp(&cut[14..], 8 + 28 + data);
        assert_good_udp(&cut[50..], data);
    };
    let cut = take(&["--segment", "--hex"]);
    let lengths = [1_000, 1_000, 500];
    assert_eq!(cut.lines().count(), lengths.len());
    for (line, data) in cut.lines().zip(lengths) {
        check(&hex::decode(line).unwrap(), data);
    }

    // To a client that does not accept it, from the harness and from another tunnel.
    let vnet = hex::encode(header.to_bytes());
    let injected = daemon.memtun(&[
        "inject",
        "tap1",
        "--frame",
        "--hex",
        &hex::encode(&frame),
        "--vnet",
        &vnet,
    ]);
    assert_eq!(injected.succeeded(), "1 datagram injected, 3 queued\n");
    daemon.memtun(&["join", "tap0", "tap1"]).succeeded();
    assert_eq!(one.write(&whole), Ok(whole.len()));
    for data in lengths.iter().chain(&lengths) {
        let read = two.read().unwrap();
        assert_eq!(read[..24], [0; 24]);
        check(&read[24..], *data);
    }
    // To one that does. A FUSE file has no ioctl with a value.
    let accepted = (Offload::CSUM
        | Offload::USO4
        | Offload::USO6
        | Offload::UDP_TUNNEL_GSO
        | Offload::UDP_TUNNEL_GSO_CSUM)
        .bits();
    let accepted = usize::try_from(accepted).expect("it is small");
    if backend == Backend::Cuse {
        assert_eq!(two.ioctl_value(ioctl::TUNSETOFFLOAD, accepted), Ok(0));
        assert_eq!(one.write(&whole), Ok(whole.len()));
        let mut read = two.read().unwrap();
        read[2..4].fill(0);
        assert_eq!(read, whole);
    }
    daemon.memtun(&["part", "tap0"]).succeeded();

    // By a socket with room for the header, and by one without.
    let mut client = daemon.client();
    let receive = |socket: &OwnedFd| {
        let socket = socket.try_clone().unwrap();
        within_deadline("a message", move || {
            let mut buffer = [0; 10_000];
            let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
            buffer[..length].to_vec()
        })
    };
    let short = client.attach_with_vnet("tap0").unwrap();
    let long = client.attach_with_tunnel_vnet("tap1").unwrap();
    for file in [&one, &two] {
        assert_eq!(file.write(&whole), Ok(whole.len()));
    }
    assert_eq!(receive(&long), whole);
    for data in lengths {
        let message = receive(&short);
        assert_eq!(message[..10], [0; 10]);
        check(&message[10..], data);
    }
    send(long.as_raw_fd(), &[&[0; 24][..], &frame].concat(), MsgFlags::empty()).unwrap();
    assert_eq!(two.read().unwrap()[24..], frame);
}
