//! What the harness waits for: requests from its side that are answered when something happens, or at their deadline.
//!
//! A wait holds no thread. It is looked at after each change of the core, in the order waits were made, so two
//! takers of one tunnel are served first come, first served.

use std::time::Instant;

use super::{Address, Datagram, TunnelId};

/// One wait, as the hub numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(pub u64);

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// A file is attached to the tunnel.
    Attached(Address),
    /// No tunnel answers to the address, or no file is attached to it.
    Detached(Address),
    /// A client is blocked in `read` on the tunnel.
    Reading(Address),
    /// The client wrote a datagram that has not been taken.
    Written(Address),
    /// So many datagrams can be taken; the answer takes them.
    Take(TunnelId, usize),
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was waited for is the case, on this tunnel (`None`: it is gone, as was waited for).
    Met(Option<TunnelId>),
    /// The datagrams, oldest first.
    Taken(Vec<Datagram>),
    /// The deadline came first. For [`Condition::Take`]: how many there were; they stay.
    TimedOut(usize),
    /// For [`Condition::Take`]: the tunnel is gone, and the rest of what its client wrote with it.
    Gone,
}

#[derive(Debug)]
pub(super) struct Wait {
    pub(super) id: WaitId,
    pub(super) condition: Condition,
    pub(super) deadline: Option<Instant>,
}
