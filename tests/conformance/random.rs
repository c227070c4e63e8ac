//! Random sequences of calls and acts on the kernel's tun and on memtun at the same time, every result equal.
//!
//! A sequence is a script that a seed makes. One whose results differ is shortened as long as they do, and shown as a script:
//! what it shows belongs into `scripts/`. `MEMTUN_TEST_SEED` sets the seed, `MEMTUN_TEST_SEQUENCES` the number of sequences.
//!
//! Making and removing an interface costs the kernel tens of milliseconds of waiting, so several sequences run at a time.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use fastrand::Rng;

use super::{
    Width, compare, explained, golden, kernel, memtun::FrontEnd, script::Script, subject::Subject,
};

/// Names that sequences use; those that begin with `mq` are of multi-queue tunnels.
const NAMES: &[&str] = &["tun0", "tap0", "x0", "mq0", "mq1"];
const FILES: &[char] = &['a', 'b', 'c', 'd'];
/// Longer ones say no more, and take longer to shorten.
const LONGEST: usize = 40;

/// Runs sequences, several at a time.
pub fn agree(front_end: FrontEnd, sequences: u64, at_a_time: usize) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().expect(name));
    let seed: u64 = number("MEMTUN_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let sequences = number("MEMTUN_TEST_SEQUENCES").unwrap_or(sequences);
    let program = Width::Native.program();
    let next = AtomicU64::new(0);
    let steps = AtomicU64::new(0);
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                let mut pair = Pair::new(front_end, &program);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= sequences {
                        return;
                    }
                    let lines = sequence(&mut Rng::with_seed(seed.wrapping_add(number)));
                    steps.fetch_add(
                        lines.iter().map(Vec::len).sum::<usize>() as u64,
                        Ordering::Relaxed,
                    );
                    let shown = match pair.try_lines(&lines) {
                        Ok(None) => None,
                        Ok(Some(found)) => Some(pair.shorten(lines, found)),
                        // Nothing can be asked of this pair any more.
                        Err(error) => Some(format!("{}\n\n{error}", lines.concat().join("\n"))),
                    };
                    if let Some(shown) = shown {
                        next.store(sequences, Ordering::Relaxed);
                        let found = format!(
                            "MEMTUN_TEST_SEED={} gives\n{shown}",
                            seed.wrapping_add(number)
                        );
                        *failure.lock().expect("nobody panics with it") = Some(found);
                        return;
                    }
                }
            });
        }
    });
    println!("seed {seed}: {sequences} sequences of {} lines", steps.into_inner());
    let failure = failure.into_inner().expect("nobody panics with it");
    assert!(failure.is_none(), "\n{}", failure.unwrap_or_default());
}

/// The kernel and memtun, doing the same.
struct Pair {
    front_end: FrontEnd,
    kernel: Subject,
    memtun: Subject,
}

impl Pair {
    fn new(front_end: FrontEnd, program: &Path) -> Self {
        Self { front_end, kernel: kernel::subject(program), memtun: front_end.subject(program) }
    }

    /// How the first difference looks. Fails if one of the programs does not answer.
    fn try_lines(&mut self, lines: &[Vec<String>]) -> Result<Option<String>, String> {
        let script = Script::parse("random", &lines.concat().join("\n"));
        let of = |who| move |error| format!("{who}: {error}");
        let kernel = self.kernel.perform(&script.lines, None).map_err(of("kernel"))?;
        let memtun = self.memtun.perform(&script.lines, Some(&kernel)).map_err(of("memtun"))?;
        self.kernel.reset(NAMES).map_err(of("kernel"))?;
        self.memtun.reset(NAMES).map_err(of("memtun"))?;
        let found = compare(&script, &kernel, &memtun);
        let first = found.iter().find(|found| explained(self.front_end, found).is_none());
        Ok(first.map(|found| {
            let mut shown = String::new();
            found.show("memtun", &mut shown);
            shown
        }))
    }

    /// Leaves out what the difference does not need.
    fn shorten(&mut self, mut lines: Vec<Vec<String>>, mut found: String) -> String {
        let mut size = lines.len().div_ceil(2);
        loop {
            let mut at = 0;
            while at < lines.len() {
                let mut fewer = lines.clone();
                fewer.drain(at..lines.len().min(at + size));
                match self.try_lines(&fewer) {
                    Ok(Some(still)) => (lines, found) = (fewer, still),
                    Ok(None) => at += size,
                    Err(error) => return format!("{}\n\n{error}", fewer.concat().join("\n")),
                }
            }
            if size == 1 {
                return format!("{}\n\n{found}", lines.concat().join("\n"));
            }
            size = size.div_ceil(2);
        }
    }
}

/// What the generator believes about a file.
#[derive(Clone, Copy, Default)]
struct Belief {
    is_open: bool,
    /// Of the tunnel it is attached to.
    flags: Option<u16>,
    name: usize,
}

struct Generator<'a> {
    rng: &'a mut Rng,
    /// Whether the kernel treats vnet headers and offloads as the one that memtun follows.
    is_current: bool,
    files: [Belief; 4],
    /// How many files were ever attached to each name: the kernel spreads flows over queues by a secret.
    attached: [u32; 5],
    /// Names that were attached to since a file was closed: on FUSE a tunnel is gone some time after `close`, but before any
    /// later call.
    is_settled: [bool; 5],
    /// Names whose link type or carrier was changed, which changes how the stack sends.
    odd: [bool; 5],
    /// What belongs together stays together when a sequence is shortened.
    lines: Vec<Vec<String>>,
    /// Names with a classic filter: the kernel's defect with those that are attached again has a script.
    filtered: [bool; 5],
}

fn sequence(rng: &mut Rng) -> Vec<Vec<String>> {
    let length = rng.usize(8..LONGEST);
    let mut generator = Generator {
        rng,
        is_current: kernel::version() >= golden::VERSION,
        files: Default::default(),
        attached: [0; 5],
        is_settled: [false; 5],
        odd: [false; 5],
        filtered: [false; 5],
        lines: Vec::new(),
    };
    while generator.lines.len() < length {
        generator.lines.push(Vec::new());
        generator.step();
    }
    generator.lines
}

fn pick<'a, T: ?Sized>(rng: &mut Rng, from: &[&'a T]) -> &'a T {
    from[rng.usize(..from.len())]
}

impl Generator<'_> {
    fn say(&mut self, line: impl Into<String>) {
        self.lines.last_mut().expect("a step has begun").push(line.into());
    }

    fn step(&mut self) {
        let index = self.rng.usize(..FILES.len());
        let file = FILES[index];
        let belief = self.files[index];
        if !belief.is_open {
            let mode = pick(self.rng, &["rdwr", "rdwr", "rdwr", "rdwr", "rdonly", "wronly"]);
            self.say(format!("open {file} {mode}|nonblock"));
            self.files[index].is_open = true;
            return;
        }
        let Some(flags) = belief.flags else {
            match self.rng.u8(..10) {
                0 => self.ioctl(index),
                1 => self.say(format!("read {file} 100")),
                2 => self.say(format!("write {file} 4500")),
                3 => self.say(format!("poll {file} IN|OUT 0")),
                _ => self.attach(index),
            }
            return;
        };
        let name = NAMES[belief.name];
        match self.rng.u8(..100) {
            0..4 => {
                self.say(format!("close {file}"));
                self.files[index] = Belief::default();
                self.is_settled[belief.name] = false;
            }
            4..6 => self.attach(index),
            6..24 => self.ioctl(index),
            24..42 => self.read(file),
            42..45 if self.is_current && flags & 0x4000 != 0 => {
                self.say(format!("ioctl {file} TUNSETVNETHDRSZ int:24"));
                let bytes = self.written_in_tunnel(flags);
                self.say(format!("write {file} {bytes}"));
            }
            42..60 => {
                let bytes = self.written(flags);
                self.say(format!("write {file} {bytes}"));
                if self.rng.bool() && self.is_settled[belief.name] {
                    self.say(format!("> take {name}"));
                }
            }
            60..66 => {
                let events = pick(self.rng, &["IN|OUT", "IN", "OUT", "RDNORM|WRNORM", "PRI"]);
                self.say(format!("poll {file} {events} 0"));
            }
            66..68 => self.say(format!("select {file} rwx 0")),
            68..70 => {
                let state = pick(self.rng, &["up", "up", "down"]);
                self.say(format!("> link {name} {state}"));
            }
            70 => self.change(belief.name),
            71..74 if self.is_settled[belief.name] => self.say(format!("> take {name}")),
            74..76 => self.say(format!("fcntl {file} getfl")),
            76..79 if flags & 0x100 != 0 => {
                let what = pick(self.rng, &["0x200", "0x400", "0x600", "0"]);
                self.say(format!("ioctl {file} TUNSETQUEUE ifreq::{what}"));
            }
            79..82 if self.can_inject(belief.name) => {
                let bytes = self.injected(flags);
                self.say("handler SIGUSR1 plain");
                self.say(format!("fcntl {file} setfl rdwr"));
                self.say(format!("start t read {file} 100"));
                self.say("blocked t");
                self.say(format!("> inject {name} {bytes}"));
                self.say("signal t SIGUSR1");
                self.say("join t");
                self.say(format!("fcntl {file} setfl rdwr|nonblock"));
            }
            _ if self.can_inject(belief.name) => {
                let bytes = self.injected(flags);
                self.say(format!("> inject {name} {bytes}"));
            }
            _ => self.say(format!("poll {file} IN|OUT 0")),
        }
    }

    fn change(&mut self, name: usize) {
        let shown = NAMES[name];
        let change = match self.rng.u8(..8) {
            // A file that was not the first of a deleted tunnel can never be attached again: it keeps its queue's number.
            0..2 if self.attached[name] <= 1 => "delete".to_owned(),
            0..5 => format!("queue {}", pick(self.rng, &["0", "1", "2", "3", "20"])),
            5 => {
                format!("mtu {}", pick(self.rng, &["67", "68", "1400", "65521", "65535", "65536"]))
            }
            6 => format!("address {}", pick(self.rng, &["020000000003", "010000000003"])),
            _ => {
                let other = self.rng.usize(..NAMES.len());
                // Both may now be what the other was.
                self.odd[name] = true;
                self.odd[other] = true;
                format!("rename {}", NAMES[other])
            }
        };
        self.say(format!("> link {shown} {change}"));
    }

    fn can_inject(&self, name: usize) -> bool {
        !self.odd[name] && self.attached[name] <= 1
    }

    fn attach(&mut self, index: usize) {
        let number = self.rng.usize(..NAMES.len());
        let (name, file) = (NAMES[number], FILES[index]);
        if self.filtered[number] {
            return self.say(format!("poll {file} IN 0"));
        }
        let mut flags = match name {
            "tun0" => 1,
            "tap0" => 2,
            _ => *pick(self.rng, &[&1, &2]),
        };
        if self.rng.u8(..20) == 0 {
            flags = *pick(self.rng, &[&0, &1, &2, &3]);
        }
        if name.starts_with("mq") ^ (self.rng.u8(..20) == 0) {
            flags |= 0x100;
        }
        for (bit, chance) in [(0x1000, 60), (0x4000, 30), (0x2000, 5), (0x8000, 5), (0x80c, 2)] {
            if self.rng.u8(..100) < chance {
                flags |= bit;
            }
        }
        let place = match self.rng.u8(..40) {
            0 => "ro:",
            1 => "edge:20:",
            _ => "",
        };
        self.is_settled[number] = true;
        self.say(format!("ioctl {file} TUNSETIFF {place}ifreq:{name}:{flags:#x}"));
        let state = pick(self.rng, &["up", "up", "up", "up", "down"]);
        self.say(format!("> link {name} {state}"));
        if self.files[index].flags.is_none() {
            self.files[index].flags = Some(flags);
            self.files[index].name = number;
        }
        // It may be attached now though it was believed to be already.
        self.attached[number] += 1;
    }

    fn ioctl(&mut self, index: usize) {
        let file = FILES[index];
        let size = || ["9", "10", "11", "12", "20", "24", "100", "0", "-1"];
        let call = match self.rng.u8(..24) {
            0 => "TUNGETIFF ifreq:x:0".to_owned(),
            1 => "TUNGETFEATURES int:0".to_owned(),
            2 => format!("TUNSETPERSIST val:{}", pick(self.rng, &["0", "1", "1", "2"])),
            3 => format!("TUNSETOWNER val:{}", pick(self.rng, &["54321", "-1", "0"])),
            4 => format!("TUNSETGROUP val:{}", pick(self.rng, &["54321", "-1", "0"])),
            5 => {
                self.odd[self.files[index].name] = true;
                format!("TUNSETLINK val:{}", pick(self.rng, &["1", "65534", "512", "801"]))
            }
            // UDP_TUNNEL_GSO makes the kernel write 24 bytes of header, whatever size was asked for.
            6 => {
                let most = if self.is_current { 0x80 } else { 0x20 };
                format!("TUNSETOFFLOAD val:{}", self.rng.u16(..most))
            }
            7 => "TUNGETSNDBUF int:0".to_owned(),
            8 => {
                format!("TUNSETSNDBUF int:{}", pick(self.rng, &["1", "3", "4", "0", "-5", "99999"]))
            }
            9 => "TUNGETVNETHDRSZ int:0".to_owned(),
            10..12 if self.is_current => {
                format!("TUNSETVNETHDRSZ int:{}", pick(self.rng, &size()))
            }
            10..12 => "TUNSETVNETHDRSZ int:9".to_owned(),
            12 => "TUNGETVNETLE int:9".to_owned(),
            13 => format!("TUNSETVNETLE int:{}", pick(self.rng, &["0", "1", "-1"])),
            14 => pick(self.rng, &["TUNGETVNETBE int:9", "TUNSETVNETBE int:1"]).to_owned(),
            15 => pick(self.rng, &["TUNSETNOCSUM val:1", "TUNSETDEBUG val:0"]).to_owned(),
            16 => return self.say(format!("hwaddr {file}")),
            17 => {
                let address = pick(self.rng, &["020000000001", "010000000001", "000000000000"]);
                let family = pick(self.rng, &["1", "1", "1", "2", "65534"]);
                format!("SIOCSIFHWADDR hw:{family}:{address}")
            }
            18 => format!("TUNSETQUEUE ifreq::{}", pick(self.rng, &["0", "0x200", "0x400"])),
            19 => pick(
                self.rng,
                &["0x8901 ifreq:x:0", "0x12345678 int:0", "TCGETS int:0", "0x800454cb int:0"],
            )
            .to_owned(),
            20 => {
                let filter = ["0:0:", "1:0:", "0:1:020000000001", "0:2:01005e000001020000000001"];
                format!("TUNSETTXFILTER filter:{}", pick(self.rng, &filter))
            }
            21 => {
                self.filtered[self.files[index].name] = true;
                let program = ["6.0.0.ffff", "6.0.0.0", "6.0.0.e", "", "0.0.0.1"];
                format!("TUNATTACHFILTER prog:{}", pick(self.rng, &program))
            }
            22 => "TUNDETACHFILTER null".to_owned(),
            _ => pick(self.rng, &["TUNSETIFINDEX int:-1", "TUNSETIFINDEX int:1000"]).to_owned(),
        };
        self.say(format!("ioctl {file} {call}"));
    }

    fn read(&mut self, file: char) {
        let call = match self.rng.u8(..10) {
            0 => format!("readv {file} 4,10,100"),
            1 => format!("readv {file} 1x20"),
            2 => format!("readv {file} 2,2,9"),
            _ => {
                let sizes =
                    ["3", "4", "9", "10", "13", "14", "20", "24", "28", "100", "200", "2000"];
                format!("read {file} {}", pick(self.rng, &sizes))
            }
        };
        self.say(call);
    }

    /// A datagram or frame for the client.
    fn injected(&mut self, flags: u16) -> String {
        let tail = self.rng.u8(..60);
        let serial = self.rng.u16(..);
        if flags & 1 != 0 {
            let head = pick(self.rng, &["45", "60", "4500001c", "6000000000003a40"]);
            format!("{head}+{serial:04x}+00*{tail}")
        } else {
            let to = pick(self.rng, &["ffffffffffff", "020000000001", "01005e000001"]);
            let protocol = pick(self.rng, &["0800", "86dd", "0806", "88b5"]);
            format!("{to}+0200000000aa+{protocol}+{serial:04x}+00*{tail}")
        }
    }

    /// What a client writes, headers included.
    fn written(&mut self, flags: u16) -> String {
        let mut parts = Vec::new();
        if flags & 0x1000 == 0 {
            parts
                .push(pick(self.rng, &["00000800", "000086dd", "00001234", "ffff0800"]).to_owned());
        }
        if flags & 0x4000 != 0 {
            parts.push(self.vnet_header());
        }
        let frame = if flags & 1 != 0 { "" } else { "ffffffffffff0200000000aa0800" };
        let transport =
            pick(self.rng, &["4500003c00004000400600000a0000010a000002", "45", "6f", "35"]);
        let tail = self.rng.u8(..60);
        parts.push(format!("{frame}{transport}+aa*{tail}"));
        if self.rng.u8(..12) == 0 {
            // Too short for something.
            let cut = self.rng.usize(1..=20);
            return format!("00*{cut}");
        }
        parts.join("+")
    }

    /// What belongs inside a UDP tunnel, behind a vnet header of 24 bytes that is nearly right.
    fn written_in_tunnel(&mut self, flags: u16) -> String {
        const UDP: &str = "450000800000400040110000ac100001ac100002+138812b5006c0000+11*8";
        const TCP: &str =
            "4500005c00004000400600000a0000010a000002+00140050000000010000000050100000+00*4+aa*52";
        let pi = if flags & 0x1000 == 0 { "00000800+" } else { "" };
        let frame = if flags & 1 != 0 { "" } else { "ffffffffffff0200000000aa0800+" };
        let mut bytes = vec![
            *pick(self.rng, &[&1_u8, &9, &9, &0]),
            *pick(self.rng, &[&0x21_u8, &0x21, &0xa1, &0x25, &0x41, &0x20]),
        ];
        let mut fields = [0, 20, 70, 16, 0, 0, 0, 0, 0, 34, 50];
        if self.rng.bool() {
            let at = self.rng.usize(..fields.len());
            fields[at] += self.rng.u16(..9) * 4;
        }
        fields.iter().for_each(|field| bytes.extend(field.to_le_bytes()));
        format!("{pi}{}+{frame}{UDP}+{TCP}", hex::encode(bytes))
    }

    fn vnet_header(&mut self) -> String {
        if !self.is_current || self.rng.bool() {
            return format!("00*{}", pick(self.rng, &["10", "10", "10", "12", "20"]));
        }
        let flags = pick(self.rng, &[&0_u8, &1, &1, &2, &4]);
        let kind = pick(self.rng, &[&0_u8, &0, &1, &3, &4, &5, &0x80, &0x81, &6]);
        let mut bytes = vec![*flags, *kind];
        for among in [
            [0_u16, 20, 40, 28, 14, 100],
            [0, 1, 10, 1400, 65535, 40],
            [0, 20, 40, 14, 34, 60],
            [0, 6, 16, 16, 2, 99],
        ] {
            bytes.extend(among[self.rng.usize(..among.len())].to_le_bytes());
        }
        hex::encode(bytes)
    }
}
