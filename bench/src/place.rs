//! What `/proc` knows: where threads may run, and who uses the CPUs.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// Number of CPUs.
pub fn cpus() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Lets all threads of a process run on one CPU only, or on all.
pub fn pin(pid: u32, cpu: Option<usize>) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for each in cpu.map_or(0..cpus(), |cpu| cpu..cpu + 1) {
        set.set(each)?;
    }
    for task in tasks(pid)? {
        match sched_setaffinity(Pid::from_raw(i32::try_from(task)?), &set) {
            // It has ended meanwhile.
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(error) => return Err(error).context(format!("pinning thread {task}")),
        }
    }
    Ok(())
}

fn tasks(pid: u32) -> anyhow::Result<Vec<u32>> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder).with_context(|| format!("listing {folder}"))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// CPU time that a process has used, threads that have ended included.
pub fn cpu_time(pid: u32) -> Duration {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap_or_default());
    let time = clock_getcpuclockid(pid).and_then(clock_gettime);
    time.map_or(Duration::ZERO, Duration::from)
}

/// A number of `/proc/PID/status`.
pub fn status(pid: u32, key: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("reading a status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no {key} in the status of {pid}"))
}

/// The use of all CPUs since a moment.
pub struct Meter {
    start: Instant,
    busy: Duration,
}

impl Meter {
    pub fn start() -> Self {
        Self { start: Instant::now(), busy: busy() }
    }

    /// How many CPUs others than those who used `own` have used on average.
    pub fn others(&self, own: Duration) -> f64 {
        let others = (busy() - self.busy).saturating_sub(own);
        // Ticks are counted whole, so what is hardly anything is nothing.
        (others.as_secs_f64() / self.start.elapsed().as_secs_f64() * 100.0).round() / 100.0
    }
}

/// How many CPUs are in use while this process uses none.
pub fn others_now() -> f64 {
    let meter = Meter::start();
    thread::sleep(Duration::from_secs(1));
    meter.others(Duration::ZERO)
}

/// Time that all CPUs were not idle; what a hypervisor took counts.
fn busy() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; a tick is 10 ms on every Linux of today.
    let busy = ticks.iter().take(8).enumerate().filter(|(place, _)| !matches!(place, 3 | 4));
    Duration::from_millis(busy.map(|(_, ticks)| ticks * 10).sum())
}
