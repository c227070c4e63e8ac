//! Ordinary users against a daemon of root's: nothing of root's changes, and nobody else waits.

mod netdev;

pub use self::netdev::TESTS;
