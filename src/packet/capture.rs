//! Reads captures: pcap and pcapng, from a file or a pipe, one record at a time.
//!
//! It follows the drafts `draft-ietf-opsawg-pcap` and `draft-ietf-opsawg-pcapng`, and reads what libpcap and Wireshark read.
//! A writer's snap length is not trusted: many files hold records beyond it, or give 0. Times are skipped, unchecked.

use std::io::{self, BufReader, Read};

/// A record that says it is longer than this is damage; it is libpcap's `MAXIMUM_SNAPLEN`.
const MAX_RECORD: usize = 256 << 10;
/// A block that says it is longer than this is damage, as to Wireshark.
const MAX_BLOCK: usize = 16 << 20;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
/// Of an interface: bits of the frame check sequence at the end of each packet.
const IF_FCSLEN: u16 = 13;
/// Of a packet: bits 5 to 8 are the bytes of its frame check sequence, if they are not 0.
const PACKET_FLAGS: u16 = 2;

/// Why a capture cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be opened or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is no capture; a pcap or pcapng file is needed")]
    Format,
    /// It is compressed.
    #[error(
        "it is compressed by {0}; decompress it first, to a file or to standard input (--pcap -)"
    )]
    Compressed(&'static str),
    /// It ends within a record: whoever wrote it was stopped.
    #[error("it ends within a record")]
    CutOff,
    /// It contradicts itself.
    #[error("record {number} is damaged: {what}")]
    Damaged {
        /// Which record or block, from 1.
        number: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// A packet as it was captured.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// Its link type: one of those at <https://www.tcpdump.org/linktypes.html>.
    pub link_type: u16,
    /// The bytes that were kept, without a frame check sequence.
    pub data: Vec<u8>,
    /// A snap length has cut bytes off.
    pub is_cut: bool,
}

/// A capture that is being read.
pub struct Capture<R> {
    input: BufReader<R>,
    /// Numbers are in big-endian order.
    is_big_endian: bool,
    format: Format,
    /// Records that were begun.
    number: u64,
}

enum Format {
    Pcap {
        interface: Interface,
        /// Bytes of a record's header: 16, or 24 of Alexey Kuznetsov's variant.
        record_header: usize,
        /// Before version 2.4 the two lengths of a record may stand the other way round.
        may_be_swapped: bool,
    },
    PcapNg {
        /// Those of the section.
        interfaces: Vec<Interface>,
    },
}

#[derive(Clone, Copy)]
struct Interface {
    link_type: u16,
    /// 0: none.
    snap_length: usize,
    /// Bytes of the frame check sequence at the end of each packet.
    check_sequence: usize,
}

impl<R: Read> Capture<R> {
    /// Reads the head of a capture.
    ///
    /// # Errors
    ///
    /// That it is none, or cannot be read.
    pub fn new(input: R) -> Result<Self, CaptureError> {
        let mut input = BufReader::new(input);
        let mut magic = [0; 4];
        match fill(&mut input, &mut magic) {
            Err(CaptureError::CutOff) => return Err(CaptureError::Format),
            read => read?,
        }
        let mut capture = Self {
            input,
            is_big_endian: magic[0] == 0xa1,
            format: Format::PcapNg { interfaces: Vec::new() },
            number: 0,
        };
        let record_header = match capture.u32_at(&magic, 0) {
            0xa1b2_c3d4 | 0xa1b2_3c4d => 16,
            0xa1b2_cd34 => 24,
            SECTION_HEADER => {
                capture.read_section_header()?;
                return Ok(capture);
            }
            _ => {
                return Err(match magic {
                    [0x1f, 0x8b, ..] => CaptureError::Compressed("gzip"),
                    [0x28, 0xb5, 0x2f, 0xfd] => CaptureError::Compressed("zstd"),
                    [0x04, 0x22, 0x4d, 0x18] => CaptureError::Compressed("lz4"),
                    _ => CaptureError::Format,
                });
            }
        };
        let mut header = [0; 20];
        fill(&mut capture.input, &mut header)?;
        let network = capture.u32_at(&header, 16);
        let has_check_sequence = network & 1 << 26 != 0;
        capture.format = Format::Pcap {
            interface: Interface {
                link_type: u16::try_from(network & 0xffff).unwrap_or_default(),
                snap_length: 0,
                // In words of 16 bits.
                check_sequence: if has_check_sequence { size(network >> 28) * 2 } else { 0 },
            },
            record_header,
            may_be_swapped: (capture.u16_at(&header, 0), capture.u16_at(&header, 2)) < (2, 4),
        };
        Ok(capture)
    }

    /// The next packet; `None` at the end.
    ///
    /// # Errors
    ///
    /// What is wrong from here on; there are no more packets then.
    pub fn next_record(&mut self) -> Result<Option<Record>, CaptureError> {
        match self.format {
            Format::Pcap { interface, record_header, may_be_swapped } => {
                self.number += 1;
                let mut header = [0; 24];
                let header = &mut header[..record_header];
                if !fill_or_end(&mut self.input, header)? {
                    return Ok(None);
                }
                let (mut captured, mut original) =
                    (size(self.u32_at(header, 8)), size(self.u32_at(header, 12)));
                if may_be_swapped && captured > original {
                    std::mem::swap(&mut captured, &mut original);
                }
                if captured > MAX_RECORD {
                    return Err(self.damaged("it says that it is longer than any packet"));
                }
                let mut data = vec![0; captured];
                fill(&mut self.input, &mut data)?;
                Ok(Some(record(interface, data, original, interface.check_sequence)))
            }
            Format::PcapNg { .. } => self.next_packet_block(),
        }
    }

    fn next_packet_block(&mut self) -> Result<Option<Record>, CaptureError> {
        loop {
            self.number += 1;
            let mut kind = [0; 4];
            if !fill_or_end(&mut self.input, &mut kind)? {
                return Ok(None);
            }
            let kind = self.u32_at(&kind, 0);
            if kind == SECTION_HEADER {
                self.read_section_header()?;
                continue;
            }
            let mut length = [0; 4];
            fill(&mut self.input, &mut length)?;
            let length = self.body_length(length, 12)?;
            if ![INTERFACE_DESCRIPTION, OBSOLETE_PACKET, SIMPLE_PACKET, ENHANCED_PACKET]
                .contains(&kind)
            {
                self.skip(length + 4)?;
                continue;
            }
            let mut body = vec![0; length + 4];
            fill(&mut self.input, &mut body)?;
            if size(self.u32_at(&body, length)) != length + 12 {
                return Err(self.damaged("its two lengths differ"));
            }
            body.truncate(length);
            if let Some(record) = self.read_block(kind, &body)? {
                return Ok(Some(record));
            }
        }
    }

    /// Reads a block that is a packet, or describes an interface.
    fn read_block(&mut self, kind: u32, body: &[u8]) -> Result<Option<Record>, CaptureError> {
        if kind == INTERFACE_DESCRIPTION {
            if body.len() < 8 {
                return Err(self.damaged("its block is too short"));
            }
            let bits = self.option(&body[8..], IF_FCSLEN).and_then(|value| value.first().copied());
            let interface = Interface {
                link_type: self.u16_at(body, 0),
                snap_length: size(self.u32_at(body, 4)),
                check_sequence: usize::from(bits.unwrap_or(0) / 8),
            };
            if let Format::PcapNg { interfaces } = &mut self.format {
                interfaces.push(interface);
            }
            return Ok(None);
        }
        let header = if kind == SIMPLE_PACKET { 4 } else { 20 };
        if body.len() < header {
            return Err(self.damaged("its block is too short"));
        }
        let index = match kind {
            ENHANCED_PACKET => size(self.u32_at(body, 0)),
            OBSOLETE_PACKET => usize::from(self.u16_at(body, 0)),
            _ => 0,
        };
        let interface = match &self.format {
            Format::PcapNg { interfaces } => interfaces.get(index).copied(),
            Format::Pcap { .. } => None,
        };
        let interface = interface.ok_or_else(|| self.damaged("its interface is not described"))?;
        let original = size(self.u32_at(body, header - 4));
        let rest = &body[header..];
        let captured = if kind == SIMPLE_PACKET {
            // It is not written down: it is what the snap length leaves.
            let snap_length = Some(interface.snap_length).filter(|length| *length > 0);
            original.min(snap_length.unwrap_or(original))
        } else {
            size(self.u32_at(body, header - 8))
        };
        if captured > rest.len() || captured > MAX_RECORD {
            return Err(
                self.damaged("it says that it is longer than its block, or than any packet")
            );
        }
        let (data, options) = rest.split_at(captured);
        let options = options.get(captured.next_multiple_of(4) - captured..).unwrap_or_default();
        let flags = self.option(options, PACKET_FLAGS).filter(|value| value.len() == 4);
        let check_sequence = flags.map_or(0, |value| size(self.u32_at(value, 0) >> 5 & 0xf));
        let check_sequence =
            if check_sequence > 0 { check_sequence } else { interface.check_sequence };
        Ok(Some(record(interface, data.to_vec(), original, check_sequence)))
    }

    /// Reads a section's header behind its type, and forgets the section before.
    fn read_section_header(&mut self) -> Result<(), CaptureError> {
        let mut header = [0; 8];
        fill(&mut self.input, &mut header)?;
        let [length @ .., a, b, c, d] = header;
        self.is_big_endian = match [a, b, c, d] {
            [0x1a, 0x2b, 0x3c, 0x4d] => true,
            [0x4d, 0x3c, 0x2b, 0x1a] => false,
            _ => return Err(CaptureError::Format),
        };
        let rest = self.body_length(length, 28)? - 4;
        self.format = Format::PcapNg { interfaces: Vec::new() };
        self.skip(rest + 4)
    }

    /// Bytes between a block's first length and its last.
    fn body_length(&self, length: [u8; 4], least: usize) -> Result<usize, CaptureError> {
        let length = size(self.u32_at(&length, 0));
        if (least..=MAX_BLOCK).contains(&length) && length.is_multiple_of(4) {
            Ok(length - 12)
        } else {
            Err(self.damaged("no block has such a length"))
        }
    }

    fn skip(&mut self, length: usize) -> Result<(), CaptureError> {
        let skipped = io::copy(&mut (&mut self.input).take(length as u64), &mut io::sink())?;
        if skipped == length as u64 { Ok(()) } else { Err(CaptureError::CutOff) }
    }

    /// The value of an option of a block.
    fn option<'a>(&self, mut options: &'a [u8], wanted: u16) -> Option<&'a [u8]> {
        while options.len() >= 4 {
            let (code, length) = (self.u16_at(options, 0), usize::from(self.u16_at(options, 2)));
            let value = options.get(4..4 + length)?;
            if code == wanted {
                return Some(value);
            }
            options = options.get(4 + length.next_multiple_of(4)..)?;
        }
        None
    }

    fn u16_at(&self, bytes: &[u8], at: usize) -> u16 {
        let bytes = [bytes[at], bytes[at + 1]];
        if self.is_big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn u32_at(&self, bytes: &[u8], at: usize) -> u32 {
        let bytes = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    fn damaged(&self, what: &'static str) -> CaptureError {
        CaptureError::Damaged { number: self.number, what }
    }
}

/// A record without its frame check sequence, of which a snap length may have cut off a part or all.
fn record(
    Interface { link_type, .. }: Interface,
    mut data: Vec<u8>,
    original: usize,
    check_sequence: usize,
) -> Record {
    // Some writers give an original length that is too short: what was captured counts.
    let original = original.max(data.len()).saturating_sub(check_sequence);
    data.truncate(original);
    Record { link_type, is_cut: data.len() < original, data }
}

fn fill(input: &mut impl Read, bytes: &mut [u8]) -> Result<(), CaptureError> {
    if fill_or_end(input, bytes)? { Ok(()) } else { Err(CaptureError::CutOff) }
}

/// False at the end of the input; an end before the last byte is an error.
fn fill_or_end(input: &mut impl Read, bytes: &mut [u8]) -> Result<bool, CaptureError> {
    let mut filled = 0;
    while filled < bytes.len() {
        match input.read(&mut bytes[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(CaptureError::CutOff),
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: [u8; 6] = [1, 2, 3, 4, 5, 6];

    /// Bytes in either order.
    #[derive(Clone, Copy)]
    struct Order {
        big: bool,
    }

    impl Order {
        fn u16s(self, numbers: &[u16]) -> Vec<u8> {
            let bytes = |n: &u16| if self.big { n.to_be_bytes() } else { n.to_le_bytes() };
            numbers.iter().flat_map(bytes).collect()
        }

        fn u32s(self, numbers: &[u32]) -> Vec<u8> {
            let bytes = |n: &u32| if self.big { n.to_be_bytes() } else { n.to_le_bytes() };
            numbers.iter().flat_map(bytes).collect()
        }

        fn pcap(self, magic: u32, snap_length: u32, network: u32) -> Vec<u8> {
            let version = self.u16s(&[2, 4]);
            [self.u32s(&[magic]), version, self.u32s(&[0, 0, snap_length, network])].concat()
        }

        fn record(self, captured: u32, original: u32) -> Vec<u8> {
            self.u32s(&[1, u32::MAX, captured, original])
        }

        fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
            let mut body = body.to_vec();
            body.resize(body.len().next_multiple_of(4), 0);
            let length = u32::try_from(body.len()).unwrap() + 12;
            [self.u32s(&[kind, length]), body, self.u32s(&[length])].concat()
        }

        fn section(self) -> Vec<u8> {
            let head = [self.u32s(&[0x1a2b_3c4d]), self.u16s(&[1, 0]), vec![0xff; 8]].concat();
            self.block(SECTION_HEADER, &[head, self.option(4, b"memtun")].concat())
        }

        fn interface(self, link_type: u16, snap_length: u32, options: &[u8]) -> Vec<u8> {
            let head = [self.u16s(&[link_type, 0]), self.u32s(&[snap_length])].concat();
            self.block(INTERFACE_DESCRIPTION, &[&head, options].concat())
        }

        fn packet(self, interface: u32, data: &[u8], original: u32, options: &[u8]) -> Vec<u8> {
            let captured = u32::try_from(data.len()).unwrap();
            let mut data = data.to_vec();
            data.resize(data.len().next_multiple_of(4), 0);
            let head = self.u32s(&[interface, 0, 0, captured, original]);
            self.block(ENHANCED_PACKET, &[&head, &data, options].concat())
        }

        fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
            let mut padded = value.to_vec();
            padded.resize(value.len().next_multiple_of(4), 0);
            [self.u16s(&[code, u16::try_from(value.len()).unwrap()]), padded].concat()
        }
    }

    const ORDERS: [Order; 2] = [Order { big: false }, Order { big: true }];

    /// A record: link type, data, whether it is cut.
    type Read = (u16, Vec<u8>, bool);

    /// The records, and how it ended.
    fn read(bytes: &[u8]) -> (Vec<Read>, Result<(), CaptureError>) {
        let mut records = Vec::new();
        let mut read = || -> Result<(), CaptureError> {
            let mut capture = Capture::new(bytes)?;
            while let Some(Record { link_type, data, is_cut }) = capture.next_record()? {
                records.push((link_type, data, is_cut));
            }
            Ok(())
        };
        let end = read();
        (records, end)
    }

    #[track_caller]
    fn read_all(bytes: &[u8]) -> Vec<Read> {
        let (records, end) = read(bytes);
        end.unwrap();
        records
    }

    #[test]
    fn every_magic_in_both_orders() {
        for order in ORDERS {
            for (magic, more) in [(0xa1b2_c3d4, 0), (0xa1b2_3c4d, 0), (0xa1b2_cd34, 8)] {
                let record = [order.record(6, 6), vec![0xaa; more], PACKET.to_vec()].concat();
                let capture = [order.pcap(magic, 65_535, 101), record.clone(), record].concat();
                assert_eq!(
                    read_all(&capture),
                    [(101, PACKET.to_vec(), false), (101, PACKET.to_vec(), false)]
                );
            }
        }
    }

    #[test]
    fn snap_lengths_are_what_a_record_says() {
        let order = ORDERS[0];
        // Cut; longer than the snap length; with a snap length of 0; an original length that cannot be.
        for (snap_length, original, is_cut) in
            [(6, 1_500, true), (4, 6, false), (0, 6, false), (0, 1_500, true), (65_535, 2, false)]
        {
            let capture = [
                order.pcap(0xa1b2_c3d4, snap_length, 1),
                order.record(6, original),
                PACKET.to_vec(),
            ];
            assert_eq!(read_all(&capture.concat()), [(1, PACKET.to_vec(), is_cut)]);
        }
        let mut ancient =
            [order.pcap(0xa1b2_c3d4, 6, 1), order.record(9, 6), PACKET.to_vec()].concat();
        ancient[6] = 3;
        assert_eq!(read_all(&ancient), [(1, PACKET.to_vec(), true)], "its lengths are swapped");
    }

    #[test]
    fn check_sequences_are_taken_off() {
        for order in ORDERS {
            let network = 2 << 28 | 1 << 26 | 1;
            for (original, kept, is_cut) in
                [(6, 2, false), (8, 4, false), (9, 5, false), (11, 6, true)]
            {
                let capture = [
                    order.pcap(0xa1b2_c3d4, 0, network),
                    order.record(6, original),
                    PACKET.to_vec(),
                ];
                assert_eq!(read_all(&capture.concat()), [(1, PACKET[..kept].to_vec(), is_cut)]);
            }
            // The packet's own word comes before that of its interface.
            let by_packet = order.option(PACKET_FLAGS, &order.u32s(&[2 << 5]));
            let capture = [
                order.section(),
                order.interface(1, 0, &order.option(IF_FCSLEN, &[32])),
                order.packet(0, &PACKET, 6, &[]),
                order.packet(0, &PACKET, 6, &by_packet),
            ];
            let kept = [(1, PACKET[..2].to_vec(), false), (1, PACKET[..4].to_vec(), false)];
            assert_eq!(read_all(&capture.concat()), kept);
        }
    }

    #[test]
    fn pcapng_has_interfaces_sections_and_other_blocks() {
        let [little, big] = ORDERS;
        let simple = |order: Order, original: u32, data: &[u8]| {
            order.block(SIMPLE_PACKET, &[&order.u32s(&[original]), data].concat())
        };
        let obsolete = [little.u16s(&[1, 7]), little.u32s(&[0, 0, 6, 9]), PACKET.to_vec()].concat();
        let capture = [
            little.section(),
            little.interface(113, 0, &[]),
            little.interface(1, 0, &little.option(2, b"eth0")),
            little.packet(1, &PACKET, 6, &[]),
            little.block(0x0000_0bad, &[1; 100]),
            little.packet(0, &PACKET, 60, &little.option(1, b"a comment")),
            little.block(OBSOLETE_PACKET, &obsolete),
            simple(little, 6, &PACKET),
            big.section(),
            big.interface(101, 4, &[]),
            simple(big, 60, &PACKET[..4]),
        ];
        let packet = PACKET.to_vec();
        assert_eq!(
            read_all(&capture.concat()),
            [
                (1, packet.clone(), false),
                (113, packet.clone(), true),
                (1, packet.clone(), true),
                (113, packet, false),
                (101, PACKET[..4].to_vec(), true),
            ]
        );
    }

    #[test]
    fn what_is_before_a_cut_or_damage_is_read() {
        let order = ORDERS[0];
        let classic = [
            order.pcap(0xa1b2_c3d4, 0, 1),
            [order.record(6, 6), PACKET.to_vec()].concat(),
            [order.record(6, 6), PACKET.to_vec()].concat(),
        ];
        let next = [
            [order.section(), order.interface(1, 0, &[])].concat(),
            order.packet(0, &PACKET, 6, &[]),
            order.packet(0, &PACKET, 6, &[]),
        ];
        for [head, first, second] in [classic, next] {
            let whole = head.len() + first.len();
            let capture = [head, first, second].concat();
            for length in whole + 1..capture.len() {
                let (records, end) = read(&capture[..length]);
                assert_eq!(records.len(), 1, "{length} bytes");
                assert!(matches!(end, Err(CaptureError::CutOff)), "{length} bytes: {end:?}");
            }
            assert_eq!(read_all(&capture[..whole]).len(), 1);
            for at in 0..capture.len() {
                for value in [0, 0x7f, 0xff] {
                    let mut damaged = capture.clone();
                    damaged[at] = value;
                    // It comes to an end, one way or the other.
                    let (records, _) = read(&damaged);
                    assert!(records.len() <= 2);
                }
            }
        }
        for damage in [
            [order.pcap(0xa1b2_c3d4, 0, 1), order.record(u32::MAX, 6)].concat(),
            [order.section(), order.packet(0, &PACKET, 6, &[])].concat(),
            [order.section(), order.u32s(&[6, 13])].concat(),
            [order.section(), order.u32s(&[6, 12, 16])].concat(),
            [order.section(), order.interface(1, 0, &[]), order.block(6, &[0xff; 20])].concat(),
        ] {
            assert!(
                matches!(read(&damage).1, Err(CaptureError::Damaged { .. })),
                "{:?}",
                read(&damage)
            );
        }
    }

    #[test]
    fn other_files_are_refused() {
        for (bytes, said) in [
            (&b""[..], "a pcap or pcapng file is needed"),
            (&[0xd4, 0xc3], "a pcap or pcapng file is needed"),
            (b"root:x:0:0", "a pcap or pcapng file is needed"),
            (&[0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 1, 2, 3, 4], "a pcap or pcapng file is needed"),
            (&[0x1f, 0x8b, 8, 0, 0], "compressed by gzip"),
            (&[0xd4, 0xc3, 0xb2, 0xa1, 2, 0], "ends within"),
        ] {
            let (records, end) = read(bytes);
            assert!(records.is_empty());
            assert!(end.unwrap_err().to_string().contains(said), "{bytes:?}");
        }
    }
}
