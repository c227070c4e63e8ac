//! Places where a test can have a thread panic, or stop for ever: with the feature `planted-panics` alone.
//!
//! `$MEMTUN_PLANTED_PANIC` is `PLACE` or `PLACE@THREAD`, and with `hang:` in front the thread hangs; several are separated by commas.

use std::fmt;
#[cfg(feature = "planted-panics")]
use std::{env, sync::OnceLock, thread};

/// A place: nothing happens there, unless the variable names it. A thread that panics already does so once.
#[cfg(feature = "planted-panics")]
pub(crate) fn panic_at(place: impl fmt::Display) {
    static PLANTED: OnceLock<String> = OnceLock::new();
    let planted = PLANTED.get_or_init(|| env::var("MEMTUN_PLANTED_PANIC").unwrap_or_default());
    if planted.is_empty() || thread::panicking() {
        return;
    }
    let (place, this) = (place.to_string(), thread::current());
    for planted in planted.split(',') {
        let (hangs, meant) = match planted.strip_prefix("hang:") {
            Some(meant) => (true, meant),
            None => (false, planted),
        };
        let (meant, thread) = match meant.split_once('@') {
            Some((meant, thread)) => (meant, Some(thread)),
            None => (meant, None),
        };
        if meant != place || (thread.is_some() && thread != this.name()) {
            continue;
        }
        assert!(hangs, "planted: {planted}");
        loop {
            thread::park();
        }
    }
}

/// Nothing.
#[cfg(not(feature = "planted-panics"))]
#[inline]
pub(crate) fn panic_at(_: impl fmt::Display) {}
