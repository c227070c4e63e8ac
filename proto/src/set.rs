//! `set`: changes a tunnel from outside, as `ip link set` does an interface.

use serde::{Deserialize, Serialize};

use crate::{Address, MacAddress, Method, Name};

/// Parameters: all that is asked for is changed or, if a part of it is refused, nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// The tunnel.
    pub tunnel: Address,
    /// Up or down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// Maximum transmission unit in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Ethernet address of a tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Name, or a template with `%d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// On or off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<Carrier>,
    /// How many datagrams a queue holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txqueuelen: Option<u32>,
}

/// Whether clients can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Writes succeed.
    Up,
    /// Writes get EIO, and poll gives no POLLOUT.
    Down,
}

/// Whether anything reaches the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// Datagrams can be injected.
    On,
    /// None can.
    Off,
}

impl Set {
    /// No change of a tunnel yet.
    pub fn new(tunnel: impl Into<Address>) -> Self {
        Self {
            tunnel: tunnel.into(),
            link: None,
            mtu: None,
            mac: None,
            name: None,
            carrier: None,
            txqueuelen: None,
        }
    }

    /// Up or down.
    #[must_use]
    pub fn link(self, link: Link) -> Self {
        Self { link: Some(link), ..self }
    }

    /// Maximum transmission unit in bytes.
    #[must_use]
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu: Some(mtu), ..self }
    }

    /// Ethernet address of a tap.
    #[must_use]
    pub fn mac(self, mac: impl Into<MacAddress>) -> Self {
        Self { mac: Some(mac.into()), ..self }
    }

    /// Name, or a template with `%d`.
    #[must_use]
    pub fn name(self, name: impl Into<Name>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// On or off.
    #[must_use]
    pub fn carrier(self, carrier: Carrier) -> Self {
        Self { carrier: Some(carrier), ..self }
    }

    /// How many datagrams a queue holds.
    #[must_use]
    pub fn txqueuelen(self, txqueuelen: u32) -> Self {
        Self { txqueuelen: Some(txqueuelen), ..self }
    }
}

impl Method for Set {
    const NAME: &'static str = "set";
    type Result = Done;
}

/// Nothing to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Done {}
