//! What stands at the far side of a tunnel, other than the queue that the harness takes from, and another tunnel.

pub(crate) mod host;
pub(crate) mod socket;
