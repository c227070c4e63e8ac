//! A storm of clients and harnesses, and whether a daemon is after it what it was before. `scripts/soak` runs it.
//!
//! The storm is processes of this program, of several users: clients that open, attach, write, read, poll and fork, some in network
//! namespaces of their own; harnesses that inject, take, watch and attach, and often stop to read. Each goes on until it is
//! killed, which happens all the time. What they do follows from a seed each.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program with a report")]
#![allow(clippy::disallowed_methods, reason = "it measures time, and gives others time")]
#![allow(unreachable_pub, reason = "nothing is reachable from outside a program")]

#[path = "../support/device.rs"]
#[allow(dead_code, reason = "it has more calls than a storm makes")]
mod device;

mod client;
mod daemon;
mod harness;

use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use self::daemon::{Daemon, State};

/// Runs a storm of clients against a FUSE daemon, and checks the daemon at the end.
#[derive(Debug, Parser)]
struct Args {
    /// How long the storm lasts.
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    minutes: f64,
    /// The program under test.
    #[arg(long, value_name = "PATH")]
    memtun: PathBuf,
    /// Clients at one time.
    #[arg(long, value_name = "N", default_value_t = 24)]
    clients: usize,
    /// Harnesses at one time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    harnesses: usize,
    /// What is random follows from it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// A process of the storm: its part, and the path it works on.
    #[arg(long, num_args = 2, hide = true)]
    play: Option<Vec<String>>,
}

/// The users of the storm. None needs a name.
const UIDS: [u32; 4] = [0, 1_001, 1_002, 65_534];
/// Resident memory at the end, in KiB.
const MOST_AT_THE_END: usize = 40 << 10;
/// By so much the last third may have more resident memory than the first, in KiB.
const MARGIN: usize = 32 << 10;
/// How long the daemon may take to be as it was.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some([part, path]) = args.play.as_deref() {
        let random = fastrand::Rng::with_seed(args.seed);
        match part.as_str() {
            "client" => client::play(Path::new(path), random),
            _ => harness::play(Path::new(path), random),
        }
        return ExitCode::SUCCESS;
    }
    match storm(&args) {
        Ok(()) => {
            println!("passed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

fn storm(args: &Args) -> Result<(), String> {
    let mut daemon = Daemon::start(&args.memtun)?;
    let before = daemon.state()?;
    println!("before: {before}");
    let mut random = fastrand::Rng::with_seed(args.seed);
    let mut players: Vec<Player> = Vec::new();
    let mut samples = Vec::new();
    let (begin, mut killed) = (Instant::now(), 0_u64);
    let length = Duration::from_secs_f64(60.0 * args.minutes);
    let (mut next_sample, mut next_line) = (Duration::ZERO, Duration::ZERO);
    while begin.elapsed() < length {
        let count = |players: &[Player], part| players.iter().filter(|it| it.part == part).count();
        for (part, wanted) in [("client", args.clients), ("harness", args.harnesses)] {
            while count(&players, part) < wanted {
                let path = if part == "client" { &daemon.device } else { &daemon.control };
                players.push(
                    Player::start(part, path, &mut random).map_err(|error| error.to_string())?,
                );
            }
        }
        let victim = random.usize(..players.len());
        if random.u8(..4) == 0 {
            // One that does not read, for a while.
            let _ended = kill(players[victim].pid(), Signal::SIGSTOP);
        } else {
            players.swap_remove(victim).end();
            killed += 1;
        }
        players.retain_mut(|player| player.child.try_wait().is_ok_and(|status| status.is_none()));
        if begin.elapsed() >= next_sample {
            next_sample += Duration::from_secs(1);
            daemon.check_alive()?;
            samples.push(daemon.resident()?);
        }
        if begin.elapsed() >= next_line {
            next_line += Duration::from_secs(30);
            let seconds = begin.elapsed().as_secs();
            println!("{seconds:4} s: {killed} killed, {}", daemon.state()?);
        }
        thread::sleep(Duration::from_millis(random.u64(1..20)));
    }
    players.into_iter().for_each(Player::end);
    println!("{killed} were killed in {:.1} minutes", begin.elapsed().as_secs_f64() / 60.0);

    let third = samples.len() / 3;
    let (first, last) = (median(&samples[..third]), median(&samples[samples.len() - third..]));
    println!("resident memory, median: first third {first} KiB, last third {last} KiB");
    let after = daemon.settled(&before, PATIENCE)?;
    println!("after:  {after}");
    daemon.stop()?;
    if last > first + MARGIN {
        return Err(format!("memory grew by more than {MARGIN} KiB: {first} KiB, then {last} KiB"));
    }
    check(&before, &after)
}

/// What the storm has left behind.
fn check(before: &State, after: &State) -> Result<(), String> {
    let mut left = Vec::new();
    for (what, was, is) in [
        ("file descriptors", before.descriptors, after.descriptors),
        ("threads", before.threads, after.threads),
        ("open files", before.files, after.files),
        ("tunnels", before.tunnels, after.tunnels),
        ("network namespaces", before.namespaces, after.namespaces),
        ("bytes in use", before.memory, after.memory),
    ] {
        if is > was {
            left.push(format!("{is} {what}, {was} before"));
        }
    }
    if after.resident > MOST_AT_THE_END {
        left.push(format!("{} KiB resident, more than {MOST_AT_THE_END}", after.resident));
    }
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {}", left.join("; "))) }
}

fn median(samples: &[usize]) -> usize {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// A process of the storm.
struct Player {
    part: &'static str,
    child: Child,
}

impl Player {
    fn start(part: &'static str, path: &Path, random: &mut fastrand::Rng) -> io::Result<Self> {
        let uid = UIDS[random.usize(..UIDS.len())];
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--memtun", "-", "--seed", &random.u64(..).to_string(), "--play", part]);
        command.arg(path).uid(uid).gid(uid);
        Ok(Self { part, child: command.spawn()? })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn end(mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The storm ends with the process that makes it, whatever ends that.
fn end_with_parent() {
    let _set = set_pdeathsig(Signal::SIGKILL);
}
