//! The peers: how each one's server is started and stopped, and what it can do.

use std::{
    ffi::OsString,
    fs,
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::row::{Kind, Placement, Row};

/// The name of the peer that is the floor.
pub const BARE: &str = "bare";
/// The name of the peer that is the floor of a server by seccomp notifications.
pub const BARE_NOTIFY: &str = "bare-notify";
/// The name of the peer that memtun is to be no slower than.
pub const LIBFUSE: &str = "libfuse";
/// The name of memtun with its default settings.
pub const MEMTUN: &str = "memtun";

/// The variant of memtun that pins client and server by itself.
pub const CPU: &str = "cpu";
/// The variant of memtun that serves by seccomp notifications.
pub const NOTIFY: &str = "notify";

/// How many bytes the bare loops keep where they keep what is written: as many as memtun does of a tunnel.
const KEPT: usize = 16 << 20;

const PATIENCE: Duration = Duration::from_secs(20);

/// What is behind the device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// A C peer with an inject socket.
    Plain,
    /// A peer whose calls do not block.
    Simple,
    Memtun,
    /// `memtun run`: a daemon for each client.
    Run,
    /// A C peer that starts its client, and has an inject socket.
    Starter,
    /// No server: the kernel's own tun.
    Kernel,
    /// No server: a socket pair.
    Pair,
}

/// One peer.
pub struct Peer {
    pub name: String,
    pub title: String,
    sort: Sort,
    program: PathBuf,
    arguments: Vec<String>,
}

/// How the device is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Set {
    /// A file on a mount of `/dev/fuse`, and what is no device of ours.
    Fuse,
    /// A character device of `/dev/cuse`.
    Cuse,
}

/// Whether memtun knows a verb with such options.
fn knows(memtun: &Path, arguments: &str) -> anyhow::Result<bool> {
    let arguments = arguments.split_ascii_whitespace();
    let output = Command::new(memtun).args(arguments).arg("--help").output();
    Ok(output.with_context(|| format!("starting {}", memtun.display()))?.status.success())
}

impl Set {
    /// The name of the option that chooses it, and of its results.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
            Self::Cuse => "cuse",
        }
    }
}

/// The peers of a set. `variants` are further settings of memtun, each a name and arguments of `memtun serve`, or `run`
/// and arguments of that. The path of another build of memtun may stand before them.
pub fn all(set: Set, programs: &Path, memtun: &Path, variants: &[(String, String)]) -> Vec<Peer> {
    let peer = |name: &str, title: &str, sort, program: PathBuf, arguments: &str| Peer {
        name: name.to_owned(),
        title: title.to_owned(),
        sort,
        program,
        arguments: arguments.split_ascii_whitespace().map(str::to_owned).collect(),
    };
    let own = |name: &str| programs.join(name);
    let mut peers = vec![
        peer(BARE, "bare loop", Sort::Plain, own("bare"), ""),
        peer(LIBFUSE, "libfuse", Sort::Plain, own("libfuse"), ""),
        peer("libfuse-mt", "libfuse mt", Sort::Plain, own("libfuse"), "--threads"),
    ];
    if set == Set::Fuse {
        peers.insert(1, peer("bare-spin", "bare, spins", Sort::Plain, own("bare"), "--spin 200"));
        let keep = format!("--keep {KEPT}");
        peers.insert(2, peer("bare-keep", "bare, keeps", Sort::Plain, own("bare"), &keep));
        peers.push(peer("fuser", "fuser", Sort::Simple, own("fuser-peer"), ""));
        peers.push(peer(BARE_NOTIFY, "bare notify", Sort::Starter, own("notify"), ""));
        let title = "notify, keeps";
        peers.push(peer("bare-notify-keep", title, Sort::Starter, own("notify"), &keep));
    }
    peers.push(peer(MEMTUN, "memtun", Sort::Memtun, memtun.to_owned(), ""));
    let mut known = vec![(CPU, "run --cpu 0")];
    if set == Set::Fuse {
        known.push((NOTIFY, "run --front-end notify"));
    }
    known.retain(|(_, arguments)| knows(memtun, arguments).unwrap_or(false));
    let variants = variants.iter().map(|(name, arguments)| (name.as_str(), arguments.as_str()));
    for (name, arguments) in known.into_iter().chain(variants) {
        let (program, arguments) = match arguments.split_once(' ').unwrap_or((arguments, "")) {
            (program, arguments) if program.starts_with('/') => (Path::new(program), arguments),
            _ => (memtun, arguments),
        };
        let (sort, arguments) = match arguments.strip_prefix("run") {
            Some(arguments) => (Sort::Run, arguments),
            None => (Sort::Memtun, arguments),
        };
        let name = format!("{MEMTUN}-{name}");
        peers.push(peer(&name, &name, sort, program.to_owned(), arguments));
    }
    if set == Set::Fuse {
        peers.push(peer("kernel", "kernel tun", Sort::Kernel, PathBuf::new(), ""));
        peers.push(peer("pair", "socket pair", Sort::Pair, PathBuf::new(), ""));
    }
    peers
}

impl Peer {
    /// Whether the peer can do a row at a placement.
    pub fn does(&self, row: &Row, placement: Placement) -> bool {
        let is_alone = row.files == 1 && row.blocked == 0 && row.clients == 1;
        match self.sort {
            Sort::Memtun => true,
            // With --cpu it places both by itself.
            Sort::Run => placement == Placement::Free || !self.has("--cpu"),
            Sort::Plain | Sort::Starter => !row.kind.is_throughput(),
            Sort::Simple => !row.kind.is_throughput() && row.kind != Kind::Ping && row.blocked == 0,
            Sort::Kernel => !row.kind.is_throughput() && is_alone,
            Sort::Pair => matches!(row.kind, Kind::Write | Kind::Read) && is_alone,
        }
    }

    /// Whether its server can have many blocked readers.
    pub fn parks(&self) -> bool {
        matches!(self.sort, Sort::Plain | Sort::Memtun)
    }

    fn has(&self, option: &str) -> bool {
        self.arguments.iter().any(|it| it == option)
    }

    /// Starts its server, with its files in `folder`, and waits until the device is there.
    pub fn start(&self, set: Set, folder: &Path) -> anyhow::Result<Server> {
        let option = format!("--{}", set.word());
        if self.sort == Sort::Memtun {
            let knows = knows(&self.program, &format!("serve {option} x"))?;
            ensure!(knows, "this memtun knows no 'serve {option}'");
        }
        let path = |suffix: &str| folder.join(format!("{}{suffix}", self.name));
        let mut server =
            Server { child: None, mount: None, wrapper: Vec::new(), client: Vec::new() };
        let mut client = |option: &str, value: &Path| {
            server.client.extend([option.to_owned(), value.display().to_string()]);
        };
        match self.sort {
            Sort::Run => {
                let (file, socket) = (path(".file"), path(".socket"));
                fs::write(&file, "").context("making a file to mount over")?;
                client("--control", &socket);
                client("--path", &file);
                let (file, socket) = (file.display().to_string(), socket.display().to_string());
                server.wrapper = vec![self.program.display().to_string(), "run".to_owned()];
                server.wrapper.extend(self.arguments.iter().cloned());
                if !self.has("--front-end") {
                    server.wrapper.extend(["--front-end", set.word()].map(str::to_owned));
                }
                let own = ["--control", &socket, "--at", &file, "--"];
                server.wrapper.extend(own.map(str::to_owned));
                server.try_wrapper()?;
            }
            Sort::Starter => {
                // No such file is needed.
                let (file, socket) = (path(".file"), path(".socket"));
                client("--path", &file);
                client("--inject", &socket);
                server.wrapper = vec![self.program.display().to_string()];
                server.wrapper.extend(server.client.iter().cloned());
                server.wrapper.extend(self.arguments.iter().cloned());
                server.try_wrapper()?;
            }
            Sort::Kernel => server.client.push("--kernel".to_owned()),
            Sort::Pair => server.client.push("--pair".to_owned()),
            Sort::Plain | Sort::Simple | Sort::Memtun => {
                // It must not outlive this process.
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL"]).arg(&self.program);
                let socket = path(".socket");
                if self.sort == Sort::Memtun {
                    command.arg("serve").arg("--control").arg(&socket);
                    client("--control", &socket);
                } else if self.sort == Sort::Plain {
                    command.arg("--inject").arg(&socket);
                    client("--inject", &socket);
                }
                let device = match set {
                    Set::Fuse => {
                        let file = path(".file");
                        fs::write(&file, "").context("making a file to mount over")?;
                        command.arg(&option).arg(&file);
                        file
                    }
                    Set::Cuse => {
                        command.arg(&option).arg(format!("bench-{}", self.name));
                        Path::new("/dev").join(format!("bench-{}", self.name))
                    }
                };
                client("--path", &device);
                let log = fs::File::create(path(".log")).context("making a log")?;
                command.args(&self.arguments);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
                let before = device_of(&device);
                server.child = Some(command.spawn().context("starting setpriv")?);
                server.mount = (set == Set::Fuse).then(|| device.clone());
                let is_memtun = self.sort == Sort::Memtun;
                wait_until(|| {
                    let ended = server
                        .child
                        .as_mut()
                        .is_some_and(|it| it.try_wait().is_ok_and(|end| end.is_some()));
                    ensure!(
                        !ended,
                        "it ended: {}",
                        fs::read_to_string(path(".log")).unwrap_or_default().trim()
                    );
                    let is_there = device_of(&device) != before;
                    Ok(is_there && (!is_memtun || UnixStream::connect(&socket).is_ok()))
                })
                .with_context(|| format!("starting {}", self.name))?;
            }
        }
        Ok(server)
    }
}

/// The device number of the file system or node behind a path.
fn device_of(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|data| (data.dev(), data.rdev()))
}

fn wait_until(mut is_true: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_true()? {
        if Instant::now() > deadline {
            bail!("not ready after {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The running server of a peer, or nothing for a peer that has none.
pub struct Server {
    child: Option<Child>,
    mount: Option<PathBuf>,
    /// The command that runs the client, if it is not run by itself.
    pub wrapper: Vec<String>,
    /// What tells the client where the device is.
    pub client: Vec<String>,
}

impl Server {
    /// A command that runs `program` as a client. Where that is what starts the server, it is on `server_cpu`; the client
    /// goes to its own by itself.
    pub fn command(&self, program: &Path, server_cpu: Option<usize>) -> Command {
        let mut words = self.wrapper.iter().map(OsString::from).chain([program.into()]);
        let cpu = server_cpu.filter(|_| !self.wrapper.is_empty());
        let mut command = match cpu {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.arg("--cpu-list").arg(cpu.to_string());
                command
            }
            None => Command::new(words.next().unwrap_or_default()),
        };
        command.args(words);
        command
    }

    /// Whether clients can be run by it.
    fn try_wrapper(&self) -> anyhow::Result<()> {
        let output = self.command(Path::new("true"), None).output().context("starting it")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "it runs no client: {}", text.trim());
        Ok(())
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        if let Ok(pid) = i32::try_from(child.id()) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let has_ended = wait_until(|| Ok(child.try_wait()?.is_some())).is_ok();
        if !has_ended {
            eprintln!("bench: a server does not end by SIGTERM, killing it");
            let _gone = child.kill();
            let _gone = child.wait();
        }
        if let Some(mount) = &self.mount {
            let _not_mounted = umount2(mount, MntFlags::MNT_DETACH);
        }
    }
}
