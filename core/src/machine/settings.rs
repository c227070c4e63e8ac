//! What an operator sets of an interface, after `do_setlink` in `net/core/rtnetlink.c` and what it calls.

use alloc::vec::Vec;

use super::{
    CommandError, Core, Event, FileId, MacAddress, Mode, Tunnel, TunnelId, attach::LOOPBACK,
};
use crate::abi::{tun, tun::Name};

/// What is to be changed of a tunnel; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Settings {
    /// Up or down. Down, writes get `EIO` and polls no `POLLOUT`; what is queued can still be read.
    pub up: Option<bool>,
    /// Maximum transmission unit in bytes.
    pub mtu: Option<u32>,
    /// Ethernet address of a tap.
    pub hwaddr: Option<MacAddress>,
    /// Name, or a template with `%d`.
    pub name: Option<Name>,
    /// Carrier on or off. Off, nothing reaches the client; writes succeed.
    pub carrier: Option<bool>,
    /// How many datagrams a queue holds; those that are too many are lost, newest first.
    pub tx_queue_length: Option<u32>,
}

/// A setting that the kernel refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum SettingError {
    /// `EINVAL` of `dev_validate_mtu`.
    #[error("an MTU of {mtu} is out of range for a {}; give one from {} to {}", .mode.word(), tun::MIN_MTU, .mode.max_mtu())]
    Mtu {
        /// What was asked for.
        mtu: u32,
        /// The tunnel's mode.
        mode: Mode,
    },
    /// `EOPNOTSUPP`: there is no `ndo_set_mac_address`.
    #[error("tunnel {0} is a tun, which has no Ethernet address")]
    NoAddress(Name),
    /// `EADDRNOTAVAIL` of `eth_prepare_mac_addr_change`.
    #[error(
        "an interface cannot have the address {0}; give one that is not zero and not a group address"
    )]
    Address(MacAddress),
    /// `EINVAL` of `dev_prep_valid_name`.
    #[error(
        "an interface cannot have the name {0}: it is not valid, or its template has no free number; give another"
    )]
    Name(Name),
    /// `EEXIST`.
    #[error("the name {0} is taken in the tunnel's network namespace; give another")]
    NameTaken(Name),
    /// `EPERM` of `tun_net_change_carrier`.
    #[error("tunnel {0} has no attached queue, so it can have no carrier")]
    Carrier(Name),
    /// `EPERM`, for there is no memory.
    #[error("a queue of {0} datagrams is too long; give at most {max}", max = tun::MAX_TX_QUEUE_LENGTH)]
    TxQueueLength(u32),
}

impl Core {
    /// Changes a tunnel: everything that is asked for, or nothing.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownTunnel`], [`CommandError::BadSetting`].
    pub(super) fn configure(
        &mut self,
        of: TunnelId,
        settings: &Settings,
    ) -> Result<(), CommandError> {
        let tunnel = self.living_mut(of)?;
        check(tunnel, settings)?;
        let (scope, before) = (tunnel.scope, tunnel.name);
        let name = match settings.name {
            Some(name) if name != before => {
                if name.as_bytes() == LOOPBACK || self.names.contains_key(&(scope, name)) {
                    return Err(SettingError::NameTaken(name).into());
                }
                self.resolve_name(scope, name).map_err(|_| SettingError::Name(name))?
            }
            Some(_) | None => before,
        };
        if name != before {
            self.give_up_name((scope, before), of);
            self.names.insert((scope, name), of);
        }
        let tunnel = self.living_mut(of)?;
        tunnel.name = name;
        tunnel.mtu = settings.mtu.unwrap_or(tunnel.mtu);
        tunnel.hwaddr = settings.hwaddr.unwrap_or(tunnel.hwaddr);
        let length = settings.tx_queue_length.and_then(|length| usize::try_from(length).ok());
        if let Some(length) = length {
            tunnel.tx_queue_length = length;
            self.resize_queues(of, length);
        }
        self.tell_netdev_settings(of, settings, name);
        self.change_link(of, settings.up, settings.carrier);
        Ok(())
    }

    pub(super) fn resize_queues(&mut self, of: TunnelId, length: usize) {
        let files: Vec<FileId> =
            self.tunnels.get(&of).map(|tunnel| tunnel.files().collect()).unwrap_or_default();
        for file in files {
            if let Some(file) = self.files.get_mut(&file) {
                file.queue.resize(length);
            }
        }
    }

    /// Changes what stands between the client and the harness.
    pub(super) fn change_link(&mut self, of: TunnelId, up: Option<bool>, carrier: Option<bool>) {
        let Some(tunnel) = self.tunnels.get_mut(&of) else { return };
        let before = (tunnel.up, tunnel.carrier);
        tunnel.up = up.unwrap_or(tunnel.up);
        tunnel.carrier = carrier.unwrap_or(tunnel.carrier);
        let (name, up, carrier) = (tunnel.name, tunnel.up, tunnel.carrier);
        if before == (up, carrier) {
            return;
        }
        if up && !before.0 {
            // NETDEV_UP: whoever waits to write. The kernel leaves out detached queues.
            let files = tunnel.queues.clone();
            files.iter().for_each(|file| self.wake(*file));
        }
        self.event(|| Event::Link { tunnel: of, name, up, carrier });
    }
}

/// `is_valid_ether_addr`.
pub(super) fn is_valid_address(address: MacAddress) -> bool {
    !address.is_group() && address.0 != [0; 6]
}

/// What can be said without the other tunnels.
fn check(tunnel: &Tunnel, settings: &Settings) -> Result<(), SettingError> {
    let mode = tunnel.mode;
    if let Some(address) = settings.hwaddr {
        if mode == Mode::Tun {
            return Err(SettingError::NoAddress(tunnel.name));
        }
        if !is_valid_address(address) {
            return Err(SettingError::Address(address));
        }
    }
    if let Some(mtu) = settings.mtu
        && !(tun::MIN_MTU..=mode.max_mtu()).contains(&mtu)
    {
        return Err(SettingError::Mtu { mtu, mode });
    }
    if settings.carrier == Some(true) && tunnel.queues.is_empty() {
        return Err(SettingError::Carrier(tunnel.name));
    }
    match settings.tx_queue_length {
        Some(length) if length > tun::MAX_TX_QUEUE_LENGTH => {
            Err(SettingError::TxQueueLength(length))
        }
        Some(_) | None => Ok(()),
    }
}
