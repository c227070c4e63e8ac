//! The log of what went in replays to what came out: random sequences of every input there is.
//!
//! When a [`Rig`] is dropped it stores all that it was given as a log does, reads it, gives it to another core, and compares. So each scenario of this crate is such
//! a test; these sequences reach what no scenario thinks of.

use alloc::{boxed::Box, collections::BTreeSet, format, string::String, vec, vec::Vec};
use core::time::Duration;

use bytes::Bytes;

use super::{input::*, rig::Rig, *};
use crate::abi::{
    tun::{IfFlags, IfReq, Name, ioctl},
    virtio_net::VnetHeader,
};

const SEQUENCES: u64 = 10_000;
const LENGTH: usize = 40;
/// Files, tunnels and the like are among the first so many, so that inputs often meet what is there.
const FEW: u64 = 5;

/// A harness, clients and an owner of network devices that know no sense.
struct Random {
    rig: Rig,
    random: fastrand::Rng,
    last_request: u64,
    last_wait: u64,
    /// How long after the origin it is.
    passed: Duration,
}

impl Random {
    fn new(seed: u64) -> Self {
        let limits = Limits { written_datagrams: 4, ..Limits::default() };
        let (mut random, passed) = (fastrand::Rng::with_seed(seed), Duration::ZERO);
        let mut rig = Rig::with_limits(limits);
        if random.bool() {
            rig.handle(Observe { on: true });
        }
        Self { rig, random, last_request: 0, last_wait: 0, passed }
    }

    fn step(&mut self) {
        self.passed += Duration::from_millis(self.random.u64(..20));
        self.rig.now = Instant::after_origin(self.passed);
        let input = self.input();
        self.rig.handle(input);
    }

    fn input(&mut self) -> Input {
        match self.random.u8(..38) {
            0..=15 => {
                self.last_request += 1;
                Request { id: self.request(self.last_request), op: self.op() }.into()
            }
            16 => Cancel { request: self.any_request() }.into(),
            17 => Undelivered { request: self.any_request() }.into(),
            18 => Timeout {}.into(),
            19 => Observe { on: self.random.bool() }.into(),
            20 | 21 => Inject {
                tunnel: self.address(),
                datagram: self.datagram(),
                wrap: self.random.choice([Wrap::Raw, Wrap::Frame, ETHERNET]).unwrap_or_default(),
            }
            .into(),
            22 => InjectFromPeer { tunnel: self.tunnel(), datagram: self.datagram() }.into(),
            23 => match self.random.bool() {
                true => Take { tunnel: self.tunnel() }.into(),
                false => {
                    let (tunnel, datagrams) = (self.tunnel(), vec![self.datagram()]);
                    PutBack { tunnel, datagrams, uid: 1 }.into()
                }
            },
            24 => match self.random.bool() {
                true => {
                    DropKept { keeper: Keeper(1), numbers: vec![self.few(), self.few()] }.into()
                }
                false => ReleaseKept { keeper: Keeper(1) }.into(),
            },
            25 => CountPeerDrop { tunnel: self.tunnel(), length: 9 }.into(),
            26 => match self.random.bool() {
                true => SetPeer { tunnel: self.tunnel(), peer: self.peer() }.into(),
                false => ClearPeer { peer: self.peer() }.into(),
            },
            27 => match self.random.bool() {
                true => Join { left: self.address(), right: self.address() }.into(),
                false => Part { tunnel: self.address() }.into(),
            },
            28 => Configure { tunnel: self.address(), settings: self.settings() }.into(),
            29 => match self.random.u8(..4) {
                0 => Delete { tunnel: self.address() }.into(),
                _ => CancelWait { id: WaitId(self.few()) }.into(),
            },
            30 => self.wait().into(),
            33 => match self.random.u8(..4) {
                0 => FindUser { uid: self.random.u32(..3) }.into(),
                1 => SetAdmission { admission: Admission::default() }.into(),
                _ => SwitchInterface { tunnel: self.tunnel(), to: self.interface() }.into(),
            },
            31 => match self.random.u8(..3) {
                0 => SetInterfacePolicy { policy: self.interface() }.into(),
                1 => SetInterface { tunnel: self.tunnel(), interface: self.interface() }.into(),
                _ => {
                    let op = self.op();
                    self.last_request += 1;
                    let request = Request { id: self.request(self.last_request), op };
                    Looked { request }.into()
                }
            },
            32 => Netdev { news: self.news() }.into(),
            34 if self.random.u8(..8) == 0 => ReportAnswers { origin: REPORTING }.into(),
            34..=36 => {
                let delivered = self.random.bool();
                let mut completed = self.rig.completed.iter().rev();
                let late = completed.nth(self.random.usize(..3)).copied();
                let request = late.unwrap_or_else(|| self.any_request());
                Answered { request, delivered }.into()
            }
            _ => NetdevDatagram {
                tunnel: self.tunnel(),
                queue: self.file(),
                bytes: [&[0; 10], &*self.bytes()].concat().into(),
            }
            .into(),
        }
    }

    fn op(&mut self) -> Op {
        let file = self.file();
        let nonblock = self.random.bool();
        match self.random.u8(..12) {
            0 | 1 => {
                let scope = Scope(self.random.u64(1..3));
                Op::Open { flags: 2, opener: Opener { scope, ..Opener::default() } }
            }
            2..=5 => Op::Ioctl(file, self.ioctl()),
            6 | 7 => {
                Op::Read(file, ReadCall { limit: self.random.usize(..200), offset: 0, nonblock })
            }
            8 | 9 => Op::Write(file, WriteCall { data: self.bytes(), offset: 0, nonblock }),
            10 => Op::Poll { file, arm: self.random.bool().then_some(WakeHandle(file.0)) },
            _ => Op::Close(file),
        }
    }

    /// One that has its argument already.
    fn ioctl(&mut self) -> IoctlCall {
        const COMMANDS: [u32; 8] = [
            ioctl::TUNSETIFF,
            ioctl::TUNSETIFF,
            ioctl::TUNSETIFF,
            ioctl::TUNGETIFF,
            ioctl::TUNSETPERSIST,
            ioctl::TUNSETQUEUE,
            ioctl::TUNSETOFFLOAD,
            ioctl::TUNSETCARRIER,
        ];
        let command = self.random.choice(COMMANDS).unwrap_or_default();
        let mut request = IfReq::zeroed(false);
        request.copy_name(&self.name());
        let flags = [0x1001, 0x1002, 0x5001, 0x1101, 0x0200, 0x0400];
        request.set_flags(IfFlags::from_bits_retain(self.random.choice(flags).unwrap_or_default()));
        let is_structure =
            [ioctl::TUNSETIFF, ioctl::TUNGETIFF, ioctl::TUNSETQUEUE].contains(&command);
        let input = if is_structure {
            Bytes::copy_from_slice(request.as_bytes())
        } else {
            Bytes::copy_from_slice(&self.random.i32(..2).to_ne_bytes())
        };
        let argument = if is_structure { 0x1000 } else { self.random.u64(..2) };
        IoctlCall { command, argument, compat: false, credentials: None, input, output_room: 40 }
    }

    fn wait(&mut self) -> Wait {
        self.last_wait += 1;
        let (address, tunnel, count) = (self.address(), self.tunnel(), self.random.usize(..3));
        let condition = match self.random.u8(..8) {
            0 => Condition::Attached(address),
            1 => Condition::Detached(address),
            2 => Condition::Reading(address),
            3 => Condition::Written(address),
            4 => Condition::Exist(vec![address, self.address()]),
            5 => Condition::Take(tunnel, count),
            6 => Condition::Keep(tunnel, count, Keeper(1)),
            _ => {
                let datagram = self.datagram();
                match self.rig.core.injection(tunnel, datagram, Wrap::Raw) {
                    Ok(injection) => Condition::Inject(injection),
                    Err(_) => Condition::Written(address),
                }
            }
        };
        let timeout = Duration::from_millis(self.random.u64(..100));
        Wait { id: WaitId(self.last_wait), condition, timeout }
    }

    fn news(&mut self) -> NetdevNews {
        let (tunnel, request) = (self.tunnel(), self.any_request());
        if let Some(forward) = self.rig.forwards.pop() {
            return NetdevNews::Forwarded(Box::new(forward), Ok(()));
        }
        match self.random.u8(..8) {
            0 | 1 => NetdevNews::Made(
                tunnel,
                Ok(Some(MadeNetdev {
                    state: self.state(),
                    persistent: self.random.bool(),
                    was_there: self.random.bool(),
                })),
            ),
            2 => NetdevNews::Done(request, Ok(())),
            3 => NetdevNews::Removed(tunnel),
            4 => NetdevNews::Changed(tunnel, self.state()),
            5 => NetdevNews::Gone(tunnel),
            6 => NetdevNews::Readable(tunnel, self.file()),
            _ => NetdevNews::Added(tunnel, Some(self.interface())),
        }
    }

    fn state(&mut self) -> NetdevState {
        NetdevState {
            scope: Scope(self.random.u64(1..3)),
            index: self.random.u32(1..9),
            name: self.name(),
            up: self.random.bool(),
            carrier: self.random.bool(),
            mtu: 1500,
            address: None,
            queue_length: 500,
        }
    }

    fn settings(&mut self) -> Settings {
        Settings {
            up: self.random.bool().then_some(self.random.bool()),
            mtu: self.random.bool().then_some(1300),
            name: self.random.bool().then(|| self.name()),
            ..Settings::default()
        }
    }

    fn datagram(&mut self) -> Datagram {
        let vnet = self.random.u8(..4) == 0;
        Datagram::from(self.bytes()).with_vnet(vnet.then(VnetHeader::default))
    }

    /// IPv4, or nearly.
    fn bytes(&mut self) -> Bytes {
        let mut bytes = vec![0x45; self.random.usize(1..60)];
        bytes[1..].fill_with(|| self.random.u8(..));
        bytes.into()
    }

    fn name(&mut self) -> Name {
        Name::new(self.random.choice(["tun0", "tun1", "tap%d", ""]).unwrap_or_default().as_bytes())
    }

    fn address(&mut self) -> Address {
        match self.random.bool() {
            true => self.tunnel().into(),
            false => Address::Name(self.name()),
        }
    }

    fn interface(&mut self) -> Interface {
        let all = [Interface::None, Interface::Shadow, Interface::Bridge];
        self.random.choice(all).unwrap_or_default()
    }

    /// Every third is a request of the front end that may report.
    fn request(&self, unique: u64) -> RequestId {
        let origin = if unique.is_multiple_of(3) { REPORTING } else { Origin(0) };
        RequestId { origin, unique }
    }

    fn any_request(&mut self) -> RequestId {
        let unique = self.random.u64(..=self.last_request);
        self.request(unique)
    }

    fn few(&mut self) -> u64 {
        self.random.u64(1..=FEW)
    }

    fn file(&mut self) -> FileId {
        FileId(self.few())
    }

    fn tunnel(&mut self) -> TunnelId {
        TunnelId(u32::try_from(self.few()).unwrap_or_default())
    }

    fn peer(&mut self) -> PeerId {
        PeerId(u32::try_from(self.few()).unwrap_or_default())
    }
}

/// A front end that may report its answers.
const REPORTING: Origin = Origin(1);
const ETHERNET: Wrap = Wrap::Ethernet { source: None, destination: None };

/// Each kind of output.
const OUTPUTS: [&str; 10] = [
    "Complete", "Wake", "Answer", "Notify", "Netdev", "Forward", "Refresh", "Receive", "Left",
    "Event",
];

/// Its place in [`OUTPUTS`].
fn place(output: &Output) -> usize {
    match output {
        Output::Complete(..) => 0,
        Output::Wake(..) => 1,
        Output::Answer(..) => 2,
        Output::Notify(_) => 3,
        Output::Netdev(_) => 4,
        Output::Forward(_) => 5,
        Output::Refresh(..) => 6,
        Output::Receive(..) => 7,
        Output::Left(_) => 8,
        Output::Event(_) => 9,
    }
}

/// The variant of an input, as it is shown for a debugger.
fn variant(input: &Input) -> String {
    let shown = format!("{input:?}");
    shown.split('(').next().unwrap_or_default().into()
}

#[test]
fn every_log_of_inputs_replays_to_the_same_outputs() {
    let (mut inputs, mut outputs) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..SEQUENCES {
        let mut random = Random::new(seed);
        for _ in 0..LENGTH {
            random.step();
        }
        inputs.extend(random.rig.log().map(|(input, _)| variant(input)));
        outputs.extend(random.rig.log().flat_map(|(_, outputs)| outputs).map(place));
    }
    let known: BTreeSet<String> = Input::NAMES.iter().map(|name| String::from(*name)).collect();
    assert_eq!(inputs, known, "each input occurs");
    let missing: Vec<&str> = (0..OUTPUTS.len())
        .filter(|place| !outputs.contains(place))
        .map(|place| OUTPUTS[place])
        .collect();
    assert_eq!(missing, [""; 0], "each output occurs");
}

#[test]
fn another_input_leads_to_other_outputs() {
    let read = |byte| {
        let mut rig = Rig::new();
        let (file, tunnel) = rig.attached("tun0", 0x1001);
        rig.inject(tunnel, &[byte]).expect("there is room");
        rig.read(file, 9).expect("there is a datagram");
        let shown: Vec<String> = rig.log().map(|(_, outputs)| format!("{outputs:?}")).collect();
        shown
    };
    assert_eq!(read(1), read(1));
    assert_ne!(read(1), read(2));
}
