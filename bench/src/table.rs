//! The table: one line for each row and placement, one column for each peer.

use std::{fmt::Write, iter};

use crate::{
    peer::{BARE_NOTIFY, MEMTUN, NOTIFY},
    results::{Cost, Crowd, Measured, Ratio, Report, Run},
    row::{Placement, thousands},
};

pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for run in &report.runs {
        render_run(&mut text, run);
    }
    text
}

fn render_run(text: &mut String, run: &Run) {
    let machine = &run.machine;
    let set = match run.set.as_str() {
        "fuse" => "One file on a FUSE mount",
        _ => "Character device by CUSE",
    };
    line(text, format_args!("# {set}: kernel {}, {}", machine.kernel, machine.cpus));
    if !machine.note.is_empty() {
        line(text, format_args!("{}", machine.note));
    }
    line(
        text,
        format_args!(
            "{} rounds, peers in turn. Microseconds a call: median of the rounds, and of the fastest batch of all rounds,\n\
             which others disturbed least. Ratios: median of those of each round, and that of the fastest batches.\n\
             others: CPUs that processes outside the benchmark used meanwhile ({:.2} just before the run).\n\
             +-: the largest spread, (slowest - fastest round) / median, of the line's peers.",
            run.rounds, machine.others_cpus_before
        ),
    );
    for (title, why) in &run.absent {
        line(text, format_args!("{title}: not available, {why}"));
    }
    for placement in Placement::ALL {
        let is_call = |it: &&Measured| it.placement == placement && !it.row.kind.is_throughput();
        let rows: Vec<&Measured> = run.rows.iter().filter(is_call).collect();
        if !rows.is_empty() {
            line(text, format_args!("\n## Placement: {}\n", placement.title()));
            render_calls(text, run, &rows);
        }
    }
    render_slow_calls(text, run);
    render_throughput(text, run);
    render_crowds(text, run);
    text.push('\n');
}

fn render_calls(text: &mut String, run: &Run, rows: &[&Measured]) {
    let mut cells = vec![head(run)];
    for measured in rows {
        let mut line = vec![measured.row.title()];
        let costs = || measured.peers.values();
        line.extend(run.peers.iter().map(|(name, _)| match measured.peers.get(name) {
            Some(cost) => call(cost),
            None if measured.failed.contains_key(name) => "failed".to_owned(),
            None => "-".to_owned(),
        }));
        line.extend(ratios(run).map(|Ratios { peer, ratio, .. }| {
            let ratio = measured.peers.get(&peer).and_then(ratio);
            ratio.map_or("-".to_owned(), |it| format!("{:.2} {:.2}", it.median, it.fastest))
        }));
        let spread = costs().map(|cost| cost.spread).fold(0.0, f64::max);
        line.push(format!("{:.0}%", spread * 100.0));
        line.push(format!("{:.2}", measured.others_cpus));
        cells.push(line);
    }
    align(text, &cells);
}

fn head(run: &Run) -> Vec<String> {
    let mut head = peers(run);
    head.extend(ratios(run).map(|it| it.title.to_owned()));
    head.extend(["+-", "others"].map(str::to_owned));
    head
}

fn peers(run: &Run) -> Vec<String> {
    let titles = run.peers.iter().map(|(_, title)| title.clone());
    iter::once(String::new()).chain(titles).collect()
}

/// A column of ratios: of which peer, and which.
struct Ratios {
    title: &'static str,
    peer: String,
    ratio: fn(&Cost) -> Option<Ratio>,
}

fn ratios(run: &Run) -> impl Iterator<Item = Ratios> {
    let notify = format!("{MEMTUN}-{NOTIFY}");
    let is_there = |name: &str| run.peers.iter().any(|(it, _)| it == name);
    let has_notify = is_there(&notify) && is_there(BARE_NOTIFY);
    let all = [
        Ratios { title: "memtun/bare", peer: MEMTUN.to_owned(), ratio: |cost| cost.to_bare },
        Ratios { title: "memtun/libfuse", peer: MEMTUN.to_owned(), ratio: |cost| cost.to_libfuse },
        Ratios { title: "memtun-notify/bare notify", peer: notify, ratio: |cost| cost.to_notify },
    ];
    all.into_iter().take(if has_notify { 3 } else { 2 })
}

fn call(cost: &Cost) -> String {
    format!("{} {}", microseconds(cost.median_ns), microseconds(cost.fastest_ns))
}

/// Three digits that count.
pub fn microseconds(ns: f64) -> String {
    let us = ns / 1000.0;
    match us {
        us if us < 10.0 => format!("{us:.2}"),
        us if us < 100.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}

/// Calls timed one by one.
fn render_slow_calls(text: &mut String, run: &Run) {
    let rows = || run.rows.iter().filter(|it| it.peers.values().any(|cost| cost.p99_ns.is_some()));
    if rows().next().is_none() {
        return;
    }
    line(
        text,
        format_args!(
            "\n## 99 of 100 calls take at most (microseconds; the median of the rounds)\n"
        ),
    );
    let mut cells = vec![peers(run)];
    for measured in rows() {
        let mut line = vec![format!("{}, {}", measured.row.title(), measured.placement.title())];
        line.extend(run.peers.iter().map(|(name, _)| {
            let p99_ns = measured.peers.get(name).and_then(|cost| cost.p99_ns);
            p99_ns.map_or("-".to_owned(), microseconds)
        }));
        cells.push(line);
    }
    align(text, &cells);
}

fn render_throughput(text: &mut String, run: &Run) {
    let rows: Vec<_> = run.rows.iter().filter(|it| it.row.kind.is_throughput()).collect();
    if rows.iter().all(|it| it.peers.is_empty()) {
        return;
    }
    line(
        text,
        format_args!(
            "\n## Throughput, datagrams of 1,400 bytes a second (placement: the scheduler decides)\n"
        ),
    );
    let mut cells =
        vec![["", "peer", "a second", "fastest batch", "+-", "others"].map(str::to_owned).to_vec()];
    for measured in rows {
        for (peer, cost) in &measured.peers {
            cells.push(vec![
                measured.row.title(),
                peer.clone(),
                thousands((1e9 / cost.median_ns) as u64),
                thousands((1e9 / cost.fastest_ns) as u64),
                format!("{:.0}%", cost.spread * 100.0),
                format!("{:.2}", measured.others_cpus),
            ]);
        }
    }
    align(text, &cells);
}

fn render_crowds(text: &mut String, run: &Run) {
    if run.crowds.is_empty() {
        return;
    }
    line(
        text,
        format_args!(
            "\n## A server with one file open, and with 1,000, all but one with a blocked reader\n"
        ),
    );
    let mut cells = vec![
        ["", "files", "threads", "heap and stacks KiB", "resident KiB", "idle CPU us/s"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for Crowd { peer, files, threads, anonymous_kib, resident_kib, idle_cpu_ns } in &run.crowds {
        let numbers = [*files as u64, *threads, *anonymous_kib, *resident_kib, idle_cpu_ns / 1000];
        let mut line = vec![peer.clone()];
        line.extend(numbers.map(thousands));
        cells.push(line);
    }
    align(text, &cells);
}

/// The first column to the left, the others to the right.
fn align(text: &mut String, lines: &[Vec<String>]) {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for cells in lines {
        let first = format!("{:<1$}", cells[0], widths[0]);
        let rest = cells[1..].iter().zip(&widths[1..]);
        let rest: String = rest.map(|(cell, width)| format!("  {cell:>width$}")).collect();
        line(text, format_args!("{first}{rest}"));
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    let _infallible = writeln!(text, "{content}");
}
