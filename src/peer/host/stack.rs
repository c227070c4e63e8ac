//! The protocol stack of a host: an interface of `smoltcp` on a wire, and the sockets of its services.
//!
//! It makes system calls only on the sockets of forwarded connections. Time is an argument.

use std::{net::IpAddr, os::fd::BorrowedFd, time::Duration};

use bytes::{Bytes, BytesMut};
use nix::poll::PollFlags;
use smoltcp::{
    iface::{self, Interface, PollIngressSingleResult, PollResult, SocketSet},
    phy::{DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv6Address, Ipv6Cidr},
};

use super::{Config, services::Services};
use crate::core::{MacAddress, datagram::ETHERNET_HEADER};

/// Datagrams that are taken before connections get their turn.
const BATCH: usize = 64;

/// Where the stack's datagrams come from and go to.
pub(super) trait Wire {
    fn take(&mut self) -> Option<Bytes>;
    fn send(&mut self, datagram: Bytes);
}

pub(super) struct Stack {
    capabilities: DeviceCapabilities,
    interface: Interface,
    sockets: SocketSet<'static>,
    services: Services,
    /// With none, the interface's deadline is that of the fragments it still has to send.
    no_sockets: SocketSet<'static>,
}

impl Stack {
    /// With an Ethernet address it is at a tap, without at a tun.
    pub(super) fn new(config: &Config, hwaddr: Option<MacAddress>, mtu: u32) -> Self {
        let mut capabilities = DeviceCapabilities::default();
        // The least that IPv6 works with, and the most there can be.
        let mtu = usize::try_from(mtu.clamp(1_280, 65_535)).unwrap_or(1_500);
        let hardware = match hwaddr {
            None => {
                capabilities.medium = Medium::Ip;
                capabilities.max_transmission_unit = mtu;
                HardwareAddress::Ip
            }
            Some(MacAddress(address)) => {
                capabilities.medium = Medium::Ethernet;
                capabilities.max_transmission_unit = ETHERNET_HEADER + mtu;
                HardwareAddress::Ethernet(EthernetAddress(address))
            }
        };
        let mut settings = iface::Config::new(hardware);
        settings.random_seed = fastrand::u64(..);
        let mut device = Device { wire: &mut NoWire, capabilities: &capabilities };
        let mut interface = Interface::new(settings, &mut device, Instant::ZERO);
        let addresses =
            config.addresses.iter().map(|cidr| IpCidr::new(cidr.address.into(), cidr.prefix));
        interface.update_ip_addrs(|known| {
            // There is room for as many as `Config::check` lets through, and one.
            known.extend(addresses.chain(hwaddr.filter(|_| config.has_ipv6()).map(link_local)));
        });
        if hwaddr.is_none() {
            // On a tun nobody asks for the neighbour: the way to anywhere is to the client.
            for cidr in &config.addresses {
                // A second one of the same kind is the same way.
                let _known = match cidr.address {
                    IpAddr::V4(own) => interface.routes_mut().add_default_ipv4_route(own),
                    IpAddr::V6(own) => interface.routes_mut().add_default_ipv6_route(own),
                };
            }
        }
        let mut sockets = SocketSet::new(Vec::new());
        let services = Services::new(&config.forwards, &mut sockets);
        let no_sockets = SocketSet::new(Vec::new());
        Self { capabilities, interface, sockets, services, no_sockets }
    }

    /// Does what is to be done at a time since the start; true if there may be more at once.
    pub(super) fn perform(&mut self, at: Duration, wire: &mut impl Wire) -> bool {
        let now = instant(at);
        let mut device = Device { wire, capabilities: &self.capabilities };
        let Self { interface, sockets, services, no_sockets, .. } = self;
        // The interface keeps one datagram in fragments: they go out before the next can come.
        let mut send_fragments = |interface: &mut Interface, device: &mut Device<'_>| {
            while interface.poll_at(now, no_sockets).is_some() {
                interface.poll_egress(now, device, no_sockets);
            }
        };
        let mut left = BATCH;
        while left > 0
            && interface.poll_ingress_single(now, &mut device, sockets)
                != PollIngressSingleResult::None
        {
            send_fragments(interface, &mut device);
            services.accept(sockets);
            left -= 1;
        }
        services.work(sockets, |address| interface.has_ip_addr(address));
        while interface.poll_egress(now, &mut device, sockets) == PollResult::SocketStateChanged {
            send_fragments(interface, &mut device);
        }
        services.clear(at, sockets);
        left == 0
    }

    /// How many milliseconds nothing is to be done, unless something happens; `None` for ever.
    pub(super) fn sleep_ms(&mut self, at: Duration) -> Option<u64> {
        let deadline = self.interface.poll_delay(instant(at), &self.sockets);
        let deadline = deadline.map(|delay| delay.total_micros());
        let stuck = self
            .services
            .deadline()
            .map(|due| u64::try_from(due.saturating_sub(at).as_micros()).unwrap_or(u64::MAX));
        // Rounded up: a deadline that is not there yet would be looked at over and over.
        deadline.into_iter().chain(stuck).min().map(|micros| micros.div_ceil(1_000))
    }

    /// The sockets of this machine that it waits for, and what for.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.services.interests(&self.sockets)
    }

    /// What those sockets are ready for, in the same order.
    pub(super) fn set_ready(&mut self, ready: &[PollFlags]) {
        self.services.set_ready(&self.sockets, ready);
    }
}

fn instant(at: Duration) -> Instant {
    Instant::from_micros(i64::try_from(at.as_micros()).unwrap_or(i64::MAX))
}

/// The link-local address that an Ethernet address makes (RFC 4291, appendix A).
fn link_local(MacAddress([a, b, c, d, e, f]): MacAddress) -> IpCidr {
    let address =
        Ipv6Address::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    IpCidr::Ipv6(Ipv6Cidr::new(address, 64))
}

/// The wire as the interface sees it.
struct Device<'a> {
    wire: &'a mut dyn Wire,
    capabilities: &'a DeviceCapabilities,
}

impl smoltcp::phy::Device for Device<'_> {
    type RxToken<'a>
        = Received
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let datagram = self.wire.take()?;
        Some((Received(datagram), Sending(self.wire)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(self.wire))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

struct Received(Bytes);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

struct Sending<'a>(&'a mut dyn Wire);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut datagram = BytesMut::zeroed(length);
        let result = fill(&mut datagram);
        self.0.send(datagram.freeze());
        result
    }
}

/// What an interface is made on, before it has anything to send.
struct NoWire;

impl Wire for NoWire {
    fn take(&mut self) -> Option<Bytes> {
        None
    }

    fn send(&mut self, _: Bytes) {}
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use etherparse::PacketBuilder;

    use super::*;
    use crate::packet;

    const HWADDR: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[derive(Default)]
    struct Cable {
        to_host: VecDeque<Vec<u8>>,
        from_host: Vec<Bytes>,
    }

    impl Wire for Cable {
        fn take(&mut self) -> Option<Bytes> {
            self.to_host.pop_front().map(Bytes::from)
        }

        fn send(&mut self, datagram: Bytes) {
            self.from_host.push(datagram);
        }
    }

    fn stack(hwaddr: Option<MacAddress>) -> Stack {
        let addresses = ["10.0.0.1/24", "fd00::1/64"].map(|cidr| cidr.parse().unwrap()).to_vec();
        let forwards = vec!["8080:127.0.0.1:1".parse().unwrap()];
        Stack::new(&Config { addresses, forwards }, hwaddr, 1_500)
    }

    /// Lets a stack work until a time, as its thread would; how often it woke up for it.
    fn run(stack: &mut Stack, cable: &mut Cable, from_ms: u64, until_ms: u64) -> u32 {
        let mut at = from_ms;
        let mut turns = 0;
        while at <= until_ms {
            turns += 1;
            let is_due_again = stack.perform(Duration::from_millis(at), cable);
            let sleep = stack.sleep_ms(Duration::from_millis(at));
            at += if is_due_again { 0 } else { sleep.unwrap_or(u64::MAX / 2) };
            assert!(turns < 10_000, "it is busy at {at} ms");
        }
        turns
    }

    fn frame(packet: &[u8]) -> Vec<u8> {
        [&HWADDR.0[..], &CLIENT, &[8, 0], packet].concat()
    }

    #[test]
    fn an_idle_host_sleeps_for_ever() {
        for hwaddr in [None, Some(HWADDR)] {
            let mut stack = stack(hwaddr);
            let mut cable = Cable::default();
            assert_eq!(run(&mut stack, &mut cable, 0, 3_600_000), 1);
            assert!(cable.from_host.is_empty(), "it says nothing unasked");
        }
    }

    #[test]
    fn a_client_that_vanishes_is_given_up() {
        let mut stack = stack(None);
        let mut cable = Cable::default();
        for port in 1..=100 {
            let mut syn = Vec::new();
            PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
                .tcp(port, 7, 0, 1_000)
                .syn()
                .write(&mut syn, &[])
                .unwrap();
            cable.to_host.push_back(syn);
        }
        run(&mut stack, &mut cable, 0, 500);
        assert_eq!(stack.services.connections(), 64, "the limit");
        let turns = run(&mut stack, &mut cable, 500, 200_000);
        assert_eq!(stack.services.connections(), 0, "after {turns} turns");
        let said = cable.from_host.len();
        run(&mut stack, &mut cable, 200_000, 3_600_000);
        assert_eq!(cable.from_host.len(), said, "and forgotten");
    }

    #[test]
    fn a_neighbour_that_does_not_answer_holds_up_echoes_for_seconds_only() {
        let mut stack = stack(Some(HWADDR));
        let mut cable = Cable::default();
        let echo = |from: &str| {
            let from = std::net::SocketAddr::new(from.parse().unwrap(), 5_000);
            frame(&packet::udp(from, "10.0.0.1:7".parse().unwrap(), b"echo").unwrap())
        };
        let arp =
            [&[0xff; 6][..], &CLIENT, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &CLIENT, &[10, 0, 0, 2]];
        let arp = [&arp.concat()[..], &[0; 6], &[10, 0, 0, 1]].concat();
        cable.to_host.extend([arp, echo("10.0.0.66"), echo("203.0.113.1"), echo("10.0.0.2")]);
        run(&mut stack, &mut cable, 0, 2_900);
        let is_echo = |frame: &Bytes| frame.ends_with(b"echo");
        assert_eq!(cable.from_host.iter().filter(|frame| is_echo(frame)).count(), 0);
        run(&mut stack, &mut cable, 2_900, 10_000);
        cable.to_host.push_back(echo("10.0.0.2"));
        run(&mut stack, &mut cable, 10_000, 11_000);
        assert_eq!(cable.from_host.iter().filter(|frame| is_echo(frame)).count(), 1);
        assert_eq!(cable.from_host.last().map(|frame| &frame[..6]), Some(&CLIENT[..]));
    }

    #[test]
    fn pings_in_fragments_are_answered_in_full() {
        let mut stack = stack(None);
        let mut cable = Cable::default();
        let payload: Vec<u8> = (0..4_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut ping = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut ping, &payload)
            .unwrap();
        let (header, body) = ping.split_at(20);
        let header = etherparse::Ipv4Header::from_slice(header).unwrap().0;
        // Two at once: neither answer gets into the other.
        for identification in [1, 2] {
            for (offset, part) in (0..).step_by(1_000 / 8).zip(body.chunks(1_000)) {
                let mut header = header.clone();
                header.identification = identification;
                header.dont_fragment = false;
                header.more_fragments = usize::from(offset) * 8 + part.len() < body.len();
                header.fragment_offset = offset.try_into().unwrap();
                header.set_payload_len(part.len()).unwrap();
                header.header_checksum = header.calc_header_checksum();
                let mut fragment = Vec::new();
                header.write(&mut fragment).unwrap();
                fragment.extend_from_slice(part);
                cable.to_host.push_back(fragment);
            }
        }
        run(&mut stack, &mut cable, 0, 1_000);
        let answers: Vec<Vec<u8>> = cable
            .from_host
            .chunks(3)
            .map(|fragments| {
                fragments.iter().flat_map(|fragment| &fragment[20..]).copied().collect()
            })
            .collect();
        assert_eq!(answers.len(), 2, "{:?}", cable.from_host);
        assert!(answers.iter().all(|answer| answer[8..] == payload));
    }

    #[test]
    fn no_datagram_upsets_it() {
        let mut random = fastrand::Rng::with_seed(1);
        for hwaddr in [None, Some(HWADDR)] {
            let mut stack = stack(hwaddr);
            let mut cable = Cable::default();
            let [from, to] = ["10.0.0.2:5", "10.0.0.1:7"].map(|at| at.parse().unwrap());
            let [from6, to6] = ["[fd00::2]:5", "[fd00::1]:7"].map(|at| at.parse().unwrap());
            let mut seeds = vec![
                packet::echo_request(
                    "10.0.0.2".parse().unwrap(),
                    "10.0.0.1".parse().unwrap(),
                    packet::Echo::default(),
                ),
                packet::echo_request(
                    "fd00::2".parse().unwrap(),
                    "fd00::1".parse().unwrap(),
                    packet::Echo::default(),
                ),
                packet::udp(from, to, b"echo"),
                packet::udp(from6, to6, b"echo"),
            ]
            .into_iter()
            .map(Result::unwrap)
            .collect::<Vec<_>>();
            for port in [7, 8_080] {
                let mut syn = Vec::new();
                PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
                    .tcp(5, port, 0, 1_000)
                    .syn()
                    .write(&mut syn, &[])
                    .unwrap();
                seeds.push(syn);
            }
            for turn in 0..30_000_u64 {
                let mut bytes = random.choice(&seeds).cloned().unwrap_or_default();
                if hwaddr.is_some() {
                    let six = bytes[0] >> 4 == 6;
                    bytes = frame(&bytes);
                    if six {
                        bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
                    }
                }
                for _ in 0..random.usize(0..4) {
                    let at = random.usize(0..bytes.len());
                    let any = random.u8(..);
                    bytes[at] = *random.choice(&[0, 1, 0x7f, 0x80, 0xff, any]).unwrap_or(&0);
                }
                // Most would be refused for their checksum and test no more than that.
                mend_checksums(&mut bytes, if hwaddr.is_some() { ETHERNET_HEADER } else { 0 });
                if random.u8(..) < 16 {
                    bytes.truncate(random.usize(0..bytes.len()));
                }
                cable.to_host.push_back(bytes);
                stack.perform(Duration::from_millis(turn), &mut cable);
                cable.from_host.clear();
            }
        }
    }

    /// Puts the right checksums where they are wanted, as far as the headers say where.
    fn mend_checksums(bytes: &mut [u8], start: usize) {
        use smoltcp::wire::{Icmpv4Packet, Ipv4Packet, TcpPacket, UdpPacket};
        let Some(bytes) = bytes.get_mut(start..) else { return };
        let Ok(mut packet) = Ipv4Packet::new_checked(bytes) else { return };
        packet.fill_checksum();
        let (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
        match u8::from(packet.next_header()) {
            1 => {
                if let Ok(mut packet) = Icmpv4Packet::new_checked(packet.payload_mut()) {
                    packet.fill_checksum();
                }
            }
            6 => {
                if let Ok(mut packet) = TcpPacket::new_checked(packet.payload_mut()) {
                    packet.fill_checksum(&source, &destination);
                }
            }
            17 => {
                if let Ok(mut packet) = UdpPacket::new_checked(packet.payload_mut()) {
                    packet.fill_checksum(&source, &destination);
                }
            }
            _ => {}
        }
    }
}
