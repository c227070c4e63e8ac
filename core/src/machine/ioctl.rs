//! The ioctls of the device, after `__tun_chr_ioctl` in `drivers/net/tun.c`.
//!
//! # Theory of operation
//!
//! `TABLE` has one row for each command: what is copied from and to the caller (`Shape`), on which files it is served
//! (`When`), and a function with the effect, which is in `effects`. `perform` keeps the order of checks that all commands
//! share:
//!
//! 1. TUNSETIFF, TUNSETQUEUE and every command of type 0x89, known or not, need a `struct ifreq` from the caller.
//! 2. A command that needs an attached file, or that is not known, gets `EBADFD` on a file that is not attached, before
//!    any memory of the caller is looked at.
//! 3. On an attached file a command that is not known gets `EINVAL`, as does one that is for taps on a tun.
//!
//! The core asks for memory with [`Reply::Fetch`], and the same call then comes again with that memory. The front end gives
//! `EFAULT` where there is none. If one piece of memory points to another, this takes two rounds. Nothing is kept between rounds, so a
//! caller gains nothing if it changes its memory meanwhile: the length of the second piece is the length that was fetched.

mod effects;

use zerocopy::FromBytes;

pub(super) use self::effects::done;
use self::effects::*;
use super::{
    Core, Credentials, FileId, IoctlCall, MacAddress, Mode, NetdevSetting, Outcome, Reply, Tunnel,
    UserRange, bpf,
};
use crate::{
    abi::tun::{self, IfFlags, IfReq, SockFprog, TunFilter, ioctl},
    errno::Errno,
};

/// How an argument is passed. The size that is encoded in a command does not say: TUNSETIFF claims 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// By value, or not looked at.
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
    /// By pointer to a `struct tun_filter`, which is read, with the addresses behind it.
    ///
    /// DIFFERS: a filter of more than 21,844 addresses gets ENOMEM, because CUSE and FUSE fetch at most 128 KiB. The kernel's
    /// tun takes 65,535.
    TunFilterIn,
    /// By pointer to a `struct sock_fprog`, which is read, with the instructions it points to.
    FprogIn,
    /// By pointer to a `struct sock_fprog`, which is written.
    FprogOut,
}

impl Shape {
    /// What has to be fetched, and room to be made, before the effect can take place; `None` if all is there.
    fn missing(self, call: &IoctlCall) -> Option<Reply> {
        let ifreq = IfReq::size_for(call.compat);
        let (input, output) = match self {
            Self::Value => (0, 0),
            Self::IntIn => (4, 0),
            Self::IntOut => (0, 4),
            Self::IfReqIn => (ifreq, 0),
            Self::IfReqOut => (0, ifreq),
            Self::IfReqInOut => (ifreq, ifreq),
            Self::TunFilterIn => (TunFilter::SIZE.max(call.input.len()), 0),
            Self::FprogIn => (SockFprog::SIZE.max(call.input.len()), 0),
            Self::FprogOut => (0, SockFprog::SIZE),
        };
        let at = |length| UserRange { address: call.argument, length };
        if call.input.len() != input || call.output_room != output {
            return Some(Reply::Fetch {
                input: [at(input), UserRange::default()],
                output: at(output),
            });
        }
        let more = match self {
            Self::TunFilterIn if input == TunFilter::SIZE => addresses_behind(call),
            Self::FprogIn if input == SockFprog::SIZE => instructions_at(call),
            Self::Value
            | Self::IntIn
            | Self::IntOut
            | Self::IfReqIn
            | Self::IfReqOut
            | Self::IfReqInOut
            | Self::TunFilterIn
            | Self::FprogIn
            | Self::FprogOut => None,
        };
        more.map(|input| Reply::Fetch { input, output: UserRange::default() })
    }
}

/// A `struct tun_filter` with its addresses.
fn addresses_behind(call: &IoctlCall) -> Option<[UserRange; 2]> {
    let filter = TunFilter::read_from_bytes(&call.input).ok()?;
    let length = TunFilter::SIZE + 6 * usize::from(filter.count.get());
    let whole = UserRange { address: call.argument, length };
    (filter.count.get() > 0).then_some([whole, UserRange::default()])
}

/// A `struct sock_fprog` and its instructions; not if `bpf_check_basics_ok` refuses it unread.
fn instructions_at(call: &IoctlCall) -> Option<[UserRange; 2]> {
    let program = SockFprog::read_from_bytes(&call.input).ok()?;
    let (count, address) = (usize::from(program.len.get()), program.filter.get());
    let head = UserRange { address: call.argument, length: SockFprog::SIZE };
    let length = count * bpf::INSTRUCTION_SIZE;
    let is_readable = (1..=bpf::MAX_INSTRUCTIONS).contains(&count) && address != 0;
    is_readable.then_some([head, UserRange { address, length }])
}

/// On which files a command is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// On any.
    Always,
    /// On those that are not attached; else `EPERM`.
    Unattached,
    /// On those that are; else `EBADFD`.
    Attached,
    /// On those attached to a tap; else `EBADFD`, or `EINVAL` on a tun.
    OnTap,
}

type Effect = fn(&mut Core, FileId, Argument<'_>) -> Outcome;

struct Row {
    command: u32,
    name: &'static str,
    shape: Shape,
    when: When,
    effect: Effect,
}

/// The argument of a command, fetched as its shape says.
struct Argument<'a> {
    value: u64,
    input: &'a [u8],
    compat: bool,
    credentials: Option<&'a Credentials>,
}

impl<'a> Argument<'a> {
    fn of(call: &'a IoctlCall) -> Self {
        let credentials = call.credentials.as_deref();
        Self { value: call.argument, input: &call.input, compat: call.compat, credentials }
    }

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

    /// A structure at the beginning of the input, and what follows it.
    fn structure<T: FromBytes>(&self) -> Result<(T, &[u8]), Errno> {
        T::read_from_prefix(self.input).map_err(|_| Errno::EFAULT)
    }
}

/// The type byte of ioctls that memtun serves beside the driver's. Anybody may make them, and learns or changes nothing that is not
/// theirs to know or change.
pub const OWN_TYPE: u32 = 0xf5;
/// Whether the network namespace that TUNGETDEVNETNS gives is that of an inode number: 0, or `EPERM`.
pub const IS_DEVNETNS: u32 = OWN_TYPE << 8 | ioctl::number_of(ioctl::TUNGETDEVNETNS);
/// The same of SIOCGSKNS.
pub const IS_SKNS: u32 = OWN_TYPE << 8 | ioctl::number_of(ioctl::SIOCGSKNS);

#[rustfmt::skip]
const TABLE: &[Row] = {
    use {Shape::*, When::*, ioctl::*};
    const fn row(command: u32, name: &'static str, shape: Shape, when: When, effect: Effect) -> Row {
        Row { command, name, shape, when, effect }
    }
    &[
        row(TUNSETIFF,          "TUNSETIFF",          IfReqInOut,  Always,     set_iff),
        row(TUNGETIFF,          "TUNGETIFF",          IfReqOut,    Attached,   get_iff),
        row(TUNGETFEATURES,     "TUNGETFEATURES",     IntOut,      Always,     |_, _, _| stored(tun::FEATURES)),
        row(TUNSETNOCSUM,       "TUNSETNOCSUM",       Value,       Attached,   |_, _, _| done()),
        row(TUNSETDEBUG,        "TUNSETDEBUG",        Value,       Attached,   |_, _, _| done()),
        row(TUNSETPERSIST,      "TUNSETPERSIST",      Value,       Attached,   set_persist),
        row(TUNSETOWNER,        "TUNSETOWNER",        Value,       Attached,   set_owner),
        row(TUNSETGROUP,        "TUNSETGROUP",        Value,       Attached,   set_group),
        row(TUNSETLINK,         "TUNSETLINK",         Value,       Attached,   set_link),
        row(TUNSETOFFLOAD,      "TUNSETOFFLOAD",      Value,       Attached,   set_offload),
        row(TUNSETTXFILTER,     "TUNSETTXFILTER",     TunFilterIn, OnTap,      set_tx_filter),
        row(TUNGETSNDBUF,       "TUNGETSNDBUF",       IntOut,      Attached,   get_send_buffer),
        row(TUNSETSNDBUF,       "TUNSETSNDBUF",       IntIn,       Attached,   set_send_buffer),
        row(TUNATTACHFILTER,    "TUNATTACHFILTER",    FprogIn,     OnTap,      attach_filter),
        row(TUNDETACHFILTER,    "TUNDETACHFILTER",    Value,       OnTap,      detach_filter),
        row(TUNGETFILTER,       "TUNGETFILTER",       FprogOut,    OnTap,      get_filter),
        row(TUNGETVNETHDRSZ,    "TUNGETVNETHDRSZ",    IntOut,      Attached,   get_vnet_header_size),
        row(TUNSETVNETHDRSZ,    "TUNSETVNETHDRSZ",    IntIn,       Attached,   set_vnet_header_size),
        row(TUNSETQUEUE,        "TUNSETQUEUE",        IfReqIn,     Always,     set_queue),
        row(TUNSETIFINDEX,      "TUNSETIFINDEX",      IntIn,       Unattached, set_ifindex),
        row(TUNGETVNETLE,       "TUNGETVNETLE",       IntOut,      Attached,   get_vnet_little_endian),
        row(TUNSETVNETLE,       "TUNSETVNETLE",       IntIn,       Attached,   set_vnet_little_endian),
        // The cross-endian pair exists only with CONFIG_TUN_VNET_CROSS_LE, which distributions leave off.
        row(TUNGETVNETBE,       "TUNGETVNETBE",       Value,       Attached,   |_, _, _| Err(Errno::EINVAL)),
        row(TUNSETVNETBE,       "TUNSETVNETBE",       Value,       Attached,   |_, _, _| Err(Errno::EINVAL)),
        row(TUNSETSTEERINGEBPF, "TUNSETSTEERINGEBPF", IntIn,       Attached,   set_ebpf),
        row(TUNSETFILTEREBPF,   "TUNSETFILTEREBPF",   IntIn,       Attached,   set_ebpf),
        row(TUNSETCARRIER,      "TUNSETCARRIER",      IntIn,       Attached,   set_carrier),
        row(SIOCGIFHWADDR,      "SIOCGIFHWADDR",      IfReqInOut,  Attached,   get_hwaddr),
        row(SIOCSIFHWADDR,      "SIOCSIFHWADDR",      IfReqIn,     Attached,   set_hwaddr),
        // DIFFERS: SIOCGSKNS and TUNGETDEVNETNS return a file descriptor only on a file under `memtun run`, on Linux 5.14 or
        // later. A server cannot put a descriptor into its caller's table. Elsewhere they get EPERM, as from the kernel without
        // CAP_NET_ADMIN.
        row(TUNGETDEVNETNS,     "TUNGETDEVNETNS",     Value,       Attached,   |_, _, _| Err(Errno::EPERM)),
        row(SIOCGSKNS,          "SIOCGSKNS",          Value,       Always,     |_, _, _| Err(Errno::EPERM)),
        row(IS_DEVNETNS,        "IS_DEVNETNS",        Value,       Attached,   is_network_of_tunnel),
        row(IS_SKNS,            "IS_SKNS",            Value,       Always,     is_network_of_file),
    ]
};

fn row_of(command: u32) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.command == command)
}

/// The name of a command, for logs and `watch`.
#[must_use]
pub fn name(command: u32) -> Option<&'static str> {
    row_of(command).map(|row| row.name)
}

/// The commands that pass a value, though their number says that it is an address.
pub fn disguised_values() -> impl Iterator<Item = u32> {
    TABLE
        .iter()
        .filter(|row| row.shape == Shape::Value && ioctl::claims_input(row.command))
        .map(|row| row.command)
}

/// The argument of TUNSETIFF, once it is there whole.
pub(super) fn tunsetiff(call: &IoctlCall) -> Option<IfReq> {
    let is_whole = call.command == ioctl::TUNSETIFF && Shape::IfReqInOut.missing(call).is_none();
    IfReq::from_bytes(&call.input).filter(|_| is_whole)
}

/// What a command sets on the link beside its tunnel; `None` if nothing, or if its argument is still to be fetched.
pub(super) fn netdev_setting(call: &IoctlCall, tunnel: &Tunnel) -> Option<NetdevSetting> {
    let argument = Argument::of(call);
    let setting = match call.command {
        ioctl::TUNSETPERSIST => NetdevSetting::Persistent(argument.value != 0),
        ioctl::TUNSETOWNER => NetdevSetting::Owner(argument.low()),
        ioctl::TUNSETGROUP => NetdevSetting::Group(argument.low()),
        ioctl::TUNSETLINK => {
            let [low, high, ..] = argument.value.to_le_bytes();
            NetdevSetting::LinkType(u16::from_le_bytes([low, high]))
        }
        ioctl::TUNSETOFFLOAD => {
            NetdevSetting::Offload(checked_offload(argument.value).ok()?.bits())
        }
        ioctl::TUNSETCARRIER => NetdevSetting::Carrier(argument.int().ok()? != 0),
        ioctl::SIOCSIFHWADDR => {
            let (family, address) = argument.ifreq().ok()?.hwaddr();
            if tunnel.mode == Mode::Tun || family != tunnel.link_type {
                return None;
            }
            NetdevSetting::Address(MacAddress(address))
        }
        _ => return None,
    };
    Some(setting)
}

/// Whether the call changes which datagrams reach the client.
pub(super) fn sets_filter(call: &IoctlCall) -> bool {
    matches!(call.command, ioctl::TUNATTACHFILTER | ioctl::TUNDETACHFILTER | ioctl::TUNSETTXFILTER)
}

/// Whether a call is answered by [`Reply::Fetch`], or before its memory is looked at, whatever else is the case.
pub(super) fn wants_memory(call: &IoctlCall) -> bool {
    let row = row_of(call.command);
    let is_of_sockets = ioctl::type_of(call.command) == ioctl::SOCK_IOC_TYPE;
    let shape = row.map(|row| row.shape).or(is_of_sockets.then_some(Shape::IfReqIn));
    shape.is_some_and(|shape| shape.missing(call).is_some())
}

/// The flags of TUNSETQUEUE, once its argument is there whole.
pub(super) fn tunsetqueue(call: &IoctlCall) -> Option<IfFlags> {
    let is_whole = call.command == ioctl::TUNSETQUEUE && Shape::IfReqIn.missing(call).is_none();
    IfReq::from_bytes(&call.input).filter(|_| is_whole).map(|request| request.flags())
}

/// Whether TUNSETQUEUE attaches or detaches; `None` if neither, if its argument is still to be fetched, and for other calls.
pub(super) fn queue_change(call: &IoctlCall) -> Option<bool> {
    let flags = tunsetqueue(call)?;
    let attaches = flags.contains(IfFlags::ATTACH_QUEUE);
    (attaches || flags.contains(IfFlags::DETACH_QUEUE)).then_some(attaches)
}

/// One ioctl on an open file.
pub(super) fn perform(core: &mut Core, id: FileId, call: &IoctlCall) -> Outcome {
    let row = row_of(call.command);
    let file = core.file(id).ok_or(Errno::EBADF)?;
    let mode = file.tunnel.and_then(|tunnel| core.tunnel(tunnel)).map(|tunnel| tunnel.mode);

    let has_ifreq =
        ioctl::type_of(call.command) == ioctl::SOCK_IOC_TYPE && call.command != ioctl::SIOCGSKNS;
    // It comes before all other checks.
    if has_ifreq && let Some(fetch) = row.map_or(Shape::IfReqIn, |row| row.shape).missing(call) {
        return Ok(fetch);
    }
    let Some(row) = row else {
        return Err(if mode.is_some() { Errno::EINVAL } else { Errno::EBADFD });
    };
    match (row.when, mode) {
        (When::Unattached, Some(_)) => return Err(Errno::EPERM),
        (When::Attached | When::OnTap, None) => return Err(Errno::EBADFD),
        (When::OnTap, Some(Mode::Tun)) => return Err(Errno::EINVAL),
        (When::Always | When::Unattached | When::Attached | When::OnTap, _) => {}
    }
    if let Some(fetch) = row.shape.missing(call) {
        return Ok(fetch);
    }
    (row.effect)(core, id, Argument::of(call))
}
