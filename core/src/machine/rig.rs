//! Scenarios for the core: clients and the harness in one line each, time as the test says.

use alloc::{
    borrow::ToOwned,
    boxed::Box,
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::time::Duration;

use bytes::Bytes;

use super::{input::*, *};
use crate::{
    abi::tun::{IfFlags, IfReq, Name, ioctl},
    errno::Errno,
    log::{self, Record},
};

/// Flags of TUNSETIFF and TUNSETQUEUE, as a client stores them.
pub(super) mod flags {
    use crate::abi::tun::IfFlags;

    pub(in crate::machine) const TUN: u16 = IfFlags::TUN.bits();
    pub(in crate::machine) const TAP: u16 = IfFlags::TAP.bits();
    pub(in crate::machine) const TUN_NO_PI: u16 = TUN | IfFlags::NO_PI.bits();
    pub(in crate::machine) const TAP_NO_PI: u16 = TAP | IfFlags::NO_PI.bits();
    pub(in crate::machine) const MULTI_QUEUE: u16 = IfFlags::MULTI_QUEUE.bits();
    pub(in crate::machine) const MQ: u16 = TUN_NO_PI | MULTI_QUEUE;
    pub(in crate::machine) const VNET_HDR: u16 = IfFlags::VNET_HDR.bits();
    pub(in crate::machine) const ATTACH_QUEUE: u16 = IfFlags::ATTACH_QUEUE.bits();
    pub(in crate::machine) const DETACH_QUEUE: u16 = IfFlags::DETACH_QUEUE.bits();
    pub(in crate::machine) const PERSIST: u16 = IfFlags::PERSIST.bits();
}

/// Of every core in a test.
const SEED: u64 = 1;

/// A core, and everything it has put out so far. When it is dropped another core is given the same inputs, and must put
/// out the same.
pub(super) struct Rig {
    pub(super) core: Core,
    pub(super) now: Instant,
    /// Each input with its time, and the outputs that came of it.
    log: Vec<(Instant, Input, Vec<Output>)>,
    last_request: u64,
    /// The front end through which requests come.
    pub(super) origin: Origin,
    /// Requests that were answered, in that order.
    pub(super) completed: Vec<RequestId>,
    outcomes: BTreeMap<u64, Outcome>,
    pub(super) wakes: usize,
    answers: BTreeMap<WaitId, Answer>,
    pub(super) notified: usize,
    pub(super) events: Vec<Event>,
    pub(super) netdev_requests: Vec<NetdevRequest>,
    pub(super) forwards: Vec<Forward>,
    pub(super) looks: Vec<Look>,
    pub(super) receives: Vec<(TunnelId, FileId)>,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(super) fn with_limits(limits: Limits) -> Self {
        Self {
            core: Core::new(limits, SEED),
            now: Instant::ORIGIN,
            log: Vec::new(),
            last_request: 0,
            origin: Origin(0),
            completed: Vec::new(),
            outcomes: BTreeMap::new(),
            wakes: 0,
            answers: BTreeMap::new(),
            notified: 0,
            events: Vec::new(),
            netdev_requests: Vec::new(),
            forwards: Vec::new(),
            looks: Vec::new(),
            receives: Vec::new(),
        }
    }

    pub(super) fn at(&self, ms: u64) -> Instant {
        Instant::ORIGIN + Duration::from_millis(ms)
    }

    pub(super) fn pass_until(&mut self, ms: u64) {
        self.now = self.at(ms);
        self.handle(Timeout {});
    }

    /// Gives the core an input, and keeps what comes of it.
    pub(super) fn handle<I: Enter>(&mut self, input: I) -> I::Answer {
        let logged = input.clone().into();
        let answer = self.core.handle(self.now, input);
        let mut outputs = Vec::new();
        self.core.take_outputs(&mut outputs);
        self.log.push((self.now, logged, outputs.clone()));
        self.keep(outputs);
        answer
    }

    /// Each input so far, and the outputs that came of it.
    pub(super) fn log(&self) -> impl Iterator<Item = (&Input, &[Output])> {
        self.log.iter().map(|(_, input, outputs)| (input, &**outputs))
    }

    fn keep(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Complete(id, outcome) => {
                    self.completed.push(id);
                    let before = self.outcomes.insert(id.unique, outcome);
                    assert!(before.is_none(), "request {} was answered twice", id.unique);
                }
                Output::Wake(..) => self.wakes += 1,
                Output::Answer(wait, answer) => {
                    assert!(
                        self.answers.insert(wait, answer).is_none(),
                        "{wait:?} was answered twice"
                    );
                }
                Output::Notify(_) => self.notified += 1,
                Output::Netdev(request) => self.netdev_requests.push(request),
                Output::Forward(forward) => self.forwards.push(*forward),
                Output::Refresh(look, request) => {
                    self.looks.push(look);
                    self.handle(Looked { request: *request });
                }
                Output::Receive(tunnel, file) => self.receives.push((tunnel, file)),
                Output::Left(_) => {}
                Output::Event(event) => self.events.push(event),
            }
        }
    }

    /// Sends a request and returns its number; [`outcome`](Self::outcome) has the answer, if there is one.
    pub(super) fn ask(&mut self, op: Op) -> u64 {
        self.last_request += 1;
        let id = self.request_id(self.last_request);
        self.handle(Request { id, op });
        self.last_request
    }

    /// How the core knows a request.
    pub(super) fn request_id(&self, request: u64) -> RequestId {
        RequestId { origin: self.origin, unique: request }
    }

    pub(super) fn outcome(&mut self, request: u64) -> Option<Outcome> {
        self.outcomes.remove(&request)
    }

    fn answered(&mut self, op: Op) -> Outcome {
        let request = self.ask(op);
        self.outcome(request).expect("the request is answered at once")
    }

    pub(super) fn cancel(&mut self, request: u64) -> bool {
        let request = self.request_id(request);
        self.handle(Cancel { request })
    }

    pub(super) fn open(&mut self) -> FileId {
        self.open_in(Scope(1))
    }

    pub(super) fn open_in(&mut self, scope: Scope) -> FileId {
        let opener = Opener { pid: 7, command: "client".to_owned(), scope, ..Opener::default() };
        match self.answered(Op::Open { flags: 2, opener }) {
            Ok(Reply::Opened(file)) => file,
            other => panic!("open gave {other:?}"),
        }
    }

    /// A file of a user.
    pub(super) fn open_by(&mut self, uid: u32, scope: Scope) -> Result<FileId, Errno> {
        match self
            .answered(Op::Open { flags: 2, opener: Opener { uid, scope, ..Opener::default() } })?
        {
            Reply::Opened(file) => Ok(file),
            other @ (Reply::Ioctl { .. }
            | Reply::Fetch { .. }
            | Reply::Read { .. }
            | Reply::Written(_)
            | Reply::Ready(_)
            | Reply::Closed) => panic!("open gave {other:?}"),
        }
    }

    pub(super) fn close(&mut self, file: FileId) {
        assert_eq!(self.answered(Op::Close(file)), Ok(Reply::Closed));
    }

    /// An ioctl with everything it asks for: the return value, and what it stored.
    pub(super) fn ioctl(
        &mut self,
        file: FileId,
        command: u32,
        argument: u64,
        input: &[u8],
    ) -> Result<Vec<u8>, Errno> {
        let (result, stored) = self.ioctl_by(file, command, argument, input, None)?;
        assert_eq!(result, 0, "ioctl {command:#x}");
        Ok(stored)
    }

    /// The same by a caller that may not do everything. The memory at `argument` is `input`, and goes on as far as the command
    /// wants to read.
    pub(super) fn ioctl_by(
        &mut self,
        file: FileId,
        command: u32,
        argument: u64,
        input: &[u8],
        credentials: Option<&Credentials>,
    ) -> Result<(i32, Vec<u8>), Errno> {
        let mut call = IoctlCall { argument, ..call(command) };
        call.credentials = credentials.cloned().map(Box::new);
        for _ in 0..4 {
            match self.answered(Op::Ioctl(file, call.clone()))? {
                Reply::Fetch { input: wanted, output } => {
                    assert!(wanted[0].length == 0 || wanted[0].address == argument);
                    let wanted: usize = wanted.iter().map(|range| range.length).sum();
                    assert!(wanted <= input.len(), "{command:#x} wants {wanted} bytes");
                    call.input = Bytes::copy_from_slice(&input[..wanted]);
                    call.output_room = output.length;
                }
                Reply::Ioctl { result, output } => {
                    assert!(output.as_bytes().len() <= call.output_room);
                    return Ok((result, output.as_bytes().to_vec()));
                }
                other @ (Reply::Opened(_)
                | Reply::Read { .. }
                | Reply::Written(_)
                | Reply::Ready(_)
                | Reply::Closed) => panic!("ioctl {command:#x} gave {other:?}"),
            }
        }
        panic!("ioctl {command:#x} does not come to an end")
    }

    pub(super) fn set_iff(
        &mut self,
        file: FileId,
        name: &str,
        flags: u16,
    ) -> Result<String, Errno> {
        self.set_iff_by(file, name, flags, None)
    }

    pub(super) fn set_iff_by(
        &mut self,
        file: FileId,
        name: &str,
        flags: u16,
        credentials: Option<&Credentials>,
    ) -> Result<String, Errno> {
        let mut request = IfReq::zeroed(false);
        request.copy_name(&Name::new(name.as_bytes()));
        request.set_flags(IfFlags::from_bits_retain(flags));
        let bytes = request.as_bytes();
        let (_, stored) = self.ioctl_by(file, ioctl::TUNSETIFF, 0x1000, bytes, credentials)?;
        Ok(IfReq::from_bytes(&stored).expect("a whole ifreq").name().to_string())
    }

    pub(super) fn set_queue(&mut self, file: FileId, flags: u16) -> Result<(), Errno> {
        let mut request = IfReq::zeroed(false);
        request.set_flags(IfFlags::from_bits_retain(flags));
        self.ioctl(file, ioctl::TUNSETQUEUE, 0x1000, request.as_bytes()).map(|_| ())
    }

    /// A file attached to a tunnel of its own.
    pub(super) fn attached(&mut self, name: &str, flags: u16) -> (FileId, TunnelId) {
        let file = self.open();
        let name = self.set_iff(file, name, flags).expect("TUNSETIFF succeeds");
        (
            file,
            self.core
                .find(&Address::Name(Name::new(name.as_bytes())))
                .expect("the tunnel is there"),
        )
    }

    pub(super) fn read_later(&mut self, file: FileId, limit: usize) -> u64 {
        self.ask(Op::Read(file, ReadCall { limit, offset: 0, nonblock: false }))
    }

    /// A read that does not wait.
    pub(super) fn read(&mut self, file: FileId, limit: usize) -> Result<Vec<u8>, Errno> {
        self.read_part(file, limit, 0)
    }

    pub(super) fn read_part(
        &mut self,
        file: FileId,
        limit: usize,
        offset: u64,
    ) -> Result<Vec<u8>, Errno> {
        bytes_read(self.answered(Op::Read(file, ReadCall { limit, offset, nonblock: true })))
    }

    pub(super) fn write(&mut self, file: FileId, data: &[u8]) -> Result<usize, Errno> {
        self.write_part(file, data, 0)
    }

    pub(super) fn write_part(
        &mut self,
        file: FileId,
        data: &[u8],
        offset: u64,
    ) -> Result<usize, Errno> {
        let data = Bytes::copy_from_slice(data);
        let reply = self.answered(Op::Write(file, WriteCall { data, offset, nonblock: false }))?;
        let Reply::Written(count) = reply else { panic!("write gave {reply:?}") };
        Ok(count)
    }

    pub(super) fn poll(&mut self, file: FileId, arm: Option<WakeHandle>) -> u32 {
        match self.answered(Op::Poll { file, arm }) {
            Ok(Reply::Ready(events)) => events,
            other => panic!("poll gave {other:?}"),
        }
    }

    pub(super) fn inject(
        &mut self,
        tunnel: TunnelId,
        bytes: &[u8],
    ) -> Result<Delivery, CommandError> {
        self.inject_as(tunnel, bytes, Wrap::Raw)
    }

    pub(super) fn inject_as(
        &mut self,
        to: TunnelId,
        bytes: &[u8],
        wrap: Wrap,
    ) -> Result<Delivery, CommandError> {
        self.inject_datagram(to, Bytes::copy_from_slice(bytes).into(), wrap)
    }

    pub(super) fn inject_datagram(
        &mut self,
        to: TunnelId,
        datagram: Datagram,
        wrap: Wrap,
    ) -> Result<Delivery, CommandError> {
        self.handle(Inject { tunnel: to.into(), datagram, wrap })
    }

    /// Does something to the core that has no method of its own here.
    pub(super) fn take(&mut self, tunnel: TunnelId) -> Option<Vec<u8>> {
        self.handle(Take { tunnel }).map(|datagram| datagram.payload.to_vec())
    }

    pub(super) fn set_link(&mut self, tunnel: TunnelId, up: bool) {
        self.configure(tunnel, &Settings { up: Some(up), ..Settings::default() })
            .expect("the tunnel is there");
    }

    pub(super) fn configure(
        &mut self,
        tunnel: TunnelId,
        settings: &Settings,
    ) -> Result<(), CommandError> {
        self.handle(Configure { tunnel: tunnel.into(), settings: settings.clone() })
    }

    pub(super) fn delete(&mut self, tunnel: TunnelId) {
        self.handle(Delete { tunnel: tunnel.into() }).expect("the tunnel is there");
    }

    pub(super) fn wait(
        &mut self,
        id: u64,
        condition: Condition,
        deadline_ms: u64,
    ) -> Result<(), CommandError> {
        let timeout = self.at(deadline_ms) - self.now;
        self.handle(Wait { id: WaitId(id), condition, timeout })
    }

    pub(super) fn answer(&mut self, wait: u64) -> Option<Answer> {
        self.answers.remove(&WaitId(wait))
    }

    pub(super) fn inject_from_peer(
        &mut self,
        to: TunnelId,
        bytes: &[u8],
    ) -> Result<Delivery, CommandError> {
        let datagram = Bytes::copy_from_slice(bytes).into();
        self.handle(InjectFromPeer { tunnel: to, datagram })
    }

    /// The owner of network devices says something.
    pub(super) fn tell_of_netdev(&mut self, news: NetdevNews) {
        self.handle(Netdev { news });
    }

    /// Tells that something was sent by a link, and returns for which files it is taken.
    pub(super) fn readable(&mut self, tunnel: TunnelId, queue: FileId) -> Vec<FileId> {
        self.handle(Netdev { news: NetdevNews::Readable(tunnel, queue) });
        core::mem::take(&mut self.receives).into_iter().map(|(_, file)| file).collect()
    }

    /// Takes what was sent by a link; whether more is wanted.
    pub(super) fn send_by_netdev(&mut self, tunnel: TunnelId, queue: FileId, bytes: &[u8]) -> bool {
        self.handle(NetdevDatagram { tunnel, queue, bytes: Bytes::copy_from_slice(bytes) })
    }

    pub(super) fn set_iff_later(&mut self, file: FileId, name: &str, flags: u16) -> u64 {
        let mut request = IfReq::zeroed(false);
        request.copy_name(&Name::new(name.as_bytes()));
        request.set_flags(IfFlags::from_bits_retain(flags));
        self.ioctl_later(file, ioctl::TUNSETIFF, 0x1000, request.as_bytes(), IfReq::SIZE)
    }

    /// The same by a caller that may not do everything.
    pub(super) fn set_iff_later_by(
        &mut self,
        file: FileId,
        name: &str,
        flags: u16,
        caller: &Credentials,
    ) -> u64 {
        let mut request = IfReq::zeroed(false);
        request.copy_name(&Name::new(name.as_bytes()));
        request.set_flags(IfFlags::from_bits_retain(flags));
        let call = IoctlCall {
            argument: 0x1000,
            credentials: Some(Box::new(caller.clone())),
            input: Bytes::copy_from_slice(request.as_bytes()),
            output_room: IfReq::SIZE,
            ..call(ioctl::TUNSETIFF)
        };
        self.ask(Op::Ioctl(file, call))
    }

    /// An ioctl whose memory has been fetched: its number.
    pub(super) fn ioctl_later(
        &mut self,
        file: FileId,
        command: u32,
        argument: u64,
        input: &[u8],
        output_room: usize,
    ) -> u64 {
        let input = Bytes::copy_from_slice(input);
        self.ask(Op::Ioctl(
            file,
            IoctlCall { command, argument, compat: false, input, output_room, credentials: None },
        ))
    }

    pub(super) fn write_later(&mut self, file: FileId, data: &[u8]) -> u64 {
        let data = Bytes::copy_from_slice(data);
        self.ask(Op::Write(file, WriteCall { data, offset: 0, nonblock: false }))
    }

    pub(super) fn join(&mut self, left: TunnelId, right: TunnelId) -> Result<(), CommandError> {
        self.handle(Join { left: left.into(), right: right.into() }).map(drop)
    }

    pub(super) fn set_peer(&mut self, tunnel: TunnelId, peer: PeerId) -> Result<(), CommandError> {
        self.handle(SetPeer { tunnel, peer })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut replayed = Core::new(*self.core.limits(), SEED);
        for (at, (now, input, expected)) in self.log.drain(..).enumerate() {
            let shown = format!("{input:?}");
            let input = stored_and_read(now, input, &expected);
            assert_eq!(format!("{input:?}"), shown, "input {at} as it was stored");
            replayed.handle(now, input);
            let mut outputs = Vec::new();
            replayed.take_outputs(&mut outputs);
            let (outputs, expected) = (format!("{outputs:?}"), format!("{expected:?}"));
            assert_eq!(outputs, expected, "input {at}, {shown}, replayed");
        }
    }
}

/// An input, as a log has it.
fn stored_and_read(now: Instant, input: Input, outputs: &[Output]) -> Input {
    let mut stored = Vec::new();
    Record::Input { now, input, outputs: log::digest(outputs) }.encode(&mut stored);
    match Record::decode(&stored[log::LENGTH..]) {
        Ok(Record::Input { now: at, input, outputs: digest }) => {
            assert_eq!((at, digest), (now, log::digest(outputs)));
            input
        }
        other => panic!("an input was stored, and {other:?} was read"),
    }
}

/// A call in its first round.
pub(super) fn call(command: u32) -> IoctlCall {
    IoctlCall {
        command,
        argument: 0,
        compat: false,
        credentials: None,
        input: Bytes::new(),
        output_room: 0,
    }
}

pub(super) fn bytes_read(outcome: Outcome) -> Result<Vec<u8>, Errno> {
    let reply = outcome?;
    let Reply::Read { head, body } = reply else { panic!("read gave {reply:?}") };
    Ok([head.as_bytes(), &body].concat())
}
