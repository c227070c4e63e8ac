//! The tun driver's user interface, from `include/uapi/linux/if_tun.h`, `if.h`, `sockios.h` and `poll.h`.

use alloc::string::String;
use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian};

bitflags::bitflags! {
    /// The 16 bits of `ifr_flags` that TUNSETIFF takes and TUNGETIFF returns.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IfFlags: u16 {
        /// `IFF_TUN`: layer 3.
        const TUN = 0x0001;
        /// `IFF_TAP`: layer 2.
        const TAP = 0x0002;
        /// `IFF_NAPI`.
        const NAPI = 0x0010;
        /// `IFF_NAPI_FRAGS`.
        const NAPI_FRAGS = 0x0020;
        /// `IFF_NO_CARRIER`: create with the carrier off.
        const NO_CARRIER = 0x0040;
        /// `IFF_MULTI_QUEUE`.
        const MULTI_QUEUE = 0x0100;
        /// `IFF_ATTACH_QUEUE`, for TUNSETQUEUE.
        const ATTACH_QUEUE = 0x0200;
        /// `IFF_DETACH_QUEUE`, for TUNSETQUEUE; in TUNGETIFF: this queue is detached.
        const DETACH_QUEUE = 0x0400;
        /// `IFF_PERSIST`: read-only, reported by TUNGETIFF.
        const PERSIST = 0x0800;
        /// `IFF_NO_PI`: no PI header. In TUNGETIFF the bit means `IFF_NOFILTER`, no classic BPF filter.
        const NO_PI = 0x1000;
        /// `IFF_ONE_QUEUE`: without effect.
        const ONE_QUEUE = 0x2000;
        /// `IFF_VNET_HDR`: a vnet header stands before each datagram.
        const VNET_HDR = 0x4000;
        /// `IFF_TUN_EXCL`: TUNSETIFF must create the tunnel.
        const TUN_EXCL = 0x8000;
        /// `TUN_FEATURES` of `tun.c`: what TUNSETIFF stores and each re-attach replaces.
        const STORED = Self::NO_PI.bits() | Self::ONE_QUEUE.bits() | Self::VNET_HDR.bits()
            | Self::MULTI_QUEUE.bits() | Self::NAPI.bits() | Self::NAPI_FRAGS.bits();
    }
}

/// What TUNGETFEATURES answers: every flag above that TUNSETIFF knows, without `TUN_EXCL`.
pub const FEATURES: u32 =
    IfFlags::TUN.union(IfFlags::TAP).union(IfFlags::NO_CARRIER).union(IfFlags::STORED).bits()
        as u32;
const _: () = assert!(FEATURES == 0x7173);

#[cfg(feature = "log")]
impl serde::Serialize for IfFlags {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.bits().serialize(to)
    }
}

bitflags::bitflags! {
    /// `TUN_F_*`: the offloads that TUNSETOFFLOAD accepts.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Offload: u64 {
        /// Datagrams may come with their checksum not filled in.
        const CSUM = 0x001;
        /// TCP over IPv4 segments may come unsegmented.
        const TSO4 = 0x002;
        /// TCP over IPv6 segments may come unsegmented.
        const TSO6 = 0x004;
        /// TSO of segments with ECN bits.
        const TSO_ECN = 0x008;
        /// UDP fragmentation offload.
        const UFO = 0x010;
        /// UDP segmentation over IPv4.
        const USO4 = 0x020;
        /// UDP segmentation over IPv6.
        const USO6 = 0x040;
        /// GSO inside a UDP tunnel.
        const UDP_TUNNEL_GSO = 0x080;
        /// The same, with the outer checksum.
        const UDP_TUNNEL_GSO_CSUM = 0x100;
    }
}

/// ioctl numbers: the full 32-bit command, as the driver compares it.
#[allow(missing_docs, reason = "each is named as in if_tun.h or sockios.h, where it is described")]
pub mod ioctl {
    pub const TUNSETNOCSUM: u32 = 0x4004_54c8;
    pub const TUNSETDEBUG: u32 = 0x4004_54c9;
    pub const TUNSETIFF: u32 = 0x4004_54ca;
    pub const TUNSETPERSIST: u32 = 0x4004_54cb;
    pub const TUNSETOWNER: u32 = 0x4004_54cc;
    pub const TUNSETLINK: u32 = 0x4004_54cd;
    pub const TUNSETGROUP: u32 = 0x4004_54ce;
    pub const TUNGETFEATURES: u32 = 0x8004_54cf;
    pub const TUNSETOFFLOAD: u32 = 0x4004_54d0;
    pub const TUNSETTXFILTER: u32 = 0x4004_54d1;
    pub const TUNGETIFF: u32 = 0x8004_54d2;
    pub const TUNGETSNDBUF: u32 = 0x8004_54d3;
    pub const TUNSETSNDBUF: u32 = 0x4004_54d4;
    pub const TUNATTACHFILTER: u32 = 0x4010_54d5;
    pub const TUNDETACHFILTER: u32 = 0x4010_54d6;
    pub const TUNGETVNETHDRSZ: u32 = 0x8004_54d7;
    pub const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
    pub const TUNSETQUEUE: u32 = 0x4004_54d9;
    pub const TUNSETIFINDEX: u32 = 0x4004_54da;
    pub const TUNGETFILTER: u32 = 0x8010_54db;
    pub const TUNSETVNETLE: u32 = 0x4004_54dc;
    pub const TUNGETVNETLE: u32 = 0x8004_54dd;
    pub const TUNSETVNETBE: u32 = 0x4004_54de;
    pub const TUNGETVNETBE: u32 = 0x8004_54df;
    pub const TUNSETSTEERINGEBPF: u32 = 0x8004_54e0;
    pub const TUNSETFILTEREBPF: u32 = 0x8004_54e1;
    pub const TUNSETCARRIER: u32 = 0x4004_54e2;
    pub const TUNGETDEVNETNS: u32 = 0x0000_54e3;
    /// Sets the flags of an interface; the driver does not know it.
    pub const SIOCSIFFLAGS: u32 = 0x8914;
    pub const SIOCSIFHWADDR: u32 = 0x8924;
    pub const SIOCGIFHWADDR: u32 = 0x8927;
    pub const SIOCGSKNS: u32 = 0x894c;

    /// The type byte of the socket ioctls; the driver copies a `struct ifreq` in for every one of them.
    pub const SOCK_IOC_TYPE: u32 = 0x89;

    /// `_IOC_TYPE`: the type byte of a command.
    #[must_use]
    pub const fn type_of(command: u32) -> u32 {
        (command >> 8) & 0xff
    }

    /// `_IOC_NR`: the number of a command among those of its type.
    #[must_use]
    pub const fn number_of(command: u32) -> u32 {
        command & 0xff
    }

    /// `_IOC_WRITE` of `_IOC_DIR`: a command says of itself that its argument is the address of something to read.
    #[must_use]
    pub const fn claims_input(command: u32) -> bool {
        command & 1 << 30 != 0
    }
}

/// `POLLIN | POLLRDNORM`.
pub const POLL_READABLE: u32 = 0x0041;
/// `POLLOUT | POLLWRNORM`.
pub const POLL_WRITABLE: u32 = 0x0104;
/// `POLLERR`.
pub const POLL_ERROR: u32 = 0x0008;

/// `O_CLOEXEC` of `asm-generic/fcntl.h`; in `/proc/PID/fdinfo` it stands for `FD_CLOEXEC`.
pub const O_CLOEXEC: u32 = 0o2_000_000;
/// `O_NONBLOCK` of `asm-generic/fcntl.h`.
pub const O_NONBLOCK: u32 = 0o4_000;

/// `ARPHRD_ETHER`: the link type of a tap.
pub const ARPHRD_ETHER: u16 = 1;
/// `ARPHRD_NONE`: the link type of a tun.
pub const ARPHRD_NONE: u16 = 0xfffe;

/// `tun_get_addr_len`: how many bytes an address of a link type has, by the `ARPHRD_*` numbers of `if_arp.h`.
#[must_use]
pub const fn hwaddr_length(link_type: u16) -> usize {
    match link_type {
        // LOCALTLK.
        773 => 1,
        // TUNNEL, SIT, IPGRE.
        768 | 776 | 778 => 4,
        // ROSE.
        270 => 5,
        // ETHER, IEEE802, FDDI, HIPPI.
        ARPHRD_ETHER | 6 | 774 | 780 => 6,
        // NETROM.
        0 => 7,
        // IEEE802154, IEEE802154_MONITOR, 6LOWPAN.
        804 | 805 | 825 => 8,
        // TUNNEL6, IP6GRE.
        769 | 823 => 16,
        _ => 0,
    }
}

/// The largest value of `txqueuelen`: a ring of pointers must fit into `KMALLOC_MAX_SIZE` (`__ptr_ring_init_queue_alloc`).
pub const MAX_TX_QUEUE_LENGTH: u32 = (4 << 20) / 8;
/// `MIN_MTU`.
pub const MIN_MTU: u32 = 68;
/// `MAX_MTU`; of a tap, less its Ethernet header.
pub const MAX_MTU: u32 = 65_535;

/// `struct tun_filter`: the head of what TUNSETTXFILTER takes. Addresses of six bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TunFilter {
    /// [`ALL_MULTICAST`](Self::ALL_MULTICAST), or 0.
    pub flags: zerocopy::little_endian::U16,
    /// How many addresses follow.
    pub count: zerocopy::little_endian::U16,
}

const _: () = assert!(size_of::<TunFilter>() == TunFilter::SIZE);

impl TunFilter {
    /// Its length in bytes.
    pub const SIZE: usize = 4;
    /// `TUN_FLT_ALLMULTI`: accept every multicast address.
    pub const ALL_MULTICAST: u16 = 1;
}

/// `struct sock_fprog` of a 64-bit caller: a classic BPF program, by its address.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct SockFprog {
    /// How many instructions it has.
    pub len: zerocopy::little_endian::U16,
    padding: [u8; 6],
    /// Where they are, in the caller.
    pub filter: zerocopy::little_endian::U64,
}

const _: () = assert!(size_of::<SockFprog>() == SockFprog::SIZE);

impl SockFprog {
    /// Its length in bytes.
    pub const SIZE: usize = 16;
}

/// `struct tun_pi`: the PI header, before each datagram unless `IFF_NO_PI`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TunPi {
    /// [`TUN_PKT_STRIP`](Self::STRIP) or 0, in the byte order of the machine.
    pub flags: zerocopy::little_endian::U16,
    /// The EtherType of what follows.
    pub proto: big_endian::U16,
}

const _: () = assert!(size_of::<TunPi>() == TunPi::SIZE);

impl TunPi {
    /// Its length in bytes.
    pub const SIZE: usize = 4;
    /// `TUN_PKT_STRIP`: the datagram did not fit and was cut.
    pub const STRIP: u16 = 1;
}

/// `IFNAMSIZ`: the size of an interface name with its NUL.
pub const IFNAMSIZ: usize = 16;

/// The name of an interface: at most 15 bytes, any but NUL; often, but not always, UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Name {
    bytes: [u8; IFNAMSIZ],
}

impl Name {
    /// The bytes up to the first NUL, cut to 15 as the kernel cuts them.
    #[must_use]
    pub fn new(raw: &[u8]) -> Self {
        let raw = &raw[..raw.len().min(IFNAMSIZ - 1)];
        let end = raw.iter().position(|&b| b == 0).unwrap_or(raw.len());
        let mut bytes = [0; IFNAMSIZ];
        bytes[..end].copy_from_slice(&raw[..end]);
        Self { bytes }
    }

    /// The name that a template stands for: `before` and `after` are what it has around its `%d`.
    #[must_use]
    pub fn numbered(before: &[u8], number: u32, after: &[u8]) -> Self {
        let mut digits = [0; 10];
        let (mut at, mut left) = (digits.len(), number);
        loop {
            at -= 1;
            digits[at] = b"0123456789"[left as usize % 10];
            left /= 10;
            if left == 0 {
                break;
            }
        }
        let mut bytes = [0; IFNAMSIZ];
        let all = before.iter().chain(&digits[at..]).chain(after);
        for (to, from) in bytes[..IFNAMSIZ - 1].iter_mut().zip(all) {
            *to = *from;
        }
        Self { bytes }
    }

    /// The name without its NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.bytes.iter().position(|&b| b == 0).unwrap_or(IFNAMSIZ);
        &self.bytes[..end]
    }
}

impl fmt::Display for Name {
    /// Bytes that are not printable ASCII are shown as `\x..`, so that a name is always one word on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String =
            self.as_bytes().iter().flat_map(|b| b.escape_ascii()).map(char::from).collect();
        f.pad(&shown)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(feature = "log")]
impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            return to.collect_str(self);
        }
        to.serialize_bytes(self.as_bytes())
    }
}

#[cfg(feature = "log")]
impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(from).map(Self::new)
    }
}

/// `struct ifreq`: 40 bytes, or 32 for a 32-bit caller. The driver looks only at the name, the flags and `ifr_hwaddr`.
#[derive(Clone, Copy, Debug)]
pub struct IfReq {
    bytes: [u8; Self::SIZE],
    size: usize,
}

impl IfReq {
    /// Its size for a 64-bit caller.
    pub const SIZE: usize = 40;
    /// Its size for a 32-bit caller.
    pub const COMPAT_SIZE: usize = 32;
    const FLAGS: usize = IFNAMSIZ;
    const HWADDR: usize = IFNAMSIZ;
    /// `sa_data` of the `struct sockaddr` there.
    const HWADDR_DATA: usize = 14;

    /// Its size for a caller of either kind.
    #[must_use]
    pub const fn size_for(compat: bool) -> usize {
        if compat { Self::COMPAT_SIZE } else { Self::SIZE }
    }

    /// A structure of zeros, of the size of `compat` or native callers.
    #[must_use]
    pub const fn zeroed(compat: bool) -> Self {
        Self { bytes: [0; Self::SIZE], size: Self::size_for(compat) }
    }

    /// The structure a caller handed over; `None` unless it has one of the two sizes.
    #[must_use]
    pub fn from_bytes(raw: &[u8]) -> Option<Self> {
        let size = raw.len();
        if size != Self::SIZE && size != Self::COMPAT_SIZE {
            return None;
        }
        let mut bytes = [0; Self::SIZE];
        bytes[..size].copy_from_slice(raw);
        Some(Self { bytes, size })
    }

    /// All of it, in the caller's size.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }

    /// `ifr_name`, its last byte taken for NUL.
    #[must_use]
    pub fn name(&self) -> Name {
        Name::new(&self.bytes[..IFNAMSIZ])
    }

    /// Stores a name as `strcpy` does: the bytes after its NUL stay, but the last one becomes NUL.
    pub fn copy_name(&mut self, name: &Name) {
        let bytes = name.as_bytes();
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        self.bytes[bytes.len()] = 0;
        self.bytes[IFNAMSIZ - 1] = 0;
    }

    /// `ifr_flags`; bits without a name are kept out.
    #[must_use]
    pub fn flags(&self) -> IfFlags {
        IfFlags::from_bits_truncate(u16::from_ne_bytes([
            self.bytes[Self::FLAGS],
            self.bytes[Self::FLAGS + 1],
        ]))
    }

    /// Stores `ifr_flags`.
    pub fn set_flags(&mut self, flags: IfFlags) {
        self.bytes[Self::FLAGS..Self::FLAGS + 2].copy_from_slice(&flags.bits().to_ne_bytes());
    }

    /// Stores `IFF_UP` alone in `ifr_flags`: those of an interface, where the driver has flags of its own.
    pub fn set_up(&mut self) {
        const IFF_UP: u16 = 1;
        self.bytes[Self::FLAGS..Self::FLAGS + 2].copy_from_slice(&IFF_UP.to_ne_bytes());
    }

    /// `ifr_hwaddr`: its family and the six bytes of an Ethernet address.
    #[must_use]
    pub fn hwaddr(&self) -> (u16, [u8; 6]) {
        let family = u16::from_ne_bytes([self.bytes[Self::HWADDR], self.bytes[Self::HWADDR + 1]]);
        let mut address = [0; 6];
        address.copy_from_slice(&self.bytes[Self::HWADDR + 2..Self::HWADDR + 8]);
        (family, address)
    }

    /// Stores `ifr_hwaddr` as `dev_get_mac_address` does: the address as long as its family has it, and what is behind it
    /// is left alone; all zeros for a family without addresses.
    pub fn set_hwaddr(&mut self, family: u16, address: [u8; 6]) {
        let mut data = [0; Self::HWADDR_DATA];
        data[..address.len()].copy_from_slice(&address);
        let length = match hwaddr_length(family) {
            0 => data.len(),
            length => length.min(data.len()),
        };
        if hwaddr_length(family) == 0 {
            data.fill(0);
        }
        self.put_hwaddr(family, &data[..length]);
    }

    /// Stores `ifr_hwaddr` as it is to be set: the whole address, however long those of its family are.
    pub fn ask_for_hwaddr(&mut self, family: u16, address: [u8; 6]) {
        self.put_hwaddr(family, &address);
    }

    fn put_hwaddr(&mut self, family: u16, data: &[u8]) {
        self.bytes[Self::HWADDR..Self::HWADDR + 2].copy_from_slice(&family.to_ne_bytes());
        self.bytes[Self::HWADDR + 2..Self::HWADDR + 2 + data.len()].copy_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn name_ends_at_nul_and_at_fifteen_bytes() {
        assert_eq!(Name::new(b"tun0\0rest").as_bytes(), b"tun0");
        assert_eq!(Name::new(b"0123456789abcdef").as_bytes(), b"0123456789abcde");
        assert_eq!(Name::new(b"a\xff b").to_string(), "a\\xff b");
    }

    #[test]
    fn copied_name_leaves_the_bytes_behind_it_alone() {
        let mut request = IfReq::from_bytes(&[0xaa; 40]).unwrap();
        request.copy_name(&Name::new(b"tap7"));
        assert_eq!(&request.as_bytes()[..16], b"tap7\0\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xaa\0");
        assert_eq!(&request.as_bytes()[16..], &[0xaa; 24]);
    }

    #[test]
    fn ifreq_has_two_sizes() {
        assert!(IfReq::from_bytes(&[0; 39]).is_none());
        assert_eq!(IfReq::from_bytes(&[0; 32]).unwrap().as_bytes().len(), 32);
    }

    #[test]
    fn pi_header_is_flags_in_host_order_and_protocol_in_network_order() {
        let pi = TunPi { flags: TunPi::STRIP.into(), proto: 0x86dd.into() };
        assert_eq!(pi.as_bytes(), [1, 0, 0x86, 0xdd]);
    }
}
