//! Makes calls of one kind on the core alone; `scripts/count` counts their instructions.
//!
//! usage: calls KIND COUNT

use bytes::Bytes;
use memtun_core::{
    Address, Core, Datagram, FileId, Instant, IoctlCall, Limits, Op, Opener, Origin, Outcome,
    Output, ReadCall, Reply, Request, RequestId, TunnelId, WakeHandle, Wrap, WriteCall,
    abi::tun::{IfFlags, IfReq, Name, ioctl},
    input,
};

/// Time stands still.
const NOW: Instant = Instant::ORIGIN;

/// One call, or a few.
type Call = fn(&mut Driver);

/// What is counted, by name.
const KINDS: &[(&str, Call)] = &[
    ("write", |it| it.write()),
    ("write, take", |it| {
        it.write();
        it.take();
    }),
    ("inject, read", |it| {
        it.inject();
        it.read(true);
    }),
    ("read parked, inject", |it| {
        it.read(false);
        it.inject();
    }),
    ("read of nothing", |it| it.read(true)),
    ("poll", |it| it.poll()),
    ("poll armed, inject, read", |it| {
        it.poll();
        it.inject();
        it.read(true);
    }),
    ("ioctl TUNGETIFF", |it| it.ioctl()),
    ("open, TUNSETIFF, close", |it| {
        let file = it.open();
        it.attach(file, "");
        it.close(file);
    }),
];

fn main() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let usage = || {
        let kinds: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
        format!("usage: calls KIND COUNT; kinds: {}", kinds.join("; "))
    };
    let kind = arguments.next().ok_or_else(usage)?;
    let count: u32 = arguments.next().and_then(|count| count.parse().ok()).ok_or_else(usage)?;
    let (_, call) = KINDS.iter().find(|(name, _)| *name == kind).ok_or_else(usage)?;
    let mut driver = Driver::new();
    for _ in 0..count {
        call(&mut driver);
    }
    Ok(())
}

/// A core with one attached file, driven as a daemon does.
struct Driver {
    core: Core,
    file: FileId,
    tunnel: TunnelId,
    last: u64,
    outputs: Vec<Output>,
    datagram: Bytes,
}

impl Driver {
    fn new() -> Self {
        let mut driver = Self {
            core: Core::new(Limits::default(), 1),
            file: FileId(0),
            tunnel: TunnelId(0),
            last: 0,
            outputs: Vec::new(),
            datagram: Bytes::from_static(&[0x45; 1400]),
        };
        driver.file = driver.open();
        driver.attach(driver.file, "tun0");
        let address = Address::Name(Name::new(b"tun0"));
        driver.tunnel = driver.core.find(&address).expect("it was made");
        driver
    }

    fn ask(&mut self, op: Op) -> Option<Outcome> {
        self.last += 1;
        let id = RequestId { origin: Origin(0), unique: self.last };
        self.core.handle(NOW, Request { id, op });
        self.drain()
    }

    fn drain(&mut self) -> Option<Outcome> {
        self.core.take_outputs(&mut self.outputs);
        let mut outcome = None;
        for output in self.outputs.drain(..) {
            if let Output::Complete(_, completed) = output {
                outcome = Some(completed);
            }
        }
        outcome
    }

    fn open(&mut self) -> FileId {
        match self.ask(Op::Open { flags: 2, opener: Opener::default() }) {
            Some(Ok(Reply::Opened(file))) => file,
            other => panic!("open: {other:?}"),
        }
    }

    fn close(&mut self, file: FileId) {
        assert_eq!(self.ask(Op::Close(file)), Some(Ok(Reply::Closed)));
    }

    fn ioctl_of(&mut self, file: FileId, command: u32, argument: &IfReq) {
        let mut call = IoctlCall {
            command,
            argument: 0x1000,
            compat: false,
            credentials: None,
            input: Bytes::new(),
            output_room: 0,
        };
        let asked = self.ask(Op::Ioctl(file, call.clone()));
        let Some(Ok(Reply::Fetch { input: [input, _], output })) = asked else {
            panic!("{asked:?}")
        };
        call.input = Bytes::copy_from_slice(&argument.as_bytes()[..input.length]);
        call.output_room = output.length;
        let done = self.ask(Op::Ioctl(file, call));
        assert!(matches!(done, Some(Ok(Reply::Ioctl { .. }))), "{done:?}");
    }

    fn attach(&mut self, file: FileId, name: &str) {
        let mut request = IfReq::zeroed(false);
        request.copy_name(&Name::new(name.as_bytes()));
        request.set_flags(IfFlags::TUN | IfFlags::NO_PI);
        self.ioctl_of(file, ioctl::TUNSETIFF, &request);
    }

    fn ioctl(&mut self) {
        self.ioctl_of(self.file, ioctl::TUNGETIFF, &IfReq::zeroed(false));
    }

    fn write(&mut self) {
        let data = self.datagram.clone();
        let write = Op::Write(self.file, WriteCall { data, offset: 0, nonblock: false });
        assert_eq!(self.ask(write), Some(Ok(Reply::Written(self.datagram.len()))));
    }

    fn read(&mut self, nonblock: bool) {
        self.ask(Op::Read(self.file, ReadCall { limit: 2048, offset: 0, nonblock }));
    }

    fn poll(&mut self) {
        self.ask(Op::Poll { file: self.file, arm: Some(WakeHandle(1)) });
    }

    fn inject(&mut self) {
        let datagram = Datagram::from(self.datagram.clone());
        let inject = input::Inject { tunnel: self.tunnel.into(), datagram, wrap: Wrap::Raw };
        self.core.handle(NOW, inject).expect("there is room");
        self.drain();
    }

    fn take(&mut self) {
        self.core.handle(NOW, input::Take { tunnel: self.tunnel }).expect("one was written");
        self.drain();
    }
}
