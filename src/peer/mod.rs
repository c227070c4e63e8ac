//! What stands at the far side of a tunnel, other than the queue that the harness takes from.

pub mod socket;
