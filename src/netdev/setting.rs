//! Changes a setting of a device: by an ioctl of the tun driver if it has one for it, otherwise by rtnetlink.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::{Kind, Setting, device::Device};
use crate::{
    abi::{
        rtnetlink::{self, Request, attribute},
        tun::{IfReq, Offload},
    },
    sys::tun::{self, IfReqCommand, IntCommand, ValueCommand},
};

/// Sets something on a link.
pub(super) fn set(device: &Device, setting: Setting) -> Result<(), Errno> {
    match device.kind {
        Kind::Tun => set_tun(device, setting),
        Kind::Veth | Kind::Dummy | Kind::Ifb => set_substitute(device, setting),
    }
}

fn set_tun(device: &Device, setting: Setting) -> Result<(), Errno> {
    match device.any_queue() {
        Some(queue) => queue.with(|file| set_by_queue(file, device, setting)),
        None => set_any(device, setting),
    }
}

fn set_by_queue(file: BorrowedFd<'_>, device: &Device, setting: Setting) -> Result<(), Errno> {
    let value = |command, value: u64| tun::with_value(file, command, value);
    match setting {
        Setting::Persistent(on) => value(ValueCommand::Persist, on.into()),
        Setting::Owner(uid) => value(ValueCommand::Owner, uid.into()),
        Setting::Group(gid) => value(ValueCommand::Group, gid.into()),
        Setting::LinkType(number) => value(ValueCommand::LinkType, number.into()),
        Setting::Offload(bits) => {
            let tunnels = Offload::UDP_TUNNEL_GSO | Offload::UDP_TUNNEL_GSO_CSUM;
            let without = bits & !tunnels.bits();
            match value(ValueCommand::Offload, bits) {
                // A kernel before 6.17 does not know them. Then it never leaves anybody such a datagram.
                Err(Errno::EINVAL) if without != bits => value(ValueCommand::Offload, without),
                set => set,
            }
        }
        Setting::Carrier(on) => tun::with_int(file, IntCommand::Carrier, on.into()),
        Setting::Address(address) => {
            // The driver wants to be told the link type, which TUNSETLINK may have changed.
            let mut request = tun::with_ifreq(file, IfReqCommand::Address, &IfReq::zeroed(false))?;
            let (link_type, _) = request.hwaddr();
            request.ask_for_hwaddr(link_type, address.0);
            tun::with_ifreq(file, IfReqCommand::SetAddress, &request).map(drop)
        }
        Setting::Up(_) | Setting::Mtu(_) | Setting::QueueLength(_) | Setting::Name(_) => {
            set_any(device, setting)
        }
    }
}

fn set_substitute(device: &Device, setting: Setting) -> Result<(), Errno> {
    match setting {
        // These show on a tun only. A substitute stays as long as the tunnel anyway.
        Setting::Persistent(_)
        | Setting::Owner(_)
        | Setting::Group(_)
        | Setting::LinkType(_)
        | Setting::Offload(_) => Ok(()),
        Setting::Carrier(on) => match &device.far {
            Some(far) => far.set_up(on),
            // An ifb has none that could be set.
            None => match set_any(device, setting) {
                Err(Errno::EOPNOTSUPP) => Ok(()),
                set => set,
            },
        },
        Setting::Up(_)
        | Setting::Mtu(_)
        | Setting::Address(_)
        | Setting::QueueLength(_)
        | Setting::Name(_) => set_any(device, setting),
    }
}

/// By rtnetlink, as on any link.
fn set_any(device: &Device, setting: Setting) -> Result<(), Errno> {
    let request = Request::new(rtnetlink::NEWLINK, rtnetlink::ACK, device.index);
    let request = match setting {
        Setting::Up(up) => request.flags(rtnetlink::IFF_UP, up),
        Setting::Mtu(mtu) => request.attribute(attribute::MTU, &mtu.to_ne_bytes()),
        Setting::Address(address) => request.attribute(attribute::ADDRESS, &address.0),
        Setting::QueueLength(length) => {
            request.attribute(attribute::QUEUE_LENGTH, &length.to_ne_bytes())
        }
        Setting::Name(name) => {
            request.attribute(attribute::NAME, &[name.as_bytes(), b"\0"].concat())
        }
        Setting::Carrier(on) => request.attribute(attribute::CARRIER, &[on.into()]),
        Setting::Persistent(_)
        | Setting::Owner(_)
        | Setting::Group(_)
        | Setting::LinkType(_)
        // A tun's, by a queue; there is none.
        | Setting::Offload(_) => return Err(Errno::EBADFD),
    };
    device.namespace.requests.change(request)
}
