//! The speeds and sizes to reach, and whether they are.

use std::fmt::Write;

use crate::{
    peer::{CPU, LIBFUSE, MEMTUN, NOTIFY},
    results::{Cost, Ratio, Report, Run},
    row::{Kind, Placement, Row, thousands},
};

const CALLS: [Kind; 3] = [Kind::Write, Kind::Read, Kind::Cycle];

/// One target: what, the limit, what was measured, and whether that is within the limit.
struct Target {
    what: String,
    limit: String,
    measured: String,
    is_met: bool,
}

pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for run in &report.runs {
        let targets = targets(run);
        if targets.is_empty() {
            continue;
        }
        let _infallible = writeln!(text, "# Targets, {}\n", run.set.to_uppercase());
        for target in targets {
            let verdict = if target.is_met { "met   " } else { "MISSED" };
            let Target { what, limit, measured, .. } = target;
            let _infallible = writeln!(text, "{verdict}  {what}: {measured} (to reach: {limit})");
        }
        let outside = run.machine.host_others_cpus_before.unwrap_or(0.0);
        let busiest = run.rows.iter().map(|row| row.others_cpus).fold(outside, f64::max);
        if busiest > 0.1 {
            let _infallible = writeln!(
                text,
                "\nThe machine was not idle (others used up to {busiest:.2} CPUs): these figures are provisional."
            );
        }
        text.push('\n');
    }
    text
}

fn targets(run: &Run) -> Vec<Target> {
    // Emulated CPUs that are not always running wake each other in milliseconds, and run user code far slower than
    // the host does: what is left to compare is a call on one of them with the peers' on the same.
    let mut targets = if run.machine.host_others_cpus_before.is_some() {
        beside_peers(run, &[Placement::Same])
    } else {
        let mut targets = beside_peers(run, &Placement::ALL);
        targets.extend(of_many(run));
        targets.extend(by_placement(run));
        targets.extend(by_notifications(run));
        targets.extend(throughput(run));
        targets
    };
    targets.extend(crowd_targets(run));
    targets
}

/// At most so much of another's time.
fn at_most(limit: f64, what: String, measured: Option<Ratio>) -> Option<Target> {
    let Ratio { median, fastest } = measured?;
    Some(Target {
        what,
        limit: format!("at most {limit:.2}"),
        measured: format!("{median:.2}, fastest {fastest:.2}"),
        is_met: median <= limit,
    })
}

/// The ratio of two lines of the table, which were not measured in turn.
fn of_lines(own: Option<&Cost>, other: Option<&Cost>) -> Option<Ratio> {
    let (own, other) = own.zip(other)?;
    let (median, fastest) = (own.median_ns / other.median_ns, own.fastest_ns / other.fastest_ns);
    Some(Ratio { median, fastest })
}

fn beside_peers(run: &Run, placements: &[Placement]) -> Vec<Target> {
    let lines = placements.iter().flat_map(|placement| CALLS.map(|kind| (*placement, kind)));
    let targets = lines.flat_map(|(placement, kind)| {
        let row = Row::plain(kind);
        let memtun = run.cost(MEMTUN, placement, &row);
        let what = |to: &str| format!("{}, {}, by {to}", row.title(), placement.title());
        [
            at_most(1.10, what("the bare loop"), memtun.and_then(|cost| cost.to_bare)),
            at_most(1.00, what("libfuse with one thread"), memtun.and_then(|cost| cost.to_libfuse)),
        ]
    });
    targets.flatten().collect()
}

/// Many files, many clients.
fn of_many(run: &Run) -> Vec<Target> {
    let mut targets = Vec::new();
    for placement in [Placement::Free, Placement::Same] {
        for kind in [Kind::Write, Kind::Cycle] {
            let one = run.cost(MEMTUN, placement, &Row::plain(kind));
            let row = Row { files: 1000, ..Row::plain(kind) };
            let what = format!("{}, {}, by one file", row.title(), placement.title());
            let ratio = of_lines(run.cost(MEMTUN, placement, &row), one);
            targets.extend(at_most(1.2, what, ratio));
        }
    }
    let clients = Row { clients: 8, ..Row::plain(Kind::Write) };
    let ratio = run.cost(MEMTUN, Placement::Free, &clients).and_then(|cost| cost.to_libfuse);
    let what = format!("{}, by libfuse with one thread", clients.title());
    targets.extend(at_most(1.0, what, ratio));
    targets
}

/// By what libfuse costs when nobody cares for placement.
fn by_placement(run: &Run) -> Vec<Target> {
    let targets = CALLS.into_iter().flat_map(|kind| {
        let row = Row::plain(kind);
        let libfuse = run.cost(LIBFUSE, Placement::Free, &row);
        let free = run.cost(MEMTUN, Placement::Free, &row);
        let own = run.cost(&format!("{MEMTUN}-{CPU}"), Placement::Free, &row);
        let (pinned, how) = match own {
            Some(_) => (own, "with --cpu"),
            None => (run.cost(MEMTUN, Placement::Same, &row), "pinned as --cpu would pin"),
        };
        let what = |how| format!("{} {how}, by libfuse where the scheduler decides", row.title());
        [
            at_most(0.35, what("with default settings"), of_lines(free, libfuse)),
            at_most(0.15, what(how), of_lines(pinned, libfuse)),
        ]
    });
    targets.flatten().collect()
}

/// The front end by seccomp notifications, beside both floors.
fn by_notifications(run: &Run) -> Vec<Target> {
    let cost =
        |placement, kind| run.cost(&format!("{MEMTUN}-{NOTIFY}"), placement, &Row::plain(kind));
    let what = |placement: Placement, kind, to: &str| {
        format!("{} by notifications, {}, by {to}", Row::plain(kind).title(), placement.title())
    };
    let lines =
        Placement::ALL.into_iter().flat_map(|placement| CALLS.map(|kind| (placement, kind)));
    let beside_own = lines.filter_map(|(placement, kind)| {
        let ratio = cost(placement, kind).and_then(|cost| cost.to_notify);
        at_most(1.2, what(placement, kind, "the bare loop of notifications"), ratio)
    });
    let (placement, kind) = (Placement::Same, Kind::Write);
    let ratio = cost(placement, kind).and_then(|cost| cost.to_bare);
    let beside_fuse = at_most(0.75, what(placement, kind, "the bare loop on FUSE"), ratio);
    beside_own.chain(beside_fuse).collect()
}

fn throughput(run: &Run) -> Vec<Target> {
    let targets =
        [(Kind::Attach, 200_000), (Kind::Json, 20_000)].into_iter().map(|(kind, limit)| {
            let row = Row::plain(kind);
            let cost = run.cost(MEMTUN, Placement::Free, &row)?;
            let rate = |ns: f64| (1e9 / ns) as u64;
            let (median, fastest) = (rate(cost.median_ns), rate(cost.fastest_ns));
            Some(Target {
                what: row.title(),
                limit: format!("at least {} a second", thousands(limit)),
                measured: format!("{} a second, fastest {}", thousands(median), thousands(fastest)),
                is_met: median >= limit,
            })
        });
    targets.flatten().collect()
}

fn crowd_targets(run: &Run) -> Vec<Target> {
    let crowd = |files| run.crowds.iter().find(|it| it.peer == MEMTUN && it.files == files);
    let (Some(one), Some(many)) = (crowd(1), crowd(1000)) else { return Vec::new() };
    let bytes = many.anonymous_kib.saturating_sub(one.anonymous_kib) * 1024 / 999;
    let idle = many.idle_cpu_ns;
    vec![
        Target {
            what: "threads with 1,000 blocked readers".to_owned(),
            limit: format!("{}, as with one", one.threads),
            measured: many.threads.to_string(),
            is_met: many.threads == one.threads,
        },
        Target {
            what: "memory for each open file with a blocked reader".to_owned(),
            limit: "at most 4,096 bytes".to_owned(),
            measured: format!("{} bytes", thousands(bytes)),
            is_met: bytes <= 4096,
        },
        Target {
            what: "CPU time in an idle second".to_owned(),
            limit: "none".to_owned(),
            measured: format!("{} us", thousands(idle / 1000)),
            is_met: idle == 0,
        },
    ]
}
