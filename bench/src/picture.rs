//! The picture: bars on a logarithmic scale, one group for each kind of call and placement. Colours follow the
//! reader's theme; the page behind shows through.

use std::fmt::Write;

use crate::{
    results::{Report, Run},
    row::{Kind, Placement, Row},
    table::microseconds,
};

const LABEL_WIDTH: f64 = 150.0;
const BAR_WIDTH: f64 = 480.0;
const WIDTH: f64 = LABEL_WIDTH + BAR_WIDTH + 90.0;
const BAR_HEIGHT: f64 = 14.0;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}.group{font-weight:600}.axis{fill:#59636e;font-size:11px}
line{stroke:#d1d9e0}rect{fill:#818b98}.memtun{fill:#0969da}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.axis{fill:#9198a1}line{stroke:#3d444d}rect{fill:#656c76}.memtun{fill:#4493f8}}
";

struct Group {
    title: String,
    bars: Vec<(String, bool, f64)>,
}

pub fn draw(report: &Report) -> String {
    let groups: Vec<Group> = report.runs.iter().flat_map(groups).collect();
    let times = || groups.iter().flat_map(|group| group.bars.iter().map(|bar| bar.2));
    // Whole decades around all bars, so that lengths can be read off the lines.
    let low = times().fold(f64::INFINITY, f64::min).log10().floor();
    let high = times().fold(0.0, f64::max).log10().ceil();
    let x = |ns: f64| LABEL_WIDTH + (ns.log10() - low) / (high - low) * BAR_WIDTH;
    let lines: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = 30.0 + groups.len() as f64 * 34.0 + lines as f64 * (BAR_HEIGHT + 3.0) + 24.0;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" aria-label=\"Microseconds a call, logarithmic scale\">\n<style>{STYLE}</style>\n"
    );
    let mut put = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    let mut decade = low;
    while decade <= high {
        let at = x(10f64.powf(decade));
        put(format!("<line x1=\"{at:.1}\" y1=\"22\" x2=\"{at:.1}\" y2=\"{:.1}\"/>", height - 6.0));
        let label = 10f64.powf(decade) / 1000.0;
        put(format!(
            "<text class=\"axis\" x=\"{at:.1}\" y=\"14\" text-anchor=\"middle\">{label} us</text>"
        ));
        decade += 1.0;
    }
    let mut y = 30.0;
    for group in &groups {
        y += 18.0;
        put(format!("<text class=\"group\" x=\"0\" y=\"{y:.1}\">{}</text>", escape(&group.title)));
        y += 8.0;
        for (title, is_memtun, ns) in &group.bars {
            let middle = y + BAR_HEIGHT - 3.0;
            let class = if *is_memtun { " class=\"memtun\"" } else { "" };
            put(format!(
                "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>\
                 <rect{class} x=\"{LABEL_WIDTH}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\"/>\
                 <text x=\"{:.1}\" y=\"{middle:.1}\">{} us</text>",
                LABEL_WIDTH - 8.0,
                escape(title),
                x(*ns) - LABEL_WIDTH,
                x(*ns) + 6.0,
                microseconds(*ns),
            ));
            y += BAR_HEIGHT + 3.0;
        }
        y += 8.0;
    }
    let _infallible = writeln!(svg, "</svg>");
    svg
}

fn groups(run: &Run) -> Vec<Group> {
    let mut groups = Vec::new();
    for kind in [Kind::Write, Kind::Read, Kind::Cycle] {
        for placement in [Placement::Free, Placement::Same] {
            let row = Row::plain(kind);
            let bars: Vec<_> = run
                .peers
                .iter()
                .filter_map(|(name, title)| {
                    let cost = run.cost(name, placement, &row)?;
                    Some((title.clone(), name.starts_with("memtun"), cost.median_ns))
                })
                .collect();
            if !bars.is_empty() {
                let set = run.set.to_uppercase();
                let title = format!("{set}: {}, 1,400 bytes; {}", row.title(), placement.title());
                groups.push(Group { title, bars });
            }
        }
    }
    groups
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
