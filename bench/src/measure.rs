//! `measure`: all rows of a set, peers in turn within each round.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::TimeVal,
};

use crate::{
    peer::{self, BARE, BARE_NOTIFY, LIBFUSE, Peer, Server, Set},
    place::{self, Meter},
    results::{Cost, Crowd, Machine, Measured, Ratio, Run, median},
    row::{self, Placement, Row},
};

#[derive(clap::Args)]
pub struct Options {
    /// Which peers.
    #[arg(long)]
    set: Set,
    /// Folder of client, bare, notify, libfuse and fuser-peer.
    #[arg(long)]
    programs: PathBuf,
    /// memtun itself.
    #[arg(long)]
    memtun: PathBuf,
    /// Where to write the run.
    #[arg(long)]
    out: PathBuf,
    /// Fewer rows.
    #[arg(long, overrides_with = "quick")]
    quick: bool,
    /// How often each row is measured on each peer.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Calls of a plain row in each round.
    #[arg(long, default_value_t = 3000, overrides_with = "calls")]
    calls: u32,
    /// Only rows whose title contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// What is known of the machine from outside.
    #[arg(long, default_value = "")]
    note: String,
    /// In a virtual machine: CPUs of the host that others used just before.
    #[arg(long)]
    host_others: Option<f64>,
    /// One more memtun, as NAME=ARGUMENTS of `memtun serve`, or `run` and arguments of that; may be repeated.
    #[arg(long, value_parser = variant)]
    variant: Vec<(String, String)>,
}

fn variant(text: &str) -> Result<(String, String), String> {
    let (name, arguments) = text.split_once('=').ok_or("write it as NAME=ARGUMENTS")?;
    Ok((name.to_owned(), arguments.to_owned()))
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let peers = peer::all(options.set, &options.programs, &options.memtun, &options.variant);
    let machine = machine(options);
    let mut servers: Vec<(&Peer, Server)> = Vec::new();
    let mut absent = Vec::new();
    let mut crowds = Vec::new();
    for peer in &peers {
        // Of its own and fresh: what other rows leave in a server's heap would count.
        let crowd =
            if peer.parks() { self::crowds(options, peer, &folder.0) } else { Ok(Vec::new()) };
        match crowd.and_then(|crowd| Ok((crowd, peer.start(options.set, &folder.0)?))) {
            Ok((crowd, server)) => {
                crowds.extend(crowd);
                servers.push((peer, server));
            }
            Err(error) => {
                eprintln!("bench: {error:#}; its column is empty");
                absent.push((peer.title.clone(), format!("{error:#}")));
            }
        }
    }
    let mut rows = Vec::new();
    for row in row::all(options.calls, options.quick) {
        for &placement in row.placements() {
            let is_possible = placement != Placement::Split || place::cpus() > 1;
            let is_done = servers.iter().any(|(peer, _)| peer.does(&row, placement));
            if is_possible && is_done && row.title().contains(&options.only) {
                eprintln!("bench: {} ({})", row.title(), placement.title());
                rows.push(measure(options, &servers, &row, placement)?);
            }
        }
    }
    let run = Run {
        set: options.set.word().to_owned(),
        machine,
        rounds: options.rounds,
        quick: options.quick,
        peers: servers.iter().map(|(peer, _)| (peer.name.clone(), peer.title.clone())).collect(),
        absent,
        rows,
        crowds,
    };
    fs::write(&options.out, serde_json::to_string(&run)?)
        .with_context(|| format!("writing {}", options.out.display()))
}

fn machine(options: &Options) -> Machine {
    let others = place::others_now();
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Machine {
        cpus: format!("{} x {}", place::cpus(), model.map_or("unknown", |(_, model)| model)),
        kernel: kernel.trim().to_owned(),
        note: options.note.clone(),
        others_cpus_before: others,
        host_others_cpus_before: options.host_others,
    }
}

/// Where servers have their files; removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("memtun-bench.{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _left_to_the_system = fs::remove_dir_all(&self.0);
    }
}

/// One row at one placement, on every peer that does it.
fn measure(
    options: &Options,
    servers: &[(&Peer, Server)],
    row: &Row,
    placement: Placement,
) -> anyhow::Result<Measured> {
    let able: Vec<_> = servers.iter().filter(|(peer, _)| peer.does(row, placement)).collect();
    for (_, server) in &able {
        if let Some(pid) = server.pid() {
            place::pin(pid, placement.server_cpu())?;
        }
    }
    let meter = Meter::start();
    let own_before = own_cpu_time(servers)?;
    let mut samples: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
    let mut failed = BTreeMap::new();
    for round in 0..options.rounds {
        // Each round starts with another peer, so that none always follows the same one.
        for turn in 0..able.len() {
            let (peer, server) = able[(round + turn) % able.len()];
            if failed.contains_key(&peer.name) {
                continue;
            }
            match sample(options, server, row, placement) {
                Ok(sample) => samples.entry(&peer.name).or_default().push(sample),
                Err(error) => {
                    eprintln!("bench: {}: {error:#}", peer.name);
                    samples.remove(peer.name.as_str());
                    failed.insert(peer.name.clone(), format!("{error:#}"));
                }
            }
        }
    }
    let others_cpus = meter.others(own_cpu_time(servers)?.saturating_sub(own_before));
    let times = |peer: &str| -> Option<Vec<f64>> {
        samples.get(peer).map(|samples| samples.iter().map(|sample| sample.ns).collect())
    };
    let fastest = |peer: &str| -> Option<f64> {
        samples.get(peer)?.iter().map(|sample| sample.fastest_ns).min_by(f64::total_cmp)
    };
    let peers = samples.iter().map(|(&peer, samples)| {
        let ns = times(peer).unwrap_or_default();
        let fastest_ns = fastest(peer).unwrap_or(f64::NAN);
        let ratio = |floor: &str| {
            let floors = times(floor)?;
            let ratios: Vec<f64> = ns.iter().zip(floors).map(|(own, floor)| own / floor).collect();
            Some(Ratio { median: median(&ratios), fastest: fastest_ns / fastest(floor)? })
        };
        let median_ns = median(&ns);
        let smallest = ns.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = ns.iter().copied().fold(0.0, f64::max);
        let server: Vec<f64> = samples.iter().map(|sample| sample.server_cpu_ns).collect();
        let p99: Vec<f64> = samples.iter().filter_map(|sample| sample.p99_ns).collect();
        let cost = Cost {
            median_ns,
            fastest_ns,
            spread: (largest - smallest) / median_ns,
            p99_ns: (!p99.is_empty()).then(|| median(&p99)),
            server_cpu_ns: median(&server),
            to_bare: ratio(BARE),
            to_libfuse: ratio(LIBFUSE),
            to_notify: ratio(BARE_NOTIFY),
            ns,
        };
        (peer.to_owned(), cost)
    });
    Ok(Measured { row: row.clone(), placement, others_cpus, peers: peers.collect(), failed })
}

/// What one run of the client gives, for each call.
struct Sample {
    ns: f64,
    fastest_ns: f64,
    p99_ns: Option<f64>,
    server_cpu_ns: f64,
}

/// Runs the client once.
fn sample(
    options: &Options,
    server: &Server,
    row: &Row,
    placement: Placement,
) -> anyhow::Result<Sample> {
    let mut client = client(options, server, row.kind.word(), placement);
    for (option, value) in [
        ("--size", row.size),
        ("--calls", row.calls),
        ("--files", row.files),
        ("--blocked", row.blocked),
        ("--clients", row.clients),
    ] {
        client.arg(option).arg(value.to_string());
    }
    if let (Some(client_cpu), Some(server_cpu)) = (placement.client_cpu(), placement.server_cpu()) {
        client.arg("--cpu").arg(client_cpu.to_string());
        client.arg("--pair-cpu").arg(server_cpu.to_string());
    }
    let cpu_time = || server.pid().map_or(Duration::ZERO, place::cpu_time);
    let before = cpu_time();
    let output = client.output().context("starting the client")?;
    let server_cpu = cpu_time().saturating_sub(before);
    if !output.status.success() {
        bail!("{}, {}", String::from_utf8_lossy(&output.stderr).trim(), output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    let numbers = text.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let (ns, fastest_ns, calls, p99_ns) = match numbers[..] {
        [ns, fastest_ns, calls] => (ns, fastest_ns, calls, None),
        [ns, fastest_ns, calls, p99_ns] => (ns, fastest_ns, calls, Some(p99_ns)),
        _ => bail!("the client printed {text:?}"),
    };
    Ok(Sample { ns, fastest_ns, p99_ns, server_cpu_ns: server_cpu.as_secs_f64() * 1e9 / calls })
}

/// The client's command. A server that is started with it is put on its CPU here.
fn client(options: &Options, server: &Server, row: &str, placement: Placement) -> Command {
    let mut client = server.command(&options.programs.join("client"), placement.server_cpu());
    client.arg(row).args(&server.client).stdin(Stdio::null());
    client
}

/// CPU time of the benchmark itself: this process, the clients that have ended, the servers.
fn own_cpu_time(servers: &[(&Peer, Server)]) -> anyhow::Result<Duration> {
    let sum = |usage: Usage| duration(usage.user_time()) + duration(usage.system_time());
    let own = sum(getrusage(UsageWho::RUSAGE_SELF)?) + sum(getrusage(UsageWho::RUSAGE_CHILDREN)?);
    Ok(servers.iter().filter_map(|(_, server)| server.pid()).map(place::cpu_time).sum::<Duration>()
        + own)
}

fn duration(time: TimeVal) -> Duration {
    let microseconds = time.tv_sec() * 1_000_000 + time.tv_usec();
    Duration::from_micros(u64::try_from(microseconds).unwrap_or_default())
}

/// A fresh server with one blocked reader, then with a thousand.
fn crowds(options: &Options, peer: &Peer, folder: &Path) -> anyhow::Result<Vec<Crowd>> {
    let server = peer.start(options.set, folder)?;
    let pid = server.pid().context("a peer that parks has a server")?;
    [1, 1000].into_iter().map(|files| crowd(options, peer, &server, pid, files)).collect()
}

fn crowd(
    options: &Options,
    peer: &Peer,
    server: &Server,
    pid: u32,
    files: usize,
) -> anyhow::Result<Crowd> {
    let mut client = client(options, server, "hold", Placement::Free);
    client.arg("--blocked").arg((files - 1).to_string());
    let mut holder = client
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the client")?;
    let mut line = String::new();
    if let Some(output) = holder.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    if line != "ready\n" {
        bail!("the client with {files} files of {} failed: {}", peer.name, holder.wait()?);
    }
    thread::sleep(Duration::from_millis(10));
    let before = place::cpu_time(pid);
    thread::sleep(Duration::from_secs(1));
    let idle_cpu = place::cpu_time(pid).saturating_sub(before);
    let crowd = Crowd {
        peer: peer.name.clone(),
        files,
        threads: place::status(pid, "Threads")?,
        anonymous_kib: place::status(pid, "RssAnon")?,
        resident_kib: place::status(pid, "VmRSS")?,
        idle_cpu_ns: u64::try_from(idle_cpu.as_nanos())?,
    };
    drop(holder.stdin.take());
    holder.wait()?;
    Ok(crowd)
}
