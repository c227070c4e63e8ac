//! Decodes bytes of the channel into requests, and encodes replies into bytes.
//!
//! Pure: knows no file and no thread. [`decode`] takes one message as one `read` of the channel brings it;
//! [`Reply::with_pieces`] gives the pieces that one `writev` sends. What is accepted and sent follows
//! `fuse_dev_do_read`, `fuse_dev_do_write` and `copy_out_args` of `fs/fuse/dev.c`, and `fs/fuse/ioctl.c`.
//!
//! Invariants:
//!
//! * No input panics.
//! * Decoding copies headers and borrows data; encoding borrows data. Nothing is allocated, unless a reply has more than
//!   [`MAX_PIECES`] pieces.
//! * A reply's length field is the length of its pieces. An error is in -511..=-1 and has no data.

use std::io::IoSlice;

use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{self, CuseInitFlags, InitFlags, Opcode, OpenFlags, SetattrFlags};
use crate::errno::Errno;
use crate::request::{
    Caller, FileHandle, Ioctl, IoctlFlags, Open, Payload, Poll, PollHandle, Read, RequestId,
    UserRange, Write,
};

/// Replies with up to this many pieces of data go out without a copy.
pub const MAX_PIECES: usize = 8;

/// One message of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message<'a> {
    /// The id that the reply repeats. Odd for INTERRUPT, even for all others (`FUSE_INT_REQ_BIT`).
    pub id: RequestId,
    /// What is asked, as a number.
    pub opcode: Opcode,
    /// Who asks.
    pub caller: Caller,
    /// Whether it is a READ that fills the page cache, such as a fault in a private mapping of a file.
    pub is_paging: bool,
    /// What is asked.
    pub request: Request<'a>,
}

/// What the kernel asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request<'a> {
    /// CUSE_INIT, the first message on `/dev/cuse` and only there.
    CuseInit(CuseInit),
    /// OPEN.
    Open(Open),
    /// READ.
    Read(Read),
    /// WRITE.
    Write(Write<'a>),
    /// IOCTL.
    Ioctl(Ioctl<'a>),
    /// POLL.
    Poll(Poll),
    /// RELEASE.
    Release(FileHandle),
    /// INTERRUPT, of the request with this id.
    Interrupt(RequestId),
    /// DESTROY: the connection ends; the kernel waits for an empty reply.
    Destroy,
    /// INIT, the first message of a FUSE mount and only there.
    Init(Init),
    /// What only the file of a FUSE mount is asked.
    File(FileRequest),
    /// NOTIFY_REPLY, to the [`notify_retrieve`] with the id of the message.
    Retrieved,
    /// FORGET and the others without a reply: nothing to do.
    Silent,
    /// Anything else; to be answered with ENOSYS.
    Unknown,
}

/// What the kernel offers in CUSE_INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CuseInit {
    /// Major version of the protocol.
    pub major: u32,
    /// Minor version of the protocol.
    pub minor: u32,
    /// What the kernel can do.
    pub flags: CuseInitFlags,
}

impl CuseInit {
    /// A version and flags.
    #[must_use]
    pub const fn new(major: u32, minor: u32, flags: CuseInitFlags) -> Self {
        Self { major, minor, flags }
    }
}

/// What the kernel offers in INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Init {
    /// Major version of the protocol.
    pub major: u32,
    /// Minor version of the protocol.
    pub minor: u32,
    /// What the kernel can do.
    pub flags: InitFlags,
}

impl Init {
    /// A version and flags.
    #[must_use]
    pub const fn new(major: u32, minor: u32, flags: InitFlags) -> Self {
        Self { major, minor, flags }
    }
}

/// What a file is asked and a character device is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileRequest {
    /// GETATTR.
    Getattr,
    /// SETATTR.
    Setattr(Setattr),
    /// STATFS.
    Statfs,
    /// FSYNC.
    Fsync,
    /// One of [`Opcode::is_optional`]; to be answered with ENOSYS.
    Optional,
}

/// What SETATTR sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setattr {
    /// Which of the following, and which of the times.
    pub valid: SetattrFlags,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last access: seconds and nanoseconds.
    pub atime: (u64, u32),
    /// Time of the last change: seconds and nanoseconds.
    pub mtime: (u64, u32),
}

impl Setattr {
    /// Sets so much, to 0.
    #[must_use]
    pub const fn new(valid: SetattrFlags) -> Self {
        Self { valid, mode: 0, uid: 0, gid: 0, atime: (0, 0), mtime: (0, 0) }
    }
}

/// Why a message could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Shorter than its header: nobody can be answered.
    #[error("a message of {length} bytes is too short: its header has {}", size_of::<abi::InHeader>())]
    Header {
        /// Length of what was read.
        length: usize,
    },
    /// The length that the header states is not the length that was read.
    #[error("{opcode:?}: the header states {stated} bytes, {length} arrived")]
    Length {
        /// The request.
        id: RequestId,
        /// Its kind.
        opcode: Opcode,
        /// The length in the header.
        stated: u32,
        /// Length of what was read.
        length: usize,
    },
    /// The message ends before its arguments do.
    #[error("{opcode:?}: {length} bytes after the header, {needed} needed")]
    Body {
        /// The request.
        id: RequestId,
        /// Its kind.
        opcode: Opcode,
        /// How many bytes the arguments have at least.
        needed: usize,
        /// How many there are.
        length: usize,
    },
}

impl DecodeError {
    /// The request to answer with an error, if there is one that waits.
    pub fn waiting(&self) -> Option<RequestId> {
        match *self {
            Self::Header { .. } => None,
            // A reply with id 0 would be a notification.
            Self::Length { id, opcode, .. } | Self::Body { id, opcode, .. } => {
                (opcode.has_reply() && id != RequestId(0)).then_some(id)
            }
        }
    }
}

/// Decodes the bytes of one `read` of the channel.
///
/// # Errors
///
/// [`DecodeError`] for bytes that the kernel does not send: truncated ones, or ones with a wrong length.
/// Bytes after the arguments are ignored, since the protocol grows there.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    decode_parts(bytes, None)
}

/// The same for a WRITE whose data lies elsewhere than its headers, which are `bytes`.
pub(crate) fn decode_write<'a>(
    bytes: &'a [u8],
    data: Payload<'a>,
) -> Result<Message<'a>, DecodeError> {
    decode_parts(bytes, Some(data))
}

fn decode_parts<'a>(
    bytes: &'a [u8],
    apart: Option<Payload<'a>>,
) -> Result<Message<'a>, DecodeError> {
    let length = bytes.len() + apart.map_or(0, |apart| apart.len());
    let (header, body) =
        abi::InHeader::read_from_prefix(bytes).map_err(|_| DecodeError::Header { length })?;
    let id = RequestId(header.unique);
    let opcode = Opcode(header.opcode);
    if usize::try_from(header.len) != Ok(length) {
        return Err(DecodeError::Length { id, opcode, stated: header.len, length });
    }
    let caller = Caller { tid: header.pid, uid: header.uid, gid: header.gid };
    let body = Body { id, opcode, bytes: body, apart };
    let request = decode_body(body)?;
    let is_paging = matches!(request, Request::Read(_)) && {
        let (read, _): (abi::ReadIn, _) = body.split()?;
        read.read_flags & abi::READ_LOCKOWNER == 0
    };
    Ok(Message { id, opcode, caller, is_paging, request })
}

fn decode_body(body: Body<'_>) -> Result<Request<'_>, DecodeError> {
    Ok(match body.opcode {
        Opcode::CUSE_INIT => {
            let (init, _): (abi::CuseInitIn, _) = body.split()?;
            let flags = CuseInitFlags::from_bits_retain(init.flags);
            Request::CuseInit(CuseInit { major: init.major, minor: init.minor, flags })
        }
        Opcode::OPEN => {
            let (open, _): (abi::OpenIn, _) = body.split()?;
            Request::Open(Open { flags: open.flags })
        }
        Opcode::READ => {
            let (read, _): (abi::ReadIn, _) = body.split()?;
            Request::Read(Read {
                file: FileHandle(read.fh),
                offset: read.offset,
                size: read.size,
                flags: read.flags,
            })
        }
        Opcode::WRITE => {
            let (write, tail): (abi::WriteIn, _) = body.split()?;
            Request::Write(Write {
                file: FileHandle(write.fh),
                offset: write.offset,
                data: body.payload(tail, write.size)?,
                flags: write.flags,
            })
        }
        Opcode::IOCTL => {
            let (ioctl, tail): (abi::IoctlIn, _) = body.split()?;
            Request::Ioctl(Ioctl {
                file: FileHandle(ioctl.fh),
                command: ioctl.cmd,
                argument: ioctl.arg,
                flags: IoctlFlags::from_bits_retain(ioctl.flags),
                input: body.data(tail, ioctl.in_size)?,
                output_size: ioctl.out_size,
            })
        }
        Opcode::POLL => {
            let (poll, _): (abi::PollIn, _) = body.split()?;
            let flags = abi::PollFlags::from_bits_retain(poll.flags);
            Request::Poll(Poll {
                file: FileHandle(poll.fh),
                events: poll.events,
                notify: flags
                    .contains(abi::PollFlags::SCHEDULE_NOTIFY)
                    .then_some(PollHandle(poll.kh)),
            })
        }
        Opcode::RELEASE => {
            let (release, _): (abi::ReleaseIn, _) = body.split()?;
            Request::Release(FileHandle(release.fh))
        }
        Opcode::INTERRUPT => {
            let (interrupt, _): (abi::InterruptIn, _) = body.split()?;
            Request::Interrupt(RequestId(interrupt.unique))
        }
        Opcode::DESTROY => Request::Destroy,
        Opcode::INIT => {
            let (init, _): (abi::InitIn, _) = body.split()?;
            let flags = InitFlags::from_bits_retain(init.flags);
            Request::Init(Init { major: init.major, minor: init.minor, flags })
        }
        Opcode::NOTIFY_REPLY => Request::Retrieved,
        Opcode::GETATTR => Request::File(FileRequest::Getattr),
        Opcode::SETATTR => {
            let (setattr, _): (abi::SetattrIn, _) = body.split()?;
            Request::File(FileRequest::Setattr(Setattr {
                valid: SetattrFlags::from_bits_retain(setattr.valid),
                mode: setattr.mode,
                uid: setattr.uid,
                gid: setattr.gid,
                atime: (setattr.atime, setattr.atimensec),
                mtime: (setattr.mtime, setattr.mtimensec),
            }))
        }
        Opcode::STATFS => Request::File(FileRequest::Statfs),
        Opcode::FSYNC => Request::File(FileRequest::Fsync),
        opcode if opcode.is_optional() => Request::File(FileRequest::Optional),
        opcode if opcode.has_reply() => Request::Unknown,
        _ => Request::Silent,
    })
}

/// What follows the header of a message.
#[derive(Clone, Copy)]
struct Body<'a> {
    id: RequestId,
    opcode: Opcode,
    bytes: &'a [u8],
    /// What follows `bytes`, of a WRITE whose headers are all of these.
    apart: Option<Payload<'a>>,
}

impl<'a> Body<'a> {
    /// The fixed arguments and what follows them.
    fn split<T: FromBytes>(self) -> Result<(T, &'a [u8]), DecodeError> {
        T::read_from_prefix(self.bytes).map_err(|_| self.too_short(size_of::<T>()))
    }

    /// The first `size` bytes of `tail`, the part after the fixed arguments.
    fn data(self, tail: &'a [u8], size: u32) -> Result<&'a [u8], DecodeError> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let fixed = self.bytes.len() - tail.len();
        tail.get(..size).ok_or_else(|| self.too_short(fixed.saturating_add(size)))
    }

    /// What is written, `size` bytes of it.
    fn payload(self, tail: &'a [u8], size: u32) -> Result<Payload<'a>, DecodeError> {
        match self.apart {
            None => Ok(self.data(tail, size)?.into()),
            Some(apart) if usize::try_from(size) == Ok(apart.len()) => Ok(apart),
            Some(apart) => {
                // What follows the data is ignored.
                let (apart, fixed) = (apart.slice(), self.bytes.len());
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let data = apart.get(..size);
                Ok(data.ok_or_else(|| self.too_short(fixed.saturating_add(size)))?.into())
            }
        }
    }

    fn too_short(self, needed: usize) -> DecodeError {
        let length = self.bytes.len() + self.apart.map_or(0, |apart| apart.len());
        DecodeError::Body { id: self.id, opcode: self.opcode, needed, length }
    }
}

/// What a server says about one request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Reply<'a> {
    /// The request failed.
    Error(Errno),
    /// The request is done; RELEASE and DESTROY have no more to say.
    Done,
    /// To CUSE_INIT.
    CuseInit(&'a abi::CuseInitOut, &'a [u8]),
    /// To INIT.
    Init(&'a abi::InitOut),
    /// To GETATTR and SETATTR.
    Attributes(&'a abi::AttrOut),
    /// To STATFS.
    Statfs(&'a abi::Kstatfs),
    /// To OPEN: the file's name, and how a FUSE mount shall treat it.
    Opened(FileHandle, OpenFlags),
    /// To READ: the data, to be joined.
    Data(&'a [IoSlice<'a>]),
    /// To WRITE: how many bytes were taken.
    Written(u32),
    /// To IOCTL: what `ioctl(2)` returns, and the data for its output ranges.
    Ioctl {
        /// The result of the system call.
        result: i32,
        /// What to store at the caller.
        output: &'a [u8],
    },
    /// To IOCTL: ask again with these ranges. More than [`abi::IOCTL_MAX_IOV`] ranges become ENOMEM, as in
    /// `fuse_do_ioctl`.
    Retry {
        /// What to fetch from the caller.
        input: &'a [UserRange],
        /// Where there will be something to store.
        output: &'a [UserRange],
    },
    /// To POLL: the events that hold now.
    Ready(u32),
}

impl Reply<'_> {
    /// Calls `send` with the bytes of the reply to the request `id`, in pieces, and passes on what it returns.
    pub fn with_pieces<R>(&self, id: RequestId, send: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        match *self {
            Self::Error(errno) => frame(id, -errno.number(), &[], send),
            Self::Done => frame(id, 0, &[], send),
            Self::CuseInit(init, info) => {
                frame(id, 0, &[IoSlice::new(init.as_bytes()), IoSlice::new(info)], send)
            }
            Self::Init(init) => frame(id, 0, &[IoSlice::new(init.as_bytes())], send),
            Self::Attributes(attr) => frame(id, 0, &[IoSlice::new(attr.as_bytes())], send),
            Self::Statfs(statfs) => frame(id, 0, &[IoSlice::new(statfs.as_bytes())], send),
            Self::Opened(file, flags) => {
                let open =
                    abi::OpenOut { fh: file.0, open_flags: flags.bits(), ..Default::default() };
                frame(id, 0, &[IoSlice::new(open.as_bytes())], send)
            }
            Self::Data(pieces) => frame(id, 0, pieces, send),
            Self::Written(size) => {
                let write = abi::WriteOut { size, ..Default::default() };
                frame(id, 0, &[IoSlice::new(write.as_bytes())], send)
            }
            Self::Ioctl { result, output } => {
                let ioctl = abi::IoctlOut { result, ..Default::default() };
                frame(id, 0, &[IoSlice::new(ioctl.as_bytes()), IoSlice::new(output)], send)
            }
            Self::Retry { input, output } => retry(id, input, output, send),
            Self::Ready(revents) => {
                let poll = abi::PollOut { revents, ..Default::default() };
                frame(id, 0, &[IoSlice::new(poll.as_bytes())], send)
            }
        }
    }
}

/// Calls `send` with the bytes of FUSE_NOTIFY_POLL, in pieces: a message with id 0 whose error is its kind.
pub fn notify_poll<R>(handle: PollHandle, send: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
    let wakeup = abi::NotifyPollWakeupOut { kh: handle.0 };
    frame(RequestId(0), abi::NOTIFY_POLL, &[IoSlice::new(wakeup.as_bytes())], send)
}

/// Calls `send` with the bytes of a FUSE_NOTIFY_RETRIEVE of nothing, in pieces. The kernel queues a NOTIFY_REPLY with this id.
pub fn notify_retrieve<R>(id: RequestId, send: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
    let retrieve =
        abi::NotifyRetrieveOut { notify_unique: id.0, nodeid: abi::ROOT_ID, ..Default::default() };
    frame(RequestId(0), abi::NOTIFY_RETRIEVE, &[IoSlice::new(retrieve.as_bytes())], send)
}

fn retry<R>(
    id: RequestId,
    input: &[UserRange],
    output: &[UserRange],
    send: impl FnOnce(&[IoSlice<'_>]) -> R,
) -> R {
    let mut iovecs = [abi::IoctlIovec::default(); abi::IOCTL_MAX_IOV];
    let Some(used) = iovecs.get_mut(..input.len().saturating_add(output.len())) else {
        return frame(id, -Errno::ENOMEM.number(), &[], send);
    };
    for (iovec, range) in used.iter_mut().zip(input.iter().chain(output)) {
        *iovec = abi::IoctlIovec { base: range.address, len: range.length as u64 };
    }
    let ioctl = abi::IoctlOut {
        result: 0,
        flags: IoctlFlags::RETRY.bits(),
        in_iovs: count(input),
        out_iovs: count(output),
    };
    frame(id, 0, &[IoSlice::new(ioctl.as_bytes()), IoSlice::new(used.as_bytes())], send)
}

/// Puts the header before `body`.
fn frame<R>(
    id: RequestId,
    error: i32,
    body: &[IoSlice<'_>],
    send: impl FnOnce(&[IoSlice<'_>]) -> R,
) -> R {
    let mut pieces = [IoSlice::new(&[]); 1 + MAX_PIECES];
    let Some(used) = pieces.get_mut(..=body.len()) else {
        let joined = body.iter().flat_map(|piece| piece.iter().copied()).collect::<Vec<u8>>();
        return frame(id, error, &[IoSlice::new(&joined)], send);
    };
    let length = size_of::<abi::OutHeader>() + body.iter().map(|piece| piece.len()).sum::<usize>();
    // The kernel refuses a length that is not the one of the pieces; it takes far less than 4 GiB anyway.
    let len = u32::try_from(length).unwrap_or(u32::MAX);
    let header = abi::OutHeader { len, error, unique: id.0 };
    used[0] = IoSlice::new(header.as_bytes());
    used[1..].copy_from_slice(body);
    send(used)
}

fn count(ranges: &[UserRange]) -> u32 {
    u32::try_from(ranges.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
