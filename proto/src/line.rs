//! What goes over the control socket: one JSON object a line.
//!
//! ```text
//! daemon   {"memtun":"0.1.0","protocol":1}
//! harness  {"id":1,"method":"list","params":{}}
//! daemon   {"id":1,"result":{...}}     or  {"id":1,"error":{"code":"...","message":"..."}}
//! daemon   {"event":{"watch":2,...}}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Failure;

/// The protocol's version. It changes when a harness written for the one before would misunderstand.
pub const PROTOCOL: u32 = 1;

/// The longest line a harness may send, in bytes: room for the longest datagram in hex, and as much again.
pub const MAX_LINE: usize = 256 << 10;

/// The first line, from the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Greeting {
    /// The daemon's version.
    pub memtun: String,
    /// [`PROTOCOL`].
    pub protocol: u32,
}

/// What the harness sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call<P = Value> {
    /// Comes back with the answer; any JSON value.
    #[serde(default)]
    pub id: Value,
    /// What is asked.
    pub method: String,
    /// Its parameters, an object.
    #[serde(default = "P::default", bound(deserialize = "P: Default + Deserialize<'de>"))]
    pub params: P,
}

/// What the daemon sends after the greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line<R = Value, E = Value> {
    /// A call succeeded.
    Result {
        /// The call's.
        id: Value,
        /// What the method gives.
        result: R,
    },
    /// A call failed.
    Error {
        /// The call's; null if it could not be read.
        id: Value,
        /// Why.
        error: Failure,
    },
    /// Something happened that is watched.
    Event {
        /// What.
        event: E,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_needs_only_its_method() {
        let call: Call = serde_json::from_str(r#"{"method":"list"}"#).unwrap();
        assert_eq!((call.id, call.params), (Value::Null, Value::Null));
        assert!(serde_json::from_str::<Call>(r#"{"id":1}"#).is_err());
        assert!(serde_json::from_str::<Call>(r#"{"method":"list","parms":{}}"#).is_err());
    }
}
