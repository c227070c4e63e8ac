//! What cleans up when this process is killed.

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use nix::{
    fcntl::OFlag,
    sys::signal::{Signal, kill},
    unistd::{ForkResult, Pid, fork, pipe2, unlink, write},
};

/// How often it looks for processes that others have started meanwhile.
const ROUNDS: usize = 100;

/// A child of ours that waits until the pipe from us is closed, for nothing else tells of such an end. It then removes a path, and
/// kills what is left in our mount namespace.
pub(crate) struct Guard(OwnedFd);

impl Guard {
    /// Starts it. To be called while there is one thread, and before this process enters the namespace.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let (from_parent, to_child) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the process has one thread, by the caller's word, so the child may do whatever this process could.
        let forked = unsafe { fork() }?;
        match forked {
            ForkResult::Parent { .. } => Ok(Self(to_child)),
            ForkResult::Child => {
                drop(to_child);
                live(&from_parent, path)
            }
        }
    }

    /// Whoever is in the mount namespace that this process has entered shall end with it.
    pub(crate) fn watch_namespace(&self) {
        if let Ok(namespace) = fs::metadata("/proc/self/ns/mnt") {
            self.tell(Word::Namespace(namespace.ino()));
        }
    }

    /// The path is removed by us, or is somebody else's by now: the child only ends.
    pub(crate) fn dismiss(&self) {
        self.tell(Word::Dismissed);
    }

    fn tell(&self, word: Word) {
        // A child that has been killed guards nothing.
        let _killed = write(&self.0, &word.encode());
    }
}

/// What the child is told. A write of so few bytes is never split (`pipe(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Dismissed,
    /// The number of a mount namespace.
    Namespace(u64),
}

impl Word {
    fn encode(self) -> [u8; 8] {
        match self {
            Self::Dismissed => 0,
            Self::Namespace(number) => number,
        }
        .to_ne_bytes()
    }

    fn decode(bytes: [u8; 8]) -> Self {
        match u64::from_ne_bytes(bytes) {
            0 => Self::Dismissed,
            number => Self::Namespace(number),
        }
    }
}

/// The child's whole life. Its outcome interests nobody: the path may be gone already.
fn live(from_parent: &OwnedFd, path: &Path) -> ! {
    let mut from_parent = super::leave_all_but(from_parent.as_fd());
    let (mut bytes, mut namespace) = ([0; 8], None);
    while from_parent.read_exact(&mut bytes).is_ok() {
        match Word::decode(bytes) {
            Word::Dismissed => super::exit_at_once(),
            Word::Namespace(number) => namespace = Some(number),
        }
    }
    let _gone = unlink(path);
    if let Some(namespace) = namespace {
        // Each round kills what a process of the one before may have started; the last finds nobody.
        let _all = (0..ROUNDS).find(|_| kill_all_in(namespace) == 0);
    }
    super::exit_at_once()
}

/// Kills every process in a mount namespace; returns how many there were.
fn kill_all_in(namespace: u64) -> usize {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_meant = |id: &i32| {
        fs::metadata(format!("/proc/{id}/ns/mnt")).is_ok_and(|other| other.ino() == namespace)
    };
    ids.filter(is_meant).filter(|id| kill(Pid::from_raw(*id), Signal::SIGKILL).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart() {
        for word in [Word::Dismissed, Word::Namespace(4_026_531_841)] {
            assert_eq!(Word::decode(word.encode()), word);
        }
    }
}
