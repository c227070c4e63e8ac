//! Why a call gave no result.

use std::{
    error::Error,
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use memtun_proto::Failure;

/// Why a call gave no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    Connect {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon accepted no connection, sent no greeting, or did not answer a call in time. The connection is closed.
    Unresponsive {
        /// The path.
        path: PathBuf,
        /// How long it had.
        after: Duration,
    },
    /// The daemon speaks another version of the protocol.
    Protocol {
        /// The daemon's.
        daemon: u32,
        /// This program's.
        ours: u32,
    },
    /// The daemon refused the call.
    Refused(Failure),
    /// The daemon's answer is no answer.
    Garbled(serde_json::Error),
    /// The connection failed.
    Io(io::Error),
    /// The daemon closed the connection.
    Closed,
}

impl ClientError {
    /// The code of a refusal, one of those in [`code`](memtun_proto::error::code).
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(failure) => Some(&failure.code),
            Self::Connect { .. }
            | Self::Unresponsive { .. }
            | Self::Protocol { .. }
            | Self::Garbled(_)
            | Self::Io(_)
            | Self::Closed => None,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { path, source } => write!(
                f,
                "connecting to control socket {}: {source}; {}",
                path.display(),
                advice(path, source)
            ),
            Self::Unresponsive { path, after } => write!(
                f,
                "the daemon of control socket {} did not answer within {after:?}; it may be stopped or overloaded",
                path.display()
            ),
            Self::Protocol { daemon, ours } => write!(
                f,
                "the daemon speaks control protocol {daemon}, this program {ours}; use both from one version"
            ),
            Self::Refused(failure) => failure.fmt(f),
            Self::Garbled(error) => {
                write!(f, "the daemon sent something that is not an answer: {error}")
            }
            Self::Io(error) => write!(f, "talking to the daemon: {error}"),
            Self::Closed => f.write_str("the daemon closed the connection"),
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Io(source) => Some(source),
            Self::Garbled(error) => Some(error),
            // It is the failure, not caused by it.
            Self::Refused(failure) => failure.source(),
            Self::Unresponsive { .. } | Self::Protocol { .. } | Self::Closed => None,
        }
    }
}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

impl From<serde_json::Error> for ClientError {
    fn from(error: serde_json::Error) -> Self {
        Self::Garbled(error)
    }
}

/// What to do where nobody answers.
fn advice(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return "is 'memtun serve' running, and is this its --control path?".to_owned();
    }
    match fs::metadata(path) {
        Ok(socket) => {
            let owner = user_name(socket.uid()).unwrap_or_else(|| socket.uid().to_string());
            let mode = socket.mode() & 0o7777;
            format!(
                "it belongs to user {owner}, with mode {mode:04o}; use sudo, or start 'memtun serve' with --control-group or --control-mode"
            )
        }
        Err(_) => "you may not look into one of its folders; use sudo, or another path".to_owned(),
    }
}

/// The name of a local user, from passwd(5).
fn user_name(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|user| {
        let mut fields = user.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_name(u32::MAX - 1), None);
    }
}
