//! `wait`: until a tunnel is as it should be, instead of sleeping and hoping.

use std::{io::Write, path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Method, default_timeout_ms, timed_out};
use crate::{
    client::{Client, ClientError},
    control::session::{Reply, Session},
    core::{Address, Answer, Condition},
    terminal::escaped,
};

/// Parameters on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// The tunnel; it need not exist yet.
    pub tunnel: Address,
    /// What to wait for.
    pub until: Until,
    /// How long, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// A client has attached to the tunnel (TUNSETIFF).
    Attached,
    /// No client is attached to it, or it is gone.
    Detached,
    /// A client is blocked in a read on it.
    Reading,
    /// A client has written a datagram that nobody has taken.
    Written,
}

impl Until {
    fn condition(self, tunnel: Address) -> Condition {
        match self {
            Self::Attached => Condition::Attached(tunnel),
            Self::Detached => Condition::Detached(tunnel),
            Self::Reading => Condition::Reading(tunnel),
            Self::Written => Condition::Written(tunnel),
        }
    }

    fn missing(self, tunnel: &Address) -> String {
        match self {
            Self::Attached => format!("no client attached to tunnel {tunnel}"),
            Self::Detached => format!("the clients of tunnel {tunnel} did not leave it"),
            Self::Reading => format!("no client was blocked in a read on tunnel {tunnel}"),
            Self::Written => format!("no client wrote a datagram on tunnel {tunnel}"),
        }
    }
}

/// What it gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Met {
    /// The tunnel's id; null if it is gone.
    pub id: Option<u32>,
    /// Its name.
    pub name: Option<String>,
}

impl Method for Wait {
    const NAME: &'static str = "wait";
    type Result = Met;

    fn perform(self, session: &Arc<Session>, reply: Reply<Met>) {
        let Self { tunnel, until, timeout_ms } = self;
        let hub = Arc::clone(session.hub());
        let condition = until.condition(tunnel.clone());
        session.wait(
            condition,
            Duration::from_millis(timeout_ms),
            reply,
            move |answer| match answer {
                Answer::Met(id) => {
                    let name = id.and_then(|id| {
                        hub.view(|core| core.tunnel(id).map(|tunnel| *tunnel.name()))
                    });
                    Ok(Met { id: id.map(|id| id.0), name: name.map(|name| name.to_string()) })
                }
                Answer::TimedOut(_)
                | Answer::Gone
                | Answer::Taken(_)
                | Answer::Kept(_)
                | Answer::Injected(_) => Err(timed_out(until.missing(&tunnel), timeout_ms)),
            },
        );
    }
}

/// Waits until a tunnel is in a state. Without a tunnel, waits until the daemon is ready.
///
/// The daemon need not run yet: the command waits for it first.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME, NAME@SCOPE or #ID. The tunnel need not exist yet.
    #[arg(requires = "until")]
    tunnel: Option<Address>,
    /// What to wait for.
    until: Option<Until>,
    /// How long to wait for the daemon, and then again for the tunnel, such as 500ms or 2s. With 0s the command only looks.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = super::duration, allow_hyphen_values = true)]
    timeout: humantime::Duration,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says; a timeout is one of it.
    pub fn run(self, control: &Path, out: &mut dyn Write) -> Result<(), ClientError> {
        let mut client = Client::connect_within(control, *self.timeout)?;
        let (Some(tunnel), Some(until)) = (self.tunnel, self.until) else { return Ok(()) };
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let met = client.call(&Wait { tunnel, until, timeout_ms })?;
        if let (Some(id), Some(name)) = (met.id, met.name) {
            writeln!(out, "{} #{id}", escaped(&name))?;
        }
        Ok(())
    }
}
