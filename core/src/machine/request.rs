//! What goes into the core and what comes out of it.
//!
//! A front end turns each system call of a client into one [`Request`]; the core answers each, at once or later,
//! with one [`Outcome`]. Nothing else passes between them.

use alloc::{boxed::Box, string::String, vec::Vec};

use bytes::Bytes;
use zerocopy::IntoBytes;

use super::{Answer, Event, Forward, Look, NetdevRequest, TunnelId, WaitId};
use crate::{
    abi::tun::{IfReq, SockFprog},
    datagram::Head,
    errno::Errno,
};

/// Which front end a request came through: its index in the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Origin(pub u8);

/// One request, as its front end numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct RequestId {
    /// The front end.
    pub origin: Origin,
    /// The number the front end knows the request by.
    pub unique: u64,
}

/// One open file description of the device (kernel: `tun_file`). Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct FileId(pub u64);

/// What a front end wakes a poller by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct WakeHandle(pub u64);

/// The network namespace that tunnels are named in: the inode number of the opener's `/proc/PID/ns/net`, or 0 where
/// that could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Scope(pub u64);

/// The process that opened a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Opener {
    /// Process id, 0 where it cannot be seen from here.
    pub pid: u32,
    /// Its command name (`/proc/PID/comm`), empty where it cannot be seen.
    pub command: String,
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Its network namespace at the time.
    pub scope: Scope,
}

/// A system call of a client.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Request {
    /// By which it is answered.
    pub id: RequestId,
    /// What is asked.
    pub op: Op,
}

/// What a client asks.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub enum Op {
    /// `open(2)`; answered with [`Reply::Opened`].
    Open {
        /// `O_*`.
        flags: u32,
        /// Who opens.
        opener: Opener,
    },
    /// `ioctl(2)`; answered with [`Reply::Ioctl`], or [`Reply::Fetch`] when the caller's memory is needed first.
    Ioctl(FileId, IoctlCall),
    /// `read(2)`; answered with [`Reply::Read`], now or when there is a datagram.
    Read(FileId, ReadCall),
    /// `write(2)`; answered with [`Reply::Written`].
    Write(FileId, WriteCall),
    /// `poll(2)`, `select(2)` or `epoll(7)`; answered with [`Reply::Ready`].
    Poll {
        /// The file.
        file: FileId,
        /// Somebody sleeps on it: from now on every event on the file yields [`Output::Wake`].
        arm: Option<WakeHandle>,
    },
    /// The last `close(2)`; answered with [`Reply::Closed`].
    Close(FileId),
}

/// The arguments of one `ioctl(2)`.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct IoctlCall {
    /// The full 32-bit command.
    pub command: u32,
    /// The third argument: a value, or an address in the caller.
    pub argument: u64,
    /// The caller is a 32-bit program.
    pub compat: bool,
    /// What the caller may do; `None`: everything.
    pub credentials: Option<Box<Credentials>>,
    /// What was fetched from the caller, as the last [`Reply::Fetch`] asked, joined; empty before.
    #[cfg_attr(feature = "log", serde(with = "crate::serial"))]
    pub input: Bytes,
    /// How many bytes can be stored in the caller, as the last [`Reply::Fetch`] asked; 0 before.
    pub output_room: usize,
}

/// What the kernel looks at to permit TUNSETIFF, of the thread that calls it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct Credentials {
    /// It has `CAP_NET_ADMIN` in the network namespace of the file.
    pub net_admin: bool,
    /// It has that in the initial user namespace.
    pub is_initial_admin: bool,
    /// Its effective user id; `u32::MAX` if it cannot be told.
    pub uid: u32,
    /// Its supplementary group ids, and the effective one, which is the last.
    pub groups: Vec<u32>,
}

/// A range of the caller's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub struct UserRange {
    /// Its address.
    pub address: u64,
    /// Its length in bytes; 0: there is none.
    pub length: usize,
}

/// The arguments of one `read(2)`, `readv(2)` or `pread(2)`.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct ReadCall {
    /// Room in the caller's buffer, in bytes.
    pub limit: usize,
    /// How many bytes earlier parts of the same system call were given. Not 0 means that the kernel split the call: what
    /// is left of that datagram is due, never another one.
    pub offset: u64,
    /// The file had `O_NONBLOCK` at the time of the call.
    pub nonblock: bool,
}

impl ReadCall {
    /// It is answered at once, and takes a datagram if there is one.
    pub(super) fn is_look(&self) -> bool {
        self.nonblock && self.limit > 0 && self.offset == 0
    }
}

/// The arguments of one `write(2)`, `writev(2)` or `pwrite(2)`.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "log", derive(serde::Serialize, serde::Deserialize))]
pub struct WriteCall {
    /// Everything written: headers and datagram.
    #[cfg_attr(feature = "log", serde(with = "crate::serial"))]
    pub data: Bytes,
    /// As in [`ReadCall::offset`].
    pub offset: u64,
    /// The file had `O_NONBLOCK` at the time of the call.
    pub nonblock: bool,
}

/// How a request ended: what the client sees, nothing else.
pub type Outcome = Result<Reply, Errno>;

/// How a request succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub enum Reply {
    /// To `Open`: the file by which it is known from now on.
    Opened(FileId),
    /// To `Ioctl`: its return value, and what is stored at the caller's address.
    Ioctl {
        /// The return value, 0 or positive.
        result: i32,
        /// The bytes to store.
        output: IoctlOutput,
    },
    /// To `Ioctl`: ask again with these ranges fetched, and room for output.
    Fetch {
        /// What to fetch: the argument, and what it points to.
        input: [UserRange; 2],
        /// Where something will be stored.
        output: UserRange,
    },
    /// To `Read`: headers, then the datagram, together no longer than the limit.
    Read {
        /// PI and vnet header.
        head: Head,
        /// The datagram, cut to what fits.
        #[cfg_attr(feature = "log", serde(with = "crate::serial"))]
        body: Bytes,
    },
    /// To `Write`: the count, headers included.
    Written(usize),
    /// To `Poll`: the `POLL*` bits that are ready.
    Ready(u32),
    /// To `Close`.
    Closed,
}

/// What an ioctl stores in the caller: at most a `struct ifreq`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IoctlOutput {
    bytes: [u8; IfReq::SIZE],
    length: u8,
}

impl IoctlOutput {
    /// Nothing is stored.
    pub const NONE: Self = Self { bytes: [0; IfReq::SIZE], length: 0 };

    /// The bytes to store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl From<&IfReq> for IoctlOutput {
    fn from(request: &IfReq) -> Self {
        Self::copied(request.as_bytes())
    }
}

impl From<&SockFprog> for IoctlOutput {
    fn from(program: &SockFprog) -> Self {
        Self::copied(program.as_bytes())
    }
}

impl From<u32> for IoctlOutput {
    fn from(value: u32) -> Self {
        Self::copied(&value.to_ne_bytes())
    }
}

impl From<i32> for IoctlOutput {
    fn from(value: i32) -> Self {
        Self::copied(&value.to_ne_bytes())
    }
}

impl IoctlOutput {
    /// The caller passes at most 40 bytes.
    fn copied(from: &[u8]) -> Self {
        let mut output = Self::NONE;
        for (to, from) in output.bytes.iter_mut().zip(from) {
            *to = *from;
            output.length += 1;
        }
        output
    }
}

#[cfg(feature = "log")]
impl serde::Serialize for IoctlOutput {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        crate::serial::serialize(self.as_bytes(), to)
    }
}

impl core::fmt::Debug for IoctlOutput {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_bytes().fmt(f)
    }
}

/// Work the core hands out; see [`Core::take_outputs`](super::Core::take_outputs).
#[derive(Clone, Debug)]
#[cfg_attr(feature = "log", derive(serde::Serialize))]
pub enum Output {
    /// Answer a request: exactly once for each.
    Complete(RequestId, Outcome),
    /// Tell the pollers of a file to look again.
    Wake(Origin, WakeHandle),
    /// Answer the harness.
    Answer(WaitId, Answer),
    /// Tell a peer that its tunnel has something to take, or is gone.
    Notify(super::PeerId),
    /// Ask the owner of network devices.
    Netdev(NetdevRequest),
    /// Hand the kernel a datagram.
    Forward(Box<Forward>),
    /// Look how a tunnel's network device is; then the request comes again, by [`Looked`](super::input::Looked).
    Refresh(Look, Box<Request>),
    /// Take what the kernel has sent by the queue of a file; [`NetdevDatagram`](super::input::NetdevDatagram) brings it.
    Receive(TunnelId, FileId),
    /// A file of that namespace was closed, or could not be opened.
    Left(Scope),
    /// Tell observers; only while there are any.
    Event(Event),
}
