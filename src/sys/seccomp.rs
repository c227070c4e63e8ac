//! A seccomp filter with a listener, after `seccomp(2)` and `seccomp_unotify(2)`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::{
    errno::Errno,
    libc::{self, seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp, sock_filter, sock_fprog},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Installs a filter for this thread and what it starts, and returns its listener.
///
/// Needs CAP_SYS_ADMIN in the user namespace of the process (`seccomp_prepare_filter`), unless it has no_new_privs.
pub(crate) fn install(filter: &[sock_filter]) -> Result<OwnedFd, Errno> {
    let program = sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?,
        // It is only read (copy_from_user).
        filter: filter.as_ptr().cast_mut(),
    };
    // The kernel does not slow the program down for what untrusted code might guess (before 5.16 it would).
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let install = |flags: libc::c_ulong| {
        // SAFETY: the program is valid for the call, and so are the instructions that it points to.
        let listener = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        super::received(listener)
    };
    // Linux 5.19: what is being answered is not broken off by a signal that does not kill.
    match install(flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(Errno::EINVAL) => install(flags),
        installed => installed,
    }
}

/// Where the kernel asks about the calls that a filter has caught.
pub(crate) struct Listener(OwnedFd);

/// A call that waits for an answer.
pub(crate) struct Notification {
    pub(crate) id: u64,
    /// The thread, as this process sees it.
    pub(crate) tid: u32,
    pub(crate) call: libc::seccomp_data,
}

/// What becomes of a call.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The kernel acts on it as if there was no filter.
    Continue,
    /// It is over.
    Result(Result<i32, Errno>),
    /// The caller gets a duplicate, closed on exec, and the call returns its number. Before Linux 5.14 it gets EPERM.
    Descriptor(OwnedFd),
}

impl Listener {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Waits for a call; an error if there will be none, because nobody has the filter any more.
    pub(crate) fn next(&self) -> Result<Notification, Errno> {
        loop {
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled?,
            };
            if !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
                return Err(Errno::ENOTCONN);
            }
            match self.receive() {
                // ENOENT: the caller has died.
                Err(Errno::EINTR | Errno::ENOENT) => {}
                received => return received,
            }
        }
    }

    fn receive(&self) -> Result<Notification, Errno> {
        // The kernel wants zeros (seccomp_notify_recv).
        let mut received = seccomp_notif {
            id: 0,
            pid: 0,
            flags: 0,
            data: libc::seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] },
        };
        let command = libc::SECCOMP_IOCTL_NOTIF_RECV;
        // SAFETY: the structure is valid, and of the size that the command's number says.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command, &raw mut received) };
        Errno::result(result)?;
        Ok(Notification { id: received.id, tid: received.pid, call: received.data })
    }

    /// Whether the caller still waits, so that its thread is the one that it was when it called.
    pub(crate) fn is_waiting(&self, id: u64) -> bool {
        let command = libc::SECCOMP_IOCTL_NOTIF_ID_VALID;
        // SAFETY: the number is valid, and of the size that the command's number says.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command, &raw const id) };
        result == 0
    }

    pub(crate) fn answer(&self, id: u64, answer: &Answer) -> Result<(), Errno> {
        let mut response = seccomp_notif_resp { id, val: 0, error: 0, flags: 0 };
        match answer {
            Answer::Continue => response.flags = CONTINUE,
            Answer::Result(Ok(result)) => response.val = (*result).into(),
            Answer::Result(Err(errno)) => response.error = -(*errno as i32),
            Answer::Descriptor(descriptor) => match self.give(id, descriptor.as_fd()) {
                Err(Errno::EINVAL) => response.error = -(Errno::EPERM as i32),
                // As of the caller's own call: EMFILE.
                Err(errno) => response.error = -(errno as i32),
                Ok(()) => return Ok(()),
            },
        }
        let command = libc::SECCOMP_IOCTL_NOTIF_SEND;
        // SAFETY: the structure is valid, and of the size that the command's number says.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command, &raw mut response) };
        Errno::result(result).map(|_| ())
    }

    /// Answers with a descriptor, in one step.
    fn give(&self, id: u64, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut request = seccomp_notif_addfd {
            id,
            flags: SEND,
            srcfd: descriptor.as_raw_fd().cast_unsigned(),
            newfd: 0,
            newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
        };
        let command = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
        // SAFETY: the structure is valid, and of the size that the command's number says.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command, &raw mut request) };
        Errno::result(result).map(|_| ())
    }
}

/// `SECCOMP_ADDFD_FLAG_SEND`.
const SEND: u32 = 2;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const CONTINUE: u32 = 1;
