//! What goes over the control socket: one JSON object a line.
//!
//! ```text
//! daemon   {"memtun":"0.1.0","protocol":1}
//! harness  {"id":1,"method":"list","params":{}}
//! daemon   {"id":1,"result":{...}}     or  {"id":1,"error":{"code":"...","message":"..."}}
//! daemon   {"event":{"watch":2,...}}
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::core::CommandError;

/// The protocol's version. It changes when a harness written for the one before would misunderstand.
pub const PROTOCOL: u32 = 1;

/// The longest line a harness may send, in bytes: room for the longest datagram in hex, and as much again.
pub const MAX_LINE: usize = 256 << 10;

/// The first line, from the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// The daemon's version.
    pub memtun: String,
    /// [`PROTOCOL`].
    pub protocol: u32,
}

/// What the harness sends.
#[derive(Debug, Serialize, Deserialize)]
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
#[derive(Debug, Serialize, Deserialize)]
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

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A word for programs, listed in `docs/control.md`.
    pub code: String,
    /// A line for people.
    pub message: String,
}

impl Failure {
    /// A failure with a code and a message.
    pub fn new(code: &str, message: impl fmt::Display) -> Self {
        Self { code: code.to_owned(), message: message.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self::new(error.code(), error)
    }
}

/// Bytes as hex digits.
pub mod hex_bytes {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Lower-case digits, two a byte.
    ///
    /// # Errors
    ///
    /// The serializer's.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    /// Digits of either case.
    ///
    /// # Errors
    ///
    /// What is wrong with the digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        hex::decode(text.as_ref()).map(Bytes::from).map_err(|error| {
            D::Error::custom(format_args!("bad hex: {error}; give two hex digits for each byte"))
        })
    }
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
