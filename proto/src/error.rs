//! Why a call failed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(not(feature = "daemon"), non_exhaustive)]
pub struct Failure {
    /// A word for programs: one of those in [`code`], or one that a later daemon knows.
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

/// The codes of failures.
pub mod code {
    macro_rules! codes {
        ($($name:ident = $code:literal: $when:literal;)*) => {
            $(#[doc = $when] pub const $name: &str = $code;)*

            /// All of them, each with when it comes.
            pub const ALL: &[(&str, &str)] = &[$(($code, $when)),*];
        };
    }

    codes! {
        BAD_LINE = "bad-line": "The line is no JSON object with a `method`.";
        LINE_TOO_LONG = "line-too-long": "The line is longer than `MAX_LINE`.";
        UNKNOWN_METHOD = "unknown-method": "There is no such method.";
        BAD_PARAMS = "bad-params": "Parameters are missing, unknown or malformed, or ask for a host that cannot be.";
        UNKNOWN_TUNNEL = "unknown-tunnel": "No tunnel answers to the address.";
        AMBIGUOUS_TUNNEL = "ambiguous-tunnel": "Several tunnels answer to the address.";
        NOT_ATTACHED = "not-attached": "No client would read the datagram.";
        DOWN = "down": "The tunnel is down.";
        NO_CARRIER = "no-carrier": "The carrier is off.";
        NO_QUEUE = "no-queue": "TUNSETQUEUE has detached every queue.";
        FILTERED = "filtered": "The client's filter drops the datagram.";
        BAD_SETTING = "bad-setting": "The kernel would refuse the setting.";
        NO_MEMORY = "no-memory": "All memory is in use, or all that the user may have.";
        QUEUE_FULL = "queue-full": "The client has as many datagrams to read as its queue holds.";
        EMPTY_DATAGRAM = "empty-datagram": "The datagram has no bytes.";
        OVERSIZED_DATAGRAM = "oversized-datagram": "The datagram is longer than any that can be injected.";
        NOT_IP = "not-ip": "No Ethernet header can be made for the datagram.";
        NOT_TAP = "not-tap": "A frame is for a tap.";
        BAD_VNET = "bad-vnet": "The kernel refuses the vnet header, or what it asks for cannot be done to the datagram.";
        READ_TOO_SHORT = "read-too-short": "The client's read had no room for the headers, and lost the datagram.";
        TIMEOUT = "timeout": "It did not happen in time; nothing was taken.";
        PEER_TAKES = "peer-takes": "The tunnel's peer gets what the client writes, so too little was there to take in time.";
        GONE = "gone": "The tunnel is gone and has fewer datagrams left, or is gone and cannot have a peer.";
        BAD_COUNT = "bad-count": "So many datagrams cannot be taken at a time.";
        HAS_PEER = "has-peer": "The tunnel has a peer already.";
        NO_PEER = "no-peer": "The tunnel has no peer.";
        SAME_TUNNEL = "same-tunnel": "A tunnel cannot be joined to itself.";
        MODES_DIFFER = "modes-differ": "A tun cannot be joined to a tap.";
        INTERFACE = "interface": "There can be no such kernel device beside the tunnel.";
        TOO_MANY_CALLS = "too-many-calls": "So many calls are open on the connection.";
        TOO_MANY_WATCHES = "too-many-watches": "So many watches are open on the connection.";
        TOO_MANY_WAITS = "too-many-waits": "So many calls of the user, or of all, wait.";
        TOO_MANY_CONNECTIONS = "too-many-connections": "So many connections of the user, or of all, are open.";
        TOO_MANY_SOCKETS = "too-many-sockets": "The user has all the descriptors or the memory that attached sockets may have.";
        SYSTEM = "system": "The daemon could not get a socket or a thread.";
        INTERNAL = "internal": "The daemon could not write its answer.";
    }
}
