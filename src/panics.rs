//! What a panic costs. A panic is a defect of memtun: it ends as little as possible, but never leaves a daemon that serves only in part.
//!
//! # Theory of operation
//!
//! | thread that panicked | what it costs |
//! | --- | --- |
//! | `harness`, `outbox` | its connection |
//! | `attach-in`, `attach-out`, `host` | its tunnel's peer, which leaves the tunnel |
//! | any of these, while it held the core's lock | the daemon: the state of the core may be incomplete |
//! | any other | the daemon |
//!
//! The panic hook decides that the daemon ends. It runs before the thread unwinds, whatever locks the thread holds. The hook writes
//! which thread panicked, wakes the main thread, and starts a thread that aborts the process after `PATIENCE`. The main thread then
//! ends the daemon as it does at SIGTERM: it removes the devices, which answers blocked clients. The panicking thread releases its
//! locks as it unwinds, and the main thread takes a lock even if it is poisoned. If the orderly end takes too long, the abort closes
//! the devices, and that gives the clients their error.
//!
//! A thread whose panic ends only what it serves runs in `contain`.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    cell::Cell,
    panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind},
    process,
    sync::OnceLock,
    thread,
    time::Duration,
};

use nix::{
    poll::{PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::getpid,
};

use crate::{log, terminal};

/// How long the orderly end may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the daemon has to end.
#[derive(Clone, Debug)]
pub(crate) struct Panicked {
    /// The thread's name.
    pub thread: String,
    /// What it said, and where.
    pub message: String,
}

static PANICKED: OnceLock<Panicked> = OnceLock::new();
static WAKE_MAIN: OnceLock<Signal> = OnceLock::new();

thread_local! {
    /// The thread is in [`contain`].
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic is the end of the daemon, unless it is contained. The signal wakes the main thread.
pub(crate) fn end_the_daemon(wake_main: Signal) {
    // It is always the same.
    let _known = WAKE_MAIN.set(wake_main);
    panic::set_hook(Box::new(hook));
}

/// The panic for which the daemon has to end, if there was one.
#[must_use]
pub(crate) fn ending() -> Option<&'static Panicked> {
    PANICKED.get()
}

/// Runs something whose panic costs no more than what this thread does; `None` if it panicked.
pub(crate) fn contain<R>(act: impl FnOnce() -> R) -> Option<R> {
    let outer = CONTAINED.replace(true);
    // What the closure has shared with others is behind locks, and they decide what a poisoned one means.
    let result = catch_unwind(AssertUnwindSafe(act)).ok();
    CONTAINED.set(outer);
    result
}

/// The daemon has to end for something that this thread has left behind.
pub(crate) fn give_up(message: &str) {
    end(Panicked { thread: this_thread(), message: message.to_owned() });
}

fn hook(info: &PanicHookInfo<'_>) {
    let (thread, is_contained) = (this_thread(), CONTAINED.get());
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message =
        terminal::escaped(&format!("{} at {location}", message_of(info.payload()))).into_owned();
    let cost = match (is_contained, ending()) {
        (true, _) => "what it served ends",
        (false, None) => "the daemon ends",
        (false, Some(_)) => "the daemon ends already",
    };
    log::say(format_args!(
        "memtun: thread '{thread}' panicked: {message}; {cost}; please report this"
    ));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        log::say(backtrace);
    }
    if !is_contained {
        end(Panicked { thread, message });
    }
}

fn end(panicked: Panicked) {
    // The first one counts.
    if PANICKED.set(panicked).is_err() {
        return;
    }
    let abort = || {
        log::say("memtun: the daemon does not end in order, aborting");
        log::finish();
        process::abort()
    };
    let last_resort = thread::Builder::new().name("last-resort".to_owned()).spawn(move || {
        let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        // A signal that comes to this thread is blocked.
        let _passed = poll(&mut [], patience);
        abort()
    });
    let woken = WAKE_MAIN.get().is_some_and(|signal| kill(getpid(), *signal).is_ok());
    if last_resort.is_err() || !woken {
        abort();
    }
}

fn this_thread() -> String {
    thread::current().name().unwrap_or("without a name").to_owned()
}

fn message_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contained_panic_ends_nothing_else() {
        assert_eq!(contain(|| 1), Some(1));
        assert_eq!(contain(|| contain(|| panic!("on purpose"))), Some(None::<()>));
        assert!(!CONTAINED.get());
        assert!(ending().is_none());
    }

    #[test]
    fn messages_of_panics_are_found() {
        let caught = catch_unwind(|| panic!("with {}", 1)).unwrap_err();
        assert_eq!(message_of(&*caught), "with 1");
        let caught = catch_unwind(|| panic!("without")).unwrap_err();
        assert_eq!(message_of(&*caught), "without");
        assert_eq!(message_of(&1_u8), "a panic");
    }
}
