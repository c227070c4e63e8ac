//! Changing what there is.

use nix::errno::Errno;
use tracing::warn;

use super::{
    super::{Kind, News, setting},
    Owner,
};
use crate::{
    abi::tun::{IfFlags, IfReq},
    core::{FileId, NetdevSetting, RequestId, TunnelId},
    sys::tun::{self, IfReqCommand},
};

impl Owner {
    pub(super) fn set(&mut self, tunnel: TunnelId, setting: NetdevSetting) -> Result<(), Errno> {
        let device = self.devices.get_mut(&tunnel).ok_or(Errno::EBADFD)?;
        setting::set(device, setting)?;
        if let NetdevSetting::Persistent(persistent) = setting {
            device.persistent = persistent;
        }
        self.look_at(tunnel)
    }

    pub(super) fn set_queue(
        &self,
        tunnel: TunnelId,
        file: FileId,
        attached: bool,
    ) -> Result<(), Errno> {
        let device = self.devices.get(&tunnel).ok_or(Errno::EBADFD)?;
        if device.kind != Kind::Tun {
            return Ok(());
        }
        let queue = device.queues.get(&file).ok_or(Errno::EINVAL)?;
        let mut request = IfReq::zeroed(false);
        request.set_flags(if attached { IfFlags::ATTACH_QUEUE } else { IfFlags::DETACH_QUEUE });
        queue.with(|file| tun::with_ifreq(file, IfReqCommand::SetQueue, &request).map(drop))
    }

    /// What the harness has set is not so.
    pub(super) fn tell_not_set(
        &self,
        tunnel: TunnelId,
        setting: NetdevSetting,
        set: Result<(), Errno>,
    ) {
        let Err(errno) = set else { return };
        warn!(tunnel = tunnel.0, ?setting, %errno, "setting an interface failed, ignoring");
        if let Some(device) = self.devices.get(&tunnel) {
            self.listener.tell(News::Changed(tunnel, device.state));
        }
    }

    pub(super) fn tell_done(&self, asker: RequestId, done: Result<(), Errno>) {
        let done = done.map_err(|errno| crate::errno::Errno::from_number(errno as i32));
        self.listener.tell(News::Done(asker, done));
    }
}
