//! The ioctls of the device, after `__tun_chr_ioctl` in `drivers/net/tun.c`.
//!
//! # Theory of operation
//!
//! `TABLE` has one row for each command: what is copied from and to the caller (`Shape`), whether the file must be
//! attached, and a function with the effect. `perform` keeps the order of checks that all commands share:
//!
//! 1. TUNSETIFF, TUNSETQUEUE and every command of type 0x89, known or not, need a `struct ifreq` from the caller.
//! 2. A command that needs an attached file, or that is not known, gets `EBADFD` on a file that is not attached, before
//!    any memory of the caller is looked at.
//! 3. On an attached file a command that is not known gets `EINVAL`.
//!
//! Memory is asked for by [`Reply::Fetch`] and the same call comes again with it; `EFAULT` is the front end's to give.
//! Effects keep nothing between the two, so a caller that changes its memory meanwhile gains nothing.

use super::{Core, FileId, IoctlCall, IoctlOutput, MacAddress, Mode, Outcome, Reply, Tunnel};
use crate::{
    abi::tun::{self, IfFlags, IfReq, Offload, ioctl},
    abi::virtio_net::VnetHeader,
    errno::Errno,
};

/// How an argument is passed. The size that is encoded in a command does not say: TUNSETIFF claims 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// By value.
    Value,
    /// By pointer to an `int`, which is read.
    IntIn,
    /// By pointer to an `int`, which is written.
    IntOut,
    /// By pointer to a `struct ifreq`, which is read.
    IfReqIn,
    /// By pointer to a `struct ifreq`, which is written.
    IfReqOut,
    /// By pointer to a `struct ifreq`, which is read and written.
    IfReqInOut,
}

impl Shape {
    /// Bytes to fetch from the caller, and to store there.
    fn sizes(self, compat: bool) -> (usize, usize) {
        let ifreq = IfReq::size_for(compat);
        match self {
            Self::Value => (0, 0),
            Self::IntIn => (4, 0),
            Self::IntOut => (0, 4),
            Self::IfReqIn => (ifreq, 0),
            Self::IfReqOut => (0, ifreq),
            Self::IfReqInOut => (ifreq, ifreq),
        }
    }
}

/// When a command is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// On any file.
    Always,
    /// On an attached file; else `EBADFD`.
    Attached,
}

struct Row {
    command: u32,
    name: &'static str,
    shape: Shape,
    when: When,
    effect: fn(&mut Core, FileId, Argument<'_>) -> Result<IoctlOutput, Errno>,
}

/// The argument of a command, fetched as its shape says.
struct Argument<'a> {
    value: u64,
    input: &'a [u8],
    compat: bool,
}

impl Argument<'_> {
    /// The low 32 bits, as `(unsigned int) arg`.
    fn low(&self) -> u32 {
        let [a, b, c, d, ..] = self.value.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    fn int(&self) -> Result<i32, Errno> {
        self.input.try_into().map(i32::from_ne_bytes).map_err(|_| Errno::EFAULT)
    }

    fn ifreq(&self) -> Result<IfReq, Errno> {
        IfReq::from_bytes(self.input).ok_or(Errno::EFAULT)
    }
}

#[rustfmt::skip]
const TABLE: &[Row] = {
    use {Shape::*, When::*, ioctl::*};
    const fn row(
        command: u32, name: &'static str, shape: Shape, when: When,
        effect: fn(&mut Core, FileId, Argument<'_>) -> Result<IoctlOutput, Errno>,
    ) -> Row {
        Row { command, name, shape, when, effect }
    }
    &[
        row(TUNSETIFF,       "TUNSETIFF",       IfReqInOut, Always,   set_iff),
        row(TUNGETIFF,       "TUNGETIFF",       IfReqOut,   Attached, get_iff),
        row(TUNGETFEATURES,  "TUNGETFEATURES",  IntOut,     Always,   |_, _, _| Ok(tun::FEATURES.into())),
        row(TUNSETNOCSUM,    "TUNSETNOCSUM",    Value,      Attached, |_, _, _| Ok(IoctlOutput::NONE)),
        row(TUNSETDEBUG,     "TUNSETDEBUG",     Value,      Attached, |_, _, _| Ok(IoctlOutput::NONE)),
        row(TUNSETPERSIST,   "TUNSETPERSIST",   Value,      Attached, set_persist),
        row(TUNSETOWNER,     "TUNSETOWNER",     Value,      Attached, set_owner),
        row(TUNSETGROUP,     "TUNSETGROUP",     Value,      Attached, set_group),
        row(TUNSETLINK,      "TUNSETLINK",      Value,      Attached, set_link),
        row(TUNSETOFFLOAD,   "TUNSETOFFLOAD",   Value,      Attached, set_offload),
        row(TUNGETSNDBUF,    "TUNGETSNDBUF",    IntOut,     Attached, get_send_buffer),
        row(TUNSETSNDBUF,    "TUNSETSNDBUF",    IntIn,      Attached, set_send_buffer),
        row(TUNGETVNETHDRSZ, "TUNGETVNETHDRSZ", IntOut,     Attached, get_vnet_header_size),
        row(TUNSETVNETHDRSZ, "TUNSETVNETHDRSZ", IntIn,      Attached, set_vnet_header_size),
        row(TUNGETVNETLE,    "TUNGETVNETLE",    IntOut,     Attached, get_vnet_little_endian),
        row(TUNSETVNETLE,    "TUNSETVNETLE",    IntIn,      Attached, set_vnet_little_endian),
        // The cross-endian pair exists only with CONFIG_TUN_VNET_CROSS_LE, which distributions leave off.
        row(TUNGETVNETBE,    "TUNGETVNETBE",    Value,      Attached, |_, _, _| Err(Errno::EINVAL)),
        row(TUNSETVNETBE,    "TUNSETVNETBE",    Value,      Attached, |_, _, _| Err(Errno::EINVAL)),
        row(SIOCGIFHWADDR,   "SIOCGIFHWADDR",   IfReqInOut, Attached, get_hwaddr),
        row(SIOCSIFHWADDR,   "SIOCSIFHWADDR",   IfReqIn,    Attached, set_hwaddr),
        // DIFFERS: SIOCGSKNS and TUNGETDEVNETNS never return a descriptor: a server cannot put one into its caller's
        // table. EPERM is what the kernel answers to a caller without CAP_NET_ADMIN.
        row(TUNGETDEVNETNS,  "TUNGETDEVNETNS",  Value,      Attached, |_, _, _| Err(Errno::EPERM)),
        row(SIOCGSKNS,       "SIOCGSKNS",       Value,      Always,   |_, _, _| Err(Errno::EPERM)),
    ]
};

/// The name of a command, for logs and `watch`.
#[must_use]
pub fn name(command: u32) -> Option<&'static str> {
    TABLE.iter().find(|row| row.command == command).map(|row| row.name)
}

/// The commands that pass a value, though their number says that it is an address.
pub fn disguised_values() -> impl Iterator<Item = u32> {
    TABLE
        .iter()
        .filter(|row| row.shape == Shape::Value && ioctl::claims_input(row.command))
        .map(|row| row.command)
}

/// One ioctl on an open file.
pub(super) fn perform(core: &mut Core, file: FileId, call: &IoctlCall) -> Outcome {
    let row = TABLE.iter().find(|row| row.command == call.command);
    let attached = core.file(file).ok_or(Errno::EBADF)?.tunnel.is_some();

    let needs_ifreq = call.command == ioctl::TUNSETQUEUE
        || (ioctl::type_of(call.command) == ioctl::SOCK_IOC_TYPE
            && call.command != ioctl::SIOCGSKNS);
    if needs_ifreq && call.input.is_empty() {
        let (input, output) = row.map_or(Shape::IfReqIn, |row| row.shape).sizes(call.compat);
        return Ok(Reply::Fetch { address: call.argument, input, output });
    }
    let Some(row) = row else {
        // TUNSETQUEUE is served on any file, and no file is a queue that can be detached.
        let served = attached || call.command == ioctl::TUNSETQUEUE;
        return Err(if served { Errno::EINVAL } else { Errno::EBADFD });
    };
    if row.when == When::Attached && !attached {
        return Err(Errno::EBADFD);
    }
    let (input, output) = row.shape.sizes(call.compat);
    if call.input.len() != input || call.output_room != output {
        return Ok(Reply::Fetch { address: call.argument, input, output });
    }
    let argument = Argument { value: call.argument, input: &call.input, compat: call.compat };
    (row.effect)(core, file, argument).map(|output| Reply::Ioctl { result: 0, output })
}

/// `tun_set_iff`: see [`Core::attach`]. The flags come back as they were given.
fn set_iff(core: &mut Core, file: FileId, argument: Argument<'_>) -> Result<IoctlOutput, Errno> {
    let mut request = argument.ifreq()?;
    let name = core.attach(file, request.name(), request.flags())?;
    request.copy_name(&name);
    Ok((&request).into())
}

/// `tun_get_iff`: everything zeroed but the name and the flags of `tun_flags`. IFF_NO_PI is always set, because
/// its bit means IFF_NOFILTER here and no file has a classic BPF filter.
fn get_iff(core: &mut Core, file: FileId, argument: Argument<'_>) -> Result<IoctlOutput, Errno> {
    let tunnel = attached(core, file)?;
    let mut flags = tunnel.flags | IfFlags::NO_PI;
    flags |= match tunnel.mode {
        Mode::Tun => IfFlags::TUN,
        Mode::Tap => IfFlags::TAP,
    };
    flags.set(IfFlags::PERSIST, tunnel.persistent);
    let mut request = IfReq::zeroed(argument.compat);
    request.copy_name(&tunnel.name);
    request.set_flags(flags);
    Ok((&request).into())
}

fn set_persist(
    core: &mut Core,
    file: FileId,
    argument: Argument<'_>,
) -> Result<IoctlOutput, Errno> {
    attached(core, file)?.persistent = argument.value != 0;
    Ok(IoctlOutput::NONE)
}

fn set_owner(core: &mut Core, file: FileId, argument: Argument<'_>) -> Result<IoctlOutput, Errno> {
    attached(core, file)?.owner = Some(valid_id(argument.low())?);
    Ok(IoctlOutput::NONE)
}

fn set_group(core: &mut Core, file: FileId, argument: Argument<'_>) -> Result<IoctlOutput, Errno> {
    attached(core, file)?.group = Some(valid_id(argument.low())?);
    Ok(IoctlOutput::NONE)
}

/// `uid_valid`: every number but -1.
fn valid_id(id: u32) -> Result<u32, Errno> {
    if id == u32::MAX { Err(Errno::EINVAL) } else { Ok(id) }
}

fn set_link(core: &mut Core, file: FileId, argument: Argument<'_>) -> Result<IoctlOutput, Errno> {
    let tunnel = attached(core, file)?;
    if tunnel.up {
        return Err(Errno::EBUSY);
    }
    let [low, high, ..] = argument.value.to_le_bytes();
    tunnel.link_type = u16::from_le_bytes([low, high]);
    Ok(IoctlOutput::NONE)
}

/// `set_offload`: each feature needs those it builds on; what is left over is refused, and nothing changes then.
fn set_offload(
    core: &mut Core,
    file: FileId,
    argument: Argument<'_>,
) -> Result<IoctlOutput, Errno> {
    let tunnel = attached(core, file)?;
    let asked = Offload::from_bits(argument.value).ok_or(Errno::EINVAL)?;
    let tso = Offload::TSO4 | Offload::TSO6;
    let uso = Offload::USO4 | Offload::USO6;

    let mut left = asked;
    if asked.contains(Offload::CSUM) {
        left -= Offload::CSUM | tso | Offload::UFO;
        if asked.intersects(tso) {
            left -= Offload::TSO_ECN;
        }
        if asked.contains(uso) {
            left -= uso;
        }
        if asked.intersects(tso | uso) && asked.contains(Offload::UDP_TUNNEL_GSO) {
            left -= Offload::UDP_TUNNEL_GSO | Offload::UDP_TUNNEL_GSO_CSUM;
        }
    }
    if !left.is_empty() {
        return Err(Errno::EINVAL);
    }
    tunnel.offload = asked;
    Ok(IoctlOutput::NONE)
}

fn get_send_buffer(core: &mut Core, file: FileId, _: Argument<'_>) -> Result<IoctlOutput, Errno> {
    Ok(attached(core, file)?.send_buffer.into())
}

fn set_send_buffer(
    core: &mut Core,
    file: FileId,
    argument: Argument<'_>,
) -> Result<IoctlOutput, Errno> {
    let size = argument.int()?;
    if size <= 0 {
        return Err(Errno::EINVAL);
    }
    attached(core, file)?.send_buffer = size;
    Ok(IoctlOutput::NONE)
}

fn get_vnet_header_size(
    core: &mut Core,
    file: FileId,
    _: Argument<'_>,
) -> Result<IoctlOutput, Errno> {
    Ok(attached(core, file)?.vnet_header_size.into())
}

fn set_vnet_header_size(
    core: &mut Core,
    file: FileId,
    argument: Argument<'_>,
) -> Result<IoctlOutput, Errno> {
    let size = argument.int()?;
    if usize::try_from(size).map_or(true, |size| size < VnetHeader::SIZE) {
        return Err(Errno::EINVAL);
    }
    attached(core, file)?.vnet_header_size = size;
    Ok(IoctlOutput::NONE)
}

fn get_vnet_little_endian(
    core: &mut Core,
    file: FileId,
    _: Argument<'_>,
) -> Result<IoctlOutput, Errno> {
    Ok(u32::from(attached(core, file)?.vnet_little_endian).into())
}

fn set_vnet_little_endian(
    core: &mut Core,
    file: FileId,
    argument: Argument<'_>,
) -> Result<IoctlOutput, Errno> {
    attached(core, file)?.vnet_little_endian = argument.int()? != 0;
    Ok(IoctlOutput::NONE)
}

/// The name that was passed is not looked at, and left alone.
fn get_hwaddr(core: &mut Core, file: FileId, argument: Argument<'_>) -> Result<IoctlOutput, Errno> {
    let mut request = argument.ifreq()?;
    let tunnel = attached(core, file)?;
    request.set_hwaddr(tunnel.link_type, tunnel.hwaddr().map_or([0; 6], |address| address.0));
    Ok((&request).into())
}

/// `dev_set_mac_address`, then `eth_mac_addr`: a tun has no address to set.
fn set_hwaddr(core: &mut Core, file: FileId, argument: Argument<'_>) -> Result<IoctlOutput, Errno> {
    let (family, address) = argument.ifreq()?.hwaddr();
    let address = MacAddress(address);
    let tunnel = attached(core, file)?;
    if tunnel.mode == Mode::Tun {
        return Err(Errno::EOPNOTSUPP);
    }
    if family != tunnel.link_type {
        return Err(Errno::EINVAL);
    }
    if address.is_group() || address.0 == [0; 6] {
        return Err(Errno::EADDRNOTAVAIL);
    }
    tunnel.hwaddr = address;
    Ok(IoctlOutput::NONE)
}

fn attached(core: &mut Core, file: FileId) -> Result<&mut Tunnel, Errno> {
    core.tunnel_of_mut(file).ok_or(Errno::EBADFD)
}
