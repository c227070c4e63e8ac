//! What cleans up when this process is killed.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{ForkResult, Pid, getppid, read, unlink, write},
};

/// How often it looks for processes that others have started meanwhile.
const ROUNDS: usize = 100;

/// A child of ours that waits until the socket to us is closed, for nothing else tells of such an end. It then removes a path, and
/// kills what is left in our mount namespace.
pub(crate) struct Guard(UnixStream);

impl Guard {
    /// Starts it, before this process enters the namespace. It fails if there are several threads.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let (to_parent, to_child) = UnixStream::pair()?;
        match super::fork_alone()? {
            ForkResult::Parent { .. } => Ok(Self(to_child)),
            ForkResult::Child => {
                drop(to_child);
                live(&to_parent, path)
            }
        }
    }

    /// Whoever is in the mount namespace that this process has entered shall end with it, from when this returns.
    pub(crate) fn watch_namespace(&self) {
        self.tell(ENTERED);
        let _answered = (&self.0).read(&mut [0]);
    }

    /// The path is removed by us, or is somebody else's by now: the child only ends.
    pub(crate) fn dismiss(&self) {
        self.tell(DISMISSED);
    }

    fn tell(&self, word: u8) {
        // A child that has been killed guards nothing.
        let _killed = (&self.0).write(&[word]);
    }
}

/// What the child is told.
const DISMISSED: u8 = 0;
const ENTERED: u8 = 1;

/// The child's whole life. Its outcome interests nobody: the path may be gone already.
fn live(to_parent: &UnixStream, path: &Path) -> ! {
    let parent = getppid();
    let to_parent = super::leave_all_but(to_parent.as_fd());
    let mut namespace = None;
    loop {
        let mut word = [0];
        match (read(&to_parent, &mut word), word) {
            (Err(Errno::EINTR), _) => {}
            (Ok(1), [DISMISSED]) => super::exit_at_once(),
            (Ok(1), _) => {
                // Held open, for once it has ended its number is given to the next.
                namespace = File::open(format!("/proc/{parent}/ns/mnt")).ok();
                let _gone = write(&to_parent, &word);
            }
            _ => break,
        }
    }
    let _gone = unlink(path);
    if let Some(identity) = namespace.as_ref().and_then(|open| open.metadata().ok()) {
        // Each round kills what a process of the one before may have started; the last finds nobody.
        let _all = (0..ROUNDS).find(|_| kill_all_in(&identity) == 0);
    }
    super::exit_at_once()
}

/// Kills every process in a mount namespace; returns how many there were.
fn kill_all_in(namespace: &Metadata) -> usize {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_meant = |id: &i32| {
        fs::metadata(format!("/proc/{id}/ns/mnt"))
            .is_ok_and(|other| (other.dev(), other.ino()) == (namespace.dev(), namespace.ino()))
    };
    ids.filter(is_meant).filter(|id| kill(Pid::from_raw(*id), Signal::SIGKILL).is_ok()).count()
}
