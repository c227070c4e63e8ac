//! The verbs: one file each, which serves the wire (parameters and result), the daemon (the effect) and the command line
//! (arguments and text).

pub mod attach;
pub mod delete;
pub mod drop;
pub mod host;
pub mod inject;
pub mod interface;
pub mod join;
pub mod limits;
pub mod list;
pub mod part;
pub mod set;
pub mod take;
pub mod vnet;
pub mod wait;
pub mod watch;

use std::{sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    control::{
        session::{AnyReply, Reply, Session},
        wire::Failure,
    },
    core::{Address, Answer, Condition, Tunnel},
    hub::Hub,
};

/// A method of the control protocol; the type is its parameters.
pub trait Method: Serialize + DeserializeOwned {
    /// Its name on the wire.
    const NAME: &'static str;
    /// What it gives.
    type Result: Serialize + DeserializeOwned + Send + 'static;
    /// It is about tunnels and who has them open, so all that clients have closed must be known first. That takes a message
    /// through the kernel, and is spared where only datagrams matter.
    const KNOWS_CLOSES: bool = true;

    /// Does it, in the daemon, and answers now or later. Must not block.
    fn perform(self, session: &Arc<Session>, reply: Reply<Self::Result>);
}

/// How long `take` and `wait` wait unless they are told, in milliseconds.
pub const DEFAULT_TIMEOUT_MS: u64 = 10_000;

pub(crate) fn default_timeout_ms() -> u64 {
    DEFAULT_TIMEOUT_MS
}

/// The daemon's side: finds the method of a call and performs it.
pub(crate) fn dispatch(method: &str, params: Value, session: &Arc<Session>, reply: AnyReply) {
    match method {
        list::List::NAME => perform::<list::List>(params, session, reply),
        limits::Limits::NAME => perform::<limits::Limits>(params, session, reply),
        inject::Inject::NAME => perform::<inject::Inject>(params, session, reply),
        take::Take::NAME => perform::<take::Take>(params, session, reply),
        drop::DropKept::NAME => perform::<drop::DropKept>(params, session, reply),
        wait::Wait::NAME => perform::<wait::Wait>(params, session, reply),
        watch::Watch::NAME => perform::<watch::Watch>(params, session, reply),
        set::Set::NAME => perform::<set::Set>(params, session, reply),
        delete::Delete::NAME => perform::<delete::Delete>(params, session, reply),
        interface::Interface::NAME => perform::<interface::Interface>(params, session, reply),
        attach::Attach::NAME => perform::<attach::Attach>(params, session, reply),
        join::Join::NAME => perform::<join::Join>(params, session, reply),
        host::Host::NAME => perform::<host::Host>(params, session, reply),
        part::Part::NAME => perform::<part::Part>(params, session, reply),
        _ => {
            let message = format!(
                "there is no method {method:?}; the methods are list, limits, inject, take, drop, wait, watch, set, delete, interface, attach, join, host and part"
            );
            reply.fail(Failure::new("unknown-method", message));
        }
    }
}

fn perform<M: Method>(params: Value, session: &Arc<Session>, reply: AnyReply) {
    let parsed = match params {
        // No parameters at all are the same as none of them.
        Value::Null => serde_json::from_value(Value::Object(serde_json::Map::new())),
        Value::Object(_) => serde_json::from_value::<M>(params),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(serde::de::Error::custom("params must be an object"))
        }
    };
    match parsed {
        Ok(method) => {
            if M::KNOWS_CLOSES {
                session.hub().catch_up();
            }
            // What the harness has done to a link counts.
            session.hub().catch_up_with_netdevs();
            method.perform(session, reply.typed());
        }
        Err(error) => reply.fail(Failure::new("bad-params", format_args!("{}: {error}", M::NAME))),
    }
}

/// Acts when all of these tunnels exist: now, if there is no time to wait.
pub(crate) fn when_they_exist<R: Serialize + Send + 'static>(
    session: &Arc<Session>,
    tunnels: Vec<Address>,
    timeout_ms: u64,
    reply: Reply<R>,
    act: impl FnOnce(&Arc<Hub>) -> Result<R, Failure> + Send + 'static,
) {
    let hub = Arc::clone(session.hub());
    if timeout_ms == 0 {
        return reply.send(act(&hub));
    }
    let condition = Condition::Exist(tunnels.clone());
    session.wait(condition, Duration::from_millis(timeout_ms), reply, move |answer| match answer {
        Answer::Met(_)
        | Answer::Taken(_)
        | Answer::Kept(_)
        | Answer::Injected(_)
        | Answer::Gone => act(&hub),
        Answer::TimedOut(_) => {
            let is_missing = |tunnel: &&Address| {
                hub.view(|core| {
                    core.find(tunnel)
                        .ok()
                        .and_then(|id| core.tunnel(id))
                        .is_none_or(Tunnel::is_gone)
                })
            };
            let missing: Vec<String> = tunnels
                .iter()
                .filter(is_missing)
                .map(|tunnel| format!("tunnel {tunnel}"))
                .collect();
            Err(timed_out(format_args!("no client made {}", missing.join(" and ")), timeout_ms))
        }
    });
}

/// Values that are right each by itself and do not fit together.
pub(crate) fn usage_error(message: impl std::fmt::Display) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, message)
}

/// A time on the command line. Only options that take a word with a hyphen get to see a negative one.
pub(crate) fn duration(text: &str) -> Result<humantime::Duration, String> {
    text.parse().map_err(|error| {
        if text.starts_with('-') {
            "a time cannot be negative; give one such as 500ms or 2s".to_owned()
        } else {
            format!("{error}; give a number and a unit, such as 500ms or 2s")
        }
    })
}

/// A wait that ran into its deadline.
pub(crate) fn timed_out(what: impl std::fmt::Display, after_ms: u64) -> Failure {
    let after = humantime::format_duration(Duration::from_millis(after_ms));
    Failure::new("timeout", format_args!("{what} within {after}"))
}
