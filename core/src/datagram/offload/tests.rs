//! What the kernel would make of datagrams: known ones, and random ones by what must hold of all.

use alloc::{vec, vec::Vec};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    segments::{TCP_CWR, TCP_FIN, TCP_PSH},
    *,
};
use crate::datagram::headers::sum;

/// `UDP_L4` and TCP over either IP version, in either mode, with a checksum that is to be filled in.
fn datagram(gso: Gso, v6: bool, mode: Mode, size: u16, data: &[u8]) -> Datagram {
    let (protocol, least) = match gso {
        Gso::Tcp4 | Gso::Tcp6 => (IPPROTO_TCP, TCP_HEADER),
        Gso::Udp | Gso::UdpFragments => (IPPROTO_UDP, UDP_HEADER),
    };
    let mut bytes = Vec::new();
    if mode == Mode::Tap {
        bytes.extend([0; 12]);
        bytes.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    }
    let length = low_u16(least + data.len()).to_be_bytes();
    if v6 {
        bytes.extend([0x60, 0, 0, 0, length[0], length[1], protocol, 64]);
        bytes.extend([9; 32]);
    } else {
        // Its checksum is not looked at.
        let total = low_u16(20 + least + data.len()).to_be_bytes();
        bytes.extend([0x45, 0, total[0], total[1], 0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0]);
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    }
    let transport = bytes.len();
    let mut header = vec![0; least];
    if least == TCP_HEADER {
        header[4..8].copy_from_slice(&0xffff_fff0_u32.to_be_bytes());
        header[12..14].copy_from_slice(&[5 << 4, 0xff]);
    } else {
        header[4..6].copy_from_slice(&length);
    }
    bytes.extend(header);
    bytes.extend(data);
    let seed = Layout::of(&bytes, mode).unwrap().pseudo_header_sum(&bytes, least + data.len());
    put_u16(&mut bytes, transport + gso.checksum_offset(), seed);
    let vnet = VnetHeader {
        gso_type: gso as u8,
        gso_size: size.into(),
        ..partial_checksum(transport, gso.checksum_offset())
    };
    Datagram::from(Bytes::from(bytes)).with_vnet(Some(vnet))
}

fn kind() -> impl Strategy<Value = (Gso, bool)> {
    prop_oneof![
        Just((Gso::Tcp4, false)),
        Just((Gso::Tcp6, true)),
        Just((Gso::Udp, false)),
        Just((Gso::Udp, true)),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Tun), Just(Mode::Tap)]
}

#[test]
fn whoever_accepts_a_gso_datagram_gets_it_whole() {
    let sent = datagram(Gso::Tcp4, false, Mode::Tun, 1000, &[7; 2500]);
    let left = |accepted| -> Vec<Datagram> {
        perform(sent.clone(), Mode::Tun, accepted).unwrap().collect()
    };
    let whole = left(Offload::CSUM | Offload::TSO4);
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].payload, sent.payload);
    assert_eq!(
        whole[0].vnet().unwrap(),
        VnetHeader { hdr_len: 40.into(), ..sent.vnet().unwrap() },
        "the hint is made good"
    );
    let lengths = |segments: &[Datagram]| -> Vec<usize> {
        segments.iter().map(|segment| segment.payload.len()).collect()
    };
    let partial = left(Offload::CSUM | Offload::TSO6);
    assert_eq!(lengths(&partial), [1040, 1040, 540]);
    assert!(partial.iter().all(|segment| segment.vnet() == Some(partial_checksum(20, 16))));
    let done = left(Offload::empty());
    assert_eq!(lengths(&done), [1040, 1040, 540]);
    assert!(done.iter().all(|segment| segment.vnet() == Some(VnetHeader::default())));
    assert_ne!(partial[0].payload, done[0].payload, "the checksum");
}

#[test]
fn tcp_flags_are_where_they_belong() {
    let sent = datagram(Gso::Tcp4, false, Mode::Tun, 100, &[7; 250]);
    let segments: Vec<Datagram> = perform(sent, Mode::Tun, Offload::empty()).unwrap().collect();
    let flags: Vec<u8> = segments.iter().map(|segment| segment.payload[33]).collect();
    let in_the_middle = !(TCP_FIN | TCP_PSH | TCP_CWR);
    assert_eq!(flags, [!(TCP_FIN | TCP_PSH), in_the_middle, !TCP_CWR]);
    let ids: Vec<u16> = segments.iter().map(|segment| get_u16(&segment.payload, 4)).collect();
    assert_eq!(ids, [0xfffe, 0xffff, 0]);
    let sequence: Vec<&[u8]> = segments.iter().map(|segment| &segment.payload[24..28]).collect();
    assert_eq!(sequence, [[0xff, 0xff, 0xff, 0xf0], [0, 0, 0, 84], [0, 0, 0, 184]]);
}

/// The same inside a UDP tunnel over IPv4, on a tap.
fn tunnelled(gso: Gso, v6: bool, size: u16, data: &[u8]) -> Datagram {
    let inner = datagram(gso, v6, Mode::Tun, size, data);
    let length = low_u16(8 + 8 + inner.payload.len());
    let mut bytes = vec![0; 12];
    bytes.extend([8, 0, 0x45, 0]);
    bytes.extend((20 + length).to_be_bytes());
    bytes.extend([0xff, 0xff, 0x40, 0, 64, IPPROTO_UDP, 0, 0]);
    bytes.extend([172, 16, 0, 1, 172, 16, 0, 2]);
    let outer_th = bytes.len();
    bytes.extend([0x30, 0, 0x12, 0xb5]);
    bytes.extend(length.to_be_bytes());
    bytes.extend([0; 2 + 8]);
    let inner_nh = bytes.len();
    bytes.extend(&inner.payload);
    let seed = Layout::of(&bytes, Mode::Tap).unwrap().pseudo_header_sum(&bytes, length.into());
    put_u16(&mut bytes, outer_th + UDP_CHECKSUM, seed);
    let header = inner.vnet().unwrap();
    let vnet = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM | VnetHeader::UDP_TUNNEL_CSUM,
        gso_type: header.gso_type | VnetHeader::GSO_UDP_TUNNEL_IPV4,
        csum_start: (header.csum_start.get() + low_u16(inner_nh)).into(),
        outer_th_offset: low_u16(outer_th).into(),
        inner_nh_offset: low_u16(inner_nh).into(),
        ..header
    };
    Datagram::from(Bytes::from(bytes)).with_vnet(Some(vnet))
}

/// The checksum of the transport header is right, over all that follows.
fn is_summed_up(bytes: &[u8], layout: &Layout) -> bool {
    let transport = &bytes[layout.transport..];
    let pseudo = layout.pseudo_header_sum(bytes, transport.len());
    fold(u64::from(pseudo) + u64::from(sum(transport))) == 0xffff
}

#[test]
fn segments_have_the_headers_of_their_tunnel() {
    for (gso, v6) in [(Gso::Tcp4, false), (Gso::Tcp6, true), (Gso::Udp, false), (Gso::Udp, true)] {
        let sent = tunnelled(gso, v6, 1000, &[7; 2500]);
        let header = sent.vnet().unwrap();
        let all = Offload::all() - Offload::UDP_TUNNEL_GSO;
        let whole: Vec<Datagram> = perform(sent.clone(), Mode::Tap, all).unwrap().collect();
        let hint = header.csum_start.get() + low_u16(gso.least_transport_header());
        let left = VnetHeader { hdr_len: hint.into(), ..header };
        assert_eq!(whole, [sent.clone().with_vnet(Some(left))], "{gso:?}");
        for (accepted, is_done) in
            [(Offload::empty(), true), (all - Offload::UDP_TUNNEL_GSO_CSUM, false)]
        {
            let cut: Vec<Datagram> = perform(sent.clone(), Mode::Tap, accepted).unwrap().collect();
            assert_eq!(cut.len(), 3);
            for (number, segment) in cut.iter().enumerate() {
                let bytes = &segment.payload;
                let outer = Layout::of(bytes, Mode::Tap).unwrap();
                let inner = Layout::inside(bytes, header.inner_nh_offset.get().into()).unwrap();
                assert_eq!(usize::from(get_u16(bytes, 16)), bytes.len() - 14, "length of outer IP");
                assert_eq!(
                    usize::from(get_u16(bytes, 38)),
                    bytes.len() - 34,
                    "length of outer UDP"
                );
                assert_eq!(get_u16(bytes, 18), 0xffff_u16.wrapping_add(low_u16(number)), "id");
                assert_eq!(sum(&bytes[14..34]), 0xffff, "outer IP");
                assert_eq!(is_summed_up(bytes, &inner), is_done);
                let left = partial_checksum(inner.transport, gso.checksum_offset());
                let left = if is_done { VnetHeader::default() } else { left };
                assert_eq!(segment.vnet(), Some(left));
                let filled = fill_inner(bytes, &inner, gso, is_done);
                assert!(
                    is_summed_up(&filled, &outer),
                    "outer UDP holds when the inner is filled in"
                );
            }
        }
    }
}

fn fill_inner(bytes: &[u8], inner: &Layout, gso: Gso, is_done: bool) -> Vec<u8> {
    let mut filled = bytes.to_vec();
    if !is_done {
        fill_checksum(&mut filled, inner.transport, gso.checksum_offset(), Zero::IsNone);
    }
    filled
}

#[test]
fn one_segment_leaves_no_mark_of_its_tunnel() {
    let sent = tunnelled(Gso::Udp, false, 1000, &[7; 900]);
    for accepted in [Offload::empty(), Offload::CSUM, Offload::all()] {
        let mut left = perform(sent.clone(), Mode::Tap, accepted).unwrap();
        let (Some(one), None) = (left.next(), left.next()) else { panic!("it is not cut") };
        let layout = Layout::inside(&one.payload, 50).unwrap();
        let is_done = accepted.is_empty();
        let vnet = if is_done { VnetHeader::default() } else { partial_checksum(70, 6) };
        assert_eq!(one.vnet(), Some(vnet));
        let filled = fill_inner(&one.payload, &layout, Gso::Udp, is_done);
        assert!(is_summed_up(&filled, &layout));
        assert!(is_summed_up(&filled, &Layout::of(&filled, Mode::Tap).unwrap()));
    }
}

#[test]
fn too_many_segments_are_refused() {
    let error = |size, length: usize| {
        let sent = datagram(Gso::Tcp4, false, Mode::Tun, size, &vec![0; length]);
        perform(sent, Mode::Tun, Offload::empty()).err()
    };
    assert_eq!(error(2, 2 * MAX_SEGMENTS), None);
    assert_eq!(error(2, 2 * MAX_SEGMENTS + 1), Some(OffloadError::TooManySegments(1025)));
    assert_eq!(error(1, 60_000), Some(OffloadError::TooManySegments(60_000)));
}

#[test]
fn checksum_of_zero_is_none_to_udp_alone() {
    // With a data word that is the complement of the rest, the sum is all ones.
    for (gso, v6, stored) in [(Gso::Udp, false, 0xffff), (Gso::Tcp4, false, 0)] {
        let zero = datagram(gso, v6, Mode::Tun, 2, &[0; 4]);
        let first = |data: &[u8]| -> u16 {
            let sent = datagram(gso, v6, Mode::Tun, 2, data);
            let mut segments = perform(sent, Mode::Tun, Offload::empty()).unwrap();
            let payload = segments.next().unwrap().payload;
            get_u16(&payload, 20 + gso.checksum_offset())
        };
        assert_eq!(zero.payload.len(), 20 + gso.least_transport_header() + 4);
        let [high, low] = first(&[0; 4]).to_be_bytes();
        assert_eq!(first(&[high, low, 0, 0]), stored, "{gso:?}");
    }
}

proptest! {
    #[test]
    fn segments_put_together_are_the_payload(
        (gso, v6) in kind(),
        mode in mode(),
        size in 20_u16..500,
        data in prop::collection::vec(any::<u8>(), 0..2_500),
    ) {
        let sent = datagram(gso, v6, mode, size, &data);
        let layout = Layout::of(&sent.payload, mode).unwrap();
        let head = layout.transport + gso.least_transport_header();
        let mut joined = Vec::new();
        for segment in perform(sent, mode, Offload::empty()).unwrap() {
            let bytes = &segment.payload;
            let ip = &bytes[layout.network..];
            if v6 {
                prop_assert_eq!(usize::from(get_u16(ip, 4)), ip.len() - IPV6_HEADER);
            } else {
                prop_assert_eq!(usize::from(get_u16(ip, 2)), ip.len());
                prop_assert!(data.len() <= size.into() || sum(&ip[..IPV4_HEADER]) == 0xffff);
            }
            let transport = &bytes[layout.transport..];
            let pseudo = layout.pseudo_header_sum(bytes, transport.len());
            prop_assert_eq!(fold(u64::from(pseudo) + u64::from(sum(transport))), 0xffff);
            prop_assert!(bytes.len() - head <= usize::from(size));
            joined.extend_from_slice(&bytes[head..]);
        }
        prop_assert_eq!(joined, data);
    }

    #[test]
    fn any_header_before_any_bytes_is_refused_or_performed(
        fields in (0_u8..16, prop_oneof![0_u8..6, 0x20_u8..0x26, 0x40_u8..0x46, any::<u8>()], 0_u16..60, 1_u16..40, 0_u16..90, 0_u16..20),
        tunnel in (30_u16..60, 40_u16..80),
        first in prop_oneof![Just(0x45_u8), Just(0x60), Just(0x4f), any::<u8>()],
        mut bytes in prop::collection::vec(prop_oneof![Just(6_u8), Just(17), Just(0x50), Just(0), any::<u8>()], 1..400),
        mode in mode(),
        accepted in 0_u64..0x200,
    ) {
        let (flags, gso_type, hdr_len, gso_size, csum_start, csum_offset) = fields;
        bytes[0] = first;
        if mode == Mode::Tap {
            bytes.splice(0..0, [0; 12].into_iter().chain([8, 0]));
        }
        let vnet = VnetHeader {
            flags,
            gso_type,
            hdr_len: hdr_len.into(),
            gso_size: gso_size.into(),
            csum_start: csum_start.into(),
            csum_offset: csum_offset.into(),
            outer_th_offset: tunnel.0.into(),
            inner_nh_offset: tunnel.1.into(),
        };
        let length = bytes.len();
        let bytes = Bytes::from(bytes);
        let datagram = Datagram::from(bytes.clone()).with_vnet(Some(vnet));
        match perform(datagram, mode, Offload::from_bits_truncate(accepted)) {
            Err(error) => prop_assert_eq!(
                error == OffloadError::BadHeader,
                check(&vnet, &bytes).is_err()
            ),
            Ok(segments) => {
                for segment in segments {
                    prop_assert!(segment.payload.len() <= length);
                    let left = segment.vnet().unwrap();
                    prop_assert!(check(&left, &segment.payload).is_ok());
                }
            }
        }
    }
}
