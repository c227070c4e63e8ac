//! Datagrams that a person would otherwise have to write byte by byte: pings, UDP, and those of a capture.

use std::{
    fs::File,
    io::{self, BufReader, Seek},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use bytes::Bytes;
use etherparse::{PacketBuilder, PacketBuilderStep, err::packet::BuildWriteError};
use pcap_file::{
    DataLink, PcapError,
    pcap::PcapReader,
    pcapng::{Block, PcapNgReader},
};

use crate::core::datagram::{ETHERNET_HEADER, ip_version};

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

/// What a capture holds for a tunnel.
#[derive(Debug, Default)]
pub struct Captured {
    /// The datagrams in order, each with whether it is a whole frame.
    pub datagrams: Vec<(Bytes, bool)>,
    /// Frames that a tun cannot carry: neither IPv4 nor IPv6.
    pub skipped: usize,
}

/// Why a capture cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It cannot be opened.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is neither pcap nor pcapng, or is cut short.
    #[error("{0}; a pcap or pcapng file is needed")]
    Format(#[from] PcapError),
    /// Its packets are neither frames nor IP.
    #[error("its link type is {0:?}; Ethernet and raw IP can be injected")]
    LinkType(DataLink),
}

/// The packets of a pcap or pcapng file: frames stay frames for a tap, and lose their Ethernet header for a tun.
///
/// # Errors
///
/// As [`CaptureError`] says.
pub fn read_capture(path: &Path, for_tap: bool) -> Result<Captured, CaptureError> {
    let mut file = File::open(path)?;
    let mut captured = Captured::default();
    if let Ok(mut reader) = PcapReader::new(BufReader::new(&file)) {
        let link = reader.header().datalink;
        while let Some(packet) = reader.next_packet() {
            captured.add(link, &packet?.data, for_tap)?;
        }
        return Ok(captured);
    }
    file.rewind()?;
    let mut reader = PcapNgReader::new(BufReader::new(&file))?;
    while let Some(block) = reader.next_block() {
        let (interface, data) = match block? {
            Block::EnhancedPacket(packet) => (packet.interface_id, packet.data.into_owned()),
            Block::SimplePacket(packet) => (0, packet.data.into_owned()),
            Block::Packet(packet) => (u32::from(packet.interface_id), packet.data.into_owned()),
            Block::SectionHeader(_)
            | Block::InterfaceDescription(_)
            | Block::NameResolution(_)
            | Block::InterfaceStatistics(_)
            | Block::SystemdJournalExport(_)
            | Block::Unknown(_) => continue,
        };
        let interface =
            usize::try_from(interface).ok().and_then(|index| reader.interfaces().get(index));
        let link = interface
            .map(|interface| interface.linktype)
            .ok_or(PcapError::InvalidInterfaceId(0))?;
        captured.add(link, &data, for_tap)?;
    }
    Ok(captured)
}

impl Captured {
    fn add(&mut self, link: DataLink, data: &[u8], for_tap: bool) -> Result<(), CaptureError> {
        let is_frame = link == DataLink::ETHERNET;
        if !is_frame && ![DataLink::RAW, DataLink::IPV4, DataLink::IPV6].contains(&link) {
            return Err(CaptureError::LinkType(link));
        }
        if !is_frame || for_tap {
            self.datagrams.push((Bytes::copy_from_slice(data), is_frame));
            return Ok(());
        }
        match data.get(ETHERNET_HEADER..) {
            Some(packet)
                if matches!(data[12..ETHERNET_HEADER], [8, 0] | [0x86, 0xdd])
                    && ip_version(packet).is_some() =>
            {
                self.datagrams.push((Bytes::copy_from_slice(packet), false));
            }
            Some(_) | None => self.skipped += 1,
        }
        Ok(())
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
        let mut captured = Captured::default();
        for (link, data) in
            [(DataLink::ETHERNET, &frame), (DataLink::ETHERNET, &arp), (DataLink::RAW, &ping)]
        {
            captured.add(link, data, false).unwrap();
        }
        assert_eq!(captured.skipped, 1);
        assert_eq!(
            captured.datagrams,
            [(Bytes::from(ping.clone()), false), (Bytes::from(ping), false)]
        );
        let mut captured = Captured::default();
        captured.add(DataLink::ETHERNET, &arp, true).unwrap();
        assert_eq!(captured.datagrams, [(Bytes::from(arp), true)]);
        assert!(captured.add(DataLink::USB_LINUX, &[], true).is_err());
    }
}
