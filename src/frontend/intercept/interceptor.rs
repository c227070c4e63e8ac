//! The process that handles the calls that the filter catches.
//!
//! Invariant: the filter is installed only after the process is ready, because a caught call fails if nobody listens.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc::sock_filter,
    unistd::write,
};

use super::{
    Carried,
    filter::{self, Caught},
    network,
};
use crate::{
    frontend::opener,
    sys::{
        self,
        seccomp::{self, Answer, Listener, Notification, Signals},
    },
};

/// Why calls cannot be intercepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum InterceptError {
    /// The numbers of this machine's system calls are not known here.
    #[error("system calls of {} are not known to memtun", std::env::consts::ARCH)]
    Machine,
    /// The kernel lacks something, or forbids it.
    #[error("{call}: {}; it takes Linux 5.9 or later, and a container's rules may forbid it", .errno.desc())]
    Unavailable {
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// Another listener is there.
    #[error(
        "the kernel has one seccomp listener for a program, and there is one already, as within 'memtun run'"
    )]
    Listened,
    /// The process did not start.
    #[error("starting the interceptor: {0}")]
    Process(io::Error),
    /// The process ended when the filter was installed already.
    #[error("the interceptor has ended, so the program's calls would fail: {0}")]
    Lost(io::Error),
}

/// The process, ready to be asked; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Interceptor {
    filter: Vec<sock_filter>,
    socket: UnixStream,
}

impl Interceptor {
    /// Starts the process, for a file that is alone on the file system of this number (`st_dev`). Rings are refused, or left alone
    /// (`io_uring_setup`). To be called while there is one thread.
    ///
    /// # Errors
    ///
    /// As [`InterceptError`] says, but for [`Listened`](InterceptError::Listened) and [`Lost`](InterceptError::Lost).
    pub(crate) fn start(file_system: u64, refuses_rings: bool) -> Result<Self, InterceptError> {
        let filter = filter::program(refuses_rings).ok_or(InterceptError::Machine)?;
        let unavailable = |call| move |errno| InterceptError::Unavailable { call, errno };
        // As old as the notice that a filter has no users left, without which the process would never end.
        sys::probe_close_range().map_err(unavailable("close_range"))?;
        sys::probe_pidfd_getfd().map_err(unavailable("pidfd_getfd"))?;
        let (mut socket, other) = UnixStream::pair().map_err(InterceptError::Process)?;
        sys::detach(other.into(), |socket| serve(socket, file_system))
            .map_err(InterceptError::Process)?;
        socket.read_exact(&mut [0]).map_err(InterceptError::Process)?;
        Ok(Self { filter, socket })
    }

    /// From here on calls of this thread, and of what it starts, are intercepted.
    ///
    /// # Errors
    ///
    /// [`InterceptError::Unavailable`] and [`InterceptError::Listened`], and everything is as it was before; or
    /// [`InterceptError::Lost`], after which this thread must start nothing.
    pub(crate) fn intercept(self) -> Result<(), InterceptError> {
        let refused = |errno| {
            if errno == Errno::EBUSY {
                InterceptError::Listened
            } else {
                InterceptError::Unavailable { call: "seccomp", errno }
            }
        };
        let listener = seccomp::install(&self.filter, Signals::Wait).map_err(refused)?;
        seccomp::send(self.socket.as_fd(), listener.as_fd())
            .map_err(|errno| InterceptError::Lost(errno.into()))
    }
}

/// The whole life of the process. Nobody reads what it would say.
fn serve(socket: BorrowedFd<'_>, file_system: u64) {
    if write(socket, &[0]).is_err() {
        return;
    }
    let Ok(Some(listener)) = seccomp::receive_descriptor(socket) else { return };
    let listener = Listener::new(listener);
    // Until the filter has no users.
    while let Ok(notification) = listener.next() {
        let answer = carry(&listener, &notification, file_system).unwrap_or(Answer::Continue);
        // It fails if the caller has died meanwhile.
        let _gone = listener.answer(notification.id, &answer);
    }
}

/// Carries a call to the device; `None`: the kernel shall go on with it.
fn carry(listener: &Listener, notification: &Notification, file_system: u64) -> Option<Answer> {
    let caught = Caught::of(&notification.call)?;
    let file = file_of(notification)?;
    // Else the thread had died before, and its number was another's by then.
    if !listener.is_waiting(notification.id)
        || sys::FileKind::of(file.as_fd()).ok()?.file_system != file_system
    {
        return None;
    }
    let flags = || fcntl(&file, FcntlArg::F_GETFL).ok().map(OFlag::from_bits_retain);
    let flags_unless = |forbidden| {
        // A file that is not open for this gives EBADF, which the kernel knows by itself.
        let flags = flags()?;
        (flags & OFlag::O_ACCMODE != forbidden).then_some(flags.bits().cast_unsigned())
    };
    let carried = match caught {
        Caught::Read => Carried::Read { flags: flags_unless(OFlag::O_WRONLY)? },
        Caught::Write => Carried::Write { flags: flags_unless(OFlag::O_RDONLY)? },
        Caught::Ioctl { command, value } => Carried::Ioctl { command, value },
        Caught::Network(subject) => {
            let found = network::find(file.as_fd(), subject, notification.tid);
            return Some(found.map_or_else(|errno| Answer::Result(Err(errno)), Answer::Descriptor));
        }
    };
    let (command, argument) = carried.encode();
    let result = sys::own_ioctl(file.as_fd(), command, argument);
    Some(Answer::Result(result.map(i64::from)))
}

/// The file that the call is on.
fn file_of(notification: &Notification) -> Option<OwnedFd> {
    let descriptor = filter::low(notification.call.args[0]).cast_signed();
    let process = || opener::process_of(notification.tid);
    sys::duplicate_of_thread(notification.tid, process, descriptor).ok()
}
