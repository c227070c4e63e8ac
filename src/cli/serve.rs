//! `serve`: the daemon.

use std::{
    io,
    num::NonZero,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use clap::ArgGroup;
use cuse_rs::{
    cuse::{DeviceName, DeviceOptions},
    fuse_file::FileOptions,
};
use nix::{
    errno::Errno,
    sys::signal::{SigSet, Signal},
    unistd::{Group, User},
};
use sd_notify::NotifyState;
use tracing::{info, warn};

use super::{
    Scene,
    interface::{Devices, Kind},
    number as whole, usage_error,
};
use crate::{
    control::server::{Server, SocketOptions},
    daemon::{DEVICE_LOST, Daemon, DaemonError, Options, system},
    frontend::{Registered, cuse, fuse},
    input_log::InputLog,
    panics, sys,
};

/// Registers the device and serves it until SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("device").args(["cuse", "fuse"]).required(true).multiple(true))]
pub(super) struct Args {
    /// Register the character device /dev/NAME. NAME may have a slash, as in net/tun.
    #[arg(long, value_name = "NAME")]
    cuse: Option<DeviceName>,
    /// Mount a file at PATH that behaves as the device. Containers get it by a bind mount. memtun makes the file if it is missing.
    #[arg(long, value_name = "PATH")]
    fuse: Option<PathBuf>,
    /// Permission bits of the device and the file, in octal.
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = octal, allow_negative_numbers = true)]
    mode: u32,
    /// Owner of the device and the file, as USER, USER:GROUP or :GROUP, by name or number.
    #[arg(long, value_name = "USER[:GROUP]", value_parser = owner)]
    owner: Option<Owner>,
    /// Number of the device, as MAJOR:MINOR [default: a free number].
    #[arg(long, value_name = "MAJOR:MINOR", value_parser = number, requires = "cuse", allow_hyphen_values = true)]
    number: Option<(u32, u32)>,
    #[command(flatten)]
    admission: super::Admission,
    /// How many threads read each device. One thread serves any number of blocked clients.
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole(NonZero::<u8>::MIN, NonZero::<u8>::MAX), allow_negative_numbers = true)]
    threads: NonZero<u8>,
    /// Sleep at once when there is no call. Without this option, a single thread looks for the next call for up to 100 us before it
    /// sleeps. It does so only if calls are frequent and the CPU is idle.
    #[arg(long)]
    no_spin: bool,
    /// Permission bits of the control socket, in octal.
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = octal, allow_negative_numbers = true)]
    control_mode: u32,
    /// Group of the control socket, by name or number.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    control_group: Option<u32>,
    #[command(flatten)]
    memory: super::Memory,
    #[command(flatten)]
    interface: Devices,
}

type Owner = (Option<u32>, Option<u32>);

impl Args {
    /// Whether the options have an effect together.
    ///
    /// # Errors
    ///
    /// A usage error.
    pub(super) fn check(&self) -> Result<(), clap::Error> {
        if self.no_spin && self.threads.get() > 1 {
            return Err(usage_error(
                "--no-spin is for a single thread; several threads always sleep at once",
            ));
        }
        self.interface.check(Kind::None)?;
        self.admission.check(self.is_strict())?;
        self.memory.check()
    }

    /// Whoever may open the device must not get a kernel device by the daemon's rights.
    fn is_strict(&self) -> bool {
        self.interface.kind(Kind::None) != Kind::None
    }

    pub(super) fn run(self, scene: &mut Scene<'_>) -> Result<(), DaemonError> {
        let control = scene.control();
        // While a signal still ends this process: to look at a file whose daemon hangs takes a while.
        self.fuse.as_deref().map_or(Ok(()), fuse::admit)?;
        // Before there are threads, so that all inherit it and only the wait below gets these.
        let signals =
            SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, DEVICE_LOST]);
        signals.thread_block().map_err(io::Error::from).map_err(system("blocking signals"))?;

        let paths = [Some(control), self.fuse.as_deref()];
        let _until_the_end = OwnFolder::make(paths.into_iter().flatten());
        let socket = SocketOptions {
            path: control.to_owned(),
            mode: self.control_mode,
            group: self.control_group,
        };
        // The socket comes first: two daemons by mistake would else both make a device.
        let server = match inherited_socket() {
            Some(listener) => Server::inherited(listener),
            None => Server::bind(&socket)?,
        };
        let netdevs = self.interface.options(Kind::None);
        let options = Options {
            threads: self.threads,
            spin: !self.no_spin,
            admission: self.admission.clone().resolve(self.is_strict()),
            memory: self.memory.into(),
            netdevs,
            input_log: InputLog::from_environment().map_err(DaemonError::from)?,
        };
        let daemon = Daemon::start(self.devices()?, server, options)?;
        info!(control = %socket.path.display(), "ready");
        tell_service_manager(&[NotifyState::Ready]);
        let signal = wait_for(&signals).map_err(system("waiting for a signal"))?;
        tell_service_manager(&[NotifyState::Stopping]);
        let lost = daemon.lost_device().map(str::to_owned);
        info!(%signal, "stopping");
        daemon.stop();
        if let Some(panicked) = panics::ending() {
            return Err(DaemonError::Panicked(panicked.clone()));
        }
        lost.map_or(Ok(()), |name| Err(DaemonError::DeviceLost(name)))
    }

    fn devices(&self) -> Result<Vec<Registered>, DaemonError> {
        let mut devices = Vec::new();
        let (uid, gid) = self.owner.unwrap_or_default();
        if let Some(name) = &self.cuse {
            let mut device = DeviceOptions::new(name.clone()).mode(self.mode).owner(uid, gid);
            if let Some((major, minor)) = self.number {
                device = device.number(major, minor);
            }
            devices.push(cuse::register(device)?);
        }
        if let Some(path) = &self.fuse {
            let file = FileOptions::mount_at(path).mode(self.mode).owner(uid, gid);
            devices.push(fuse::mount(file.allow_other(true))?);
        }
        Ok(devices)
    }
}

/// The folder that is memtun's own, if this process has made it. It is removed at the end, unless something is in it.
struct OwnFolder(Option<&'static Path>);

impl OwnFolder {
    /// Makes it where it is asked for. Any other is to be there: what is not may be a mistake.
    fn make<'a>(mut paths: impl Iterator<Item = &'a Path>) -> Self {
        let own = Path::new(super::DEFAULT_CONTROL).parent();
        let own = own.filter(|own| paths.any(|path| path.parent() == Some(own)));
        // Whoever wants something there says that it is not.
        Self(own.filter(|own| std::fs::create_dir(own).is_ok()))
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        // Another daemon may have something in it.
        let _removed = self.0.map(std::fs::remove_dir);
    }
}

/// The socket that `memtun.socket` passes.
fn inherited_socket() -> Option<UnixListener> {
    let descriptor = sd_notify::listen_fds().ok()?.next()?;
    Some(UnixListener::from(sys::inherited::take(descriptor)?))
}

fn tell_service_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        warn!(%error, "telling the service manager failed, ignoring");
    }
}

fn wait_for(signals: &SigSet) -> io::Result<Signal> {
    loop {
        match signals.wait() {
            Err(Errno::EINTR) => {}
            signal => return signal.map_err(io::Error::from),
        }
    }
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("{text:?} is not a mode; write it in octal, such as 0666"))
}

fn number(text: &str) -> Result<(u32, u32), String> {
    text.split_once(':')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| {
            format!("{text:?} is not a device number; write it as MAJOR:MINOR, such as 241:0")
        })
}

fn owner(text: &str) -> Result<Owner, String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let uid = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    match (resolve(user, "user", uid)?, resolve(group, "group", find_group)?) {
        (None, None) => Err("give a user, a group or both, as USER:GROUP".to_owned()),
        owner => Ok(owner),
    }
}

fn group(text: &str) -> Result<u32, String> {
    resolve(text, "group", find_group)?.ok_or_else(|| "give a group by name or number".to_owned())
}

fn find_group(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

fn resolve(
    name: &str,
    kind: &str,
    look_up: impl Fn(&str) -> Option<u32>,
) -> Result<Option<u32>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    let id = name.parse().ok().or_else(|| look_up(name));
    id.map(Some).ok_or_else(|| format!("there is no {kind} {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_parsed_or_refused_with_a_hint() {
        assert_eq!(octal("0666"), Ok(0o666));
        assert!(octal("0888").unwrap_err().contains("octal"));
        assert!(octal("77777").is_err());
        assert_eq!(number("241:7"), Ok((241, 7)));
        assert!(number("241").unwrap_err().contains("MAJOR:MINOR"));
        assert_eq!(owner("0:0"), Ok((Some(0), Some(0))));
        assert_eq!(owner("root"), Ok((Some(0), None)));
        assert_eq!(owner(":5"), Ok((None, Some(5))));
        assert!(owner("no-such-user").is_err());
        assert!(owner(":").unwrap_err().contains("USER:GROUP"));
        assert_eq!(group("root"), Ok(0));
        assert_eq!(group("17"), Ok(17));
        assert!(group("no-such-group").unwrap_err().contains("no-such-group"));
        assert!(group("").is_err());
    }
}
