//! What each command does: the cases of `__tun_chr_ioctl`. Which file it is served on has been checked.

use alloc::sync::Arc;

use super::{
    super::{
        Core, File, FileId, IoctlOutput, MacAddress, Mode, Outcome, Reply, Scope, Tunnel, bpf,
        filter::{Filter, PacketFilter, TxFilter},
        settings,
    },
    Argument,
};
use crate::{
    abi::{
        tun::{IfFlags, IfReq, Offload, SockFprog, TunFilter, hwaddr_length},
        virtio_net::VnetHeader,
    },
    errno::Errno,
};

/// 0, and nothing is stored.
pub(in super::super) fn done() -> Outcome {
    returned(0)
}

/// A return value, and nothing is stored.
fn returned(result: i32) -> Outcome {
    Ok(Reply::Ioctl { result, output: IoctlOutput::NONE })
}

/// 0, and something is stored.
pub(super) fn stored(output: impl Into<IoctlOutput>) -> Outcome {
    Ok(Reply::Ioctl { result: 0, output: output.into() })
}

/// `tun_set_iff`: see [`Core::attach`]. The flags come back as they were given.
pub(super) fn set_iff(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let mut request = argument.ifreq()?;
    let name = core.attach(file, request.name(), request.flags(), argument.credentials)?;
    request.copy_name(&name);
    stored(&request)
}

/// `tun_get_iff`: everything zeroed but the name and the flags of `tun_flags`. IFF_NO_PI is set where there is no
/// packet filter too, for its bit means IFF_NOFILTER here.
pub(super) fn get_iff(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let (file, tunnel) = both(core, file)?;
    let mut flags = tunnel.flags | tunnel.mode.flag();
    flags.set(IfFlags::PERSIST, tunnel.persistent);
    flags.set(IfFlags::DETACH_QUEUE, file.detached);
    if file.packet_filter.is_none() {
        flags |= IfFlags::NO_PI;
    }
    let mut request = IfReq::zeroed(argument.compat);
    request.copy_name(&tunnel.name);
    request.set_flags(flags);
    stored(&request)
}

pub(super) fn set_queue(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    core.set_queue(file, argument.ifreq()?.flags())?;
    done()
}

/// The number is for the next tunnel that the file makes; whether it is taken shows then.
pub(super) fn set_ifindex(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let wanted = u32::try_from(argument.int()?).map_err(|_| Errno::EINVAL)?;
    core.files.get_mut(&file).ok_or(Errno::EBADF)?.wanted_ifindex = wanted;
    done()
}

pub(super) fn set_persist(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    attached(core, file)?.persistent = argument.value != 0;
    done()
}

/// DIFFERS: TUNSETOWNER and TUNSETGROUP take the number as it is. The kernel looks it up in the caller's user namespace, and
/// refuses a number that is not mapped there. With a netdev the kernel looks it up in memtun's user namespace.
pub(super) fn set_owner(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    attached(core, file)?.owner = Some(valid_id(argument.low())?);
    done()
}

pub(super) fn set_group(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    attached(core, file)?.group = Some(valid_id(argument.low())?);
    done()
}

/// `uid_valid`: every number but -1.
fn valid_id(id: u32) -> Result<u32, Errno> {
    if id == u32::MAX { Err(Errno::EINVAL) } else { Ok(id) }
}

pub(super) fn set_link(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let tunnel = attached(core, file)?;
    if tunnel.up {
        return Err(Errno::EBUSY);
    }
    let [low, high, ..] = argument.value.to_le_bytes();
    tunnel.link_type = u16::from_le_bytes([low, high]);
    done()
}

/// `tun_net_change_carrier`.
pub(super) fn set_carrier(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let on = argument.int()? != 0;
    let tunnel = attached(core, file)?;
    if on && tunnel.queues.is_empty() {
        return Err(Errno::EPERM);
    }
    let id = tunnel.id;
    core.change_link(id, None, Some(on));
    done()
}

/// `set_offload`: nothing changes if something is refused.
pub(super) fn set_offload(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let tunnel = attached(core, file)?;
    tunnel.offload = checked_offload(argument.value)?;
    done()
}

/// Each feature needs those it builds on; what is left over is refused.
pub(super) fn checked_offload(value: u64) -> Result<Offload, Errno> {
    let asked = Offload::from_bits(value).ok_or(Errno::EINVAL)?;
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
    if left.is_empty() { Ok(asked) } else { Err(Errno::EINVAL) }
}

/// `update_filter`; the return value is the number of addresses that are compared.
pub(super) fn set_tx_filter(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let (head, addresses) = argument.structure::<TunFilter>()?;
    let filter = TxFilter::new(head.flags.get(), addresses);
    let exact = filter.exact_count();
    attached(core, file)?.tx_filter = filter;
    returned(i32::try_from(exact).unwrap_or(i32::MAX))
}

/// `tun_attach_filter`: every attached queue gets the program. One that is refused leaves them those they have, but further
/// queues get none. Without attached queues nobody looks at the program before there is one.
pub(super) fn attach_filter(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let (passed, instructions) = argument.structure::<SockFprog>()?;
    let user = Arc::clone(&attached(core, file)?.user);
    let checked = match bpf::Program::check(instructions) {
        Ok(program) => {
            let charge = core.charge_memory(&user, program.memory()).map_err(|_| Errno::ENOMEM)?;
            Ok(Arc::new(Filter { program, _charge: charge }))
        }
        Err(errno) => Err(errno),
    };
    let tunnel = attached(core, file)?;
    if tunnel.queues.is_empty() {
        tunnel.packet_filter = PacketFilter { passed, program: Some(checked) };
        return done();
    }
    tunnel.packet_filter = PacketFilter { passed, program: None };
    let program = checked?;
    tunnel.packet_filter.program = Some(Ok(Arc::clone(&program)));
    let queues = tunnel.queues.clone();
    for file in queues {
        if let Some(file) = core.files.get_mut(&file) {
            file.packet_filter = Some(Arc::clone(&program));
        }
    }
    done()
}

/// `tun_detach_filter`: a queue that is detached keeps its program.
pub(super) fn detach_filter(core: &mut Core, file: FileId, _: Argument<'_>) -> Outcome {
    let tunnel = attached(core, file)?;
    tunnel.packet_filter.program = None;
    let queues = tunnel.queues.clone();
    for file in queues {
        if let Some(file) = core.files.get_mut(&file) {
            file.packet_filter = None;
        }
    }
    done()
}

/// What was passed, address and all, not the program.
pub(super) fn get_filter(core: &mut Core, file: FileId, _: Argument<'_>) -> Outcome {
    stored(&attached(core, file)?.packet_filter.passed)
}

/// DIFFERS: TUNGETDEVNETNS does not follow a netdev that was moved to another network namespace. It gives the namespace in
/// which the client opened the device.
pub(super) fn is_network_of_tunnel(
    core: &mut Core,
    file: FileId,
    argument: Argument<'_>,
) -> Outcome {
    let scope = attached(core, file)?.scope;
    is_network(scope, &argument)
}

pub(super) fn is_network_of_file(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let scope = core.file(file).ok_or(Errno::EBADF)?.opener.scope;
    is_network(scope, &argument)
}

fn is_network(scope: Scope, argument: &Argument<'_>) -> Outcome {
    if scope == Scope(argument.value) && scope != Scope::default() {
        done()
    } else {
        Err(Errno::EPERM)
    }
}

/// DIFFERS: TUNSETSTEERINGEBPF and TUNSETFILTEREBPF take no program. A server sees the number of the caller's file descriptor,
/// but not what the descriptor refers to. So memtun answers as if it referred to something other than a program.
pub(super) fn set_ebpf(_: &mut Core, _: FileId, argument: Argument<'_>) -> Outcome {
    match argument.int()? {
        // Removes the program.
        -1 => done(),
        ..-1 => Err(Errno::EBADF),
        0.. => Err(Errno::EINVAL),
    }
}

pub(super) fn get_send_buffer(core: &mut Core, file: FileId, _: Argument<'_>) -> Outcome {
    stored(core.file(file).ok_or(Errno::EBADF)?.send_buffer)
}

/// `tun_set_sndbuf`: of every attached queue, which the caller's own may not be.
pub(super) fn set_send_buffer(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let size = argument.int()?;
    if size <= 0 {
        return Err(Errno::EINVAL);
    }
    let queues = attached(core, file)?.queues.clone();
    for file in queues {
        if let Some(file) = core.files.get_mut(&file) {
            file.send_buffer = size;
        }
    }
    done()
}

pub(super) fn get_vnet_header_size(core: &mut Core, file: FileId, _: Argument<'_>) -> Outcome {
    stored(attached(core, file)?.vnet_header_size)
}

pub(super) fn set_vnet_header_size(
    core: &mut Core,
    file: FileId,
    argument: Argument<'_>,
) -> Outcome {
    let size = argument.int()?;
    if usize::try_from(size).map_or(true, |size| size < VnetHeader::SIZE) {
        return Err(Errno::EINVAL);
    }
    attached(core, file)?.vnet_header_size = size;
    done()
}

pub(super) fn get_vnet_little_endian(core: &mut Core, file: FileId, _: Argument<'_>) -> Outcome {
    stored(u32::from(attached(core, file)?.vnet_little_endian))
}

pub(super) fn set_vnet_little_endian(
    core: &mut Core,
    file: FileId,
    argument: Argument<'_>,
) -> Outcome {
    attached(core, file)?.vnet_little_endian = argument.int()? != 0;
    done()
}

/// `dev_get_mac_address`. The name that was passed is not looked at, and left alone.
pub(super) fn get_hwaddr(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let mut request = argument.ifreq()?;
    let tunnel = attached(core, file)?;
    request.set_hwaddr(tunnel.link_type, tunnel.hwaddr().map_or([0; 6], |address| address.0));
    stored(&request)
}

/// `dev_set_mac_address`, then `eth_mac_addr`: a tun has no address to set. One that is there already is not checked, as far
/// as addresses of the link type go.
pub(super) fn set_hwaddr(core: &mut Core, file: FileId, argument: Argument<'_>) -> Outcome {
    let (family, address) = argument.ifreq()?.hwaddr();
    let address = MacAddress(address);
    let tunnel = attached(core, file)?;
    if tunnel.mode == Mode::Tun {
        return Err(Errno::EOPNOTSUPP);
    }
    if family != tunnel.link_type {
        return Err(Errno::EINVAL);
    }
    let compared = hwaddr_length(family).min(address.0.len());
    if address.0[..compared] == tunnel.hwaddr.0[..compared] {
        return done();
    }
    if !settings::is_valid_address(address) {
        return Err(Errno::EADDRNOTAVAIL);
    }
    tunnel.hwaddr = address;
    done()
}

fn attached(core: &mut Core, file: FileId) -> Result<&mut Tunnel, Errno> {
    core.tunnel_of_mut(file).ok_or(Errno::EBADFD)
}

fn both(core: &Core, file: FileId) -> Result<(&File, &Tunnel), Errno> {
    let file = core.file(file).ok_or(Errno::EBADF)?;
    let tunnel = file.tunnel.and_then(|id| core.tunnel(id)).ok_or(Errno::EBADFD)?;
    Ok((file, tunnel))
}
