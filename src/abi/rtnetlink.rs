//! rtnetlink messages about links, from `include/uapi/linux/netlink.h`, `rtnetlink.h` and `if_link.h`.
//!
//! [`Request`] composes one, [`messages`] reads what the kernel sends. Only what memtun wants of a link is looked at, and
//! whatever else is there is passed over: kernels add attributes with every release, and names need not be UTF-8.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::tun::Name;

/// `RTM_NEWLINK`: make or change a link; a link is there or has changed.
pub const NEWLINK: u16 = 16;
/// `RTM_DELLINK`: delete a link; a link is gone.
pub const DELLINK: u16 = 17;
/// `RTM_GETLINK`: tell about a link.
pub const GETLINK: u16 = 18;

/// `NLMSG_ERROR`: how a request ended.
const ERROR: u16 = 2;

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 0x001;
/// `NLM_F_ACK`: say how it ended, also if it ended well.
pub const ACK: u16 = 0x004;
/// `NLM_F_CREATE | NLM_F_EXCL`: make a link that must not exist.
pub const CREATE: u16 = 0x600;

/// `IFF_UP`: somebody brought the link up.
pub const IFF_UP: u32 = 0x1;
/// `IFF_NOARP`.
pub const IFF_NOARP: u32 = 0x80;

/// `IFLA_*`: attributes of a link.
pub mod attribute {
    /// `IFLA_ADDRESS`: the Ethernet address; a tun has none.
    pub const ADDRESS: u16 = 1;
    /// `IFLA_IFNAME`.
    pub const NAME: u16 = 3;
    /// `IFLA_MTU`.
    pub const MTU: u16 = 4;
    /// `IFLA_TXQLEN`: the length of its queue.
    pub const QUEUE_LENGTH: u16 = 13;
    /// `IFLA_LINKINFO`, with [`INFO_KIND`] in it.
    pub const LINKINFO: u16 = 18;
    /// `IFLA_INFO_KIND`, as in `ip link add type KIND`.
    pub const INFO_KIND: u16 = 1;
    /// `IFLA_INFO_DATA`: what belongs to the kind.
    pub const INFO_DATA: u16 = 2;
    /// `VETH_INFO_PEER`, in that: a `struct ifinfomsg` and attributes of the other end.
    pub const VETH_PEER: u16 = 1;
    /// `IFLA_NET_NS_FD`: the network namespace that it is to be in.
    pub const NETWORK: u16 = 28;
    /// `IFLA_IFALIAS`: a remark for people.
    pub const ALIAS: u16 = 20;
    /// `IFLA_GROUP`: a number by which many can be meant.
    pub const GROUP: u16 = 27;
    /// `IFLA_CARRIER`.
    pub const CARRIER: u16 = 33;

    /// `NLA_TYPE_MASK`: without the bits for nesting and byte order.
    pub(super) const TYPE_MASK: u16 = 0x3fff;
    /// `NLA_F_NESTED`.
    pub(super) const NESTED: u16 = 0x8000;
}

/// `struct nlmsghdr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct ifinfomsg`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct LinkHeader {
    family: u8,
    padding: u8,
    link_type: u16,
    index: u32,
    flags: u32,
    change: u32,
}

/// `struct nlattr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct AttributeHeader {
    length: u16,
    kind: u16,
}

const _: () = assert!(size_of::<Header>() == 16);
const _: () = assert!(size_of::<LinkHeader>() == 16);
const _: () = assert!(size_of::<AttributeHeader>() == 4);

/// A request about one link.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
    link: LinkHeader,
}

impl Request {
    /// About the link of an index; 0 for one that is to be made, or is named by its attributes.
    #[must_use]
    pub fn new(kind: u16, flags: u16, index: u32) -> Self {
        let header = Header { length: 0, kind, flags: REQUEST | flags, sequence: 0, port: 0 };
        let link = LinkHeader { index, ..LinkHeader::default() };
        Self { bytes: [header.as_bytes(), link.as_bytes()].concat(), link }
    }

    /// Sets or clears `IFF_*` flags.
    #[must_use]
    pub fn flags(mut self, flags: u32, set: bool) -> Self {
        self.link.change |= flags;
        self.link.flags = if set { self.link.flags | flags } else { self.link.flags & !flags };
        self
    }

    /// Adds an attribute. What does not fit into one is cut, which the kernel refuses.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.bytes, kind, value);
        self
    }

    /// Adds the kind of link that is to be made.
    #[must_use]
    pub fn kind(self, kind: &str) -> Self {
        self.kind_with(kind, |_| ())
    }

    /// A `veth` is to be made. Its other end gets a name, in the network namespace of a descriptor.
    #[must_use]
    pub fn veth(self, peer: &str, network: i32) -> Self {
        let mut end = LinkHeader::default().as_bytes().to_vec();
        push_attribute(&mut end, attribute::NAME, peer.as_bytes());
        push_attribute(&mut end, attribute::NETWORK, &network.to_ne_bytes());
        let mut data = Vec::new();
        push_attribute(&mut data, attribute::VETH_PEER | attribute::NESTED, &end);
        self.kind_with("veth", |info| {
            push_attribute(info, attribute::INFO_DATA | attribute::NESTED, &data);
        })
    }

    /// The kind, and what `more` adds to it.
    fn kind_with(self, kind: &str, more: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut info = Vec::new();
        push_attribute(&mut info, attribute::INFO_KIND, kind.as_bytes());
        more(&mut info);
        self.attribute(attribute::LINKINFO | attribute::NESTED, &info)
    }

    /// The message, with a number by which its answer is known.
    #[must_use]
    pub fn into_bytes(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes[16..32].copy_from_slice(self.link.as_bytes());
        self.bytes
    }
}

fn push_attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let room = usize::from(u16::MAX) - size_of::<AttributeHeader>();
    let value = &value[..value.len().min(room)];
    let length = u16::try_from(size_of::<AttributeHeader>() + value.len()).unwrap_or(u16::MAX);
    to.extend(AttributeHeader { length, kind }.as_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// A message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A link is there, or has changed.
    Link(Link),
    /// A link has left the namespace.
    Gone {
        /// Its index.
        index: u32,
    },
    /// How a request ended: `Err` with an error number.
    Ended(Result<(), i32>),
    /// Something else.
    Other,
}

/// What the kernel tells about a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// `IFF_*`.
    pub flags: u32,
    /// Its name.
    pub name: Name,
    /// Its MTU.
    pub mtu: u32,
    /// Its Ethernet address, if it has one.
    pub address: Option<[u8; 6]>,
    /// The length of its queue.
    pub queue_length: u32,
    /// There is a carrier.
    pub carrier: bool,
}

/// The messages in what was received, each with the number of the request that it answers. What is cut short ends them.
pub fn messages(received: &[u8]) -> impl Iterator<Item = (u32, Message)> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let (header, _) = Header::read_from_prefix(rest).ok()?;
        let length = usize::try_from(header.length).ok()?;
        let body = rest.get(size_of::<Header>()..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header.sequence, parse(header, body).unwrap_or(Message::Other)))
    })
}

fn parse(header: Header, body: &[u8]) -> Option<Message> {
    match header.kind {
        NEWLINK => parse_link(body).map(Message::Link),
        DELLINK => LinkHeader::read_from_prefix(body)
            .ok()
            .map(|(link, _)| Message::Gone { index: link.index }),
        ERROR => {
            let (number, _) = i32::read_from_prefix(body).ok()?;
            Some(Message::Ended(if number == 0 { Ok(()) } else { Err(number.saturating_neg()) }))
        }
        _ => None,
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let (header, attributes) = LinkHeader::read_from_prefix(body).ok()?;
    let mut link = Link { index: header.index, flags: header.flags, ..Link::default() };
    for (kind, value) in each_attribute(attributes) {
        let number = || u32::read_from_prefix(value).ok().map(|(number, _)| number);
        match kind {
            attribute::NAME => link.name = Name::new(value),
            attribute::MTU => link.mtu = number()?,
            attribute::QUEUE_LENGTH => link.queue_length = number()?,
            attribute::ADDRESS => link.address = value.try_into().ok(),
            attribute::CARRIER => link.carrier = value.first() != Some(&0),
            _ => {}
        }
    }
    Some(link)
}

fn each_attribute(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = AttributeHeader::read_from_prefix(rest).ok()?;
        let length = usize::from(header.length);
        let value = rest.get(size_of::<AttributeHeader>()..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header.kind & attribute::TYPE_MASK, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_as_the_kernel_reads_it() {
        let request = Request::new(NEWLINK, ACK | CREATE, 0)
            .flags(IFF_UP, true)
            .attribute(attribute::NAME, b"tun0\0")
            .kind("dummy");
        #[rustfmt::skip]
        let golden = [
            64, 0, 0, 0, 16, 0, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0,
            9, 0, 3, 0, b't', b'u', b'n', b'0', 0, 0, 0, 0,
            16, 0, 18, 0x80, 9, 0, 1, 0, b'd', b'u', b'm', b'm', b'y', 0, 0, 0,
        ];
        let bytes = request.into_bytes(7);
        assert_eq!(bytes[4..], golden[4..]);
        assert_eq!(usize::from(bytes[0]), golden.len());
    }

    #[test]
    fn other_end_of_a_veth_is_nested_in_the_kind() {
        let bytes = Request::new(NEWLINK, ACK, 0).veth("far", 9).into_bytes(7);
        #[rustfmt::skip]
        let golden = [
            52, 0, 18, 0x80, 8, 0, 1, 0, b'v', b'e', b't', b'h',
            40, 0, 2, 0x80, 36, 0, 1, 0x80,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            7, 0, 3, 0, b'f', b'a', b'r', 0, 8, 0, 28, 0, 9, 0, 0, 0,
        ];
        assert_eq!(bytes[32..], golden);
    }

    #[test]
    fn flag_is_set_or_cleared_and_named_in_the_change_mask() {
        let link = |set| {
            let bytes = Request::new(NEWLINK, ACK, 3).flags(IFF_UP, set).into_bytes(1);
            LinkHeader::read_from_prefix(&bytes[16..]).unwrap().0
        };
        assert_eq!((link(true).flags, link(true).change), (1, 1));
        assert_eq!((link(false).flags, link(false).change), (0, 1));
    }

    fn link_message() -> Vec<u8> {
        Request::new(NEWLINK, 0, 5)
            .flags(IFF_UP, true)
            .attribute(attribute::NAME, b"t\xff\0")
            .attribute(attribute::MTU, &1400_u32.to_ne_bytes())
            .attribute(999, b"of a kernel to come")
            .attribute(attribute::ADDRESS, &[2, 0, 0, 0, 0, 9])
            .attribute(attribute::QUEUE_LENGTH, &500_u32.to_ne_bytes())
            .attribute(attribute::CARRIER, &[1])
            .into_bytes(0)
    }

    #[test]
    fn several_messages_come_in_one_datagram() {
        let mut error =
            Header { length: 20, kind: ERROR, flags: 0, sequence: 9, port: 0 }.as_bytes().to_vec();
        error.extend((-17_i32).to_ne_bytes());
        let gone = Request::new(DELLINK, 0, 6).into_bytes(0);
        let all: Vec<(u32, Message)> = messages(&[error, link_message(), gone].concat()).collect();
        let link = Link {
            index: 5,
            flags: IFF_UP,
            name: Name::new(b"t\xff"),
            mtu: 1400,
            address: Some([2, 0, 0, 0, 0, 9]),
            queue_length: 500,
            carrier: true,
        };
        assert_eq!(
            all,
            [
                (9, Message::Ended(Err(17))),
                (0, Message::Link(link)),
                (0, Message::Gone { index: 6 })
            ]
        );
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = link_message();
        for cut in 0..whole.len() {
            assert!(messages(&whole[..cut]).count() <= 1);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                assert!(messages(&bytes).count() <= bytes.len());
            }
        }
    }
}
