//! What is measured, as it goes to `bench.json`. The head of `scripts/bench` documents it for readers of that file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::row::{Placement, Row};

/// Changes when a reader of the file would misunderstand.
pub const SCHEMA: u32 = 1;

/// The file.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// One for each set of peers.
    pub runs: Vec<Run>,
}

/// A set of peers, measured beside each other.
#[derive(Serialize, Deserialize)]
pub struct Run {
    /// `fuse` or `cuse`.
    pub set: String,
    /// Where.
    pub machine: Machine,
    /// How often each row was measured on each peer.
    pub rounds: usize,
    /// It was a short run.
    pub quick: bool,
    /// The peers in the table's order: name and what it is.
    pub peers: Vec<(String, String)>,
    /// Peers that were not there, and why.
    pub absent: Vec<(String, String)>,
    /// The rows.
    pub rows: Vec<Measured>,
    /// Servers with many blocked readers.
    pub crowds: Vec<Crowd>,
}

/// Where a run took place.
#[derive(Serialize, Deserialize)]
pub struct Machine {
    /// Model and number of the CPUs.
    pub cpus: String,
    /// Release of the kernel.
    pub kernel: String,
    /// What is known of the machine from outside, such as that it is emulated.
    pub note: String,
    /// CPUs that others used in the second before the run.
    pub others_cpus_before: f64,
    /// Likewise on the host of a virtual machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_others_cpus_before: Option<f64>,
}

/// One row at one placement.
#[derive(Serialize, Deserialize)]
pub struct Measured {
    /// What was done.
    pub row: Row,
    /// Where server and client ran.
    pub placement: Placement,
    /// CPUs that processes which are not part of the benchmark used meanwhile, on average.
    pub others_cpus: f64,
    /// By peer.
    pub peers: BTreeMap<String, Cost>,
    /// Peers that failed, and how.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, String>,
}

/// What one call cost on one peer.
#[derive(Serialize, Deserialize)]
pub struct Cost {
    /// Nanoseconds a call, of each round.
    pub ns: Vec<f64>,
    /// Their median.
    pub median_ns: f64,
    /// Nanoseconds a call of the fastest batch of all rounds (of at most 400 calls, or one a file): on a busy machine
    /// the one that was disturbed least.
    pub fastest_ns: f64,
    /// (largest - smallest) / median.
    pub spread: f64,
    /// 99 of 100 calls take at most so many nanoseconds; the median of the rounds. Not of throughput.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_ns: Option<f64>,
    /// The server's CPU time for a call in nanoseconds, warming up and filling queues included; median. 0 where it is
    /// started with each client.
    pub server_cpu_ns: f64,
    /// This peer's time by that of the bare loop.
    pub to_bare: Option<Ratio>,
    /// By that of libfuse with one thread.
    pub to_libfuse: Option<Ratio>,
    /// By that of the bare loop of notifications.
    pub to_notify: Option<Ratio>,
}

/// One peer's time by another's.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Ratio {
    /// The median of the rounds' ratios.
    pub median: f64,
    /// That of their fastest batches.
    pub fastest: f64,
}

/// A server whose open files each have a blocked reader.
#[derive(Clone, Serialize, Deserialize)]
pub struct Crowd {
    /// The peer.
    pub peer: String,
    /// Open files.
    pub files: usize,
    /// The server's threads.
    pub threads: u64,
    /// `RssAnon` of the server in KiB.
    pub anonymous_kib: u64,
    /// `VmRSS` of the server in KiB.
    pub resident_kib: u64,
    /// CPU time of the server in the second that begins 10 ms after its last call, in nanoseconds.
    pub idle_cpu_ns: u64,
}

/// The middle one, or the mean of the two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

impl Run {
    /// The cost of a peer in a row of 1,400-byte datagrams that has nothing special but `with`.
    pub fn cost(&self, peer: &str, placement: Placement, row: &Row) -> Option<&Cost> {
        let measured = self.rows.iter().find(|it| {
            it.placement == placement && Row { calls: row.calls, ..it.row.clone() } == *row
        })?;
        measured.peers.get(peer)
    }
}
