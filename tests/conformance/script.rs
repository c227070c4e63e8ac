//! Scripts: lines that are either system calls of the client or acts of whoever has the other end.
//!
//! A line is what `step/step.c` performs, or with a `>` before it an act of the far side; `#` begins a comment. `let NAME VALUE`
//! lets `$NAME` stand for a word in the lines below. `needs THING` at the head says what not every subject has.

use std::{fmt, path::Path};

/// A script.
#[derive(Clone, Debug)]
pub struct Script {
    pub name: String,
    /// What it needs of whom it is tried on.
    pub needs: Vec<String>,
    pub lines: Vec<Line>,
}

/// One line of it.
#[derive(Clone, Debug)]
pub struct Line {
    /// In the file.
    pub number: usize,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A step of the client.
    Client(String),
    /// An act of the far side.
    Far(Act),
}

/// What the far side does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Changes a tunnel. Tells nothing.
    Link { tunnel: String, change: Change },
    /// Sends a datagram, or a frame, to the client, if the tunnel takes it; perhaps several times. Tells nothing.
    Inject { tunnel: String, bytes: String, times: u32 },
    /// Tells the oldest datagram that the client wrote, or that there is none.
    Take { tunnel: String },
    /// Tells what can be seen of a tunnel from outside.
    Show { tunnel: String },
}

/// How a tunnel is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Up,
    Down,
    Delete,
    Rename(String),
    Mtu(u32),
    Address(String),
    QueueLength(u32),
}

impl Script {
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a script can be read");
        let name = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
        Self::parse(&name, &text)
    }

    pub fn parse(name: &str, text: &str) -> Self {
        let mut script = Self { name: name.to_owned(), needs: Vec::new(), lines: Vec::new() };
        let mut words: Vec<(String, String)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let mut line = line.to_owned();
            for (name, value) in words.iter().rev() {
                line = line.replace(name, value);
            }
            let place = format!("{name}, line {}: {line}", index + 1);
            if let Some(rest) = line.strip_prefix("let ") {
                let (name, value) = rest.split_once(' ').unwrap_or_else(|| panic!("{place}"));
                words.push((format!("${name}"), value.trim().to_owned()));
                // The longer name first, where one begins with another.
                words.sort_by_key(|(name, _)| name.len());
            } else if let Some(need) = line.strip_prefix("needs ") {
                script.needs.push(need.to_owned());
            } else if !line.is_empty() {
                let action = match line.strip_prefix("> ") {
                    Some(act) => {
                        Action::Far(Act::parse(act).unwrap_or_else(|| panic!("no act: {place}")))
                    }
                    None => Action::Client(line),
                };
                script.lines.push(Line { number: index + 1, action });
            }
        }
        script
    }

    /// Whether it says that it needs something.
    pub fn needs(&self, thing: &str) -> bool {
        self.needs.iter().any(|need| need == thing)
    }
}

impl Act {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (verb, rest) = words.split_first()?;
        let (tunnel, rest) = rest.split_first()?;
        let tunnel = (*tunnel).to_owned();
        match (*verb, rest) {
            ("link", change) => Change::parse(change).map(|change| Self::Link { tunnel, change }),
            ("inject", [bytes, times @ ..]) => {
                let times = times.first().map_or(Some(1), |times| times.parse().ok())?;
                Some(Self::Inject { tunnel, bytes: (*bytes).to_owned(), times })
            }
            ("take", []) => Some(Self::Take { tunnel }),
            ("show", []) => Some(Self::Show { tunnel }),
            _ => None,
        }
    }
}

impl Change {
    fn parse(words: &[&str]) -> Option<Self> {
        match words {
            ["up"] => Some(Self::Up),
            ["down"] => Some(Self::Down),
            ["delete"] => Some(Self::Delete),
            ["rename", name] => Some(Self::Rename((*name).to_owned())),
            ["mtu", number] => number.parse().ok().map(Self::Mtu),
            ["address", address] => Some(Self::Address((*address).to_owned())),
            ["queue", number] => number.parse().ok().map(Self::QueueLength),
            _ => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(step) => f.write_str(step),
            Self::Far(act) => write!(f, "> {act}"),
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { tunnel, change } => write!(f, "link {tunnel} {change}"),
            Self::Inject { tunnel, bytes, times: 1 } => write!(f, "inject {tunnel} {bytes}"),
            Self::Inject { tunnel, bytes, times } => write!(f, "inject {tunnel} {bytes} {times}"),
            Self::Take { tunnel } => write!(f, "take {tunnel}"),
            Self::Show { tunnel } => write!(f, "show {tunnel}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Down => f.write_str("down"),
            Self::Delete => f.write_str("delete"),
            Self::Rename(name) => write!(f, "rename {name}"),
            Self::Mtu(number) => write!(f, "mtu {number}"),
            Self::Address(address) => write!(f, "address {address}"),
            Self::QueueLength(number) => write!(f, "queue {number}"),
        }
    }
}

/// `HEX[*TIMES]`, several joined with `+`, as in `step/memory.h`.
pub fn bytes(text: &str) -> Vec<u8> {
    text.split('+')
        .flat_map(|part| {
            let (digits, times) = part.split_once('*').unwrap_or((part, "1"));
            let unit = hex::decode(digits).unwrap_or_else(|error| panic!("{text}: {error}"));
            unit.repeat(times.parse().unwrap_or_else(|error| panic!("{text}: {error}")))
        })
        .collect()
}

/// Bytes as `step/memory.h` shows them: of many the first ones, their number and a hash.
pub fn shown(bytes: &[u8]) -> String {
    if bytes.len() <= 128 {
        return hex::encode(bytes);
    }
    let hash = bytes
        .iter()
        .fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619));
    format!("{}..{}:{hash:08x}", hex::encode(&bytes[..48]), bytes.len())
}
