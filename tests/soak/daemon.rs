//! The daemon under test, and how it is.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use memtun_client::{
    Client,
    proto::{Address, delete::Delete, limits::Limits, list::List, take::Take},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

pub(crate) struct Daemon {
    child: Child,
    pub(crate) device: PathBuf,
    pub(crate) control: PathBuf,
    folder: TempDir,
}

/// What a daemon has.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// In KiB.
    pub(crate) resident: usize,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) files: usize,
    pub(crate) tunnels: usize,
    pub(crate) namespaces: usize,
    /// Bytes that are charged for.
    pub(crate) memory: usize,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident, descriptors, threads, files, tunnels, namespaces, memory } = self;
        write!(
            f,
            "{resident} KiB resident, {} KiB in use, {files} files, {tunnels} tunnels, {namespaces} namespaces, \
            {descriptors} descriptors, {threads} threads",
            memory >> 10
        )
    }
}

impl Daemon {
    pub(crate) fn start(memtun: &Path) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), open).map_err(|error| error.to_string())?;
        let (device, control) = (folder.path().join("tun"), folder.path().join("control"));
        let child = Command::new(memtun)
            .args(["serve", "--mode", "0666", "--control-mode", "0666", "--fuse"])
            .arg(&device)
            .arg("--control")
            .arg(&control)
            .spawn()
            .map_err(|error| format!("{}: {error}", memtun.display()))?;
        let daemon = Self { child, device, control, folder };
        let begin = Instant::now();
        while Client::connect(&daemon.control).is_err() {
            if begin.elapsed() > Duration::from_secs(10) {
                return Err("the daemon did not start".to_owned());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    pub(crate) fn check_alive(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("the daemon has ended: {status}")),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(crate) fn resident(&self) -> Result<usize, String> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        number.ok_or_else(|| "no resident memory is shown".to_owned())
    }

    /// Asks the daemon, which must answer.
    pub(crate) fn state(&self) -> Result<State, String> {
        let mut client = self.client()?;
        let limits = client.call(&Limits {}).map_err(|error| error.to_string())?;
        let used = |resource: &str| {
            let found = limits.shared.iter().find(|shared| shared.resource == resource);
            found.map_or(0, |shared| shared.used)
        };
        let count = |what: &str| {
            fs::read_dir(format!("/proc/{}/{what}", self.child.id())).map_or(0, Iterator::count)
        };
        Ok(State {
            resident: self.resident()?,
            descriptors: count("fd"),
            threads: count("task"),
            files: used("files"),
            tunnels: used("tunnels"),
            namespaces: used("namespaces"),
            memory: used("memory"),
        })
    }

    /// The state once it is as before but for what is kept of deleted tunnels, which is taken; or the last one in time.
    pub(crate) fn settled(&self, before: &State, patience: Duration) -> Result<State, String> {
        let begin = Instant::now();
        loop {
            self.take_all()?;
            let state = self.state()?;
            if super::check(before, &state).is_ok() || begin.elapsed() > patience {
                return Ok(state);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn take_all(&self) -> Result<(), String> {
        let mut client = self.client()?;
        let listing = client.call(&List {}).map_err(|error| error.to_string())?;
        for tunnel in listing.tunnels {
            let address = Address::of_id(tunnel.id);
            if tunnel.link != "gone" {
                // Only a persistent one is without files.
                if tunnel.files.is_empty() {
                    let _deleted = client.call(&Delete::new(address));
                }
                continue;
            }
            for _ in 0..tunnel.write_buffer.datagrams {
                // It may have been given up for another.
                let take = Take::new(&address).timeout(Duration::ZERO);
                if client.call(&take).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn stop(mut self) -> Result<(), String> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).map_err(|errno| errno.to_string())?;
        let status = self.child.wait().map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(format!("the daemon's end: {status}"));
        }
        drop(self.folder);
        Ok(())
    }

    /// It may have all the connections that it takes.
    fn client(&self) -> Result<Client, String> {
        let begin = Instant::now();
        loop {
            match Client::connect(&self.control) {
                Ok(client) => return Ok(client),
                Err(error) if begin.elapsed() > Duration::from_secs(10) => {
                    return Err(format!("the daemon does not answer: {error}"));
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}
