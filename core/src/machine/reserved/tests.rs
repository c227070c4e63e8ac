//! That a call whose outcome did not reach its client has not been made.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    format,
    string::String,
    vec,
    vec::Vec,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{
    file::FILE_MEMORY,
    input::*,
    queue::DATAGRAM_MEMORY,
    rig::{Rig, bytes_read, flags::*},
    tunnel::TUNNEL_MEMORY,
    *,
};
use crate::{
    abi::tun::{IfFlags, IfReq, Name, ioctl},
    errno::Errno,
};

/// A rig whose front end reports.
fn reporting(limits: Limits) -> Rig {
    let mut rig = Rig::with_limits(limits);
    rig.origin = Origin(1);
    rig.handle(ReportAnswers { origin: Origin(1) });
    rig
}

impl Rig {
    fn report(&mut self, request: u64, delivered: bool) {
        let request = self.request_id(request);
        self.handle(Answered { request, delivered });
    }

    /// A call that is answered at once, and delivered.
    fn made(&mut self, op: Op) -> Outcome {
        let request = self.ask(op);
        let outcome = self.outcome(request).expect("it is answered at once");
        self.report(request, true);
        outcome
    }

    /// One whose answer does not reach its client.
    fn lost(&mut self, op: Op) -> Outcome {
        let request = self.ask(op);
        let outcome = self.outcome(request).expect("it is answered at once");
        self.report(request, false);
        outcome
    }

    fn opened(&mut self) -> FileId {
        match self.made(open()) {
            Ok(Reply::Opened(file)) => file,
            other => panic!("{other:?}"),
        }
    }

    /// A file with a tunnel of that name.
    fn with_tunnel(&mut self, name: &str, flags: u16) -> (FileId, TunnelId) {
        let file = self.opened();
        self.made(set_iff(file, name, flags)).expect("it is attached");
        (file, self.core.find(&named(name)).expect("it is there"))
    }

    fn names(&self) -> Vec<String> {
        self.core.tunnels().map(|tunnel| format!("{}", tunnel.name())).collect()
    }
}

fn named(name: &str) -> Address {
    Address::Name(Name::new(name.as_bytes()))
}

fn open() -> Op {
    Op::Open { flags: 2, opener: Opener { scope: Scope(1), ..Opener::default() } }
}

fn with_ifreq(file: FileId, command: u32, name: &str, flags: u16) -> Op {
    let mut request = IfReq::zeroed(false);
    request.copy_name(&Name::new(name.as_bytes()));
    request.set_flags(IfFlags::from_bits_retain(flags));
    let call = IoctlCall {
        argument: 0x1000,
        input: Bytes::copy_from_slice(request.as_bytes()),
        output_room: if command == ioctl::TUNSETIFF { IfReq::SIZE } else { 0 },
        ..rig::call(command)
    };
    Op::Ioctl(file, call)
}

fn set_iff(file: FileId, name: &str, flags: u16) -> Op {
    with_ifreq(file, ioctl::TUNSETIFF, name, flags)
}

fn set_queue(file: FileId, flags: u16) -> Op {
    with_ifreq(file, ioctl::TUNSETQUEUE, "", flags)
}

fn persist(file: FileId, on: bool) -> Op {
    let call = rig::call(ioctl::TUNSETPERSIST);
    Op::Ioctl(file, IoctlCall { argument: on.into(), ..call })
}

fn read(file: FileId, limit: usize, nonblock: bool) -> Op {
    Op::Read(file, ReadCall { limit, offset: 0, nonblock })
}

fn write(file: FileId, number: u32) -> Op {
    Op::Write(file, WriteCall { data: bytes(number).into(), offset: 0, nonblock: false })
}

/// Behind a PI header, as every tunnel here that is not `NO_PI` has it.
fn bytes(number: u32) -> Vec<u8> {
    [&[0, 0, 8, 0, 0x45][..], &number.to_be_bytes()].concat()
}

#[test]
fn read_comes_back_to_the_front_and_wakes_those_who_wait() {
    let mut rig = reporting(Limits::default());
    let (file, tunnel) = rig.with_tunnel("t", TUN_NO_PI);
    for byte in 1..=2 {
        rig.inject(tunnel, &[byte]).unwrap();
    }
    rig.made(Op::Poll { file, arm: Some(WakeHandle(7)) }).unwrap();
    let used = |rig: &Rig| rig.core.users().map(|user| user.used(Resource::Memory)).sum::<usize>();
    let before = (used(&rig), rig.wakes);
    let first = rig.ask(read(file, 9, true));
    assert_eq!(rig.outcome(first).map(bytes_read), Some(Ok(vec![1])));
    assert_eq!(rig.core.file(file).unwrap().queue().len(), 1, "it is gone for others");
    assert_eq!(used(&rig), before.0, "it is charged for");
    rig.report(first, false);
    assert_eq!((used(&rig), rig.wakes), (before.0, before.1 + 1));
    assert_eq!(rig.made(read(file, 9, true)).map(|it| bytes_read(Ok(it))), Ok(Ok(vec![1])));
    assert!(used(&rig) < before.0);

    // Two threads in `read`: one is interrupted when its answer is on its way, and the other gets the datagram.
    let interrupted = rig.ask(read(file, 9, true));
    let waiting = rig.ask(read(file, 9, false));
    assert_eq!(rig.outcome(waiting), None);
    rig.report(interrupted, false);
    assert_eq!(rig.outcome(waiting).map(bytes_read), Some(Ok(vec![2])));
    rig.report(waiting, true);

    // A datagram that a parked read was given at once comes back as well.
    let parked = rig.ask(read(file, 9, false));
    assert_eq!(rig.inject(tunnel, &[3]), Ok(Delivery::Read));
    assert!(rig.outcome(parked).is_some());
    rig.report(parked, false);
    assert_eq!(rig.made(read(file, 9, true)).map(|it| bytes_read(Ok(it))), Ok(Ok(vec![3])));
}

#[test]
fn write_is_seen_when_its_outcome_is_known_in_the_order_of_the_calls() {
    let mut rig = reporting(Limits::default());
    rig.handle(Observe { on: true });
    let (file, tunnel) = rig.with_tunnel("t", TUN);
    rig.wait(1, Condition::Written(named("t")), 100).unwrap();
    let first = rig.ask(write(file, 1));
    let second = rig.ask(write(file, 2));
    assert_eq!(rig.outcome(first), Some(Ok(Reply::Written(9))));
    rig.report(second, true);
    // A front end that does not report: it is answered at once, and waits all the same.
    rig.origin = Origin(0);
    let third = rig.ask(write(file, 3));
    assert_eq!(rig.outcome(third), Some(Ok(Reply::Written(9))));
    rig.origin = Origin(1);
    let is_written = |event: &Event| matches!(event, Event::FromClient { .. });
    assert_eq!((rig.take(tunnel), rig.answer(1)), (None, None));
    assert_eq!(rig.core.tunnel(tunnel).unwrap().counters().from_client.datagrams, 0);
    assert!(!rig.events.iter().any(is_written));
    rig.report(first, true);
    let taken = [(); 3].map(|()| rig.take(tunnel));
    assert_eq!(taken, [1, 2, 3].map(|number| Some(bytes(number)[4..].to_vec())));
    assert!(rig.answer(1).is_some());
    assert_eq!(rig.events.iter().filter(|event| is_written(event)).count(), 3);
}

#[test]
fn answered_write_behind_another_outlives_its_file() {
    let mut rig = reporting(Limits::default());
    let (file, tunnel) = rig.with_tunnel("m", MQ);
    rig.origin = Origin(0);
    let plain = rig.open();
    rig.set_iff(plain, "m", MQ).unwrap();
    rig.origin = Origin(1);
    let bare = |file, bytes: &'static [u8]| {
        Op::Write(file, WriteCall { data: bytes.into(), offset: 0, nonblock: false })
    };
    let withheld = rig.ask(bare(file, &[0x45, 1]));
    rig.origin = Origin(0);
    let written = rig.ask(bare(plain, &[0x45, 2]));
    assert_eq!(rig.outcome(written), Some(Ok(Reply::Written(2))), "at once");
    rig.close(plain);
    rig.origin = Origin(1);
    rig.report(withheld, true);
    assert_eq!(rig.take(tunnel), Some(vec![0x45, 1]));
    assert_eq!(rig.take(tunnel), Some(vec![0x45, 2]), "its client was told that it was taken");
}

#[test]
fn waiting_read_gets_what_others_make_room_for() {
    let memory = Bound::unshared(3 * (FILE_MEMORY + TUNNEL_MEMORY) + DATAGRAM_MEMORY + 1_000);
    let mut rig = reporting(Limits { memory, ..Limits::default() });
    let (file, left) = rig.with_tunnel("left", TUN_NO_PI);
    let call = WriteCall { data: vec![0x45; 1_000].into(), offset: 0, nonblock: false };
    rig.made(Op::Write(file, call)).unwrap();
    rig.made(Op::Close(file)).unwrap();
    let (file, tunnel) = rig.with_tunnel("t", TUN_NO_PI);
    let waits = rig.ask(read(file, 5_000, false));
    assert_eq!(rig.outcome(waits), None);
    let long = vec![0x45; 4_000];
    assert_eq!(rig.inject(tunnel, &long), Ok(Delivery::Read));
    assert!(rig.core.tunnel(left).is_none(), "what was kept of it made room");
    assert_eq!(rig.outcome(waits).map(bytes_read), Some(Ok(long)));
    rig.report(waits, true);
}

#[test]
fn what_a_peer_gets_waits_too_and_outlives_the_tunnel() {
    let mut rig = reporting(Limits::default());
    let (file, tunnel) = rig.with_tunnel("a", TUN_NO_PI);
    let (other, joined) = rig.with_tunnel("b", TUN);
    rig.join(tunnel, joined).unwrap();
    let written = rig.ask(Op::Write(
        file,
        WriteCall { data: Bytes::from_static(&[0x45, 1]), offset: 0, nonblock: false },
    ));
    assert_eq!(rig.made(read(other, 9, true)), Err(Errno::EAGAIN));
    // The close waits, so that the datagram can go across.
    let closed = rig.ask(Op::Close(file));
    assert_eq!(rig.outcome(closed), None);
    assert!(rig.cancel(closed) && rig.outcome(closed).is_none(), "no signal ends a close");
    rig.report(written, true);
    assert_eq!(rig.outcome(closed), Some(Ok(Reply::Closed)));
    let got = rig.made(read(other, 9, true)).map(|it| bytes_read(Ok(it)));
    assert_eq!(got, Ok(Ok(vec![0, 0, 8, 0, 0x45, 1])));

    let written = rig.ask(write(other, 1));
    rig.delete(joined);
    assert_eq!(rig.take(joined), None);
    rig.report(written, true);
    assert_eq!(rig.take(joined), Some(bytes(1).split_off(4)), "as what was written before");
    assert!(rig.core.tunnel(joined).is_none());
    assert_eq!(rig.made(Op::Close(other)), Ok(Reply::Closed));
}

#[test]
fn tunnel_of_an_undelivered_tunsetiff_never_was() {
    let mut rig = reporting(Limits::default());
    rig.handle(Observe { on: true });
    let (file, other) = (rig.opened(), rig.opened());
    rig.wait(1, Condition::Exist(vec![named("tun0")]), 100).unwrap();
    let attached = rig.ask(set_iff(file, "", TUN_NO_PI));
    let outcome = rig.outcome(attached);
    assert!(matches!(outcome, Some(Ok(Reply::Ioctl { result: 0, .. }))), "{outcome:?}");
    assert_eq!((rig.names().len(), rig.answer(1)), (0, None));
    let unknown = CommandError::UnknownTunnel(named("tun0"));
    assert_eq!(rig.core.find(&named("tun0")), Err(unknown));
    // What else is asked of the file, and another TUNSETIFF there, wait.
    let (again, read) = (rig.ask(set_iff(other, "tun0", TUN_NO_PI)), rig.ask(read(file, 9, true)));
    assert_eq!((rig.outcome(again), rig.outcome(read)), (None, None));
    rig.report(attached, false);
    assert_eq!(rig.outcome(read), Some(Err(Errno::EBADFD)));
    assert!(rig.outcome(again).is_some_and(|outcome| outcome.is_ok()));
    rig.report(again, true);
    assert_eq!(rig.names(), ["tun0"]);
    assert_eq!(rig.made(set_iff(file, "", TUN_NO_PI)), outcome_named("tun1"));
    let attached = |event: &&Event| matches!(event, Event::Attached { created: true, .. });
    assert_eq!(rig.events.iter().filter(attached).count(), 2);
    assert!(!rig.events.iter().any(|event| matches!(event, Event::Deleted { .. })));
}

fn outcome_named(name: &str) -> Outcome {
    let mut request = IfReq::zeroed(false);
    request.copy_name(&Name::new(name.as_bytes()));
    request.set_flags(IfFlags::from_bits_retain(TUN_NO_PI));
    Ok(Reply::Ioctl { result: 0, output: (&request).into() })
}

#[test]
fn tunnel_stays_for_a_file_that_is_about_to_be_attached() {
    for delivered in [true, false] {
        let mut rig = reporting(Limits::default());
        let (first, tunnel) = rig.with_tunnel("m", MQ);
        let second = rig.opened();
        let attached = rig.ask(set_iff(second, "m", MQ));
        assert!(rig.outcome(attached).is_some_and(|outcome| outcome.is_ok()));
        rig.made(Op::Close(first)).unwrap();
        let refused = rig.inject(tunnel, &[0x45]);
        assert!(matches!(refused, Err(CommandError::NotAttached(_))), "{refused:?}");
        rig.report(attached, delivered);
        assert_eq!(rig.names().len(), usize::from(delivered));
    }
}

#[test]
fn queue_changes_when_the_client_knows() {
    let mut rig = reporting(Limits::default());
    let (file, tunnel) = rig.with_tunnel("m", MQ);
    rig.inject(tunnel, &[0x45]).unwrap();
    for _ in 0..2 {
        assert!(rig.lost(set_queue(file, DETACH_QUEUE)).is_ok());
        assert!(!rig.core.file(file).unwrap().is_detached());
    }
    assert_eq!(rig.core.file(file).unwrap().queue().len(), 1);
    assert!(rig.made(set_queue(file, DETACH_QUEUE)).is_ok());
    assert_eq!(rig.core.file(file).unwrap().queue().len(), 0);
    assert_eq!(rig.made(set_queue(file, DETACH_QUEUE)), Err(Errno::EINVAL));
    assert!(rig.lost(set_queue(file, ATTACH_QUEUE)).is_ok());
    assert!(rig.made(set_queue(file, ATTACH_QUEUE)).is_ok());
}

#[test]
fn request_that_waits_can_be_interrupted() {
    let mut rig = reporting(Limits::default());
    let file = rig.opened();
    let attached = rig.ask(set_iff(file, "t", TUN_NO_PI));
    let waiting = rig.ask(read(file, 9, false));
    assert!(rig.cancel(waiting));
    assert_eq!(rig.outcome(waiting), Some(Err(Errno::EINTR)));
    rig.report(attached, true);
    assert_eq!(rig.core.file(file).unwrap().parked_reads(), 0);
}

#[test]
fn open_that_was_not_delivered_leaves_nothing() {
    let mut rig = reporting(Limits::default());
    rig.handle(Observe { on: true });
    assert!(rig.lost(open()).is_ok());
    let opened = rig.ask(open());
    assert_eq!((rig.core.files().count(), rig.events.len()), (0, 0));
    rig.report(opened, true);
    assert_eq!((rig.core.files().count(), rig.events.len()), (1, 1));
}

#[test]
fn write_without_memory_is_counted_when_it_is_known() {
    let mut rig = reporting(Limits::default());
    let (file, tunnel) = rig.with_tunnel("t", TUN);
    let user = rig.handle(FindUser { uid: 0 });
    let all = rig.core.limits().memory.user - user.used(Resource::Memory);
    let held = user.charge(Resource::Memory, all).unwrap();
    let counters = |rig: &Rig| rig.core.tunnel(tunnel).unwrap().counters();
    assert!(rig.lost(write(file, 1)).is_ok());
    assert_eq!(counters(&rig).from_client_dropped.datagrams, 0);
    assert!(rig.made(write(file, 1)).is_ok());
    let Counters { from_client, memory_dropped, .. } = counters(&rig);
    assert_eq!((from_client.datagrams, memory_dropped.datagrams), (1, 1));
    drop(held);
}

#[test]
fn kernel_gets_a_write_when_the_client_knows_of_it() {
    let mut rig = reporting(Limits::default());
    let (file, tunnel) = rig.with_tunnel("t", TUN);
    rig.handle(SetInterface { tunnel, interface: Interface::Bridge });
    assert!(rig.lost(write(file, 1)).is_ok());
    assert_eq!(rig.forwards.len(), 0);
    let written = rig.ask(write(file, 2));
    // One of a front end that does not report is answered when the kernel has taken it.
    rig.origin = Origin(0);
    let other = rig.ask(write(file, 3));
    rig.origin = Origin(1);
    assert_eq!((rig.forwards.len(), rig.outcome(other)), (0, None));
    assert_eq!(rig.outcome(written), Some(Ok(Reply::Written(9))));
    rig.report(written, true);
    for (forward, taken) in
        core::mem::take(&mut rig.forwards).into_iter().zip([Err(Errno::EIO), Ok(())])
    {
        rig.tell_of_netdev(NetdevNews::Forwarded(forward.into(), taken));
    }
    assert_eq!(rig.outcome(other), Some(Ok(Reply::Written(9))));
    let Counters { from_client, from_client_dropped, .. } =
        rig.core.tunnel(tunnel).unwrap().counters();
    assert_eq!((from_client.datagrams, from_client_dropped.datagrams), (2, 1));
    rig.set_link(tunnel, false);
    assert_eq!(rig.made(write(file, 1)), Err(Errno::EIO));
}

/// A client's call, and how often it is made in vain before.
#[derive(Clone, Debug)]
struct Made {
    call: Call,
    in_vain: usize,
    /// What happens while the outcome of each is not known.
    between: Vec<Between>,
    /// It is made at last, as under `SA_RESTART`.
    at_last: bool,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Open,
    Attach { file: usize, name: usize },
    SetQueue { file: usize, flags: u16 },
    Persist { file: usize, on: bool },
    Read { file: usize, limit: usize, nonblock: bool },
    Write { file: usize },
    Close { file: usize },
}

#[derive(Clone, Copy, Debug)]
enum Between {
    Inject { name: usize },
    Take { name: usize },
    Link { name: usize, up: bool },
    Delete { name: usize },
}

const NAMES: [(&str, u16); 4] = [("t", TUN), ("m", MQ & !0x1000), ("tun%d", TUN), ("m", TUN)];
const FILES: usize = 4;

fn script() -> impl Strategy<Value = Vec<Made>> {
    let (file, name) = (0..FILES, 0..NAMES.len());
    let call = prop_oneof![
        3 => Just(Call::Open),
        4 => (file.clone(), name.clone()).prop_map(|(file, name)| Call::Attach { file, name }),
        2 => (file.clone(), prop::sample::select(&[ATTACH_QUEUE, DETACH_QUEUE, 0][..]))
            .prop_map(|(file, flags)| Call::SetQueue { file, flags }),
        1 => (file.clone(), any::<bool>()).prop_map(|(file, on)| Call::Persist { file, on }),
        4 => (file.clone(), prop::sample::select(&[2, 100][..]), any::<bool>())
            .prop_map(|(file, limit, nonblock)| Call::Read { file, limit, nonblock }),
        4 => file.clone().prop_map(|file| Call::Write { file }),
        1 => file.prop_map(|file| Call::Close { file }),
    ];
    let between = prop_oneof![
        4 => name.clone().prop_map(|name| Between::Inject { name }),
        2 => name.clone().prop_map(|name| Between::Take { name }),
        1 => (name.clone(), any::<bool>()).prop_map(|(name, up)| Between::Link { name, up }),
        1 => name.prop_map(|name| Between::Delete { name }),
    ];
    let between = prop::collection::vec(between, 0..3);
    let made = (call, 0..3_usize, between, prop::bool::weighted(0.8))
        .prop_map(|(call, in_vain, between, at_last)| Made { call, in_vain, between, at_last });
    prop::collection::vec(made, 0..60)
}

/// One of two runs of a script.
struct Run {
    rig: Rig,
    files: Vec<Option<FileId>>,
    reports: bool,
    next: u32,
}

impl Run {
    fn new(reports: bool) -> Self {
        let mut rig = if reports { reporting(Limits::default()) } else { Rig::new() };
        rig.handle(Observe { on: true });
        Self { rig, files: vec![None; FILES], reports, next: 0 }
    }

    fn op(&self, call: Call) -> Option<Op> {
        let file = |file: usize| self.files[file];
        Some(match call {
            Call::Open => self.files.iter().any(Option::is_none).then(open)?,
            Call::Attach { file: at, name } => set_iff(file(at)?, NAMES[name].0, NAMES[name].1),
            Call::SetQueue { file: at, flags } => set_queue(file(at)?, flags),
            Call::Persist { file: at, on } => persist(file(at)?, on),
            Call::Read { file: at, limit, nonblock } => read(file(at)?, limit, nonblock),
            Call::Write { file: at } => write(file(at)?, self.next),
            Call::Close { file: at } => Op::Close(file(at)?),
        })
    }

    /// Makes a call; one that waits is interrupted.
    fn ask(&mut self, op: Op) -> (u64, Outcome) {
        let request = self.rig.ask(op);
        if let Some(outcome) = self.rig.outcome(request) {
            return (request, outcome);
        }
        assert!(self.rig.cancel(request));
        (request, self.rig.outcome(request).expect("a signal ends it"))
    }

    /// Makes a call that its client sees the end of.
    fn make(&mut self, call: Call) -> Option<Result<String, Errno>> {
        let op = self.op(call)?;
        let (request, outcome) = self.ask(op);
        if self.reports {
            self.rig.report(request, true);
        }
        if let Ok(Reply::Opened(file)) = outcome {
            *self.files.iter_mut().find(|file| file.is_none())? = Some(file);
        }
        if let Call::Close { file } = call {
            self.files[file] = None;
        }
        Some(match outcome {
            Ok(Reply::Opened(_)) => Ok("opened".into()),
            outcome => outcome.map(|reply| format!("{reply:?}")),
        })
    }

    /// Something that no client does: what comes of it.
    fn happen(&mut self, between: Between) -> String {
        let (Between::Inject { name }
        | Between::Take { name }
        | Between::Link { name, .. }
        | Between::Delete { name }) = between;
        let Ok(tunnel) = self.rig.core.find(&named(&NAMES[name].0.replace("%d", "0"))) else {
            return "unknown".into();
        };
        match between {
            // How many datagrams are in the queue is no matter.
            Between::Inject { .. } => {
                let sent = self.rig.inject(tunnel, &bytes(self.next));
                format!("{:?}", sent.map(drop))
            }
            Between::Take { .. } => format!("{:?}", self.rig.take(tunnel)),
            Between::Link { up, .. } => {
                let settings = Settings { up: Some(up), ..Settings::default() };
                format!("{:?}", self.rig.configure(tunnel, &settings).is_ok())
            }
            Between::Delete { .. } => {
                format!("{:?}", self.rig.handle(Delete { tunnel: tunnel.into() }).is_ok())
            }
        }
    }

    /// What an observer sees, but for numbers.
    fn events(&mut self) -> Vec<String> {
        let events = core::mem::take(&mut self.rig.events).into_iter();
        let shown = events.map(|event| {
            let shown = format!("{event:?}");
            let words = shown.split(' ');
            let kept = words.filter(|word| !word.contains("Id("));
            kept.collect::<Vec<_>>().join(" ")
        });
        shown.collect()
    }

    /// What the harness sees in the end.
    fn seen(&mut self) -> Vec<String> {
        let ids: Vec<TunnelId> = self.rig.core.tunnels().map(Tunnel::id).collect();
        let mut seen = vec![format!("{} files", self.rig.core.files().count())];
        for id in ids {
            let tunnel = self.rig.core.tunnel(id).expect("it is there");
            let queued = tunnel.files().filter_map(|file| self.rig.core.file(file));
            let queued: Vec<usize> = queued.map(|file| file.queue().len()).collect();
            seen.push(format!("{} {:?} {queued:?}", tunnel.name(), tunnel.counters()));
            while let Some(taken) = self.rig.take(id) {
                seen.push(format!("{taken:?}"));
            }
        }
        seen
    }
}

proptest! {
    #[test]
    fn calls_in_vain_were_never_made(script in script()) {
        let (mut with, mut without) = (Run::new(true), Run::new(false));
        for Made { call, in_vain, between, at_last } in script {
            // A close is not made in vain, and what an ioctl sets stays set.
            let in_vain = if matches!(call, Call::Close { .. }) { 0 } else { in_vain };
            let at_last = at_last || matches!(call, Call::Persist { .. });
            for _ in 0..in_vain {
                let Some(op) = with.op(call) else { break };
                let (request, _) = with.ask(op);
                for between in &between {
                    with.next += 1;
                    without.next += 1;
                    assert_eq!(with.happen(*between), without.happen(*between), "{between:?}");
                }
                with.rig.report(request, false);
            }
            if at_last {
                assert_eq!(with.make(call), without.make(call), "{call:?}");
            }
            assert_eq!(with.events(), without.events(), "{call:?}");
        }
        assert_eq!(with.seen(), without.seen());
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Inject,
    Read { nonblock: bool },
    Write,
    Take,
    Report { at: usize, delivered: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Inject),
        3 => any::<bool>().prop_map(|nonblock| Step::Read { nonblock }),
        3 => Just(Step::Write),
        1 => Just(Step::Take),
        4 => (0..8_usize, any::<bool>())
            .prop_map(|(at, delivered)| Step::Report { at, delivered }),
    ]
}

/// One file that many threads use, as it should be.
#[derive(Default)]
struct Model {
    /// What can be read. Numbers are given in the order of the injections.
    readable: BTreeSet<u32>,
    parked: VecDeque<u64>,
    /// By request: what was read, and whether the client got it.
    read: BTreeMap<u64, u32>,
    delivered: Vec<u32>,
    /// Writes by request, and what is known of each; those before it are taken.
    written: VecDeque<(u64, u32, Option<bool>)>,
    takeable: VecDeque<u32>,
    undecided: Vec<u64>,
    next: u32,
}

impl Model {
    /// A parked read gets the oldest.
    fn serve(&mut self, rig: &mut Rig) {
        while !self.readable.is_empty()
            && let Some(request) = self.parked.pop_front()
        {
            self.give(rig, request);
        }
    }

    fn give(&mut self, rig: &mut Rig, request: u64) {
        let number = self.readable.pop_first().expect("there is one");
        let got = rig.outcome(request).map(bytes_read);
        assert_eq!(got, Some(Ok(bytes(number))));
        self.read.insert(request, number);
        self.undecided.push(request);
    }

    fn report(&mut self, rig: &mut Rig, at: usize, delivered: bool) {
        if self.undecided.is_empty() {
            return;
        }
        let request = self.undecided.remove(at % self.undecided.len());
        rig.report(request, delivered);
        match self.read.remove(&request) {
            Some(number) if delivered => self.delivered.push(number),
            Some(number) => {
                self.readable.insert(number);
                self.serve(rig);
            }
            None => {
                let mut written = self.written.iter_mut();
                let known = written.find(|(it, ..)| *it == request).expect("it is a write");
                known.2 = Some(delivered);
            }
        }
        while let Some((_, number, Some(delivered))) = self.written.front().copied() {
            self.written.pop_front();
            self.takeable.extend(delivered.then_some(number));
        }
    }
}

proptest! {
    #[test]
    fn each_datagram_is_read_and_written_once_in_its_order(
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut rig = reporting(Limits::default());
        let (file, tunnel) = rig.with_tunnel("t", TUN_NO_PI);
        let mut model = Model::default();
        let mut injected = 0;
        for step in steps {
            model.next += 1;
            let number = model.next;
            match step {
                Step::Inject => {
                    rig.inject(tunnel, &bytes(number)).unwrap();
                    model.readable.insert(number);
                    injected += 1;
                    model.serve(&mut rig);
                }
                Step::Read { nonblock } => {
                    let request = rig.ask(read(file, 100, nonblock));
                    match (model.readable.is_empty(), nonblock) {
                        (false, _) => model.give(&mut rig, request),
                        (true, true) => {
                            assert_eq!(rig.outcome(request), Some(Err(Errno::EAGAIN)));
                            rig.report(request, false);
                        }
                        (true, false) => model.parked.push_back(request),
                    }
                }
                Step::Write => {
                    // Without a PI header it begins with the version.
                    let data = bytes(number).split_off(4).into();
                    let call = WriteCall { data, offset: 0, nonblock: false };
                    let request = rig.ask(Op::Write(file, call));
                    assert_eq!(rig.outcome(request), Some(Ok(Reply::Written(5))));
                    model.written.push_back((request, number, None));
                    model.undecided.push(request);
                }
                Step::Take => {
                    let expected = model.takeable.pop_front().map(|it| bytes(it).split_off(4));
                    assert_eq!(rig.take(tunnel), expected);
                }
                Step::Report { at, delivered } => model.report(&mut rig, at, delivered),
            }
            assert_eq!(rig.core.file(file).unwrap().queue().len(), model.readable.len());
            assert_eq!(rig.core.tunnel(tunnel).unwrap().written().len(), model.takeable.len());
        }
        while !model.undecided.is_empty() {
            model.report(&mut rig, 0, true);
        }
        let mut all: Vec<u32> = model.delivered.clone();
        all.extend(&model.readable);
        let once: BTreeSet<u32> = all.iter().copied().collect();
        assert_eq!((all.len(), once.len()), (injected, injected));
    }
}
