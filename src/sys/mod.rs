//! The only unsafe code of this package.
#![allow(unsafe_code, reason = "this is its one place")]

use std::{
    io,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
    unistd::{ForkResult, dup2_stdin, fork, pipe2, read, setsid, unlink, write},
};

/// Takes over a descriptor that came in a message (`SCM_RIGHTS`), was inherited, or was named by the user. To be called
/// once with each.
pub(crate) fn own_received(descriptor: RawFd) -> OwnedFd {
    // SAFETY: by the callers' word the descriptor is one that this process was handed for its own, so nobody else in it
    // owns it. If it is not open, its use fails with EBADF.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Starts a program, with no signal blocked, that is killed when this thread ends, however it ends.
pub(crate) fn spawn_dying_with_us(command: &mut Command) -> io::Result<Child> {
    let prepare = || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(SigSet::empty().thread_set_mask()?)
    };
    // SAFETY: between fork and exec the closure makes two system calls, and touches no memory but its own stack.
    let command = unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// A child of ours that removes a path when this process is killed: it waits until the pipe from us is closed, for nothing
/// else tells of such an end.
pub(crate) struct Guard(OwnedFd);

impl Guard {
    /// Starts it. To be called while there is one thread.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let (from_parent, to_child) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the process has one thread, by the caller's word, so the child may do whatever this process could.
        let forked = unsafe { fork() }?;
        match forked {
            ForkResult::Parent { .. } => Ok(Self(to_child)),
            ForkResult::Child => {
                drop(to_child);
                guard(&from_parent, path)
            }
        }
    }

    /// The path is removed by us, or is somebody else's by now: the child only ends.
    pub(crate) fn dismiss(&self) {
        // A child that has been killed guards nothing.
        let _killed = write(&self.0, &[1]);
    }
}

/// The child's whole life. Its outcome interests nobody: the path may be gone already.
fn guard(from_parent: &OwnedFd, path: &Path) -> ! {
    let _session = setsid();
    let _stdin = dup2_stdin(from_parent);
    // Nobody must wait for the end of our output because of it.
    // SAFETY: closing descriptors that nothing in this process uses any more.
    unsafe { libc::close_range(1, libc::c_uint::MAX, 0) };
    let mut byte = [0];
    let told = loop {
        match read(io::stdin(), &mut byte) {
            Err(Errno::EINTR) => {}
            told => break told,
        }
    };
    if told != Ok(1) {
        let _gone = unlink(path);
    }
    // SAFETY: ends the process without running what the parent registered to be run at its own end.
    unsafe { libc::_exit(0) }
}
