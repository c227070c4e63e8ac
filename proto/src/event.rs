//! What a watch tells.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{hex, method::is_zero};

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct WatchEvent {
    /// The id of the call that asked for it.
    pub watch: Value,
    /// Seconds since 1970.
    pub time: f64,
    /// How many events before this one were dropped because the harness did not read fast enough.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened. Tunnels are given by id and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// A client opened the device.
    Opened {
        /// The file.
        file: u64,
        /// The client's process; 0 if it could not be seen.
        pid: u32,
        /// Its command name.
        command: String,
    },
    /// A file was closed.
    Closed {
        /// The file.
        file: u64,
    },
    /// A file was attached to a tunnel.
    Attached {
        /// The tunnel.
        id: u32,
        /// Its name.
        name: String,
        /// `tun` or `tap`.
        mode: String,
        /// The file.
        file: u64,
        /// The tunnel was made for it.
        created: bool,
    },
    /// A file left a tunnel.
    Detached {
        /// The tunnel.
        id: u32,
        /// Its name.
        name: String,
        /// The file.
        file: u64,
        /// The tunnel went with it.
        deleted: bool,
    },
    /// A datagram reached the client: a read, or its queue.
    ToClient(Passed),
    /// A client wrote a datagram.
    FromClient(Passed),
    /// The kernel sent a datagram into the device beside a tunnel.
    ToLink(Passed),
    /// A datagram was lost.
    Dropped {
        /// The tunnel.
        id: u32,
        /// Its name.
        name: String,
        /// Why, a word.
        reason: String,
        /// Bytes of the datagram.
        length: usize,
    },
    /// A tunnel was deleted.
    Deleted {
        /// The tunnel.
        id: u32,
        /// Its name.
        name: String,
    },
    /// A tunnel went up or down, or its carrier changed.
    Link {
        /// The tunnel.
        id: u32,
        /// Its name.
        name: String,
        /// It is up.
        up: bool,
        /// It has a carrier.
        carrier: bool,
    },
    /// Something that a later daemon tells.
    #[serde(other)]
    Unknown,
}

/// A datagram that passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Passed {
    /// The tunnel.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `tun` or `tap`.
    pub mode: String,
    /// The bytes without headers, in hex.
    #[serde(with = "hex")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub datagram: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_daemon_tells_is_no_error() {
        let line = r#"{"watch":1,"time":0.5,"event":"turned","id":1,"by":90}"#;
        let event: WatchEvent = serde_json::from_str(line).unwrap();
        assert_eq!(event.what, What::Unknown);
        let line = r#"{"watch":1,"time":0.5,"event":"closed","file":3,"why":"done"}"#;
        let event: WatchEvent = serde_json::from_str(line).unwrap();
        assert_eq!(event.what, What::Closed { file: 3 });
    }
}
