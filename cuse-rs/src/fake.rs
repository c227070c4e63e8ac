//! A strict fake kernel at the other end of a socket pair: tests of devices without `/dev/cuse`.
//!
//! Owns the kernel's side of the protocol: ids, messages byte for byte, the rounds of an ioctl, the delivery of
//! interrupts. A SOCK_SEQPACKET pair keeps messages apart as `/dev/cuse` does. It follows `fs/fuse/dev.c`,
//! `fs/fuse/file.c` and `fs/fuse/ioctl.c`, but where the kernel refuses a reply, ignores it or breaks the
//! caller, this one fails the test:
//!
//! * a reply whose length field is wrong, that is too long or too short for its request, or has an error outside
//!   -511..=-1 or data after an error;
//! * a second reply to a request, a reply to one that was never made, or a reply before CUSE_INIT was sent;
//! * ENOSYS for OPEN, POLL or INTERRUPT, which switches the operation off for the life of the connection.
//!
//! Nothing sleeps: each wait is for a message and has a deadline (10 s), after which the test fails.
//!
//! ```
//! use cuse_rs::{Caller, Device, Errno, Read, ReplyRead, fake};
//!
//! struct Hello;
//!
//! impl Device for Hello {
//!     fn read(&self, _: Caller, _: Read, reply: ReplyRead<'_>) {
//!         reply.bytes(b"hello");
//!     }
//! }
//!
//! fake::run(1, |_channel| Hello, |kernel| {
//!     let file = kernel.open(0).expect("open");
//!     assert_eq!(kernel.read(file, 64, 0).as_deref(), Ok(&b"hello"[..]));
//!     assert_eq!(kernel.write(file, b"x", 0), Err(Errno::EINVAL));
//!     kernel.release(file);
//! });
//! ```

mod check;
mod client;
mod file;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, setsockopt, shutdown, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::{read, write};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use self::check::Expected;
use crate::abi::{self, INT_REQ_BIT, IoctlFlags, Opcode};
use crate::channel::Channel;
use crate::channel::Device;
use crate::codec::Request;
use crate::cuse::DeviceOptions;
use crate::errno::Errno;
use crate::request::{Caller, Ioctl, PollHandle, Read, RequestId, Write};

pub use self::client::{ClientMemory, InitReply};

/// What a server said about one request: the bytes after the header, or the error.
pub type Answer = Result<Vec<u8>, Errno>;

const DEADLINE: Duration = Duration::from_secs(10);

/// The kernel's side of a channel.
///
/// [`send`](Self::send) and [`wait`](Self::wait) are the two halves of a system call; [`open`](Self::open) and
/// the like are whole ones.
///
/// # Panics
///
/// All methods panic, with what is wrong, when the server breaks the protocol or misses the deadline.
#[derive(Debug)]
pub struct FakeKernel {
    socket: OwnedFd,
    buffer: Vec<u8>,
    deadline: PollTimeout,
    /// Who the next requests come from.
    caller: Caller,
    next_id: RequestId,
    /// Requests on their way, and what a reply to them must look like.
    open: BTreeMap<RequestId, (Opcode, Expected)>,
    /// Replies that nobody has waited for yet.
    answers: BTreeMap<RequestId, Answer>,
    answered: BTreeSet<RequestId>,
    notifications: VecDeque<PollHandle>,
    /// How often the server wanted the INTERRUPT of a request again.
    postponed: BTreeMap<RequestId, usize>,
}

/// Runs a device on `threads` threads against a fake kernel that follows a script, then ends the connection and
/// checks that each request was answered.
///
/// # Panics
///
/// As the methods of [`FakeKernel`], and when [`Channel::serve`] fails.
pub fn run<D: Device>(
    threads: usize,
    device: impl FnOnce(&Arc<Channel>) -> D,
    script: impl FnOnce(&mut FakeKernel),
) {
    let name = "fake".parse().expect("a valid name");
    let (kernel, channel) = FakeKernel::connect(&DeviceOptions::new(name));
    let channel = Arc::new(channel);
    let device = device(&channel);
    thread::scope(|scope| {
        // The kernel moves in here: a script that panics drops it, which ends the servers.
        let mut kernel = kernel;
        let serve = || channel.serve(&device).expect("serve ends in order");
        let servers: Vec<_> = (0..threads).map(|_| scope.spawn(serve)).collect();
        script(&mut kernel);
        kernel.hang_up();
        for server in servers {
            server.join().expect("no server thread panics");
        }
        kernel.finish();
    });
}

impl FakeKernel {
    /// A kernel, and the descriptor that stands for `/dev/cuse`.
    #[track_caller]
    pub fn new() -> (Self, OwnedFd) {
        let (socket, server) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .expect("a socket pair");
        let timeout = TimeVal::milliseconds(10_000);
        setsockopt(&socket, sockopt::SendTimeout, &timeout).expect("a send timeout");
        let kernel = Self {
            socket,
            buffer: vec![0; 1 << 20],
            deadline: PollTimeout::try_from(DEADLINE).expect("a short time"),
            caller: Caller { tid: 1234, uid: 1000, gid: 1000 },
            next_id: RequestId(2),
            open: BTreeMap::new(),
            answers: BTreeMap::new(),
            answered: BTreeSet::new(),
            notifications: VecDeque::new(),
            postponed: BTreeMap::new(),
        };
        (kernel, server)
    }

    /// A kernel, and a channel to it whose handshake is done.
    #[track_caller]
    pub fn connect(options: &DeviceOptions) -> (Self, Channel) {
        let (mut kernel, server) = Self::new();
        let id = kernel.send_init(7, 38);
        let channel = options.handshake(server).expect("the handshake");
        kernel.wait_init(id);
        (kernel, channel)
    }

    /// Sets who the next requests come from. At first: thread 1234 of user and group 1000.
    pub fn set_caller(&mut self, caller: Caller) {
        self.caller = caller;
    }

    /// Sets how long to wait for each message before the test fails.
    #[track_caller]
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = PollTimeout::try_from(deadline).expect("a deadline of at most 24 days");
    }

    /// The id that the next request will have, for an interrupt that overtakes it.
    pub fn next_id(&self) -> RequestId {
        self.next_id
    }

    /// Sends a request, and returns its id. An INTERRUPT has no id of its own: it returns its target.
    #[track_caller]
    pub fn send(&mut self, request: Request<'_>) -> RequestId {
        if let Request::Interrupt(target) = request {
            let id = RequestId(target.0 | INT_REQ_BIT);
            let body = abi::InterruptIn { unique: target.0 };
            // fuse_read_interrupt fills in the ids and the length, and no caller.
            let nobody = Caller { tid: 0, uid: 0, gid: 0 };
            self.send_bytes(&message(id, Opcode::INTERRUPT, nobody, &body, &[]));
            return target;
        }
        let id = self.next_id;
        let (opcode, expected, bytes) = self.encode(id, request);
        self.next_id = RequestId(id.0 + 2);
        if opcode.has_reply() {
            self.open.insert(id, (opcode, expected));
        }
        self.send_bytes(&bytes);
        id
    }

    /// Sends bytes as they are. For a reply that may come, see [`expect_error`](Self::expect_error).
    #[track_caller]
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let sent = write(&self.socket, bytes).expect("the server takes a message");
        assert_eq!(sent, bytes.len(), "fake kernel: a message was cut");
    }

    /// Makes `id` a request to which an error is a proper reply, and nothing else: for malformed ones.
    pub fn expect_error(&mut self, id: RequestId) {
        self.open.insert(id, (Opcode(0), Expected::Error));
    }

    /// The bytes of a request as [`send`](Self::send) would send it under this id, to be cut or changed.
    pub fn bytes_of(&self, id: RequestId, request: Request<'_>) -> Vec<u8> {
        self.encode(id, request).2
    }

    /// Waits for the reply to a request.
    #[track_caller]
    pub fn wait(&mut self, id: RequestId) -> Answer {
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return answer;
            }
            let (opcode, _) = self.open.get(&id).unwrap_or_else(|| {
                panic!("fake kernel: {id:?} was never sent, or its reply was taken before")
            });
            let what = format!("a reply to {opcode:?} {}", id.0);
            self.receive_or_fail(&what);
        }
    }

    /// Waits for a poll notification.
    #[track_caller]
    pub fn wait_notification(&mut self) -> PollHandle {
        loop {
            if let Some(handle) = self.notifications.pop_front() {
                return handle;
            }
            self.receive_or_fail("a poll notification");
        }
    }

    /// Waits until the server has wanted the INTERRUPT of `target` again.
    ///
    /// While `target` is open the kernel obeys, whichever message is waited for; otherwise it does not.
    #[track_caller]
    pub fn wait_postponed(&mut self, target: RequestId) {
        while !self.postponed.contains_key(&target) {
            self.receive_or_fail("an INTERRUPT to be postponed");
        }
    }

    /// How often the server has wanted the INTERRUPT of `target` again, as far as messages have arrived.
    #[track_caller]
    pub fn times_postponed(&mut self, target: RequestId) -> usize {
        self.drain();
        self.postponed.get(&target).copied().unwrap_or_default()
    }

    /// Whether a request is unanswered, as far as messages have arrived.
    #[track_caller]
    pub fn is_open(&mut self, id: RequestId) -> bool {
        self.drain();
        self.open.contains_key(&id)
    }

    /// Ends the connection: when the server has read what was sent, its reads end.
    pub fn hang_up(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
    }

    /// Checks what has arrived, and that no request is unanswered. To be called when the server has ended.
    #[track_caller]
    pub fn finish(mut self) {
        self.drain();
        assert!(self.open.is_empty(), "fake kernel: never answered: {:?}", self.open);
    }

    fn encode(&self, id: RequestId, request: Request<'_>) -> (Opcode, Expected, Vec<u8>) {
        let caller = self.caller;
        match request {
            Request::CuseInit(init) => {
                let body = abi::CuseInitIn {
                    major: init.major,
                    minor: init.minor,
                    unused: 0,
                    flags: init.flags.bits(),
                };
                let nobody = Caller { tid: 0, uid: 0, gid: 0 };
                let bytes = message(id, Opcode::CUSE_INIT, nobody, &body, &[]);
                (Opcode::CUSE_INIT, Expected::Init, bytes)
            }
            Request::Open(open) => {
                let body = abi::OpenIn { flags: open.flags, open_flags: 0 };
                let bytes = message(id, Opcode::OPEN, caller, &body, &[]);
                (Opcode::OPEN, Expected::Open, bytes)
            }
            Request::Read(Read { file, offset, size, flags }) => {
                let read_flags = abi::READ_LOCKOWNER;
                let rest = abi::ReadIn { read_flags, ..Default::default() };
                let body = abi::ReadIn { fh: file.0, offset, size, flags, ..rest };
                let bytes = message(id, Opcode::READ, caller, &body, &[]);
                (Opcode::READ, Expected::Read { size }, bytes)
            }
            Request::Write(Write { file, offset, data, flags }) => {
                let size = length(&data);
                let body = abi::WriteIn { fh: file.0, offset, size, flags, ..Default::default() };
                let bytes = message(id, Opcode::WRITE, caller, &body, &data);
                (Opcode::WRITE, Expected::Write { size }, bytes)
            }
            Request::Ioctl(ioctl) => {
                let Ioctl { file, command, argument, flags, input, output_size } = ioctl;
                let body = abi::IoctlIn {
                    fh: file.0,
                    flags: flags.bits(),
                    cmd: command,
                    arg: argument,
                    in_size: length(input),
                    out_size: output_size,
                };
                let unrestricted = flags.contains(IoctlFlags::UNRESTRICTED);
                let bytes = message(id, Opcode::IOCTL, caller, &body, input);
                (Opcode::IOCTL, Expected::Ioctl { output_size, unrestricted }, bytes)
            }
            Request::Poll(poll) => {
                let flags = match poll.notify {
                    Some(_) => abi::PollFlags::SCHEDULE_NOTIFY,
                    None => abi::PollFlags::empty(),
                };
                let body = abi::PollIn {
                    fh: poll.file.0,
                    kh: poll.notify.map_or(poll.file.0, |handle| handle.0),
                    flags: flags.bits(),
                    events: poll.events,
                };
                let bytes = message(id, Opcode::POLL, caller, &body, &[]);
                (Opcode::POLL, Expected::Poll, bytes)
            }
            Request::Release(file) => {
                let body = abi::ReleaseIn { fh: file.0, ..Default::default() };
                let nobody = Caller { tid: 0, uid: 0, gid: 0 };
                let bytes = message(id, Opcode::RELEASE, nobody, &body, &[]);
                (Opcode::RELEASE, Expected::Empty, bytes)
            }
            Request::Interrupt(target) => {
                let body = abi::InterruptIn { unique: target.0 };
                let bytes = message(id, Opcode::INTERRUPT, caller, &body, &[]);
                (Opcode::INTERRUPT, Expected::Error, bytes)
            }
            Request::Destroy => {
                let bytes = message(id, Opcode::DESTROY, caller, &(), &[]);
                (Opcode::DESTROY, Expected::Empty, bytes)
            }
            // As the kernel sends it, with the arguments of a retrieval of nothing.
            Request::Retrieved => (
                Opcode::NOTIFY_REPLY,
                Expected::Empty,
                message(id, Opcode::NOTIFY_REPLY, caller, &[0_u64; 5], &[]),
            ),
            Request::Silent => {
                let bytes = message(id, Opcode::FORGET, caller, &1_u64, &[]);
                (Opcode::FORGET, Expected::Empty, bytes)
            }
            Request::Init(init) => file::encode_init(id, init),
            Request::File(request) => file::encode(id, caller, request),
            Request::Unknown => {
                let opcode = Opcode(12345);
                (opcode, Expected::Error, message(id, opcode, caller, &(), &[]))
            }
        }
    }

    #[track_caller]
    fn receive_or_fail(&mut self, what: &str) {
        assert!(self.receive(self.deadline), "fake kernel: no message while waiting for {what}");
    }

    /// Takes what has arrived.
    #[track_caller]
    fn drain(&mut self) {
        while self.receive(PollTimeout::ZERO) {}
    }

    /// Takes one message; `false`: none came in time, or none can come any more.
    #[track_caller]
    fn receive(&mut self, timeout: PollTimeout) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout).map_err(Errno::of) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(Errno::EINTR) => return true,
            Err(errno) => panic!("fake kernel: polling the socket: {errno}"),
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let length = match read(&self.socket, &mut buffer).map_err(Errno::of) {
            Ok(length) => length,
            Err(Errno::ECONNRESET) => 0,
            Err(errno) => panic!("fake kernel: reading the socket: {errno}"),
        };
        if length > 0 {
            self.take(&buffer[..length]);
        }
        self.buffer = buffer;
        length > 0
    }

    /// Takes one message of the server (`fuse_dev_do_write`).
    #[track_caller]
    fn take(&mut self, bytes: &[u8]) {
        let (header, body) = abi::OutHeader::read_from_prefix(bytes).unwrap_or_else(|_| {
            panic!("fake kernel: {} bytes are too few for a reply", bytes.len())
        });
        assert_eq!(
            usize::try_from(header.len),
            Ok(bytes.len()),
            "fake kernel: the length field of {header:?} is not the length of the message"
        );
        let id = RequestId(header.unique);
        if id == RequestId(0) {
            return self.notifications.push_back(check::notification(&header, body));
        }
        let error = check::error(&header, body);
        if header.unique & INT_REQ_BIT != 0 {
            return self.take_interrupt_reply(RequestId(header.unique & !INT_REQ_BIT), error);
        }
        let Some((opcode, expected)) = self.open.remove(&id) else {
            let problem = if self.answered.contains(&id) {
                "a second reply to"
            } else {
                "a reply to unknown"
            };
            panic!("fake kernel: {problem} {id:?}: {header:?}");
        };
        self.answered.insert(id);
        check::reply(opcode, expected, error, body);
        self.answers.insert(id, error.map_or_else(|| Ok(body.to_vec()), Err));
    }

    /// INTERRUPT needs no reply; EAGAIN brings it again while its target is open (`queue_interrupt`).
    #[track_caller]
    fn take_interrupt_reply(&mut self, target: RequestId, error: Option<Errno>) {
        assert_ne!(
            error,
            Some(Errno::ENOSYS),
            "fake kernel: ENOSYS for INTERRUPT would switch interrupts off for good"
        );
        if error == Some(Errno::EAGAIN) {
            *self.postponed.entry(target).or_default() += 1;
            if self.open.contains_key(&target) {
                self.send(Request::Interrupt(target));
            }
        }
    }
}

impl Drop for FakeKernel {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.drain();
        }
    }
}

/// A message of the kernel.
fn message<T: IntoBytes + Immutable>(
    id: RequestId,
    opcode: Opcode,
    caller: Caller,
    body: &T,
    data: &[u8],
) -> Vec<u8> {
    let header = abi::InHeader {
        len: u32::try_from(size_of::<abi::InHeader>() + size_of::<T>() + data.len())
            .expect("a message is small"),
        opcode: opcode.0,
        unique: id.0,
        uid: caller.uid,
        gid: caller.gid,
        pid: caller.tid,
        ..Default::default()
    };
    [header.as_bytes(), body.as_bytes(), data].concat()
}

fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).expect("data is small")
}
