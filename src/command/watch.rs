//! `watch`: shows what happens, as it happens.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Method;
use crate::{
    client::{Client, ClientError},
    control::{
        Outbox,
        session::{Reply, Session, encode},
        wire::{Line, hex_bytes},
    },
    core::{Address, Event, Mode, TunnelId},
    hub::Observer,
    render,
    terminal::escaped_json,
};

/// Parameters on the wire. Events follow the result, until the connection ends.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Only what happens on this tunnel, which must exist; else everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Address>,
}

/// Nothing to say.
#[derive(Debug, Serialize, Deserialize)]
pub struct Watching {}

/// An event as it goes over the wire.
#[derive(Debug, Serialize, Deserialize)]
pub struct WatchEvent {
    /// The id of the call that asked for it.
    pub watch: Value,
    /// Seconds since 1970.
    pub time: f64,
    /// How many events before this one were dropped because the harness did not read fast enough.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What happened. Tunnels are given by id and name.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "as the fields of core::Event, in the types of the wire")]
pub enum What {
    Opened { file: u64, pid: u32, command: String },
    Closed { file: u64 },
    Attached { id: u32, name: String, mode: String, file: u64, created: bool },
    Detached { id: u32, name: String, file: u64, deleted: bool },
    ToClient(Passed),
    FromClient(Passed),
    ToLink(Passed),
    Dropped { id: u32, name: String, reason: String, length: usize },
    Deleted { id: u32, name: String },
    Link { id: u32, name: String, up: bool, carrier: bool },
}

/// A datagram that passed.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as the fields of core::Event")]
pub struct Passed {
    pub id: u32,
    pub name: String,
    pub mode: String,
    #[serde(with = "hex_bytes")]
    pub datagram: Bytes,
}

impl From<&Event> for What {
    fn from(event: &Event) -> Self {
        let passed = |tunnel: &TunnelId,
                      name: &crate::abi::tun::Name,
                      mode: &Mode,
                      payload: &Bytes| Passed {
            id: tunnel.0,
            name: name.to_string(),
            mode: mode.word().to_owned(),
            datagram: payload.clone(),
        };
        match event {
            Event::Opened { file, pid, command } => {
                Self::Opened { file: file.0, pid: *pid, command: command.clone() }
            }
            Event::Closed { file } => Self::Closed { file: file.0 },
            Event::Attached { tunnel, name, mode, file, created } => Self::Attached {
                id: tunnel.0,
                name: name.to_string(),
                mode: mode.word().to_owned(),
                file: file.0,
                created: *created,
            },
            Event::Detached { tunnel, name, file, deleted } => Self::Detached {
                id: tunnel.0,
                name: name.to_string(),
                file: file.0,
                deleted: *deleted,
            },
            Event::ToClient { tunnel, name, mode, payload } => {
                Self::ToClient(passed(tunnel, name, mode, payload))
            }
            Event::FromClient { tunnel, name, mode, payload } => {
                Self::FromClient(passed(tunnel, name, mode, payload))
            }
            Event::ToLink { tunnel, name, mode, payload } => {
                Self::ToLink(passed(tunnel, name, mode, payload))
            }
            Event::Dropped { tunnel, name, reason, length } => Self::Dropped {
                id: tunnel.0,
                name: name.to_string(),
                reason: reason.word().to_owned(),
                length: *length,
            },
            Event::Deleted { tunnel, name } => {
                Self::Deleted { id: tunnel.0, name: name.to_string() }
            }
            Event::Link { tunnel, name, up, carrier } => {
                Self::Link { id: tunnel.0, name: name.to_string(), up: *up, carrier: *carrier }
            }
        }
    }
}

/// Turns events into lines; what the harness does not read in time is dropped and counted.
struct Watcher {
    call: Value,
    tunnel: Option<TunnelId>,
    outbox: Arc<Outbox>,
    missed: AtomicU64,
}

impl Observer for Watcher {
    fn observe(&self, at: SystemTime, event: &Event) {
        if self.tunnel.is_some() && event.tunnel() != self.tunnel {
            return;
        }
        let missed = self.missed.swap(0, Ordering::Relaxed);
        let event = WatchEvent {
            watch: self.call.clone(),
            time: at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            missed,
            what: event.into(),
        };
        if self.outbox.try_send(encode(&Line::<(), _>::Event { event })).is_err() {
            self.missed.fetch_add(missed + 1, Ordering::Relaxed);
        }
    }
}

impl Method for Watch {
    const NAME: &'static str = "watch";
    type Result = Watching;

    fn perform(self, session: &Arc<Session>, reply: Reply<Watching>) {
        let tunnel = match self
            .tunnel
            .map(|address| session.hub().with(|core| core.find(&address)))
            .transpose()
        {
            Ok(tunnel) => tunnel,
            Err(error) => return reply.send(Err(error.into())),
        };
        let watcher = Watcher {
            call: reply.id().clone(),
            tunnel,
            outbox: Arc::clone(session.outbox()),
            missed: AtomicU64::new(0),
        };
        // Events may come before the result; both carry the call's id.
        let watching = session.watch(Arc::new(watcher));
        reply.send(watching.map(|()| Watching {}));
    }
}

/// Shows what happens, a line an event, until it is interrupted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this tunnel: NAME, NAME@SCOPE or #ID.
    tunnel: Option<Address>,
    /// Print a JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the daemon says, or that it ended.
    pub fn run(self, client: &mut Client, out: &mut dyn Write) -> Result<(), ClientError> {
        let Watching {} = client.call(&Watch { tunnel: self.tunnel })?;
        loop {
            let event: WatchEvent = client.next_event()?;
            if self.json {
                let json = serde_json::to_string(&event)?;
                writeln!(out, "{}", escaped_json(&json))?;
            } else {
                writeln!(out, "{}", render::event(&event))?;
            }
            out.flush()?;
        }
    }
}
