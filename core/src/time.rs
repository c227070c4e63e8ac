//! Time, as the core is told it.

use core::{
    ops::{Add, Sub},
    time::Duration,
};

/// A moment of a clock that never goes back. Its origin is chosen by whoever drives the core: a test takes zero, a daemon
/// its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Instant(Duration);

impl Instant {
    /// The origin.
    pub const ORIGIN: Self = Self(Duration::ZERO);

    /// The moment so long after the origin.
    #[must_use]
    pub const fn after_origin(passed: Duration) -> Self {
        Self(passed)
    }

    /// How long after the origin.
    #[must_use]
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// The moment so long after this one; `None` if the clock does not reach so far.
    #[must_use]
    pub fn checked_add(self, passed: Duration) -> Option<Self> {
        self.0.checked_add(passed).map(Self)
    }

    /// How long after another moment; zero if that is later.
    #[must_use]
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, passed: Duration) -> Self {
        Self(self.0 + passed)
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}
