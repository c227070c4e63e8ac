//! The open channel: a file from which requests are read and to which replies are written.
//!
//! Owns the file descriptor, the read loop and the way of each reply. Leaves the meaning of a message to [`crate::codec`], and the
//! answer to a [`Device`]. [`crate::cuse`] and [`crate::fuse_file`] make the channel. `node` has what a file has beyond a device.
//!
//! # States and operations
//!
//! A channel is *connected* until the kernel aborts it (`fuse_abort_conn` of `fs/fuse/dev.c`: the module goes,
//! somebody writes to `/sys/class/cuse/NAME/abort`, or unmounts the file). Then every read gives ENODEV or ECONNABORTED, which ends
//! [`Channel::serve`], and every reply finds its request gone (ENOENT).
//!
//! # Caveats
//!
//! * A message is read whole or not at all: a buffer that is too small fails every read with EINVAL
//!   (`fuse_dev_do_read`), or the client's call with EIO.
//! * A reply the kernel refuses may leave its client waiting, so a refused one is followed by EIO.
//! * Nothing on the way of a call takes a lock or allocates: requests are borrowed from the thread's buffer,
//!   replies are one `writev`. (An ioctl of a file does both, and wakes a thread: see `crew`. A write of 32 KiB or more takes
//!   another buffer, so that its data can be kept: see `intake`.)

mod barrier;
mod device;
mod ioctl;
mod node;
mod reply;

use std::io::IoSliceMut;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::uio::{readv, writev};

use crate::abi::{self, OpenFlags};
use crate::codec::{self, DecodeError, Message, Reply, Request};
use crate::crew;
use crate::desk::Desks;
use crate::errno::Errno;
use crate::intake::Intake;
use crate::pace::{Next, Pace};
use crate::request::{PollHandle, RequestId};

pub use self::device::Device;
pub(crate) use self::node::Node;
pub use self::reply::{ReplyIoctl, ReplyOpen, ReplyPoll, ReplyRead, ReplyRelease, ReplyWrite};

/// Where requests come from and replies go: `/dev/cuse` or `/dev/fuse` after the handshake.
///
/// Closed, and the device removed or the file disconnected, when dropped. Share it by reference or in an [`Arc`](std::sync::Arc).
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    max_write: u32,
    reported: AtomicU32,
    desks: Desks,
    /// What is behind the file of a FUSE mount; `None`: a character device.
    node: Option<Node>,
}

/// Why [`Channel::serve`] ended early.
#[derive(Debug, thiserror::Error)]
#[error("reading requests of the device: {}", .errno.description())]
#[non_exhaustive]
pub struct ServeError {
    /// The error of `read(2)`.
    pub errno: Errno,
}

impl Channel {
    /// Takes over a channel of CUSE whose handshake is done, with the `max_write` that was agreed there.
    ///
    /// For a descriptor that another process has opened, and for tests. The descriptor should be blocking.
    pub fn from_fd(fd: OwnedFd, max_write: u32) -> Self {
        Self { fd, max_write, reported: AtomicU32::new(0), desks: Desks::default(), node: None }
    }

    /// Takes over the channel of a FUSE mount whose file is `node`.
    pub(crate) fn of_file(fd: OwnedFd, max_write: u32, node: Node) -> Self {
        Self { node: Some(node), ..Self::from_fd(fd, max_write) }
    }

    /// The most bytes a WRITE on this channel carries.
    pub fn max_write(&self) -> u32 {
        self.max_write
    }

    /// Serves requests until the connection ends. Several threads may do so at the same time.
    ///
    /// A message that is malformed is answered with EIO, one that is unknown with ENOSYS; each kind is logged
    /// once. Costs one `read` and, for each reply, one `writev`.
    ///
    /// On a [FUSE file](crate::fuse_file) further threads stand by, and take over while an ioctl moves its caller's memory,
    /// which may itself be a mapping of the file.
    ///
    /// # Errors
    ///
    /// [`ServeError`] with the error of `read(2)`, where that does not mean the end (ENODEV, ECONNABORTED) and is
    /// not passing either (EINTR, EAGAIN, ENOENT). EINVAL: `max_write` was not what the handshake agreed on;
    /// EPERM: the descriptor is no channel yet.
    pub fn serve<D: Device + ?Sized>(&self, device: &D) -> Result<(), ServeError> {
        self.serve_at(device, || None)
    }

    /// Like [`serve`](Self::serve), but looks for the next message for up to 100 us before it sleeps. It does so only if messages follow
    /// each other closely, looking has been seen to bring them sooner, and no other thread wants the CPU. For a channel that one
    /// thread serves.
    ///
    /// This helps when client and server run on different CPUs: nobody has to wake the server. The file descriptor is switched between
    /// blocking and non-blocking. With one CPU to run on this has no effect.
    ///
    /// # Errors
    ///
    /// As [`serve`](Self::serve).
    pub fn serve_briskly<D: Device + ?Sized>(&self, device: &D) -> Result<(), ServeError> {
        self.serve_at(device, Pace::new)
    }

    fn serve_at<D: Device + ?Sized>(
        &self,
        device: &D,
        pace: impl Fn() -> Option<Pace> + Sync,
    ) -> Result<(), ServeError> {
        let member = || {
            let (mut intake, mut pace) = (Intake::new(self.buffer_size()), pace());
            let desk = self.desks.add();
            move || match intake.read_with(|pieces| self.receive(pieces, pace.as_mut())) {
                Ok(Some(length)) => {
                    match intake.decode(length) {
                        Ok(message) => {
                            if desk.handle(message.id, || self.dispatch(device, &message)) {
                                self.interrupt(device, message.id);
                            }
                        }
                        Err(error) => self.reject(&error),
                    }
                    ControlFlow::Continue(())
                }
                Ok(None) => ControlFlow::Break(Ok(())),
                Err(error) => ControlFlow::Break(Err(error)),
            }
        };
        if self.node.is_some() {
            return crew::run(member);
        }
        let mut step = member();
        loop {
            if let ControlFlow::Break(ended) = step() {
                return ended;
            }
        }
    }

    /// Tells the kernel of an event on the file that `handle` names, so that sleepers in `poll`, `select` and
    /// `epoll_wait` ask again. Returns whether the kernel took it; a handle that is gone is not an error.
    pub fn notify_poll(&self, handle: PollHandle) -> bool {
        let sent =
            codec::notify_poll(handle, |pieces| retry_interrupted(|| writev(&self.fd, pieces)));
        match sent {
            Ok(_) => true,
            Err(errno) => {
                tracing::debug!(%errno, handle = handle.0, "poll notification not sent, ignoring");
                false
            }
        }
    }

    /// Waits until the [`Device`] has got every message of what clients did before this call. That includes the `close` of a file of a
    /// FUSE mount, for which clients do not wait. A thread that serves the channel must not call this. If several threads serve it,
    /// one of them may still be about to hand on what it has read.
    ///
    /// False if that takes longer than `patience`, or the channel has ended.
    pub fn catch_up(&self, patience: Duration) -> bool {
        // The kernel's close of a character device waits for its RELEASE.
        self.node.as_ref().is_none_or(|node| {
            node.barrier().pass(patience, |id| {
                codec::notify_retrieve(id, |pieces| {
                    retry_interrupted(|| writev(&self.fd, pieces)).map(drop)
                })
            })
        })
    }

    /// For a handshake that agrees on less than was hoped for.
    pub(crate) fn set_max_write(&mut self, max_write: u32) {
        self.max_write = max_write;
    }

    /// What the kernel shall do with an open file; CUSE ignores it.
    pub(crate) fn open_flags(&self) -> OpenFlags {
        self.node.as_ref().map_or(OpenFlags::empty(), |_| Node::OPEN_FLAGS)
    }

    /// Sends the reply to an IOCTL, after what the kernel leaves to the server of a file.
    pub(crate) fn answer_ioctl(&self, id: RequestId, reply: &Reply<'_>) -> bool {
        match &self.node {
            Some(node) => node.answer_ioctl(self, id, reply),
            None => self.answer(id, reply),
        }
    }

    /// Sends a reply; returns whether the kernel took it.
    pub(crate) fn answer(&self, id: RequestId, reply: &Reply<'_>) -> bool {
        match self.send(id, reply) {
            Ok(()) => true,
            // EPIPE: a socket whose other end is closed.
            Err(Errno::ENOENT | Errno::EPIPE) => {
                tracing::trace!(id = id.0, "reply to a request that is gone, ignoring");
                false
            }
            Err(errno) => {
                tracing::warn!(%errno, id = id.0, "reply refused by the kernel, answering EIO");
                // Refused early, the request is still open; refused late, it is gone and this is ignored.
                let _ = self.send(id, &Reply::Error(Errno::EIO));
                false
            }
        }
    }

    pub(crate) fn send(&self, id: RequestId, reply: &Reply<'_>) -> Result<(), Errno> {
        reply.with_pieces(id, |pieces| retry_interrupted(|| writev(&self.fd, pieces)))?;
        Ok(())
    }

    /// Reads one message into `pieces`; `None`: the connection has ended.
    pub(crate) fn receive(
        &self,
        pieces: &mut [IoSliceMut<'_>],
        mut pace: Option<&mut Pace>,
    ) -> Result<Option<usize>, ServeError> {
        loop {
            match readv(&self.fd, pieces).map_err(Errno::of) {
                // A socket whose other end is closed; the kernel's own channel never says this.
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(None),
                Ok(length) => {
                    if let Some(pace) = pace
                        && let Some(next) = pace.came(now)
                    {
                        self.set_nonblocking(next == Next::Look)?;
                    }
                    return Ok(Some(length));
                }
                Err(Errno::ENODEV | Errno::ECONNABORTED) => return Ok(None),
                // ENOENT: the request was aborted while it was being copied.
                Err(Errno::EINTR | Errno::ENOENT) => {}
                Err(Errno::EAGAIN) => match pace.as_mut().map(|pace| pace.missed(now())) {
                    // To whoever wants this CPU; to the client itself, perhaps.
                    Some(Next::Look) => thread::yield_now(),
                    // The next read sleeps.
                    Some(Next::Sleep) => self.set_nonblocking(false)?,
                    None => self.wait_readable(),
                },
                Err(errno) => return Err(ServeError { errno }),
            }
        }
    }

    /// Room for any message: `fuse_dev_do_read` wants [`abi::MIN_READ_BUFFER`] bytes and a WRITE of full size; an
    /// IOCTL can be larger than that WRITE.
    pub(crate) fn buffer_size(&self) -> usize {
        const HEADERS: usize = size_of::<abi::InHeader>() + size_of::<abi::WriteIn>();
        let data = self.max_write.max(abi::MAX_DATA);
        (HEADERS + data as usize).max(abi::MIN_READ_BUFFER)
    }

    fn dispatch<D: Device + ?Sized>(&self, device: &D, message: &Message<'_>) {
        let Message { id, opcode, caller, is_paging, request } = *message;
        tracing::trace!(id = id.0, ?opcode, tid = caller.tid, "request");
        match request {
            Request::Open(open) => device.open(caller, open, ReplyOpen::new(self, id)),
            // A message must not end in the page cache, where later faults would find it again.
            Request::Read(_) if is_paging && self.node.is_some() => {
                self.answer(id, &Reply::Error(Errno::EIO));
            }
            Request::Read(read) => device.read(caller, read, ReplyRead::new(self, id)),
            Request::Write(write) => {
                let write = if self.node.is_some() { Node::without_position(write) } else { write };
                device.write(caller, write, ReplyWrite::new(self, id));
            }
            Request::Ioctl(ioctl) => match &self.node {
                Some(node) => node.ioctl(self, device, id, caller, ioctl),
                None => device.ioctl(caller, ioctl, ReplyIoctl::new(self, id)),
            },
            Request::Poll(poll) => device.poll(caller, poll, ReplyPoll::new(self, id)),
            Request::Release(file) => device.release(file, ReplyRelease::new(self, id)),
            Request::Interrupt(target) => self.interrupt(device, target),
            Request::Destroy => {
                self.answer(id, &Reply::Done);
            }
            Request::Retrieved => {
                if let Some(node) = &self.node {
                    node.barrier().reached(id);
                }
            }
            Request::Silent => {}
            Request::File(request) => match &self.node {
                Some(node) => node.answer(self, id, request),
                None => self.refuse(id, opcode),
            },
            Request::CuseInit(_) | Request::Init(_) | Request::Unknown => self.refuse(id, opcode),
        }
    }

    /// The caller of a request got a signal.
    fn interrupt<D: Device + ?Sized>(&self, device: &D, target: RequestId) {
        let is_known = self.node.as_ref().is_some_and(|node| node.interrupt(self, target))
            || self.desks.leave_note(target)
            || device.interrupt(target);
        // Of all replies to INTERRUPT only two mean something: EAGAIN brings it again, and ENOSYS ends interrupts for good
        // (fuse_dev_do_write), so that clients could not be killed any more.
        if !is_known {
            self.answer(RequestId(target.0 | abi::INT_REQ_BIT), &Reply::Error(Errno::EAGAIN));
        }
    }

    fn refuse(&self, id: RequestId, opcode: abi::Opcode) {
        if self.is_first(Report::Unknown) {
            tracing::warn!(?opcode, "request of an unknown kind, answering ENOSYS");
        }
        self.answer(id, &Reply::Error(Errno::ENOSYS));
    }

    fn reject(&self, error: &DecodeError) {
        let report = match error {
            DecodeError::Header { .. } => Report::Header,
            DecodeError::Length { .. } => Report::Length,
            DecodeError::Body { .. } => Report::Body,
        };
        if self.is_first(report) {
            tracing::warn!(%error, "malformed request, ignoring");
        }
        if let Some(id) = error.waiting() {
            self.answer(id, &Reply::Error(Errno::EIO));
        }
    }

    /// Whether this is the channel's first message of such a kind, so that each is logged once.
    pub(crate) fn is_first(&self, report: Report) -> bool {
        let bit = 1 << report as u32;
        self.reported.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    fn set_nonblocking(&self, on: bool) -> Result<(), ServeError> {
        let set = fcntl(&self.fd, FcntlArg::F_GETFL).and_then(|flags| {
            let mut flags = OFlag::from_bits_retain(flags);
            flags.set(OFlag::O_NONBLOCK, on);
            fcntl(&self.fd, FcntlArg::F_SETFL(flags))
        });
        set.map(drop).map_err(|errno| ServeError { errno: Errno::of(errno) })
    }

    /// Sleeps until there is something to read, or nothing to come; for a descriptor in non-blocking mode.
    fn wait_readable(&self) {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        // Whatever it says, the next read knows better.
        let _ = nix::poll::poll(&mut fds, PollTimeout::NONE);
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The kinds of odd messages that are logged.
#[derive(Clone, Copy)]
pub(crate) enum Report {
    Unknown,
    Header,
    Length,
    Body,
    Memory,
}

#[allow(clippy::disallowed_methods, reason = "how long to look for a message is a matter of time")]
fn now() -> Instant {
    Instant::now()
}

fn retry_interrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> Result<T, Errno> {
    loop {
        match call().map_err(Errno::of) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}
