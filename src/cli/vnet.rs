//! The vnet header on the command line: options of `inject`, and a few words that `take` prints.

use std::str::FromStr;

use memtun_client::proto::Vnet;

use crate::{
    abi::virtio_net::{Gso, VnetHeader},
    core::{
        Datagram, Mode,
        offload::{self, OffloadError},
    },
};

/// What a header asks for, in the words of the options; nothing for one that asks for nothing.
pub(super) fn words(vnet: Vnet) -> String {
    let mut words = Vec::new();
    if vnet.gso_type != 0 {
        let number = vnet.gso_type & !(VnetHeader::GSO_ECN | VnetHeader::GSO_UDP_TUNNEL);
        let gso = Gso::new(number).map_or_else(|| number.to_string(), |gso| word(gso).into());
        let ecn = if vnet.gso_type & VnetHeader::GSO_ECN == 0 { "" } else { ECN };
        words.push(format!("gso {gso}{ecn}:{}", vnet.gso_size));
    }
    if vnet.gso_type & VnetHeader::GSO_UDP_TUNNEL != 0 {
        let has_checksum = vnet.flags & VnetHeader::UDP_TUNNEL_CSUM != 0;
        let checksum = if has_checksum { "+csum" } else { "" };
        let Vnet { outer_th_offset, inner_nh_offset, .. } = vnet;
        words.push(format!("udp-tunnel{checksum} {outer_th_offset}:{inner_nh_offset}"));
    }
    if vnet.flags & VnetHeader::NEEDS_CSUM != 0 {
        words.push(format!("csum {}:{}", vnet.csum_start, vnet.csum_offset));
    }
    if vnet.flags & VnetHeader::DATA_VALID != 0 {
        words.push("csum valid".to_owned());
    }
    words.join(", ")
}

/// Behind a kind of segments: the first alone has CWR.
const ECN: &str = "+ecn";

fn word(gso: Gso) -> &'static str {
    match gso {
        Gso::Tcp4 => "tcp4",
        Gso::Tcp6 => "tcp6",
        Gso::Udp => "udp",
        Gso::UdpFragments => "ufo",
    }
}

/// What is left to be done to a datagram that is injected.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Options {
    /// The vnet header in hex: 10 bytes, or 24 with the fields of UDP tunnels.
    #[arg(long, value_name = "HEX", conflicts_with_all = ["gso", "csum"])]
    vnet: Option<Hex>,
    /// Ask for the datagram to be cut into segments with BYTES of payload each. KIND is tcp4, tcp6, udp or ufo. With +ecn after it,
    /// only the first segment has CWR. Unless --csum is given too, this also asks for the checksum to be filled in.
    #[arg(long, value_name = "KIND:BYTES")]
    gso: Option<Segments>,
    /// Ask for a checksum over the bytes from START on to be filled in at START+OFFSET. Until then, the sum of the pseudo-header
    /// stands there.
    #[arg(long, value_name = "START:OFFSET")]
    csum: Option<Checksum>,
}

impl Options {
    /// The datagram with the vnet header that was asked for, if any.
    ///
    /// # Errors
    ///
    /// Says why `--gso` cannot be followed.
    pub(super) fn apply(&self, datagram: Datagram, mode: Mode) -> Result<Datagram, OffloadError> {
        let vnet = match (self.vnet, self.gso, self.csum) {
            (Some(Hex(header)), ..) => header,
            (None, None, None) => return Ok(datagram),
            (None, Some(Segments { gso, ecn, size }), None) => {
                return offload::defer(datagram, mode, gso, ecn, size);
            }
            (None, gso, Some(Checksum { start, offset })) => VnetHeader {
                flags: VnetHeader::NEEDS_CSUM,
                gso_type: gso.map_or(0, |segments| segments.gso_type()),
                hdr_len: 0.into(),
                gso_size: gso.map_or(0, |segments| segments.size).into(),
                csum_start: start.into(),
                csum_offset: offset.into(),
                ..VnetHeader::default()
            },
        };
        Ok(datagram.with_vnet(Some(vnet)))
    }
}

#[derive(Clone, Copy, Debug)]
struct Hex(VnetHeader);

impl FromStr for Hex {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = hex::decode(text).map_err(|error| error.to_string());
        let header = bytes.and_then(|bytes| match (bytes.len(), VnetHeader::read(&bytes)) {
            (VnetHeader::SIZE | VnetHeader::TUNNEL_SIZE, Some(header)) => Ok(Self(header)),
            (length, _) => Err(format!("there are {length} bytes")),
        });
        header.map_err(|error| {
            format!(
                "{error}; give the 10 bytes of struct virtio_net_hdr, or the 24 of struct virtio_net_hdr_v1_hash_tunnel"
            )
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Segments {
    gso: Gso,
    ecn: bool,
    size: u16,
}

impl Segments {
    fn gso_type(self) -> u8 {
        self.gso as u8 | if self.ecn { VnetHeader::GSO_ECN } else { 0 }
    }
}

impl FromStr for Segments {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (kind, size) = text.split_once(':')?;
            let bare = kind.strip_suffix(ECN);
            let gso = Gso::ALL.into_iter().find(|gso| word(*gso) == bare.unwrap_or(kind))?;
            Some(Self { gso, ecn: bare.is_some(), size: size.parse().ok()? })
        };
        parse().ok_or_else(|| "say tcp4, tcp6, udp or ufo and a size, as in tcp4:1400".to_owned())
    }
}

#[derive(Clone, Copy, Debug)]
struct Checksum {
    start: u16,
    offset: u16,
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (start, offset) = text.split_once(':')?;
            Some(Self { start: start.parse().ok()?, offset: offset.parse().ok()? })
        };
        parse().ok_or_else(|| "give two numbers of bytes, as in 20:16".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vnet::{header_of, of_header};

    #[test]
    fn what_is_shown_are_the_options_that_make_it() {
        for (gso, shown) in [
            ("tcp4:1400", "gso tcp4:1400, csum 20:16"),
            ("tcp6+ecn:1", "gso tcp6+ecn:1, csum 20:16"),
            ("udp:0", "gso udp:0, csum 20:16"),
        ] {
            let options = Options { vnet: None, gso: gso.parse().ok(), csum: "20:16".parse().ok() };
            let datagram = options.apply(Datagram::default(), Mode::Tun).unwrap();
            assert_eq!(words(of_header(datagram.vnet().unwrap())), shown);
        }
        assert_eq!(words(Vnet::default()), "");
        assert_eq!(words(Vnet { gso_type: 9, flags: 2, ..Vnet::default() }), "gso 9:0, csum valid");
    }

    #[test]
    fn fields_are_where_the_kernel_has_them() {
        let Hex(header) = "01810200030004000500".parse().unwrap();
        let vnet = Vnet {
            flags: 1,
            gso_type: 0x81,
            hdr_len: 2,
            gso_size: 3,
            csum_start: 4,
            csum_offset: 5,
            ..Vnet::default()
        };
        assert_eq!(of_header(header), vnet);
        assert_eq!(header_of(vnet), header);
        let Hex(header) =
            ["09210200030004000500", &"11".repeat(10), "22004000"].concat().parse().unwrap();
        let vnet =
            Vnet { flags: 9, gso_type: 0x21, outer_th_offset: 34, inner_nh_offset: 64, ..vnet };
        assert_eq!(of_header(header), vnet);
        assert_eq!(header_of(vnet), header);
        assert_eq!(words(vnet), "gso tcp4:3, udp-tunnel+csum 34:64, csum 4:5");
        for wrong in ["01", "018102000300040005000000"] {
            assert!(wrong.parse::<Hex>().is_err(), "{wrong}");
        }
        for wrong in ["tcp4", "tcp4:", "tcp4:70000", "tcp5:1", "ecn:1"] {
            assert!(wrong.parse::<Segments>().is_err(), "{wrong}");
        }
        assert!("20".parse::<Checksum>().is_err());
    }
}
