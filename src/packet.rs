//! Datagrams that a person would otherwise have to write byte by byte: pings, UDP, and those of a capture.

pub mod capture;
mod link_layer;

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use etherparse::{PacketBuilder, PacketBuilderStep, err::packet::BuildWriteError};

use self::capture::Record;

/// What echo requests carry; as long as what ping(8) sends.
const ECHO_DATA: [u8; 56] = *b"memtun memtun memtun memtun memtun memtun memtun memtun ";
const TIME_TO_LIVE: u8 = 64;

/// Why a datagram cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// One address is IPv4, the other IPv6.
    #[error("{0} and {1} are not of one IP version; give two IPv4 or two IPv6 addresses")]
    MixedVersions(IpAddr, IpAddr),
    /// The payload is too long.
    #[error("{0}; give less data")]
    TooLong(BuildWriteError),
}

/// What tells an echo request from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Its identifier.
    pub id: u16,
    /// Its sequence number.
    pub seq: u16,
}

impl Default for Echo {
    fn default() -> Self {
        Self { id: u16::from_be_bytes(*b"mt"), seq: 1 }
    }
}

/// An ICMP or ICMPv6 echo request.
///
/// # Errors
///
/// [`BuildError::MixedVersions`].
pub fn echo_request(from: IpAddr, to: IpAddr, echo: Echo) -> Result<Vec<u8>, BuildError> {
    let Echo { id, seq } = echo;
    let mut bytes = Vec::new();
    let step = ip(from, to)?;
    let built = match from {
        IpAddr::V4(_) => step.icmpv4_echo_request(id, seq).write(&mut bytes, &ECHO_DATA),
        IpAddr::V6(_) => step.icmpv6_echo_request(id, seq).write(&mut bytes, &ECHO_DATA),
    };
    built.map(|()| bytes).map_err(BuildError::TooLong)
}

/// A UDP datagram.
///
/// # Errors
///
/// As [`BuildError`] says.
pub fn udp(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Result<Vec<u8>, BuildError> {
    let mut bytes = Vec::new();
    let built = ip(from.ip(), to.ip())?.udp(from.port(), to.port()).write(&mut bytes, data);
    built.map(|()| bytes).map_err(BuildError::TooLong)
}

fn ip(from: IpAddr, to: IpAddr) -> Result<PacketBuilderStep<etherparse::IpHeaders>, BuildError> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            Ok(PacketBuilder::ipv4(from.octets(), to.octets(), TIME_TO_LIVE))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Ok(PacketBuilder::ipv6(from.octets(), to.octets(), TIME_TO_LIVE))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            Err(BuildError::MixedVersions(from, to))
        }
    }
}

/// What becomes of a captured packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Captured {
    /// A whole frame, for a tap.
    Frame(Bytes),
    /// An IP datagram; a tap needs an Ethernet header before it.
    Datagram(Bytes),
    /// Neither IPv4 nor IPv6: nothing for this tunnel.
    NotIp,
    /// Nobody knows here what stands before an IP datagram on such links.
    UnknownLinkType(u16),
}

impl Captured {
    /// Frames stay frames for a tap. For a tun, packets lose what stands before their IP datagram.
    #[must_use]
    pub fn new(Record { link_type, data, .. }: Record, for_tap: bool) -> Self {
        if !link_layer::is_known(link_type) {
            return Self::UnknownLinkType(link_type);
        }
        if for_tap && link_type == link_layer::ETHERNET {
            return Self::Frame(data.into());
        }
        if !for_tap && link_layer::is_raw(link_type) {
            // A tun carries malformed datagrams too.
            return Self::Datagram(data.into());
        }
        match link_layer::ip_datagram(link_type, &data) {
            Some(datagram) => Self::Datagram(Bytes::copy_from_slice(datagram)),
            None => Self::NotIp,
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::SlicedPacket;

    use super::*;

    #[test]
    fn what_is_built_is_valid() {
        let ping =
            echo_request("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), Echo::default())
                .unwrap();
        assert_eq!(ping.len(), 84);
        assert!(SlicedPacket::from_ip(&ping).is_ok());
        let udp =
            udp("[fd00::1]:5".parse().unwrap(), "[fd00::2]:6".parse().unwrap(), b"hi").unwrap();
        assert_eq!(udp.len(), 40 + 8 + 2);
        assert!(SlicedPacket::from_ip(&udp).is_ok());
        assert!(
            echo_request("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap(), Echo::default())
                .is_err()
        );
    }

    #[test]
    fn too_much_data_is_refused() {
        let end = "10.0.0.1:1".parse().unwrap();
        assert!(matches!(udp(end, end, &[0; 65_536]), Err(BuildError::TooLong(_))));
    }

    #[test]
    fn frames_of_a_capture_fit_the_tunnel() {
        let ping =
            echo_request("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), Echo::default())
                .unwrap();
        let frame = [&[0; 12][..], &[8, 0], &ping].concat();
        let arp = [&[0; 12][..], &[8, 6], &[0; 28]].concat();
        let captured = |link_type: u16, data: &[u8], for_tap: bool| {
            Captured::new(Record { link_type, data: data.to_vec(), is_cut: false }, for_tap)
        };
        let (ethernet, raw) = (1, 101);
        let datagram = Captured::Datagram(ping.clone().into());
        assert_eq!(captured(ethernet, &frame, false), datagram);
        assert_eq!(captured(raw, &ping, false), datagram);
        assert_eq!(captured(raw, &ping, true), datagram);
        assert_eq!(captured(raw, &[1, 2], false), Captured::Datagram(vec![1, 2].into()));
        assert_eq!(captured(raw, &[1, 2], true), Captured::NotIp);
        assert_eq!(captured(ethernet, &arp, false), Captured::NotIp);
        assert_eq!(captured(ethernet, &arp, true), Captured::Frame(arp.into()));
        assert_eq!(captured(220, &[], true), Captured::UnknownLinkType(220));
    }
}
