//! Processes that a program leaves behind with the device open when it ends, such as a daemon that detaches itself.
//!
//! `run` serves the device, so it waits until they have closed it. A process that is left behind without the device may be about to
//! open it; `run` gives it [`LATE`] for that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
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
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{Pid, getpgid, getpgrp},
};
use tracing::warn;

use crate::{
    core::Event,
    daemon::Daemon,
    hub::{FileKind, Happened, Observer},
    log, sys,
};

/// How long what was left behind may take to open the device.
const LATE: Duration = Duration::from_secs(1);
/// How long it may go on after a signal that is to end it.
const LAST: Duration = Duration::from_secs(2);

/// How what was left behind is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// It is in this mount namespace, where the device has a path.
    Namespace,
    /// It descends from this process, and the device has pipes.
    Descendants,
}

impl Left {
    /// Waits until nobody has the device open. `ended_by`: a signal that the program was sent, and that is meant for those too.
    ///
    /// # Errors
    ///
    /// The system's, or that the device was taken away.
    pub(super) fn wait_for(
        self,
        daemon: &Daemon,
        signals: &SignalFd,
        at: &Path,
        ended_by: Option<Signal>,
    ) -> anyhow::Result<()> {
        wait_for(self, daemon, signals, at, ended_by)
    }

    /// The processes that are not memtun's own, with their commands.
    fn behind(self) -> BTreeMap<u32, String> {
        match self {
            Self::Namespace => left_behind(),
            Self::Descendants => descendants(),
        }
    }

    /// Whether a process has the device open.
    fn is_held_by(self, pid: u32, daemon: &Daemon, at: &Path) -> bool {
        match self {
            Self::Namespace => has_open(pid, at),
            Self::Descendants => has_pipe(pid, daemon),
        }
    }
}

/// Waits for the ends of children that are not this one: whose parents have ended before.
pub(super) fn reap_others(program: Pid) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) =
        waitid(Id::All, flags)
        && pid != program
    {
        if waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_err() {
            return;
        }
    }
}

fn wait_for(
    left: Left,
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
        pass_on(signal, false, &holders(left, daemon, at));
        (late, last) = (now(), Some(now() + LAST));
    }
    loop {
        daemon.hub().catch_up();
        let holders = holders(left, daemon, at);
        // Their ends are events too.
        let others = if holders.is_empty() { left.behind() } else { BTreeMap::new() };
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
        } else if signal == Signal::SIGCHLD {
            // Nobody has this number.
            reap_others(Pid::from_raw(0));
        } else {
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
fn holders(left: Left, daemon: &Daemon, at: &Path) -> BTreeMap<u32, String> {
    let openers: BTreeMap<u32, String> = daemon.hub().view(|core| {
        let opener = |file: &crate::core::File| (file.opener().pid, file.opener().command.clone());
        core.files().map(opener).collect()
    });
    if openers.is_empty() {
        return openers;
    }
    let mut holders = left.behind();
    holders.retain(|pid, _| left.is_held_by(*pid, daemon, at));
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

/// The processes that descend from this one and are not memtun's own, with their commands.
fn descendants() -> BTreeMap<u32, String> {
    let memtun = fs::read_link("/proc/self/exe").ok();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: BTreeMap<u32, u32> = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent_of(pid)?)))
        .collect();
    let ours = std::process::id();
    let mut found = BTreeSet::from([ours]);
    loop {
        let before = found.len();
        let more = parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid);
        let more: Vec<u32> = more.collect();
        found.extend(more);
        if found.len() == before {
            break;
        }
    }
    found.remove(&ours);
    found
        .into_iter()
        .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).ok() != memtun)
        .map(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, command.trim_end().to_owned())
        })
        .collect()
}

/// The parent of a process that has not ended.
fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    field("State:").filter(|state| !state.starts_with('Z'))?;
    field("PPid:")?.parse().ok()
}

/// Whether it has one of the device's pipes open. What the names do not show to be a pipe is not looked at.
fn has_pipe(pid: u32, daemon: &Daemon) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let is_pipe = |path: &Path| {
        fs::read_link(path).is_ok_and(|name| name.as_os_str().as_bytes().starts_with(b"pipe:"))
    };
    descriptors
        .map(|entry| entry.path())
        .filter(|path| is_pipe(path))
        .any(|path| FileKind::at(&path).is_ok_and(|kind| daemon.hub().owns(kind)))
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
