//! A seccomp filter with a listener, after `seccomp(2)` and `seccomp_unotify(2)`.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    libc::{self, seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp, sock_filter, sock_fprog},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::prctl,
};

/// What a signal that does not kill does to a call that has been received and not yet answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signals {
    /// They wait for the answer (Linux 5.19; before, as `Interrupt`).
    Wait,
    /// They end the call, as they end a system call that waits: it is made again under SA_RESTART.
    Interrupt,
}

/// Installs a filter for this thread and what it starts, and returns its listener.
///
/// Needs CAP_SYS_ADMIN in the user namespace of the process (`seccomp_prepare_filter`), unless it has no_new_privs.
pub(crate) fn install(filter: &[sock_filter], signals: Signals) -> Result<OwnedFd, Errno> {
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
    if signals == Signals::Interrupt {
        return install(flags);
    }
    match install(flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(Errno::EINVAL) => install(flags),
        installed => installed,
    }
}

/// The same, also without CAP_SYS_ADMIN: what this thread starts can gain no privileges then.
pub(crate) fn install_without_privilege(
    filter: &[sock_filter],
    signals: Signals,
) -> Result<OwnedFd, Errno> {
    match install(filter, signals) {
        Err(Errno::EACCES) => {
            prctl::set_no_new_privs()?;
            install(filter, signals)
        }
        installed => installed,
    }
}

/// Room for a message of control with one descriptor.
#[repr(C, align(8))]
struct Rights([u8; 32]);

/// Sends a descriptor. It allocates nothing, so that a child can call it before it executes a program.
pub(crate) fn send(socket: BorrowedFd<'_>, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    let byte = [0_u8];
    let mut piece = libc::iovec { iov_base: byte.as_ptr().cast_mut().cast(), iov_len: 1 };
    let mut rights = Rights([0; 32]);
    // SAFETY: zeros are a valid value of it.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut rights).cast();
    let length = libc::c_uint::try_from(size_of::<RawFd>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: it computes.
    let space = unsafe { libc::CMSG_SPACE(length) };
    message.msg_controllen = space as _;
    assert!(space as usize <= size_of::<Rights>(), "a header and a descriptor fit");
    // SAFETY: the message has room for a header, as was seen.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: it computes.
    let whole = unsafe { libc::CMSG_LEN(length) };
    // SAFETY: the header lies in `rights`, which is aligned for it.
    let header_fields = unsafe { &mut *header };
    header_fields.cmsg_level = libc::SOL_SOCKET;
    header_fields.cmsg_type = libc::SCM_RIGHTS;
    header_fields.cmsg_len = whole as _;
    // SAFETY: what follows the header lies in `rights` too.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: there is room for a descriptor, aligned or not.
    unsafe { data.cast::<RawFd>().write_unaligned(descriptor.as_raw_fd()) };
    // SAFETY: the message and all that it points to are valid for the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(|_| ())
}

/// Where the kernel asks about the calls that a filter has caught.
pub(crate) struct Listener(OwnedFd);

/// A call that waits for an answer.
#[derive(Clone, Copy, Debug)]
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
    Result(Result<i64, Errno>),
    /// The caller gets a duplicate, closed on exec, and the call returns its number. Before Linux 5.14 it gets EPERM.
    Descriptor(OwnedFd),
}

/// A number among the caller's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) number: u32,
    pub(crate) close_on_exec: bool,
}

impl Place {
    fn request(self, id: u64, descriptor: BorrowedFd<'_>, flags: u32) -> seccomp_notif_addfd {
        seccomp_notif_addfd {
            id,
            flags,
            srcfd: descriptor.as_raw_fd().cast_unsigned(),
            newfd: self.number,
            newfd_flags: if self.close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
        }
    }
}

impl Listener {
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Asks the kernel to let caller and answerer take turns on one CPU (Linux 6.6). False: it cannot.
    pub(crate) fn wake_in_turn(&self) -> bool {
        // SAFETY: the command takes a value.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
        result == 0
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

    /// Waits for a call. It does not notice that nobody has the filter any more.
    ///
    /// # Errors
    ///
    /// `ENOENT`: the caller has died or left. `EINTR`: a signal.
    pub(crate) fn receive(&self) -> Result<Notification, Errno> {
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

    /// Answers a call.
    ///
    /// # Errors
    ///
    /// `ENOENT`: the caller has died, or a signal has ended its call.
    pub(crate) fn answer(&self, id: u64, answer: &Answer) -> Result<(), Errno> {
        let mut response = seccomp_notif_resp { id, val: 0, error: 0, flags: 0 };
        match answer {
            Answer::Continue => response.flags = CONTINUE,
            Answer::Result(Ok(result)) => response.val = *result,
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
        self.add(seccomp_notif_addfd {
            id,
            flags: SEND,
            srcfd: descriptor.as_raw_fd().cast_unsigned(),
            newfd: 0,
            newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
        })
    }

    /// Puts a duplicate of a descriptor at a place among the caller's, in the place of what is there. The call goes on to wait.
    ///
    /// # Errors
    ///
    /// `ENOENT` as [`answer`](Self::answer); `EBADF`: the caller's limit forbids that number.
    pub(crate) fn put(
        &self,
        id: u64,
        descriptor: BorrowedFd<'_>,
        place: Place,
    ) -> Result<(), Errno> {
        self.add(place.request(id, descriptor, SETFD))
    }

    /// The same, and answers the call with the number, in one step; in two before Linux 5.14.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub(crate) fn put_and_answer(
        &self,
        id: u64,
        descriptor: BorrowedFd<'_>,
        place: Place,
    ) -> Result<(), Errno> {
        match self.add(place.request(id, descriptor, SETFD | SEND)) {
            Err(Errno::EINVAL) => {
                self.put(id, descriptor, place)?;
                self.answer(id, &Answer::Result(Ok(place.number.into())))
            }
            put => put,
        }
    }

    /// Whether nobody has the filter any more.
    pub(crate) fn is_left(&self) -> bool {
        self.is(PollFlags::POLLHUP)
    }

    /// Whether there is a call that has not been received.
    pub(crate) fn is_asked(&self) -> bool {
        self.is(PollFlags::POLLIN)
    }

    fn is(&self, event: PollFlags) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), event)];
        poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds[0].revents().is_some_and(|events| events.contains(event))
    }

    fn add(&self, mut request: seccomp_notif_addfd) -> Result<(), Errno> {
        let command = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
        // SAFETY: the structure is valid, and of the size that the command's number says.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command, &raw mut request) };
        Errno::result(result).map(|_| ())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Receives a descriptor that the other end [sends](send); `None`: it has ended and never will.
pub(crate) fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    use nix::{
        cmsg_space,
        sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
    };
    let mut byte = [0];
    let mut pieces = [io::IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    let mut controls = message.cmsgs()?;
    Ok(controls.find_map(|control| {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            descriptors.first().copied().map(super::own_received)
        } else {
            None
        }
    }))
}

/// `SECCOMP_ADDFD_FLAG_SETFD`.
const SETFD: u32 = 1;
/// `SECCOMP_ADDFD_FLAG_SEND`.
const SEND: u32 = 2;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const CONTINUE: u32 = 1;
/// `SECCOMP_IOCTL_NOTIF_SET_FLAGS`: `_IOW('!', 4, __u64)`.
const SET_FLAGS: libc::Ioctl = 0x4008_2104;
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`.
const SYNC_WAKE_UP: u64 = 1;
