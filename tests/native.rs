//! The core beside the kernel's own tun: the same bytes to both, and the same outcome expected.

use std::{fs, net::UdpSocket, ops::Range, path::Path};

use bytes::Bytes;
use memtun::{
    abi::{
        tun::{IfFlags, Offload, ioctl},
        virtio_net::VnetHeader,
    },
    core::{
        Datagram, Mode,
        bpf::Program,
        datagram::{Framing, Part, parse_write, read_part},
        offload,
    },
    errno::Errno,
};
use serde_json::Value;

use crate::{
    bpf::{ANCILLARY, encoded, random_program},
    support::{
        device::{NO_PI, TAP, TUN, TunFile},
        kernel::{KernelBridge, KernelTun},
        network::Network,
        random_numbers,
    },
};

/// What `MEMTUN_TEST_REQUIRE` calls these tests.
pub const WORD: &str = "native";

pub const TESTS: &[(&str, fn())] = &[
    ("vnet_headers_are_refused_as_by_the_kernel", vnet_headers_are_refused_as_by_the_kernel),
    ("offloads_are_performed_as_by_the_kernel", offloads_are_performed_as_by_the_kernel),
    ("tunnels_are_cut_as_by_the_kernel", tunnels_are_cut_as_by_the_kernel),
    ("filters_see_frames_as_the_kernel_s_do", filters_see_frames_as_the_kernel_s_do),
    (
        "shorter_queue_of_the_kernel_s_loses_the_newest_uncounted",
        shorter_queue_of_the_kernel_s_loses_the_newest_uncounted,
    ),
];

const VNET_HDR: u16 = IfFlags::VNET_HDR.bits();

type Random = fastrand::Rng;

fn one_of<T: Copy>(random: &mut Random, several: &[T]) -> T {
    several[random.usize(0..several.len())]
}

/// A vnet header whose fields are mostly near the values where the outcome changes.
fn random_header(random: &mut Random, length: usize) -> VnetHeader {
    let near = |random: &mut Random, around: usize| {
        let number = (around + random.usize(0..5)).saturating_sub(2);
        u16::try_from(number).unwrap_or(u16::MAX)
    };
    let any = |random: &mut Random| match random.u8(0..6) {
        0 => random.u16(..),
        1 => near(random, length),
        _ => 0,
    };
    let start = match random.u8(0..8) {
        // Behind the kernel's headroom, csum_start fits into 16 bits up to here.
        0..4 if length > 65_000 => near(random, 65_471),
        0 => any(random),
        1 => near(random, length.saturating_sub(20)),
        2 => near(random, 40),
        _ => {
            let header = one_of(random, &[20, 34]);
            near(random, header)
        }
    };
    let offset = match random.u8(0..8) {
        0 => any(random),
        _ => one_of(random, &[6, 16, 16]),
    };
    let size = match random.u8(0..6) {
        0 => any(random),
        1 => near(random, length.saturating_sub(40)),
        2 => near(random, length.saturating_sub(28) / 128),
        _ => 1000,
    };
    VnetHeader {
        flags: one_of(random, &[0, 1, 1, 1, 2, 3, 0xff]),
        gso_type: match random.u8(0..8) {
            0 => random.u8(..),
            1 => 0x81,
            _ => random.u8(0..6),
        },
        hdr_len: any(random).into(),
        gso_size: size.into(),
        csum_start: start.into(),
        csum_offset: offset.into(),
        ..VnetHeader::default()
    }
}

/// A vnet header of what is in a UDP tunnel, nearly.
fn random_tunnel_header(random: &mut Random) -> VnetHeader {
    let near = |random: &mut Random, around: usize| {
        let number = if random.u8(0..4) == 0 { around + random.usize(0..5) - 2 } else { around };
        u16::try_from(number).expect("it is small")
    };
    let outer = one_of(random, &[14 + 20, 14 + 40, 14 + 40]);
    let outer_th = near(random, outer);
    let room = one_of(random, &[8, 8, 16, 30]);
    let inner_nh = near(random, usize::from(outer_th) + room);
    let inner = one_of(random, &[20, 40, 40]);
    let start = near(random, usize::from(inner_nh) + inner);
    let any = random.u8(..) & !VnetHeader::GSO_UDP_TUNNEL;
    let kind = one_of(random, &[1, 1, 0x81, 4, 5, 5, 3, 0, any]);
    VnetHeader {
        flags: one_of(random, &[1, 1, 9, 9, 0, 3]),
        gso_type: kind | one_of(random, &[0x20, 0x20, 0x40, 0x40, 0x60]),
        hdr_len: 0.into(),
        gso_size: one_of(random, &[1000, 1, 0]).into(),
        csum_start: start.into(),
        csum_offset: if [5, 3].contains(&kind) { 6 } else { 16 }.into(),
        outer_th_offset: outer_th.into(),
        inner_nh_offset: inner_nh.into(),
    }
}

fn vnet_headers_are_refused_as_by_the_kernel() {
    let mut random = random_numbers();
    let seed = random.get_seed();
    let (mut taken, mut refused) = (0, 0);
    for (flags, size) in [
        (TUN | NO_PI, 10),
        (TUN, 12),
        (TUN | NO_PI, 24),
        (TUN | NO_PI, 100),
        (TAP | NO_PI, 10),
        (TAP | NO_PI, 24),
        (TAP | NO_PI, 31),
    ] {
        // It stays down, so what is right gets EIO, and no stack sees it.
        let kernel = KernelTun::new(flags | VNET_HDR);
        let mut wanted = i32::try_from(size).expect("it is small").to_ne_bytes();
        kernel.file.ioctl(ioctl::TUNSETVNETHDRSZ, &mut wanted).expect("TUNSETVNETHDRSZ");
        let framing = Framing {
            mode: if flags & TAP == 0 { Mode::Tun } else { Mode::Tap },
            pi: flags & NO_PI == 0,
            vnet: Some(size),
            longest: usize::MAX,
        };
        for number in 0..5_000 {
            let length = match random.u8(0..8) {
                0 => random.usize(65_400..65_600),
                1..4 => random.usize(0..64),
                _ => random.usize(64..4_000),
            };
            let header = if random.u8(0..3) == 0 {
                random_tunnel_header(&mut random)
            } else {
                random_header(&mut random, length)
            };
            let mut payload = vec![0; length];
            if let Some(first) = payload.first_mut() {
                *first = one_of(&mut random, &[0x45, 0x45, 0x60, 0]);
            }
            if let Some(inner) = payload.get_mut(usize::from(header.inner_nh_offset.get())..)
                && header.is_in_tunnel()
                && let Some(first) = inner.first_mut()
            {
                *first = one_of(&mut random, &[0x45, 0x60]);
            }
            let pi: &[u8] = if framing.pi { &[0, 0, 8, 0] } else { &[] };
            let mut head = vec![0; size];
            let known = if size < VnetHeader::TUNNEL_SIZE {
                VnetHeader::SIZE
            } else {
                VnetHeader::TUNNEL_SIZE
            };
            head[..known].copy_from_slice(&header.to_bytes()[..known]);
            let data = [pi, &head, &payload].concat();
            let by_kernel = kernel.file.write(&data).map_err(|error| error as i32);
            let here = parse_write(Bytes::from(data), framing);
            assert_eq!(
                by_kernel,
                Err(here.as_ref().map_or_else(|error| error.number(), |_| Errno::EIO.number())),
                "write {number} of seed {seed}, {framing:?}: {header:?} before {length} bytes"
            );
            *if here.is_ok() { &mut taken } else { &mut refused } += 1;
        }
    }
    assert!(taken > 3_000 && refused > 3_000, "{taken} taken, {refused} refused");
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).expect("it is folded")
}

/// A datagram, and a vnet header that fits it.
fn random_datagram(random: &mut Random, tap: bool) -> (VnetHeader, Vec<u8>) {
    let (v6, tcp) = (random.bool(), random.bool());
    let options = if tcp { random.u8(0..11) } else { 0 };
    let data = match random.u8(0..4) {
        0 => random.usize(0..100),
        1 => random.usize(0..20_000),
        _ => random.usize(0..5_000),
    };
    let transport_header = if tcp { 20 + usize::from(options) * 4 } else { 8 };
    let length = u16::try_from(transport_header + data).expect("it is short");
    let protocol = if tcp { 6 } else { 17 };

    let mut ip: Vec<u8> = if v6 {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        header[4..6].copy_from_slice(&length.to_be_bytes());
        header.extend([0xfd; 16].iter().chain(&[0xfe; 16]));
        header
    } else {
        let total = (length + 20).to_be_bytes();
        let mut header = vec![0x45, 0, total[0], total[1], random.u8(..), 0xff, 0x40, 0];
        header.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let checksum = !sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    };
    let network_header = ip.len();
    let addresses = if v6 { &ip[8..40] } else { &ip[12..20] };
    let pseudo = [addresses, &length.to_be_bytes(), &[0, protocol]].concat();
    // A writer that sums up wrongly is found out.
    let seed = if random.u8(0..8) == 0 { random.u16(..) } else { sum(&pseudo) }.to_be_bytes();

    ip.extend([0x10, 0, 0x20, 0]);
    if tcp {
        ip.extend(random.u32(..).to_be_bytes());
        ip.extend([0, 0, 0, 7, (5 + options) << 4, random.u8(..), 1, 0, seed[0], seed[1], 0, 0]);
        ip.extend(std::iter::repeat_n(1, usize::from(options) * 4));
    } else {
        ip.extend(length.to_be_bytes());
        ip.extend(seed);
    }
    ip.extend((0..data).map(|_| random.u8(..)));

    let link: &[u8] = match (tap, random.bool(), v6) {
        (false, ..) => &[],
        (true, false, false) => &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0],
        (true, false, true) => &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd],
        (true, true, false) => &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 5, 8, 0],
        (true, true, true) => &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 5, 0x86, 0xdd],
    };
    let gso = match (tcp, v6) {
        _ if random.u8(0..4) == 0 => 0,
        (true, false) => 1,
        (true, true) => 4,
        // UFO over IPv6 is not made here.
        (false, false) if random.u8(0..3) == 0 => 3,
        (false, _) => 5,
    };
    let ecn = if tcp && gso != 0 && random.bool() { VnetHeader::GSO_ECN } else { 0 };
    // The kernel's fragments have the right place only for a multiple of 8.
    let size = if gso == 3 { random.u16(6..250) * 8 } else { random.u16(50..2_000) };
    let start = u16::try_from(link.len() + network_header).expect("it is small");
    // Without it, a packet socket refuses GSO behind a VLAN tag.
    let needs_checksum = !tcp || link.len() == 18 || random.u8(0..4) > 0;
    let header = VnetHeader {
        flags: u8::from(needs_checksum),
        gso_type: gso | ecn,
        hdr_len: 0.into(),
        gso_size: size.into(),
        csum_start: start.into(),
        csum_offset: if tcp { 16 } else { 6 }.into(),
        ..VnetHeader::default()
    };
    (header, [link, &ip].concat())
}

/// A frame of a UDP tunnel, with what is to be cut inside.
fn random_tunnel_frame(random: &mut Random) -> (VnetHeader, Vec<u8>) {
    let (inner, ip) = loop {
        let (header, ip) = random_datagram(random, false);
        let headers = if header.csum_offset.get() == 16 { 20 } else { 8 };
        let cut_at = header.csum_start.get() + headers + header.gso_size.get();
        // One that is no longer than a segment is another matter to the kernel.
        let is_cut = header.needs_checksum() && ![0, 3].contains(&header.gso_type);
        if is_cut && ip.len() > usize::from(cut_at) {
            break (header, ip);
        }
    };
    let mut middle: Vec<u8> = (0..8).map(|_| random.u8(..)).collect();
    if random.bool() {
        middle.extend([2, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0, 6, 8, 0]);
    }
    let length = u16::try_from(8 + middle.len() + ip.len()).expect("it is short");
    let v6 = random.bool();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if v6 {
        let [high, low] = length.to_be_bytes();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, 17, 64]);
        frame.extend([0xfa; 16].iter().chain(&[0xfb; 16]));
    } else {
        let [high, low] = (length + 20).to_be_bytes();
        let id = random.u8(..);
        let mut header = vec![0x45, 0, high, low, id, 0xfe, 0x40, 0, 64, 17, 0, 0];
        header.extend([172, 16, 0, 1, 172, 16, 0, 2]);
        let checksum = !sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(header);
    }
    let addresses = if v6 { &frame[22..54] } else { &frame[26..34] };
    let pseudo = [addresses, &length.to_be_bytes(), &[0, 17]].concat();
    let has_checksum = random.bool();
    let seed = match random.u8(0..8) {
        0 => random.u16(..),
        _ if has_checksum => sum(&pseudo),
        _ => 0,
    };
    let outer_th = frame.len();
    frame.extend([0x30, 0, 0x12, 0xb5]);
    frame.extend(length.to_be_bytes());
    frame.extend(seed.to_be_bytes());
    frame.extend(middle);
    let inner_nh = frame.len();
    frame.extend(ip);
    let offset = |at: usize| u16::try_from(at).expect("it is small");
    let tunnel = if v6 { VnetHeader::GSO_UDP_TUNNEL_IPV6 } else { VnetHeader::GSO_UDP_TUNNEL_IPV4 };
    let header = VnetHeader {
        flags: 1 | if has_checksum { VnetHeader::UDP_TUNNEL_CSUM } else { 0 },
        gso_type: inner.gso_type | tunnel,
        csum_start: (inner.csum_start.get() + offset(inner_nh)).into(),
        outer_th_offset: offset(outer_th).into(),
        inner_nh_offset: offset(inner_nh).into(),
        ..inner
    };
    (header, frame)
}

/// What a client gets: the vnet header without its hint, and the datagram.
fn without_hint(mut read: Vec<u8>) -> Vec<u8> {
    read[2..4].fill(0);
    read
}

#[track_caller]
fn assert_same(here: &[Vec<u8>], by_kernel: &[Vec<u8>], what: &str) {
    assert_eq!(here.len(), by_kernel.len(), "{what}");
    for (at, (here, by_kernel)) in here.iter().zip(by_kernel).enumerate() {
        let shown = |bytes: &[u8]| hex::encode(&bytes[..bytes.len().min(170)]);
        assert!(
            here == by_kernel,
            "segment {at} of {what}\n  here   {}\n  kernel {}",
            shown(here),
            shown(by_kernel)
        );
    }
}

fn offloads_are_performed_as_by_the_kernel() {
    let mut random = random_numbers();
    let seed = random.get_seed();
    let (mut whole, mut cut, mut dropped) = (0, 0, 0);
    let sets = [0, 0x01, 0x03, 0x05, 0x07, 0x0f, 0x61, 0x7f];
    for (flags, accepted) in [TUN, TAP].iter().flat_map(|mode| sets.map(|set| (*mode, set))) {
        let kernel = KernelTun::new(flags | NO_PI | VNET_HDR);
        let argument = usize::try_from(accepted).expect("it is small");
        kernel.file.ioctl_value(ioctl::TUNSETOFFLOAD, argument).expect("TUNSETOFFLOAD");
        kernel.set_up();
        assert!(kernel.read_all().is_empty(), "nothing but ours comes");
        let mode = if flags == TUN { Mode::Tun } else { Mode::Tap };
        let framing =
            Framing { mode, pi: false, vnet: Some(VnetHeader::SIZE), longest: usize::MAX };
        for number in 0..250 {
            let (header, payload) = random_datagram(&mut random, flags == TAP);
            let what = format!(
                "datagram {number} of seed {seed}, {mode:?}, accepted {accepted:#x}: {header:?} before {} bytes",
                payload.len()
            );
            let sent = kernel.send(&header.to_short_bytes(), &payload);
            let by_kernel: Vec<Vec<u8>> = kernel.read_all().into_iter().map(without_hint).collect();

            let datagram = Datagram::from(Bytes::from(payload)).with_vnet(Some(header));
            let performed = offload::perform(datagram, mode, Offload::from_bits_retain(accepted));
            let performed = match performed {
                Ok(performed) => performed,
                Err(error) => {
                    assert!(by_kernel.is_empty(), "{error}, but the kernel did it: {what}");
                    dropped += 1;
                    continue;
                }
            };
            assert_eq!(sent, Ok(()), "{what}");
            let here: Vec<Vec<u8>> = performed
                .map(|datagram| {
                    let read = read_part(&datagram, framing, 70_000);
                    let Ok(Part { head, body, .. }) = read else { panic!("{read:?}") };
                    without_hint([head.as_bytes(), &body].concat())
                })
                .collect();
            *if here.len() > 1 { &mut cut } else { &mut whole } += 1;
            assert_same(&here, &by_kernel, &what);
        }
    }
    assert!(whole > 500 && cut > 500 && dropped > 5, "{whole} whole, {cut} cut, {dropped} dropped");
}

fn tunnels_are_cut_as_by_the_kernel() {
    let mut random = random_numbers();
    let seed = random.get_seed();
    let (mut whole, mut cut, mut dropped) = (0, 0, 0);
    let kernel = KernelBridge::new(TAP | NO_PI | VNET_HDR);
    let framing = Framing {
        mode: Mode::Tap,
        pi: false,
        vnet: Some(VnetHeader::TUNNEL_SIZE),
        longest: usize::MAX,
    };
    for file in [&kernel.from, &kernel.to] {
        let mut size = 24_i32.to_ne_bytes();
        file.ioctl(ioctl::TUNSETVNETHDRSZ, &mut size).expect("TUNSETVNETHDRSZ");
    }
    for accepted in [0, 0x01, 0x07, 0x7f, 0x83, 0x85, 0x187, 0xe7, 0x1e7, 0x1ff] {
        let argument = usize::try_from(accepted).expect("it is small");
        kernel.to.ioctl_value(ioctl::TUNSETOFFLOAD, argument).expect("TUNSETOFFLOAD");
        for number in 0..250 {
            let (header, frame) = random_tunnel_frame(&mut random);
            let what = format!(
                "frame {number} of seed {seed}, accepted {accepted:#x}: {header:?} before {} bytes",
                frame.len()
            );
            let written = [&header.to_bytes()[..], &frame].concat();
            let by_kernel = kernel.from.write(&written).map_err(|error| error as i32);
            let length = written.len();
            let parsed = parse_write(Bytes::from(written), framing);
            let here = parsed.as_ref().map(|_| length).map_err(|error| error.number());
            assert_eq!(by_kernel, here, "{what}");
            // There may be more segments than UDP may have.
            let Ok(datagram) = parsed else { continue };
            // A bridge also sends on its own (IGMP).
            let source = VnetHeader::TUNNEL_SIZE + 6;
            let is_ours = |read: &Vec<u8>| read[source..source + 6] == frame[6..12];
            let by_kernel: Vec<Vec<u8>> =
                kernel.read_all().into_iter().filter(is_ours).map(without_hint).collect();

            let accepted = Offload::from_bits_retain(accepted);
            let performed = match offload::perform(datagram, Mode::Tap, accepted) {
                Ok(performed) => performed,
                Err(error) => {
                    assert!(by_kernel.is_empty(), "{error}, but the kernel did it: {what}");
                    dropped += 1;
                    continue;
                }
            };
            let here: Vec<Vec<u8>> = performed
                .map(|datagram| {
                    let read = read_part(&datagram, framing, 70_000);
                    let Ok(Part { head, body, .. }) = read else { panic!("{read:?}") };
                    without_hint([head.as_bytes(), &body].concat())
                })
                .collect();
            *if here.len() > 1 { &mut cut } else { &mut whole } += 1;
            assert_same(&here, &by_kernel, &what);
        }
    }
    assert!(whole > 200 && cut > 500 && dropped > 0, "{whole} whole, {cut} cut, {dropped} dropped");
}

/// Loads that count from the headers of a frame, and those of what is known of it: unlike a socket pair's, a tap's frames have
/// headers, a protocol and a link type.
fn filters_see_frames_as_the_kernel_s_do() {
    const TUNATTACHFILTER: u32 = 0x4010_54d5;
    const NETWORK: u32 = 0xfff0_0000;
    const LINK_LAYER: u32 = 0xffe0_0000;
    let mut random = random_numbers();
    let seed = random.get_seed();
    let kernel = KernelTun::new(TAP | NO_PI | VNET_HDR);
    kernel.set_up();
    let special = [0, 28, 40].map(|offset| ANCILLARY + offset);
    let (mut kept, mut dropped) = (0, 0);
    for number in 0..4_000 {
        let near = [NETWORK, LINK_LAYER].map(|header| header.wrapping_add(random.u32(0..130)));
        let instructions = random_program(&mut random, &[&special[..], &near].concat());
        let depends_on_the_kernel = instructions.iter().any(|(code, _, _, k)| {
            [0x20, 0x28, 0x30].contains(code) && *k >= ANCILLARY && !special.contains(k)
        });
        let raw = encoded(&instructions);
        let Ok(program) = Program::check(&raw) else { continue };
        if depends_on_the_kernel {
            continue;
        }
        let length = u64::try_from(instructions.len()).expect("it is short");
        let mut filter = [length.to_ne_bytes(), (raw.as_ptr() as u64).to_ne_bytes()].concat();
        assert_eq!(kernel.file.ioctl(TUNATTACHFILTER, &mut filter), Ok(0));
        for _ in 0..4 {
            let mut frame: Vec<u8> = (0..random.usize(34..120)).map(|_| random.u8(..)).collect();
            frame[12..15].copy_from_slice(&[8, 0, 0x45]);
            kernel.send(&VnetHeader::default().to_short_bytes(), &frame).expect("it is a frame");
            let by_kernel: Vec<usize> =
                kernel.read_all().iter().map(|read| read.len() - VnetHeader::SIZE).collect();
            let left = (program.run(&frame) as usize).min(frame.len());
            let expected = if left > 0 { vec![left] } else { Vec::new() };
            *if left > 0 { &mut kept } else { &mut dropped } += 1;
            assert_eq!(
                by_kernel, expected,
                "program {number} of seed {seed}: {instructions:x?}\n{frame:x?}"
            );
        }
    }
    assert!(kept > 500 && dropped > 500, "{kept} kept, {dropped} dropped");
}

/// The test of the same name in `limits` asks memtun.
fn shorter_queue_of_the_kernel_s_loses_the_newest_uncounted() {
    let network = Network::new();
    let (file, socket) = network.inside(|| {
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("no IPv6");
        let file = TunFile::attached(Path::new("/dev/net/tun"), "tun0", TUN | NO_PI);
        (file, UdpSocket::bind("0.0.0.0:0").unwrap())
    });
    file.set_nonblocking(true);
    network.ip(&["address", "add", "10.9.0.1/24", "dev", "tun0"]);
    network.ip(&["link", "set", "tun0", "txqueuelen", "20", "up"]);
    let send = |numbers: Range<u8>| {
        for number in numbers {
            socket.send_to(&[number], "10.9.0.2:9").unwrap();
        }
    };
    let dropped = || {
        let shown = network.ip(&["-json", "-statistics", "link", "show", "tun0"]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown[0]["stats64"]["tx"]["dropped"].as_u64()
    };
    send(0..10);
    network.ip(&["link", "set", "tun0", "txqueuelen", "4"]);
    assert_eq!(dropped(), Some(0));
    send(10..11);
    assert_eq!(dropped(), Some(1));
    let left = std::iter::from_fn(|| file.read().ok()?.last().copied());
    assert_eq!(left.collect::<Vec<_>>(), [0, 1, 2, 3]);
}
