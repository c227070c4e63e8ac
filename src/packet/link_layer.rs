//! The headers that stand before the IP datagram in a captured packet, by link type.
//!
//! The link types, and the layout of each header, are those at <https://www.tcpdump.org/linktypes.html>.

use crate::core::datagram::{ETHERNET_HEADER, ip_version};

pub(super) const ETHERNET: u16 = 1;
const NULL: u16 = 0;
const PPP: u16 = 9;
/// 12 and 14 are what BSDs call RAW; files hold them though none should.
const RAW: [u16; 5] = [101, 12, 14, 228, 229];
const PPP_HDLC: u16 = 50;
const PPP_ETHERNET: u16 = 51;
const CISCO_HDLC: u16 = 104;
const LOOP: u16 = 108;
const LINUX_SLL: u16 = 113;
const PPP_PPPD: u16 = 166;
const PPP_WITH_DIRECTION: u16 = 204;
const LINUX_SLL2: u16 = 276;

/// An Ethernet frame is padded to so many bytes, here with a frame check sequence and a VLAN tag.
const PADDED_FRAME: usize = 68;

/// Whether packets of a link type can be injected.
pub(super) fn is_known(link_type: u16) -> bool {
    RAW.contains(&link_type)
        || [
            ETHERNET,
            NULL,
            PPP,
            PPP_HDLC,
            PPP_ETHERNET,
            CISCO_HDLC,
            LOOP,
            LINUX_SLL,
            PPP_PPPD,
            PPP_WITH_DIRECTION,
            LINUX_SLL2,
        ]
        .contains(&link_type)
}

/// Packets are IP datagrams with nothing before them.
pub(super) fn is_raw(link_type: u16) -> bool {
    RAW.contains(&link_type)
}

/// The IP datagram in a packet; `None` if it holds something else.
pub(super) fn ip_datagram(link_type: u16, packet: &[u8]) -> Option<&[u8]> {
    match link_type {
        _ if is_raw(link_type) => ip(packet),
        ETHERNET => {
            let payload = packet.get(ETHERNET_HEADER..)?;
            let datagram = of_ethertype(u16_at(packet, 12)?, payload)?;
            Some(if packet.len() <= PADDED_FRAME { unpadded(datagram) } else { datagram })
        }
        LINUX_SLL => of_ethertype(u16_at(packet, 14)?, packet.get(16..)?),
        LINUX_SLL2 => of_ethertype(u16_at(packet, 0)?, packet.get(20..)?),
        NULL | LOOP => {
            // In the byte order of whoever captured it.
            let family = u32::from_le_bytes(*packet.first_chunk()?);
            let family = if family >> 16 == 0 { family } else { family.swap_bytes() };
            // AF_INET; AF_INET6 of Linux, NetBSD and OpenBSD, FreeBSD, and macOS.
            [2, 10, 24, 28, 30].contains(&family).then_some(())?;
            ip(&packet[4..])
        }
        PPP | PPP_HDLC if matches!(packet, [0xff, 3, ..]) => of_ppp(&packet[2..]),
        PPP => of_ppp(packet),
        PPP_HDLC | CISCO_HDLC => of_ethertype(u16_at(packet, 2)?, packet.get(4..)?),
        // The direction stands where 0xff would.
        PPP_PPPD => of_ppp(packet.get(2..)?),
        PPP_WITH_DIRECTION => ip_datagram(PPP, packet.get(1..)?),
        PPP_ETHERNET => of_pppoe(packet),
        _ => None,
    }
}

fn of_ethertype(mut ethertype: u16, mut payload: &[u8]) -> Option<&[u8]> {
    loop {
        match ethertype {
            0x0800 | 0x86dd => return ip(payload),
            0x8864 => return of_pppoe(payload),
            // VLAN tags: IEEE 802.1Q, 802.1ad, and what came before the latter.
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                ethertype = u16_at(payload, 2)?;
                payload = payload.get(4..)?;
            }
            // A length, then LLC and SNAP with an EtherType.
            ..=1500 => {
                let behind = payload.strip_prefix(&[0xaa, 0xaa, 3, 0, 0, 0])?;
                ethertype = u16_at(behind, 0).filter(|ethertype| *ethertype > 1500)?;
                payload = &behind[2..];
            }
            _ => return None,
        }
    }
}

/// RFC 2516: version, type and code, session, length.
fn of_pppoe(packet: &[u8]) -> Option<&[u8]> {
    let payload = packet.get(6..)?;
    let length = usize::from(u16_at(packet, 4)?);
    of_ppp(&payload[..payload.len().min(length)])
}

/// RFC 1661: the protocol, of which a first byte of 0 may be left out.
fn of_ppp(packet: &[u8]) -> Option<&[u8]> {
    match packet {
        [0, 0x21 | 0x57, datagram @ ..] | [0x21 | 0x57, datagram @ ..] => ip(datagram),
        _ => None,
    }
}

fn ip(datagram: &[u8]) -> Option<&[u8]> {
    ip_version(datagram).map(|_| datagram)
}

/// A datagram without what pads its frame; one that says nonsense about its length stays as it is.
fn unpadded(datagram: &[u8]) -> &[u8] {
    let length = match ip_version(datagram) {
        Some(4) => u16_at(datagram, 2).map(usize::from).filter(|length| *length >= 20),
        _ => u16_at(datagram, 4).map(|length| 40 + usize::from(length)),
    };
    length.and_then(|length| datagram.get(..length)).unwrap_or(datagram)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 datagram of 24 bytes.
    fn datagram() -> Vec<u8> {
        [&[0x45, 0, 0, 24][..], &[7; 20]].concat()
    }

    fn frame(ethertype: &[u8], payload: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &[2; 6], ethertype, payload].concat()
    }

    #[test]
    fn ip_is_found_behind_every_header() {
        let ip = datagram();
        let pppoe = [&[0x11, 0, 0, 1, 0, 26, 0, 0x21][..], &ip, &[0; 12]].concat();
        let behind = |header: &[u8]| [header, &ip].concat();
        let cooked = |protocol: &[u8]| {
            behind(&[&[0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0], protocol].concat())
        };
        for (link_type, packet) in [
            (ETHERNET, frame(&[8, 0], &ip)),
            (ETHERNET, frame(&[0x81, 0, 0, 7, 8, 0], &ip)),
            (ETHERNET, frame(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8, 8, 0], &ip)),
            (ETHERNET, frame(&[0, 32, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &ip)),
            (ETHERNET, frame(&[0x88, 0x64], &pppoe)),
            (LINUX_SLL, cooked(&[8, 0])),
            (LINUX_SLL, cooked(&[0x81, 0, 0, 7, 8, 0])),
            (LINUX_SLL2, behind(&[&[8, 0][..], &[0; 18]].concat())),
            (NULL, behind(&[2, 0, 0, 0])),
            (NULL, behind(&[0, 0, 0, 2])),
            (NULL, behind(&[30, 0, 0, 0])),
            (LOOP, behind(&[0, 0, 0, 24])),
            (PPP, behind(&[0, 0x21])),
            (PPP, behind(&[0x21])),
            (PPP, behind(&[0xff, 3, 0, 0x57])),
            (PPP_HDLC, behind(&[0xff, 3, 0, 0x21])),
            (PPP_HDLC, behind(&[0x0f, 0, 8, 0])),
            (CISCO_HDLC, behind(&[0x8f, 0, 8, 0])),
            (PPP_PPPD, behind(&[1, 3, 0, 0x21])),
            (PPP_WITH_DIRECTION, behind(&[0, 0xff, 3, 0, 0x21])),
            (PPP_ETHERNET, pppoe.clone()),
        ]
        .into_iter()
        .chain(RAW.map(|link_type| (link_type, ip.clone())))
        {
            assert!(is_known(link_type));
            assert_eq!(ip_datagram(link_type, &packet), Some(&ip[..]), "{link_type}: {packet:x?}");
            let header = packet.windows(ip.len()).position(|bytes| bytes == ip).unwrap();
            for length in 0..header {
                assert_eq!(
                    ip_datagram(link_type, &packet[..length]),
                    None,
                    "{link_type}: {length}"
                );
            }
        }
    }

    #[test]
    fn other_protocols_are_no_ip() {
        let ip = datagram();
        for (link_type, packet) in [
            (ETHERNET, frame(&[8, 6], &[0; 28])),
            (ETHERNET, frame(&[8, 0], &[0x20; 28])),
            (ETHERNET, frame(&[0, 3, 0x42, 0x42, 3], &[0; 40])),
            (ETHERNET, frame(&[0, 9, 0xaa, 0xaa, 3, 0, 0, 0, 0, 1], &ip)),
            (LINUX_SLL, [&[0; 14][..], &[8, 6], &[0; 28]].concat()),
            (NULL, [&[7, 0, 0, 0][..], &ip].concat()),
            (PPP, [&[0xc0, 0x21][..], &ip].concat()),
            (RAW[0], vec![0x60, 0, 0]).clone(),
        ] {
            let expected = (link_type == RAW[0]).then_some(&packet[..]);
            assert_eq!(ip_datagram(link_type, &packet), expected, "{link_type}: {packet:x?}");
        }
        assert!(!is_known(220), "USB");
    }

    #[test]
    fn padding_of_short_frames_is_taken_off() {
        let ip = datagram();
        let padded = |datagram: &[u8], to: usize| {
            let mut frame = frame(&[8, 0], datagram);
            frame.resize(to, 0);
            frame
        };
        assert_eq!(ip_datagram(ETHERNET, &padded(&ip, 60)), Some(&ip[..]));
        let longer = padded(&ip, 90);
        assert_eq!(ip_datagram(ETHERNET, &longer), Some(&longer[14..]), "this is no padding");
        let six = [&[0x60, 0, 0, 0, 0, 2][..], &[7; 34], &[1, 2, 3, 4]].concat();
        assert_eq!(ip_datagram(ETHERNET, &frame(&[0x86, 0xdd], &six)), Some(&six[..42]));
        // A length of 0 is what a host with segmentation offload leaves.
        let unsaid = [&[0x45, 0, 0, 0][..], &[7; 20]].concat();
        assert_eq!(ip_datagram(ETHERNET, &frame(&[8, 0], &unsaid)), Some(&unsaid[..]));
    }
}
