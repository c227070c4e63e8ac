//! Text for people: datagrams on one line, events on one line, the table of tunnels.

use std::{
    borrow::Cow,
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
};

use anstyle::Style;
use etherparse::{ArpPacketSlice, LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice};
use memtun_proto::{
    event::{Passed, WatchEvent, What},
    limits::LimitsView,
    list::{CountersView, FileView, Listing, TunnelView},
};

use crate::{
    core::{MacAddress, Mode},
    terminal::{Styles, escaped},
};

/// Bytes of something unknown that are shown.
const SHOWN_BYTES: usize = 24;

/// A datagram on one line, much as tcpdump shows it.
#[must_use]
pub fn datagram(payload: &[u8], mode: Mode) -> String {
    let sliced = match mode {
        Mode::Tun => LaxSlicedPacket::from_ip(payload).ok(),
        Mode::Tap => LaxSlicedPacket::from_ethernet(payload).ok(),
    };
    let Some(packet) = sliced else { return unknown(payload) };
    let mut line = String::new();
    if let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link {
        let (source, destination) =
            (MacAddress(ethernet.source()), MacAddress(ethernet.destination()));
        // A String takes all that is written.
        let _written = write!(line, "{source} > {destination}, ");
        if packet.net.is_none() {
            return format!(
                "{line}ethertype 0x{:04x}, {} bytes",
                ethernet.ether_type().0,
                payload.len()
            );
        }
    }
    match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let (source, destination) =
                (header.source_addr().into(), header.destination_addr().into());
            line + &transport(
                &packet,
                source,
                destination,
                ip.payload_ip_number().0,
                ip.payload().payload.len(),
            )
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let (source, destination) =
                (header.source_addr().into(), header.destination_addr().into());
            line + &transport(
                &packet,
                source,
                destination,
                ip.payload().ip_number.0,
                ip.payload().payload.len(),
            )
        }
        Some(LaxNetSlice::Arp(packet)) => line + &arp(packet),
        None => unknown(payload),
    }
}

fn transport(
    packet: &LaxSlicedPacket<'_>,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
) -> String {
    let hosts = format!("{source} > {destination}:");
    match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => {
            let kind = match icmp.type_u8() {
                0 => "echo reply",
                8 => "echo request",
                _ => "",
            };
            format!("{hosts} {}, length {length}", icmp_text("ICMP", kind, icmp.slice()))
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let kind = match icmp.type_u8() {
                129 => "echo reply",
                128 => "echo request",
                _ => "",
            };
            format!("{hosts} {}, length {length}", icmp_text("ICMP6", kind, icmp.slice()))
        }
        Some(TransportSlice::Udp(udp)) => {
            let (from, to) =
                (socket(source, udp.source_port()), socket(destination, udp.destination_port()));
            format!("{from} > {to}: UDP, length {}{}", udp.payload().len(), text(udp.payload()))
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let (from, to) =
                (socket(source, tcp.source_port()), socket(destination, tcp.destination_port()));
            let flags: String = [
                (tcp.syn(), 'S'),
                (tcp.fin(), 'F'),
                (tcp.rst(), 'R'),
                (tcp.psh(), 'P'),
                (tcp.ack(), '.'),
            ]
            .iter()
            .filter_map(|(set, letter)| set.then_some(*letter))
            .collect();
            let (sequence, window, length) =
                (tcp.sequence_number(), tcp.window_size(), tcp.payload().len());
            format!("{from} > {to}: TCP [{flags}], seq {sequence}, win {window}, length {length}")
        }
        Some(TransportSlice::Igmp(_)) | None => {
            format!("{hosts} IP protocol {protocol}, length {length}")
        }
    }
}

/// Of a whole header, at least 8 bytes: echo messages have a kind, an identifier and a sequence number.
fn icmp_text(protocol: &str, kind: &str, header: &[u8]) -> String {
    match *header {
        [_, _, _, _, id_high, id_low, seq_high, seq_low, ..] if !kind.is_empty() => {
            let (id, seq) =
                (u16::from_be_bytes([id_high, id_low]), u16::from_be_bytes([seq_high, seq_low]));
            format!("{protocol} {kind}, id {id}, seq {seq}")
        }
        [kind, code, ..] => format!("{protocol} type {kind} code {code}"),
        _ => protocol.to_owned(),
    }
}

/// `10.0.0.1:53`, `[fd00::1]:53`.
fn socket(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// A short payload that is text is worth showing.
fn text(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) if !text.is_empty() && payload.len() <= 40 => {
            format!(" {}", escaped(&format!("{text:?}")))
        }
        Ok(_) | Err(_) => String::new(),
    }
}

fn arp(packet: &ArpPacketSlice<'_>) -> String {
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(octets) => Ipv4Addr::from(octets).to_string(),
        Err(_) => hex::encode(bytes),
    };
    let sender = address(packet.sender_protocol_addr());
    let target = address(packet.target_protocol_addr());
    match packet.operation().0 {
        1 => format!("ARP who-has {target} tell {sender}"),
        2 => format!("ARP reply {sender} is-at {}", mac(packet.sender_hw_addr())),
        other => format!("ARP operation {other}, {sender} > {target}"),
    }
}

fn mac(bytes: &[u8]) -> String {
    <[u8; 6]>::try_from(bytes)
        .map_or_else(|_| hex::encode(bytes), |bytes| MacAddress(bytes).to_string())
}

fn unknown(payload: &[u8]) -> String {
    let shown = hex::encode(&payload[..payload.len().min(SHOWN_BYTES)]);
    let more = if payload.len() > SHOWN_BYTES { "..." } else { "" };
    format!("not understood, {} bytes: {shown}{more}", payload.len())
}

/// An event on one line.
#[must_use]
pub fn event(event: &WatchEvent) -> String {
    let passed = |arrow: &str, passed: &Passed| {
        let mode = if passed.mode == Mode::Tap.word() { Mode::Tap } else { Mode::Tun };
        format!("{} {arrow} {}", passed.name, datagram(&passed.datagram, mode))
    };
    let what = match &event.what {
        What::Opened { file, pid, command } => {
            format!("file {file} opened by {command} (pid {pid})")
        }
        What::Closed { file } => format!("file {file} closed"),
        What::Attached { name, mode, file, created, .. } => {
            let made = if *created { ", new" } else { "" };
            format!("{name} attached by file {file} ({mode}{made})")
        }
        What::Detached { name, file, deleted, .. } => {
            let gone = if *deleted { ", which is gone" } else { "" };
            format!("file {file} left {name}{gone}")
        }
        What::ToClient(datagram) => passed("to client  ", datagram),
        What::FromClient(datagram) => passed("from client", datagram),
        What::ToLink(datagram) => passed("to link    ", datagram),
        What::Dropped { name, reason, length, .. } => {
            format!("{name} dropped {length} bytes: {reason}")
        }
        What::Deleted { name, .. } => format!("{name} deleted"),
        What::Link { name, up, carrier, .. } => {
            let carrier = if *carrier { "" } else { ", no carrier" };
            format!("{name} is {}{carrier}", if *up { "up" } else { "down" })
        }
        What::Unknown => "something that this version does not know".to_owned(),
    };
    let missed = if event.missed > 0 {
        format!(" ({} events missed before)", event.missed)
    } else {
        String::new()
    };
    escaped(&format!("{:.6} {what}{missed}", event.time)).into_owned()
}

/// The table of tunnels, with the files of each below it.
#[must_use]
pub(crate) fn listing(listing: &Listing, styles: Styles) -> String {
    if listing.tunnels.is_empty() && listing.unattached_files.is_empty() {
        return "no tunnels; a client makes one by TUNSETIFF\n".to_owned();
    }
    let mut rows = vec![
        [
            "ID",
            "TUNNEL",
            "MODE",
            "LINK",
            "FLAGS",
            "TO CLIENT",
            "FROM CLIENT",
            "QUEUED",
            "UNTAKEN",
            "DROPPED",
            "PEER",
            "CLIENT",
        ]
        .map(str::to_owned),
    ];
    let same_name = |tunnel: &TunnelView| {
        listing.tunnels.iter().filter(|other| other.name == tunnel.name).count() > 1
    };
    for tunnel in &listing.tunnels {
        let name = if same_name(tunnel) {
            format!("{}@{}", tunnel.name, tunnel.scope)
        } else {
            tunnel.name.clone()
        };
        let counters = &tunnel.counters;
        let mut flags: Vec<&str> =
            tunnel.flags.iter().map(|flag| flag.trim_start_matches("IFF_")).collect();
        if tunnel.persistent {
            flags.push("PERSIST");
        }
        let queued: usize = tunnel.files.iter().map(|file| file.read_buffer.datagrams).sum();
        rows.push([
            format!("#{}", tunnel.id),
            name,
            tunnel.mode.clone(),
            link(tunnel),
            or_dash(flags.join(",")),
            counters.to_client.datagrams.to_string(),
            counters.from_client.datagrams.to_string(),
            queued.to_string(),
            tunnel.write_buffer.datagrams.to_string(),
            dropped(counters),
            or_dash(tunnel.peer.as_ref().map(ToString::to_string).unwrap_or_default()),
            or_dash(tunnel.files.iter().map(client).collect::<Vec<_>>().join(", ")),
        ]);
    }
    let mut text = table(&rows, styles.head);
    for file in &listing.unattached_files {
        // A String takes all that is written.
        let _written = writeln!(text, "open, attached to no tunnel: {}", escaped(&client(file)));
    }
    text
}

/// The limits, those that users share first.
#[must_use]
pub(crate) fn limits(limits: &LimitsView, styles: Styles) -> String {
    let mut rows = vec![["RESOURCE", "USED", "LIMIT", "OF A USER", "BY UID"].map(str::to_owned)];
    for shared in &limits.shared {
        let amount = |number: usize| amount(&shared.resource, number);
        let users: Vec<String> =
            shared.users.iter().map(|(uid, used)| format!("{uid}: {}", amount(*used))).collect();
        rows.push([
            shared.resource.clone(),
            amount(shared.used),
            amount(shared.limit),
            amount(shared.user_limit),
            or_dash(users.join(", ")),
        ]);
    }
    let mut text = table(&rows, styles.head);
    let mut rows = vec![["RESOURCE", "OF EACH", "LIMIT"].map(str::to_owned)];
    for single in &limits.single {
        let limit = amount(&single.resource, single.limit);
        rows.push([single.resource.clone(), single.of.clone(), limit]);
    }
    text.push('\n');
    text + &table(&rows, styles.head)
}

/// A number; bytes in larger units, unless they are few.
fn amount(resource: &str, number: usize) -> String {
    let is_bytes = resource == "memory" || resource.ends_with("-bytes");
    match number {
        _ if !is_bytes => number.to_string(),
        0..10_240 => format!("{number} B"),
        10_240..10_485_760 => format!("{} KiB", number >> 10),
        _ => format!("{} MiB", number >> 20),
    }
}

/// How many datagrams were lost, and how many of them for want of memory.
fn dropped(counters: &CountersView) -> String {
    let all = counters.to_client_dropped.datagrams + counters.from_client_dropped.datagrams;
    match counters.memory_dropped.datagrams {
        0 => all.to_string(),
        memory => format!("{all} (memory {memory})"),
    }
}

fn link(tunnel: &TunnelView) -> String {
    let link = match tunnel.link.as_str() {
        "up" if !tunnel.carrier => "no-carrier",
        link => link,
    };
    match tunnel.interface.as_str() {
        "none" => link.to_owned(),
        interface => format!("{link}, {interface}"),
    }
}

fn client(file: &FileView) -> String {
    let state = match (file.parked_reads, file.blocking, file.poll_armed) {
        (1.., ..) => ", reading",
        (0, _, true) => ", polled",
        (0, true, false) => "",
        (0, false, false) => ", nonblocking",
    };
    format!("{}({}{state})", file.command, file.pid)
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Columns that line up; the first row is their head. Each cell is on one line, whatever is in it.
fn table<const N: usize>(rows: &[[String; N]], head: Style) -> String {
    let rows: Vec<[Cow<'_, str>; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell))).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        let line = cells.join("  ");
        let style = if number == 0 { head } else { Style::new() };
        let _written = writeln!(text, "{style}{}{style:#}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet;

    #[test]
    fn datagrams_are_shown_on_one_line() {
        let ping = packet::echo_request(
            "10.0.0.1".parse().unwrap(),
            "10.0.0.2".parse().unwrap(),
            packet::Echo::default(),
        )
        .unwrap();
        assert_eq!(
            datagram(&ping, Mode::Tun),
            "10.0.0.1 > 10.0.0.2: ICMP echo request, id 28020, seq 1, length 64"
        );
        let udp =
            packet::udp("[fd00::1]:5".parse().unwrap(), "[fd00::2]:6".parse().unwrap(), b"hi")
                .unwrap();
        assert_eq!(datagram(&udp, Mode::Tun), "[fd00::1]:5 > [fd00::2]:6: UDP, length 2 \"hi\"");
        let arp = hex::decode(
            "ffffffffffff0200000000090806000108000604000102000000000a0a01010200000000000a010101",
        )
        .unwrap();
        assert_eq!(
            datagram(&arp[..14], Mode::Tap),
            "02:00:00:00:00:09 > ff:ff:ff:ff:ff:ff, ethertype 0x0806, 14 bytes"
        );
        assert_eq!(datagram(&[0x12, 0x34], Mode::Tun), "not understood, 2 bytes: 1234");
        assert_eq!(datagram(&[], Mode::Tap), "not understood, 0 bytes: ");
        for cut in 0..ping.len() {
            assert!(!datagram(&ping[..cut], Mode::Tun).contains('\n'));
        }
    }

    #[test]
    fn the_table_lines_up() {
        let rows = [["A", "BB"].map(str::to_owned), ["CCC", "D"].map(str::to_owned)];
        assert_eq!(table(&rows, Style::new()), "A    BB\nCCC  D\n");
        let bold = table(&rows, Style::new().bold());
        assert_eq!(bold, "\x1b[1mA    BB\x1b[0m\nCCC  D\n");
        let rows = [["A", "B"].map(str::to_owned), ["\x1b[2J\n", "D"].map(str::to_owned)];
        assert_eq!(table(&rows, Style::new()), "A            B\n\\x1b[2J\\x0a  D\n");
    }
}
