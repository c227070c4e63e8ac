//! Processes that a program leaves behind with the device open when it ends, such as a daemon that detaches itself.
//!
//! `run` serves the device, so it waits until they have closed it. A process that is left behind without the device may be about to
//! open it; `run` gives it [`LATE`] for that.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::{Signal, kill, raise},
        signalfd::SignalFd,
    },
    unistd::{Pid, getpgid, getpgrp},
};
use tracing::warn;

use crate::{
    core::Event,
    daemon::Daemon,
    hub::{Happened, Observer},
    log, sys,
};

/// How long what was left behind may take to open the device.
const LATE: Duration = Duration::from_secs(1);
/// How long it may go on after a signal that is to end it.
const LAST: Duration = Duration::from_secs(2);

/// Waits until nobody has the device open, which is at a path in this mount namespace. `ended_by`: a signal that the program was
/// sent, and that is meant for those too.
///
/// # Errors
///
/// The system's, or that the device was taken away.
pub(super) fn wait_for(
    daemon: &Daemon,
    signals: &SignalFd,
    at: &Path,
    ended_by: Option<Signal>,
) -> anyhow::Result<()> {
    let changed =
        Arc::new(Changed(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?));
    daemon.hub().observe(Arc::clone(&changed) as Arc<dyn Observer>);
    let at = &fs::canonicalize(at).unwrap_or_else(|_| at.to_owned());
    let (mut late, mut last, mut told) = (now() + LATE, None, false);
    if let Some(signal) = ended_by {
        pass_on(signal, false, &holders(daemon, at));
        (late, last) = (now(), Some(now() + LAST));
    }
    loop {
        daemon.hub().catch_up();
        let holders = holders(daemon, at);
        // Their ends are events too.
        let others = if holders.is_empty() { left_behind() } else { BTreeMap::new() };
        if holders.is_empty() && (others.is_empty() || now() >= late) {
            return Ok(());
        }
        if !holders.is_empty() && !told {
            told = true;
            log::complain(&format_args!(
                "waiting until {} closed the device; SIGINT or SIGTERM is passed on",
                in_words(&holders)
            ));
        }
        if last.is_some_and(|last| now() >= last) {
            return Ok(());
        }
        let until = last.or(holders.is_empty().then_some(late));
        let has_signal = sleep(signals, &changed.0, &others, until)?;
        // It is looked at in any case.
        let _news = changed.0.read();
        let Some(info) = has_signal.then(|| signals.read_signal()).transpose()?.flatten() else {
            continue;
        };
        let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else { continue };
        super::refuse_loss(signal, &info, daemon)?;
        let by_terminal = info.ssi_code == libc::SI_KERNEL;
        if signal == Signal::SIGTSTP && by_terminal {
            raise(Signal::SIGSTOP)?;
        } else if signal != Signal::SIGCHLD {
            pass_on(signal, by_terminal, &holders);
        }
        if is_an_end(signal) {
            (late, last) = (now(), last.or(Some(now() + LAST)));
        }
    }
}

/// Whoever gets this signal is to end.
pub(super) fn is_an_end(signal: Signal) -> bool {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].contains(&signal)
}

/// Says that a file was opened or closed.
struct Changed(EventFd);

impl Observer for Changed {
    fn observe(&self, happened: &Happened) {
        if matches!(happened.event, Event::Opened { .. } | Event::Closed { .. }) {
            // A counter that is full says so as well.
            let _full = self.0.write(1);
        }
    }
}

/// Sleeps until a signal comes, a file is opened or closed, or one of these processes ends; whether there is a signal.
fn sleep(
    signals: &SignalFd,
    changed: &EventFd,
    processes: &BTreeMap<u32, String>,
    until: Option<Instant>,
) -> Result<bool, Errno> {
    let ends: Vec<OwnedFd> =
        processes.keys().filter_map(|pid| sys::process_descriptor(*pid).ok()).collect();
    let descriptors = [signals.as_fd(), changed.as_fd()].into_iter();
    let mut descriptors: Vec<PollFd<'_>> = descriptors
        .chain(ends.iter().map(OwnedFd::as_fd))
        .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
        .collect();
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        // Not before the time is over.
        let rest = until.saturating_duration_since(now()) + Duration::from_millis(1);
        PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut descriptors, timeout) {
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno),
        Ok(_) => Ok(descriptors[0].any().unwrap_or(true)),
    }
}

/// Who has the device open, by process, with its command. Where that cannot be seen, who opened it.
fn holders(daemon: &Daemon, at: &Path) -> BTreeMap<u32, String> {
    let openers: BTreeMap<u32, String> = daemon.hub().view(|core| {
        let opener = |file: &crate::core::File| (file.opener().pid, file.opener().command.clone());
        core.files().map(opener).collect()
    });
    if openers.is_empty() {
        return openers;
    }
    let mut holders = left_behind();
    holders.retain(|pid, _| has_open(*pid, at));
    if holders.is_empty() { openers } else { holders }
}

/// The processes in this mount namespace that are not memtun's own, with their commands.
fn left_behind() -> BTreeMap<u32, String> {
    let identity =
        |link: String| fs::metadata(link).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let namespace = |process: &str| identity(format!("/proc/{process}/ns/mnt"));
    let program = |process: &str| fs::read_link(format!("/proc/{process}/exe")).ok();
    let (ours, memtun) = (namespace("self"), program("self"));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| Some((name.parse().ok()?, name)))
        .filter(|(_, name)| namespace(name) == ours && program(name) != memtun)
        .map(|(pid, name)| {
            let command = fs::read_to_string(format!("/proc/{name}/comm")).unwrap_or_default();
            (pid, command.trim_end().to_owned())
        })
        .collect()
}

/// By the names of its open files: no server is asked anything for them.
fn has_open(pid: u32, at: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path == at)
}

fn pass_on(signal: Signal, by_terminal: bool, to: &BTreeMap<u32, String>) {
    for pid in to.keys().filter_map(|pid| i32::try_from(*pid).ok()).filter(|pid| *pid > 0) {
        let pid = Pid::from_raw(pid);
        // What the terminal sends, it has sent to its foreground group.
        if by_terminal && getpgid(Some(pid)) == Ok(getpgrp()) {
            continue;
        }
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => warn!(%signal, %errno, "passing a signal on failed, ignoring"),
        }
    }
}

fn in_words(processes: &BTreeMap<u32, String>) -> String {
    let names: Vec<String> =
        processes.iter().map(|(pid, command)| format!("{command}({pid})")).collect();
    let have = if names.len() == 1 { "has" } else { "have" };
    format!("{} {have}", names.join(", "))
}

#[expect(clippy::disallowed_methods, reason = "a deadline")]
fn now() -> Instant {
    Instant::now()
}
