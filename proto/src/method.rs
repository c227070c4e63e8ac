//! What all methods have.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

/// A method of the protocol. The type is its parameters.
pub trait Method: Serialize + DeserializeOwned {
    /// Its name in a call.
    const NAME: &'static str;
    /// What the daemon answers.
    type Result: Serialize + DeserializeOwned + Send + 'static;

    /// How long the daemon may wait for something to happen before it answers, as the parameters say (`timeout_ms`).
    fn longest_wait(&self) -> Duration {
        Duration::ZERO
    }
}

/// How long `take` and `wait` wait unless they are told, in milliseconds.
pub const DEFAULT_TIMEOUT_MS: u64 = 10_000;

pub(crate) fn default_timeout_ms() -> u64 {
    DEFAULT_TIMEOUT_MS
}

/// Whole milliseconds, as many as there can be.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}
