//! The rows of the table: what the client does, and where.

use serde::{Deserialize, Serialize};

/// What the client times; its words for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Write,
    Read,
    Cycle,
    Ping,
    Attach,
    Json,
    JsonOne,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What is timed.
    pub kind: Kind,
    /// Bytes of a datagram.
    pub size: u32,
    /// Files used in turn.
    pub files: u32,
    /// Further files, each with a blocked reader.
    pub blocked: u32,
    /// Threads that call at the same time, each on a file of its own.
    pub clients: u32,
    /// Calls in each round.
    pub calls: u32,
}

/// Where server and client ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// As the scheduler likes.
    Free,
    /// Both on CPU 0.
    Same,
    /// The server on CPU 0, the client on CPU 1.
    Split,
}

impl Placement {
    pub const ALL: [Self; 3] = [Self::Free, Self::Same, Self::Split];

    /// The CPU of the server.
    pub fn server_cpu(self) -> Option<usize> {
        (self != Self::Free).then_some(0)
    }

    /// The CPU of the client.
    pub fn client_cpu(self) -> Option<usize> {
        match self {
            Self::Free => None,
            Self::Same => Some(0),
            Self::Split => Some(1),
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Free => "the scheduler decides",
            Self::Same => "server and client on the same CPU",
            Self::Split => "server on CPU 0, client on CPU 1",
        }
    }
}

impl Kind {
    /// The client's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Cycle => "cycle",
            Self::Ping => "ping",
            Self::Attach => "attach",
            Self::Json => "json",
            Self::JsonOne => "json-one",
        }
    }

    /// What counts is how many a second, and only memtun has it.
    pub fn is_throughput(self) -> bool {
        matches!(self, Self::Attach | Self::Json | Self::JsonOne)
    }
}

impl Row {
    /// One file, 1,400 bytes, nobody else.
    pub fn plain(kind: Kind) -> Self {
        Self { kind, size: 1400, files: 1, blocked: 0, clients: 1, calls: 0 }
    }

    pub fn title(&self) -> String {
        let mut title = match self.kind {
            Kind::Write => "write",
            Kind::Read => "read, queued",
            Kind::Cycle => "write+poll+read",
            Kind::Ping => "round trip, blocked reader",
            Kind::Attach => "into a queue by attach",
            Kind::Json => "into a queue by JSON, 64 in flight",
            Kind::JsonOne => "into a queue by JSON, one by one",
        }
        .to_owned();
        if self.size != 1400 {
            title += &format!(" {} B", thousands(self.size.into()));
        }
        if self.files > 1 {
            title += &format!(", {} files", thousands(self.files.into()));
        }
        if self.blocked > 0 {
            title += &format!(", {} blocked beside", thousands(self.blocked.into()));
        }
        if self.clients > 1 {
            title += &format!(", {} clients", self.clients);
        }
        title
    }

    /// Where it is measured: everywhere what everything is compared with, else where it differs.
    pub fn placements(&self) -> &'static [Placement] {
        let is_plain = self.size == 1400 && self.files == 1 && self.blocked == 0;
        match self.kind {
            Kind::Attach | Kind::Json | Kind::JsonOne => &[Placement::Free],
            Kind::Write if self.clients > 1 => &[Placement::Free],
            Kind::Write | Kind::Read | Kind::Cycle if is_plain => &Placement::ALL,
            _ => &[Placement::Free, Placement::Same],
        }
    }
}

/// The rows of a run. `calls` is the number of a plain row's calls in each round.
pub fn all(calls: u32, is_quick: bool) -> Vec<Row> {
    use Kind::{Attach, Cycle, Json, JsonOne, Ping, Read, Write};
    let plain = |kind| Row { calls, ..Row::plain(kind) };
    let mut rows = vec![plain(Write), plain(Read), plain(Cycle), plain(Ping)];
    if is_quick {
        rows.push(Row { files: 1000, ..plain(Write) });
    } else {
        for size in [64, 65_535] {
            // Of the longest, memtun keeps 256 for the harness, and drops what comes then. A third more are timed one by
            // one, and the client warms up.
            let calls = if size == 64 { calls } else { calls.min(174) };
            rows.push(Row { size, calls, ..plain(Write) });
            rows.push(Row { size, calls, ..plain(Read) });
        }
        for files in [10, 100, 1000] {
            rows.push(Row { files, ..plain(Write) });
            rows.push(Row { files, ..plain(Cycle) });
        }
        rows.push(Row { blocked: 999, ..plain(Write) });
        rows.push(Row { blocked: 999, ..plain(Cycle) });
        rows.push(Row { clients: 8, ..plain(Write) });
    }
    rows.push(Row { calls: calls * 4, ..plain(Attach) });
    rows.push(plain(Json));
    rows.push(plain(JsonOne));
    rows
}

/// `12345` as `12,345`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
